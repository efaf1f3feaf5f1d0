"""How the low image is brought to the high grid before it conditions the network, in training and in prediction alike.

What a network has learnt to read is the upsampling that its training had: weights of other codes need theirs.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from sr3_core import images
from sr3_core.errors import BadInput
from sr3_core.resample import resample

Upsampling = Literal["bicubic", "bicubic_8bit", "bicubic_sharp_clipped"]
CLIPPED: tuple[Upsampling, ...] = ("bicubic_8bit", "bicubic_sharp_clipped")  # what leaves [-1, 1] is cut off


def upsampled(low: Tensor | None, like: Tensor, how: Upsampling) -> Tensor:
    """``low`` (N, C, h, w) in [-1, 1] at the size of ``like`` (N, C, H, W), each item by itself, the same on every device to rounding.

    ``bicubic``: a = -1/2, the operator of ``resample``, not clipped (SR3, section 2.3). ``bicubic_8bit``: a picture of 8 bits resized by
    Pillow, rounded and clipped to 8 bits after each axis, bit for bit; finer values are rounded to 8 bits first (Janspiry's data
    preparation). ``bicubic_sharp_clipped``: a = -3/4, clipped to [-1, 1] (novwaul/SR3: torch's Upsample and a clip).
    Raises BadInput without ``low``.
    """
    if low is None:
        raise BadInput("no low image", "one low image per high image", "check the stage's 'low'")
    size = (like.shape[-2], like.shape[-1])
    if how == "bicubic":
        return resample(low, size, "bicubic")
    if how == "bicubic_8bit":
        return _as_pillow_does(low, size)
    return functional.interpolate(low, size=size, mode="bicubic", align_corners=False).clamp(-1.0, 1.0)


def _as_pillow_does(low: Tensor, size: tuple[int, int]) -> Tensor:
    """Columns first, then rows, in whole numbers below 2^53, which float64 holds whatever the order of summation."""
    half = images.peak(8) / 2
    down, across = (
        torch.tensor(images.resize_matrix(before, after, "bicubic", taps=True), device=low.device)
        for before, after in zip(low.shape[-2:], size, strict=True)
    )
    levels = ((low.double() + 1.0) * half).round().clamp(0, images.peak(8))
    levels = _levels(levels @ across.T)
    levels = _levels(down @ levels)
    return levels.to(low.dtype) / half - 1.0  # in the order of images.to_unit: a level has one value


def _levels(sums: Tensor) -> Tensor:
    one = 2**images.TAP_BITS
    return torch.floor((sums + one // 2) / one).clamp(0, images.peak(8))
