"""Denoising diffusion: SR3's objective and its options. Sampling is in sr3_core/diffusion/predictor.py.

The faithful SR3 recipe is prediction "eps", target "image", loss "l1", levels "piecewise" (arXiv 2104.07636, sections 2.1-2.4).
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from sr3_core import config, labels, plugins
from sr3_core.config import Section, Stage
from sr3_core.config.unread import refuse_unread
from sr3_core.data.loader import Batch, MicroBatches
from sr3_core.diffusion import guard, process, schedules
from sr3_core.diffusion.grids import sampling_grid, sampling_options
from sr3_core.diffusion.low_augmentation import LowAugmentation
from sr3_core.diffusion.noise_bins import by_level
from sr3_core.diffusion.predictor import Predictor, unit_noise
from sr3_core.diffusion.upsampling import CLIPPED, Upsampling, upsampled
from sr3_core.diffusion.walk import Walk, walk
from sr3_core.errors import BadInput
from sr3_core.seeds import generator
from sr3_core.training.window import Value

# which options each value of these reads; one that is set for another value is refused
_READS: dict[str, dict[str, tuple[str, ...]]] = {
    "prediction": {"eps": (), "x0": (), "v": (), "edm": ("sigma_data",)},
    "target": {"image": (), "residual": ("residual_scale",)},
    "loss": {"l1": (), "l2": (), "huber": ("huber_delta",)},
    "loss_weight": {"none": (), "snr": (), "min_snr": ("min_snr",)},
}
MEASURED_SAMPLES = 128  # samples behind the residual's measured deviation


class Options(Section):
    """What the network learns, from which levels, by which loss.

    ``prediction`` eps, x0, v or edm: the F of EDM's preconditioning, for which ``sigma_data`` is the target's deviation. It is
    EDM's network alone: its loss and levels are ``loss`` l2 and ``levels`` log_normal, and the defaults here are SR3's.
    ``target`` residual: y0 = (high - up(low)) / c, where c is ``residual_scale`` or, when null, twice the measured root mean square of
    high - up(low). ``huber_delta`` is where huber turns from squared to absolute. ``loss_weight`` none, snr or min_snr, whose bound is
    ``min_snr`` (Hang et al. 2023): weights on a squared error, so not for l1.
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
        for chooser, reads in _READS.items():
            refuse_unread(self, chooser, reads)
        if self.loss == "l1" and self.loss_weight != "none":
            raise ValueError(
                f"loss_weight {self.loss_weight} weighs a squared error, loss l1 is none: set loss to l2, or loss_weight to none"
            )
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

    ``notes`` are the lines that people should read beside the stage's results: the schedule guard's warnings and waivers, and sampling
    options that the sampler does not read.
    """

    turns: tuple[str, ...] = ("denoiser",)
    exported = "denoiser"

    def __init__(self, stage: Stage, measured: Mapping[str, float]) -> None:
        self.stage = stage
        self.options = config.options(Options, stage.objective.options, "objective")
        self.read = self.options.parameterisation
        _refuse_disagreement(stage, self.options)
        levels, reason = self.options.levels, self.options.schedule_guard_reason
        self.ranges = guard.check(stage.name, levels, sampling_grid(stage, levels, sampling_options(stage, {})), reason=reason)
        self.notes = self.sampling_notes({})
        self._measured = measured

    @property
    def residual_scale(self) -> float | None:
        """The c of a residual target, None when the target is the image. BadInput when it was not measured."""
        if self.options.target == "image":
            return None
        if self.options.residual_scale is not None:
            return self.options.residual_scale
        if "residual_scale" not in self._measured:
            got = f"stage {self.stage.name}: target residual, whose scale was not measured"
            raise BadInput(got, "objective.options.residual_scale, or the one that training measured", "set it, or train with this code")
        return self._measured["residual_scale"]

    def sampling_notes(self, changes: Mapping[str, Any]) -> tuple[str, ...]:
        """``notes`` for the sampling options with ``changes`` on top. Raises BadInput for what cannot be sampled."""
        return self._walk(changes).notes

    def network_calls(self, changes: Mapping[str, Any]) -> int:
        """Calls of the network for one sample, by the sampling options with ``changes`` on top. Raises BadInput as ``sampling_notes``."""
        return self._walk(changes).network_calls

    def _walk(self, changes: Mapping[str, Any]) -> Walk:
        options = self.options
        return walk(self.stage, options.levels, options.prediction, changes, reason=options.schedule_guard_reason)

    @staticmethod
    def measure(stage: Stage, batches: MicroBatches) -> dict[str, float]:
        """Twice the root mean square of high - up(low) over the first samples of the training order; {} when nothing is to be measured."""
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

    def loss(self, turn: str, players: Mapping[str, Callable[..., Tensor]], batch: Batch) -> tuple[Tensor, dict[str, Value]]:
        """Mean loss of the micro-batch; gamma, noise, augmentation and label dropout are drawn per sample from its global index.

        The metrics are the losses by noise level; weighed by their samples, they make up the loss.
        """
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
            if self.residual_scale is not None:
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
        losses = error * weight.to(error.dtype)
        return losses.mean(), {**by_level(losses, gamma)}

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
            residual_scale=self.residual_scale,
            degradation=degradation,
            guard_reason=self.options.schedule_guard_reason,
        )


def _refuse_disagreement(stage: Stage, chosen: Options) -> None:
    """BadInput where the objective's options do not go with the stage, its network or its sampling."""
    if stage.low is None:
        for name, given in (
            ("target residual", chosen.target == "residual"),
            ("low_augmentation", chosen.low_augmentation is not None),
            ("upsampling", "upsampling" in chosen.model_fields_set),
        ):
            if given:
                raise BadInput(f"stage {stage.name}: {name} without a low image", f"no {name}", "take it out of objective.options")
    if chosen.label_dropout and not labels.of(stage).count:
        got = f"stage {stage.name}: label_dropout {chosen.label_dropout:g} for a network without labels"
        raise BadInput(got, "label_dropout 0", "set model.options.labels, or take label_dropout out of objective.options")
    network = config.options(plugins.load("models", stage.model.name).Options, stage.model.options, stage.model.name)
    if getattr(network, "augmentation", False) and chosen.low_augmentation is None:
        got = f"stage {stage.name}: a network that is told a level of low_augmentation, and none in training"
        raise BadInput(got, "both or neither", "set objective.options.low_augmentation, or model.options.augmentation=false")
    levels, table = chosen.levels, getattr(network, "table", None)
    if table is not None and levels.tabled and not np.array_equal(table.gammas(), levels.schedule.gammas()):
        got = f"stage {stage.name}: a network that counts t in another table than the schedule of training"
        raise BadInput(got, "one table", "set model.options.table and objective.options.levels.schedule alike")
    grid = sampling_options(stage, {}).grid
    if not levels.tabled and levels.schedule != schedules.Schedule() and grid != "time":
        got = f"stage {stage.name}: levels.schedule is set, but neither levels {levels.name} nor sampling.grid {grid} reads it"
        raise BadInput(got, "the default", "take it out; a schedule for sampling alone goes into sampling.betas, with grid=betas")
