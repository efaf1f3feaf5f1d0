"""Batches on their way to the GPU ahead of use: while one is worked on, the next one is copied beside it. On the CPU nothing happens."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from sr3_core.data.loader import Batch


def on_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """``batches`` with their tensors on ``device``, in order; for a CPU ``batches`` themselves.

    On a GPU the next batch is taken and its copy begun, from pinned memory on a stream of its own, before the one at hand is given: at
    most one more batch lies on the device. What the source raises is raised in its place. Closing the iterator closes the source.
    """
    if device.type == "cpu":
        return batches
    stream: Any = torch.cuda.Stream(device)
    return one_ahead(batches, lambda batch: _sent(batch, device, stream), lambda batch: _taken(batch, device, stream))


def one_ahead[Item](items: Iterator[Item], begin: Callable[[Item], Item], finish: Callable[[Item], Item]) -> Iterator[Item]:
    """``finish(begin(item))`` of each item; the next one is begun before an item is given. An error waits for its place in the order."""
