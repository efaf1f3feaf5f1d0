"""Sampling grids against their formulas, and the options that choose one."""

from typing import Any

import numpy as np
import pytest

from sr3_core import config
from sr3_core.config import Stage
from sr3_core.diffusion import grids, schedules
from sr3_core.diffusion.schedules import Levels, Schedule
from sr3_core.errors import BadInput


def stage(**sampling: Any) -> Stage:
    training = {"images": 8, "global_batch": 8, "micro_batch": 8, "checkpoint_images": 8, "log_images": 8}
    values = {"name": "s", "low": 4, "high": 16, "model": {"name": "unet"}, "objective": {"name": "diffusion"}, "training": training}
    return config.parse(Stage, {**values, "sampling": sampling})


def walked(levels: Levels | None = None, **sampling: Any) -> list[float]:
    made = stage(**sampling)
    return grids.sampling_grid(made, levels or Levels(), grids.sampling_options(made, {}))


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_grids_ascend_and_end_at_one(steps: int) -> None:
    betas = {"start": 1e-4, "end": 0.1, "steps": 100}
    for options in ({"grid": "time"}, {"grid": "log_snr"}, {"grid": "karras"}, {"grid": "betas", "betas": betas}):
        gammas = walked(steps=steps, **options)
        assert len(gammas) == steps + 1
        assert gammas[-1] == 1.0
        assert (np.diff(gammas) > 0).all() and gammas[0] > 0


def test_the_time_grid_of_all_steps_is_the_table() -> None:
    """The public codes' ancestral sampling walks the whole table: exactly that, to the last bit."""
    for schedule in (Schedule(), Schedule(start=1e-4, end=2e-2), Schedule(name="cosine", steps=1000), Schedule(name="jsd", steps=50)):
        assert np.array_equal(grids.time_grid(schedule.steps, schedule), schedule.gammas()[::-1])


def test_the_time_grid_interpolates_log_gamma() -> None:
    schedule = Schedule(steps=10, end=0.3)
    table = schedule.gammas()
    assert grids.time_grid(5, schedule) == pytest.approx(table[[10, 8, 6, 4, 2, 0]], rel=1e-14)
    assert grids.time_grid(20, schedule)[1::2] == pytest.approx(np.sqrt(table[1:] * table[:-1])[::-1], rel=1e-14)


def test_fresh_betas_start_where_the_public_code_starts() -> None:
    """Trained on linear 1e-4 -> .005 over 1000 steps (gamma .0777), sampled from 1e-4 -> .1 in 100 (gamma .0056)."""
    gammas = walked(grid="betas", betas={"start": 1e-4, "end": 0.1, "steps": 100})
    assert gammas[0] == pytest.approx(0.0056, abs=5e-5)
    assert gammas[0] < Schedule(start=1e-4, end=0.005, steps=1000).gammas()[-1]
    betas = 1.0 - np.array(gammas[:-1]) / np.array(gammas[1:])
    assert betas == pytest.approx(np.linspace(0.1, 1e-4, 100), rel=1e-9)


def test_fresh_betas_may_be_given_as_alphas() -> None:
    gammas = walked(grid="betas", betas={"over": "alpha", "start": 0.9999999, "end": 0.9, "steps": 100})
    assert gammas[0] == pytest.approx(np.prod(np.linspace(0.9999999, 0.9, 100)), rel=1e-12)


def test_log_snr_grid_is_uniform_over_the_span_of_training() -> None:
    gammas = walked(Levels(name="log_snr", low=-4.0, high=4.5), grid="log_snr", steps=6)
    assert schedules.half_log_snr(np.array(gammas[:-1])) == pytest.approx(np.linspace(-4.0, 4.5, 6), rel=1e-12)


def test_karras_grid_is_the_paper_s() -> None:
    """sigma_i = (max^(1/rho) + i / (n - 1) (min^(1/rho) - max^(1/rho)))^rho, written out, between the two ends of training."""
    largest, smallest, n = np.exp(4.0), np.exp(-4.5), 9
    for rho in (7.0, 3.0):
        expected = [(largest ** (1 / rho) + i / (n - 1) * (smallest ** (1 / rho) - largest ** (1 / rho))) ** rho for i in range(n)]
        gammas = np.array(walked(Levels(name="log_snr", low=-4.0, high=4.5), grid="karras", steps=n, rho=rho)[:-1])
        assert np.sqrt((1 - gammas) / gammas) == pytest.approx(np.array(expected), rel=1e-9)
    assert schedules.half_log_snr(gammas[[0, -1]]) == pytest.approx(np.array([-4.0, 4.5]), rel=1e-9)


