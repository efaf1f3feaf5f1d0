"""A tool that counts where images change between channels_last and NCHW in memory: each change is a copy that computes nothing."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Change:
    """One operation that took images in one layout and gave them in the other."""

    operation: str
    shape: tuple[int, ...]
    given: str
    made: str


class LayoutChanges(TorchDispatchMode):
    """Context that records in ``found`` every operation, forward or backward, whose image output has another layout than its image inputs.

    An image is a 4-dimensional dense tensor that is laid out in one way alone: more than one channel and more than one pixel. A kernel
    that copies inside itself and gives back the layout it was given is not seen: for that, read a device's profile.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Change] = []

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            given = {layout for leaf in tree_leaves((args, kwargs)) if (layout := layout_of(leaf)) is not None}
            for leaf in tree_leaves(out):
                made = layout_of(leaf)
                if made is not None and given and given != {made}:
                    self.found.append(Change(str(func), tuple(leaf.shape), " and ".join(sorted(given)), made))
        return out


def layout_of(value: Any) -> str | None:
    """``channels_last`` or ``NCHW`` of an image that lies in memory in one way alone, else None."""
    if not isinstance(value, Tensor) or value.dim() != 4 or not value.is_floating_point():
        return None
    last, first = value.is_contiguous(memory_format=torch.channels_last), value.is_contiguous()
    return None if last == first else "channels_last" if last else "NCHW"
