"""How the weights move, by images seen: the optimizer, its learning rate, and what both carry from step to step beside tensors."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from sr3_core import config
from sr3_core.config import Training

LOSS_SCALE = 2.0**16  # float16's at the start, as in torch.amp.GradScaler


@dataclass
class Carried:
    """Of a run's optimisation what is no tensor; a part of every checkpoint, so that a resumed run goes on as if never broken off.

    ``best_loss`` and ``waited_images`` since it are the plateau's; ``reductions`` counts how often it lowered the learning rate.
    ``skipped`` steps were left out by the guard, the last ``skipped_in_row`` of them one after the other. ``loss_scale`` is float16's,
    ``steady_steps`` were taken since it last changed.
    """

    best_loss: float | None = None
    waited_images: int = 0
    reductions: int = 0
    skipped: int = 0
    skipped_in_row: int = 0
    loss_scale: float = field(default_factory=lambda: LOSS_SCALE)
    steady_steps: int = 0

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Carried":
        """From what ``to_json`` gave; what an older checkpoint does not know starts anew."""
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """As a checkpoint's manifest holds it."""
        return asdict(self)

    def observe(self, training: Training, images_seen: int, line: Mapping[str, float], *, exported: str) -> None:
        """Take in a log line, means over the last ``log_images``; the plateau alone looks at it, at the loss of the player ``exported``."""
        schedule = training.learning_rate
        loss = line.get(f"{exported}.loss", line.get("loss"))  # several players have their names before their metrics
        if schedule.patience_images is None or images_seen <= schedule.warmup_images or loss is None:
            return
        if self.best_loss is None or loss < self.best_loss - schedule.threshold * abs(self.best_loss):
            self.best_loss, self.waited_images = loss, 0
            return
        self.waited_images += training.log_images
        if self.waited_images >= schedule.patience_images:
            self.waited_images = 0
            self.reductions += 1


def make_optimizer(player: nn.Module, options: config.Optimizer) -> torch.optim.Optimizer:
    """The optimizer of all parameters of ``player``. Fused where torch has it (Adam, AdamW); RMSprop updates tensors by groups."""
    shared: dict[str, Any] = {"lr": options.learning_rate, "weight_decay": options.weight_decay, "eps": options.epsilon}
    if options.name == "rmsprop":
        return torch.optim.RMSprop(player.parameters(), alpha=options.smoothing, momentum=options.momentum, foreach=True, **shared)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[options.name]
    return kind(player.parameters(), betas=options.betas, fused=True, **shared)


def learning_rate(training: Training, images_seen: int, *, reductions: int = 0) -> float:
    """Learning rate of the step that starts at ``images_seen``, as ``config.LearningRate`` says; ``reductions``: of the plateau so far."""
    schedule, peak = training.learning_rate, training.optimizer.learning_rate
    if images_seen < schedule.warmup_images:
        return peak * min(1.0, (images_seen + training.global_batch) / schedule.warmup_images)
    after = images_seen - schedule.warmup_images
    if schedule.name == "cosine":
        progress = after / max(1, training.images - schedule.warmup_images)
        return peak * (schedule.final + (1.0 - schedule.final) * 0.5 * (1.0 + math.cos(math.pi * progress)))
    if schedule.name == "plateau":
        return peak * max(schedule.final, schedule.factor**reductions)
    if schedule.period_images is None:  # constant
        return peak
    periods, within = divmod(after, schedule.period_images)
    if schedule.name == "step":
        return peak * max(schedule.final, schedule.factor**periods)
    return peak * (schedule.final + (1.0 - schedule.final) * abs(1.0 - 2.0 * within / schedule.period_images))
