"""The train room's section: one model of the cascade, what it is and how it is trained. No torch here."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from sr3_core.config.optimisation import Ema, LearningRate, Optimizer
from sr3_core.config.section import NAME, Plugin, Section
from sr3_core.config.watch import Watch


class Augment(Section):
    """Training-time changes, drawn per global sample index. ``zoom`` z > 1 crops a side up to z times larger and resizes it down.

    ``brightness``, ``contrast`` (around middle grey) and ``saturation`` (3 channels) multiply by 1 +- so much, high and low alike.
    """

    LATER: ClassVar[tuple[str, ...]] = ("brightness", "contrast", "saturation")

    flip: bool = True
    rotate90: bool = False
    zoom: float = Field(default=1.0, ge=1)
    brightness: float = Field(default=0.0, ge=0, lt=1)
    contrast: float = Field(default=0.0, ge=0, lt=1)
    saturation: float = Field(default=0.0, ge=0, le=1)


class OtherData(Section):
    """A finished ShardSet to train on beside the recipe's own; ``weight`` samples of it come for each ``mix.weight`` of the recipe's."""

    shards: str
    weight: int = Field(default=1, ge=1)

    @field_validator("shards")
    @classmethod
    def _same_for_every_worker(cls, value: str) -> str:
        return _place(value)


def _place(value: str) -> str:
    if not value.startswith("/") and "://" not in value:
        raise ValueError(f"{value} must be an absolute path or a URI: workers stand in folders of their own")
    return value


class DataParallel(Section):
    """How several workers average their gradients, by torch's DistributedDataParallel; it changes a result by rounding at most.

    ``bucket_megabytes``: gradients travel in pieces of about so many bytes x 2^20, as soon as the backward pass has made them; null: 25,
    torch's own. ``bucket_views``: gradients lie in those pieces from the start, so that none is copied. ``static_graph``: every step uses
    the same parameters in the same way, which torch then finds out once.
    """

    bucket_megabytes: float | None = Field(default=None, gt=0)
    bucket_views: bool = True
    static_graph: bool = False


class Mix(Section):
    """Training on several ShardSets: ``weight`` samples of the recipe's own data for ``others[i].weight`` of each other, exactly."""

    weight: int = Field(default=1, ge=1)
    others: tuple[OtherData, ...] = Field(min_length=1)


class Training(Section):
    """How long and with what a stage is trained. Every length is counted in images seen, at any world size.

    ``max_skipped``: steps in a row that are left out because their loss or gradient is not finite, before the run goes back to its last
    checkpoint; 0: the first one ends the run. ``reduce_dtype``: what gradients are added up in over micro-batches and workers; with
    float64 a run hardly depends on the number of workers, for 8 bytes a parameter and a reduction that no longer runs beside the backward.
    ``init``: the ModelBundle whose weights a run starts from; null: from scratch. ``gradient_compression``: what workers send each other
    their gradients in; null: as they are. ``ddp``: in which pieces. ``compile``: the network's blocks are compiled, each kind once, at
    their first call; a norm, its scale and shift and the SiLU behind them are one kernel then.
    """

    LATER: ClassVar[tuple[str, ...]] = ("mix", "max_skipped", "init", "gradient_compression", "ddp", "compile", "reduce_dtype", "watch")

    images: int = Field(gt=0)
    global_batch: int = Field(gt=0)
    micro_batch: int = Field(gt=0)
    crop: int | None = Field(default=None, gt=0)
    augment: Augment = Augment()
    mix: Mix | None = None
    optimizer: Optimizer = Optimizer()
    learning_rate: LearningRate = LearningRate()
    clip_norm: float | None = Field(default=1.0, gt=0)
    ema: Ema = Ema()
    max_skipped: int = Field(default=0, ge=0)
    init: str | None = None
    gradient_compression: Literal["bfloat16", "float16"] | None = None
    ddp: DataParallel = DataParallel()
    precision: Literal["float32", "tf32", "bfloat16", "float16"] = "float32"
    reduce_dtype: Literal["float32", "float64"] = "float32"
    compile: bool = False
    deterministic: bool = False
    checkpoint_images: int = Field(gt=0)
    log_images: int = Field(gt=0)
    watch: Watch | None = None
    keep_checkpoints: int = Field(default=2, ge=1)
    seed: int = Field(default=0, ge=0)

    @field_validator("init")
    @classmethod
    def _same_for_every_worker(cls, value: str | None) -> str | None:
        return value if value is None else _place(value)

    @model_validator(mode="after")
    def _divides(self) -> "Training":
        if self.global_batch % self.micro_batch:
            raise ValueError(f"global_batch {self.global_batch} must be a multiple of micro_batch {self.micro_batch}")
        for field in ("images", "checkpoint_images", "log_images"):
            if getattr(self, field) % self.global_batch:
                raise ValueError(f"{field} {getattr(self, field)} must be a multiple of global_batch {self.global_batch}")
        if self.watch is not None and self.watch.images % self.global_batch:
            raise ValueError(f"watch.images {self.watch.images} must be a multiple of global_batch {self.global_batch}")
        if self.watch is not None and self.watch.keep_best and self.watch.images % self.checkpoint_images:
            raise ValueError(
                f"watch.images {self.watch.images} must be a multiple of checkpoint_images {self.checkpoint_images}: "
                "watch.keep_best keeps what is saved"
            )
        if self.gradient_compression is not None and self.reduce_dtype == "float64":
            raise ValueError(f"gradient_compression {self.gradient_compression} and reduce_dtype float64 exclude each other: take one out")
        if self.ddp != DataParallel() and self.reduce_dtype == "float64":
            raise ValueError("ddp is set, but reduce_dtype float64 averages by itself, when a step is over: take ddp out")
        patience = self.learning_rate.patience_images
        if patience is not None and patience % self.log_images:
            raise ValueError(f"learning_rate.patience_images {patience} must be a multiple of log_images {self.log_images}")
        return self


class Stage(Section):
    """One model of the cascade, the train room's section: ``low`` -> ``high`` pixels (``low`` null: unconditional)."""

    name: str = Field(pattern=NAME)
    low: int | None = Field(default=None, gt=0)
    high: int = Field(gt=0)
    channels: int = Field(default=3, ge=1, le=64)
    model: Plugin
    objective: Plugin
    training: Training
    sampling: dict[str, Any] = Field(default={})

    @model_validator(mode="after")
    def _low_below_high(self) -> "Stage":
        if self.low is not None and (self.low >= self.high or self.high % self.low):
            raise ValueError(f"low {self.low} must divide high {self.high}")
        crop = self.training.crop
        if crop is not None and (crop > self.high or (self.low is not None and crop % (self.high // self.low))):
            raise ValueError(f"training.crop {crop} must be at most high {self.high} and a multiple of the scale")
        if self.low is None and self.training.watch is not None and self.training.watch.best_by == "psnr_rgb":
            raise ValueError("training.watch.best_by psnr_rgb: a stage without low has nothing to compare with; set it to loss")
        return self

    @property
    def scale(self) -> int:
        """How many times larger the output is than ``low`` (1 for an unconditional stage)."""
        return 1 if self.low is None else self.high // self.low

    @property
    def sizes(self) -> str:
        """``64 -> 256``, or ``noise -> 64`` for an unconditional stage."""
        return f"{'noise' if self.low is None else self.low} -> {self.high}"


def sizes(stages: Sequence[Stage]) -> str:
    """The sizes of a chain of stages: ``noise -> 64 -> 256`` or ``16 -> 64``."""
    return " -> ".join([stages[0].sizes, *(str(stage.high) for stage in stages[1:])])
