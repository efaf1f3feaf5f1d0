"""High to low: which squares are cut from a photo and the image pyramid made of each. Arrays only; no files, no shards."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sr3_core import images
from sr3_core.config import Data

Pixels = NDArray[np.uint8]


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


def crops(height: int, width: int, data: Data) -> list[Crop]:
    """What is cut from a photo: its centre square (``crop``), all of it (``resize``), or every whole top-level tile (``tiles``)."""
    level = top_level(height, width, data)
    if level is None:
        return []
    if data.fit == "resize":
        return [Crop(0, 0, height, width)]
    if data.fit == "crop":
        side = min(height, width)
        return [Crop((height - side) // 2, (width - side) // 2, side, side)]
    rows, columns = height // level, width // level
    top, left = (height - rows * level) // 2, (width - columns * level) // 2
    return [
        Crop(top + row * level, left + column * level, level, level, f"-t{row}x{column}")
        for row in range(rows)
        for column in range(columns)
    ]


def pyramid(photo: Pixels, crop: Crop, data: Data) -> Mapping[int, Pixels]:
    """Level -> (level, level, C) uint8 of one crop of an upright (H, W, C) photo, every level up to the largest it reaches.

    The largest is made from the crop by area averaging; every other one from the next larger level, rounded to uint8, by
    ``data.degradation``, so that each stage of a cascade meets the low image that the stage before it was asked for.
    """
    height, width = photo.shape[:2]
    top = top_level(height, width, data)
    if top is None:
        raise ValueError(f"a photo of {height} x {width} reaches none of the levels {list(data.levels)}")
    cut = photo[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    made: dict[int, Pixels] = {top: images.resize(cut, (top, top), "box")}
    above = top
    for level in reversed([level for level in data.levels if level < top]):
        made[level] = images.resize(made[above], (level, level), data.degradation)
        above = level
    return made
