"""What can be said of one image's pixels or bytes before any training: softness, repeated pixels, JPEG quality. No files, no PIL.

Luminance is (H, W) float32 in 0..255. Frequencies are in parts of Nyquist's: 1 is a period of two pixels.

The constants were set on the 31 sample photos and checked on 38 others (mvtb and the classics kodim23, monarch, sail, tulips, barbara);
the copies, two to four times larger, were made by Pillow of each photo's centre.
"""

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Luminance = NDArray[np.float32]
Array = NDArray[Any]

MIN_SIDE = 128  # smaller photos have too few frequencies to tell
FLAT_DETAIL = 2.0  # data.degrade.detail below this is a flat image; the softest sample photo has 3.5, their median is 13
TILE = 256
NUM_TILES = 6
GRID = 16  # candidate tiles along a side at most: bounds the work on any size
RINGS = 32

# Steepest fall of the power, as the exponent a of f^-a: natural photos fall by 2 to 4. The narrow window sees a kernel's edge, the wide
# one the same after JPEG filled what is above it. (window's factor, lowest and highest centre, limit)
NARROW = (1.4, 0.15, 0.75, 5.65)
WIDE = (2.2, 0.20, 0.65, 4.75)
NEAR_STEEPEST = 0.9  # where the fall begins: the lowest centre with this part of the steepest
CENTRE_TO_SCALE = 1.1  # of an image enlarged by s that is at about 1.1 / s (medians of 2, 3, 4: 2.0, 2.8, 3.7; after JPEG 2.6, 3.1, 4.0)
MAX_SCALE = 8.0
REPEAT_RATIO = 1.3  # steps between blocks over steps inside them; photos reach 1.18 at JPEG 30, x2 copies start at 1.19 at JPEG 50
CLEAR_REPEAT_RATIO = 2.0  # bicubic x2 has up to 1.7 of it as well
REPEATS = (2, 3, 4)
JPEG_BLOCK = 8
LOW_JPEG_QUALITY = 75

Kind = Literal["smooth", "repeated"]


@dataclass(frozen=True)
class Enlarged:
    """Why an image has fewer details than pixels: ``smooth`` (an interpolated or blurred one) or ``repeated`` pixels.

    ``scale`` is about how many times smaller it could be without loss; ``strength`` what was measured, over its limit: 1 is the limit.
    """

    kind: Kind
    scale: float
    strength: float


def luminance(array: Array) -> Luminance:
    """(H, W, C) uint8 or uint16 -> (H, W) float32 in 0..255: Rec. 601 of three channels, else the mean of all."""
    weights = [0.299, 0.587, 0.114] if array.shape[2] == 3 else [1 / array.shape[2]] * array.shape[2]
    made: Luminance = array.astype(np.float32) @ np.asarray(weights, np.float32)
    return made if array.dtype == np.uint8 else made / np.float32(257)


def enlarged(light: Luminance) -> Enlarged | None:
    """Whether the image was made from fewer pixels (or is as soft as if it were); None when not, or when smaller than ``MIN_SIDE``.

    Found of the copies of the 38 photos, bicubic and Lanczos: 228 of 228 as PNG, 220 at JPEG 85, 215 at JPEG 75, 208 at JPEG 50; with
    repeated pixels 114 of 114, 114, 113, 110. Named of the untouched photos: 0 of 31 and 1 of 38 (tulips, a soft scan). JPEG below
    quality 50 whose grid was moved by a crop may be named: 2 of 31 at quality 30.
    """
    if min(light.shape) < MIN_SIDE:
        return None
    chosen = [light[top : top + side, left : left + side] for top, left, side in detailed_places(light)]
    scale, ratio = repeats(chosen)
    centre, strength = steepest_fall(spectrum(chosen))
    if ratio >= CLEAR_REPEAT_RATIO or (ratio >= REPEAT_RATIO and strength <= 1):
        return Enlarged("repeated", float(scale), ratio / REPEAT_RATIO)
    if strength <= 1:
        return None
    return Enlarged("smooth", min(MAX_SCALE, max(1.5, round(2 * CENTRE_TO_SCALE / centre) / 2)), strength)


def detailed_places(light: Luminance) -> list[tuple[int, int, int]]:
    """(top, left, side) of up to ``NUM_TILES`` squares with the largest differences between neighbouring pixels, largest first.

    Sides are a power of two, at most ``TILE``.
    """
    side = min(TILE, 1 << (min(light.shape).bit_length() - 1))
    found: list[tuple[float, int, int]] = []
    for top, left in itertools.product(*(_starts(length, side) for length in light.shape)):
        tile = light[top : top + side, left : left + side]
        found.append((float(np.abs(np.diff(tile, axis=0)).mean() + np.abs(np.diff(tile, axis=1)).mean()), top, left))
    found.sort(key=lambda item: (-item[0], item[1], item[2]))
    return [(top, left, side) for _, top, left in found[:NUM_TILES]]