def test_start_and_end_replace_the_span() -> None:
    for grid in ("log_snr", "karras"):
        gammas = np.array(walked(grid=grid, steps=4, start=-3.0, end=2.0))
        assert schedules.half_log_snr(gammas[[0, -2]]) == pytest.approx(np.array([-3.0, 2.0]), rel=1e-9)


def test_given_gammas_are_taken_as_they_are() -> None:
    assert walked(grid="given", gammas=[0.01, 0.2, 0.9]) == [0.01, 0.2, 0.9, 1.0]
    assert walked(grid="given", gammas=[0.0], steps=1) == [0.0, 1.0]


@pytest.mark.parametrize("grid", ["time", "log_snr", "karras"])
@pytest.mark.parametrize("steps", [1, 2, 10, 50])
def test_a_training_without_terminal_signal_is_sampled_from_gamma_0(grid: str, steps: int) -> None:
    for schedule in (Schedule(rescale_zero_terminal_snr=True), Schedule(name="jsd", steps=20)):
        gammas = walked(Levels(schedule=schedule), grid=grid, steps=steps)
        assert len(gammas) == steps + 1 and gammas[0] == 0.0 and gammas[-1] == 1.0
        assert (np.diff(gammas) > 0).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"grid": "time", "start": -3.0}, "start is set, but grid time does not read it.*log_snr or karras"),
        ({"grid": "log_snr", "rho": 5.0}, "rho is set"),
        ({"grid": "karras", "betas": {}}, "betas is set"),
        ({"gammas": [0.1, 0.5]}, "gammas is set"),
        ({"grid": "betas"}, "grid betas needs betas"),
        ({"grid": "given"}, "grid given needs gammas"),
        ({"grid": "betas", "betas": {"steps": 50}}, "betas of 50 steps cannot be walked in 100"),
        ({"grid": "given", "gammas": []}, "must ascend"),
        ({"grid": "given", "gammas": [0.5, 0.2]}, "must ascend"),
        ({"grid": "given", "gammas": [0.1, 0.1, 0.2]}, "must ascend"),
        ({"grid": "given", "gammas": [-0.1, 0.2]}, "must ascend"),
        ({"grid": "given", "gammas": [0.1, 1.0]}, "must ascend"),
        ({"grid": "given", "gammas": [0.1, float("nan")]}, "finite"),
        ({"grid": "given", "gammas": [0.1, 0.5], "steps": 3}, "2 gammas are 2 steps, not 3"),
        ({"sampler": "dpmpp_2m", "order": 3}, "order 3 is unipc"),
        ({"sampler": "sde_dpmpp_2m", "order": 3}, "order 3 is unipc"),
        ({"grid": "karras", "start": float("nan")}, "finite"),
        ({"dynamic_threshold": 1.5}, "less than or equal to 1"),
        ({"grid": "cubic"}, "cubic"),
    ],
)
def test_options_that_cannot_work_are_refused_in_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said) as caught:
        walked(**options)
    assert "\n" not in str(caught.value)


def test_a_start_above_the_end_is_refused() -> None:
    for grid in ("log_snr", "karras"):
        with pytest.raises(BadInput, match="start below the end"):
            walked(grid=grid, start=3.0, end=-3.0)


def test_a_set_value_is_taken_back_by_null() -> None:
    """A recipe's grid can be exchanged by an override that takes its own options back."""
    made = stage(grid="betas", betas={"start": 1e-4, "end": 0.1, "steps": 100})
    assert grids.sampling_options(made, {"grid": "log_snr", "betas": None, "steps": 20}).grid == "log_snr"
    with pytest.raises(BadInput, match="betas is set"):
        grids.sampling_options(made, {"grid": "log_snr", "steps": 20})
