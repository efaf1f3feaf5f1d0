"""Structural similarity (Wang et al. 2004) per image: mean over channels and the valid region, Gaussian window 11, sigma 1.5."""

from collections.abc import Mapping

from torch import Tensor

from sr3_core.config import Section
from sr3_core.metrics import _base
from sr3_core.metrics._base import Reported

WINDOW = 11
SIGMA = 1.5


class Options(Section):
    """No options: window and constants are part of the definition."""


class Metric:
    """``ssim`` in [-1, 1]; 1 is an exact copy."""

    needs = "reference"

    def __init__(self, options: Options, *, scale: int, degradation: str, channels: int) -> None:
        colour = "RGB" if channels == 3 else f"{channels} channels"
        note = f"mean over channels, Gaussian {WINDOW} / {SIGMA}, valid region"
        self.reports = (Reported("ssim", "higher", "", colour, WINDOW // 2, note),)

    def values(self, output: Tensor, *, reference: Tensor | None, low: Tensor | None) -> Mapping[str, list[float]]:
        """One number per image. torchmetrics pads by reflection and cuts the padded ring off again, which leaves the valid region."""
        from torchmetrics.functional.image import structural_similarity_index_measure  # heavy: only where SSIM is asked for

        truth = _base.same_shape(output, reference, "the reference")

        def plane(image: int, channel: int) -> float:
            # one plane at a time in float32 (2e-6 from float64): a 1024-px image in float64 took 4 GB and ten times as long
            pair = (each[image, channel][None, None] for each in (output, truth))
            value = structural_similarity_index_measure(*pair, gaussian_kernel=True, sigma=SIGMA, kernel_size=WINDOW, data_range=1.0)
            assert isinstance(value, Tensor)
            return float(value)

        images, channels = output.shape[:2]
        return {"ssim": [sum(plane(image, channel) for channel in range(channels)) / channels for image in range(images)]}
