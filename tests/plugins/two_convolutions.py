"""A denoiser small enough to count by hand: conv 3x3 to ``width`` channels, SiLU, conv 3x3 back."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from sr3_core.config import Section, Stage


class Options(Section):
    width: int = 5


def build(options: Options, stage: Stage) -> nn.Module:
    return Network(options.width, stage.channels, given=1 if stage.low is None else 2)


class Network(nn.Module):
    def __init__(self, width: int, channels: int, *, given: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(given * channels, width, 3, padding=1)
        self.second = nn.Conv2d(width, channels, 3, padding=1)

    def forward(
        self, noisy: Tensor, low: Tensor | None, gamma: Tensor, *, label: Tensor | None = None, augmentation: Tensor | None = None
    ) -> Tensor:
        return self.second(functional.silu(self.first(noisy if low is None else torch.cat([noisy, low], dim=1))))
