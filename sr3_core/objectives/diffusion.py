"""Denoising diffusion: SR3's objective and its options. Sampling is in sr3_core/diffusion/predictor.py.

The faithful SR3 recipe is prediction "eps", target "image", loss "l1", levels "piecewise" (arXiv 2104.07636, sections 2.1-2.4).
"""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from sr3_core import config, labels, plugins
from sr3_core.config import Section, Stage
from sr3_core.data.loader import Batch, MicroBatches
from sr3_core.diffusion import guard, process, schedules
from sr3_core.diffusion.grids import sampling_grid, sampling_options
from sr3_core.diffusion.low_augmentation import LowAugmentation
from sr3_core.diffusion.predictor import Predictor, unit_noise
from sr3_core.diffusion.upsampling import CLIPPED, Upsampling, upsampled
from sr3_core.errors import BadInput
from sr3_core.seeds import generator

MEASURED_SAMPLES = 128  # samples behind the residual's measured deviation


class Options(Section):
    """What the network learns, from which levels, by which loss.

    ``prediction`` eps, x0, v or edm (the F of EDM's preconditioning, for which ``sigma_data`` is the deviation of the target). ``target``
    residual: y0 = (high - up(low)) / c, where c is ``residual_scale`` or, when null, twice the measured deviation. ``huber_delta`` is
    where huber turns from squared to absolute; ``loss_weight`` none, snr or min_snr, whose bound is ``min_snr`` (Hang et al. 2023).
    ``dream``: the power p of DREAM (Zhou et al. 2024), which adds a forward pass without gradient; null for none.
    ``upsampling``: how the low image is brought to the high grid, which is what the network sees and what a residual is taken against:
    bicubic, bicubic_8bit or bicubic_sharp_clipped (see ``diffusion/upsampling.py``).
    ``label_dropout``: the probability that the network is not told a sample's label, so that it learns to do without one.
    ``schedule_guard`` published keeps a schedule that the guard refuses, for the ``schedule_guard_reason``.
    """

    prediction: process.Prediction = "eps"
    sigma_data: float = Field(default=0.5, gt=0)
    target: Literal["image", "residual"] = "image"
    residual_scale: float | None = Field(default=None, gt=0)
    levels: schedules.Levels = schedules.Levels()
    loss: Literal["l1", "l2", "huber"] = "l1"
    huber_delta: float = Field(default=1.0, gt=0)
    loss_weight: process.LossWeight = "none"
    min_snr: float = Field(default=5.0, gt=0)
    dream: float | None = Field(default=None, gt=0)
    low_augmentation: LowAugmentation | None = None
    label_dropout: float = Field(default=0.0, ge=0, lt=1)
    upsampling: Upsampling = "bicubic"
    schedule_guard: Literal["enforced", "published"] = "enforced"
    schedule_guard_reason: str = ""

    @model_validator(mode="after")
    def _agrees(self) -> "Options":
        if self.prediction == "eps" and self.levels.terminal_gamma == 0.0:
            raise ValueError("the levels end at gamma 0, where noise says nothing of the image: set prediction to v, x0 or edm")
        if self.upsampling in CLIPPED and self.low_augmentation is not None and self.low_augmentation.noise is not None:
            raise ValueError(f"upsampling {self.upsampling} cuts off what low_augmentation.noise adds: set upsampling=bicubic, or use blur")
        if (self.schedule_guard == "published") != bool(self.schedule_guard_reason.strip()):
            raise ValueError("schedule_guard published and a schedule_guard_reason go together: say why the schedule is kept")
        return self

    @property
    def parameterisation(self) -> process.Parameterisation:
        """What the network is given and what its output means."""
        return process.Parameterisation(self.prediction, self.sigma_data)


