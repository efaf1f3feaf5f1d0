"""Building blocks of the U-Net. Shapes: N batch, C channels, H height, W width, E embedding width. Images are float NCHW."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from sr3_core.errors import BadInput

Resample = Literal["up", "down"]
NoiseConditioning = Literal["additive", "affine", "instance_norm"]
Shortcut = Literal["conv", "linear"]


class Constant(nn.Module):
    """A tensor that is no parameter and in no state dict: it goes with its network to a device, but no cast of the network rounds it.

    ``values``: on the CPU. A network that was built on the meta device gets them as soon as it has memory.
    """

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.source = values
        self.register_buffer("values", values.to(torch.empty(0).device), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Constant":
        super()._apply(fn, recurse)
        self.values = self.source.to(self.get_buffer("values").device)
        return self

    def forward(self) -> Tensor:
        return self.get_buffer("values")


class NoiseEmbedding(nn.Module):
    """Sinusoid of a scalar (N,) followed by a two-layer perceptron -> (N, E) (SR3, section 2.3: conditioned on the signal level).

    Angle i of channels / 2 is scale x level x period^(-i / denominator). Angles, sinusoid and perceptron are computed in float32 whatever
    the weights' precision and under autocast: bfloat16 tells two levels nearer than 1/256 no longer apart. The output has the weights'.
    """

    def __init__(self, channels: int, hidden: int, width: int, *, scale: float, period: float, denominator: int) -> None:
        super().__init__()
        indices = torch.arange(channels // 2, dtype=torch.float32, device="cpu")
        self.frequencies = Constant(scale * torch.exp(indices * (-math.log(period) / denominator)))
        self.perceptron = nn.Sequential(nn.Linear(channels, hidden), nn.SiLU(), nn.Linear(hidden, width))

    def forward(self, level_N: Tensor) -> Tensor:
        device = level_N.device.type  # the meta device knows no autocast
        with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
            angle_NC = level_N.float()[:, None] * self.frequencies()[None, :]
            hidden = functional.silu(self._linear(0, torch.cat([angle_NC.sin(), angle_NC.cos()], dim=1)))
            return self._linear(2, hidden).to(self.get_parameter("perceptron.2.weight").dtype)

    def _linear(self, layer: int, x: Tensor) -> Tensor:
        weight, bias = (self.get_parameter(f"perceptron.{layer}.{name}") for name in ("weight", "bias"))
        exact = torch.promote_types(weight.dtype, torch.float32)
        return functional.linear(x.to(exact), weight.to(exact), bias.to(exact))


def norm_groups(channels: int) -> int:
    """The largest divisor of ``channels`` that is at most min(32, channels / 4)."""
    limit = max(1, min(32, channels // 4))
    return next(groups for groups in range(limit, 0, -1) if channels % groups == 0)


def group_norm(channels: int, groups: int | None) -> nn.GroupNorm:
    """A group norm of ``groups`` groups, ``norm_groups(channels)`` when None."""
    return nn.GroupNorm(norm_groups(channels) if groups is None else groups, channels)


class Conditioning(nn.Module):
    """A normalisation that the noise embedding enters: norm(x + e), norm(x) (1 + gain) + shift, or conditional instance norm ++.

    The last (Song & Ermon 2019, appendix A) is (1 + gain) (x - mean) / std + shift + (1 + weight) (mean - m) / v, where mean and std are
    those of each map and m, v the mean and deviation of the means over the channels: it keeps the colour that instance norm loses.
    """

    def __init__(self, channels: int, width: int, *, kind: NoiseConditioning, groups: int | None, activation: bool) -> None:
        super().__init__()
        self.kind, self.activation = kind, activation
        self.norm = nn.Identity() if kind == "instance_norm" else group_norm(channels, groups)
        self.project = nn.Linear(width, {"additive": 1, "affine": 2, "instance_norm": 3}[kind] * channels)

    def forward(self, x_NCHW: Tensor, embedding_NE: Tensor) -> Tensor:
        projected = self.project(functional.silu(embedding_NE) if self.activation else embedding_NE)[:, :, None, None]
        if self.kind == "additive":
            out: Tensor = self.norm(x_NCHW + projected)
            return out
        if self.kind == "affine":
            gain, shift = projected.chunk(2, dim=1)
            modulated: Tensor = self.norm(x_NCHW) * (1.0 + gain) + shift
            return modulated
        gain, shift, weight = projected.chunk(3, dim=1)
        deviation, mean = torch.std_mean(x_NCHW, dim=(2, 3), correction=0, keepdim=True)
        spread, centre = torch.std_mean(mean, dim=1, correction=0, keepdim=True)
        instance = (x_NCHW - mean) / (deviation + EPSILON)
        return (1.0 + gain) * instance + shift + (1.0 + weight) * (mean - centre) / (spread + EPSILON)


EPSILON = 1e-5  # of the instance norm's deviations


def activated(norm: nn.Module, x_NCHW: Tensor, embedding_NE: Tensor | None = None, *, again: bool) -> Tensor:
    """SiLU of a norm, or of a ``Conditioning``; with ``again`` what lies between is made anew in the backward pass, not stored.

    Bit for bit the same, forward and backward: the same operations on the same numbers.
    """

    def made(x: Tensor, embedding: Tensor | None) -> Tensor:
        return functional.silu(norm(x) if embedding is None else norm(x, embedding))

    if not again or not torch.is_grad_enabled():
        return made(x_NCHW, embedding_NE)
    out: Tensor = checkpoint(made, x_NCHW, embedding_NE, use_reentrant=False, preserve_rng_state=False)  # pyright: ignore[reportAssignmentType] - nothing is drawn
    return out


class ResidualBlock(nn.Module):
    """norm, SiLU, conv, conditioning, SiLU, dropout, conv; the sum with the shortcut is scaled by ``skip_scale``.

    ``resample`` changes the size by 2 inside the block, on both paths (BigGAN blocks, as in SR3, appendix A); None is DDPM's block.
    ``norms_again``: see ``activated``.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        width: int,
        *,
        conditioning: NoiseConditioning,
        activation: bool,
        groups: int | None,
        dropout: float,
        skip_scale: float,
        shortcut: Shortcut,
        shortcut_always: bool,
        norms_again: bool,
        resample: Resample | None = None,
    ) -> None:
        super().__init__()
        self.norms_again = norms_again
        self.norm_in = group_norm(channels_in, groups)
        self.conv_in = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.condition = Conditioning(channels_out, width, kind=conditioning, groups=groups, activation=activation)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = zero(nn.Conv2d(channels_out, channels_out, 3, padding=1))
        self.shortcut = make_shortcut(channels_in, channels_out, shortcut, always=shortcut_always)
        self.skip_scale = skip_scale
        self.resample: Resample | None = resample

    def forward(self, x_NCHW: Tensor, embedding_NE: Tensor) -> Tensor:
        hidden = self.conv_in(resized(activated(self.norm_in, x_NCHW, again=self.norms_again), self.resample))
        hidden = activated(self.condition, hidden, embedding_NE, again=self.norms_again)
        hidden = self.conv_out(self.dropout(hidden))
        shortcut: Tensor = self.shortcut(resized(x_NCHW, self.resample))
        return (shortcut + hidden) * self.skip_scale


