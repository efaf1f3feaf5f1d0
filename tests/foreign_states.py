"""Small states and configs as two other SR3 codes save them, for the tests of the importers."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sr3_core.importers import janspiry, novwaul

State = dict[str, Tensor]
CHANNELS, WIDTHS, BLOCKS, GROUPS = 16, (16, 32, 32), 1, 8


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


def import_janspiry(folder: Path, kind: str, low: bool, state: State | None = None, **changes: Any) -> str:
    folder.mkdir(exist_ok=True)
    torch.save(janspiry_state(kind, low) if state is None else state, folder / "gen.pth")
    text = json.dumps(janspiry_config(kind, low, **changes), indent=1).replace('"train": {', '"train": { // a comment, as theirs have')
    (folder / "config.json").write_text(text)
    return janspiry.import_weights(str(folder / "gen.pth"), str(folder / "config.json"), str(folder / "bundle")).uri


def import_novwaul(folder: Path, content: Any = None, **chosen: Any) -> str:
    folder.mkdir(exist_ok=True)
    torch.save({"net": {}, "ema_net": novwaul_state(), "epoch": 3} if content is None else content, folder / "last.pt")
    return novwaul.import_weights(str(folder / "last.pt"), str(folder / "bundle"), **{"low": 4, "high": 16, **chosen}).uri
