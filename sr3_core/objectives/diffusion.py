"""Denoising diffusion: SR3's objective and its options, and the predictor that samples from a trained denoiser.

The faithful SR3 recipe is prediction "eps", target "image", loss "l1", levels "piecewise" (arXiv 2104.07636, sections 2.1-2.4).
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from sr3_core import config, plugins
from sr3_core.config import Section, Stage
from sr3_core.data.loader import Batch, MicroBatches
from sr3_core.diffusion import process, samplers, schedules
from sr3_core.errors import BadInput
from sr3_core.resample import resample
from sr3_core.seeds import generator

UPSAMPLING = "bicubic"  # of the low image that the network sees and that a residual starts from (SR3, section 2.3)
MEASURED_SAMPLES = 128  # samples behind the residual's measured deviation


class Options(Section):
    """``target`` residual: y0 = (high - up(low)) / c, where c is ``residual_scale`` or, when null, twice the measured deviation.

    ``min_snr`` weights the loss (Hang et al. 2023); null leaves it unweighted.
    """

    prediction: process.Prediction = "eps"
    target: Literal["image", "residual"] = "image"
    residual_scale: float | None = Field(default=None, gt=0)
    levels: schedules.Levels = schedules.Levels()
    loss: Literal["l1", "l2"] = "l1"
    min_snr: float | None = Field(default=None, gt=0)


class Sampling(Section):
    """How a sample is drawn. A log-SNR grid runs ``start`` to ``end`` (half log-SNR; default: the span of training), then to x0.

    ``projection``: passes of x0 += up(low - down(x0)) on each step's x0, the last of which is the sample; 0 for none. ``clip``: x0 is
    kept in [-1, 1]. ``eta`` is read by ddim, ``order`` by the two multistep samplers, ``posterior_variance`` by ancestral; the others
    leave them alone, so that a sampler can be exchanged by its name.
    """

    sampler: Literal["ancestral", "ddim", "dpmpp_2m", "sde_dpmpp_2m", "unipc", "heun"] = "ancestral"
    steps: int = Field(default=100, ge=1)
    grid: Literal["time", "log_snr"] = "time"
    start: float | None = None
    end: float | None = None
    order: Literal[1, 2] = 2
    eta: float = Field(default=0.0, ge=0, le=1)
    posterior_variance: bool = False
    projection: int = Field(default=0, ge=0)
    clip: bool = True


class Objective:
    """One player, the denoiser. ``measured`` holds what was learnt of the data before training: ``residual_scale``."""

    turns: tuple[str, ...] = ("denoiser",)
    exported = "denoiser"

    def __init__(self, stage: Stage, measured: Mapping[str, float]) -> None:
        self.stage = stage
        self.options = config.options(Options, stage.objective.options, "objective")
        sampling_options(stage, {})
        if self.options.target == "residual" and stage.low is None:
            raise BadInput(f"stage {stage.name}: target residual without a low image", "target image", "set objective.options.target=image")
        self.residual_scale = self.options.residual_scale or measured.get("residual_scale", 1.0)

    @staticmethod
    def measure(stage: Stage, batches: MicroBatches) -> dict[str, float]:
        """Twice the deviation of high - up(low) over the first samples of the training order; {} when nothing is to be measured."""
        options = config.options(Options, stage.objective.options, "objective")
        if options.target == "image" or options.residual_scale is not None:
            return {}
        batch = batches.batch(0, MEASURED_SAMPLES)
        residual = batch.high - upsampled(batch.low, batch.high)
        return {"residual_scale": 2.0 * float(residual.double().square().mean().sqrt())}

    def players(self) -> dict[str, nn.Module]:
        """A fresh denoiser, initialised from the training seed alone."""
        module = plugins.load("models", self.stage.model.name)
        options = config.options(module.Options, self.stage.model.options, self.stage.model.name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.stage.training.seed)
            return {"denoiser": module.build(options, self.stage)}

    def loss(self, turn: str, players: Mapping[str, Callable[..., Tensor]], batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Mean loss of the micro-batch; gamma and noise are drawn per sample from its global index."""
        x0, low = batch.high, None
        if batch.low is not None:
            low = upsampled(batch.low, batch.high)
            if self.options.target == "residual":
                x0 = (batch.high - low) / self.residual_scale
        seed = self.stage.training.seed
        uniform = np.stack([generator(seed, "gamma", int(index)).random(2) for index in batch.sample_index])
        gamma = torch.from_numpy(self.options.levels.draw(uniform)).to(x0.device)
        eps = _noise([generator(seed, "noise", int(index)) for index in batch.sample_index], x0)
        noisy = process.diffuse(x0, eps, gamma)
        prediction = players[turn](noisy, low, gamma, label=batch.labels)
        difference = prediction.float() - process.target(self.options.prediction, x0, eps, gamma)
        error = difference.abs() if self.options.loss == "l1" else difference.square()
        weight = process.loss_weight(self.options.prediction, gamma, self.options.min_snr).to(error.dtype)
        loss = (error.flatten(1).mean(dim=1) * weight).mean()
        return loss, {"loss": float(loss.detach())}

    def predictor(self, network: nn.Module, *, degradation: str) -> "Predictor":
        """``degradation`` is the filter that made the low images; the projection undoes what it can see."""
        return Predictor(network, stage=self.stage, options=self.options, residual_scale=self.residual_scale, degradation=degradation)