class DeepResidualBlock(nn.Module):
    """BigGAN-deep (Brock et al. 2019, appendix B): 1x1, 3x3, 3x3, 1x1 with a norm and a SiLU before each, ``inner`` channels between.

    The noise embedding enters the second and the fourth norm; ``resample`` acts before the first 3x3.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        width: int,
        *,
        inner: int,
        conditioning: NoiseConditioning,
        activation: bool,
        groups: int | None,
        dropout: float,
        skip_scale: float,
        shortcut: Shortcut,
        shortcut_always: bool,
        norms_again: bool,
        resample: Resample | None = None,
    ) -> None:
        super().__init__()
        self.norms_again = norms_again
        self.norm_in = group_norm(channels_in, groups)
        self.conv_in = nn.Conv2d(channels_in, inner, 1)
        self.condition_in = Conditioning(inner, width, kind=conditioning, groups=groups, activation=activation)
        self.conv_first = nn.Conv2d(inner, inner, 3, padding=1)
        self.norm_middle = group_norm(inner, groups)
        self.conv_second = nn.Conv2d(inner, inner, 3, padding=1)
        self.condition_out = Conditioning(inner, width, kind=conditioning, groups=groups, activation=activation)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = zero(nn.Conv2d(inner, channels_out, 1))
        self.shortcut = make_shortcut(channels_in, channels_out, shortcut, always=shortcut_always)
        self.skip_scale = skip_scale
        self.resample: Resample | None = resample

    def forward(self, x_NCHW: Tensor, embedding_NE: Tensor) -> Tensor:
        again = self.norms_again
        hidden = self.conv_in(activated(self.norm_in, x_NCHW, again=again))
        hidden = resized(activated(self.condition_in, hidden, embedding_NE, again=again), self.resample)
        hidden = self.conv_second(activated(self.norm_middle, self.conv_first(hidden), again=again))
        hidden = activated(self.condition_out, hidden, embedding_NE, again=again)
        hidden = self.conv_out(self.dropout(hidden))
        shortcut: Tensor = self.shortcut(resized(x_NCHW, self.resample))
        return (shortcut + hidden) * self.skip_scale


class LinearShortcut(nn.Linear):
    """A linear map over the channels of every pixel: a 1x1 convolution by another name, kept for weights that store it so."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def make_shortcut(channels_in: int, channels_out: int, kind: Shortcut, *, always: bool) -> nn.Module:
    """The map beside a residual block: the identity where the channels agree, unless ``always``."""
    if channels_in == channels_out and not always:
        return nn.Identity()
    return LinearShortcut(channels_in, channels_out) if kind == "linear" else nn.Conv2d(channels_in, channels_out, 1)


