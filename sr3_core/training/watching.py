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
from sr3_core.config import Augment, Stage
from sr3_core.data.loader import Batch, MicroBatches
from sr3_core.metrics import _base as metrics
from sr3_core.training import window
from sr3_core.training.state import TrainState

GAP = 2  # white pixels between the images of a grid
Tell = Callable[[int, dict[str, float], bytes | None], None]


class HeldOut(Protocol):
    """What is looked at: images by their place, the same at every look."""

    def batch(self, first_index: int, count: int) -> Batch: ...


def held_out(shards: ShardSet, stage: Stage) -> MicroBatches:
    """The images that ``stage.training.watch`` names, whole or cropped as in training, not augmented.

    Raises BadInput when the split has none with the stage's levels, and for sampling options that cannot be used.
    """
    watch = stage.training.watch
    if watch is None:
        raise TypeError("held_out needs training.watch")
    plugins.load("objectives", stage.objective.name).Objective(stage, {}).sampling_notes(watch.sampling)
    plain = stage.model_copy(update={"training": stage.training.model_copy(update={"augment": Augment(flip=False)})})
    return MicroBatches(shards, plain, split=watch.split)


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

    def look(self, state: TrainState, objective: Any) -> float:
        """Look, if it is time to, and tell; the seconds it took.

        Metrics: ``validation/...``, those of the objective's loss for ``loss_samples`` images (of an average in ``ema.also``, its name
        behind the slash), and ``validation/psnr_rgb``, the mean over the ``samples`` of an upscaling stage. With ``keep_best``
        ``rated`` are then the images seen and what the weights are worth, higher being better.
        """
        if state.images_seen % self.options.images and state.images_seen != self._stage.training.images:
            return 0.0
        start = time.monotonic()
        found: dict[str, float] = {}
        picture: bytes | None = None
        with _undisturbed(state.players) as device:
            network = copy.deepcopy(state.players[state.exported])
            for name, weights in ({**state.averages, "": state.ema} if self.options.loss_samples else {"": state.ema}).items():
                network.load_state_dict(weights)
                if self.options.loss_samples:
                    losses = self._losses(objective, {**state.players, state.exported: network}, state.exported, device)
                    found |= {f"validation/{name}{'/' if name else ''}{metric}": value for metric, value in losses.items()}
            if self.options.samples:  # the network has the exported average now
                picture = self._samples(objective.predictor(network, degradation=self._degradation), found)
        metric = f"validation/{self.options.best_by}"
        if self.options.keep_best and metric in found:
            self.rated = state.images_seen, found[metric] if self.options.best_by == "psnr_rgb" else -found[metric]
        self._tell(state.images_seen, found, picture)
        return time.monotonic() - start

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
        """A PNG of the samples beside their low and high images, and their PSNR in ``found``; None where an image is not finite."""
        rows: list[list[NDArray[np.uint8]]] = []
        decibels: list[float] = []
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
            if batch.low is not None:
                judge = metrics.make("psnr", {}, scale=self._stage.scale, degradation=self._degradation, channels=self._stage.channels)
                judged = judge.values(metrics.quantised(made), reference=metrics.quantised(batch.high), low=None)
                decibels += judged["psnr_rgb"]
        if decibels:
            found["validation/psnr_rgb"] = sum(decibels) / len(decibels)
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
