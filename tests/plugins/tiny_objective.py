"""An objective from outside the project, named by its dotted path: a small convolutional net learns a function of its index."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sr3_core import config
from sr3_core.config import Section, Stage
from sr3_core.data.loader import Batch
from sr3_core.seeds import generator


class Options(Section):
    """``poison``: the global sample index whose loss is not a number."""

    width: int = 16
    dropout: float = 0.2
    poison: int | None = None


class Net(nn.Module):
    """113 kB of parameters at width 16, .45 MB at 32, registered in another order than they are used in."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.last = nn.Conv2d(width, 3, 3, padding=1)
        self.middle = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(12))
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for index in (3, 11, 0, 7, 5, 9, 1, 10, 2, 8, 4, 6):
            x = x + self.drop(torch.tanh(self.middle[index](x)))
        return self.last(x)


class Objective:
    notes: tuple[str, ...] = ()
    turns = ("net",)
    exported = "net"

    def __init__(self, stage: Stage, measured: Mapping[str, float]) -> None:
        self.stage, self.measured = stage, measured
        self.options = config.options(Options, stage.objective.options, "objective")

    def sampling_notes(self, changes: Mapping[str, Any]) -> tuple[str, ...]:
        return ()

    def network_calls(self, changes: Mapping[str, Any]) -> int:
        return 1

    @staticmethod
    def measure(stage: Stage, batches: Any) -> dict[str, float]:
        return {"mean": float(batches.batch(0, 4).high.mean())}

    def players(self) -> dict[str, nn.Module]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.stage.training.seed)
            return {"net": Net(self.options.width, self.options.dropout)}

    def loss(self, turn: str, players: Mapping[str, Callable[..., Tensor]], batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        assert batch.low is not None
        output = players[turn](nn.functional.interpolate(batch.low, size=batch.high.shape[-2:]))
        loss = (output - batch.high + self.measured["mean"]).square().mean()
        if self.options.poison in batch.sample_index:
            loss = loss * float("nan")
        bias = (output - batch.high).detach().mean(dim=(1, 2, 3))
        thirds = bias[torch.from_numpy(batch.sample_index % 3 == 0)]  # none in some micro-batches, one or two in others
        return loss, {"bias": float(bias.mean()), "bias_of_thirds": (float(thirds.sum()), float(len(thirds)))}

    def predictor(self, network: nn.Module, *, degradation: str) -> "Predictor":
        return Predictor(network, self.stage)


class Predictor:
    def __init__(self, network: nn.Module, stage: Stage) -> None:
        self.network, self.stage = network, stage

    @torch.inference_mode()
    def predict(self, low: Tensor, *, seeds: Any, size: Any = None, labels: Any = None, gain: float = 1.0) -> Tensor:
        return gain * self.network(nn.functional.interpolate(low, scale_factor=self.stage.scale))


class Memory:
    """Batches without a ShardSet: image ``i`` is drawn from the seed (7, "image", i)."""

    def batch(self, first_index: int, count: int) -> Batch:
        index = np.arange(first_index, first_index + count, dtype=np.int64)
        high = torch.from_numpy(np.stack([generator(7, "image", int(i)).uniform(-1, 1, (3, 8, 8)).astype(np.float32) for i in index]))
        return Batch(high=high, low=nn.functional.avg_pool2d(high, 2), sample_index=index, keys=tuple(map(str, index)))

    def prefetch(self, indices: Iterable[tuple[int, int]]) -> Iterator[Batch]:
        for first, count in indices:
            yield self.batch(first, count)


def stage(**training: Any) -> Stage:
    """A stage of this objective: 8 steps of 12 images in micro-batches of 2."""
    values: dict[str, Any] = {"images": 96, "global_batch": 12, "micro_batch": 2, "checkpoint_images": 24, "log_images": 36}
    values |= {"optimizer": {"learning_rate": 1e-3}, "learning_rate": {"name": "cosine", "warmup_images": 24}}
    options = training.pop("options", {})
    objective = {"name": "tests.plugins.tiny_objective", "options": options}
    model = {"name": "tests.plugins.tiny_objective"}
    return config.parse(
        Stage, {"name": "tiny", "low": 4, "high": 8, "model": model, "objective": objective, "training": {**values, **training}}
    )