class ResampleBeside(nn.Module):
    """A change of size by 2 between the residual blocks; ``conv``: strided 3x3 down, nearest neighbour and 3x3 up (DDPM)."""

    def __init__(self, channels: int, resample: Resample, *, conv: bool) -> None:
        super().__init__()
        self.resample: Resample = resample
        self.conv = nn.Conv2d(channels, channels, 3, stride=2 if resample == "down" else 1, padding=1) if conv else None

    def forward(self, x_NCHW: Tensor, embedding_NE: Tensor) -> Tensor:
        if self.conv is None:
            return resized(x_NCHW, self.resample)
        out: Tensor = self.conv(x_NCHW if self.resample == "down" else resized(x_NCHW, "up"))
        return out


class Attention(nn.Module):
    """Self-attention over the H x W positions behind one norm, residual (DDPM, appendix B).

    ``logit_scale`` multiplies the dot products. ``heads_first``: the projected channels are [heads][q, k, v], else [q, k, v][heads].
    ``max_side``: maps of more than max_side^2 positions are refused (BadInput): the logits of a map grow with the fourth power of its side.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        groups: int | None,
        skip_scale: float,
        logit_scale: float,
        bias: bool,
        heads_first: bool,
        output: bool,
        max_side: int,
    ) -> None:
        super().__init__()
        self.norm = group_norm(channels, groups)
        self.query_key_value = nn.Conv2d(channels, 3 * channels, 1, bias=bias)
        self.out = zero(nn.Conv2d(channels, channels, 1)) if output else nn.Identity()
        self.heads, self.skip_scale, self.logit_scale = heads, skip_scale, logit_scale
        self.heads_first, self.max_side = heads_first, max_side

    def forward(self, x_NCHW: Tensor) -> Tensor:
        n, c, h, w = x_NCHW.shape
        if h * w > self.max_side**2:
            raise attention_too_large(f"attention over {w} x {h} positions", self.max_side)
        shape = (n, h * w, self.heads, 3, c // self.heads) if self.heads_first else (n, h * w, 3, self.heads, c // self.heads)
        # channels go last before they are taken apart, so that their gradients, put together again, are channels_last too
        parts = self.query_key_value(self.norm(x_NCHW)).permute(0, 2, 3, 1).reshape(shape).unbind(3 if self.heads_first else 2)
        query, key, value = (part.transpose(1, 2) for part in parts)
        mixed = functional.scaled_dot_product_attention(query, key, value, scale=self.logit_scale)
        mixed = self.out(mixed.transpose(1, 2).reshape(n, h, w, c).permute(0, 3, 1, 2))  # stays channels_last
        return (x_NCHW + mixed) * self.skip_scale


def attention_too_large(got: str, max_side: int) -> BadInput:
    """The refusal of attention over too many positions."""
    do = "attend at a larger downsampling factor, use smaller images or tiles, or raise model.options.attention_max_side"
    return BadInput(got, f"maps of up to {max_side} x {max_side} (attention_max_side; memory)", do)


def zero(module: nn.Conv2d) -> nn.Conv2d:
    """Start a branch at zero, so that a fresh residual block is the identity."""
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module


def resized(x_NCHW: Tensor, resample: Resample | None) -> Tensor:
    """Half the size by averaging, twice by repeating, or as it is."""
    if resample == "down":
        return functional.avg_pool2d(x_NCHW, 2)
    if resample == "up":
        return functional.interpolate(x_NCHW, scale_factor=2.0, mode="nearest")
    return x_NCHW


def padded(x_NCHW: Tensor, multiple: int) -> Tensor:
    """Continued by reflection at the right and the bottom until both sides are multiples of ``multiple``, however small they are."""
    height, width = x_NCHW.shape[-2:]
    right, bottom = -width % multiple, -height % multiple
    while right or bottom:  # one reflection reaches at most one side's length less one
        now = min(right, max(1, x_NCHW.shape[-1] - 1)), min(bottom, max(1, x_NCHW.shape[-2] - 1))
        mode = "reflect" if min(x_NCHW.shape[-2:]) > 1 else "replicate"
        x_NCHW = functional.pad(x_NCHW, (0, now[0], 0, now[1]), mode=mode)
        right, bottom = right - now[0], bottom - now[1]
    return x_NCHW
