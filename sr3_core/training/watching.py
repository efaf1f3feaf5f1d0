"""Looking at held-out images while a stage trains: a grid of samples, and losses, by the averaged weights. Nothing here is trained.

Legend: N images, C channels, H x W pixels of ``high``, h x w of ``low``. A look is a function of the weights alone: crops, noise levels
and noise are drawn by the image's place in the split, and the random state of training is left as it was.
"""

import copy
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sr3_core import config, images, plugins
from sr3_core.artifacts.shardset import ShardSet
from sr3_core.config import Augment, Plugin, Stage
from sr3_core.data.loader import Batch, MicroBatches
from sr3_core.errors import BadInput
from sr3_core.metrics import _base as metrics
from sr3_core.training import window
from sr3_core.training.state import CheckpointStore, TrainState

GAP = 2  # white pixels between the images of a grid
Tell = Callable[[int, dict[str, float], bytes | None], None]


class HeldOut(Protocol):
    """What is looked at: images by their place, the same at every look."""

    def batch(self, first_index: int, count: int) -> Batch: ...


def held_out(shards: ShardSet, stage: Stage) -> MicroBatches:
    """The images that ``stage.training.watch`` names, whole or cropped as in training, not augmented.

    Raises BadInput when the split has none with the stage's levels, for sampling options that cannot be used, and as ``judges``.
    """
    watch = stage.training.watch
    if watch is None:
        raise TypeError("held_out needs training.watch")
    plugins.load("objectives", stage.objective.name).Objective(stage, {}).sampling_notes(watch.sampling)
    judges(stage, degradation=shards.data.degradation)
    plain = stage.model_copy(update={"training": stage.training.model_copy(update={"augment": Augment(flip=False)})})
    return MicroBatches(shards, plain, split=watch.split)


