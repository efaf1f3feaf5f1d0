"""Micro-batches of training pairs read from ShardSets, each a pure function of (seed, first sample index, count).

Legend: N samples, C channels, H x W pixels of ``high``, h x w of ``low`` (H / scale). Randomness is drawn by global sample index,
so the stream is the same for any number of workers and threads and is entered anywhere. Of models only their labels are known here.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sr3_core import images, labels, storage
from sr3_core.artifacts.range_cache import RangeCache
from sr3_core.artifacts.shardset import ShardSet
from sr3_core.config import Scaling, SplitName, Stage
from sr3_core.data import augment, prefetch
from sr3_core.data.order import Mixture
from sr3_core.errors import BadInput

THREADS = 2
PREFETCH_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True)
class Batch:
    """Training pairs. ``sample_index`` are the global sample indices: the seeds of every further draw (noise level, noise, dropout)."""

    high: Tensor  # (N, C, H, W) float32 in [-1, 1]
    low: Tensor | None  # (N, C, h, w) float32 in [-1, 1] at its native size; None for an unconditional stage
    sample_index: NDArray[np.int64]  # (N,) on the host
    keys: tuple[str, ...]  # the samples' keys, N of them
    labels: Tensor | None = None  # (N,) int64; None for a set without labels

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Batch":
        """The same batch with its tensors on ``device``; ``non_blocking``: pinned ones are perhaps still on their way."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pinned(self) -> "Batch":
        """The same batch with its tensors in host memory that a GPU reads by itself."""
        return self._with(lambda tensor: tensor.pin_memory())

    def tensors(self) -> list[Tensor]:
        """Those that there are."""
        return [tensor for tensor in (self.high, self.low, self.labels) if tensor is not None]

    def _with(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        others = {name: None if value is None else change(value) for name, value in (("low", self.low), ("labels", self.labels))}
        return replace(self, high=change(self.high), **others)


class MicroBatches:
    """The training stream of one stage: ``batch`` by global sample index, ``prefetch`` the same from background threads.

    Samples without the stage's ``high`` (or ``low``) level are left out. What a pair is, ``augment.pair`` says. Of several ShardSets
    each ``data.order.Mixture`` gives the next sample; one alone is read in its own order. Decoded images are kept by the ShardSet, as
    many as its ``cache_bytes`` allow.
    """

    def __init__(
        self,
        shards: ShardSet | Sequence[tuple[ShardSet, int]],
        stage: Stage,
        *,
        split: SplitName = "train",
        threads: int = THREADS,
        prefetch_bytes: int = PREFETCH_BYTES,
    ) -> None:
        """``shards``: one set, or several with whole weights, as ``[(photos, 3), (faces, 1)]``. ``threads`` make batches, at most
        ``prefetch_bytes`` of them ahead.

        Raises BadInput when the sets cannot serve ``stage``: no sample with its levels, other channels, other bits or another
        degradation than the first set's, labels on a part only or not those of the stage's network, colour changes for other channels than
        theirs, and for training photos of another set that the first one holds out.
        """
        weighted = [(shards, 1)] if isinstance(shards, ShardSet) else list(shards)
        self.shards, self.stage, self.split = weighted[0][0], stage, split
        self.crop = stage.training.crop or stage.high
        self.threads, self.prefetch_bytes = threads, prefetch_bytes
        self.sets = [part for part, _ in weighted]
        for other in self.sets[1:]:
            _refuse_unlike(self.sets[0], other)
            if split == "train":
                _refuse_held_out(self.sets[0], other)
        if stage.training.augment.saturation and stage.channels != 3:
            got = f"augment.saturation for {stage.channels} channels"
            raise BadInput(got, "3 channels", "set training.augment.saturation=0")
        self._samples = [_usable(part, stage, split) for part in self.sets]
        self._labels = _labels(self.sets, split, self._samples)
        for part, (other, samples) in enumerate(zip(self.sets, self._samples, strict=True)):
            found = [None] * len(samples) if self._labels is None else self._labels[part]
            labels.check_samples(stage, found, f"split {split} of {other.uri}")
        try:
            self._order = Mixture([len(samples) for samples in self._samples], [weight for _, weight in weighted], stage.training.seed)
        except ValueError as error:
            raise BadInput(f"stage {stage.name}: {error}", "whole weights", "change training.mix") from None

    @property
    def num_samples(self) -> int:
        """How many different photos there are."""
        return sum(map(len, self._samples))

    def batch(self, first_index: int, count: int) -> Batch:
        """Samples ``first_index`` .. ``first_index + count - 1`` of the stream; the same whatever was read before."""
        if count < 1:
            raise ValueError(f"count={count}; allowed: at least 1")
        indices = range(first_index, first_index + count)
        places = [self._order.place(index) for index in indices]
        pairs = [
            augment.pair(self.sets[part], self.split, self._samples[part][sample], stage=self.stage, index=index)
            for (part, sample), index in zip(places, indices, strict=True)
        ]
        lows = [low for _, low in pairs if low is not None]
        known = self._labels
        return Batch(
            high=torch.from_numpy(images.batch_to_unit([high for high, _ in pairs])),
            low=torch.from_numpy(images.batch_to_unit(lows)) if lows else None,
            sample_index=np.arange(first_index, first_index + count, dtype=np.int64),
            keys=tuple(self.sets[part].sample(self.split, self._samples[part][sample]).key for part, sample in places),
            labels=None if known is None else torch.tensor([known[part][sample] for part, sample in places], dtype=torch.int64),
        )

    def prefetch(self, indices: Iterable[tuple[int, int]]) -> Iterator[Batch]:
        """``batch(first_index, count)`` for each pair, in order, made ahead by ``threads`` threads within ``prefetch_bytes``.

        An error in a thread is raised here, in its place in the order. The threads end when the iterator is exhausted or closed.
        """
        return prefetch.ahead(
            indices, lambda pair: self.batch(*pair), cost=self._bytes, max_bytes=self.prefetch_bytes, threads=self.threads
        )

    def _bytes(self, indices: tuple[int, int]) -> int:
        """Of the floats of one batch."""
        low = 0 if self.stage.low is None else (self.crop // self.stage.scale) ** 2
        return 4 * indices[1] * self.stage.channels * (self.crop**2 + low)


def opened(shards_uri: str, stage: Stage, scaling: Scaling) -> MicroBatches:
    """The training stream of ``stage`` on the ShardSet at ``shards_uri`` and those of ``training.mix``, read as ``scaling`` says.

    Raises BadInput as ``ShardSet.open``, ``RangeCache`` and ``MicroBatches`` do.
    """
    mix = stage.training.mix
    weights = [(shards_uri, 1)] if mix is None else [(shards_uri, mix.weight), *((other.shards, other.weight) for other in mix.others)]
    ranges = None
    if scaling.shard_cache is not None and not all(storage.is_local(uri) for uri, _ in weights):
        ranges = RangeCache(scaling.shard_cache, scaling.shard_cache_bytes)
    sets = [(ShardSet.open(uri, ranges=None if storage.is_local(uri) else ranges), weight) for uri, weight in weights]
    return MicroBatches(sets, stage, threads=scaling.loader_threads, prefetch_bytes=scaling.prefetch_bytes)


def _refuse_unlike(first: ShardSet, other: ShardSet) -> None:
    for field in ("bits", "degradation", "corruption"):
        mine, theirs = getattr(first.data, field), getattr(other.data, field)
        if mine != theirs:
            got = f"{field} {theirs} of {other.uri} mixed with {mine} of {first.uri}"
            raise BadInput(got, "sets that agree in it", "prepare one of them again, or leave it out of training.mix")


def _refuse_held_out(first: ShardSet, other: ShardSet) -> None:
    """What the recipe's own set is judged on must not be trained on by way of another: equal files are known by their hash."""
    held = {first.sample(part, index).content_hash: part for part in ("val", "test") for index in range(first.count(part))}
    records = [other.sample("train", index) for index in range(other.count("train"))]
    found = [record for record in records if record.content_hash in held]
    if found:
        record = found[0]
        got = f"{len(found)} training samples of {other.uri}, {record.key} first, held out for {held[record.content_hash]} by {first.uri}"
        raise BadInput(
            got, "sets of which none trains on what another holds out", "prepare it without them, or leave it out of training.mix"
        )


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


def _labels(sets: Sequence[ShardSet], split: SplitName, usable: Sequence[list[int]]) -> list[list[int]] | None:
    """By set and sample; None when none has any."""
    found = [[part.sample(split, sample).label for sample in samples] for part, samples in zip(sets, usable, strict=True)]
    every = [label for part in found for label in part]
    unlabelled = every.count(None)
    if unlabelled == len(every):
        return None
    if unlabelled:
        raise BadInput(f"{unlabelled} of {len(every)} {split} samples have no label", "labels on all samples or on none", "mend the source")
    return [[label for label in part if label is not None] for part in found]
