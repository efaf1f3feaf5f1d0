"""The checkpoints that look best are kept beside the newest ones, and the newest one is still what a run goes on from."""

from pathlib import Path
from typing import Any

import pytest

from sr3_core import config
from sr3_core.config import Stage
from sr3_core.errors import BadInput
from sr3_core.training.loop import train
from sr3_core.training.state import SCORES, CheckpointStore
from sr3_core.training.watching import Watcher
from sr3_core.training.worker import LocalWorker
from tests.plugins import tiny_objective
from tests.plugins.tiny_objective import Memory

WATCH = {"images": 24, "samples": 2, "loss_samples": 4, "keep_best": 2}
# a rate that grows to far too much: the best is in the middle
ROUGH = {
    "images": 192, "checkpoint_images": 12, "optimizer": {"learning_rate": 0.06}, "ema": {"decay": 0.0}, "options": {"width": 8},
    "learning_rate": {"name": "constant", "warmup_images": 192},
}  # fmt: skip


def run(stage: Stage, folder: Path, *, stop_at: int = 10**6) -> dict[int, dict[str, float]]:
    """What was looked at, by images seen, in a run that may be broken off in order after ``stop_at`` steps."""
    assert stage.training.watch is not None
    looks: dict[int, dict[str, float]] = {}
    steps = iter(range(1, 10**6))
    train(
        stage,
        None,
        worker=LocalWorker(stop=lambda: next(steps) == stop_at),
        checkpoints=CheckpointStore(str(folder), keep=1, best=stage.training.watch.keep_best, say=lambda text: None),
        batches=Memory(),
        watcher=Watcher(stage, Memory(), degradation="bicubic", tell=lambda at, found, png: looks.update({at: found})),
        say=lambda text: None,
        log=lambda *_: None,
    )
    return looks


def kept(folder: Path) -> list[int]:
    return sorted(int(path.parent.name) for path in folder.glob("*/state.json"))


@pytest.mark.parametrize(("best_by", "sign"), [("loss", 1), ("psnr_rgb", -1)])
def test_the_best_are_kept_beside_the_newest(tmp_path: Path, best_by: str, sign: int) -> None:
    stage = tiny_objective.stage(watch={**WATCH, "best_by": best_by}, **ROUGH)
    looks = run(stage, tmp_path)
    assert sorted(looks) == list(range(24, 193, 24))
    best = sorted(looks, key=lambda at: sign * looks[at][f"validation/{best_by}"])[:2]
    assert kept(tmp_path) == sorted({*best, 192})
    assert 192 not in best, "the newest is one of the best: the test saw less than it should"
    store = CheckpointStore(str(tmp_path), keep=1, best=2, say=print)
    newest = store.latest()
    assert newest is not None and newest.images_seen == 192
    assert {at: sign * -looks[at][f"validation/{best_by}"] for at in best} == {at: store.scores()[at] for at in best}


@pytest.mark.parametrize("stopped", [8, 9, 16])
def test_a_run_in_two_parts_keeps_the_same(tmp_path: Path, stopped: int) -> None:
    """Stopped between two looks, at 108 images, and where one was due: at 96, and at the end."""
    stage = tiny_objective.stage(watch=WATCH, **ROUGH)
    whole = run(stage, tmp_path / "whole")
    first, second = (run(stage, tmp_path / "parts", stop_at=stop_at) for stop_at in (stopped, 10**6))
    assert first | second == whole and not first.keys() & second.keys()
    assert kept(tmp_path / "parts") == kept(tmp_path / "whole")
    assert (tmp_path / "parts" / SCORES).read_bytes() == (tmp_path / "whole" / SCORES).read_bytes()


def test_what_is_not_finite_is_not_rated(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path), keep=1, best=1, say=print)
    store.rate(24, float("nan"))
    assert store.scores() == {} and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("watch", "line"),
    [
        ({**WATCH, "images": 36, "keep_best": 1}, "watch.images 36 must be a multiple of checkpoint_images 24"),
        ({**WATCH, "loss_samples": 0}, "keep_best 2 by loss needs loss_samples"),
        ({**WATCH, "samples": 0, "best_by": "psnr_rgb"}, "keep_best 2 by psnr_rgb needs samples"),
        ({**WATCH, "keep_best": 0, "best_by": "psnr_rgb"}, "best_by psnr_rgb is set, but keep_best 0 keeps none"),
    ],
)
def test_what_cannot_be_kept_is_refused(watch: dict[str, Any], line: str) -> None:
    with pytest.raises(BadInput) as refused:
        tiny_objective.stage(watch=watch)
    assert line in str(refused.value)


def test_a_stage_from_noise_has_no_psnr() -> None:
    values = tiny_objective.stage(watch={**WATCH, "best_by": "psnr_rgb"}).model_dump(mode="json")
    with pytest.raises(BadInput, match="a stage without low has nothing to compare with"):
        config.parse(Stage, {**values, "low": None})


def test_a_recipe_without_it_has_the_json_that_it_had() -> None:
    assert "best" not in tiny_objective.stage(watch={**WATCH, "keep_best": 0}).canonical_json()
