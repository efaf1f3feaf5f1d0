"""Sampling from a trained denoiser: the options of a sample, and the predictor that runs a sampler over a grid of levels."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from sr3_core import config
from sr3_core.config import Section, Stage
from sr3_core.diffusion import grids, process, samplers, schedules
from sr3_core.errors import BadInput
from sr3_core.resample import resample
from sr3_core.seeds import generator

Estimate = Callable[[nn.Module, Tensor, Tensor | None, Tensor, Tensor | None], Tensor]
UPSAMPLING = "bicubic"  # of the low image that the network sees and that a residual starts from (SR3, section 2.3)


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


class Predictor:
    """Samples high images for low ones: ``predict(low, seeds=..., **sampling)``.

    ``estimate`` (network, noisy, up, gamma (N,), labels) -> x0 is how the objective reads the network: one call a time, x0 of the target
    (image or residual), unclipped. ``residual_scale`` is the c of a residual target, None when the target is the image; ``degradation``
    is the filter that made the low images. ``network`` may be exchanged for another of the same signature.
    """

    def __init__(
        self,
        network: nn.Module,
        estimate: Estimate,
        *,
        stage: Stage,
        prediction: process.Prediction,
        levels: schedules.Levels,
        residual_scale: float | None,
        degradation: str,
    ) -> None:
        self.network, self.estimate = network, estimate
        self.stage, self.prediction, self.levels = stage, prediction, levels
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
            return self._constrained(self.estimate(self.network, y, up, gamma, labels), up, low, chosen)

        def noise(step: int) -> Tensor:
            return unit_noise([generator(number, "sampling", step + 1) for number in numbers], like)

        start = unit_noise([generator(number, "sampling", 0) for number in numbers], like)
        gammas = self._grid(chosen)
        sampler = _SAMPLERS[chosen.sampler]
        y0 = sampler(denoise, start, gammas, noise, **_sampler_options(chosen))
        return self._image(y0, up).clamp(-1.0, 1.0)

    def _grid(self, chosen: Sampling) -> list[float]:
        if chosen.grid == "time":
            return grids.time_grid(chosen.steps, self.levels.schedule).tolist()
        first, last = self.levels.span()
        first = first if chosen.start is None else chosen.start
        last = last if chosen.end is None else chosen.end
        if chosen.steps > 1 and first >= last:
            got = f"stage {self.stage.name}: sampling from start {first:g} to end {last:g}"
            raise BadInput(got, "a start below the end (half log-SNR, noise first)", "change sampling.start or sampling.end")
        return grids.log_snr_grid(chosen.steps, first, last).tolist()

    def _image(self, y0: Tensor, up: Tensor | None) -> Tensor:
        return up + self.residual_scale * y0 if self.residual_scale is not None and up is not None else y0

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
        return (image - up) / self.residual_scale if self.residual_scale is not None and up is not None else image


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


def unit_noise(generators: list[np.random.Generator], like: Tensor) -> Tensor:
    """Unit noise of the shape of ``like`` (N, C, H, W), item i from generator i alone."""
    drawn = np.stack([generator.standard_normal(like.shape[1:], dtype=np.float32) for generator in generators])
    return torch.from_numpy(drawn).to(device=like.device, dtype=like.dtype)
