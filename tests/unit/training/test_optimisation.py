"""Optimizers, learning rates and averages do what their options say, go on bit-equal when broken off, and refuse nonsense in one line."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from sr3_core.errors import BadInput
from sr3_core.training import ema
from sr3_core.training.optimisation import Carried, learning_rate, make_optimizer
from sr3_core.training.state import CheckpointStore
from tests.plugins.broken_off import assert_broken_off_is_whole, run
from tests.plugins.tiny_objective import stage

LINEAR = torch.nn.Linear(2, 1, bias=False)


def one_step(**options: Any) -> tuple[float, float]:
    """Weights (1, 1) after one step of learning rate 0.1 on the gradients 2 and -0.5."""
    with torch.no_grad():
        LINEAR.weight.fill_(1.0)
    optimizer = make_optimizer(LINEAR, stage(optimizer={"learning_rate": 0.1, **options}).training.optimizer)
    LINEAR.weight.grad = torch.tensor([[2.0, -0.5]])
    optimizer.step()
    first, second = LINEAR.weight.detach().flatten().tolist()
    return first, second


def test_adam_steps_by_the_sign_at_first() -> None:
    assert one_step(name="adam") == pytest.approx((0.9, 1.1), rel=1e-6)


def test_adamw_decays_apart_from_the_gradient_and_adam_within_it() -> None:
    assert one_step(name="adamw", weight_decay=0.5) == pytest.approx((0.95 - 0.1, 0.95 + 0.1), rel=1e-6)
    assert one_step(name="adam", weight_decay=0.6) == pytest.approx((0.9, 0.9), rel=1e-6)  # the gradients are 2.6 and 0.1


def test_rmsprop_divides_by_the_root_of_its_smoothed_square() -> None:
    """x - rate g / (sqrt((1 - smoothing) g^2) + epsilon)."""
    assert one_step(name="rmsprop", smoothing=0.75) == pytest.approx((0.8, 1.2), rel=1e-6)
    expected = (1 - 0.1 * 2.0 / (math.sqrt(0.25 * 4.0) + 1.0), 1 + 0.1 * 0.5 / (math.sqrt(0.25 * 0.25) + 1.0))
    assert one_step(name="rmsprop", smoothing=0.75, epsilon=1.0) == pytest.approx(expected, rel=1e-6)


def rates(images: list[int], *, reductions: int = 0, **schedule: Any) -> list[float]:
    training = stage(learning_rate=schedule).training  # peak 1e-3, 96 images in batches of 12
    return [1e3 * learning_rate(training, at, reductions=reductions) for at in images]


def test_schedules_by_images_seen() -> None:
    assert rates([0, 12, 24, 60], name="constant", warmup_images=36) == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert rates([24, 36, 48, 72], name="step", period_images=24, warmup_images=12) == pytest.approx([1, 0.5, 0.5, 0.25])
    assert rates([0, 24, 72], name="step", period_images=24, factor=0.1, final=0.05) == pytest.approx([1, 0.1, 0.05])
    assert rates([0, 12, 24, 36, 48, 60], name="cyclic", period_images=48, final=0.2) == pytest.approx([1, 0.6, 0.2, 0.6, 1, 0.6])
    assert rates([12, 60], name="cyclic", period_images=96, warmup_images=12) == pytest.approx([1, 0])
    assert rates([0, 48], name="plateau", patience_images=36, reductions=3, final=0.2) == pytest.approx([0.2, 0.2])
    assert rates([0], name="plateau", patience_images=36, reductions=2) == pytest.approx([0.25])


def test_the_plateau_waits_for_patience_images_without_a_better_logged_loss() -> None:
    schedule = {"name": "plateau", "patience_images": 24, "threshold": 0.1, "warmup_images": 12}
    training = stage(log_images=12, learning_rate=schedule).training
    carried, seen = Carried(), []
    for number, loss in enumerate([0.01, 1.0, 0.95, 0.89, 0.85, 0.81, 0.81, 0.5, 0.6, 0.46]):
        carried.observe(training, 12 * (number + 1), {"loss": loss}, exported="net")
        seen.append((carried.best_loss, carried.reductions))
    # the first window is the warm-up's; better means below 0.9 of the best; after a reduction the waiting starts anew
    assert seen == [(None, 0), (1.0, 0), (1.0, 0), (0.89, 0), (0.89, 0), (0.89, 1), (0.89, 1), (0.5, 1), (0.5, 1), (0.5, 2)]
    carried.observe(training, 144, {"net.loss": 0.1, "critic.loss": 9.0}, exported="net")
    assert carried.best_loss == 0.1
    assert Carried.from_json(carried.to_json()) == carried


@pytest.mark.parametrize(("width", "exponent"), [(0.05, 16.97), (0.10, 6.94)])
def test_the_power_function_has_the_width_it_is_asked_for(width: float, exponent: float) -> None:
    """The exponents of EDM2 (section 3.1); and the profile that 4,000 updates leave is t^k with that deviation of its length."""
    assert ema.power(width) == pytest.approx(exponent, abs=5e-3)
    average = stage(ema={"kind": "power", "width": width}).training.ema
    steps = 4000
    share = torch.zeros(steps, dtype=torch.float64)
    for step in range(1, steps + 1):
        kept = ema.decay(average, step)
        share *= kept
        share[step - 1] = 1 - kept
    place = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    assert float(share.sum()) == pytest.approx(1.0)
    mean = (share * place).sum()
    assert float((share * (place - mean).square()).sum().sqrt()) == pytest.approx(width, rel=2e-3)


def test_an_exponential_average_with_and_without_warm_up() -> None:
    constant, warmed = (stage(ema={"decay": 0.5, "warmup": warmup}).training.ema for warmup in (False, True))
    assert [ema.decay(constant, step) for step in (1, 100)] == [0.5, 0.5]
    assert [ema.decay(warmed, step) for step in (1, 2, 100)] == [2 / 11, 3 / 12, 0.5]


def test_several_averages_are_kept_and_the_recipes_own_is_exported(tmp_path: Path) -> None:
    also = {"short": {"decay": 0.0, "warmup": False}, "long": {"kind": "power", "width": 0.1}}
    state, _, _ = run(tmp_path / "three", ema={"decay": 0.9, "also": also})
    alone, _, _ = run(tmp_path / "one", ema={"kind": "power", "width": 0.1})
    store = CheckpointStore(str(tmp_path / "three"), keep=2, say=print)
    checkpoint = store.latest()
    assert checkpoint is not None
    exported, short, long = (store.averaged_weights(checkpoint, also=name) for name in (None, "short", "long"))
    weights = state.players["net"].state_dict()
    for name, tensor in weights.items():
        assert (
            torch.equal(short[name], tensor) and torch.equal(long[name], alone.ema[name]) and torch.equal(exported[name], state.ema[name])
        )
    assert exported.keys() == weights.keys() and not torch.equal(exported["last.bias"], weights["last.bias"])
    with pytest.raises(BadInput, match=r"average other; allowed: those of training.ema.also: long, short"):
        store.averaged_weights(checkpoint, also="other")


@pytest.mark.parametrize(
    "training",
    [
        {"optimizer": {"name": "adamw", "learning_rate": 1e-3, "weight_decay": 0.1}},
        {"optimizer": {"name": "rmsprop", "learning_rate": 1e-3, "momentum": 0.5}},
        {"ema": {"kind": "power", "width": 0.1, "also": {"long": {"decay": 0.99}, "short": {"kind": "power", "width": 0.25}}}},
        {"learning_rate": {"name": "cyclic", "period_images": 48}},
    ],
    ids=["adamw", "rmsprop", "averages", "cyclic"],
)
def test_a_broken_run_is_bit_equal(tmp_path: Path, training: dict[str, Any]) -> None:
    assert_broken_off_is_whole(tmp_path, [2, 3], options={"width": 8}, **training)


def test_a_plateau_resumes_where_it_waited(tmp_path: Path) -> None:
    """Broken off between two windows of which neither is better; the threshold asks for more than this run can give."""
    schedule = {"name": "plateau", "patience_images": 24, "threshold": 0.9}
    training = {"log_images": 12, "learning_rate": schedule, "options": {"width": 8}}
    state, lines, _ = assert_broken_off_is_whole(tmp_path, [2, 3], **training)
    assert state.carried.reductions == 3
    assert [line["learning_rate"] for at, line in lines if at] == [1e-3] * 3 + [5e-4] * 2 + [2.5e-4] * 2 + [1.25e-4]


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"optimizer": {"name": "lion"}}, "training.optimizer.name='lion'; allowed: input should be 'adam', 'adamw' or 'rmsprop'"),
        ({"optimizer": {"betas": [0.9, 1.0]}}, "training.optimizer.betas.1=1.0; allowed: input should be less than 1"),
        ({"optimizer": {"momentum": 0.9}}, "momentum is set, but name adam does not read it"),
        ({"optimizer": {"name": "rmsprop", "betas": [0.5, 0.9]}}, "betas is set, but name rmsprop does not read it"),
        ({"optimizer": {"epsilon": 0}}, "training.optimizer.epsilon=0; allowed: input should be greater than 0"),
        ({"learning_rate": {"name": "cyclic"}}, "learning_rate cyclic needs period_images"),
        ({"learning_rate": {"name": "plateau"}}, "learning_rate plateau needs patience_images"),
        (
            {"learning_rate": {"name": "step", "period_images": 12, "factor": 1}},
            "factor=1; allowed: input should be less than 1",
        ),
        ({"learning_rate": {"period_images": 12}}, "period_images is set, but name constant does not read it"),
        ({"learning_rate": {"name": "plateau", "patience_images": 24}}, "patience_images 24 must be a multiple of log_images 36"),
        ({"ema": {"kind": "power"}}, "ema kind power needs width"),
        ({"ema": {"kind": "power", "width": 0.1, "decay": 0.9}}, "decay is set, but kind power does not read it"),
        ({"ema": {"kind": "power", "width": 0.3}}, "training.ema.width=0.3; allowed: input should be less than or equal to 0.28"),
        ({"ema": {"also": {"A b": {}}}}, "training.ema.also.A b"),
    ],
)
def test_nonsense_is_refused_in_one_line(training: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput) as refused:
        stage(**training)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_section_without_the_new_options_is_written_as_before() -> None:
    values = stage().training.model_dump(mode="json")
    assert set(values["optimizer"]) == {"name", "learning_rate", "betas", "weight_decay"}
    assert set(values["learning_rate"]) == {"name", "warmup_images", "final"} and set(values["ema"]) == {"decay", "warmup"}
