"""Two players in turns, each with running statistics; the second one's turn moves those of the first one too, as a critic's does."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sr3_core.data.loader import Batch
from tests.plugins import tiny_objective

Options = tiny_objective.Options


def _net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3, padding=1))


class Objective(tiny_objective.Objective):
    turns = ("critic", "net")

    def players(self) -> dict[str, nn.Module]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.stage.training.seed)
            return {"critic": _net(), "net": _net()}

    def loss(self, turn: str, players: Mapping[str, Callable[..., Tensor]], batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        made = players["net"](batch.high)
        judged = players["critic"](made)
        return (judged if turn == "net" else judged - batch.high).square().mean(), {}
