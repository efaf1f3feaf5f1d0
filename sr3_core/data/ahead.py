"""Batches on their way to the GPU ahead of use: while one is worked on, the next one is copied beside it. On the CPU nothing happens."""

from collections.abc import Callable, Generator, Iterator
from typing import TypeVar

import torch

from sr3_core.data.loader import Batch

Item = TypeVar("Item")
Begun = TypeVar("Begun")
Result = TypeVar("Result")


def on_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """``batches`` with their tensors on ``device``, in order; for a CPU ``batches`` itself.

    On a GPU the next batch is taken and its copy begun, from pinned memory on a stream of its own, before the one at hand is given: so
    one batch more lies on the device. What the source raises is raised in its place; closing the iterator closes the source.
    """
    if device.type != "cuda":
        return batches
    stream = torch.cuda.Stream(device)

    def send(batch: Batch) -> tuple[Batch, torch.cuda.Event]:
        with torch.cuda.stream(stream):
            sent = batch.pinned().to(device, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record(stream)
        return sent, arrived

    def take(sent: tuple[Batch, torch.cuda.Event]) -> Batch:
        batch, arrived = sent
        working = torch.cuda.current_stream(device)
        working.wait_event(arrived)
        for tensor in batch.tensors():
            tensor.record_stream(working)  # its memory is given back to the stream that it came by
        return batch

    return one_ahead(batches, send, take)


def one_ahead(items: Iterator[Item], begin: Callable[[Item], Begun], finish: Callable[[Begun], Result]) -> Generator[Result, None, None]:
    """``finish(begin(item))`` of each item, in order; the next one is begun before an item is given. At most one is begun and not given.

    What ``items`` or ``begin`` raises is raised in its place in the order; closing the generator closes ``items``.
    """
    try:
        held = next(items, None)
        begun = None if held is None else begin(held)
        while begun is not None:
            following, error = None, None
            try:
                held = next(items, None)
                following = None if held is None else begin(held)
            except Exception as raised:
                error = raised
            yield finish(begun)
            if error is not None:
                raise error
            begun = following
    finally:
        close = getattr(items, "close", None)
        if close is not None:
            close()
