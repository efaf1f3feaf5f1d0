"""What `sr3 show` says of a recipe before it runs: counts checked by hand and against a real network, estimates by how they scale."""

import json
import re

import pytest
import torch
import yaml
from click.testing import CliRunner

from pipeline import cli
from sr3_core import config, plugins, summary
from sr3_core.config import Recipe, Stage
from sr3_core.errors import BadInput
from tests.conftest import RECIPES

TINY = str(RECIPES / "tiny.yaml")
BY_HAND = "tests.plugins.two_convolutions"


def tiny(*overrides: str) -> Recipe:
    return config.load(TINY, overrides)


def by_hand(*overrides: str) -> Stage:
    """16 -> 32 pixels, 3 channels, 5 between."""
    return tiny(f"stages.x2.model={{name: {BY_HAND}}}", *overrides).stages[0]


def test_two_convolutions_counted_by_hand() -> None:
    found = summary.cost(by_hand())
    weights = 6 * 5 * 9 + 5 * 3 * 9
    assert found.parameters == weights + 5 + 3
    assert found.forward_flops == 2 * weights * 32 * 32
    assert found.training_flops == 3 * found.forward_flops
    stored = (6 + 5 + 5) * 32 * 32  # what goes into the first convolution, the SiLU and the second convolution
    assert found.activations == {"float32": 4 * stored, "bfloat16": 2 * stored}
    assert found.checkpointed is None
    assert found.state_bytes == 20 * found.parameters


def test_an_unconditional_stage_has_no_low_image() -> None:
    stage = by_hand().model_copy(update={"low": None})
    assert summary.cost(stage).forward_flops == 2 * (3 * 5 * 9 + 5 * 3 * 9) * 32 * 32


def test_training_is_counted_on_the_crop_and_sampling_on_the_whole() -> None:
    whole, cut = summary.cost(by_hand()), summary.cost(by_hand("stages.x2.training.crop=16"))
    assert cut.training_side == 16
    assert cut.forward_flops == whole.forward_flops
    assert 4 * cut.training_flops == whole.training_flops
    assert 4 * cut.activations["float32"] == whole.activations["float32"]


