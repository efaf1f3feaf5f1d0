"""Compiling a network by its regions (``training.compile``): blocks of one kind and shape share one compilation."""

import os
import shutil
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from sr3_core.errors import BadInput

BACKEND = "inductor"
_VARIANTS = 4  # compilations that one region may need: with and without gradient, another batch size, another crop
_COMPILERS = ("g++", "clang++")


def compile_regions(player: nn.Module, device: torch.device) -> None:
    """Let each of ``player.regions()`` (the whole player where it names none) compile itself at its first call; weights keep their names.

    BadInput on a CPU without a C++ compiler, which would fail at the first step.
    """
    compilers = (os.environ["CXX"],) if os.environ.get("CXX") else _COMPILERS
    if device.type == "cpu" and not any(shutil.which(name) for name in compilers):
        got = f"training.compile on a CPU without {' or '.join(compilers)}"
        raise BadInput(got, "a C++ compiler, or training.compile=false", "install one, name it in CXX, or set training.compile=false")
    named: Any = getattr(player, "regions", None)
    regions: Iterable[nn.Module] = [player] if named is None else named()
    regions = list(regions)
    # regions of one class share one code object, whose compilations torch counts together; over the limit it silently stops compiling
    limits: Any = torch._dynamo.config  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
    limits.recompile_limit = max(limits.recompile_limit, _VARIANTS * len(regions))
    for region in regions:
        region.compile(backend=BACKEND, dynamic=False)
