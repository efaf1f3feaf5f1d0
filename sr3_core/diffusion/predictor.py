"""Sampling from a trained denoiser: the predictor that runs a sampler over a grid of levels. Options and grids are in grids.py."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sr3_core.config import Stage
from sr3_core.diffusion import process, samplers, schedules
from sr3_core.diffusion.cuda_graph import Recorded
from sr3_core.diffusion.grids import Sampling
from sr3_core.diffusion.upsampling import Upsampling, upsampled
from sr3_core.diffusion.walk import walk
from sr3_core.labels import checked
from sr3_core.resample import resample
from sr3_core.seeds import generator

Estimate = Callable[[nn.Module, Tensor, Tensor | None, Tensor, Tensor | None], Tensor]
OnPrediction = Callable[[float, Tensor, Tensor], None]


class Predictor:
    """Samples high images for low ones: ``predict(low, seeds=..., **sampling)``.

    ``estimate`` (network, noisy, up, gamma (N,), labels) -> x0 is how the objective reads the network: one call a time, x0 of the target
    (image or residual), unclipped. ``upsampling`` makes up of the low image; ``residual_scale`` is the c of a residual target, None when
    the target is the image; ``degradation`` is the filter that made the low images; ``guard_reason`` is why a schedule that the guard
    refuses is kept, "" for no such schedule.
    ``network`` may be exchanged for another of the same signature.
    """

    def __init__(
        self,
        network: nn.Module,
        estimate: Estimate,
        *,
        stage: Stage,
        prediction: process.Prediction,
        levels: schedules.Levels,
        upsampling: Upsampling,
        residual_scale: float | None,
        degradation: str,
        guard_reason: str,
    ) -> None:
        self.network, self.estimate, self.guard_reason = network, estimate, guard_reason
        self.stage, self.levels = stage, levels
        self.prediction: process.Prediction = prediction
        self.upsampling: Upsampling = upsampling
        self.residual_scale, self.degradation = residual_scale, degradation

    @torch.inference_mode()
    def predict(
        self,
        low: Tensor | None,
        *,
        seeds: np.ndarray[Any, Any] | Tensor,
        size: tuple[int, int] | None = None,
        labels: Tensor | None = None,
        on_prediction: OnPrediction | None = None,
        **sampling: Any,
    ) -> Tensor:
        """High images (N, C, H, W) in [-1, 1] for ``low`` (N, C, h, w) in [-1, 1], or None for an unconditional stage.

        ``seeds`` (N,): item i's noise depends on seeds[i] alone. ``size`` defaults to scale x the low size. ``labels`` (N,) int64 are
        those of a network that is told labels, -1 for no label; another one leaves them alone. ``sampling`` overrides the stage's options
        (see ``Sampling``). Raises BadInput for labels that the network was not trained with, for unknown options, for a grid that
        starts where training never was, and for ``cuda_graph`` without CUDA.

        ``on_prediction`` (gamma, noisy, clean) hears of every network call, in order: the level, the state the call was made at as an
        image, and the clean image predicted there, clipped and projected; both (N, C, H, W), on the network's device.
        """
        taken = walk(self.stage, self.levels, self.prediction, sampling, reason=self.guard_reason)
        chosen = taken.chosen
        device = next(self.network.parameters()).device
        numbers = [int(seed) for seed in seeds]
        told = checked(self.stage, labels, count=len(numbers))
        told = None if told is None else told.to(device)
        if low is not None:
            low = low.to(device)
            size = size or (low.shape[-2] * self.stage.scale, low.shape[-1] * self.stage.scale)
        size = size or (self.stage.high, self.stage.high)
        like = torch.empty((len(numbers), self.stage.channels, *size), device=device)
        up = None if low is None else upsampled(low, like, self.upsampling)
        self.network.eval()

        def call(y: Tensor, gamma: Tensor) -> Tensor:
            return self.estimate(self.network, y, up, gamma, told)

        estimate = Recorded(call, device) if chosen.cuda_graph else call

        def denoise(y: Tensor, level: float) -> Tensor:
            gamma = torch.full((y.shape[0],), level, dtype=torch.float64, device=device)
            image = self._constrained(self._image(estimate(y, gamma), up), low, chosen)
            if on_prediction is not None:
                on_prediction(level, self._image(y, up), image)
            return self._target(image, up)

        def noise(step: int) -> Tensor:
            return unit_noise([generator(number, "sampling", step + 1) for number in numbers], like)

        start = unit_noise([generator(number, "sampling", 0) for number in numbers], like)
        options = {name: getattr(chosen, name) for name in samplers.reads(chosen.sampler)}
        y0 = samplers.SAMPLERS[chosen.sampler](denoise, start, taken.gammas, noise, **options)
        return self._image(y0, up).clamp(-1.0, 1.0)

    def _image(self, y0: Tensor, up: Tensor | None) -> Tensor:
        return y0 if self.residual_scale is None or up is None else up + self.residual_scale * y0

    def _target(self, image: Tensor, up: Tensor | None) -> Tensor:
        return image if self.residual_scale is None or up is None else (image - up) / self.residual_scale

    def _constrained(self, image: Tensor, low: Tensor | None, chosen: Sampling) -> Tensor:
        """Threshold and clip the image (never the residual itself) and pull it onto the low image."""
        if chosen.dynamic_threshold is not None:
            image = thresholded(image, chosen.dynamic_threshold)
        if chosen.clip:
            image = image.clamp(-1.0, 1.0)
        if low is not None:
            for _ in range(chosen.projection):
                error = low - resample(image, (low.shape[-2], low.shape[-1]), self.degradation)
                image = image + upsampled(error, image, "bicubic")  # a difference, which no upsampling of pictures may clip or round
                if chosen.clip:
                    image = image.clamp(-1.0, 1.0)
        return image


def thresholded(image: Tensor, quantile: float) -> Tensor:
    """``image`` (N, C, H, W) in [-1, 1]: each item clipped to [-s, s] and divided by s, the ``quantile`` of its absolute values or 1.

    Dynamic thresholding (Saharia et al. 2022, Imagen, section 2.3), the quantile interpolated linearly as numpy does.
    """
    values = image.abs().flatten(1).sort(dim=1).values  # torch.quantile refuses more than 16 million numbers
    place = quantile * (values.shape[1] - 1)
    below = min(int(place), values.shape[1] - 2)
    bound = torch.lerp(values[:, below], values[:, below + 1], place - below).clamp(min=1.0).view(-1, 1, 1, 1)
    return image.clamp(-bound, bound) / bound


def unit_noise(generators: list[np.random.Generator], like: Tensor) -> Tensor:
    """Unit noise of the shape of ``like`` (N, C, H, W), item i from generator i alone."""
    drawn = torch.from_numpy(np.stack([generator.standard_normal(like.shape[1:], dtype=np.float32) for generator in generators]))
    drawn = drawn.pin_memory() if like.is_cuda else drawn  # a copy from pageable memory would make the host wait for the GPU
    return drawn.to(device=like.device, dtype=like.dtype, non_blocking=like.is_cuda)
