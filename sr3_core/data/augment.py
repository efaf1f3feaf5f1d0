"""One training pair of a photo: where it is cut, how it is turned and coloured, what its low image is. Every draw is by sample index.

Legend: C channels, H x W pixels of ``high``, h x w of ``low`` (H / scale); uint8 or uint16 arrays.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sr3_core import images, seeds
from sr3_core.artifacts.shardset import ShardSet
from sr3_core.config import Augment, Stage
from sr3_core.data import degrade

Pixels = NDArray[Any]

_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


def pair(shards: ShardSet, split: str, sample: int, *, stage: Stage, index: int) -> tuple[Pixels, Pixels | None]:
    """(crop, crop, C) of the sample and its low image (None for an unconditional stage), by the draws of global sample ``index``.

    Without zoom a random crop of the ``high`` level, aligned to the scale, with the same crop of the stored ``low`` level. With
    ``augment.zoom`` z > 1 a square of the largest stored level whose side is log-uniform in [crop, z * crop] (at most that level),
    brought to the crop's size by area averaging, with ``low`` made from it by the data's degradation, rounded as a stored low image is.
    With ``data.corruption``, for a stage from the lowest level, ``low`` is always made from ``high``: blurred, resized, with noise, as
    JPEG, by draws of its own index.
    """
    training = stage.training
    augment, crop = training.augment, training.crop or stage.high
    # All are always drawn, so that turning one option on does not move the others.
    zoom, top, left, flip, turn, *colours = seeds.generator(training.seed, "augment", index).random(8)
    if augment.zoom > 1:
        high, low = _zoomed(shards, split, sample, crop=crop, zoom=augment.zoom, draws=(zoom, top, left)), None
    else:
        high, low = _cropped(shards, split, sample, stage=stage, crop=crop, draws=(top, left))
    high, low = coloured(high, low, augment, colours, filter=shards.data.degradation)
    if stage.low is not None:
        size = (crop // stage.scale, crop // stage.scale)
        if shards.data.corruption is not None and stage.low == shards.data.levels[0]:
            random = seeds.generator(training.seed, "degrade", index)
            low, _ = degrade.corrupted(high, size, shards.data.degradation, shards.data.corruption, random)
        elif low is None:
            low = images.resize(high, size, shards.data.degradation)
    turns, flips = int(turn * 4) if augment.rotate90 else 0, augment.flip and flip < 0.5
    return _turned(high, turns, flips=flips), None if low is None else _turned(low, turns, flips=flips)


def colour_map(augment: Augment, draws: list[float], channels: int) -> tuple[NDArray[np.float32], float] | None:
    """(matrix (C, C), offset) of the drawn change, for values in 0..1: ``pixel @ matrix.T + offset``; None when every option is off.

    Brightness multiplies by 1 +- b, contrast by 1 +- c around middle grey, saturation by 1 +- s around the pixel's luma; uniform, in
    this order. ``draws`` are three numbers in [0, 1).
    """
    amounts = (augment.brightness, augment.contrast, augment.saturation)
    if not any(amounts):
        return None
    brightness, contrast, saturation = (1 + amount * (2 * draw - 1) for amount, draw in zip(amounts, draws, strict=True))
    matrix = np.eye(channels) * brightness * contrast
    if augment.saturation:
        matrix = (saturation * np.eye(channels) + (1 - saturation) * np.tile(_LUMA, (channels, 1))) @ matrix
    return matrix.astype(np.float32), 0.5 * (1 - contrast)  # a grey offset is its own luma: saturation leaves it


def coloured(
    high: Pixels, low: Pixels | None, augment: Augment, draws: list[float], *, filter: images.Filter
) -> tuple[Pixels, Pixels | None]:
    """Both images under one colour change, so that ``low`` stays what ``filter`` makes of ``high``, up to rounding.

    The change is affine, so it may be made before or after a linear resize. What is clipped in ``high`` is not affine: the resized part
    that was clipped away is taken out of ``low`` too.
    """
    change = colour_map(augment, draws, high.shape[2])
    if change is None:
        return high, low
    full = np.iinfo(high.dtype).max
    moved = _changed(high, change, full)
    kept = np.clip(moved, 0, full)
    new_high = np.rint(kept).astype(high.dtype)
    if low is None:
        return new_high, None
    moved_low = _changed(low, change, full)
    lost = moved - kept
    if lost.any():
        moved_low -= images.resize(lost, (low.shape[0], low.shape[1]), filter)
    return new_high, np.rint(np.clip(moved_low, 0, full)).astype(low.dtype)


def _changed(pixels: Pixels, change: tuple[NDArray[np.float32], float], full: int) -> NDArray[np.float32]:
    matrix, offset = change
    return np.asarray(pixels.astype(np.float32) @ matrix.T + np.float32(offset * full), np.float32)


def _cropped(
    shards: ShardSet, split: str, sample: int, *, stage: Stage, crop: int, draws: tuple[float, float]
) -> tuple[Pixels, Pixels | None]:
    scale = stage.scale
    height, width = shards.size(split, sample, stage.high)
    row, column = (scale * _place(draw, (side - crop) // scale) for draw, side in zip(draws, (height, width), strict=True))
    high = shards.rows(split, sample, stage.high, row, row + crop, then=stage.low)[:, column : column + crop]
    if stage.low is None:
        return high, None
    row, column, side = row // scale, column // scale, crop // scale
    return high, shards.rows(split, sample, stage.low, row, row + side)[:, column : column + side]


def _zoomed(shards: ShardSet, split: str, sample: int, *, crop: int, zoom: float, draws: tuple[float, float, float]) -> Pixels:
    level = max(shards.sample(split, sample).members)
    height, width = shards.size(split, sample, level)
    stored = min(height, width)
    widest = min(zoom, stored / crop)
    side = min(round(crop * widest ** draws[0]), stored)
    row, column = _place(draws[1], height - side), _place(draws[2], width - side)
    square = shards.rows(split, sample, level, row, row + side)[:, column : column + side]
    return images.resize(square, (crop, crop), "box")


def _place(draw: float, room: int) -> int:
    """An offset in 0 .. ``room``, each as likely, from ``draw`` in [0, 1)."""
    return int(draw * (room + 1))


def _turned(pixels: Pixels, turns: int, *, flips: bool) -> Pixels:
    turned = np.rot90(pixels, turns)
    return turned[:, ::-1] if flips else turned
