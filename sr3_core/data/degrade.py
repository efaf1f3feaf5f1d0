"""High to low: what is cut from a photo, the image pyramid made of each cut, and corrupted low images. Arrays only; no files, no shards."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sr3_core import images
from sr3_core.config import Corruption, Data

Pixels = NDArray[Any]  # (H, W, C) uint8 or uint16

_BLUR_RADIUS = 3.0  # in standard deviations: .3 % of a Gaussian lies farther out


@dataclass(frozen=True)
class Crop:
    """A rectangle of the upright source photo, in its pixels. ``suffix`` tells the tiles of one photo apart in their keys."""

    top: int
    left: int
    height: int
    width: int
    suffix: str = ""


def top_level(height: int, width: int, data: Data) -> int | None:
    """The largest of ``data.levels`` that the photo's short side reaches; None when it reaches none. Nothing is ever enlarged."""
    reached = [level for level in data.levels if level <= min(height, width)]
    return reached[-1] if reached else None


def level_size(height: int, width: int, level: int, data: Data) -> tuple[int, int]:
    """(height, width) in pixels of a stored ``level`` of a photo of ``height`` x ``width``, which reaches that level.

    A square of the level's side; with fit ``keep`` the photo's own size, cut to whole pixels on every level, is its top level, and the
    others stand to it as the levels do: 480 x 641 of levels 64 and 256 is stored as 480 x 640 and 120 x 160.
    """
    if data.fit != "keep":
        return level, level
    top = top_level(height, width, data)
    if top is None or level > top:
        raise ValueError(f"a photo of {height} x {width} has no level {level}")
    common = math.gcd(*(other for other in data.levels if other <= top))
    unit = top // common
    return height // unit * (level // common), width // unit * (level // common)


def crops(height: int, width: int, data: Data) -> list[Crop]:
    """What is cut from a photo: its centre square (``crop``), all of it (``resize``), whole top-level tiles (``tiles``) or all of it but
    what is no whole pixel of the lowest level (``keep``). Everything that is cut is centred."""
    level = top_level(height, width, data)
    if level is None:
        return []
    if data.fit == "resize":
        return [Crop(0, 0, height, width)]
    if data.fit == "crop":
        side = min(height, width)
        return [_centred(height, width, side, side)]
    if data.fit == "keep":
        return [_centred(height, width, *level_size(height, width, level, data))]
    # the stride is said for the largest level; a photo that reaches a smaller one has tiles that overlap by the same part
    stride = level if data.tiles.stride is None else max(1, round(data.tiles.stride * level / data.levels[-1]))
    rows, columns = (height - level) // stride + 1, (width - level) // stride + 1
    grid = _centred(height, width, (rows - 1) * stride + level, (columns - 1) * stride + level)
    return [
        Crop(grid.top + row * stride, grid.left + column * stride, level, level, f"-t{row}x{column}")
        for row in range(rows)
        for column in range(columns)
    ]


def cut(photo: Pixels, crop: Crop) -> Pixels:
    """The crop of an upright (H, W, C) photo, a view."""
    return photo[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]


def shrink(height: int, width: int, data: Data) -> int:
    """At what part of its size a JPEG may be decoded: 1, or with ``data.decoding`` fast the largest of 2, 4 and 8 at which every pixel
    of the largest level is still the mean of whole blocks of at least 2 x 2: sizes and edges of the cut are divided without a rest."""
    level = data.levels[-1]
    if data.decoding == "exact" or min(height, width) < level:
        return 1
    (crop,) = crops(height, width, data)
    edges, sides = (height, width, crop.top, crop.left), (crop.height, crop.width)

    def fits(factor: int) -> bool:
        return all(edge % factor == 0 for edge in edges) and all(side % (factor * level) == 0 and side > factor * level for side in sides)

    return max(factor for factor in (1, 2, 4, 8) if factor == 1 or fits(factor))


