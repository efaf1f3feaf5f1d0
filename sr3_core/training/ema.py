"""Averages of the weights over the steps of training: exponential with or without warm-up, and the power function of EDM2."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from sr3_core.config import Average


def decay(average: Average, steps: int) -> float:
    """What the average keeps of itself at the update after step ``steps`` >= 1, as ``config.Average`` says."""
    if average.width is not None:
        return (1.0 - 1.0 / steps) ** (power(average.width) + 1.0)
    return min(average.decay, (1 + steps) / (10 + steps)) if average.warmup else average.decay


def power(width: float) -> float:
    """The exponent k of the power function t^k whose standard deviation is ``width`` of its length.

    width^2 = (k + 1) / ((k + 2)^2 (k + 3)): Karras et al. 2024 (arXiv 2312.02696), appendix C. It falls as k grows from 0, so that k is
    found by bisection.
    """
    low, high = 0.0, 1.0
    while _width(high) > width:
        high *= 2.0
    for _ in range(200):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if _width(middle) > width else (low, middle)
    return 0.5 * (low + high)


def _width(exponent: float) -> float:
    return math.sqrt((exponent + 1.0) / ((exponent + 2.0) ** 2 * (exponent + 3.0)))


def update(average: dict[str, Tensor], weights: Mapping[str, Tensor], kept: float) -> None:
    """average <- kept x average + (1 - kept) x weights, in place; what is not floating point is copied."""
    names = [name for name, tensor in average.items() if tensor.is_floating_point()]
    torch._foreach_lerp_([average[name] for name in names], [weights[name] for name in names], 1.0 - kept)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
    for name in average.keys() - names:
        average[name].copy_(weights[name])
