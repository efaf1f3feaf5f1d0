"""Resizing as Pillow does it, and its operator as a matrix."""

from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sr3_core.images import box
from sr3_core.images.arrays import Array

Filter = Literal["bicubic", "box", "lanczos", "nearest"]
TAP_BITS = 22  # PRECISION_BITS of Pillow's src/libImaging/Resample.c
_FILTERS: dict[str, Image.Resampling] = {
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}


def resize(array: Array, size: tuple[int, int], filter: Filter) -> Array:
    """Resize (H, W, C) uint8, uint16 or float32 to ``size`` = (height, width), antialiased; same dtype and C.

    Computed per channel in float32 (Pillow's mode "F"); integers are rounded and clipped to their range once, at the end. A box by a
    power of two is summed in integers: the same values, several times faster.
    """
    if array.ndim != 3 or array.dtype.name not in ("uint8", "uint16", "float32"):
        raise ValueError(f"cannot resize {array.dtype} of shape {array.shape}; allowed: uint8, uint16 or float32 (H, W, C)")
    if array.shape[:2] == size:
        return array.copy()
    height, width = size
    factor = array.shape[0] // height
    if filter == "box" and factor in box.FACTORS and array.dtype != np.float32 and array.shape[:2] == (factor * height, factor * width):
        return box.mean_of_blocks(array, factor)
    result = np.empty((height, width, array.shape[2]), np.float32)
    for channel in range(array.shape[2]):
        plane = Image.fromarray(np.ascontiguousarray(array[:, :, channel], dtype=np.float32))
        result[:, :, channel] = np.asarray(plane.resize((width, height), _FILTERS[filter]))
    if array.dtype == np.float32:
        return result
    return np.clip(np.rint(result), 0, np.iinfo(array.dtype).max).astype(array.dtype)


@lru_cache(maxsize=64)
def resize_matrix(size_in: int, size_out: int, filter: Filter, *, taps: bool = False) -> NDArray[np.float64]:
    """The operator of ``resize`` along one axis as a (size_out, size_in) float64 matrix, read-only: ``M @ column``.

    The identity pushed through Pillow's mode "F" (float32 weights), so that it is the same operator and not a second one. ``taps``: as
    Pillow has it for pictures of 8 bits, times 2^TAP_BITS and rounded, which is what its mode "I" makes of the identity times that.
    """
    identity = Image.fromarray(np.eye(size_in, dtype=np.int32) << TAP_BITS if taps else np.eye(size_in, dtype=np.float32))
    matrix = np.asarray(identity.resize((size_in, size_out), _FILTERS[filter])).astype(np.float64)
    matrix.setflags(write=False)
    return matrix
