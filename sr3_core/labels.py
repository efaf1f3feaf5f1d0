"""Class labels of a conditional network: how many it knows, what data and callers may give it, and their dropout in training.

A label is a whole number 0 .. count - 1; as a tensor (N,) int64 it is ``NONE`` where a sample has none. A network is told labels when its
plug-in's ``Options`` have ``labels`` above 0; every other network leaves them alone.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sr3_core import config, plugins
from sr3_core.config import Stage
from sr3_core.errors import BadInput
from sr3_core.seeds import generator

NONE = -1
PURPOSE = "label dropout"


@dataclass(frozen=True)
class Labels:
    """What networks know: labels 0 .. ``count`` - 1 (0: they are told none); ``optional``: trained without a label now and then."""

    count: int
    optional: bool

    @property
    def allowed(self) -> str:
        """``0 .. 9``, for a message."""
        return f"0 .. {self.count - 1}" + (", or none" if self.optional else "")

    @property
    def option(self) -> str:
        """What a command line that makes images needs at its end: `` --label 0``, nothing for networks that are told none."""
        return " --label 0" if self.count else ""

    def check(self, label: int | None, whose: str) -> None:
        """BadInput when ``whose`` networks cannot be given ``label`` (None: no label)."""
        if label is None and self.count and not self.optional:
            got = f"no label for {whose}, trained with a label on every image"
            raise BadInput(got, self.allowed, "give a label (sr3: --label)")
        if label is not None and not self.count:
            raise BadInput(f"label {label} for {whose}, trained without labels", "no label", "leave the label out, or take another model")
        if label is not None and not 0 <= label < self.count:
            raise BadInput(f"label {label} for {whose}", self.allowed, "give another label")


def of(*stages: Stage) -> Labels:
    """What the networks of ``stages`` that are told labels know in common; a count of 0 when there is none among them."""
    every = [_of(stage) for stage in stages]
    told = [known for known in every if known.count]
    return Labels(min((known.count for known in told), default=0), all(known.optional for known in told))


def check_samples(stage: Stage, found: Collection[int | None], where: str) -> None:
    """BadInput when the stage's network is told labels and those ``found`` ``where``, one for each sample, are not all among them."""
    count = of(stage).count
    if not count:
        return
    asks = f"stage {stage.name} with {count} labels"
    missing = sum(label is None for label in found)
    if missing:
        got = f"{missing} of {len(found)} samples of {where} have no label, for {asks}"
        raise BadInput(got, "a label on every sample", "take labelled data, or set the model's option labels=0")
    known = [label for label in found if label is not None]
    if not known:
        return
    wrong = min(known) if min(known) < 0 else max(known)
    if not 0 <= wrong < count:
        do = f"set the model's option labels={wrong + 1}" if wrong > 0 else "mend the source"
        raise BadInput(f"label {wrong} of {where}, for {asks}", f"0 .. {count - 1}", do)


def tensor(label: int | None) -> Tensor | None:
    """The labels of a batch of one image; None for no label."""
    return None if label is None else torch.tensor([label], dtype=torch.int64)


def checked(stage: Stage, labels: Tensor | None, *, count: int) -> Tensor | None:
    """``labels`` (``count``,) int64 as the stage's network may be given them; None where it is told none. Raises BadInput for others."""
    known = of(stage)
    whose = f"stage {stage.name}"
    if not known.count or labels is None:
        known.check(None, whose)
        return None
    if labels.shape != (count,) or labels.dtype != torch.int64:
        raise BadInput(f"labels of {labels.dtype} {tuple(labels.shape)} for {whose}", f"int64 ({count},)", "give one label for each image")
    for label in sorted({int(label) for label in labels}):
        known.check(None if label == NONE else label, whose)
    return labels


def dropped(labels: Tensor, sample_index: NDArray[np.int64], *, probability: float, seed: int) -> Tensor:
    """``labels`` (N,) int64, each replaced by NONE with ``probability``: item i by (seed, its global sample index) alone.

    Ho and Salimans 2022 (classifier-free guidance, arXiv 2207.12598), algorithm 1, line 3.
    """
    if not probability:
        return labels
    drawn = torch.tensor([generator(seed, PURPOSE, int(index)).random() < probability for index in sample_index])
    return labels.masked_fill(drawn.to(labels.device), NONE)


def _of(stage: Stage) -> Labels:
    model, objective = stage.model, stage.objective
    network = config.options(plugins.load("models", model.name).Options, model.options, model.name)
    training = config.options(plugins.load("objectives", objective.name).Options, objective.options, "objective")
    return Labels(int(getattr(network, "labels", 0)), float(getattr(training, "label_dropout", 0.0)) > 0.0)
