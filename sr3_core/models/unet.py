"""The U-Net of SR3, of DDPM and of the public SR3 codes, as options of one network (arXiv 2104.07636, section 2.3 and appendix A).

Denoiser signature: ``network(noisy, low, gamma, *, label=None, augmentation=None) -> prediction``; all images float NCHW.
"""

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from sr3_core.config import Section, Stage
from sr3_core.diffusion.schedules import Schedule
from sr3_core.errors import BadInput
from sr3_core.labels import NONE
from sr3_core.models._blocks import (
    Attention,
    Constant,
    DeepResidualBlock,
    NoiseConditioning,
    NoiseEmbedding,
    Resample,
    ResampleBeside,
    ResidualBlock,
    Shortcut,
    activated,
    attention_too_large,
    group_norm,
    padded,
    zero,
)

LOG_SNR_LIMIT = 10.0
WHOLE = 1e-2  # a fed t this close to a whole number is that number
AUGMENTATION_SCALE = 1000.0  # of the embedding of an augmentation level in [0, 1]


class Options(Section):
    """Defaults are SR3's. Where they differ between the public codes, an option names each choice.

    Blocks: ``block_style`` ddpm (3x3, 3x3; sizes change between blocks), biggan (the same; sizes change inside a residual block) or
    biggan_deep (1x1, 3x3, 3x3, 1x1 with channels / ``bottleneck`` between). ``resampling`` inside | beside and ``resampler`` pool (average,
    nearest) | conv (strided, nearest + 3x3) say it apart; null: as the style has it. ``skip_scale`` scales the residual sums,
    ``concat_scale`` the long skips before they are concatenated. ``shortcut_always``: also where the channels already agree.
    ``norm_groups`` null: the largest divisor of the channels up to min(32, channels / 4).

    Noise: ``noise_conditioning`` additive | affine (FiLM) | instance_norm (conditional instance norm ++). ``fed`` is what the embedding
    sees: gamma, sqrt(gamma), log-SNR clamped to [-10, 10], or t of the training ``table`` (0-based); multiplied by
    ``embedding_scale``. The sinusoid's period grows to ``embedding_period`` over channels / 2 (``frequency_denominator`` half) or one
    less; the perceptron has ``embedding_hidden`` and ``embedding_width`` x channels; ``embedding_activation``: a SiLU before each block's
    projection.

    Attention: behind the blocks at ``attention_factors`` (downsampling factors behind the stem: 1, 2, 4, ...) and ``attention_depths``
    (0 first, -1 last), and in the middle; ``logit_scale`` divides by sqrt(channels per head), sqrt(channels) or nothing; ``qkv_layout``
    heads: [heads][q, k, v]. Maps larger than ``attention_max_side`` squared are refused unless it is raised.

    Inputs: ``low_first`` in the concatenation; ``labels`` classes (0: labels are left alone; no label: a class of its own, which starts
    at 0); ``augmentation``: the conditioning-augmentation level in [0, 1] is embedded (false: left alone). ``stem`` s > 1 moves s x s
    pixels into channels first (and back last). ``padding`` reflect pads other sizes to the network's multiple, forbid refuses them.
    ``checkpoint_blocks`` recomputes each block in the backward pass instead of storing it; ``norm_outputs`` recomputed: only what lies
    between a norm's input and its SiLU's output, a quarter of what a block stores, for about a hundredth of a step. Both keep every bit.
    """

    channels: int = Field(default=128, ge=4)
    multipliers: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(1, 2, 4, 8, 8), min_length=1)
    blocks: int = Field(default=3, ge=1)
    block_style: Literal["ddpm", "biggan", "biggan_deep"] = "biggan"
    bottleneck: int = Field(default=4, ge=1)
    resampling: Literal["inside", "beside"] | None = None
    resampler: Literal["pool", "conv"] | None = None
    skip_scale: float = Field(default=1.0 / math.sqrt(2.0), gt=0, le=1)
    concat_scale: float = Field(default=1.0, gt=0, le=1)
    shortcut: Shortcut = "conv"
    shortcut_always: bool = False
    norm_groups: int | None = Field(default=None, ge=1)
    noise_conditioning: NoiseConditioning = "additive"
    fed: Literal["gamma", "sqrt_gamma", "log_snr", "t"] = "gamma"
    table: Schedule | None = None
    embedding_scale: float = Field(default=1000.0, gt=0)
    embedding_period: float = Field(default=10_000.0, gt=1)
    frequency_denominator: Literal["half", "half_minus_one"] = "half"
    embedding_hidden: int = Field(default=4, ge=1)
    embedding_width: int = Field(default=4, ge=1)
    embedding_activation: bool = True
    attention_factors: tuple[int, ...] = ()
    attention_depths: tuple[int, ...] = ()
    middle_attention: bool = True
    heads: int = Field(default=1, ge=1)
    logit_scale: Literal["head", "channels", "none"] = "head"
    qkv_bias: bool = True
    qkv_layout: Literal["qkv", "heads"] = "qkv"
    attention_output: bool = True
    attention_max_side: int = Field(default=64, ge=1)
    low_first: bool = True
    labels: int = Field(default=0, ge=0)
    augmentation: bool = False
    dropout: float = Field(default=0.0, ge=0, lt=1)
    stem: int = Field(default=1, ge=1)
    padding: Literal["reflect", "forbid"] = "reflect"
    checkpoint_blocks: bool = False
    norm_outputs: Literal["stored", "recomputed"] = "stored"

    @model_validator(mode="after")
    def _agrees(self) -> "Options":
        if self.channels % 2:
            raise ValueError(f"channels {self.channels} must be even: the noise embedding is sines and cosines")
        depths = len(self.multipliers)
        for width in (self.channels * multiplier for multiplier in (1, *self.multipliers)):
            for name, divisor in (("heads", self.heads), ("norm_groups", self.norm_groups or 1)):
                if width % divisor:
                    raise ValueError(f"{name} {divisor} must divide every width; {width} channels are not a multiple")
            if self.block_style == "biggan_deep" and width % (self.bottleneck * (self.norm_groups or 1)):
                raise ValueError(f"bottleneck {self.bottleneck} x norm_groups must divide every width; {width} channels do not")
        if self.inside and self.resampler == "conv":
            raise ValueError("resampler conv goes beside the blocks: set resampling=beside or resampler=pool")
        unknown = [factor for factor in self.attention_factors if factor not in {2**depth for depth in range(depths)}]
        if unknown:
            raise ValueError(f"attention_factors {unknown} must be among {[2**depth for depth in range(depths)]}")
        if any(not -depths <= depth < depths for depth in self.attention_depths):
            raise ValueError(f"attention_depths {list(self.attention_depths)} must be from {-depths} to {depths - 1}")
        if (self.fed == "t") != (self.table is not None):
            raise ValueError("fed=t and table go together: t counts the steps of the training table")
        if self.block_style != "biggan_deep" and self.bottleneck != _default("bottleneck"):
            raise ValueError(f"bottleneck is set, but block_style {self.block_style} has none: take it out, or set block_style=biggan_deep")
        if not self.attended_depths and not self.middle_attention:
            unread = [name for name in _OF_ATTENTION if getattr(self, name) != _default(name)]
            if unread:
                raise ValueError(f"{unread[0]} is set, but the network has no attention: take it out, or set attention_factors")
        return self

    @property
    def inside(self) -> bool:
        """Whether sizes change inside a residual block."""
        return self.block_style != "ddpm" if self.resampling is None else self.resampling == "inside"

    @property
    def attended_depths(self) -> set[int]:
        """Depths whose blocks are followed by attention."""
        depths = len(self.multipliers)
        return {depth % depths for depth in self.attention_depths} | {factor.bit_length() - 1 for factor in self.attention_factors}

    @property
    def multiple(self) -> int:
        """Height and width that are multiples of this need no padding."""
        return int(self.stem * 2 ** (len(self.multipliers) - 1))


