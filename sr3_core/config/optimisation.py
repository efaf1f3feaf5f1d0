"""How the weights move: optimizer, learning rate by images seen, averages of the weights. No torch here."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from sr3_core.config.section import NAME, Section
from sr3_core.config.unread import refuse_unread

Share = Annotated[float, Field(ge=0, lt=1)]


class Optimizer(Section):
    """``betas`` are Adam's and AdamW's; ``smoothing`` (of the squared gradient) and ``momentum`` RMSprop's; ``epsilon`` is all three's."""

    LATER: ClassVar[tuple[str, ...]] = ("smoothing", "momentum", "epsilon")

    name: Literal["adam", "adamw", "rmsprop"] = "adam"
    learning_rate: float = Field(default=1e-4, gt=0)
    betas: tuple[Share, Share] = (0.9, 0.999)
    weight_decay: float = Field(default=0.0, ge=0)
    smoothing: Share = 0.99
    momentum: Share = 0.0
    epsilon: float = Field(default=1e-8, gt=0)

    @model_validator(mode="after")
    def _reads(self) -> "Optimizer":
        refuse_unread(self, "name", {"adam": ("betas",), "adamw": ("betas",), "rmsprop": ("smoothing", "momentum")})
        return self


class LearningRate(Section):
    """Shape of the learning rate over images seen: a linear warm-up to the peak over ``warmup_images``, then ``name``.

    - constant.
    - cosine: down to ``final`` of the peak at the last image.
    - cyclic: the triangle of Smith 2017 (arXiv 1506.01186), entered at its top: down to ``final`` of the peak and back up again within
      every ``period_images``.
    - step: times ``factor`` (0.5: halved) after every ``period_images``, never below ``final`` of the peak.
    - plateau: times ``factor`` when the logged training loss (the mean over each ``training.log_images``) was for ``patience_images`` not
      below (1 - ``threshold``) of the best so far; never below ``final`` of the peak. The warm-up's windows are not looked at.
    """

    LATER: ClassVar[tuple[str, ...]] = ("period_images", "factor", "patience_images", "threshold")

    name: Literal["constant", "cosine", "cyclic", "step", "plateau"] = "constant"
    warmup_images: int = Field(default=0, ge=0)
    final: float = Field(default=0.0, ge=0, le=1)
    period_images: int | None = Field(default=None, gt=0)
    factor: float = Field(default=0.5, gt=0, lt=1)
    patience_images: int | None = Field(default=None, gt=0)
    threshold: Share = 1e-3

    @model_validator(mode="after")
    def _reads(self) -> "LearningRate":
        plateau = ("factor", "patience_images", "threshold")
        reads = {"constant": (), "cosine": (), "cyclic": ("period_images",), "step": ("period_images", "factor"), "plateau": plateau}
        refuse_unread(self, "name", reads)
        for needed in ("period_images", "patience_images"):
            if needed in reads[self.name] and getattr(self, needed) is None:
                raise ValueError(f"learning_rate {self.name} needs {needed}")
        return self


class Average(Section):
    """An average of the weights over the steps t = 1, 2, ...: average <- d(t) average + (1 - d(t)) weights.

    exponential: d = ``decay``; with ``warmup`` min(decay, (1 + t) / (10 + t)). power: d = (1 - 1 / t)^(k + 1), a power function whose
    spread is ``width`` of the time trained so far (EDM2: Karras et al. 2024, arXiv 2312.02696, section 3.1, there sigma_rel: .05, .10).
    """

    LATER: ClassVar[tuple[str, ...]] = ("kind", "width")

    decay: float = Field(default=0.9999, ge=0, lt=1)
    warmup: bool = True
    kind: Literal["exponential", "power"] = "exponential"
    width: float | None = Field(default=None, gt=0, le=0.28)

    @model_validator(mode="after")
    def _reads(self) -> "Average":
        refuse_unread(self, "kind", {"exponential": ("decay", "warmup"), "power": ("width",)})
        if self.kind == "power" and self.width is None:
            raise ValueError("ema kind power needs width, as 0.05 or 0.1")
        return self


class Ema(Average):
    """The average that is validated, exported and evaluated; ``also``: others by name, kept beside it in every checkpoint.

    Those are validated too (``training.watch``), and stand in no bundle: ``CheckpointStore.averaged_weights(checkpoint, also=NAME)`` has
    their weights as long as the checkpoint is kept, for ``ModelBundle.save``.
    """

    LATER: ClassVar[tuple[str, ...]] = ("kind", "width", "also")

    also: dict[Annotated[str, Field(pattern=NAME)], Average] = Field(default={})