class Predictor:
    """Samples high images for low ones: ``predict(low, seeds=..., **sampling)``."""

    def __init__(self, network: nn.Module, *, stage: Stage, options: Options, residual_scale: float, degradation: str) -> None:
        self.network, self.stage, self.options = network, stage, options
        self.residual_scale, self.degradation = residual_scale, degradation

    @torch.inference_mode()
    def predict(
        self,
        low: Tensor | None,
        *,
        seeds: np.ndarray[Any, Any] | Tensor,
        size: tuple[int, int] | None = None,
        labels: Tensor | None = None,
        **sampling: Any,
    ) -> Tensor:
        """High images (N, C, H, W) in [-1, 1] for ``low`` (N, C, h, w) in [-1, 1], or None for an unconditional stage.

        ``seeds`` (N,): item i's noise depends on seeds[i] alone. ``size`` defaults to scale x the low size. ``sampling`` overrides
        the stage's options (see ``Sampling``); unknown ones raise BadInput.
        """
        chosen = sampling_options(self.stage, sampling)
        device = next(self.network.parameters()).device
        if low is not None:
            low = low.to(device)
            size = size or (low.shape[-2] * self.stage.scale, low.shape[-1] * self.stage.scale)
        size = size or (self.stage.high, self.stage.high)
        numbers = [int(seed) for seed in seeds]
        like = torch.empty((len(numbers), self.stage.channels, *size), device=device)
        up = None if low is None else upsampled(low, like)
        self.network.eval()

        def denoise(y: Tensor, level: float) -> Tensor:
            gamma = torch.full((y.shape[0],), level, dtype=torch.float64, device=device)
            output = self.network(y, up, gamma, label=labels)
            return self._constrained(process.to_x0(self.options.prediction, output, y, gamma), up, low, chosen)

        def noise(step: int) -> Tensor:
            return _noise([generator(number, "sampling", step + 1) for number in numbers], like)

        start = _noise([generator(number, "sampling", 0) for number in numbers], like)
        gammas = self._grid(chosen)
        sampler = _SAMPLERS[chosen.sampler]
        y0 = sampler(denoise, start, gammas, noise, **_sampler_options(chosen))
        return self._image(y0, up).clamp(-1.0, 1.0)

    def _grid(self, chosen: Sampling) -> list[float]:
        if chosen.grid == "time":
            return schedules.time_grid(chosen.steps, self.options.levels.schedule).tolist()
        first, last = self.options.levels.span()
        first = first if chosen.start is None else chosen.start
        last = last if chosen.end is None else chosen.end
        if chosen.steps > 1 and first >= last:
            got = f"stage {self.stage.name}: sampling from start {first:g} to end {last:g}"
            raise BadInput(got, "a start below the end (half log-SNR, noise first)", "change sampling.start or sampling.end")
        return schedules.log_snr_grid(chosen.steps, first, last).tolist()

    def _image(self, y0: Tensor, up: Tensor | None) -> Tensor:
        return up + self.residual_scale * y0 if self.options.target == "residual" and up is not None else y0

    def _constrained(self, y0: Tensor, up: Tensor | None, low: Tensor | None, chosen: Sampling) -> Tensor:
        """Clip the image (never the residual itself) and pull it onto the low image."""
        image = self._image(y0, up)
        if chosen.clip:
            image = image.clamp(-1.0, 1.0)
        if low is not None:
            for _ in range(chosen.projection):
                image = image + upsampled(low - resample(image, (low.shape[-2], low.shape[-1]), self.degradation), image)
                if chosen.clip:
                    image = image.clamp(-1.0, 1.0)
        return (image - up) / self.residual_scale if self.options.target == "residual" and up is not None else image


_SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "ancestral": samplers.ancestral,
    "ddim": samplers.ddim,
    "dpmpp_2m": samplers.dpmpp_2m,
    "sde_dpmpp_2m": samplers.sde_dpmpp_2m,
    "unipc": samplers.unipc,
    "heun": samplers.heun,
}


def _sampler_options(chosen: Sampling) -> dict[str, Any]:
    if chosen.sampler == "ancestral":
        return {"posterior_variance": chosen.posterior_variance}
    if chosen.sampler == "ddim":
        return {"eta": chosen.eta}
    return {"order": chosen.order} if chosen.sampler in ("dpmpp_2m", "sde_dpmpp_2m") else {}


def sampling_options(stage: Stage, overrides: Mapping[str, Any]) -> Sampling:
    """The stage's sampling options with ``overrides`` on top, validated."""
    return config.options(Sampling, {**stage.sampling, **overrides}, f"stage {stage.name}: sampling")


def upsampled(low: Tensor | None, like: Tensor) -> Tensor:
    """``low`` (N, C, h, w) at the size of ``like``."""
    if low is None:
        raise BadInput("no low image", "one low image per high image", "check the stage's 'low'")
    return resample(low, (like.shape[-2], like.shape[-1]), UPSAMPLING)


def _noise(generators: list[np.random.Generator], like: Tensor) -> Tensor:
    drawn = np.stack([generator.standard_normal(like.shape[1:], dtype=np.float32) for generator in generators])
    return torch.from_numpy(drawn).to(device=like.device, dtype=like.dtype)
