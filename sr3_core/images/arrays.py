"""Pixels as arrays: H x W x C, of 8 bits (uint8) or 16 (uint16), and as float32 C x H x W in [-1, 1]."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Bits = Literal[8, 16]
Array = NDArray[Any]


def peak(bits: int) -> int:
    """White: 255 or 65535."""
    return 2**bits - 1


def bits_of(array: Array) -> Bits:
    """8 for uint8, 16 for uint16. Raises ValueError for other types."""
    if array.dtype.name not in ("uint8", "uint16"):
        raise ValueError(f"an image of {array.dtype}; allowed: uint8 and uint16")
    return 8 if array.dtype == np.uint8 else 16


def to_unit(array: Array) -> NDArray[np.float32]:
    """(H, W, C) uint8 or uint16 -> (C, H, W) float32: 0 -> -1, white -> 1."""
    half = np.float32(peak(bits_of(array)) / 2)
    return np.ascontiguousarray(array.transpose(2, 0, 1), dtype=np.float32) / half - np.float32(1)


def batch_to_unit(arrays: Sequence[Array]) -> NDArray[np.float32]:
    """Equal (H, W, C) of uint8 or uint16 -> (N, C, H, W) float32, each as ``to_unit`` gives it, without a copy between."""
    height, width, channels = arrays[0].shape
    half = np.float32(peak(bits_of(arrays[0])) / 2)
    batch = np.empty((len(arrays), channels, height, width), np.float32)
    for target, array in zip(batch, arrays, strict=True):
        np.copyto(target, array.transpose(2, 0, 1))
    batch /= half
    batch -= np.float32(1)
    return batch


def from_unit(array: NDArray[np.float32], *, bits: int = 8) -> Array:
    """(C, H, W) float32 -> (H, W, C) uint8 or, for 16 ``bits``, uint16, rounded and clipped; the inverse of ``to_unit``.

    Raises ValueError for NaN or infinity.
    """
    if not np.isfinite(array).all():
        raise ValueError("the image holds NaN or infinity")
    levels = np.clip(np.rint((array + 1) * np.float32(peak(bits) / 2)), 0, peak(bits))
    return np.ascontiguousarray(levels.astype(np.uint8 if bits == 8 else np.uint16).transpose(1, 2, 0))


def psnr(image: Array, truth: Array) -> float:
    """dB over all pixels and channels of two arrays of one type; infinity for equal ones."""
    error = float(np.square(image.astype(np.float64) - truth.astype(np.float64)).mean())
    return math.inf if error == 0 else 10 * math.log10(peak(bits_of(truth)) ** 2 / error)


def centre_square(array: Array) -> Array:
    """The largest centred square of (H, W, C), a view; of an odd rest the larger half is cut at the bottom or right."""
    side = min(array.shape[:2])
    top, left = (array.shape[0] - side) // 2, (array.shape[1] - side) // 2
    return array[top : top + side, left : left + side]


def preview(array: Array) -> NDArray[np.uint8]:
    """What a screen shows of (H, W, C): (H, W, 3) uint8 of its first three channels, (H, W, 1) of fewer; 16 bits are rounded to 8."""
    shown = array[:, :, :3] if array.shape[2] >= 3 else array[:, :, :1]
    if shown.dtype == np.uint8:
        return np.ascontiguousarray(shown)
    return np.ascontiguousarray(np.rint(shown / 257).astype(np.uint8))
