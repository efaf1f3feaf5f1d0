"""What is looked at while a stage trains: held-out images, upscaled and judged by the averaged weights. No torch here."""

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from sr3_core.config.section import Plugin, Section, SplitName


class Watch(Section):
    """Every ``images`` seen, and at the end: ``samples`` held-out images side by side with their truth, and the training's loss on
    ``loss_samples`` of them. Both are of the averaged weights, at fixed crops, noise levels and noise, and change nothing that is trained.

    ``split``: where they are from; one with fewer images gives them again, with other noise. ``sampling``: changes of the stage's
    sampling options for these samples (fewer steps). ``metrics``: what judges the samples beside PSNR, as in evaluation (lpips, ssim, ...).
    Every average of ``ema.also`` is looked at by the same, its numbers under its name, and draws samples of its own. The first worker
    draws them while the others wait, at most for half an hour, the timeout of Ray's process group.

    ``keep_best``: the checkpoints that are kept beside the newest ones, those that look best by ``best_by``: the lowest
    ``validation/loss`` or the highest ``validation/psnr_rgb``. The bundle holds the last weights whatever these say.
    """

    LATER: ClassVar[tuple[str, ...]] = ("keep_best", "best_by", "metrics")

    images: int = Field(gt=0)
    split: SplitName = "val"
    samples: int = Field(default=4, ge=0, le=64)
    loss_samples: int = Field(default=64, ge=0)
    sampling: dict[str, Any] = Field(default={})
    keep_best: int = Field(default=0, ge=0)
    best_by: Literal["loss", "psnr_rgb"] = "loss"
    metrics: tuple[Plugin, ...] = ()

    @field_validator("metrics", mode="before")
    @classmethod
    def _names_alone(cls, value: Any) -> Any:
        return [{"name": item} if isinstance(item, str) else item for item in value] if isinstance(value, (list, tuple)) else value

    @model_validator(mode="after")
    def _something(self) -> "Watch":
        if not self.samples and not self.loss_samples:
            raise ValueError("samples 0 and loss_samples 0: nothing would be looked at; leave training.watch out")
        for name in ("sampling", "metrics"):
            if getattr(self, name) and not self.samples:
                raise ValueError(f"{name} is set, but samples 0 draws none")
        if self.best_by != "loss" and not self.keep_best:
            raise ValueError(f"best_by {self.best_by} is set, but keep_best 0 keeps none")
        needed = "samples" if self.best_by == "psnr_rgb" else "loss_samples"
        if self.keep_best and not getattr(self, needed):
            raise ValueError(f"keep_best {self.keep_best} by {self.best_by} needs {needed}: set it, or change best_by")
        return self
