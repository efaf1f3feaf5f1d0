"""What the training loop sees of the world: one Worker of a group that steps together. The launchers (Ray, a test) make them."""

import signal
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sr3_core.config import DataParallel

BUCKET_MEGABYTES = 25.0  # DistributedDataParallel's own default; its first bucket is 1 MB


class Worker(Protocol):
    """One of ``world_size`` workers. Every method is collective: all ranks call it alike, in one order."""

    @property
    def rank(self) -> int: ...
    @property
    def world_size(self) -> int: ...
    @property
    def device(self) -> torch.device: ...

    def wrap(self, module: nn.Module, options: DataParallel) -> nn.Module:
        """``module`` whose backward averages gradients over the workers, or the module itself when there is one worker."""
        ...

    def no_sync(self, module: nn.Module) -> AbstractContextManager[None]:
        """Context in which the backward of a wrapped ``module`` adds up gradients without averaging them."""
        ...

    def all_reduce_mean(self, tensor: Tensor) -> Tensor:
        """Mean of ``tensor`` over the workers, on every worker; ``tensor`` itself may be overwritten."""
        ...

    def maxima(self, values: Sequence[float]) -> list[float]:
        """The largest of each of ``values`` over the workers, on every worker."""
        ...

    def broadcast(self, value: Any) -> Any:
        """Rank 0's ``value`` (None, numbers, strings, lists and dicts) on every worker."""
        ...

    def barrier(self) -> None:
        """Wait until every worker is here."""
        ...

    def report(self, metrics: Mapping[str, float], *, checkpoint: bool) -> None:
        """Tell the launcher where the group stands; ``checkpoint``: rank 0 has begun one, and has verified it where the group ends."""
        ...

    def should_stop(self) -> bool:
        """Whether to write a checkpoint and end after this step: as soon as one rank wants to, every rank gets yes at the same step."""
        ...


@contextmanager
def stop_on(*numbers: signal.Signals) -> Generator[Callable[[], bool], None, None]:
    """For the block, these signals end nothing: the function given tells that one has come. For workers of the main thread alone.

    ``LocalWorker(stop=stop)`` or ``GlooWorker(..., stop=stop)`` then ends in order: the notice of a machine that goes away is a TERM.
    """
    came = threading.Event()

    def note(number: int, frame: object) -> None:
        came.set()

    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield came.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class LocalWorker:
    """The only worker, in this process. ``stop`` is asked after every step."""

    rank = 0
    world_size = 1

    def __init__(self, device: torch.device | str = "cpu", *, stop: Callable[[], bool] = lambda: False) -> None:
        self.device = torch.device(device)
        self._stop = stop

    def wrap(self, module: nn.Module, options: DataParallel) -> nn.Module:
        return module

    def no_sync(self, module: nn.Module) -> AbstractContextManager[None]:
        return nullcontext()

    def all_reduce_mean(self, tensor: Tensor) -> Tensor:
        return tensor

    def maxima(self, values: Sequence[float]) -> list[float]:
        return list(values)

    def broadcast(self, value: Any) -> Any:
        return value

    def barrier(self) -> None:
        return None

    def report(self, metrics: Mapping[str, float], *, checkpoint: bool) -> None:
        return None

    def should_stop(self) -> bool:
        return self._stop()


class DistributedWorker:
    """A worker of the process group that stands already; the launcher made it and takes it down. ``stop`` is asked after every step."""

    def __init__(
        self, device: torch.device | str = "cpu", *, bucket_megabytes: float = BUCKET_MEGABYTES, stop: Callable[[], bool] = lambda: False
    ) -> None:
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self.device = torch.device(device)
        self._bucket_megabytes = bucket_megabytes
        self._stop = stop

    def wrap(self, module: nn.Module, options: DataParallel) -> nn.Module:
        if self.world_size == 1:
            return module
        return DistributedDataParallel(
            module,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            bucket_cap_mb=options.bucket_megabytes or self._bucket_megabytes,
            gradient_as_bucket_view=options.bucket_views,
            static_graph=options.static_graph,
        )

    def no_sync(self, module: nn.Module) -> AbstractContextManager[None]:
        return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()

    def all_reduce_mean(self, tensor: Tensor) -> Tensor:
        if self.world_size > 1:
            dist.all_reduce(tensor, op=dist.ReduceOp.SUM)
            tensor /= self.world_size
        return tensor

    def maxima(self, values: Sequence[float]) -> list[float]:
        if self.world_size == 1:
            return list(values)
        box = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(box, op=dist.ReduceOp.MAX)
        return [float(value) for value in box.tolist()]

    def broadcast(self, value: Any) -> Any:
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def barrier(self) -> None:
        dist.barrier()

    def report(self, metrics: Mapping[str, float], *, checkpoint: bool) -> None:
        return None

    def should_stop(self) -> bool:
        return self.largest(int(self._stop())) > 0

    def largest(self, number: int) -> int:
        """The largest ``number`` of all ranks, on every rank."""
        if self.world_size == 1:
            return number
        box = torch.tensor(number, device=self.device)
        dist.all_reduce(box, op=dist.ReduceOp.MAX)
        return int(box)


class GlooWorker(DistributedWorker):
    """A worker of plain processes that meet at the file ``meeting``: DistributedDataParallel without a launcher."""

    def __init__(
        self,
        meeting: Path,
        *,
        rank: int,
        world_size: int,
        bucket_megabytes: float = BUCKET_MEGABYTES,
        timeout_seconds: float = 120,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        timeout = timedelta(seconds=timeout_seconds)
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world_size, timeout=timeout)
        super().__init__("cpu", bucket_megabytes=bucket_megabytes, stop=stop)

    def close(self) -> None:
        """Leave the group."""
        dist.destroy_process_group()
