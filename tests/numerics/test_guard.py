"""The schedule guard: the cases known from the field, the values it says would be right, and what passes."""

import math
from typing import Any

import numpy as np
import pytest
import torch

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
    assert given.terminal_gamma == pytest.approx(terminal, rel=0.01)
    if steps == 2000:
        assert guard.check("x4", given, None) == guard.Ranges(given.terminal_gamma, given.span(), None, ())
        return
    if steps == 1000:
        assert [note.split(":")[0] for note in guard.check("x4", given, None).notes] == ["warning"]
    else:
        with pytest.raises(BadInput, match=f"stage x4: the schedule's {steps} steps"):
            guard.check("x4", given, None)
    (finding,) = guard.findings(given, None)
    if steps == 100:  # of a largest beta of .18
        assert guard.findings(levels(schedule={"steps": 20}), None)[0].do.startswith("take more steps: 20 would need an end of 0.7")
    end = float(finding.do.split("schedule.end=")[1].split()[0])
    assert levels(schedule={"steps": steps, "end": end}).terminal_gamma == pytest.approx(4.4e-5, rel=0.02)
    assert guard.check("x4", levels(schedule={"steps": steps, "end": end}), None).notes == ()


@pytest.mark.parametrize("over", ["beta", "alpha"])
@pytest.mark.parametrize("name", BETWEEN)
def test_the_right_end_of_every_schedule_between_two_ends(name: str, over: str) -> None:
    given = config.parse(Schedule, {"name": name, "over": over, "steps": 50})
    end = guard.right_end(given, 1e-4)
    assert given.model_copy(update={"end": end}).gammas()[-1] == pytest.approx(1e-4, rel=1e-6)


@pytest.mark.parametrize("over", ["beta", "alpha"])
def test_a_constant_schedule_s_right_end_may_be_on_either_side_of_the_start_that_it_does_not_read(over: str) -> None:
    """5,000,000 steps need betas below the default start of 1e-6 for a terminal gamma of a half."""
    given = config.parse(Schedule, {"name": "const", "over": over, "steps": 5_000_000})
    end = guard.right_end(given, 0.5)
    assert (end if over == "beta" else 1 - end) == pytest.approx(math.log(2) / 5e6, rel=1e-6)


@pytest.mark.parametrize("over", ["beta", "alpha"])
@pytest.mark.parametrize("name", BETWEEN)
@pytest.mark.parametrize("steps", [2, 5, 15, 30, 500, 40_000])
def test_what_the_guard_tells_to_set_can_be_set(name: str, over: str, steps: int) -> None:
    """Whatever it is rounded to, it lies in (0, 1) and on its side of the start; above a beta of a half more steps are asked for."""
    least = 1e-9 if over == "beta" else 1 - 1e-9
    values = {"name": name, "over": over, "steps": steps, "end": least, **({} if name == "const" else {"start": least})}
    (finding,) = guard.findings(levels(schedule=values), None)
    assert finding.refused
    end = float(finding.do.replace("schedule.end=", "an end of ").split("an end of ")[1].split()[0])
    given = levels(schedule={**values, "end": end})
    assert given.terminal_gamma < 2e-4
    assert finding.do.startswith("take more steps") == ((end if over == "beta" else 1 - end) > 0.5)


def test_an_end_close_to_one_or_to_its_start_is_written_with_the_digits_it_needs() -> None:
    (finding,) = guard.findings(levels(schedule={"name": "linear", "steps": 2, "end": 0.5}), None)
    assert finding.do == "take more steps: 2 would need an end of 0.99996"
    start = 0.00490123  # of 2000 steps that come to 5.4e-5 at a constant beta, a little more than the published gamma
    text = guard._within(start + 1e-9, Schedule(start=start, end=0.5))
    assert start <= float(text) and len(text) > len("0.004901")