class Objective:
    """One player, the denoiser. ``measured`` holds what was learnt of the data before training: ``residual_scale``.

    ``notes`` are the lines that people should read beside the stage's results: the schedule guard's warnings and waivers.
    """

    turns: tuple[str, ...] = ("denoiser",)
    exported = "denoiser"

    def __init__(self, stage: Stage, measured: Mapping[str, float]) -> None:
        self.stage = stage
        self.options = config.options(Options, stage.objective.options, "objective")
        self.read = self.options.parameterisation
        if stage.low is None and self.options.target == "residual":
            raise BadInput(f"stage {stage.name}: target residual without a low image", "target image", "set objective.options.target=image")
        if stage.low is None and self.options.low_augmentation is not None:
            got = f"stage {stage.name}: low_augmentation without a low image"
            raise BadInput(got, "low_augmentation null", "take it out of objective.options")
        if stage.low is None and "upsampling" in self.options.model_fields_set:
            raise BadInput(f"stage {stage.name}: upsampling without a low image", "no upsampling", "take it out of objective.options")
        if self.options.label_dropout and not labels.of(stage).count:
            got = f"stage {stage.name}: label_dropout {self.options.label_dropout:g} for a network without labels"
            raise BadInput(got, "label_dropout 0", "set model.options.labels, or take label_dropout out of objective.options")
        gammas = sampling_grid(stage, self.options.levels, sampling_options(stage, {}))
        self.ranges = guard.check(stage.name, self.options.levels, gammas, reason=self.options.schedule_guard_reason)
        self.notes = self.ranges.notes
        self.residual_scale = self.options.residual_scale or measured.get("residual_scale", 1.0)

    @staticmethod
    def measure(stage: Stage, batches: MicroBatches) -> dict[str, float]:
        """Twice the deviation of high - up(low) over the first samples of the training order; {} when nothing is to be measured."""
        options = config.options(Options, stage.objective.options, "objective")
        if options.target == "image" or options.residual_scale is not None:
            return {}
        batch = batches.batch(0, MEASURED_SAMPLES)
        residual = batch.high - upsampled(batch.low, batch.high, options.upsampling)
        return {"residual_scale": 2.0 * float(residual.double().square().mean().sqrt())}

    def players(self) -> dict[str, nn.Module]:
        """A fresh denoiser, initialised from the training seed alone."""
        module = plugins.load("models", self.stage.model.name)
        options = config.options(module.Options, self.stage.model.options, self.stage.model.name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.stage.training.seed)
            return {"denoiser": module.build(options, self.stage)}

    def loss(self, turn: str, players: Mapping[str, Callable[..., Tensor]], batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Mean loss of the micro-batch; gamma, noise, augmentation and label dropout are drawn per sample from its global index."""
        options, training, network = self.options, self.stage.training, players[turn]
        x0, low = batch.high, None
        extra: dict[str, Tensor | None] = {"label": batch.labels}
        if batch.labels is not None:
            extra["label"] = labels.dropped(batch.labels, batch.sample_index, probability=options.label_dropout, seed=training.seed)
        if batch.low is not None:
            low = batch.low
            if options.low_augmentation is not None:
                low, extra["augmentation"] = options.low_augmentation.apply(low, batch.sample_index, seed=training.seed)
            low = upsampled(low, batch.high, options.upsampling)
            if options.target == "residual":
                x0 = (batch.high - low) / self.residual_scale
        uniform = options.levels.uniform(batch.sample_index, seed=training.seed, global_batch=training.global_batch)
        gamma = torch.from_numpy(options.levels.draw(uniform)).to(x0.device)
        eps = unit_noise([generator(training.seed, "noise", int(index)) for index in batch.sample_index], x0)
        noisy = process.diffuse(x0, eps, gamma)
        if options.dream is not None:
            with torch.no_grad():
                own = self.read.to_eps(network(self.read.given(noisy, gamma), low, gamma, **extra).float(), noisy, gamma)
            eps = process.rectified(eps, own, gamma, power=options.dream)
            noisy = process.diffuse(x0, eps, gamma)
        output = network(self.read.given(noisy, gamma), low, gamma, **extra)
        error = self._error(output.float(), self.read.target(x0, eps, gamma)).flatten(1).mean(dim=1)
        weight = self.read.loss_weight(options.loss_weight, gamma, min_snr=options.min_snr)
        loss = (error * weight.to(error.dtype)).mean()
        return loss, {"loss": float(loss.detach())}

    def _error(self, output: Tensor, target: Tensor) -> Tensor:
        """Of every value, in the target's shape."""
        if self.options.loss == "l1":
            return (output - target).abs()
        if self.options.loss == "l2":
            return (output - target).square()
        return functional.huber_loss(output, target, reduction="none", delta=self.options.huber_delta)

    def estimate(self, network: nn.Module, noisy: Tensor, up: Tensor | None, gamma: Tensor, label: Tensor | None) -> Tensor:
        """x0 (N, C, H, W) of the target, as ``network`` predicts it in one call; ``up`` is the low image at the size of ``noisy``.

        The low image is taken as it is: augmentation level 0.
        """
        unaugmented = torch.zeros_like(gamma)
        output = network(self.read.given(noisy, gamma), up, gamma, label=label, augmentation=unaugmented)
        return self.read.to_x0(output, noisy, gamma)

    def predictor(self, network: nn.Module, *, degradation: str) -> Predictor:
        """``degradation`` is the filter that made the low images; the projection undoes what it can see."""
        return Predictor(
            network,
            self.estimate,
            stage=self.stage,
            prediction=self.options.prediction,
            levels=self.options.levels,
            upsampling=self.options.upsampling,
            residual_scale=self.residual_scale if self.options.target == "residual" else None,
            degradation=degradation,
            guard_reason=self.options.schedule_guard_reason,
        )
