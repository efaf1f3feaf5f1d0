"""Gradients sent between workers in half precision (``training.gradient_compression``): half the traffic, each worker's share rounded."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import GradBucket  # pyright: ignore[reportPrivateImportUsage]
from torch.nn.parallel import DistributedDataParallel

_TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def compress(wrapped: nn.Module, kind: str | None) -> None:
    """Let ``wrapped`` average its gradients in ``kind``; None: in their own type. A module that stands alone sends none."""
    if kind is not None and isinstance(wrapped, DistributedDataParallel):
        wrapped.register_comm_hook(_TYPES[kind], _averaged)


def _averaged(dtype: torch.dtype, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """The bucket's mean over the workers. Shares are divided before they are rounded, so that float16 holds their sum."""
    own = bucket.buffer()
    sent = (own / dist.get_world_size()).to(dtype)
    work = dist.all_reduce(sent, async_op=True)
    assert work is not None  # it is this process's group
    future: torch.futures.Future[list[Tensor]] = work.get_future()

    def taken(done: torch.futures.Future[list[Tensor]]) -> Tensor:
        return own.copy_(done.value()[0])

    return future.then(taken)
