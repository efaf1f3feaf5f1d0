"""Imported weights against short independent formulas of the networks they come from, evaluated on the foreign names themselves."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sr3_core.artifacts.bundle import ModelBundle
from sr3_core.errors import BadInput
from sr3_core.importers import janspiry, novwaul

State = dict[str, Tensor]
CHANNELS, WIDTHS, BLOCKS, GROUPS = 16, (16, 32, 32), 1, 8
GAMMA = torch.tensor([0.9, 0.3, 0.01], dtype=torch.float64)


class Writer:
    """A foreign state dict: every weight N(0, 1 / fan_in), scales of norms U(.5, 1.5), so that no mistake hides."""

    def __init__(self) -> None:
        self.state: State = {}
        self.generator = torch.Generator().manual_seed(3)

    def weight(self, name: str, *shape: int, bias: bool = True) -> None:
        self.state[f"{name}.weight"] = torch.randn(*shape, generator=self.generator) / math.prod(shape[1:]) ** 0.5
        if bias:
            self.state[f"{name}.bias"] = 0.1 * torch.randn(shape[0], generator=self.generator)

    def norm(self, name: str, channels: int) -> None:
        self.state[f"{name}.weight"] = 0.5 + torch.rand(channels, generator=self.generator)
        self.state[f"{name}.bias"] = 0.1 * torch.randn(channels, generator=self.generator)


def walk(first: int) -> list[tuple[str, int, str, int, int]]:
    """(list, index, kind, channels in, channels out) of a U-Net's parts in order; ``first`` is the index of the first down block."""
    parts: list[tuple[str, int, str, int, int]] = []
    current, skips = CHANNELS, [CHANNELS]
    index = first
    for depth, width in enumerate(WIDTHS):
        for _ in range(BLOCKS):
            parts.append(("down", index, "block attention" if depth == 1 else "block", current, width))
            current, index = width, index + 1
            skips.append(current)
        if depth < len(WIDTHS) - 1:
            parts.append(("down", index, "resample", current, current))
            index += 1
            skips.append(current)
    parts += [("mid", 0, "block attention", current, current), ("mid", 1, "block", current, current)]
    index = 0
    for depth, width in reversed(list(enumerate(WIDTHS))):
        for _ in range(BLOCKS + 1):
            parts.append(("up", index, "block attention" if depth == 1 else "block", current + skips.pop(), width))
            current, index = width, index + 1
        if depth:
            parts.append(("up", index, "resample", current, current))
            index += 1
    return parts


