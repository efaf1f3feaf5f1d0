"""A loss that is not finite: the step is left out and counted, a row of them goes back to the checkpoint, and persistent trouble fails."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sr3_core.errors import BadInput, Failed
from tests.plugins import faulty_objective, tiny_objective
from tests.plugins.broken_off import assert_broken_off_is_whole, newest, run

REPOSITORY = Path(__file__).resolve().parents[3]
SMALL: dict[str, Any] = {"options": {"width": 8}, "log_images": 12, "optimizer": {"learning_rate": 1e-3}}


@pytest.fixture(autouse=True)
def faults(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[int, int]]:
    """The tiny stage on the faulty machine, which has no faults at first."""
    monkeypatch.setattr(tiny_objective, "Objective", faulty_objective.Objective)
    monkeypatch.setattr(faulty_objective, "FAULTS", {})
    yield faulty_objective.FAULTS


def test_a_step_that_is_not_finite_is_left_out_and_counted(tmp_path: Path, faults: dict[int, int]) -> None:
    """The step at 12 images: weights, moments and average stay what they were there, and the next images are trained on."""
    before, _, _ = run(tmp_path / "before", **SMALL | {"images": 12, "checkpoint_images": 12}, learning_rate={})
    faults[20] = faulty_objective.ALWAYS
    left_out, lines, said = run(tmp_path / "out", **SMALL | {"images": 24, "max_skipped": 2}, learning_rate={})
    for name, tensor in before.ema.items():
        assert torch.equal(left_out.ema[name], tensor) and torch.equal(
            left_out.players["net"].state_dict()[name], before.players["net"].state_dict()[name]
        )
    assert [int(entry["step"]) for entry in left_out.optimizers["net"].state.values()] == [1] * 28
    logged = dict(lines)
    assert "loss" in logged[12] and logged[12]["skipped_steps"] == 0 and logged[24] == {"skipped_steps": 1}
    assert "images 12 to 24, turn net: loss nan, gradient norm nan: not finite; step left out, 1 in a row of at most 2, 1 in all" in said


def test_a_run_that_left_out_steps_resumes_bit_equal(tmp_path: Path, faults: dict[int, int]) -> None:
    """Broken off between two of them, so that the row goes on in the resumed run."""
    faults.update({30: faulty_objective.ALWAYS, 37: faulty_objective.ALWAYS, 70: faulty_objective.ALWAYS})
    state, _, said = assert_broken_off_is_whole(tmp_path, [3, 1, 2], **SMALL, max_skipped=3)
    assert state.carried.skipped == 3 and state.carried.skipped_in_row == 0
    assert sum("2 in a row of at most 3" in line for line in said) == 1


def test_a_row_goes_back_to_the_checkpoint_and_on_when_it_was_the_machine(tmp_path: Path, faults: dict[int, int]) -> None:
    run(tmp_path / "sound", **SMALL, max_skipped=2)
    faults.update({50: 1, 62: 1})  # the steps at 48 and at 60 images, once
    _, lines, said = run(tmp_path / "rolled", **SMALL, max_skipped=2)
    assert (
        "WARNING: 2 steps in a row up to 72 images were not finite: going back to the checkpoint at 48 images; "
        "if it happens there again, the run fails" in said
    )
    assert newest(tmp_path / "rolled") == newest(tmp_path / "sound")
    assert [at for at, _ in lines] == [0, 12, 24, 36, 48, 60, 60, 72, 84, 96]


@pytest.mark.parametrize("every", [12, 24])
def test_a_row_that_comes_again_fails(tmp_path: Path, faults: dict[int, int], every: int) -> None:
    """Also where a checkpoint stands inside the row, and with everything not finite from there on."""
    faults.update(dict.fromkeys(range(48, 96), faulty_objective.ALWAYS))
    with pytest.raises(
        Failed, match="stage tiny: 2 steps in a row up to 72 images were not finite, again after going back to a checkpoint"
    ):
        run(tmp_path, **SMALL, max_skipped=2, checkpoint_images=every)


def test_a_row_before_the_first_checkpoint_fails(tmp_path: Path, faults: dict[int, int]) -> None:
    faults[3] = 1
    with pytest.raises(Failed, match="1 steps in a row up to 12 images were not finite, and there is no checkpoint to go back to"):
        run(tmp_path, **SMALL, max_skipped=1)


def test_all_ranks_leave_out_the_same_steps_and_go_back_together(tmp_path: Path) -> None:
    """The fault is on the second of two workers alone."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.plugins.gloo_guard", str(tmp_path)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    left = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert left[0]["weights"] == left[1]["weights"] and left[0]["carried"] == left[1]["carried"] and left[0]["carried"]["skipped"] == 1
    assert [line.split(":")[0] for line in left[0]["said"]] == [
        "starting from scratch", "images 24 to 36, turn net", "images 48 to 60, turn net", "images 60 to 72, turn net", "WARNING"
    ]  # fmt: skip
    assert left[1]["said"] == []
    assert left[0]["pace"]["data_wait_share"] == 0.5 and left[0]["pace"]["images_per_second"] == 6.0, "of the worker that waited longest"
    assert left[1]["pace"] == {}


def test_a_negative_number_is_refused() -> None:
    with pytest.raises(BadInput, match=r"training.max_skipped=-1; allowed: input should be greater than or equal to 0"):
        tiny_objective.stage(max_skipped=-1)
