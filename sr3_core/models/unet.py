"""The SR3 U-Net (arXiv 2104.07636, section 2.3 and appendix A): DDPM's U-Net with BigGAN residual blocks and scaled skips.

Denoiser signature: ``network(noisy, low, gamma, *, label=None, augmentation=None) -> prediction``; all images float NCHW.
"""

import math
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from sr3_core.config import Section, Stage
from sr3_core.models._blocks import Attention, NoiseEmbedding, ResidualBlock, norm_groups, zero

LOG_SNR_LIMIT = 10.0


class Options(Section):
    """``attention_factors``: downsampling factors (1, 2, 4, ... behind the stem) that get attention, besides ``middle_attention``.

    ``stem`` s > 1 moves s x s pixels into channels first (and back last): for images whose full size is memory-bound.
    ``fed`` is what the noise embedding sees: gamma, sqrt(gamma), or log-SNR clamped to [-10, 10]; it is multiplied by ``embedding_scale``.
    """

    channels: int = Field(default=128, ge=4)
    multipliers: tuple[int, ...] = Field(default=(1, 2, 4, 8, 8), min_length=1)
    blocks: int = Field(default=3, ge=1)
    attention_factors: tuple[int, ...] = ()
    middle_attention: bool = True
    heads: int = Field(default=1, ge=1)
    noise_conditioning: Literal["additive", "affine"] = "additive"
    fed: Literal["gamma", "sqrt_gamma", "log_snr"] = "gamma"
    embedding_scale: float = Field(default=1000.0, gt=0)
    skip_scale: float = Field(default=1.0 / math.sqrt(2.0), gt=0, le=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    stem: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _divides(self) -> "Options":
        for multiplier in self.multipliers:
            if (self.channels * multiplier) % self.heads:
                raise ValueError(f"heads {self.heads} must divide every width; {self.channels * multiplier} is not a multiple")
        if self.channels % 2:
            raise ValueError(f"channels {self.channels} must be even: the noise embedding is sines and cosines")
        return self


def build(options: Options, stage: Stage) -> "UNet":
    """A freshly initialised network for ``stage`` (from torch's global generator)."""
    network = UNet(options, channels=stage.channels, conditional=stage.low is not None)
    return network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - torch's stub lacks this overload


class UNet(nn.Module):
    """``channels`` image channels in and out; ``conditional`` networks get the upsampled low image concatenated to the noisy one."""

    def __init__(self, options: Options, *, channels: int, conditional: bool) -> None:
        super().__init__()
        self.options, self.conditional = options, conditional
        pixels = options.stem**2
        width = 4 * options.channels
        self.embedding = NoiseEmbedding(options.channels, width, scale=options.embedding_scale)
        self.conv_in = nn.Conv2d(channels * pixels * (2 if conditional else 1), options.channels, 3, padding=1)

        def block(channels_in: int, channels_out: int, resample: str | None = None) -> ResidualBlock:
            return ResidualBlock(
                channels_in,
                channels_out,
                width,
                affine=options.noise_conditioning == "affine",
                dropout=options.dropout,
                skip_scale=options.skip_scale,
                resample=resample,
            )

        def attention(factor: int, at: int) -> nn.Module:
            return Attention(at, options.heads, skip_scale=options.skip_scale) if factor in options.attention_factors else nn.Identity()

        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        current, skips = options.channels, [options.channels]
        for depth, multiplier in enumerate(options.multipliers):
            at = options.channels * multiplier
            for _ in range(options.blocks):
                self.down.append(_Step(block(current, at), attention(2**depth, at)))
                current = at
                skips.append(at)
            if depth + 1 < len(options.multipliers):
                self.down.append(_Step(block(at, at, "down"), nn.Identity()))
                skips.append(at)
        middle = Attention(current, options.heads, skip_scale=options.skip_scale) if options.middle_attention else nn.Identity()
        self.middle = nn.ModuleList([_Step(block(current, current), middle), _Step(block(current, current), nn.Identity())])
        for depth, multiplier in reversed(list(enumerate(options.multipliers))):
            at = options.channels * multiplier
            for _ in range(options.blocks + 1):
                self.up.append(_Step(block(current + skips.pop(), at), attention(2**depth, at)))
                current = at
            if depth:
                self.up.append(_Step(block(at, at, "up"), nn.Identity(), grows=True))
        self.norm_out = nn.GroupNorm(norm_groups(current), current)
        self.conv_out = zero(nn.Conv2d(current, channels * pixels, 3, padding=1))

    @property
    def multiple(self) -> int:
        """Height and width must be multiples of this; other sizes are padded by reflection inside ``forward``."""
        return self.options.stem * 2 ** (len(self.options.multipliers) - 1)

    def forward(
        self, noisy: Tensor, low: Tensor | None, gamma: Tensor, *, label: Tensor | None = None, augmentation: Tensor | None = None
    ) -> Tensor:
        """Prediction (N, C, H, W) for ``noisy`` (N, C, H, W), ``low`` upsampled to it (None when unconditional), ``gamma`` (N,) float64."""
        if label is not None or augmentation is not None:
            raise ValueError("this network has neither labels nor an augmentation level")
        if (low is not None) != self.conditional:
            raise ValueError("a low image is needed" if self.conditional else "an unconditional network takes no low image")
        x = noisy if low is None else torch.cat([low, noisy], dim=1)
        height, width = x.shape[-2:]
        pad = (-width % self.multiple, -height % self.multiple)
        if any(pad):
            x = functional.pad(x, (0, pad[0], 0, pad[1]), mode="reflect")
        embedding = self.embedding(self._fed(gamma).to(noisy.dtype))
        x = functional.pixel_unshuffle(x, self.options.stem).contiguous(memory_format=torch.channels_last)
        x = self.conv_in(x)
        skips = [x]
        for step in self.down:
            x = step(x, embedding)
            skips.append(x)
        for step in self.middle:
            x = step(x, embedding)
        for step in self.up:
            x = step(x if step.grows else torch.cat([x, skips.pop()], dim=1), embedding)
        x = self.conv_out(functional.silu(self.norm_out(x)))
        return functional.pixel_shuffle(x, self.options.stem)[..., :height, :width]

    def _fed(self, gamma_N: Tensor) -> Tensor:
        gamma_N = gamma_N.double()
        if self.options.fed == "gamma":
            return gamma_N
        if self.options.fed == "sqrt_gamma":
            return gamma_N.sqrt()
        return (gamma_N.log() - (-gamma_N).log1p()).clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT)


class _Step(nn.Module):
    """A residual block and what follows it at the same size."""

    def __init__(self, block: ResidualBlock, attention: nn.Module, *, grows: bool = False) -> None:
        super().__init__()
        self.block, self.attention, self.grows = block, attention, grows

    def forward(self, x_NCHW: Tensor, embedding_NE: Tensor) -> Tensor:
        x: Tensor = self.attention(self.block(x_NCHW, embedding_NE))
        return x
