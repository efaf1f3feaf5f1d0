"""What every training schedule keeps, over each quantity it can run over: a new name is tested by existing."""

from typing import Any, get_args

import numpy as np
import pytest

from sr3_core import config
from sr3_core.diffusion import schedules
from sr3_core.diffusion.schedules import Schedule
from sr3_core.errors import BadInput

CASES: list[dict[str, Any]] = [{"name": name} for name in get_args(schedules.ScheduleName)]
CASES += [{"name": name, "over": "alpha"} for name in schedules.BETWEEN]
CASES += [{**case, "rescale_zero_terminal_snr": True} for case in CASES]


def schedule(**values: Any) -> Schedule:
    return config.parse(Schedule, values)


@pytest.mark.parametrize("steps", [2, 10, 100, 2000])
@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(map(str, case.values())))
def test_a_table_falls_from_one(case: dict[str, Any], steps: int) -> None:
    table = schedule(**case, steps=steps).gammas()
    assert table.dtype == np.float64 and table.shape == (steps + 1,)
    assert table[0] == 1.0
    assert (np.diff(table) < 0).all()
    without_signal = case.get("rescale_zero_terminal_snr", False) or case["name"] == "jsd"
    assert (table[-1] == 0.0) == without_signal and (table[:-1] > 0).all()


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(map(str, case.values())))
def test_an_alpha_is_never_lost_to_rounding(case: dict[str, Any]) -> None:
    """Neighbouring levels of a fine table still differ by a step that float64 holds to 5 digits."""
    table = schedule(**case, steps=2000).gammas()
    beta = 1.0 - table[1:] / table[:-1]
    assert beta.min() > 1e-11


@pytest.mark.parametrize("name", get_args(schedules.ScheduleName))
def test_the_levels_of_training_cover_the_table(name: str) -> None:
    """Draws of each kind stay within the table, reach both of its ends, and keep below 1."""
    made = schedule(name=name, steps=20)
    table = made.gammas()
    uniform = np.random.default_rng(0).random((20_000, 2))
    for kind in ("piecewise", "piecewise_sqrt", "discrete"):
        drawn = config.parse(schedules.Levels, {"name": kind, "schedule": made.model_dump()}).draw(uniform)
        assert drawn.min() >= table[-1] and drawn.max() < 1.0
        assert drawn.min() <= table[-2] and drawn.max() >= table[1]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "jsd", "over": "alpha"}, "jsd"),
        ({"name": "cosine", "over": "alpha"}, "cosine"),
        ({"start": 0.02, "end": 0.01}, "below its end"),
        ({"over": "alpha", "start": 0.9}, "above its end"),
        ({"name": "quad"}, "quadratic"),
        ({"end": 1.0}, "end"),
        ({"steps": 1}, "steps"),
        ({"name": "sigmoid", "logits": [3.0, -3.0]}, "ascend"),
        (
            {"name": "const", "start": 1e-4},
            "start is set, but name const does not read it: take it out, or set name to linear or quadratic",
        ),
        ({"name": "const", "over": "alpha", "start": 0.9999}, "start is set, but name const does not read it"),
        ({"name": "jsd", "end": 0.02}, "end is set, but name jsd does not read it"),
        ({"name": "cosine", "start": 1e-4}, "start is set, but name cosine does not read it"),
        ({"name": "linear", "offset": 0.01}, "offset is set, but name linear does not read it: take it out, or set name to cosine"),
        ({"name": "cosine", "temperature": 0.9}, "temperature is set"),
        ({"logits": [-3.0, 4.0]}, "logits is set, but name linear does not read it: take it out, or set name to sigmoid"),
        ({"name": "sigmoid", "logits": [800.0, 900.0]}, "has no levels that descend from 1"),
        ({"start": 1e-17, "end": 1e-17, "rescale_zero_terminal_snr": True}, "has no levels that descend from 1"),
    ],
)
def test_what_is_no_schedule_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        schedule(**values)


@pytest.mark.parametrize(
    "case", [*CASES, {"over": "alpha", "start": 0.9999, "end": 0.99}], ids=lambda case: " ".join(map(str, case.values()))
)
def test_a_schedule_is_read_back_from_all_of_its_values(case: dict[str, Any]) -> None:
    """Defaults that are written out are not set."""
    made = schedule(**case)
    assert config.parse(Schedule, made.model_dump(mode="json")) == made


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"low": -4.5}, "low is set, but name piecewise does not read it: take it out, or set name to log_snr"),
        ({"name": "log_normal", "high": 4.0}, "high is set, but name log_normal does not read it"),
        ({"name": "log_snr", "mean": -1.0}, "mean is set, but name log_snr does not read it: take it out, or set name to log_normal"),
        ({"name": "discrete", "deviation": 1.0}, "deviation is set"),
    ],
)
def test_levels_refuse_what_their_law_does_not_read(values: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        config.parse(schedules.Levels, values)
