"""A denoiser that sees a large image in overlapping tiles. The sampler, its noise and its projection stay those of the whole image.

N batch, C channels, H height, W width.
"""

import math

import torch
from torch import Tensor, nn

OVERLAP = 8  # neighbouring tiles share at least 1/8 of their side
WHOLE = 2  # images of up to 2 x side^2 pixels are seen at once: photos are not square, and a tile costs its overlap


class TiledNetwork(nn.Module):
    """``network`` for any size: above ``WHOLE`` x side^2 pixels its predictions on tiles of ``side`` pixels are blended by linear ramps.

    Blending predictions at every step, instead of finished images, leaves no seam where two samples differ.
    """

    def __init__(self, network: nn.Module, *, side: int) -> None:
        super().__init__()
        self.network, self.side = network, side

    def forward(
        self, noisy: Tensor, low: Tensor | None, gamma: Tensor, *, label: Tensor | None = None, augmentation: Tensor | None = None
    ) -> Tensor:
        """The denoiser signature: (N, C, H, W) for ``noisy`` (N, C, H, W) and ``low`` of the same size."""
        height, width = noisy.shape[-2:]
        if height * width <= WHOLE * self.side**2:
            return self.network(noisy, low, gamma, label=label, augmentation=augmentation)
        total, weights = torch.zeros_like(noisy), noisy.new_zeros((height, width))
        for top, bottom in spans(height, self.side):
            for left, right in spans(width, self.side):
                place = (..., slice(top, bottom), slice(left, right))
                tile = self.network(noisy[place], None if low is None else low[place], gamma, label=label, augmentation=augmentation)
                weight = ramp(bottom - top, self.side).outer(ramp(right - left, self.side)).to(tile)
                total[place] += tile * weight
                weights[place] += weight
        return total / weights


def spans(length: int, side: int) -> list[tuple[int, int]]:
    """(start, end) of tiles of ``side`` that cover ``length``, evenly spread, each overlapping the next by at least side / OVERLAP."""
    if length <= side:
        return [(0, length)]
    stride = side - max(1, side // OVERLAP)
    count = math.ceil((length - side) / stride) + 1
    return [(start, start + side) for start in (round(index * (length - side) / (count - 1)) for index in range(count))]


def ramp(length: int, side: int) -> Tensor:
    """Weights (length,) that rise from both ends over side / OVERLAP pixels and are 1 between; never 0."""
    rise = max(1, side // OVERLAP)
    place = torch.arange(length, dtype=torch.float32)
    return torch.minimum(place + 1, length - place).div(rise + 1).clamp(max=1.0)
