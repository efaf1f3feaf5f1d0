"""The U-Net's options against short independent formulas, and what they refuse."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from sr3_core import config
from sr3_core.config import Stage
from sr3_core.diffusion.schedules import Schedule
from sr3_core.errors import BadInput
from sr3_core.models import _blocks, unet

TINY: dict[str, Any] = {"channels": 8, "multipliers": [1, 2], "blocks": 1}
TABLE: dict[str, Any] = {"name": "linear", "start": 1e-4, "end": 2e-2, "steps": 2000}


def stage(*, high: int = 16, crop: int | None = None) -> Stage:
    training = {"images": 4, "global_batch": 4, "micro_batch": 4, "checkpoint_images": 4, "log_images": 4, "crop": crop}
    plugin = {"name": "unet"}
    values = {"name": "s", "low": high // 4, "high": high, "model": plugin, "objective": {"name": "diffusion"}, "training": training}
    return config.parse(Stage, values)


def options(**changes: Any) -> unet.Options:
    return config.options(unet.Options, {**TINY, **changes}, "unet")


def build(**changes: Any) -> unet.UNet:
    torch.manual_seed(0)
    network = unet.build(options(**changes), stage())
    redraw(network)
    return network


def redraw(module: torch.nn.Module, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / max(1.0, parameter[0].numel() ** 0.5)


def drawn(*shape: int, seed: int = 2) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_network_fed_t_counts_the_table_from_zero() -> None:
    network = build(fed="t", table=TABLE)
    table = np.cumprod(1 - np.linspace(1e-4, 2e-2, 2000))
    at = [0, 1, 2, 500, 1998, 1999]
    torch.testing.assert_close(network._fed(torch.tensor(table[at])), torch.tensor(at, dtype=torch.float64), rtol=0, atol=0)
    between = math.exp(0.75 * math.log(table[500]) + 0.25 * math.log(table[501]))
    off_by_little = math.exp(0.995 * math.log(table[500]) + 0.005 * math.log(table[501]))
    got = network._fed(torch.tensor([between, off_by_little, 1.0, 1e-12], dtype=torch.float64))
    assert got[0].item() == pytest.approx(500.25) and got[1:].tolist() == [500.0, 0.0, 1999.0]


@pytest.mark.parametrize("table", [{**TABLE, "rescale_zero_terminal_snr": True}, {"name": "jsd", "steps": 40}])
def test_a_table_that_ends_without_signal_counts_to_its_end(table: dict[str, Any]) -> None:
    """gamma 0 is T - 1; towards it, where -log gamma has no end, t goes by gamma itself. Gradients and images stay finite."""
    network = build(fed="t", table=table)
    gammas = config.parse(Schedule, table).gammas()
    last = len(gammas) - 2
    got = network._fed(torch.tensor([gammas[1], gammas[2], gammas[-2], 0.75 * gammas[-2], 0.25 * gammas[-2], 0.0], dtype=torch.float64))
    assert got.tolist() == pytest.approx([0.0, 1.0, last - 1, last - 0.75, last - 0.25, last], abs=1e-9)
    assert torch.isfinite(network(drawn(2, 3, 16, 16), drawn(2, 3, 16, 16), torch.tensor([0.0, 1e-300], dtype=torch.float64))).all()


@pytest.mark.parametrize(
    ("fed", "formula"),
    [("gamma", lambda g: g), ("sqrt_gamma", np.sqrt), ("log_snr", lambda g: np.clip(np.log(g / (1 - g)), -10, 10))],
)
def test_what_the_embedding_sees(fed: str, formula: Any) -> None:
    gamma = np.array([1e-9, 4.4e-5, 0.3, 0.999])
    np.testing.assert_allclose(build(fed=fed)._fed(torch.tensor(gamma)).numpy(), formula(gamma), rtol=1e-12)


@pytest.mark.parametrize(("denominator", "last"), [("half", 8), ("half_minus_one", 7)])
def test_the_sinusoid_s_frequencies(denominator: str, last: int) -> None:
    network = build(channels=16, embedding_period=5000.0, embedding_scale=3.0, frequency_denominator=denominator)
    expected = 3.0 * 5000.0 ** (-np.arange(8) / last)
    np.testing.assert_allclose(network.embedding.frequencies().numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_levels_are_embedded_exactly_by_a_network_of_half_precision(scale: float) -> None:
    """Only the weights and the result are rounded: against float64 with the same rounded weights; under autocast nothing is."""
    network = build(channels=16, embedding_scale=scale)
    half = build(channels=16, embedding_scale=scale).to(torch.bfloat16)
    gamma = torch.tensor([0.0066, 0.5, 0.7071, 0.99, 0.9999], dtype=torch.float64)
    for made in (network, half):
        first, last = (made.embedding.perceptron[layer] for layer in (0, 2))
        angle = scale * gamma[:, None] * 10_000.0 ** (-torch.arange(8, dtype=torch.float64) / 8)
        sinusoid = torch.cat([angle.sin(), angle.cos()], dim=1)
        hidden = functional.silu(functional.linear(sinusoid, first.weight.double(), first.bias.double()))
        expected = functional.linear(hidden, last.weight.double(), last.bias.double())
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=made is network):
            got = made.embedding(gamma)
        assert got.dtype == first.weight.dtype
        torch.testing.assert_close(got.double(), expected, rtol=1e-5 if made is network else 2.0**-8, atol=1e-6 + 2e-7 * scale)
    table = build(fed="t", table=TABLE).to(torch.bfloat16)
    levels = torch.tensor(np.cumprod(1 - np.linspace(1e-4, 2e-2, 2000))[[0, 700, 701, 1999]])
    assert table._fed(levels).tolist() == [0.0, 700.0, 701.0, 1999.0]


def test_constants_follow_the_network_and_stand_in_no_state() -> None:
    """A network that was built without memory gets its constants with it; its state has parameters alone."""
    with torch.device("meta"):
        empty = unet.build(options(fed="t", table=TABLE), stage())
    whole = build(fed="t", table=TABLE)
    assert {name for name, _ in whole.named_parameters()} == set(whole.state_dict()) == set(empty.state_dict())
    filled = empty.to_empty(device="cpu")
    filled.load_state_dict(whole.state_dict())
    noisy, low, gamma = drawn(2, 3, 16, 16), drawn(2, 3, 16, 16, seed=4), torch.tensor([0.2, 0.8], dtype=torch.float64)
    assert torch.equal(filled(noisy, low, gamma), whole(noisy, low, gamma))


def test_a_network_of_half_precision_is_one_graph() -> None:
    network = build().to(torch.bfloat16)
    images = [drawn(2, 3, 16, 16, seed=seed).to(torch.bfloat16) for seed in (2, 4)]
    gamma = torch.tensor([0.2, 0.8], dtype=torch.float64)
    torch.compiler.reset()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*images, gamma), network(*images, gamma))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        whole = build()
        torch.compiler.reset()
        images = [image.float() for image in images]
        torch.testing.assert_close(torch.compile(whole, backend="eager", fullgraph=True)(*images, gamma), whole(*images, gamma))


def test_conditional_instance_norm_plus_plus() -> None:
    """(1 + gain) (x - mean) / std + shift + (1 + weight) (mean - m) / v, map by map."""
    module = _blocks.Conditioning(6, 5, kind="instance_norm", groups=None, activation=False)
    redraw(module)
    x, embedding = drawn(2, 6, 4, 3), drawn(2, 5, seed=3)
    with torch.no_grad():
        got = module(x, embedding)
        gain, shift, weight = (part.numpy() for part in module.project(embedding).split(6, dim=1))
    maps = x.numpy()
    for item in range(2):
        means = np.array([maps[item, channel].mean() for channel in range(6)])
        for channel in range(6):
            norm = (maps[item, channel] - means[channel]) / (maps[item, channel].std() + 1e-5)
            colour = (means[channel] - means.mean()) / (means.std() + 1e-5)
            expected = (1 + gain[item, channel]) * norm + shift[item, channel] + (1 + weight[item, channel]) * colour
            np.testing.assert_allclose(got[item, channel].numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("heads_first", [True, False])
@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_attention_by_its_definition(heads_first: bool, scale: float) -> None:
    """softmax(scale q k^T) v for every head, with the channels dealt to heads as the layout says."""
    settings: dict[str, Any] = {"groups": 2, "skip_scale": 0.7, "bias": True, "output": True, "max_side": 8}
    module = _blocks.Attention(8, 2, logit_scale=scale, heads_first=heads_first, **settings)
    redraw(module)
    x = drawn(1, 8, 3, 2)
    with torch.no_grad():
        got = module(x)
        projected = module.query_key_value(module.norm(x))[0].reshape(24, 6).numpy()
    mixed = np.empty((8, 6))
    for head in range(2):
        at = [head * 12, head * 12 + 4, head * 12 + 8] if heads_first else [head * 4, 8 + head * 4, 16 + head * 4]
        query, key, value = (projected[start : start + 4] for start in at)
        logits = scale * query.T @ key
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        mixed[head * 4 : head * 4 + 4] = value @ (weights / weights.sum(axis=1, keepdims=True)).T
    with torch.no_grad():
        out = module.out(torch.tensor(mixed, dtype=torch.float32).reshape(1, 8, 3, 2))
    torch.testing.assert_close(got, (x + out) * 0.7, rtol=1e-5, atol=1e-5)


def test_a_linear_shortcut_is_a_1x1_convolution() -> None:
    first, second = build(shortcut="conv"), build(shortcut="linear")
    state = {key: value.reshape(second.state_dict()[key].shape) for key, value in first.state_dict().items()}
    second.load_state_dict(state)
    noisy, low, gamma = drawn(2, 3, 16, 16), drawn(2, 3, 16, 16, seed=4), torch.tensor([0.2, 0.8], dtype=torch.float64)
    torch.testing.assert_close(first(noisy, low, gamma), second(noisy, low, gamma), rtol=1e-5, atol=1e-5)


def test_the_order_of_concatenation() -> None:
    first, last = build(), build(low_first=False)
    last.load_state_dict(first.state_dict())
    noisy, low, gamma = drawn(1, 3, 16, 16), drawn(1, 3, 16, 16, seed=4), torch.tensor([0.2], dtype=torch.float64)
    torch.testing.assert_close(first(noisy, low, gamma), last(low, noisy, gamma))


KEPT_LESS: dict[str, Any] = {"checkpoint_blocks": True, "norm_outputs": "recomputed"}


@pytest.mark.parametrize("style", [{}, {"block_style": "biggan_deep", "bottleneck": 2}, {"noise_conditioning": "affine"}])
@pytest.mark.parametrize("option", KEPT_LESS)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_what_is_recomputed_has_the_same_gradients(dropout: float, option: str, style: dict[str, Any]) -> None:
    """To the last bit, and so has the output."""
    found: list[list[torch.Tensor]] = []
    for changes in ({}, {option: KEPT_LESS[option]}):
        network = build(**changes, **style, dropout=dropout)
        torch.manual_seed(5)
        gamma = torch.tensor([0.2], dtype=torch.float64)
        output = network(drawn(1, 3, 16, 16), drawn(1, 3, 16, 16, seed=4), gamma)
        output.square().mean().backward()
        found.append([output.detach(), *(parameter.grad for parameter in network.parameters() if parameter.grad is not None)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def stored(**changes: Any) -> int:
    """Bytes that a forward pass keeps for the backward pass."""
    network = build(**changes)
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(drawn(1, 3, 64, 64), drawn(1, 3, 64, 64, seed=4), torch.tensor([0.2], dtype=torch.float64))
    return sum(kept.values())


@pytest.mark.parametrize(("option", "share"), [("checkpoint_blocks", 0.5), ("norm_outputs", 0.85)])
def test_what_is_recomputed_is_not_stored(option: str, share: float) -> None:
    assert stored(**{option: KEPT_LESS[option]}, blocks=3) < share * stored(blocks=3)


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (5, 17), (16, 16)])
def test_padding_reflects_however_small_the_image(size: tuple[int, int]) -> None:
    x = drawn(1, 2, *size)
    padded = _blocks.padded(x, 8)
    assert padded.shape[-2:] == tuple(math.ceil(side / 8) * 8 for side in size)
    torch.testing.assert_close(padded[..., : size[0], : size[1]], x)
    if min(size) > 4:
        expected = functional.pad(x, (0, -size[1] % 8, 0, -size[0] % 8), mode="reflect")
        torch.testing.assert_close(padded, expected)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"norm_groups": 3}, "norm_groups 3 must divide every width; 8 channels"),
    ({"norm_groups": 16}, "norm_groups 16 must divide every width"),
    ({"heads": 3}, "heads 3 must divide every width"),
    ({"multipliers": [1, 0]}, r"multipliers\.1=0; allowed: input should be greater than or equal to 1"),
    ({"channels": 9}, "channels 9 must be even"),
    ({"block_style": "biggan_deep", "bottleneck": 3}, "bottleneck 3 x norm_groups must divide"),
    ({"resampler": "conv"}, "resampler conv goes beside the blocks"),
    ({"attention_factors": [4]}, r"attention_factors \[4\] must be among \[1, 2\]"),
    ({"attention_depths": [2]}, "attention_depths"),
    ({"fed": "t"}, "fed=t and table go together"),
    ({"table": TABLE}, "fed=t and table go together"),
    ({"bottleneck": 2}, "bottleneck is set, but block_style biggan has none"),
    ({"middle_attention": False, "heads": 2}, "heads is set, but the network has no attention"),
    ({"middle_attention": False, "qkv_bias": False}, "qkv_bias is set, but the network has no attention"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_options_that_do_not_agree_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        options(**changes)


def test_attention_over_too_many_positions_needs_an_opt_in() -> None:
    with pytest.raises(BadInput, match=r"stage s: attention over 128 x 128 positions.*64 x 64.*attention_max_side"):
        unet.build(options(middle_attention=False, attention_factors=[2]), stage(high=256))
    unet.build(options(middle_attention=False, attention_factors=[2], attention_max_side=128), stage(high=256))
    network = build(attention_max_side=8)  # 16 / 2 in the middle
    gamma = torch.tensor([0.5], dtype=torch.float64)
    network(drawn(1, 3, 16, 16), drawn(1, 3, 16, 16), gamma)
    with pytest.raises(BadInput, match="attention over 16 x 16 positions"):
        network(drawn(1, 3, 32, 32), drawn(1, 3, 32, 32), gamma)


def test_sizes_that_need_padding_where_it_is_forbidden() -> None:
    with pytest.raises(BadInput, match=r"stage s: training.crop 12; allowed: multiples of 8"):
        unet.build(options(multipliers=[1, 1, 1, 1], padding="forbid"), stage(crop=12))
    network = build(padding="forbid")
    with pytest.raises(BadInput, match=r"an image of 15 x 16; allowed: multiples of 2"):
        network(drawn(1, 3, 16, 15), drawn(1, 3, 16, 15), torch.tensor([0.5], dtype=torch.float64))


def test_the_table_is_the_training_schedule() -> None:
    parsed = options(fed="t", table=TABLE).table
    assert isinstance(parsed, Schedule) and parsed.steps == 2000
