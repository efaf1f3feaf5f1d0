"""The diffusion objective at a pace that a test may change: each micro-batch takes as long as it needs and the seconds in a file."""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sr3_core import config
from sr3_core.config import Stage
from sr3_core.data.loader import Batch
from sr3_core.objectives import diffusion


class Options(diffusion.Options):
    """``pace``: the file that holds the seconds which are added to every micro-batch; see ``set_pace``."""

    pace: str


def set_pace(file: Path, seconds: float) -> None:
    """From the next micro-batch on, of whatever process."""
    new = file.with_suffix(".new")
    new.write_text(str(seconds))
    os.replace(new, file)


class Objective(diffusion.Objective):
    def __init__(self, stage: Stage, measured: Mapping[str, float]) -> None:
        self.pace, plain = _parted(stage)
        super().__init__(plain, measured)

    @staticmethod
    def measure(stage: Stage, batches: Any) -> dict[str, float]:
        return diffusion.Objective.measure(_parted(stage)[1], batches)

    def loss(self, turn: str, players: Mapping[str, Callable[..., Tensor]], batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        time.sleep(float(self.pace.read_text()))
        return super().loss(turn, players, batch)


def _parted(stage: Stage) -> tuple[Path, Stage]:
    """The file, and the stage of the objective that takes no longer than it needs."""
    options = config.options(Options, stage.objective.options, "objective")
    plain = {name: value for name, value in stage.objective.options.items() if name != "pace"}
    objective = stage.objective.model_copy(update={"name": "diffusion", "options": plain})
    return Path(options.pace), stage.model_copy(update={"objective": objective})
