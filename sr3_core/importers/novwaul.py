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
from sr3_core.importers._foreign import Imported

SOURCE = "novwaul/SR3"
GROUPS = 8  # of every norm; no tensor tells
TABLES = re.compile(r"alphas_bar|sample_.*|model\.emb\.x")
TABLE_TOLERANCE = 1e-5  # of the stored float32 cumulative products
FREQUENCY_TOLERANCE = 1e-3  # relative, of the stored float32 frequencies
MOST_CHANNELS, MOST_STEPS = 4096, 10**6
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


def import_weights(path: str, out: str, *, low: int, high: int, averaged: bool = True) -> Imported:
    """Write a ModelBundle to the folder ``out`` from ``path`` (``last.pt``, or a state dict of the network alone).

    ``averaged`` takes the exponential moving average (``ema_net``), else the last weights (``net``). BadInput: no such weights in the
    file, tensors missing, extra, twice or of another shape, tables that are not linear in beta, numbers that are not finite, a bundle
    in ``out``. Nothing is written then.
    """
    _foreign.refuse_existing(out)
    content = _foreign.read(path)
    if isinstance(content, Mapping) and {"net", "ema_net"} & set(cast("Mapping[str, Any]", content)):
        which = "ema_net" if averaged else "net"
        if which not in content:
            do = f"pass --weights {'last' if averaged else 'ema'}"
            raise BadInput(f"{path} without {which}", "a file with the weights asked for", do)
        content = cast("Mapping[str, Any]", content)[which]
    foreign = _foreign.tensors(content, path)
    foreign = foreign if any(name.startswith("model.") for name in foreign) else {f"model.{name}": value for name, value in foreign.items()}
    made = stage(foreign, path, low=low, high=high)
    network = {name: tensor for name, tensor in foreign.items() if not TABLES.fullmatch(name)}
    with _foreign.said_of(path):
        fit = _foreign.fitted(made, network, NAMES)
    fit.refuse(path, "pass a file of that code's UNet")
    return _foreign.save(out, made, fit, files={"weights": path}, source=SOURCE)


