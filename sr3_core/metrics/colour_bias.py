"""Colour bias: |mean of output - mean of reference| of one image, per channel, in 1/255. Its mean over images shows a shift."""

from collections.abc import Mapping

from torch import Tensor

from sr3_core.config import Section
from sr3_core.metrics import _base
from sr3_core.metrics._base import Reported

RGB = ("red", "green", "blue")


class Options(Section):
    """No options."""


class Metric:
    """``colour_bias_<channel>`` for every channel, lower is better."""

    needs = "reference"

    def __init__(self, options: Options, *, scale: int, degradation: str, channels: int) -> None:
        names = RGB if channels == len(RGB) else tuple(str(index) for index in range(channels))
        self.reports = tuple(
            Reported(f"colour_bias_{name}", "lower", "1/255", f"channel {name}", 0, "|difference of the image means|") for name in names
        )

    def values(self, output: Tensor, *, reference: Tensor | None, low: Tensor | None) -> Mapping[str, list[float]]:
        """One number per image and channel."""
        truth = _base.same_shape(output, reference, "the reference")
        shift = (output.double() - truth.double()).mean(dim=(-2, -1)).abs() * _base.LEVELS  # (N, C)
        return {report.name: [float(value) for value in shift[:, index].tolist()] for index, report in enumerate(self.reports)}