_OF_ATTENTION = ("heads", "logit_scale", "qkv_bias", "qkv_layout", "attention_output")


def _default(name: str) -> Any:
    return Options.model_fields[name].default


def check(options: Options, stage: Stage) -> None:
    """BadInput when attention at the stage's size is over ``attention_max_side``, or sizes need a padding that is forbidden."""
    depths = options.attended_depths | ({len(options.multipliers) - 1} if options.middle_attention else set())
    if depths:
        side = math.ceil(stage.high / (options.stem * 2 ** min(depths)))
        if side > options.attention_max_side:
            raise attention_too_large(f"stage {stage.name}: attention over {side} x {side} positions", options.attention_max_side)
    if options.padding == "forbid":
        for name, side in (("high", stage.high), ("training.crop", stage.training.crop or stage.high)):
            if side % options.multiple:
                raise _forbidden(f"stage {stage.name}: {name} {side}", options.multiple)


def build(options: Options, stage: Stage) -> "UNet":
    """A freshly initialised network for ``stage`` (from torch's global generator). Raises BadInput as ``check`` does."""
    check(options, stage)
    network = UNet(options, channels=stage.channels, conditional=stage.low is not None)
    return network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - torch's stub lacks this overload


class UNet(nn.Module):
    """``channels`` image channels in and out; ``conditional`` networks get the upsampled low image concatenated to the noisy one."""

    def __init__(self, options: Options, *, channels: int, conditional: bool) -> None:
        super().__init__()
        self.options, self.conditional = options, conditional
        make = _Factory(options)
        pixels = options.stem**2
        self.embedding = make.embedding(options.embedding_scale)
        self.label = make.label_embedding() if options.labels else None
        self.augmentation = make.embedding(AUGMENTATION_SCALE) if options.augmentation else None
        if options.table is not None:
            self.descent = Constant(-torch.tensor(options.table.gammas()[1:], device="cpu").log())  # -log gamma (T,) float64, ascending
        self.conv_in = nn.Conv2d(channels * pixels * (2 if conditional else 1), options.channels, 3, padding=1)

        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        current, skips = options.channels, [options.channels]
        last = len(options.multipliers) - 1
        for depth, multiplier in enumerate(options.multipliers):
            at = options.channels * multiplier
            for _ in range(options.blocks):
                self.down.append(_Step(make.block(current, at), make.attention(depth, at)))
                current = at
                skips.append(at)
            if depth < last:
                self.down.append(_Step(make.resample(at, "down"), nn.Identity()))
                skips.append(at)
        middle = make.attend(current) if options.middle_attention else nn.Identity()
        self.middle = nn.ModuleList([_Step(make.block(current, current), middle), _Step(make.block(current, current), nn.Identity())])
        for depth in range(last, -1, -1):
            at = options.channels * options.multipliers[depth]
            for _ in range(options.blocks + 1):
                self.up.append(_Step(make.block(current + skips.pop(), at), make.attention(depth, at)))
                current = at
            if depth:
                self.up.append(_Step(make.resample(at, "up"), nn.Identity(), grows=True))
        self.norm_out = group_norm(current, options.norm_groups)
        self.conv_out = zero(nn.Conv2d(current, channels * pixels, 3, padding=1))

    @property
    def multiple(self) -> int:
        """Height and width must be multiples of this; other sizes are padded by reflection inside ``forward``."""
        return self.options.multiple

    def regions(self) -> list[nn.Module]:
        """The blocks in the order they are called: what is worth compiling, each by itself."""
        return [*self.down, *self.middle, *self.up]

    def forward(
        self, noisy: Tensor, low: Tensor | None, gamma: Tensor, *, label: Tensor | None = None, augmentation: Tensor | None = None
    ) -> Tensor:
        """Prediction (N, C, H, W) for ``noisy`` (N, C, H, W), ``low`` upsampled to it (None when unconditional), ``gamma`` (N,) float64.

        ``label`` (N,) int64 in [0, labels), -1 for no label, None for none at all; ``augmentation`` (N,) in [0, 1], None for 0. Raises
        ValueError for a low image too many or missing, BadInput for sizes that the options refuse.
        """
        if (low is not None) != self.conditional:
            raise ValueError("a low image is needed" if self.conditional else "an unconditional network takes no low image")
        x = noisy if low is None else torch.cat([low, noisy] if self.options.low_first else [noisy, low], dim=1)
        height, width = x.shape[-2:]
        if height % self.multiple or width % self.multiple:
            if self.options.padding == "forbid":
                raise _forbidden(f"an image of {width} x {height}", self.multiple)
            x = padded(x, self.multiple)
        embedding = self._embedded(gamma, label, augmentation)
        x = functional.pixel_unshuffle(x, self.options.stem).contiguous(memory_format=torch.channels_last)
        x = self.conv_in(x)
        skips = [x]
        for step in self.down:
            x = self._run(step, x, embedding)
            skips.append(x)
        for step in self.middle:
            x = self._run(step, x, embedding)
        for step in self.up:
            x = self._run(step, x if step.grows else torch.cat([x, skips.pop() * self.options.concat_scale], dim=1), embedding)
        x = self.conv_out(activated(self.norm_out, x, again=self.options.norm_outputs == "recomputed"))
        return functional.pixel_shuffle(x, self.options.stem)[..., :height, :width]

    def _run(self, step: nn.Module, x: Tensor, embedding: Tensor) -> Tensor:
        if self.options.checkpoint_blocks and torch.is_grad_enabled():
            out: Any = checkpoint(step, x, embedding, use_reentrant=False)
        else:
            out = step(x, embedding)
        return out

    def _embedded(self, gamma_N: Tensor, label: Tensor | None, augmentation: Tensor | None) -> Tensor:
        embedding: Tensor = self.embedding(self._fed(gamma_N))
        if self.label is not None:
            last = torch.full_like(gamma_N, self.options.labels, dtype=torch.int64)
            embedding = embedding + self.label(last if label is None else torch.where(label == NONE, last, label))
        if self.augmentation is not None:
            embedding = embedding + self.augmentation(torch.zeros_like(gamma_N) if augmentation is None else augmentation)
        return embedding

    def _fed(self, gamma_N: Tensor) -> Tensor:
        gamma_N = gamma_N.double()
        if self.options.fed == "gamma":
            return gamma_N
        if self.options.fed == "sqrt_gamma":
            return gamma_N.sqrt()
        if self.options.fed == "log_snr":
            return (gamma_N.log() - (-gamma_N).log1p()).clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT)
        return _interpolated(-gamma_N.log(), self.descent())


