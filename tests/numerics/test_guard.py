"""The schedule guard: the cases known from the field, the values it says would be right, and what passes."""

from typing import Any

import numpy as np
import pytest

from sr3_core import config
from sr3_core.diffusion import grids, guard
from sr3_core.diffusion.schedules import BETWEEN, Levels, Schedule, gamma_of
from sr3_core.errors import BadInput
from sr3_core.objectives.diffusion import Objective
from tests.conftest import RECIPES

SYSTEM_C = {"schedule": {"start": 1e-4, "end": 0.005, "steps": 1000}}  # trained to gamma .0777, sampled from .0056
C_SAMPLING: dict[str, Any] = {"sampler": "ancestral", "grid": "betas", "betas": {"start": 1e-4, "end": 0.1, "steps": 100}, "steps": 100}
REASON = "the published weights were trained and sampled so"


def levels(**values: Any) -> Levels:
    return config.parse(Levels, values)


def stage(options: dict[str, Any], **sampling: Any) -> config.Stage:
    training = {"images": 8, "global_batch": 8, "micro_batch": 8, "checkpoint_images": 8, "log_images": 8}
    network = {"name": "unet", "options": {"channels": 8, "multipliers": [1], "blocks": 1, "middle_attention": False}}
    values = {"name": "x4", "low": 4, "high": 16, "model": network, "objective": {"name": "diffusion", "options": options}}
    return config.parse(config.Stage, {**values, "training": training, "sampling": sampling})


@pytest.mark.parametrize(("steps", "terminal"), [(2000, 4.4e-5), (1000, 0.0066), (500, 0.081), (250, 0.285), (100, 0.605)])
def test_fewer_steps_of_the_published_schedule(steps: int, terminal: float) -> None:
    """Linear 1e-6 -> 1e-2: 2000 steps pass, 1000 are warned of, fewer are refused; the end that would be right is right."""
    given = levels(schedule={"steps": steps})
    ranges = guard.describe(given)
    assert ranges.terminal_gamma == pytest.approx(terminal, rel=0.01)
    if steps == 2000:
        assert ranges.notes == () == guard.check("x4", given, None).notes
        return
    if steps == 1000:
        assert [note.split(":")[0] for note in guard.check("x4", given, None).notes] == ["warning"]
    else:
        with pytest.raises(BadInput, match=f"stage x4: the schedule's {steps} steps"):
            guard.check("x4", given, None)
    (finding,) = guard.findings(given, None)
    end = float(finding.do.split("schedule.end=")[1].split()[0])
    assert levels(schedule={"steps": steps, "end": end}).terminal_gamma == pytest.approx(4.4e-5, rel=0.02)
    assert guard.check("x4", levels(schedule={"steps": steps, "end": end}), None).notes == ()


@pytest.mark.parametrize("over", ["beta", "alpha"])
@pytest.mark.parametrize("name", BETWEEN)
def test_the_right_end_of_every_schedule_between_two_ends(name: str, over: str) -> None:
    given = config.parse(Schedule, {"name": name, "over": over, "steps": 50})
    end = guard.right_end(given, 1e-4)
    assert given.model_copy(update={"end": end}).gammas()[-1] == pytest.approx(1e-4, rel=1e-6)


@pytest.mark.parametrize(
    "values",
    [
        {"name": "log_snr", "low": -2.0},
        {"name": "log_normal", "mean": -5.0},
        {"name": "discrete", "schedule": {"name": "warmup50", "steps": 100}},
        {"name": "piecewise_sqrt", "schedule": {"over": "alpha", "start": 0.9999, "end": 0.999}},
    ],
)
def test_every_kind_of_levels_that_ends_with_signal_is_refused_with_a_value_that_is_right(values: dict[str, Any]) -> None:
    (finding,) = guard.findings(levels(**values), None)
    assert finding.refused
    key, value = finding.do.split("set levels.")[1].split()[0].split("=")
    change = {"schedule": {**values["schedule"], "end": float(value)}} if key == "schedule.end" else {key: float(value)}
    assert guard.findings(levels(**{**values, **change}), None) == []