@pytest.mark.parametrize("options", [{}, {"stem": 2, "noise_conditioning": "affine"}, {"block_style": "ddpm", "middle_attention": True}])
def test_counts_are_those_of_the_real_network(options: dict[str, object]) -> None:
    """The same network with weights: its parameters, and its convolutions and linear layers as they run on real pixels."""
    stage = tiny(*(f"stages.x2.model.options.{name}={json.dumps(value)}" for name, value in options.items())).stages[0]
    module = plugins.load("models", "unet")
    network = module.build(config.options(module.Options, stage.model.options, "model"), stage)
    flops = 0

    def count(layer: torch.nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal flops
        flops += 2 * output.numel() * (layer.weight.numel() // layer.weight.shape[0])

    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            layer.register_forward_hook(count)
    network(torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32), torch.full((1,), 0.5, dtype=torch.float64))
    perceptron = [weight for name, weight in network.named_parameters() if re.fullmatch(r"embedding\.perceptron\..*weight", name)]
    flops += sum(2 * weight.numel() for weight in perceptron)  # which is no call of its layers
    if stage.model.options["middle_attention"]:
        flops += 2 * 2 * 16**4 * 16  # two products of 16 x 16 positions over 16 channels
    found = summary.cost(stage)
    assert found.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert found.forward_flops == flops


def test_checkpoints_store_less_and_compute_once_more() -> None:
    plain = summary.cost(tiny().stages[0])
    recomputed = summary.cost(tiny("stages.x2.model.options.checkpoint_blocks=true").stages[0])
    assert plain.checkpointed is not None and plain.checkpointed["float32"] < plain.activations["float32"] / 2
    assert (recomputed.activations, recomputed.checkpointed) == (plain.activations, plain.checkpointed)
    assert 3 * recomputed.training_flops == 4 * plain.training_flops


def estimates(*overrides: str, device: str = "h100") -> dict[str, float]:
    return summary.summary(tiny(*overrides), device)["estimates"][0]


def test_estimates_scale_with_devices_precision_and_steps() -> None:
    one, four = estimates("scaling.workers=1"), estimates("scaling.workers=4")
    assert four["count"] == 4
    assert 2 < four["training_images_per_second"] / one["training_images_per_second"] <= 4
    assert four["training_seconds"] == pytest.approx(48 / four["training_images_per_second"])
    assert four["sampling_seconds"] == one["sampling_seconds"]
    half, steps = estimates("stages.x2.training.precision=bfloat16"), estimates("stages.x2.sampling.steps=6")
    assert half["training_seconds"] < estimates()["training_seconds"] and half["memory_bytes"] < estimates()["memory_bytes"]
    assert steps["sampling_seconds"] == pytest.approx(3 * one["sampling_seconds"])
    assert estimates("stages.x2.sampling={sampler: heun, steps: 4}")["network_calls"] == 7
    rescaled = "stages.x2.objective.options={prediction: v, levels: {schedule: {rescale_zero_terminal_snr: true}}}"
    assert estimates("stages.x2.sampling={sampler: heun, steps: 4}", rescaled)["network_calls"] == 6
    assert estimates(device="t4")["training_seconds"] > estimates(device="a100")["training_seconds"] > estimates()["training_seconds"]


def test_the_default_device_is_what_scaling_says() -> None:
    assert summary.summary(tiny())["device"]["name"] == "cpu"
    assert summary.summary(tiny("scaling.accelerator=gpu"))["device"]["name"] == "h100"
    with pytest.raises(BadInput, match=r"h100 \(nearest\) of"):
        summary.summary(tiny(), "h10")


def test_show_prints_a_recipe_under_its_costs() -> None:
    done = CliRunner().invoke(cli.main, ["show", "demo", "--device", "l4"])
    assert done.exit_code == 0, done.output
    comments = [line for line in done.output.splitlines() if line.startswith("#")]
    assert comments and done.output.startswith(comments[0])
    assert yaml.safe_load(done.output) == config.load("demo").model_dump(mode="json")
    assert any(line.startswith("# sr1024") and "2.118 M" in line and "57.9 GFLOP" in line for line in comments)
    assert any("Estimates, not measurements" in line for line in comments) and max(map(len, done.output.splitlines())) <= 160


def test_show_as_json_has_the_summary_under_its_own_key() -> None:
    done = CliRunner().invoke(cli.main, ["show", "demo", "--json"])
    values = json.loads(done.output)
    assert values.pop("summary")["costs"][0]["stage"] == "sr256"
    assert config.parse(Recipe, values) == config.load("demo")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--device", "h1000"), "h100 (nearest)"),
        (("--set", "stages.sr256.model.name=unnet"), "unet (nearest)"),
        (("--set", "stages.sr256.model.options.channels=47"), "channels 47 must be even"),
        (("--set", "stages.sr256.sampling.sampler=euler"), "sampler='euler'"),
    ],
)
def test_show_refuses_in_one_line(arguments: tuple[str, ...], says: str) -> None:
    done = CliRunner().invoke(cli.main, ["show", "demo", *arguments])
    assert done.exit_code == 2
    assert done.stderr.startswith("sr3: bad input: ") and done.stderr.count("\n") == 1 and says in done.stderr


def test_the_guard_speaks_per_stage() -> None:
    levels = "levels: {name: piecewise, schedule: {steps: %d, start: 1.0e-6, end: 1.0e-2}}"
    objective = "stages.x2.objective.options={prediction: eps, %s%s}"
    sampling = "stages.x2.sampling={sampler: ancestral, steps: 10, grid: time}"
    with pytest.raises(BadInput, match=r"end at gamma 0\.285"):
        summary.summary(tiny(objective % (levels % 250, ""), sampling))
    waived = tiny(objective % (levels % 250, ", schedule_guard: published, schedule_guard_reason: as printed in 1999"), sampling)
    (found,) = summary.summary(waived)["schedules"]
    assert found["stage"] == "x2" and found["terminal_gamma"] == pytest.approx(0.285, abs=5e-4)
    assert "as printed in 1999" in found["notes"][0]
    assert "as printed in 1999" in " ".join(summary.text(waived, summary.summary(waived)).split())
    whole = tiny(objective % (levels % 2000, ""), sampling)
    (found,) = summary.summary(whole)["schedules"]
    assert found["terminal_gamma"] == pytest.approx(4.4e-5, rel=0.02) and found["notes"] == ()
    assert "nothing to say" in summary.text(whole, summary.summary(whole))
