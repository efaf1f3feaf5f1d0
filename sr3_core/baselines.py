"""Interpolation with the prediction signature: what every model has to beat. No weights, no randomness."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from sr3_core import config
from sr3_core.config import Section
from sr3_core.errors import BadInput
from sr3_core.resample import resample

NAMES = ("nearest", "bicubic", "lanczos")


class Sampling(Section):
    """An interpolation has no sampling options."""


class Baseline:
    """``predict`` resizes the low image by one filter."""

    def __init__(self, name: str) -> None:
        if name not in NAMES:
            raise BadInput(f"unknown baseline {name!r}", config.nearest(name, NAMES), "mend evaluation.baselines")
        self.name = name

    def predict(
        self,
        low: Tensor | None,
        *,
        seeds: Sequence[int] | np.ndarray[Any, Any] | Tensor,
        size: tuple[int, int] | None = None,
        labels: Tensor | None = None,
        **sampling: Any,
    ) -> Tensor:
        """``low`` (N, C, h, w) in [-1, 1] -> (N, C, *size), clipped to [-1, 1]; ``size`` is required.

        ``seeds`` and ``labels`` change nothing.
        """
        config.options(Sampling, sampling, f"baseline {self.name}: sampling")
        if low is None or size is None:
            raise BadInput(f"baseline {self.name} without a low image or a size", "one low image and the size of its output", "pass both")
        return resample(low, size, self.name).clamp(-1, 1)


def load_all(names: Sequence[str]) -> dict[str, Baseline]:
    """Baselines by name, in order; BadInput for an unknown one."""
    return {name: Baseline(name) for name in names}
