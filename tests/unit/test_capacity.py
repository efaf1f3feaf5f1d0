"""The warning before a run that cannot fit: what is needed by arithmetic a reader can repeat, what is there by what the system says."""

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from pipeline import cli, preflight
from sr3_core import capacity, config, summary
from sr3_core.capacity import Memory
from sr3_core.config import Plugin, Recipe
from tests.conftest import RECIPES

TINY = str(RECIPES / "tiny.yaml")
BY_HAND = "stages.x2.model={name: tests.plugins.two_convolutions}"
PARAMETERS = 6 * 5 * 9 + 5 * 3 * 9 + 8
STORED = 4 * (6 + 5 + 5) * 32 * 32  # bytes an image, see test_summary


def recipe(*overrides: str, batch: int = 4) -> Recipe:
    """16 -> 32 pixels, in steps of four micro-batches."""
    images = dict.fromkeys(("global_batch", "images", "checkpoint_images", "log_images"), 4 * batch)
    sizes = [f"stages.x2.training.{name}={value}" for name, value in {**images, "micro_batch": batch}.items()]
    return config.load(TINY, (*sizes, *overrides))


def gpu(total: float, *, half: bool = False) -> Memory:
    return Memory("a card", total, shared=False, half=half)


@pytest.mark.parametrize(
    ("overrides", "a_parameter"),
    [((), 20), (("stages.x2.training.ema={also: {slow: {}, slower: {}}}",), 28), (("stages.x2.training.reduce_dtype=float64",), 28)],
)
def test_what_is_needed_counted_by_hand(overrides: tuple[str, ...], a_parameter: int) -> None:
    made = recipe(BY_HAND, "scaling.workers=2", *overrides)
    need = capacity.need(made.stages[0], 2)
    alone = a_parameter * PARAMETERS + 4 * STORED
    assert need.of(gpu(1.0)) == alone
    assert need.of(gpu(1.0), micro_batch=2, precision="bfloat16") == alone - 3 * STORED
    copied = (16 + 4 * len(made.stages[0].training.ema.also)) * PARAMETERS
    assert need.of(Memory("a machine", 1.0, shared=True, half=False)) == 2 * (alone + capacity.WORKER_BYTES) + copied
    assert need.recomputed is None, "this network knows no checkpoints"


def test_what_fits_is_not_spoken_of() -> None:
    made = recipe(batch=64)
    needed = capacity.need(made.stages[0], 1).of(gpu(1.0))
    assert capacity.shortages(made, gpu(needed)) == []
    assert len(capacity.shortages(made, gpu(needed - 1))) == 1


def test_what_would_fit_does_fit() -> None:
    """Each change that is named, made: the warning is gone; the next larger micro-batch would not do."""
    made = recipe(batch=64)
    need = capacity.need(made.stages[0], 1)
    assert need.recomputed is not None
    card = gpu(need.recomputed.of(gpu(1.0)) + 1, half=True)
    (line,) = capacity.shortages(made, card)
    assert line.startswith("stage x2 does not fit: its training needs about ") and "64 images at once in float32), a card has" in line
    changes = [part.split(" (")[0] for part in line.split(": set ")[1].split(", or ")]
    assert [change.split("=")[0] for change in changes] == [
        "stages.x2.training.micro_batch",
        "stages.x2.model.options.checkpoint_blocks",
    ], "half of the activations is more than what checkpoints leave"
    size = int(changes[0].split("=")[1])
    assert size < 64 and 256 % size == 0
    for change in changes:
        assert capacity.shortages(recipe(batch=64).model_copy(update={"stages": config.load(TINY, _with(change)).stages}), card) == []
    larger = next(other for other in range(size + 1, 65) if 256 % other == 0)
    assert need.of(card, micro_batch=larger) > card.total
    roomy = gpu(need.of(card, precision="bfloat16") + 1, half=True)
    assert "stages.x2.training.precision=bfloat16 (" in capacity.shortages(made, roomy)[0]
    assert "bfloat16" not in capacity.shortages(made, gpu(roomy.total))[0]


def _with(change: str) -> tuple[str, ...]:
    images = ("global_batch=256", "images=256", "checkpoint_images=256", "log_images=256", "micro_batch=64")
    return (*(f"stages.x2.training.{each}" for each in images), change)


