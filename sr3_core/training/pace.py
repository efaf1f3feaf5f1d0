"""What the clock and the machine say of training: images and FLOP a second, the share of the peak, the wait for data, memory."""

import resource
import sys
from collections.abc import Callable, Sequence
from functools import cached_property

import torch

from sr3_core import plugins, summary
from sr3_core.config import Stage
from sr3_core.training import machine
from sr3_core.training.worker import Worker

# Differ from run to run, so no checkpoint keeps them
NAMES = machine.NAMES | {
    "images_per_second", "data_wait_share", "flops_per_second", "model_flops_utilisation", "peak_host_bytes", "peak_device_bytes",
}  # fmt: skip
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # of getrusage, in bytes


class Pace:
    """The part of a log line that is no result: ``line`` for a stretch of training. Every rank has one; rank 0's speaks."""

    def __init__(self, stage: Stage, turns: Sequence[str], *, worker: Worker, say: Callable[[str], None]) -> None:
        self._stage, self._turns, self._worker, self._say = stage, turns, worker, say
        self._machine = machine.Machine()

    def line(self, *, images: int, seconds: float, waited: float) -> dict[str, float]:
        """By name, of the last ``images`` of all workers in ``seconds``, of which this worker ``waited`` seconds for data. Collective;
        only rank 0 gets the line, the others an empty one.

        ``flops_per_second`` (all workers): of the model, 3 x forward an image; recomputation is not counted. It is left out where they
        cannot be counted (``model_flops``), and ``model_flops_utilisation``, its share of the devices' dense peak, where
        ``summary.DEVICES`` does not have the device. Of the worker that has most: ``data_wait_share``, ``peak_host_bytes``, the resident
        set of its process, and ``peak_device_bytes``, what torch allocated on its GPU, both since the process began. ``system/...``, of
        rank 0's machine: see ``machine.py``.
        """
        device = self._worker.device
        own = {"data_wait_share": waited / seconds, "peak_host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT}
        if device.type == "cuda":
            own["peak_device_bytes"] = torch.cuda.max_memory_allocated(device)
        most = dict(zip(own, self._worker.maxima([float(value) for value in own.values()]), strict=True))
        if self._worker.rank:
            return {}
        found = {"images_per_second": images / seconds, **most}
        if self._flops is not None:
            found["flops_per_second"] = self._flops * found["images_per_second"]
            peak = summary.peak_of(torch.cuda.get_device_name(device), self._stage.training.precision) if device.type == "cuda" else None
            if peak is not None:
                found["model_flops_utilisation"] = found["flops_per_second"] / (peak * self._worker.world_size)
        return found | self._machine.line(device)

    @cached_property
    def _flops(self) -> int | None:
        try:
            return model_flops(self._stage, self._turns)
        except Exception as error:  # a network may do what has no meta kernel: that costs a metric, never the training
            self._say(f"flops_per_second is not logged: counting them raised {type(error).__name__}: {error}")
            return None


def model_flops(stage: Stage, turns: Sequence[str]) -> int | None:
    """FLOPs of training on one image, forward and backward. None where they are not one network's: several ``turns``, or networks that
    the objective makes without the stage's model file.
    """
    if len(set(turns)) > 1 or not hasattr(plugins.load("models", stage.model.name), "build"):
        return None
    with torch.random.fork_rng(devices=[]):
        return summary.model_flops(stage)
