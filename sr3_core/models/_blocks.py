"""Building blocks of the U-Net. Shapes: N batch, C channels, H height, W width, E embedding width. Images are float NCHW."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class NoiseEmbedding(nn.Module):
    """Sinusoid of a scalar (N,) followed by a two-layer perceptron -> (N, E) (SR3, section 2.3: conditioned on the signal level)."""

    def __init__(self, channels: int, width: int, *, scale: float) -> None:
        super().__init__()
        frequencies = torch.exp(-math.log(10_000.0) * torch.arange(channels // 2, dtype=torch.float32) / (channels // 2))
        self.register_buffer("frequencies", scale * frequencies, persistent=False)
        self.perceptron = nn.Sequential(nn.Linear(channels, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, level_N: Tensor) -> Tensor:
        angle_NC = level_N[:, None] * self.get_buffer("frequencies")[None, :]
        embedding: Tensor = self.perceptron(torch.cat([angle_NC.sin(), angle_NC.cos()], dim=1))
        return embedding


def norm_groups(channels: int) -> int:
    """The largest divisor of ``channels`` that is at most min(32, channels / 4)."""
    limit = max(1, min(32, channels // 4))
    return next(groups for groups in range(limit, 0, -1) if channels % groups == 0)


class ResidualBlock(nn.Module):
    """norm, SiLU, conv, + noise embedding, norm, SiLU, dropout, conv; the sum with the shortcut is scaled by ``skip_scale``.

    ``resample`` "up" or "down" changes the size by 2 inside the block, on both paths (BigGAN blocks, as in SR3, appendix A).
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        width: int,
        *,
        affine: bool,
        dropout: float,
        skip_scale: float,
        resample: str | None = None,
    ) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(norm_groups(channels_in), channels_in)
        self.conv_in = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.project = nn.Linear(width, 2 * channels_out if affine else channels_out)
        self.norm_out = nn.GroupNorm(norm_groups(channels_out), channels_out)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.shortcut = nn.Identity() if channels_in == channels_out else nn.Conv2d(channels_in, channels_out, 1)
        self.affine, self.skip_scale, self.resample = affine, skip_scale, resample
        zero(self.conv_out)

    def forward(self, x_NCHW: Tensor, embedding_NE: Tensor) -> Tensor:
        hidden = _resize(functional.silu(self.norm_in(x_NCHW)), self.resample)
        hidden = self.conv_in(hidden)
        shift = self.project(functional.silu(embedding_NE))[:, :, None, None]
        if self.affine:
            gain, shift = shift.chunk(2, dim=1)
            hidden = self.norm_out(hidden) * (1.0 + gain) + shift
        else:
            hidden = self.norm_out(hidden + shift)
        hidden = self.conv_out(self.dropout(functional.silu(hidden)))
        shortcut: Tensor = self.shortcut(_resize(x_NCHW, self.resample))
        return (shortcut + hidden) * self.skip_scale


class Attention(nn.Module):
    """Self-attention over the H x W positions, single norm, residual; logits are divided by sqrt(channels per head)."""

    def __init__(self, channels: int, heads: int, *, skip_scale: float) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups(channels), channels)
        self.query_key_value = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        self.heads, self.skip_scale = heads, skip_scale
        zero(self.out)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        n, c, h, w = x_NCHW.shape
        query, key, value = (
            part.reshape(n, self.heads, c // self.heads, h * w).transpose(2, 3)
            for part in self.query_key_value(self.norm(x_NCHW)).chunk(3, dim=1)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value)
        mixed = self.out(mixed.transpose(2, 3).reshape(n, c, h, w))
        return (x_NCHW + mixed) * self.skip_scale


def zero(module: nn.Conv2d) -> nn.Conv2d:
    """Start a branch at zero, so that a fresh residual block is the identity."""
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module


def _resize(x: Tensor, resample: str | None) -> Tensor:
    if resample == "down":
        return functional.avg_pool2d(x, 2)
    if resample == "up":
        return functional.interpolate(x, scale_factor=2.0, mode="nearest")
    return x
