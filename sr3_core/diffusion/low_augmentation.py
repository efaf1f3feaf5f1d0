"""Conditioning augmentation: the low image is degraded in training, so that a cascade's next stage forgives what the one before makes.

Ho et al. 2021 (CDM, arXiv 2106.15282, section 4): noise works best below 128 px, blur at 128 and 256 px on half of the examples; none
at inference. SR3 blurs its low images in training (arXiv 2104.07636, section 4.5: FID 13.1 -> 11.3).
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from sr3_core.config import Section
from sr3_core.seeds import generator

PURPOSE = "low augmentation"


class LowAugmentation(Section):
    """With ``probability`` a sample's low image is blurred and noised, else left alone.

    ``noise``: range of the level a, low' = sqrt(1 - a^2) low + a n; ``blur``: range of the Gaussian's deviation in low pixels. Both are
    drawn uniformly. The network is told the level a, or where there is blur alone its share of the strongest; 0 for none.
    """

    noise: tuple[float, float] | None = None
    blur: tuple[float, float] | None = None
    probability: float = Field(default=0.5, gt=0, le=1)

    @model_validator(mode="after")
    def _ranges(self) -> "LowAugmentation":
        if self.noise is None and self.blur is None:
            raise ValueError("low_augmentation without noise and blur changes nothing: give a range of one of them")
        for name, given, limit in (("noise", self.noise, 1.0), ("blur", self.blur, math.inf)):
            if given is not None and not 0.0 <= given[0] <= given[1] <= limit:
                raise ValueError(f"{name} {list(given)} must ascend in [0, {limit:g}]")
        if self.blur is not None and self.blur[1] == 0.0:
            raise ValueError("blur [0, 0] changes nothing: leave it out")
        return self

    def apply(self, low: Tensor, sample_index: NDArray[np.int64], *, seed: int) -> tuple[Tensor, Tensor]:
        """``low`` (N, C, h, w) augmented, and the levels (N,) float64 in [0, 1] that the network is told.

        Item i depends on (seed, its global sample index) alone.
        """
        generators = [generator(seed, PURPOSE, int(index)) for index in sample_index]
        drawn = np.stack([each.random(3) for each in generators])
        chosen = drawn[:, 0] < self.probability
        level = np.zeros(len(drawn))
        if self.blur is not None:
            deviation = np.where(chosen, _within(self.blur, drawn[:, 1]), 0.0)
            low = blurred(low, torch.from_numpy(deviation), widest=self.blur[1])
            level = deviation / self.blur[1]
        if self.noise is not None:
            level = np.where(chosen, _within(self.noise, drawn[:, 2]), 0.0)
            amount = torch.from_numpy(level).to(low).view(-1, 1, 1, 1)
            noise = np.stack([each.standard_normal(low.shape[1:], dtype=np.float32) for each in generators])
            low = (1.0 - amount.square()).sqrt() * low + amount * torch.from_numpy(noise).to(low)
        return low, torch.from_numpy(level).to(low.device)


def blurred(image: Tensor, deviation: Tensor, *, widest: float) -> Tensor:
    """``image`` (N, C, H, W) blurred by a Gaussian of ``deviation`` (N,) pixels each, at most ``widest``; 0 leaves an image as it is."""
    n, channels, height, width = image.shape
    radius = math.ceil(3.0 * widest)
    at = torch.arange(-radius, radius + 1, dtype=torch.float64)
    # an underflowing deviation gives the unit impulse: exp(-0) in the middle and exp(-inf) = 0 beside it
    kernel = torch.exp(-0.5 * (at / deviation.double()[:, None].clamp(min=1e-6)).square())
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0).to(image)
    planes = functional.pad(image, (radius, radius, radius, radius), mode="replicate").reshape(1, n * channels, height + 2 * radius, -1)
    planes = functional.conv2d(planes, kernel[:, None, :, None], groups=n * channels)
    return functional.conv2d(planes, kernel[:, None, None, :], groups=n * channels).reshape(n, channels, height, width)


def _within(span: tuple[float, float], uniform: NDArray[np.float64]) -> NDArray[np.float64]:
    return span[0] + (span[1] - span[0]) * uniform
