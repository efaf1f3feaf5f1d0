"""What a metric plug-in is: a module with ``Options`` and ``Metric``; the rounding and the colour conversion that all of them share.

To add a metric, put one file beside this one (its name is the name in the recipe) that defines ``class Options(Section)`` and a class
``Metric`` of the protocol below. Evaluation hands it whole images and computes means, intervals and paired differences itself.

Shape legend: N images, C channels, H x W pixels at high resolution, h x w at low resolution.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from sr3_core import config, images, plugins
from sr3_core.config import Section
from sr3_core.errors import BadInput

LEVELS = 255  # the unit of what is reported in levels, whatever the depth: 1/255 of the full range


@dataclass(frozen=True)
class Reported:
    """One number a metric yields per image: its name, the better direction, its unit, how it is computed (colour space, border)."""

    name: str
    better: Literal["lower", "higher"]
    unit: str
    colour: str
    border: int
    note: str = ""


class Metric(Protocol):
    """One metric, made for one scale. ``needs`` says what ``values`` must be given beside the output."""

    needs: Literal["reference", "low"]
    reports: tuple[Reported, ...]

    def __init__(self, options: Any, *, scale: int, degradation: str, channels: int) -> None:
        """``scale`` >= 1 from low to output; ``degradation`` is the recorded filter; raises BadInput for channels it cannot judge."""
        ...

    def values(self, output: Tensor, *, reference: Tensor | None, low: Tensor | None) -> Mapping[str, list[float]]:
        """Per image, by the names of ``reports``. ``output`` and ``reference`` (N, C, H, W), ``low`` (N, C, h, w): float32 in
        [0, 1], multiples of 1/255, or of 1/65535 for images of 16 bits (see ``quantised``)."""
        ...


def make(name: str, options: Mapping[str, Any], *, scale: int, degradation: str, channels: int = 3) -> Metric:
    """The metric plug-in ``name`` with its validated options."""
    module = plugins.load("metrics", name)
    section: type[Section] = module.Options
    return module.Metric(config.options(section, options, name), scale=scale, degradation=degradation, channels=channels)


def quantised(prediction: Tensor, bits: int = 8) -> Tensor:
    """A prediction in [-1, 1] (any shape) as it would be stored: clipped and rounded to the levels of ``bits`` (8 or 16), as float32 in
    [0, 1], multiples of 1/255 or 1/65535.
    """
    white = images.peak(bits)
    return ((prediction.float().clamp(-1, 1) + 1) * (white / 2)).round() / white


def signed(image: Tensor) -> Tensor:
    """[0, 1] to the model's [-1, 1]."""
    return image * 2 - 1


def luma(rgb: Tensor) -> Tensor:
    """Y of BT.601 in studio range, (N, 1, H, W) in [16/255, 235/255] for RGB (N, 3, H, W) in [0, 1] (ITU-R BT.601, section 2.5.1)."""
    weights = torch.tensor([65.481, 128.553, 24.966], dtype=rgb.dtype, device=rgb.device).view(1, 3, 1, 1)
    return ((rgb * weights).sum(dim=1, keepdim=True) + 16) / LEVELS


def same_shape(output: Tensor, other: Tensor | None, what: str) -> Tensor:
    """``other``, checked to be an image like ``output``; a wrong size would otherwise broadcast into a number."""
    if other is None or other.shape != output.shape:
        got = "none" if other is None else f"{tuple(other.shape)}"
        raise ValueError(f"{what} is {got}, the output is {tuple(output.shape)}")
    return other


def refuse_channels(name: str, channels: int, allowed: Sequence[int]) -> None:
    """Raise BadInput when a metric is defined for other channel counts only."""
    if channels not in allowed:
        listed = " or ".join(str(count) for count in allowed)
        raise BadInput(f"metric {name} with {channels} channels", f"images of {listed} channels", "leave it out of evaluation.metrics")
