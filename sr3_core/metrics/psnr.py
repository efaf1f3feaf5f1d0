"""Peak signal-to-noise ratio in dB per image: all channels without a border, and Y of BT.601 with a border of ``scale`` pixels."""

import math
from collections.abc import Mapping

from torch import Tensor

from sr3_core.config import Section
from sr3_core.metrics import _base
from sr3_core.metrics._base import Reported

CEILING_DB = 100.0  # stands for infinity: the PSNR of an image with itself


class Options(Section):
    """No options: the border and the colour spaces are part of the definition."""


class Metric:
    """``psnr_rgb`` (whole image, all channels) and, for RGB, ``psnr_y`` (studio-range luma, ``scale`` pixels cut from each side)."""

    needs = "reference"

    def __init__(self, options: Options, *, scale: int, degradation: str, channels: int) -> None:
        self.border = scale
        self.reports: tuple[Reported, ...] = (Reported("psnr_rgb", "higher", "dB", "RGB" if channels == 3 else f"{channels} channels", 0),)
        if channels == 3:
            self.reports += (Reported("psnr_y", "higher", "dB", "Y of BT.601, studio range", scale),)

    def values(self, output: Tensor, *, reference: Tensor | None, low: Tensor | None) -> Mapping[str, list[float]]:
        """dB per image; an exact copy gives ``CEILING_DB``."""
        truth = _base.same_shape(output, reference, "the reference")
        result = {"psnr_rgb": _decibels(output, truth)}
        if len(self.reports) > 1:
            b = self.border
            inner = (..., slice(b, output.shape[-2] - b), slice(b, output.shape[-1] - b))
            result["psnr_y"] = _decibels(_base.luma(output)[inner], _base.luma(truth)[inner])
        return result


def _decibels(output: Tensor, truth: Tensor) -> list[float]:
    errors = (output.double() - truth.double()).square().flatten(1).mean(dim=1).tolist()
    return [min(CEILING_DB, -10 * math.log10(error)) if error > 0 else CEILING_DB for error in errors]