def stage(foreign: Mapping[str, Tensor], path: str, *, low: int, high: int) -> Stage:
    """The stage that these tensors are the network of."""
    first, hidden, embedded = (foreign.get(f"model.{name}.weight") for name in ("conv1.conv", "emb.linear1.linear", "emb.linear2.linear"))
    if first is None or hidden is None or embedded is None or (first.dim(), hidden.dim(), embedded.dim()) != (4, 2, 2):
        raise BadInput(f"{path} without model.conv1 and model.emb", "the state of that code's UNet", "pass its last.pt")
    channels, entering = first.shape[:2]
    odd = channels % 2 or not 4 <= channels <= MOST_CHANNELS or entering % 2 or not entering
    if odd or any(not layer.shape[0] or layer.shape[0] % channels for layer in (hidden, embedded)):
        shapes = ", ".join(str(list(layer.shape)) for layer in (first, hidden, embedded))
        allowed = f"an even number of channels up to {MOST_CHANNELS} in model.conv1, multiples of it in model.emb"
        raise BadInput(f"{path} with model.conv1 and model.emb of {shapes}", allowed, "pass a file of that code's UNet")
    multipliers, blocks, attended = _layout(foreign, channels, path)
    train, sample = _table(foreign, "alphas_bar", path), _table(foreign, "sample_alphas_bar", path)
    network: dict[str, Any] = {
        "channels": channels, "multipliers": multipliers, "blocks": blocks, "attention_depths": attended,
        "block_style": "ddpm", "skip_scale": 1.0, "fed": "sqrt_gamma", "embedding_scale": 1.0,
        "embedding_period": _period(foreign, channels // 2, path), "frequency_denominator": "half_minus_one",
        "embedding_hidden": hidden.shape[0] // channels, "embedding_width": embedded.shape[0] // channels,
        "logit_scale": "channels", "norm_groups": GROUPS, "shortcut": "linear", "low_first": False,
    }  # fmt: skip
    sampling = {"sampler": "ancestral", "steps": sample["steps"], "grid": "betas", "betas": sample, "clip": False}
    objective = {"levels": {"name": "piecewise", "schedule": train}, "loss": "l2", "upsampling": "bicubic_sharp_clipped"}
    batch = {"images": 1, "global_batch": 1, "micro_batch": 1, "checkpoint_images": 1, "log_images": 1}
    described = {
        "name": f"sr{high}",
        "low": low,
        "high": high,
        "channels": entering // 2,
        "model": {"name": "unet", "options": network},
        "objective": {"name": "diffusion", "options": objective},
        "training": {**batch, **TRAINING},
        "sampling": sampling,
    }
    with _foreign.said_of(path):
        return _foreign.staged(described, SOURCE)


def _layout(foreign: Mapping[str, Tensor], channels: int, path: str) -> tuple[list[int], int, list[int]]:
    """Multipliers, residual blocks a depth, and the depths with attention: residual blocks have two convolutions, a change of size one."""
    indices = sorted({int(match.group(1)) for name in foreign if (match := re.match(r"model\.down\.(\d+)\.", name))})
    widths = [foreign.get(f"model.down.{index}.conv2.conv.weight") for index in indices]
    if any(width is not None and (width.dim() != 4 or not width.shape[0] or width.shape[0] % channels) for width in widths):
        shapes = ", ".join(str(list(width.shape)) for width in widths if width is not None)
        allowed = f"multiples of the {channels} channels of model.conv1"
        raise BadInput(f"{path} with second convolutions of {shapes}", allowed, "pass a file of that code's UNet")
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


def _period(foreign: Mapping[str, Tensor], count: int, path: str) -> int:
    """The period p of the stored frequencies p^(-i / (count - 1)); 5000 in that code."""
    stored = _row(foreign, "model.emb.x", path)
    if len(stored) == count and 0.0 < stored[1] < 1.0:
        period = round(float(stored[1]) ** -(count - 1.0))
        if float(np.abs(stored * float(period) ** (np.arange(count) / (count - 1)) - 1.0).max()) < FREQUENCY_TOLERANCE:
            return period
    got = f"{path} with model.emb.x that are not {count} frequencies of one period"
    raise BadInput(got, "p^(-i / (d / 2 - 1)) for the d channels of model.conv1", "pass a file of that code's UNet")


def _table(foreign: Mapping[str, Tensor], name: str, path: str) -> dict[str, Any]:
    """The linear table of betas whose cumulative products are stored, as options of ``Schedule``."""
    stored = _row(foreign, name, path)
    got = f"{path}: {name} of {len(stored)} steps that are not of a linear table"
    if 2 < len(stored) <= MOST_STEPS and stored[0] < 1.0 and stored[-1] > 0.0 and bool((np.diff(stored) < 0.0).all()):
        first, last = 1.0 - stored[0], 1.0 - stored[-1] / stored[-2]
        got += f" (betas {first:.3g} to {last:.3g})"
        start, end = float(f"{first:.2g}"), float(f"{last:.2g}")
        if 0.0 < start <= end < 1.0:
            table = config.parse(Schedule, {"name": "linear", "steps": len(stored), "start": start, "end": end})
            if float(np.abs(table.gammas()[1:] - stored).max()) <= TABLE_TOLERANCE:
                return table.model_dump(mode="json")
    raise BadInput(got, "betas linear from a start to an end of two digits", "import needs the code's own tables")


def _row(foreign: Mapping[str, Tensor], name: str, path: str) -> NDArray[np.float64]:
    """The tensor of that name, flat."""
    if name not in foreign:
        raise BadInput(f"{path} without {name}", "the state of that code's diffusion module", "pass its last.pt")
    values: NDArray[np.float64] = foreign[name].double().flatten().numpy()
    if len(values) < 2 or not bool(np.isfinite(values).all()):
        raise BadInput(f"{path} with {name} of {len(values)} values", "several finite numbers", "pass that code's last.pt")
    return values
