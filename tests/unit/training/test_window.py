"""Metrics that only some samples have: sums and counts, so that no mean of means is logged; and the loss by noise level made of them."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sr3_core import config
from sr3_core.config import Stage
from sr3_core.diffusion import noise_bins
from sr3_core.objectives.diffusion import Options
from sr3_core.training import window
from sr3_core.training.loop import train
from sr3_core.training.state import CheckpointStore
from sr3_core.training.worker import LocalWorker
from tests.plugins.tiny_objective import Memory

LINES = list[tuple[int, dict[str, float]]]


def test_a_mean_is_over_the_samples_that_have_the_value() -> None:
    kept: window.Window = {}
    window.add(kept, window.flat({"loss": 1.0, "rare": (6.0, 2.0), "never": (0.0, 0.0)}))
    window.add(kept, window.flat({"loss": 3.0, "rare": (0.0, 0.0), "never": (0.0, 0.0)}))
    assert window.means(kept) == {"loss": 2.0, "rare": 3.0}
    assert window.means(json.loads(json.dumps(kept))) == window.means(kept), "as a checkpoint keeps it"


def test_every_sample_is_in_the_bin_of_its_level() -> None:
    levels = [-9.0, -4.5, -4.0 + 1e-9, -1.0, 1.0, 3.9, 4.1, math.inf]
    gamma = torch.tensor([1 / (1 + math.exp(-2 * level)) for level in levels], dtype=torch.float64)
    found = noise_bins.by_level(torch.arange(8.0), torch.cat([gamma[:-1], torch.ones(1)]))
    named = {name.removeprefix(noise_bins.PREFIX): value for name, value in found.items()}
    assert named == {
        "below -4": (1.0, 2.0), "-4 to -2": (2.0, 1.0), "-2 to 0": (3.0, 1.0), "0 to 2": (4.0, 1.0), "2 to 4": (5.0, 1.0),
        "above 4": (13.0, 2.0),
    }  # fmt: skip
    assert noise_bins.by_level(torch.ones(1), torch.zeros(1))[f"{noise_bins.PREFIX}below -4"] == (1.0, 1.0), "gamma 0 is noise alone"


def diffusion_stage(**training: Any) -> Stage:
    """Four steps of 8 images in micro-batches of 2: a micro-batch never has a sample of every level."""
    values = {"images": 32, "global_batch": 8, "micro_batch": 2, "checkpoint_images": 8, "log_images": 16, **training}
    network = {"name": "unet", "options": {"channels": 32, "multipliers": [1], "blocks": 1, "middle_attention": False}}
    objective = {"name": "diffusion", "options": {"prediction": "v", "levels": {"name": "log_snr", "low": -5, "high": 5}}}
    sampling = {"sampler": "ddim", "steps": 2, "grid": "log_snr", "start": -4.0, "end": 3.0}
    section = {"name": "s", "low": 4, "high": 8, "model": network, "objective": objective, "training": values, "sampling": sampling}
    return config.parse(Stage, section)


def run(stage: Stage, folder: Path, *, stop_at: int = 10**6) -> LINES:
    lines: LINES = []
    steps = iter(range(1, 10**6))
    worker = LocalWorker(stop=lambda: next(steps) == stop_at)
    store = CheckpointStore(str(folder), keep=1, say=lambda text: None)

    def log(at: int, line: dict[str, float]) -> None:
        lines.append((at, line))

    train(stage, None, worker=worker, checkpoints=store, batches=Memory(), log=log, say=lambda text: None)
    return lines


def by_level(line: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in line.items() if name.startswith(noise_bins.PREFIX)}


def test_a_broken_off_run_logs_the_same_loss_of_every_level(tmp_path: Path) -> None:
    """A break inside a window: what the checkpoint kept of it counts as it did."""
    whole = dict(run(diffusion_stage(), tmp_path / "whole"))
    broken = [*run(diffusion_stage(), tmp_path / "broken", stop_at=1), *run(diffusion_stage(), tmp_path / "broken")]
    resumed = {at: line for at, line in broken if line}
    assert {at: by_level(line) for at, line in resumed.items()} == {at: by_level(whole[at]) for at in (16, 32)}
    assert len(by_level(whole[16])) > 3


@pytest.mark.parametrize("micro_batch", [2, 8])
def test_weighed_by_their_samples_the_levels_make_up_the_loss(tmp_path: Path, micro_batch: int) -> None:
    stage = diffusion_stage(micro_batch=micro_batch)
    line = dict(run(stage, tmp_path))[16]
    levels = config.options(Options, stage.objective.options, "objective").levels
    gamma = torch.from_numpy(levels.draw(levels.uniform(np.arange(16), seed=0, global_batch=8)))
    counts = {name: count for name, (_, count) in noise_bins.by_level(torch.zeros(16), gamma).items()}
    assert sum(value * counts[name] for name, value in by_level(line).items()) / 16 == pytest.approx(line["loss"], rel=1e-6)
