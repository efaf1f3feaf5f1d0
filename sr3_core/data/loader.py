"""Micro-batches of training pairs read from a ShardSet, each a pure function of (seed, first sample index, count).

Legend: N samples, C channels, H x W pixels of ``high``, h x w of ``low`` (H / scale). Randomness is drawn by global sample index,
so the stream is the same for any number of workers and is entered anywhere. Models and devices are not known here.
"""

import queue
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sr3_core import images, seeds
from sr3_core.artifacts.shardset import ShardSet
from sr3_core.config import SplitName, Stage
from sr3_core.data import degrade
from sr3_core.data.order import Order
from sr3_core.errors import BadInput

PREFETCH_BATCHES = 2
_POLL_SECONDS = 0.1

Pixels = images.Array  # (H, W, C) uint8 or uint16


@dataclass(frozen=True)
class Batch:
    """Training pairs. ``sample_index`` are the global sample indices: the seeds of every further draw (noise level, noise, dropout)."""

    high: Tensor  # (N, C, H, W) float32 in [-1, 1]
    low: Tensor | None  # (N, C, h, w) float32 in [-1, 1] at its native size; None for an unconditional stage
    sample_index: NDArray[np.int64]  # (N,) on the host
    keys: tuple[str, ...]  # the samples' keys, N of them
    labels: Tensor | None = None  # (N,) int64; None for a set without labels

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch with its tensors on ``device``."""
        moved = {name: None if value is None else value.to(device) for name, value in (("low", self.low), ("labels", self.labels))}
        return replace(self, high=self.high.to(device), **moved)


class MicroBatches:
    """The training stream of one stage: ``batch`` by global sample index, ``prefetch`` the same from a background thread.

    Samples without the stage's ``high`` (or ``low``) level are left out. Without zoom a sample is a random crop of the ``high`` level,
    aligned to the scale, with the same crop of the stored ``low`` level. With ``augment.zoom`` z > 1 it is a square of the sample's
    largest stored level whose side is log-uniform in [crop, z * crop] (at most that level), brought to the crop's size by area
    averaging, and ``low`` is made from it by the data's degradation, rounded as a stored low image is. With ``data.corruption``, for a
    stage from the lowest level, ``low`` is always made from ``high``: blurred, resized, with noise, as JPEG, by draws of its own index.
    Decoded images are kept by the ShardSet, as many as its ``cache_bytes`` allow.
    """

    def __init__(self, shards: ShardSet, stage: Stage, *, split: SplitName = "train") -> None:
        """Raises BadInput when ``shards`` cannot serve ``stage``: no sample with its levels, other channels, labels on a part only."""
        self.shards, self.stage, self.split = shards, stage, split
        self.crop = stage.training.crop or stage.high
        self._samples = _usable(shards, stage, split)
        self._labels = _labels(shards, split, self._samples)
        self._corruption = shards.data.corruption if stage.low == shards.data.levels[0] else None
        self._order = Order(len(self._samples), stage.training.seed)

    @property
    def num_samples(self) -> int:
        """How many different photos one epoch holds."""
        return len(self._samples)

    def batch(self, first_index: int, count: int) -> Batch:
        """Samples ``first_index`` .. ``first_index + count - 1`` of the stream; the same whatever was read before."""
        if count < 1:
            raise ValueError(f"count={count}; allowed: at least 1")
        indices = range(first_index, first_index + count)
        samples = [self._order.sample(index) for index in indices]
        pairs = [self._pair(self._samples[sample], index) for sample, index in zip(samples, indices, strict=True)]
        lows = [low for _, low in pairs if low is not None]
        return Batch(
            high=_tensor([high for high, _ in pairs]),
            low=_tensor(lows) if lows else None,
            sample_index=np.arange(first_index, first_index + count, dtype=np.int64),
            keys=tuple(self.shards.sample(self.split, self._samples[sample]).key for sample in samples),
            labels=None if self._labels is None else torch.tensor([self._labels[sample] for sample in samples], dtype=torch.int64),
        )

    def prefetch(self, indices: Iterable[tuple[int, int]]) -> Iterator[Batch]:
        """``batch(first_index, count)`` for each pair, in order, made by one thread that is at most ``PREFETCH_BATCHES`` ahead.

        An error in the thread is raised here, in its place in the order. The thread ends when the iterator is exhausted or closed.
        """
        made: queue.Queue[Batch | _End] = queue.Queue(maxsize=PREFETCH_BATCHES)
        stop = threading.Event()

        def wanted() -> bool:
            # The thread is no daemon (those may die inside native code at exit), so it also ends when the program does.
            return not stop.is_set() and threading.main_thread().is_alive()

        def hand_over(item: "Batch | _End") -> None:
            while wanted():
                try:
                    made.put(item, timeout=_POLL_SECONDS)
                except queue.Full:
                    continue
                return

        def make() -> None:
            try:
                for first_index, count in indices:
                    if not wanted():
                        return
                    hand_over(self.batch(first_index, count))
            except BaseException as error:  # carried over and raised by the reader
                hand_over(_End(error))
            else:
                hand_over(_End(None))

        thread = threading.Thread(target=make, name="sr3-prefetch")
        thread.start()
        try:
            while True:
                item = made.get()
                if isinstance(item, Batch):
                    yield item
                elif item.error is not None:
                    raise item.error
                else:
                    return
        finally:
            stop.set()
            thread.join()

    def _pair(self, sample: int, index: int) -> tuple[Pixels, Pixels | None]:
        """(crop, crop, C) of the sample and its low image, augmented by the draws of global sample ``index``."""
        augment = self.stage.training.augment
        # All five are always drawn, so that turning one option on does not move the others.
        zoom, top, left, flip, turn = seeds.generator(self.stage.training.seed, "augment", index).random(5)
        high, low = self._zoomed(sample, zoom, top, left) if augment.zoom > 1 else self._cropped(sample, top, left)
        if self._corruption is not None and low is not None:
            random = seeds.generator(self.stage.training.seed, "degrade", index)
            low, _ = degrade.corrupted(high, low.shape[:2], self.shards.data.degradation, self._corruption, random)
        turns = int(turn * 4) if augment.rotate90 else 0
        flips = augment.flip and flip < 0.5
        return _turned(high, turns, flips=flips), None if low is None else _turned(low, turns, flips=flips)

    def _cropped(self, sample: int, top: float, left: float) -> tuple[Pixels, Pixels | None]:
        scale = self.stage.scale
        whole = self.shards.image(self.split, sample, self.stage.high)  # a square of ``high``, or larger where photos keep their size
        row, column = (scale * _place(draw, (side - self.crop) // scale) for draw, side in zip((top, left), whole.shape[:2], strict=True))
        high = _square(whole, row, column, self.crop)
        if self.stage.low is None:
            return high, None
        return high, _square(self.shards.image(self.split, sample, self.stage.low), row // scale, column // scale, self.crop // scale)

    def _zoomed(self, sample: int, zoom: float, top: float, left: float) -> tuple[Pixels, Pixels | None]:
        whole = self.shards.image(self.split, sample, max(self.shards.sample(self.split, sample).members))
        stored = min(whole.shape[:2])
        widest = min(self.stage.training.augment.zoom, stored / self.crop)
        side = min(round(self.crop * widest**zoom), stored)
        row, column = (_place(draw, length - side) for draw, length in zip((top, left), whole.shape[:2], strict=True))
        high = _resized(_square(whole, row, column, side), self.crop, "box")
        if self.stage.low is None:
            return high, None
        return high, _resized(high, self.crop // self.stage.scale, self.shards.data.degradation)


@dataclass(frozen=True)
class _End:
    """The last thing a prefetch thread hands over."""

    error: BaseException | None


def _usable(shards: ShardSet, stage: Stage, split: SplitName) -> list[int]:
    """Sample numbers of ``split`` that have the levels of ``stage``."""
    levels = (stage.high,) if stage.low is None else (stage.low, stage.high)
    if stage.channels != shards.data.channels:
        raise BadInput(
            f"stage {stage.name} has {stage.channels} channels", f"the {shards.data.channels} of {shards.uri}", "change stages.channels"
        )
    usable = [sample for sample in range(shards.count(split)) if all(shards.has(split, sample, level) for level in levels)]
    if not usable:
        counts = ", ".join(f"{shards.count(split, level)} of {level} px" for level in shards.data.levels)
        wanted = " and ".join(str(level) for level in levels)
        raise BadInput(
            f"no {split} sample with levels {wanted} for stage {stage.name} ({counts})",
            "at least 1",
            "add larger photos or change data.levels",
        )
    return usable


def _labels(shards: ShardSet, split: SplitName, samples: list[int]) -> list[int] | None:
    labels = [shards.sample(split, sample).label for sample in samples]
    unlabelled = labels.count(None)
    if unlabelled == len(labels):
        return None
    if unlabelled:
        raise BadInput(
            f"{unlabelled} of {len(labels)} {split} samples have no label", "labels on all samples or on none", "mend the source"
        )
    return [label for label in labels if label is not None]


def _place(draw: float, room: int) -> int:
    """An offset in 0 .. ``room``, each as likely, from ``draw`` in [0, 1)."""
    return int(draw * (room + 1))


def _square(pixels: Pixels, row: int, column: int, side: int) -> Pixels:
    return pixels[row : row + side, column : column + side]


def _resized(pixels: Pixels, side: int, filter: images.Filter) -> Pixels:
    return cast(Pixels, images.resize(pixels, (side, side), filter))


def _turned(pixels: Pixels, turns: int, *, flips: bool) -> Pixels:
    turned = np.rot90(pixels, turns)
    return turned[:, ::-1] if flips else turned


def _tensor(pixels: list[Pixels]) -> Tensor:
    return torch.from_numpy(np.stack([images.to_unit(item) for item in pixels]))
