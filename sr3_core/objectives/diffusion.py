"""Denoising diffusion: SR3's objective and its options. Sampling is in sr3_core/diffusion/predictor.py.

The faithful SR3 recipe is prediction "eps", target "image", loss "l1", levels "piecewise" (arXiv 2104.07636, sections 2.1-2.4).
"""

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from sr3_core import config, plugins
from sr3_core.config import Section, Stage
from sr3_core.data.loader import Batch, MicroBatches
from sr3_core.diffusion import process, schedules
from sr3_core.diffusion.predictor import Predictor, sampling_options, unit_noise, upsampled
from sr3_core.errors import BadInput
from sr3_core.seeds import generator

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
        eps = unit_noise([generator(seed, "noise", int(index)) for index in batch.sample_index], x0)
        noisy = process.diffuse(x0, eps, gamma)
        prediction = players[turn](noisy, low, gamma, label=batch.labels)
        difference = prediction.float() - process.target(self.options.prediction, x0, eps, gamma)
        error = difference.abs() if self.options.loss == "l1" else difference.square()
        weight = process.loss_weight(self.options.prediction, gamma, self.options.min_snr).to(error.dtype)
        loss = (error.flatten(1).mean(dim=1) * weight).mean()
        return loss, {"loss": float(loss.detach())}

    def estimate(self, network: nn.Module, noisy: Tensor, up: Tensor | None, gamma: Tensor, labels: Tensor | None) -> Tensor:
        """x0 (N, C, H, W) of the target, as ``network`` predicts it in one call; ``up`` is the low image at the size of ``noisy``."""
        return process.to_x0(self.options.prediction, network(noisy, up, gamma, label=labels), noisy, gamma)

    def predictor(self, network: nn.Module, *, degradation: str) -> Predictor:
        """``degradation`` is the filter that made the low images; the projection undoes what it can see."""
        return Predictor(
            network,
            self.estimate,
            stage=self.stage,
            prediction=self.options.prediction,
            levels=self.options.levels,
            residual_scale=self.residual_scale if self.options.target == "residual" else None,
            degradation=degradation,
        )
