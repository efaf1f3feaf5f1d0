"""What every denoiser in models/ keeps: the signature, any size, float32 and finite gradients, initialisation from the generator alone."""

from typing import Any

import pytest
import torch
from torch import nn

from sr3_core import config, plugins
from sr3_core.config import Stage

TINY = {"channels": 8, "multipliers": [1, 2], "blocks": 1}
TABLE = {"name": "linear", "start": 1e-4, "end": 2e-2, "steps": 2000}
SMALL: dict[str, list[dict[str, Any]]] = {
    "unet": [
        TINY,
        {**TINY, "stem": 2, "noise_conditioning": "affine", "fed": "log_snr", "dropout": 0.1},
        {**TINY, "multipliers": [1, 2, 2], "blocks": 2, "attention_factors": [2], "heads": 2, "fed": "sqrt_gamma", "skip_scale": 1.0},
        {**TINY, "block_style": "ddpm", "attention_depths": [-2], "norm_groups": 4, "shortcut": "linear", "low_first": False},
        {**TINY, "block_style": "ddpm", "resampler": "pool", "fed": "t", "table": TABLE, "embedding_scale": 1.0, "checkpoint_blocks": True},
        {**TINY, "block_style": "biggan_deep", "bottleneck": 2, "noise_conditioning": "instance_norm", "attention_factors": [1, 2]},
        {
            **TINY, "resampling": "beside", "resampler": "conv", "noise_conditioning": "instance_norm", "shortcut_always": True,
            "concat_scale": 0.7, "attention_factors": [2], "attention_output": False, "logit_scale": "none", "embedding_width": 1,
        },
        {
            **TINY, "block_style": "ddpm", "qkv_bias": False, "qkv_layout": "heads", "heads": 4, "logit_scale": "channels",
            "attention_factors": [2], "embedding_activation": False, "frequency_denominator": "half_minus_one", "embedding_period": 5000.0,
        },
        {**TINY, "labels": 3, "augmentation": True},
        {**TINY, "multipliers": [1, 2], "norm_outputs": "recomputed", "dropout": 0.1, "stem": 2},
    ],
}  # fmt: skip
CASES = [(name, options) for name in plugins.names("models") for options in SMALL.get(name, [{}])]
GAMMA = torch.tensor([0.1, 0.9], dtype=torch.float64)


def stage(name: str, options: dict[str, Any], *, low: int | None = 4, channels: int = 3) -> Stage:
    training = {"images": 4, "global_batch": 4, "micro_batch": 4, "checkpoint_images": 4, "log_images": 4}
    values = {"name": "s", "low": low, "high": 16, "channels": channels, "model": {"name": name, "options": options}}
    return config.parse(Stage, {**values, "objective": {"name": "diffusion"}, "training": training})


def build(name: str, options: dict[str, Any], **kwargs: Any) -> nn.Module:
    module = plugins.load("models", name)
    made = stage(name, options, **kwargs)
    torch.manual_seed(3)
    network: nn.Module = module.build(config.options(module.Options, made.model.options, name), made)
    return network


def redraw(network: nn.Module) -> None:
    """A fresh network outputs zero; random weights everywhere make every path count."""
    generator = torch.Generator().manual_seed(4)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / max(1.0, parameter[0].numel() ** 0.5)


