"""Consistency with the input: MSE between the low image and the output brought down by the recorded degradation, on [0, 1], x 1e5."""

from collections.abc import Mapping

from torch import Tensor

from sr3_core import resample
from sr3_core.config import Section
from sr3_core.metrics import _base
from sr3_core.metrics._base import Reported

UNITS = 1e5
FLOOR = UNITS / 12 / _base.LEVELS**2  # .128: the rounding of the low image to uint8, seen by an ideal output


class Options(Section):
    """No options: the degradation is the one recorded with the data."""


class Metric:
    """``consistency``, lower is better. The output is brought down and clipped, not rounded: the truth itself scores ``FLOOR``.

    A cascade's output is brought down at once, while its low image came down level by level: the truth then scores .14.
    """

    needs = "low"

    def __init__(self, options: Options, *, scale: int, degradation: str, channels: int) -> None:
        self.degradation = degradation
        note = f"{degradation} down to the low image; a uint8 low image has a floor of {FLOOR:.2f}"
        self.reports = (Reported("consistency", "lower", "MSE x 1e5", "RGB" if channels == 3 else f"{channels} channels", 0, note),)

    def values(self, output: Tensor, *, reference: Tensor | None, low: Tensor | None) -> Mapping[str, list[float]]:
        """One number per image."""
        if low is None:
            raise ValueError("consistency needs the low image")
        down = resample.resample(output, (low.shape[-2], low.shape[-1]), self.degradation).clamp(0, 1)
        error = (down.double() - low.double()).square().flatten(1).mean(dim=1) * UNITS
        return {"consistency": [float(value) for value in error.tolist()]}
