"""Weights of novwaul/SR3: its ``last.pt``. That code has no config file: the network and both noise tables are read off the tensors."""

import re
from collections.abc import Mapping
from itertools import groupby
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sr3_core import config
from sr3_core.config import Stage
from sr3_core.diffusion.schedules import Schedule
from sr3_core.errors import BadInput
from sr3_core.importers import _foreign

SOURCE = "novwaul/SR3"
GROUPS = 8  # of every norm; no tensor tells
TABLES = re.compile(r"alphas_bar|sample_.*|model\.emb\.x")
TABLE_TOLERANCE = 1e-5  # of the stored float32 cumulative products
TRAINING = {"optimizer": {"learning_rate": 1e-5}, "learning_rate": {"name": "cosine", "final": 0.01}}  # its settings are in its program
NAMES = _foreign.renamer(
    (r"model\.emb\.linear1\.linear\.(\w+)", r"embedding.perceptron.0.\1"),
    (r"model\.emb\.linear2\.linear\.(\w+)", r"embedding.perceptron.2.\1"),
    (r"model\.conv1\.conv\.(\w+)", r"conv_in.\1"),
    (r"model\.gn\.group_norm\.(\w+)", r"norm_out.\1"),
    (r"model\.conv2\.conv\.(\w+)", r"conv_out.\1"),
    *(
        (rf"model\.{theirs}\.(\d+)\.{part}\.(\w+)", rf"{ours}.\1.{place}.\2")
        for theirs, ours in (("down", "down"), ("mid", "middle"), ("up", "up"))
        for part, place in (
            (r"gn1\.group_norm", "block.norm_in"),
            (r"conv1\.conv", "block.conv_in"),
            (r"linear1\.linear", "block.condition.project"),
            (r"gn2\.group_norm", "block.condition.norm"),
            (r"conv2\.conv", "block.conv_out"),
            (r"linear2\.linear", "block.shortcut"),
            (r"att\.gn\.group_norm", "attention.norm"),
            (r"att\.qkv\.linear", "attention.query_key_value"),
            (r"att\.proj\.linear", "attention.out"),
            (r"conv\.conv", "block.conv"),
        )
    ),
)


def import_weights(path: str, out: str, *, low: int, high: int, averaged: bool = True) -> str:
    """Write a ModelBundle to the folder ``out`` from ``path`` (``last.pt``, or a state dict of the network alone); the bundle's URI.

    ``averaged`` takes the exponential moving average (``ema_net``), else the last weights (``net``). BadInput: no such weights in the
    file, tensors missing, extra or of another shape, tables that are not linear in beta, numbers that are not finite, a bundle in
    ``out``. Nothing is written then.
    """
    _foreign.refuse_existing(out)
    content = _foreign.read(path)
    if isinstance(content, Mapping) and {"net", "ema_net"} & set(cast("Mapping[str, Any]", content)):
        which = "ema_net" if averaged else "net"
        if which not in content:
            raise BadInput(
                f"{path} without {which}", "a file with the weights asked for", f"pass --weights {'last' if averaged else 'ema'}"
            )
        content = cast("Mapping[str, Any]", content)[which]
    foreign = _foreign.tensors(content, path)
    foreign = foreign if any(name.startswith("model.") for name in foreign) else {f"model.{name}": value for name, value in foreign.items()}
    made = stage(foreign, path, low=low, high=high)
    network = {name: tensor for name, tensor in foreign.items() if not TABLES.fullmatch(name)}
    fit = _foreign.fitted(made, network, NAMES)
    fit.refuse(path, "pass a file of that code's UNet")
    return _foreign.save(out, made, fit, files={"weights": path}, source=SOURCE, images_seen=None, sampling=made.sampling)


