"""A small finished world for evaluate's tests: generated photos in a ShardSet, two bundles of the ``sharpen`` family, a section."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from components.evaluate.plan import Job
from components.evaluate.work import run
from sr3_core import config, storage
from sr3_core.artifacts.bundle import ModelBundle, lineage
from sr3_core.artifacts.report import Measurement
from sr3_core.artifacts.shardset import ShardSet
from sr3_core.config import Data, Evaluation, Stage
from sr3_core.data import shards
from sr3_core.data.sources import folder
from tests.conftest import write_photos

LEVELS = (16, 32, 64)
AMOUNT = 0.5  # a sharpening that helps one step of bicubic and spoils three
SECTION: dict[str, Any] = {
    "metrics": ["psnr", "ssim", "consistency", "colour_bias"],
    "baselines": ["bicubic", "nearest"],
    "search": {"split": "val", "metric": "psnr_rgb", "candidates": [{"steps": 3}, {"steps": 1}, {"steps": 1, "noise": 0.3}]},
    "variants": {"not sharpened": {"steps": 0}},
    "gate": [{"metric": "psnr_rgb", "than": "bicubic"}, {"metric": "colour_bias", "limit": 2.0}],
}


@dataclass(frozen=True)
class World:
    """Where everything lies."""

    shards: ShardSet
    bundles: tuple[tuple[str, str], ...]
    folder: Path

    def evaluation(self, **changes: Any) -> Evaluation:
        return config.parse(Evaluation, {**SECTION, **changes})


def make(at: Path) -> World:
    """14 photos, two of them too small for the largest level, and the bundles of 16 -> 32 -> 64."""
    write_photos(at / "photos", 12, size=(70, 64))
    write_photos(at / "photos" / "small", 6, size=(40, 48))
    data = config.parse(
        Data,
        {
            "source": "folder",
            "options": {"uri": str(at / "photos")},
            "levels": LEVELS,
            "split": {"val": 0.3, "test": 0.5, "minimum": {"train": 0}},  # no stage is trained here
            "required_levels": dict.fromkeys(("train", "val", "test"), LEVELS[:2]),
        },
    )
    made = shards.build(str(at / "shards"), data, folder.examples(folder.Options(uri=str(at / "photos"))), fingerprint="test")
    return World(made, tuple(bundle(at / f"x{high}", low, high, made.manifest_sha256) for low, high in pairwise(LEVELS)), at)


def from_noise(world: World, at: Path, *, highs: Sequence[int]) -> World:
    """The same photos, and the bundles of noise -> ``highs``."""
    pairs = pairwise((None, *highs))
    return World(world.shards, tuple(bundle(at / f"x{high}", low, high, world.shards.manifest_sha256) for low, high in pairs), at)


def bundle(at: Path, low: int | None, high: int, shards_sha256: str, *, amount: float = AMOUNT) -> tuple[str, str]:
    """(uri, sha256) of a bundle of the ``sharpen`` family."""
    plugin = {"name": "tests.plugins.sharpen"}
    training = {"images": 1, "global_batch": 1, "micro_batch": 1, "checkpoint_images": 1, "log_images": 1}
    values = {"name": f"x{high}", "low": low, "high": high, "model": plugin, "objective": plugin, "training": training}
    sha256 = ModelBundle.save(
        str(at),
        stage=config.parse(Stage, values),
        network_state={"amount": torch.tensor(amount)},
        measured={},
        degradation="bicubic",
        lineage=lineage(shards_sha256=shards_sha256, images_seen=1, git_commit=None),
        sampling={"steps": 3},
    )
    return storage.absolute(str(at)), sha256


def in_process(jobs: Sequence[Job], on_done: Callable[[Job, list[Measurement]], None]) -> list[list[Measurement]]:
    """The mapper of a laptop without Ray."""
    results: list[list[Measurement]] = []
    for job in jobs:
        results.append(run(job))
        on_done(job, results[-1])
    return results