def spectrum(tiles: list[Luminance]) -> NDArray[np.float64]:
    """(RINGS,) log10 of the power by radial frequency, ring k from k / RINGS to (k + 1) / RINGS.

    Medians within a ring and over tiles: JPEG's grid and straight edges are lines in the plane of frequencies and do not count.
    """
    made: list[NDArray[np.float64]] = []
    for tile in tiles:
        window = np.hanning(tile.shape[0] + 2)[1:-1]
        power = np.abs(np.fft.rfft2((tile - tile.mean()) * window[:, None] * window)) ** 2 / np.square(window).sum() ** 2
        flat = np.log10(power.ravel() + 1e-9)
        made.append(np.array([np.median(flat[ring]) for ring in _rings(tile.shape[0])]))
    return np.median(made, axis=0)


def steepest_fall(rings: NDArray[np.float64]) -> tuple[float, float]:
    """(frequency where the steepest fall begins, by the narrow window; its exponent over the limit, by the stronger of the two)."""
    frequencies = (np.arange(RINGS) + 0.5) / RINGS
    logs = np.log10(frequencies)
    begins: list[float] = []
    strengths: list[float] = []
    for factor, low, high, limit in (NARROW, WIDE):
        falls: list[tuple[float, float]] = []
        for centre in np.linspace(low, high, 25):
            inside = (frequencies >= centre / factor) & (frequencies <= min(centre * factor, 1))
            falls.append((-float(np.polyfit(logs[inside], rings[inside], 1)[0]) / limit, float(centre)))
        strengths.append(max(falls)[0])
        begins.append(next(centre for strength, centre in falls if strength >= NEAR_STEEPEST * strengths[-1] or strengths[-1] <= 0))
    return begins[0], max(strengths)


def repeats(tiles: list[Luminance]) -> tuple[int, float]:
    """(s, steps between blocks of s equal pixels over steps inside them); the ratio is about 1 for an image without such blocks.

    Along rows and along columns, the smaller counts. Steps at JPEG's own grid are left out.
    """
    ratios = {period: float(np.median([min(_period(tile, period), _period(tile.T, period)) for tile in tiles])) for period in REPEATS}
    scale = max(ratios, key=lambda period: (ratios[period], period))  # blocks of 4 are blocks of 2 as well, but less clearly
    return scale, ratios[scale]


def jpeg_quality(data: bytes) -> int | None:
    """The quality 1..100 that libjpeg would have been asked for, by the file's first quantisation table; None for what is no JPEG."""
    table = _quantisation(data)
    if table is None:
        return None
    clear = [(value, standard) for value, standard in zip(table, _STANDARD, strict=True) if 1 < value < 255]
    if not clear:
        return 100 if max(table) == 1 else 1
    percent = 100 * sum(value for value, _ in clear) / sum(standard for _, standard in clear)
    return max(1, min(100, round((200 - percent) / 2 if percent <= 100 else 5000 / percent)))


_STANDARD = (  # JPEG (ITU-T T.81) annex K.1, luminance, in the zigzag order of the file
    16, 11, 12, 14, 12, 10, 16, 14, 13, 14, 18, 17, 16, 19, 24, 40, 26, 24, 22, 22, 24, 49, 35, 37, 29, 40, 58, 51, 61, 60, 57, 51,
    56, 55, 64, 72, 92, 78, 64, 68, 87, 69, 55, 56, 80, 109, 81, 87, 95, 98, 103, 104, 103, 62, 77, 113, 121, 112, 100, 120, 92, 101, 103,
    99,
)  # fmt: skip


def _quantisation(data: bytes) -> list[int] | None:
    """Table 0 of a JPEG file, 64 values in file order; None when there is none before the picture's data."""
    if not data.startswith(b"\xff\xd8"):
        return None
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
        if marker == 0xDA or length < 2:
            return None
        if marker == 0xDB:
            segment = data[at + 4 : at + 2 + length]
            while segment:
                width = 2 if segment[0] >> 4 else 1
                values, number = segment[1 : 1 + 64 * width], segment[0] & 15
                if len(values) < 64 * width:
                    return None
                if number == 0:
                    return [int.from_bytes(values[start : start + width]) for start in range(0, 64 * width, width)]
                segment = segment[1 + 64 * width :]
        at += 2 + length
    return None


def _starts(length: int, side: int) -> list[int]:
    count = min(GRID, math.ceil(length / side))
    return sorted({round(index * (length - side) / max(1, count - 1)) for index in range(count)})


@lru_cache(maxsize=4)
def _rings(side: int) -> list[NDArray[np.int64]]:
    """Places of each ring in the raveled half plane of ``rfft2`` of a (side, side) tile."""
    radius = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)) * 2 * RINGS
    return [np.flatnonzero((radius >= ring) & (radius < ring + 1)) for ring in range(RINGS)]


def _period(tile: Luminance, period: int) -> float:
    steps = np.abs(np.diff(tile, axis=1)).mean(axis=0)
    columns = np.arange(steps.size)
    best = 0.0
    for phase in range(period):
        between = columns % period == phase
        off_grid = columns % JPEG_BLOCK != JPEG_BLOCK - 1
        inside, across = steps[off_grid & ~between], steps[off_grid & between]
        best = max(best, float(across.mean()) / (float(inside.mean()) + 0.05))  # 0.05: no division by the nothing of a flat tile
    return best
