"""A model and an objective in one file, as small as a family can be: bicubic, sharpened ``steps`` times by a stored ``amount``.

It is deterministic but for ``noise``, so that what evaluation measures is known beforehand. An unconditional stage starts from a flat
image of the brightness that the seed draws.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sr3_core import config
from sr3_core.config import Section, Stage
from sr3_core.resample import resample
from sr3_core.seeds import generator


class Options(Section):
    """No options of the network or of training."""


class Sampling(Section):
    """``steps`` times sharpened (0: bicubic), ``noise`` of that deviation added."""

    steps: int = 1
    noise: float = 0.0


class Amount(nn.Module):
    """One number."""

    def __init__(self, amount: float) -> None:
        super().__init__()
        self.amount = nn.Parameter(torch.tensor(amount))


def build(options: Options, stage: Stage) -> nn.Module:
    return Amount(0.5)


class Objective:
    turns: tuple[str, ...] = ("amount",)
    exported = "amount"

    def __init__(self, stage: Stage, measured: Mapping[str, float]) -> None:
        self.stage = stage
        self.notes = self.sampling_notes({})

    def sampling_notes(self, changes: Mapping[str, Any]) -> tuple[str, ...]:
        return (f"sharpened {self.network_calls(changes)} times",)

    def network_calls(self, changes: Mapping[str, Any]) -> int:
        return int({**self.stage.sampling, **changes}.get("steps", 1))

    def players(self) -> dict[str, nn.Module]:
        return {"amount": Amount(0.5)}

    def loss(self, turn: str, players: Mapping[str, Callable[..., Tensor]], batch: Any) -> tuple[Tensor, dict[str, float]]:
        raise NotImplementedError("this family is not trained")

    def predictor(self, network: nn.Module, *, degradation: str) -> "Predictor":
        return Predictor(network, self.stage)


class Predictor:
    def __init__(self, network: nn.Module, stage: Stage) -> None:
        self.network, self.stage = network, stage

    def predict(self, low: Tensor | None, *, seeds: Any, size: Any = None, labels: Any = None, **sampling: Any) -> Tensor:
        chosen = config.options(Sampling, {**self.stage.sampling, **sampling}, "sampling")
        if low is None:
            levels = torch.tensor([generator(int(seed), "level", 0).uniform(-1, 1) for seed in seeds], dtype=torch.float32)
            image = levels[:, None, None, None].expand(-1, self.stage.channels, self.stage.high, self.stage.high)
        else:
            image = resample(low, size or (low.shape[-2] * self.stage.scale, low.shape[-1] * self.stage.scale), "bicubic")
        for _ in range(chosen.steps):
            soft = F.avg_pool2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
            image = image + float(self.network.get_parameter("amount")) * (image - soft)
        noise = [generator(int(seed), "sampling", 0).standard_normal(image.shape[1:], dtype="float32") for seed in seeds]
        return (image + chosen.noise * torch.stack([torch.from_numpy(each) for each in noise])).clamp(-1, 1)