@pytest.mark.parametrize("steps", [2, 3, 10, 1000])
def test_schedules_without_ends_always_end_in_noise(steps: int) -> None:
    """So the guard's advice to change the end is all it needs."""
    every = [
        {"name": "jsd"},
        {"name": "cosine"},
        {"name": "cosine", "offset": 0.999},
        {"name": "cosine", "offset": 1e-6},
        {"name": "sigmoid"},
    ]
    every += [{"name": "sigmoid", "logits": [2.0, 2.1]}, {"name": "sigmoid", "temperature": 50.0}]
    for values in every:
        assert guard.findings(levels(schedule={**values, "steps": steps}), None) == []


def test_a_level_that_is_no_number_is_refused() -> None:
    """It compares as neither small nor large."""
    broken = Levels.model_construct(name="log_snr", low=float("nan"), high=4.0)
    (finding, *_) = guard.findings(broken, None)
    assert finding.refused and "gamma nan" in finding.got


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
    """predict() with another grid is refused before the network is called."""
    made = Objective(stage({"prediction": "v"}, steps=2), {})
    predictor = made.predictor(made.players()["denoiser"], degradation="bicubic")
    low = torch.zeros(1, 3, 4, 4)
    with pytest.raises(BadInput, match="sampling starts at gamma") as refused:
        predictor.predict(low, seeds=np.array([1]), grid="log_snr", start=-7.0)
    assert "schedule_guard" not in str(refused.value), "no waiver is offered for what a caller asks for"
    with pytest.raises(BadInput, match="sampling starts at gamma"):
        made.sampling_notes({"grid": "log_snr", "start": -7.0})
    (note,) = made.sampling_notes({"grid": "log_snr", "start": -1.0})
    assert note.startswith("warning: sampling starts from pure noise at gamma 0.119")


PUBLISHED = {"schedule_guard": "published", "schedule_guard_reason": REASON}


def test_a_waiver_is_for_the_training_and_the_grid_that_are_published() -> None:
    """Of system C: its own start is waived in any number of steps; any other start where training never was is refused, or noted."""
    made = Objective(stage({"levels": SYSTEM_C, "prediction": "v", **PUBLISHED}, **C_SAMPLING), {})
    predictor = made.predictor(made.players()["denoiser"], degradation="bicubic")
    low = torch.zeros(1, 3, 4, 4)
    assert predictor.predict(low, seeds=np.array([1]), steps=2).shape == (1, 3, 16, 16)
    assert made.sampling_notes({"steps": 50}) == made.notes
    for start in (-6.0, -2.0, 5.0):  # noisier than its own, between its own and the trained end, cleaner than training
        with pytest.raises(BadInput, match="sampling starts at gamma"):
            predictor.predict(low, seeds=np.array([1]), grid="log_snr", betas=None, steps=2, start=start, end=6.0)
    fitting = made.sampling_notes({"grid": "log_snr", "betas": None})
    assert fitting == made.notes[:1], "the training's own finding stays"
    (_, late) = made.sampling_notes({"grid": "log_snr", "betas": None, "start": 0.0})
    assert late.startswith("warning: sampling starts from pure noise at gamma 0.5")


@pytest.mark.parametrize("options", [{}, {"levels": {"schedule": {"steps": 1000}}}])
def test_a_waiver_that_nothing_needs_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=r"schedule_guard published, but the guard refuses nothing.*do: take schedule_guard"):
        Objective(stage({**options, **PUBLISHED}, steps=2), {})
    Objective(stage(options, steps=2), {})


@pytest.mark.parametrize("recipe", ["demo", str(RECIPES / "tiny.yaml"), str(RECIPES / "pair.yaml")])
def test_the_recipes_that_are_run_have_nothing_to_be_said_of(recipe: str) -> None:
    loaded = config.load(recipe)
    candidates = loaded.evaluation.search.candidates if loaded.evaluation.search else ()
    for each in loaded.stages:
        for change in ({}, *candidates):
            assert Objective(each.model_copy(update={"sampling": {**each.sampling, **change}}), {}).notes == ()