def pyramid(photo: Pixels, crop: Crop, data: Data, *, shrunk: int = 1) -> Mapping[int, Pixels]:
    """Level -> (h, w, C) of one crop of an upright (H, W, C) photo, every level up to the largest it reaches; sizes by ``level_size``.

    ``shrunk``: ``photo`` was decoded at that part of the size that ``crop`` is said for.

    The largest is made from the crop by area averaging; every other one from the next larger level, rounded to integers, by
    ``data.degradation``, so that each stage of a cascade meets the low image that the stage before it was asked for.
    """
    height, width = photo.shape[:2]
    top = top_level(height, width, data)
    if top is None:
        raise ValueError(f"a photo of {height} x {width} reaches none of the levels {list(data.levels)}")
    there = Crop(crop.top // shrunk, crop.left // shrunk, crop.height // shrunk, crop.width // shrunk)
    made: dict[int, Pixels] = {top: images.resize(cut(photo, there), level_size(height, width, top, data), "box")}
    above = top
    for level in reversed([level for level in data.levels if level < top]):
        made[level] = images.resize(made[above], level_size(height, width, level, data), data.degradation)
        above = level
    return made


def detail(pixels: Pixels) -> float:
    """Root mean square of the differences between neighbouring pixels of (H, W, C), in 1/255 of the full range; 0 for one colour."""
    values = pixels.astype(np.float32) * (255 / np.iinfo(pixels.dtype).max)
    squares = [float(np.mean(np.square(np.diff(values, axis=axis)))) for axis in (0, 1) if values.shape[axis] > 1]
    return math.sqrt(sum(squares) / len(squares)) if squares else 0.0


def corrupted(
    high: Pixels, size: tuple[int, int], filter: images.Filter, chain: Corruption, random: np.random.Generator
) -> tuple[Pixels, dict[str, float]]:
    """The low image of ``size`` made of (H, W, C) ``high``, of its dtype, and what was drawn: blur_sigma, noise_level, jpeg_quality.

    Blur, resize by ``filter``, noise, rounding, JPEG; each where ``chain`` has it. Past an edge the blur sees the image mirrored. A pure
    function of its arguments and the state of ``random``.
    """
    draws = random.random(3)  # always all three: turning one option on does not move the others
    full = float(np.iinfo(high.dtype).max)
    image = high.astype(np.float32) * np.float32(255 / full)
    drawn: dict[str, float] = {}
    if chain.blur is not None:
        drawn["blur_sigma"] = _within(chain.blur.sigma, draws[0])
        image = _blurred(image, drawn["blur_sigma"])
    image = images.resize(image, size, filter)
    if chain.noise is not None:
        drawn["noise_level"] = _within(chain.noise.level, draws[1])
        if chain.noise.kind == "gaussian":
            image = image + random.standard_normal(image.shape, dtype=np.float32) * np.float32(drawn["noise_level"])
        elif drawn["noise_level"] > 0:
            white = (255 / drawn["noise_level"]) ** 2  # photons of a white pixel: their deviation is the square root of their number
            image = random.poisson(np.clip(image / 255, 0, 1) * white) * (255 / white)
    low: Pixels = np.clip(np.rint(image * (full / 255)), 0, full).astype(high.dtype)
    if chain.jpeg is not None:
        least, most = (int(end) for end in chain.jpeg.quality)
        quality = min(most, least + int(draws[2] * (most - least + 1)))
        drawn["jpeg_quality"] = float(quality)
        low = images.decode(images.encode(low, "jpeg", quality), channels=low.shape[2])
    return low, drawn


def _centred(height: int, width: int, rows: int, columns: int) -> Crop:
    return Crop((height - rows) // 2, (width - columns) // 2, rows, columns)


def _within(ends: tuple[float, float], draw: float) -> float:
    return ends[0] + (ends[1] - ends[0]) * float(draw)


def _blurred(image: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """(H, W, C) float32 under a Gaussian of ``sigma`` pixels, an axis after the other."""
    radius = math.ceil(_BLUR_RADIUS * sigma)
    if radius == 0:
        return image
    weights = np.exp(-0.5 * np.square(np.arange(-radius, radius + 1) / sigma))
    weights = (weights / weights.sum()).astype(np.float32)
    for axis in (0, 1):
        padded = np.pad(image, [(radius, radius) if other == axis else (0, 0) for other in range(3)], mode="symmetric")
        length = image.shape[axis]
        image = weights[0] * padded.take(range(length), axis)
        for offset, weight in enumerate(weights[1:], start=1):
            image += weight * (padded[offset : offset + length] if axis == 0 else padded[:, offset : offset + length])
    return image