def images(channels: int = 3, size: tuple[int, int] = (16, 16)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(2, channels, *size, generator=generator), torch.randn(2, channels, *size, generator=generator)


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("size", [(16, 16), (24, 16), (18, 13)])
def test_prediction_has_the_shape_of_the_noisy_image(name: str, options: dict[str, Any], size: tuple[int, int]) -> None:
    noisy, low = images(size=size)
    prediction = build(name, options)(noisy, low, GAMMA)
    assert prediction.shape == noisy.shape and prediction.dtype == torch.float32


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("channels", [1, 4])
def test_any_number_of_channels(name: str, options: dict[str, Any], channels: int) -> None:
    noisy, low = images(channels)
    assert build(name, options, channels=channels)(noisy, low, GAMMA).shape == noisy.shape


@pytest.mark.parametrize(("name", "options"), CASES)
def test_every_input_matters_and_items_are_independent(name: str, options: dict[str, Any]) -> None:
    network = build(name, options).eval()
    redraw(network)
    noisy, low = images()
    base = network(noisy, low, GAMMA)
    for changed in (network(noisy.flip(-1), low, GAMMA), network(noisy, low.flip(-1), GAMMA), network(noisy, low, GAMMA.flip(0))):
        assert (changed - base).abs().max() > 1e-2 * base.abs().max()
    alone = network(noisy[1:], low[1:], GAMMA[1:])
    torch.testing.assert_close(alone, base[1:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_gradients_reach_every_parameter_and_are_finite(name: str, options: dict[str, Any]) -> None:
    network = build(name, options)
    redraw(network)
    network(*images(), GAMMA).square().mean().backward()
    for parameter_name, parameter in network.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), parameter_name
        assert parameter.grad.abs().max() > 0, parameter_name


@pytest.mark.parametrize(("name", "options"), CASES)
def test_unconditional_networks_take_no_low_image(name: str, options: dict[str, Any]) -> None:
    network = build(name, options, low=None)
    noisy, low = images()
    assert network(noisy, None, GAMMA).shape == noisy.shape
    with pytest.raises(ValueError, match="no low image"):
        network(noisy, low, GAMMA)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_extreme_levels_stay_finite(name: str, options: dict[str, Any]) -> None:
    network = build(name, options)
    redraw(network)
    assert torch.isfinite(network(*images(), torch.tensor([1e-8, 1.0], dtype=torch.float64))).all()


@pytest.mark.parametrize(("name", "options"), CASES)
def test_the_same_generator_gives_the_same_network(name: str, options: dict[str, Any]) -> None:
    first, second = (build(name, options).state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_labels_and_augmentation_levels_are_taken(name: str, options: dict[str, Any]) -> None:
    """A network without the option leaves them alone; one with it depends on them, and none given is a case of its own."""
    network = build(name, options).eval()
    redraw(network)
    noisy, low = images()
    base = network(noisy, low, GAMMA)
    labelled = network(noisy, low, GAMMA, label=torch.tensor([0, 2]))
    augmented = network(noisy, low, GAMMA, augmentation=torch.tensor([0.3, 0.5]))
    assert torch.equal(labelled, base) == ("labels" not in options)
    assert torch.equal(augmented, base) == ("augmentation" not in options)
    assert torch.equal(network(noisy, low, GAMMA, augmentation=torch.zeros(2)), base)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_one_graph(name: str, options: dict[str, Any]) -> None:
    """torch.compile meets no graph break: the same numbers from one captured graph."""
    network = build(name, {**options, "checkpoint_blocks": False, "dropout": 0.0})
    redraw(network)
    noisy, low = images()
    torch.compiler.reset()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(noisy, low, GAMMA), network(noisy, low, GAMMA))


@pytest.mark.parametrize(("name", "options"), CASES)
def test_maps_stay_channels_last(name: str, options: dict[str, Any]) -> None:
    """No convolution is fed another layout than its weights have, so none of them copies its input."""
    network = build(name, options)
    copied: list[str] = []

    def watch(module_name: str) -> Any:
        def look(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            if not inputs[0].is_contiguous(memory_format=torch.channels_last):
                copied.append(module_name)

        return look

    for module_name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(watch(module_name))
    network(*images(), GAMMA)
    assert copied == []


@pytest.mark.parametrize(("name", "options"), CASES)
def test_state_survives_saving_and_meta_building(name: str, options: dict[str, Any]) -> None:
    """A network built on the meta device has the same parameters: sizes are known before memory is spent."""
    real = {key: value.shape for key, value in build(name, options).state_dict().items()}
    with torch.device("meta"):
        meta = build(name, options)
    assert {key: value.shape for key, value in meta.state_dict().items()} == real
    assert all(parameter.is_meta for parameter in meta.parameters())


@pytest.mark.parametrize(("name", "options"), CASES)
def test_two_pictures_are_learnt(name: str, options: dict[str, Any]) -> None:
    """A fresh network of every family learns to denoise two pictures: what starts at zero still passes its gradient on."""
    network = build(name, {**options, "dropout": 0.0})
    x = torch.linspace(-2, 2, 16)
    picture = torch.stack([torch.sin(3 * x[:, None] + x[None] + k) for k in range(6)]).reshape(2, 3, 16, 16)
    noise, low = images()
    noisy = GAMMA.sqrt().float().view(2, 1, 1, 1) * picture + (1 - GAMMA).sqrt().float().view(2, 1, 1, 1) * noise
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses: list[float] = []
    for _ in range(80):
        loss = (network(noisy, 0.1 * low + picture, GAMMA) - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.4 * losses[0]