def stage(foreign: Mapping[str, Tensor], path: str, *, low: int, high: int) -> Stage:
    """The stage that these tensors are the network of."""
    first = foreign.get("model.conv1.conv.weight")
    hidden, embedded = foreign.get("model.emb.linear1.linear.weight"), foreign.get("model.emb.linear2.linear.weight")
    frequencies = foreign.get("model.emb.x")
    if first is None or hidden is None or embedded is None or frequencies is None or first.dim() != 4:
        raise BadInput(f"{path} without model.conv1 and model.emb", "the state of that code's UNet", "pass its last.pt")
    channels = first.shape[0]
    multipliers, blocks, attended = _layout(foreign, channels, path)
    train, sample = _table(foreign, "alphas_bar", path), _table(foreign, "sample_alphas_bar", path)
    step = float(frequencies.flatten()[1].double())  # period^(-1 / (d / 2 - 1))
    network: dict[str, Any] = {
        "channels": channels, "multipliers": multipliers, "blocks": blocks, "attention_depths": attended,
        "block_style": "ddpm", "skip_scale": 1.0, "fed": "sqrt_gamma", "embedding_scale": 1.0,
        "embedding_period": round(step ** -(channels // 2 - 1)), "frequency_denominator": "half_minus_one",
        "embedding_hidden": hidden.shape[0] // channels, "embedding_width": embedded.shape[0] // channels,
        "logit_scale": "channels", "norm_groups": GROUPS, "shortcut": "linear", "low_first": False,
    }  # fmt: skip
    sampling = {"sampler": "ancestral", "steps": sample["steps"], "grid": "betas", "betas": sample, "clip": False}
    objective = {"levels": {"name": "piecewise", "schedule": train}, "loss": "l2"}
    batch = {"images": 1, "global_batch": 1, "micro_batch": 1, "checkpoint_images": 1, "log_images": 1}
    return _foreign.staged(
        {
            "name": f"sr{high}",
            "low": low,
            "high": high,
            "channels": first.shape[1] // 2,
            "model": {"name": "unet", "options": network},
            "objective": {"name": "diffusion", "options": objective},
            "training": {**batch, **TRAINING},
            "sampling": sampling,
        },
        SOURCE,
    )


def _layout(foreign: Mapping[str, Tensor], channels: int, path: str) -> tuple[list[int], int, list[int]]:
    """Multipliers, residual blocks a depth, and the depths with attention: residual blocks have two convolutions, a change of size one."""
    indices = sorted({int(match.group(1)) for name in foreign if (match := re.match(r"model\.down\.(\d+)\.", name))})
    widths = [foreign.get(f"model.down.{index}.conv2.conv.weight") for index in indices]
    depths = [
        [(index, width) for index, width in run if width is not None]
        for is_block, run in groupby(zip(indices, widths, strict=True), key=lambda pair: pair[1] is not None)
        if is_block
    ]
    if not depths or len({len(depth) for depth in depths}) != 1 or indices != list(range(len(indices))):
        raise BadInput(f"{path} with down blocks {indices}", "depths of equally many residual blocks", "pass a file of that code's UNet")
    multipliers = [depth[0][1].shape[0] // channels for depth in depths]
    attended = [at for at, depth in enumerate(depths) if f"model.down.{depth[0][0]}.att.qkv.linear.weight" in foreign]
    return multipliers, len(depths[0]), attended


def _table(foreign: Mapping[str, Tensor], name: str, path: str) -> dict[str, Any]:
    """The linear table of betas whose cumulative products are stored, as options of ``Schedule``."""
    if name not in foreign:
        raise BadInput(f"{path} without {name}", "the state of that code's diffusion module", "pass its last.pt")
    stored: NDArray[np.float64] = foreign[name].double().numpy()
    ends = {"start": 1.0 - stored[0], "end": 1.0 - stored[-1] / stored[-2]}
    made = {"name": "linear", "steps": len(stored), **{key: float(f"{value:.2g}") for key, value in ends.items()}}
    table = config.parse(Schedule, made)
    if float(np.abs(table.gammas()[1:] - stored).max()) > TABLE_TOLERANCE:
        got = f"{path}: {name} of {len(stored)} steps that are not of a linear table (betas {ends['start']:.3g} to {ends['end']:.3g})"
        raise BadInput(got, "betas linear from a start to an end of two digits", "import needs the code's own tables")
    return table.model_dump(mode="json")