class _Factory:
    """Makes the parts of one network from its options."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.width = options.embedding_width * options.channels

    def embedding(self, scale: float) -> NoiseEmbedding:
        options = self.options
        denominator = options.channels // 2 - (options.frequency_denominator == "half_minus_one")
        hidden = options.embedding_hidden * options.channels
        return NoiseEmbedding(options.channels, hidden, self.width, scale=scale, period=options.embedding_period, denominator=denominator)

    def label_embedding(self) -> nn.Embedding:
        """Rows of the classes and, last, of no label: 0, so that a network that never trains it is moved to no class."""
        made = nn.Embedding(self.options.labels + 1, self.width)
        with torch.no_grad():
            made.weight[-1].zero_()
        return made

    def block(self, channels_in: int, channels_out: int, resample: Resample | None = None) -> nn.Module:
        options = self.options
        shared: dict[str, Any] = {
            "conditioning": options.noise_conditioning,
            "activation": options.embedding_activation,
            "groups": options.norm_groups,
            "dropout": options.dropout,
            "skip_scale": options.skip_scale,
            "shortcut": options.shortcut,
            "shortcut_always": options.shortcut_always,
            "norms_again": options.norm_outputs == "recomputed",
            "resample": resample,
        }
        if options.block_style == "biggan_deep":
            return DeepResidualBlock(channels_in, channels_out, self.width, inner=channels_out // options.bottleneck, **shared)
        return ResidualBlock(channels_in, channels_out, self.width, **shared)

    def resample(self, channels: int, resample: Resample) -> nn.Module:
        if self.options.inside:
            return self.block(channels, channels, resample)
        return ResampleBeside(channels, resample, conv=self.options.resampler != "pool")

    def attention(self, depth: int, channels: int) -> nn.Module:
        return self.attend(channels) if depth in self.options.attended_depths else nn.Identity()

    def attend(self, channels: int) -> Attention:
        options = self.options
        divisor = {"head": channels // options.heads, "channels": channels, "none": 1}[options.logit_scale]
        return Attention(
            channels,
            options.heads,
            groups=options.norm_groups,
            skip_scale=options.skip_scale,
            logit_scale=1.0 / math.sqrt(divisor),
            bias=options.qkv_bias,
            heads_first=options.qkv_layout == "heads",
            output=options.attention_output,
            max_side=options.attention_max_side,
        )


class _Step(nn.Module):
    """A residual block or a change of size, and what follows it at the same size."""

    def __init__(self, block: nn.Module, attention: nn.Module, *, grows: bool = False) -> None:
        super().__init__()
        self.block, self.attention, self.grows = block, attention, grows

    def forward(self, x_NCHW: Tensor, embedding_NE: Tensor) -> Tensor:
        x: Tensor = self.attention(self.block(x_NCHW, embedding_NE))
        return x


def _interpolated(value_N: Tensor, table_T: Tensor) -> Tensor:
    """Place of each -log gamma in the ascending table, 0-based, between two entries by proportion; outside it, the nearest end.

    A table may end at infinity (gamma 0): towards it the proportion is that of gamma itself, so that gamma 0 is T - 1.
    """
    above = torch.searchsorted(table_T, value_N).clamp(1, table_T.shape[0] - 1)
    below_value, above_value = table_T[above - 1], table_T[above]
    share = torch.where(above_value.isinf(), -torch.expm1(below_value - value_N), (value_N - below_value) / (above_value - below_value))
    place = (above - 1 + share).clamp(0, table_T.shape[0] - 1)
    whole = place.round()
    return torch.where((place - whole).abs() < WHOLE, whole, place)


def _forbidden(got: str, multiple: int) -> BadInput:
    return BadInput(got, f"multiples of {multiple} (padding: forbid)", "resize or crop the images, or set model.options.padding=reflect")