def judges(stage: Stage, *, degradation: str) -> list[tuple[metrics.Metric, tuple[str, ...]]]:
    """What judges the samples of ``training.watch``, and the names that are told of each: PSNR over all channels, and ``watch.metrics``.

    Raises BadInput for metrics that are not there, that have no weights here, or that cannot judge the stage's crops.
    """
    watch = stage.training.watch
    if watch is None:
        raise TypeError("judges needs training.watch")
    if stage.low is None:
        if watch.metrics:
            got = f"stage {stage.name}: training.watch.metrics without a low image: the samples have nothing to be held against"
            raise BadInput(got, "none", "take watch.metrics out")
        return []
    found: list[tuple[metrics.Metric, tuple[str, ...]]] = []
    side = stage.training.crop or stage.high
    blank, low = torch.zeros(1, stage.channels, side, side), torch.zeros(1, stage.channels, side // stage.scale, side // stage.scale)
    for plugin in (Plugin(name="psnr"), *watch.metrics):
        judge = metrics.make(plugin.name, plugin.options, scale=stage.scale, degradation=degradation, channels=stage.channels)
        try:
            judge.values(blank, reference=blank, low=low)
        except ValueError as error:
            got = f"stage {stage.name}: training.watch.metrics {plugin.name} on crops of {side} px ({error})"
            raise BadInput(got, "a metric that can judge them", "take it out, or train on larger crops") from None
        found.append((judge, ("psnr_rgb",) if not found else tuple(each.name for each in judge.reports)))
    return found


class Watcher:
    """Looks every ``training.watch.images``; ``tell`` (images seen, metrics, PNG or None) hears what was seen.

    A look that a kill cuts off is not made up for.
    """

    def __init__(self, stage: Stage, batches: HeldOut, *, degradation: str, tell: Tell) -> None:
        """``degradation``: the filter that made the low images."""
        if stage.training.watch is None:
            raise TypeError("a Watcher needs training.watch")
        self.options: config.Watch = stage.training.watch
        self._stage, self._batches, self._degradation, self._tell = stage, batches, degradation, tell
        self.rated: tuple[int, float] | None = None
        self._judges = judges(stage, degradation=degradation) if self.options.samples else []

    def owes_rating(self, state: TrainState, checkpoints: CheckpointStore) -> bool:
        """Whether the checkpoint that ``state`` was loaded from is one to be rated and is not: the run ended before it was looked at."""
        due = self.options.keep_best > 0 and state.images_seen > 0 and self._is_time(state)
        return due and state.images_seen not in checkpoints.scores()

    def look(self, state: TrainState, objective: Any) -> float:
        """Look, if it is time to, and tell; the seconds it took.

        Metrics: ``validation/...``, those of the objective's loss for ``loss_samples`` images, and of an upscaling stage the means of
        ``psnr_rgb`` and ``watch.metrics`` over the ``samples``; of an average in ``ema.also`` its name stands behind the slash. An average
        with a sample that is not finite has none of the latter.
        With ``keep_best`` ``rated`` are then the images seen and what the weights are worth, higher being better.
        """
        if not self._is_time(state):
            return 0.0
        start = time.monotonic()
        found: dict[str, float] = {}
        picture: bytes | None = None
        with _undisturbed(state.players) as device:
            network = copy.deepcopy(state.players[state.exported])
            for name, weights in {**state.averages, "": state.ema}.items():
                network.load_state_dict(weights)
                seen: dict[str, float] = {}
                if self.options.loss_samples:
                    seen |= self._losses(objective, {**state.players, state.exported: network}, state.exported, device)
                if self.options.samples:
                    predictor = objective.predictor(network, degradation=self._degradation)
                    picture = self._samples(predictor, seen)  # the last one is that of the exported average
                found |= {f"validation/{name}{'/' if name else ''}{metric}": value for metric, value in seen.items()}
        metric = f"validation/{self.options.best_by}"
        if self.options.keep_best and metric in found:
            self.rated = state.images_seen, found[metric] if self.options.best_by == "psnr_rgb" else -found[metric]
        self._tell(state.images_seen, found, picture)
        return time.monotonic() - start

    def _is_time(self, state: TrainState) -> bool:
        return state.images_seen % self.options.images == 0 or state.images_seen == self._stage.training.images

    def _losses(self, objective: Any, players: Mapping[str, nn.Module], turn: str, device: torch.device) -> dict[str, float]:
        total: window.Window = {}
        with torch.no_grad():
            for batch in self._micro_batches(self.options.loss_samples):
                loss, found = objective.loss(turn, players, batch.to(device))
                n = len(batch.keys)
                means = {**{name: v for name, v in found.items() if not isinstance(v, tuple)}, "loss": float(loss)}
                pairs = {name: v for name, v in found.items() if isinstance(v, tuple)}
                window.add(total, window.flat({**{name: (value * n, n) for name, value in means.items()}, **pairs}))
        return window.means(total)

    def _samples(self, predictor: Any, found: dict[str, float]) -> bytes | None:
        """A PNG of the samples beside their low and high images, and their metrics in ``found``; None where an image is not finite."""
        rows: list[list[NDArray[np.uint8]]] = []
        judged: dict[str, list[float]] = {}
        for batch in self._micro_batches(self.options.samples):
            given = {"seeds": batch.sample_index, "size": tuple(batch.high.shape[-2:]), "labels": batch.labels}
            made: Tensor = predictor.predict(batch.low, **given, **self.options.sampling).float().cpu()
            if not bool(torch.isfinite(made).all()):
                return None
            for index in range(len(batch.keys)):
                sample, truth = _pixels(made[index]), _pixels(batch.high[index])
                if batch.low is None:
                    rows.append([sample])
                else:
                    low = images.resize(_pixels(batch.low[index]), (truth.shape[0], truth.shape[1]), "bicubic")
                    rows.append([low, sample, truth])
            if batch.low is None:
                continue
            output, truths, lows = (metrics.quantised(each) for each in (made, batch.high, batch.low))
            for judge, names in self._judges:
                values = judge.values(output, reference=truths, low=lows)
                for name in names:
                    judged.setdefault(name, []).extend(values[name])
        found.update({name: sum(values) / len(values) for name, values in judged.items()})
        return images.encode(grid(rows))

    def _micro_batches(self, count: int) -> Iterator[Batch]:
        size = self._stage.training.micro_batch
        for first in range(0, count, size):
            yield self._batches.batch(first, min(size, count - first))


def grid(rows: Sequence[Sequence[NDArray[np.uint8]]]) -> NDArray[np.uint8]:
    """Rows of images (H, W, 1 or 3), all of one size, as one with ``GAP`` white pixels between; rows of one are set in a square."""
    if len(rows[0]) == 1:
        side = math.ceil(math.sqrt(len(rows)))
        tiles = [row[0] for row in rows]
        tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % side)
        rows = [tiles[start : start + side] for start in range(0, len(tiles), side)]
    high, wide, channels = rows[0][0].shape
    whole = np.full((len(rows) * (high + GAP) - GAP, len(rows[0]) * (wide + GAP) - GAP, channels), 255, np.uint8)
    for down, row in enumerate(rows):
        for across, tile in enumerate(row):
            top, left = down * (high + GAP), across * (wide + GAP)
            whole[top : top + high, left : left + wide] = tile
    return whole


def _pixels(image: Tensor) -> NDArray[np.uint8]:
    """(C, H, W) in [-1, 1] -> (H, W, 1 or 3) as a screen shows it."""
    return images.preview(images.from_unit(image.numpy()))


@contextmanager
def _undisturbed(players: Mapping[str, nn.Module]) -> Generator[torch.device, None, None]:
    """Every player in evaluation mode and the generators kept; afterwards all is as it was. Gives the players' device."""
    device = next(parameter.device for player in players.values() for parameter in player.parameters())
    modes = [(module, module.training) for player in players.values() for module in player.modules()]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for player in players.values():
            player.eval()
        try:
            yield device
        finally:
            for module, training in modes:
                module.training = training