@pytest.mark.parametrize(("share", "refused"), [(0.5, True), (0.89, True), (0.91, False), (1.0, False), (2.0, False)])
def test_a_start_below_nine_tenths_of_the_trained_end_is_refused(share: float, refused: bool) -> None:
    given = levels()
    grid = [share * given.terminal_gamma, 0.5, 1.0]
    if not refused:
        assert guard.check("x4", given, grid).sampled == (grid[0], 0.5)
        return
    with pytest.raises(BadInput, match=r"sampling starts at gamma .* start at gamma 4.386e-05 \(half log-SNR -5.017"):
        guard.check("x4", given, grid)


def test_starts_where_training_never_was() -> None:
    """Cleaner than anything trained is refused; from pure noise at a level with signal, and a last call too clean, are warned of."""
    given = levels(name="log_snr", low=-4.0, high=2.0)
    with pytest.raises(BadInput, match="cleanest level of training"):
        guard.check("x4", given, [float(gamma_of(2.5)), 1.0])
    (note,) = guard.check("x4", given, grids.log_snr_grid(4, -1.0, 2.0).tolist()).notes
    assert note.startswith("warning: sampling starts from pure noise at gamma 0.119")
    (note,) = guard.check("x4", given, grids.log_snr_grid(4, -4.0, 3.0).tolist()).notes
    assert "last network call" in note
    assert guard.check("x4", given, grids.log_snr_grid(4, -4.0, 2.0).tolist()).notes == ()


def test_an_end_without_signal_is_the_best_end() -> None:
    given = levels(schedule={"rescale_zero_terminal_snr": True})
    assert guard.check("x4", given, [0.0, 0.5, 1.0]).terminal_gamma == 0.0
    assert guard.describe(given).notes == ()
    with pytest.raises(BadInput, match="sampling starts at gamma 0,"):
        guard.check("x4", levels(), [0.0, 0.5, 1.0])


def test_a_published_schedule_passes_with_its_reason_alone() -> None:
    """System C: both the end of its training and the start of its sampling are refused, and waived in words that are carried."""
    with pytest.raises(BadInput, match=r"gamma 0.0777.*schedule.end=0.01984.*schedule_guard=published"):
        Objective(stage({"levels": SYSTEM_C}, **C_SAMPLING), {})
    with pytest.raises(BadInput, match="schedule_guard_reason"):
        Objective(stage({"levels": SYSTEM_C, "schedule_guard": "published"}, **C_SAMPLING), {})
    made = Objective(stage({"levels": SYSTEM_C, "schedule_guard": "published", "schedule_guard_reason": REASON}, **C_SAMPLING), {})
    assert made.ranges.terminal_gamma == pytest.approx(0.0777, abs=1e-4)
    assert made.ranges.sampled is not None and made.ranges.sampled[0] == pytest.approx(0.0056, abs=1e-4)
    assert len(made.notes) == 2
    assert all(note.startswith("waived as published") and REASON in note for note in made.notes)


def test_sampling_that_is_changed_later_is_checked_too() -> None:
    """predict() with another grid: refused, unless the schedule is a published one; the network is not called before."""
    refused = {"grid": "log_snr", "start": -7.0}
    for options, passes in (({}, False), ({"schedule_guard": "published", "schedule_guard_reason": REASON}, True)):
        made = Objective(stage({"prediction": "v", **options}, steps=2), {})
        predictor = made.predictor(made.players()["denoiser"], degradation="bicubic")
        low = np.zeros((1, 3, 4, 4), dtype=np.float32)
        tensor = next(predictor.network.parameters()).new_tensor(low)
        if passes:
            assert predictor.predict(tensor, seeds=np.array([1]), **refused).shape == (1, 3, 16, 16)
            continue
        with pytest.raises(BadInput, match="sampling starts at gamma"):
            predictor.predict(tensor, seeds=np.array([1]), **refused)


@pytest.mark.parametrize("recipe", ["demo", str(RECIPES / "tiny.yaml"), str(RECIPES / "pair.yaml")])
def test_the_recipes_that_are_run_have_nothing_to_be_said_of(recipe: str) -> None:
    loaded = config.load(recipe)
    candidates = loaded.evaluation.search.candidates if loaded.evaluation.search else ()
    for each in loaded.stages:
        for change in ({}, *candidates):
            assert Objective(each.model_copy(update={"sampling": {**each.sampling, **change}}), {}).notes == ()
