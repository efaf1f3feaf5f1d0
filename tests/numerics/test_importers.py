"""Imported weights against short independent formulas of the networks they come from, evaluated on the foreign names themselves."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from sr3_core.artifacts.bundle import ModelBundle
from sr3_core.importers import novwaul
from tests.foreign_states import CHANNELS, GROUPS, State, import_janspiry, import_novwaul, janspiry_state, novwaul_state, walk

GAMMA = torch.tensor([0.9, 0.3, 0.01], dtype=torch.float64)


def reference(state: State, x: Tensor, level: Tensor, *, system: str) -> Tensor:
    """The U-Net written down once more, straight from the foreign names: both systems differ in names and six choices."""
    c = system == "novwaul"
    prefix = "model." if c else "denoise_fn."

    def affine(name: str, value: Tensor) -> Tensor:
        weight, bias = state[f"{name}.weight"], state.get(f"{name}.bias")
        if value.dim() == 2:
            return functional.linear(value, weight, bias)
        kernel = weight if weight.dim() == 4 else weight[:, :, None, None]
        return functional.conv2d(value, kernel, bias, padding=kernel.shape[-1] // 2)

    def norm(name: str, value: Tensor) -> Tensor:
        return functional.group_norm(value, GROUPS, state[f"{name}.weight"], state[f"{name}.bias"])

    half = CHANNELS // 2
    frequency = (5000.0 if c else 1e4) ** (-torch.arange(half) / (half - 1 if c else half))
    angle = level.float()[:, None] * frequency
    names = [f"{prefix}emb.linear1.linear", f"{prefix}emb.linear2.linear"] if c else (
        [f"{prefix}{'noise_level' if system == 'sr3' else 'time'}_mlp.{index}" for index in (1, 3)])  # fmt: skip
    embedding = affine(names[1], functional.silu(affine(names[0], torch.cat([angle.sin(), angle.cos()], dim=1))))

    def block(at: str, value: Tensor) -> Tensor:
        b = f"{at}." if c else f"{at}.res_block."
        hidden = affine(
            b + ("conv1.conv" if c else "block1.block.3"), functional.silu(norm(b + ("gn1.group_norm" if c else "block1.block.0"), value))
        )
        project = b + {"novwaul": "linear1.linear", "sr3": "noise_func.noise_func.0", "ddpm": "mlp.1"}[system]
        hidden = hidden + affine(project, embedding if system == "sr3" else functional.silu(embedding))[:, :, None, None]
        hidden = affine(
            b + ("conv2.conv" if c else "block2.block.3"), functional.silu(norm(b + ("gn2.group_norm" if c else "block2.block.0"), hidden))
        )
        shortcut = b + ("linear2.linear" if c else "res_conv")
        value = hidden + (affine(shortcut, value) if f"{shortcut}.weight" in state else value)
        qkv, out, gn = (f"{at}.att.qkv.linear", f"{at}.att.proj.linear", f"{at}.att.gn.group_norm") if c else (
            f"{at}.attn.qkv", f"{at}.attn.out", f"{at}.attn.norm")  # fmt: skip
        if f"{qkv}.weight" in state:
            query, key, third = affine(qkv, norm(gn, value)).flatten(2).chunk(3, dim=1)
            weights = (query.transpose(1, 2) @ key / query.shape[1] ** 0.5).softmax(dim=-1)
            value = value + affine(out, (third @ weights.transpose(1, 2)).reshape(value.shape))
        return value

    lists = {"down": "down" if c else "downs", "mid": "mid", "up": "up" if c else "ups"}
    value = affine("model.conv1.conv" if c else "denoise_fn.downs.0", x)
    skips = [value]
    for where, index, part, _, _ in walk(first=0 if c else 1):
        at = f"{prefix}{lists[where]}.{index}"
        if part == "resample":
            conv = f"{at}.conv.conv" if c else f"{at}.conv"
            if where == "up":
                value = affine(conv, value.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))
            else:
                value = affine(conv, value)[:, :, ::2, ::2]
        else:
            value = block(at, torch.cat([value, skips.pop()], dim=1) if where == "up" else value)
        if where == "down":
            skips.append(value)
    last, out = ("model.gn.group_norm", "model.conv2.conv") if c else ("denoise_fn.final_conv.block.0", "denoise_fn.final_conv.block.3")
    return affine(out, functional.silu(norm(last, value)))


def inputs(size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(3, 3, *size, generator=generator), torch.randn(3, 3, *size, generator=generator)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def mutants(network: Any) -> Iterator[tuple[str, Callable[..., Tensor]]]:
    """What the import would be with one mistake."""
    for mistake, part in (("attention off", "attention.out"), ("a branch zeroed", "down.0.block.conv_out")):
        mutant = copy.deepcopy(network)
        parts = [parameter for name, parameter in mutant.named_parameters() if part in name]
        assert parts, part
        for parameter in parts:
            parameter.zero_()
        yield mistake, mutant
    yield "gamma shifted", lambda noisy, low, gamma: network(noisy, low, gamma.roll(1))
    if network.conditional:
        yield "concatenation swapped", lambda noisy, low, gamma: network(low, noisy, gamma)


@pytest.mark.parametrize("size", [(16, 16), (16, 24)])
@pytest.mark.parametrize(("kind", "low"), [("sr3", True), ("sr3", False), ("ddpm", True), ("ddpm", False)])
@torch.no_grad()
def test_janspiry_s_networks_give_the_same_numbers(tmp_path: Path, kind: str, low: bool, size: tuple[int, int]) -> None:
    state = janspiry_state(kind, low)
    network: Any = ModelBundle.load(import_janspiry(tmp_path, kind, low)).network
    noisy, up = inputs(size)
    t = torch.tensor([3, 700, 1900])
    table = torch.tensor(np.cumprod(1 - np.linspace(1e-4, 2e-2, 2000)))
    gamma = GAMMA if kind == "sr3" else table[t]
    x = torch.cat([up, noisy], dim=1) if low else noisy
    expected = reference(state, x, gamma.sqrt() if kind == "sr3" else t, system=kind)
    assert relative(network(noisy, up if low else None, gamma), expected) <= 1e-5
    for mistake, mutant in mutants(network):
        assert relative(mutant(noisy, up if low else None, gamma), expected) > 1e-2, mistake


@pytest.mark.parametrize("size", [(16, 16), (16, 24)])
@torch.no_grad()
def test_novwaul_s_network_gives_the_same_numbers(tmp_path: Path, size: tuple[int, int]) -> None:
    network: Any = ModelBundle.load(import_novwaul(tmp_path)).network
    noisy, up = inputs(size)
    expected = reference(novwaul_state(), torch.cat([noisy, up], dim=1), GAMMA.sqrt(), system="novwaul")
    assert relative(network(noisy, up, GAMMA), expected) <= 1e-5
    for mistake, mutant in mutants(network):
        assert relative(mutant(noisy, up, GAMMA), expected) > 1e-2, mistake


def test_an_import_samples_as_the_original_does(tmp_path: Path) -> None:
    """Schedule, variance and clipping of the codes; the published schedule that the guard would refuse is kept with its reason."""
    bundle = ModelBundle.load(import_novwaul(tmp_path))
    assert bundle.sampling["sampler"] == "ancestral" and bundle.sampling["grid"] == "betas" and not bundle.sampling["clip"]
    assert bundle.sampling["betas"]["start"] == 1e-4 and bundle.sampling["betas"]["end"] == 0.1 and bundle.sampling["steps"] == 100
    assert bundle.stage.objective.options["levels"]["schedule"]["end"] == 0.005
    assert bundle.stage.objective.options["schedule_guard"] == "published"
    assert bundle.stage.objective.options["upsampling"] == "bicubic_sharp_clipped"
    assert bundle.manifest["lineage"]["imported"]["from"] == novwaul.SOURCE
    out = bundle.predict(torch.zeros(1, 3, 4, 4), seeds=np.array([1]))
    assert out.shape == (1, 3, 16, 16) and bool(torch.isfinite(out).all())
    other = ModelBundle.load(import_janspiry(tmp_path / "b", "sr3", True))
    assert other.sampling == {"sampler": "ancestral", "posterior_variance": True, "steps": 2000, "grid": "time"}
    assert "schedule_guard" not in other.stage.objective.options
    assert other.stage.objective.options["upsampling"] == "bicubic_8bit"
    assert other.predict(torch.zeros(1, 3, 4, 4), seeds=np.array([1]), steps=2).shape == (1, 3, 16, 16)
    noise = ModelBundle.load(import_janspiry(tmp_path / "c", "sr3", False))
    assert noise.predict(None, seeds=np.array([1]), steps=2).shape == (1, 3, 16, 16)


def test_the_low_image_is_read_as_the_original_s_preparation_leaves_it(tmp_path: Path) -> None:
    """A network whose output is its low input shows what it was given: 8 bits of Pillow's bicubic, or torch's sharper one, clipped."""
    low = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(2)) * 2 - 1
    levels = ((low + 1) * 127.5).round().to(torch.uint8)
    picture = Image.fromarray(levels[0].permute(1, 2, 0).numpy()).resize((16, 16), Image.Resampling.BICUBIC)
    stored = torch.tensor(np.asarray(picture)).permute(2, 0, 1)[None] / 127.5 - 1
    sharp = torch.nn.Upsample(scale_factor=4.0, mode="bicubic")((low + 1) / 2).clip(0, 1) * 2 - 1
    for bundle, expected in (
        (ModelBundle.load(import_janspiry(tmp_path / "b", "sr3", True)), stored),
        (ModelBundle.load(import_novwaul(tmp_path / "c")), sharp),
    ):
        seen: list[Tensor] = []
        bundle.network.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[1]))
        bundle.predict(low, seeds=np.array([1]), steps=1)
        torch.testing.assert_close(seen[0], expected, rtol=0, atol=1e-6)
