"""The tiny objective on a machine that now and then makes a loss not finite: ``FAULTS`` says at which sample index, and how often."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from sr3_core.data.loader import Batch
from tests.plugins import tiny_objective

Options = tiny_objective.Options
FAULTS: dict[int, int] = {}  # of this process; a loss with that sample is not a number so many times
ALWAYS = 10**6


class Objective(tiny_objective.Objective):
    def loss(self, turn: str, players: Mapping[str, Callable[..., Tensor]], batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        loss, metrics = super().loss(turn, players, batch)
        for index in batch.sample_index.tolist():
            if FAULTS.get(index, 0):
                FAULTS[index] -= 1
                loss = loss * float("nan")
        return loss, metrics
