"""The box filter by a power of two, in integers. numpy alone."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

FACTORS = {2: 2, 4: 4, 8: 6, 16: 8}  # pixels a side of a block -> log2 of how many it has

Array = NDArray[Any]


def mean_of_blocks(array: Array, factor: int) -> Array:
    """The mean of each ``factor`` x ``factor`` block of (H, W, C) uint8 or uint16, a half rounded to even as numpy's rint does.

    ``factor`` is one of FACTORS and divides H and W. Such means are exact in float32 as well, so a box filter gives the same values.
    """
    height, width, channels = array.shape[0] // factor, array.shape[1] // factor, array.shape[2]
    wide = np.uint16 if array.dtype == np.uint8 else np.uint32  # holds 256 x the largest value, and a half of it
    rows = array[::factor].astype(wide)
    for row in range(1, factor):
        rows += array[row::factor]
    sums = rows.reshape(height, -1)
    reach = channels
    while reach < factor * channels:  # each place becomes the sum of twice as many pixels to its right: long loops, unlike one a block
        sums = sums[:, :-reach] + sums[:, reach:]
        reach *= 2
    total = np.empty((height, width, channels), wide)
    for channel in range(channels):
        total[:, :, channel] = sums[:, channel :: factor * channels]
    shift = FACTORS[factor]
    total += (total >> shift & 1) + wide(factor * factor // 2 - 1)
    total >>= shift
    return total.astype(array.dtype)