def janspiry_state(kind: str, low: bool) -> State:
    writer = Writer()
    writer.weight("denoise_fn.downs.0", CHANNELS, 6 if low else 3, 3, 3)
    mlp = "noise_level_mlp" if kind == "sr3" else "time_mlp"
    writer.weight(f"denoise_fn.{mlp}.1", 4 * CHANNELS, CHANNELS)
    writer.weight(f"denoise_fn.{mlp}.3", CHANNELS, 4 * CHANNELS)
    for where, index, part, before, after in walk(first=1):
        at = f"denoise_fn.{ {'down': 'downs', 'mid': 'mid', 'up': 'ups'}[where] }.{index}"
        if part == "resample":
            writer.weight(f"{at}.conv", after, before, 3, 3)
            continue
        writer.norm(f"{at}.res_block.block1.block.0", before)
        writer.weight(f"{at}.res_block.block1.block.3", after, before, 3, 3)
        writer.weight(f"{at}.res_block." + ("noise_func.noise_func.0" if kind == "sr3" else "mlp.1"), after, CHANNELS)
        writer.norm(f"{at}.res_block.block2.block.0", after)
        writer.weight(f"{at}.res_block.block2.block.3", after, after, 3, 3)
        if before != after:
            writer.weight(f"{at}.res_block.res_conv", after, before, 1, 1)
        if "attention" in part:
            writer.norm(f"{at}.attn.norm", after)
            writer.weight(f"{at}.attn.qkv", 3 * after, after, 1, 1, bias=False)
            writer.weight(f"{at}.attn.out", after, after, 1, 1)
    writer.norm("denoise_fn.final_conv.block.0", WIDTHS[0])
    writer.weight("denoise_fn.final_conv.block.3", 3, WIDTHS[0], 3, 3)
    betas = np.linspace(*((1e-6, 1e-2) if kind == "sr3" else (1e-4, 2e-2)), 2000)
    writer.state["betas"] = torch.tensor(betas, dtype=torch.float32)
    writer.state["alphas_cumprod"] = torch.tensor(np.cumprod(1 - betas), dtype=torch.float32)
    writer.state["sqrt_recip_alphas_cumprod"] = writer.state["alphas_cumprod"].rsqrt()
    if kind == "ddpm":
        writer.state["denoise_fn.time_mlp.0.inv_freq"] = torch.zeros(CHANNELS // 2)
    return writer.state


def janspiry_config(kind: str, low: bool, **changes: Any) -> dict[str, Any]:
    ends = {"linear_start": 1e-6, "linear_end": 1e-2} if kind == "sr3" else {"linear_start": 1e-4, "linear_end": 2e-2}
    table = {"schedule": "linear", "n_timestep": 2000, **ends}
    network = {
        "in_channel": 6 if low else 3, "out_channel": 3, "inner_channel": CHANNELS, "norm_groups": GROUPS,
        "channel_multiplier": [width // CHANNELS for width in WIDTHS], "attn_res": [8], "res_blocks": BLOCKS, "dropout": 0.2,
    }  # fmt: skip
    return {
        "datasets": {"train": {"l_resolution": 4, "batch_size": 2}},
        "model": {
            "which_model_G": kind,
            "unet": {**network, **changes},
            "beta_schedule": {"train": table, "val": table},
            "diffusion": {"image_size": 16, "channels": 3, "conditional": low},
        },
        "train": {"n_iter": 1000000, "optimizer": {"lr": 1e-4}},
    }


def novwaul_state() -> State:
    writer = Writer()
    writer.weight("model.conv1.conv", CHANNELS, 6, 3, 3)
    writer.weight("model.emb.linear1.linear", 4 * CHANNELS, CHANNELS)
    writer.weight("model.emb.linear2.linear", 4 * CHANNELS, 4 * CHANNELS)
    writer.state["model.emb.x"] = 5000.0 ** (-torch.arange(CHANNELS // 2) / (CHANNELS // 2 - 1)).reshape(1, -1)
    for where, index, part, before, after in walk(first=0):
        at = f"model.{where}.{index}"
        if part == "resample":
            writer.weight(f"{at}.conv.conv", after, before, 3, 3)
            continue
        writer.norm(f"{at}.gn1.group_norm", before)
        writer.weight(f"{at}.conv1.conv", after, before, 3, 3)
        writer.weight(f"{at}.linear1.linear", after, 4 * CHANNELS)
        writer.norm(f"{at}.gn2.group_norm", after)
        writer.weight(f"{at}.conv2.conv", after, after, 3, 3)
        if before != after:
            writer.weight(f"{at}.linear2.linear", after, before)
        if "attention" in part:
            writer.norm(f"{at}.att.gn.group_norm", after)
            writer.weight(f"{at}.att.qkv.linear", 3 * after, after)
            writer.weight(f"{at}.att.proj.linear", after, after)
    writer.norm("model.gn.group_norm", WIDTHS[0])
    writer.weight("model.conv2.conv", 3, WIDTHS[0], 3, 3)
    for name, start, end, steps in (("alphas_bar", 1e-4, 0.005, 1000), ("sample_alphas_bar", 1e-4, 0.1, 100)):
        writer.state[name] = torch.cumprod(1 - torch.linspace(start, end, steps), dim=0)
    writer.state["sample_sigmas"] = torch.linspace(1e-4, 0.1, 100).sqrt()
    return writer.state


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


def import_janspiry(folder: Path, kind: str, low: bool, state: State | None = None, **changes: Any) -> str:
    folder.mkdir(exist_ok=True)
    torch.save(janspiry_state(kind, low) if state is None else state, folder / "gen.pth")
    text = json.dumps(janspiry_config(kind, low, **changes), indent=1).replace('"train": {', '"train": { // a comment, as theirs have')
    (folder / "config.json").write_text(text)
    return janspiry.import_weights(str(folder / "gen.pth"), str(folder / "config.json"), str(folder / "bundle")).uri


def import_novwaul(folder: Path, content: Any = None, **chosen: Any) -> str:
    torch.save({"net": {}, "ema_net": novwaul_state(), "epoch": 3} if content is None else content, folder / "last.pt")
    return novwaul.import_weights(str(folder / "last.pt"), str(folder / "bundle"), **{"low": 4, "high": 16, **chosen}).uri


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
    assert relative(network(noisy, up if low else None, gamma.roll(1)), expected) > 1e-2
    if low:
        assert relative(network(up, noisy, gamma), expected) > 1e-2


@pytest.mark.parametrize("size", [(16, 16), (16, 24)])
@torch.no_grad()
def test_novwaul_s_network_gives_the_same_numbers(tmp_path: Path, size: tuple[int, int]) -> None:
    bundle = ModelBundle.load(import_novwaul(tmp_path))
    network: Any = bundle.network
    noisy, up = inputs(size)
    expected = reference(novwaul_state(), torch.cat([noisy, up], dim=1), GAMMA.sqrt(), system="novwaul")
    assert relative(network(noisy, up, GAMMA), expected) <= 1e-5
    assert relative(network(up, noisy, GAMMA), expected) > 1e-2
    for part in ("attention.out", "down.1.block.conv"):
        changed = {name: torch.zeros_like(value) if part in name else value for name, value in bundle.network.state_dict().items()}
        mutant: Any = ModelBundle.load(bundle.uri).network
        mutant.load_state_dict(changed)
        assert relative(mutant(noisy, up, GAMMA), expected) > 1e-2, part


def test_an_import_samples_as_the_original_does(tmp_path: Path) -> None:
    """Schedule, variance and clipping of the codes; the published schedule that the guard would refuse is kept with its reason."""
    bundle = ModelBundle.load(import_novwaul(tmp_path))
    assert bundle.sampling["sampler"] == "ancestral" and bundle.sampling["grid"] == "betas" and not bundle.sampling["clip"]
    assert bundle.sampling["betas"]["start"] == 1e-4 and bundle.sampling["betas"]["end"] == 0.1 and bundle.sampling["steps"] == 100
    assert bundle.stage.objective.options["levels"]["schedule"]["end"] == 0.005
    assert bundle.stage.objective.options["schedule_guard"] == "published"
    assert bundle.manifest["lineage"]["imported"]["from"] == novwaul.SOURCE
    out = bundle.predict(torch.zeros(1, 3, 4, 4), seeds=np.array([1]))
    assert out.shape == (1, 3, 16, 16) and bool(torch.isfinite(out).all())
    other = ModelBundle.load(import_janspiry(tmp_path / "b", "sr3", True))
    assert other.sampling == {"sampler": "ancestral", "posterior_variance": True, "steps": 2000, "grid": "time"}
    assert "schedule_guard" not in other.stage.objective.options
    assert other.predict(torch.zeros(1, 3, 4, 4), seeds=np.array([1]), steps=2).shape == (1, 3, 16, 16)


def test_a_wrong_config_names_what_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"missing \(down\.1\.block.*of another shape|of another shape") as refused:
        import_janspiry(tmp_path, "sr3", True, res_blocks=2)
    assert "missing" in str(refused.value) and "config.json" in str(refused.value)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("denoise_fn.ups.1.res_block.res_conv.bias"), r"1 missing \(up\.1\.block\.shortcut\.bias\)"),
        (lambda s: s.update({"denoise_fn.extra.weight": torch.zeros(2)}), r"1 extra \(denoise_fn\.extra\.weight\)"),
        (lambda s: s.update({"denoise_fn.downs.0.bias": torch.zeros(2)}), r"denoise_fn\.downs\.0\.bias \[2\] instead of \[16\]"),
        (lambda s: s["denoise_fn.downs.0.bias"].fill_(math.nan), "denoise_fn.downs.0.bias is not finite"),
        (lambda s: s.update({"betas": torch.linspace(1e-6, 2e-2, 2000)}), "2000 betas from 1e-06 to 0.02"),
        (lambda s: s.update({"betas": torch.linspace(1e-6, 1e-2, 100)}), "100 betas"),
    ],
)
def test_a_state_that_does_not_fit_writes_nothing(tmp_path: Path, change: Any, message: str) -> None:
    state = janspiry_state("sr3", True)
    change(state)
    with pytest.raises(BadInput, match=message):
        import_janspiry(tmp_path, "sr3", True, state=state)
    assert not (tmp_path / "bundle").exists()


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no file"):
        novwaul.import_weights(str(tmp_path / "absent.pt"), str(tmp_path / "bundle"), low=4, high=16)
    (tmp_path / "last.pt").write_bytes(b"not a pickle")
    with pytest.raises(BadInput, match="cannot be read"):
        novwaul.import_weights(str(tmp_path / "last.pt"), str(tmp_path / "bundle"), low=4, high=16)
    with pytest.raises(BadInput, match="without net"):
        import_novwaul(tmp_path, {"ema_net": novwaul_state()}, averaged=False)
    with pytest.raises(BadInput, match=r"without model\.conv1"):
        import_novwaul(tmp_path, {"ema_net": {"weight": torch.zeros(1)}})
    state = novwaul_state()
    state["alphas_bar"] = torch.linspace(0.999, 0.1, 1000)
    with pytest.raises(BadInput, match="not of a linear table"):
        import_novwaul(tmp_path, {"ema_net": state})
    assert not (tmp_path / "bundle").exists()


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    """Reading a file of weights never runs what is in it."""

    class Trap:
        def __reduce__(self) -> Any:
            return (Path.write_text, (tmp_path / "ran", "it ran"))

    torch.save({"ema_net": Trap()}, tmp_path / "last.pt")
    with pytest.raises(BadInput, match="cannot be read"):
        novwaul.import_weights(str(tmp_path / "last.pt"), str(tmp_path / "bundle"), low=4, high=16)
    assert not (tmp_path / "ran").exists()


def test_a_bundle_that_is_there_is_left_alone(tmp_path: Path) -> None:
    import_novwaul(tmp_path)
    before = (tmp_path / "bundle" / "bundle.json").read_bytes()
    with pytest.raises(BadInput, match="holds a bundle already"):
        import_novwaul(tmp_path)
    assert (tmp_path / "bundle" / "bundle.json").read_bytes() == before


def test_configs_that_say_too_little(tmp_path: Path) -> None:
    torch.save(janspiry_state("sr3", True), tmp_path / "gen.pth")
    config = tmp_path / "config.json"
    for text, message in (
        ("{", "not JSON"),
        ("{}", "without model.which_model_G"),
        (json.dumps({"model": {"which_model_G": "sr4"}}), "sr3"),
    ):
        config.write_text(text)
        with pytest.raises(BadInput, match=message):
            janspiry.import_weights(str(tmp_path / "gen.pth"), str(config), str(tmp_path / "bundle"))
    with pytest.raises(BadInput, match="no config"):
        janspiry.import_weights(str(tmp_path / "gen.pth"), str(tmp_path / "absent.json"), str(tmp_path / "bundle"))