def test_two_changes_where_one_is_not_enough_and_the_last_resort() -> None:
    made = recipe("scaling.workers=2", batch=64)
    need = capacity.need(made.stages[0], 2)
    assert need.recomputed is not None
    least = need.recomputed.of(gpu(1.0), micro_batch=1)
    (line,) = capacity.shortages(made, gpu(least))
    assert "set stages.x2.training.micro_batch=1 and stages.x2.model.options.checkpoint_blocks=true (" in line
    (line,) = capacity.shortages(made, gpu(least - 1))
    assert "no smaller micro-batch and no recomputed blocks would do: take a smaller network" in line
    (line,) = capacity.shortages(made, Memory("this machine", 1e6, shared=True, half=False))
    assert "(2 workers, 64 images" in line and "take fewer scaling.workers, a smaller network" in line


@pytest.mark.parametrize(
    ("own", "limits", "found"),
    [
        ("0::/a/b", {"a/memory.max": "3000", "a/b/memory.max": "max", "memory.max": "max"}, 3000),
        ("0::/a/b", {"a/memory.max": "3000", "a/b/memory.max": "2000"}, 2000),
        ("0::/", {"memory.max": "max"}, None),
        ("5:cpu:/x\n4:memory:/a\n0::/", {"memory/a/memory.limit_in_bytes": "4000", "cpu/x/memory.limit_in_bytes": "1"}, 4000),
        ("4:memory:/of/another/namespace", {"memory/memory.limit_in_bytes": "5000"}, 5000),
        ("4:memory:/", {}, None),
    ],
)
def test_limits_of_control_groups(tmp_path: Path, own: str, limits: dict[str, str], found: int | None) -> None:
    for name, text in limits.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert capacity.group_limit(own, tmp_path) == found


def test_where_training_will_be() -> None:
    here = capacity.present(recipe())
    assert here == capacity.host() and here.shared and here.name.startswith("this machine") and 1e8 < here.total < 1e14
    assert capacity.present(recipe(), "t4") == Memory("t4", 16e9, shared=False, half=False)
    asked = capacity.present(recipe("scaling.accelerator=gpu"))
    assert not asked.shared and (asked.name.startswith("the GPU here") if torch.cuda.is_available() else asked.name == "h100")
    assert capacity.present(recipe("scaling.accelerator=gpu"), "cpu") == here


def test_show_and_run_say_the_same_line(capsys: pytest.CaptureFixture[str]) -> None:
    batch = 2**22
    (line,) = capacity.shortages(recipe(batch=batch), capacity.host())
    changes = [f"stages.x2.training.{name}={4 * batch}" for name in ("global_batch", "images", "checkpoint_images", "log_images")]
    given = [part for change in (*changes, f"stages.x2.training.micro_batch={batch}") for part in ("--set", change)]
    shown = CliRunner().invoke(cli.main, ["show", TINY, *given])
    assert f"# warning: {line}\n" in shown.output
    preflight.warn_of_memory(recipe(batch=batch))
    assert f"warning: {line}\n" in capsys.readouterr().out
    preflight.warn_of_memory(recipe())
    assert capsys.readouterr().out == ""


def test_a_network_that_cannot_be_counted_costs_the_warning_alone(capsys: pytest.CaptureFixture[str]) -> None:
    preflight.warn_of_memory(recipe("stages.x2.model={name: tests.plugins.uncountable}"))
    assert "memory was not estimated: counting it raised" in capsys.readouterr().out


def test_an_objective_s_own_networks_are_not_counted() -> None:
    made = recipe()
    stages = tuple(stage.model_copy(update={"model": Plugin(name="tests.plugins.tiny_objective")}) for stage in made.stages)
    own = made.model_copy(update={"stages": stages})
    assert capacity.shortages(own, gpu(1.0)) == []


def test_the_estimate_of_show_is_the_same_count() -> None:
    made = recipe()
    guess = summary.estimate(made.stages[0], summary.cost(made.stages[0]), "t4", count=1)
    assert capacity.need(made.stages[0], 1).of(gpu(1.0)) == guess.memory_bytes
