"""What a run should do: the recipe, its sections, how they are read, changed by ``--set`` and fingerprinted. No torch here.

A recipe is a YAML file under ``sr3_core/recipes`` (or a path). Every section is frozen and refuses unknown keys. A room
receives only its own section, as one canonical JSON string, so that a change elsewhere leaves its result up to date.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from sr3_core import recipe_file
from sr3_core.errors import BadInput, nearest
from sr3_core.recipe_file import RECIPES, recipe_names, refuse_secrets

__all__ = ["RECIPES", "nearest", "recipe_names", "refuse_secrets"]  # beside what is defined here

MAX_SECTION_BYTES = 64 * 1024  # a section travels as one pipeline parameter
SPLITS = ("train", "val", "test")
SplitName = Literal["train", "val", "test"]
_NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"


class Section(BaseModel):
    """Base of every section: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Fields added after ShardSets had been made: left out of the JSON while they have their defaults, so that those keep name and bytes.
    LATER: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        if not self.LATER:
            return values
        return {
            name: value
            for name, value in values.items()
            if name not in self.LATER or getattr(self, name) != type(self).model_fields[name].get_default()
        }

    def canonical_json(self) -> str:
        """The section as one JSON string with sorted keys: what travels to a room and what a fingerprint hashes."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), allow_nan=False)
        if len(text.encode()) > MAX_SECTION_BYTES:
            raise BadInput(f"a {type(self).__name__} section of {len(text.encode())} bytes", f"at most {MAX_SECTION_BYTES}", "shorten it")
        return text


SectionT = TypeVar("SectionT", bound=Section)


class Plugin(Section):
    """A plug-in by the name of its file (``unet``) or by a dotted module path, with its own options."""

    name: str
    options: dict[str, Any] = {}


class Split(Section):
    """How photos are divided: as published, or by content hash into the shares given; auto: as published where every photo is."""

    by: Literal["auto", "published", "content_hash"] = "auto"
    val: float = Field(default=0.1, ge=0, lt=1)
    test: float = Field(default=0.1, ge=0, lt=1)
    minimum: dict[SplitName, int] = {"train": 1, "val": 1, "test": 1}


class Codec(Section):
    """How a level is stored. A low image is always lossless; JPEG is for the largest level alone, the others are then PNG.

    ``png`` and ``webp`` (smaller) are lossless. What PNG cannot hold (2 channels, more than 4, 16 bits of more than 1) is stored in numpy's
    format. ``min_psnr``: the quality of a JPEG is raised until it decodes to so many dB at least; PNG where 100 does not reach them.
    """

    LATER: ClassVar[tuple[str, ...]] = ("min_psnr",)

    format: Literal["png", "webp", "jpeg"] = "png"
    quality: int = Field(default=95, ge=1, le=100)
    min_psnr: float | None = Field(default=None, gt=0, le=100)

    @model_validator(mode="after")
    def _floor_is_for_jpeg(self) -> "Codec":
        if self.min_psnr is not None and self.format != "jpeg":
            raise ValueError(f"min_psnr is for format 'jpeg', but format is {self.format!r}, which is lossless")
        return self


def _ascending(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError(f"range {list(value)} must go from its smaller to its larger end")
    return value


Range = Annotated[tuple[float, float], AfterValidator(_ascending)]  # drawn from uniformly, both ends included


class Tiles(Section):
    """Tiles of ``fit: tiles``. ``stride`` from one to the next in pixels of the largest level (None: that level, so that none overlap).

    ``min_detail`` refuses flat ones: the root mean square of the differences between neighbouring pixels, in 1/255 of the full range
    (sky is about 1, foliage 20); 0 takes every tile.
    """

    stride: int | None = Field(default=None, ge=1)
    min_detail: float = Field(default=0.0, ge=0, le=255)


class Blur(Section):
    """A Gaussian of standard deviation ``sigma``, in pixels of the image before it is brought down."""

    sigma: Range = (0.0, 2.0)

    @field_validator("sigma")
    @classmethod
    def _within(cls, value: tuple[float, float]) -> tuple[float, float]:
        return _between(value, "sigma", 0.0, 32.0)


class Noise(Section):
    """Noise on the low image; ``level`` is its standard deviation in 1/255 of the full range: everywhere for gaussian, at white for
    poisson, whose variance is in proportion to the light."""

    kind: Literal["gaussian", "poisson"] = "gaussian"
    level: Range = (0.0, 10.0)

    @field_validator("level")
    @classmethod
    def _within(cls, value: tuple[float, float]) -> tuple[float, float]:
        return _between(value, "level", 0.0, 128.0)


class Jpeg(Section):
    """The low image as JPEG and back; ``quality`` in whole numbers of 1..100."""

    quality: Range = (40.0, 95.0)

    @field_validator("quality")
    @classmethod
    def _within(cls, value: tuple[float, float]) -> tuple[float, float]:
        if any(end != int(end) for end in value):
            raise ValueError(f"quality {list(value)} must be whole numbers")
        return _between(value, "quality", 1.0, 100.0)


class Corruption(Section):
    """What happens to the lowest level's image beside the resize by ``data.degradation``: blur, resize, noise, JPEG, in this order.

    In training it is drawn anew for each global sample index; the val and test images are stored with one draw by their key.
    """

    blur: Blur | None = None
    noise: Noise | None = None
    jpeg: Jpeg | None = None

    @model_validator(mode="after")
    def _does_something(self) -> "Corruption":
        if self.blur is None and self.noise is None and self.jpeg is None:
            raise ValueError("corruption without blur, noise or jpeg changes nothing: name one, or leave it out")
        return self


def _between(value: tuple[float, float], name: str, least: float, most: float) -> tuple[float, float]:
    if not least <= value[0] <= value[1] <= most:
        raise ValueError(f"{name} {list(value)} must lie in {least:g} .. {most:g}")
    return value


class Data(Section):
    """The prepare room's section. ``levels`` are sides in pixels, ascending; each is made from the next larger one.

    ``fit``: the centre square (crop), all of the photo as a square (resize), every tile of it (tiles), or the photo at its own size
    and shape (keep), where levels say the ratios between the sizes and the least short side.
    ``bits`` of a channel: 8, or 16, of which every input must have as many. ``channels``: 1 is grey, 3 is RGB, 4 is RGB with an alpha that
    is data; any other number is of arrays in numpy's format.
    ``near_duplicates``: photos whose 64-bit perceptual hashes differ in at most so many bits never cross splits; None: not looked for.
    """

    LATER: ClassVar[tuple[str, ...]] = ("tiles", "corruption", "near_duplicates", "bits")

    source: str
    options: dict[str, Any] = {}
    split: Split = Split()
    levels: tuple[int, ...] = Field(min_length=1)
    required_levels: dict[SplitName, tuple[int, ...]] = {}
    fit: Literal["crop", "resize", "tiles", "keep"] = "crop"
    tiles: Tiles = Tiles()
    degradation: Literal["bicubic", "box", "lanczos"] = "bicubic"
    corruption: Corruption | None = None
    near_duplicates: int | None = Field(default=None, ge=0, le=16)
    codec: Codec = Codec()
    channels: int = Field(default=3, ge=1, le=64)
    bits: Literal[8, 16] = 8
    shard_samples: int = Field(default=8, ge=1)
    max_rejected_share: float = Field(default=0.2, ge=0, le=1)

    @model_validator(mode="after")
    def _levels_fit(self) -> "Data":
        if any(level < 1 for level in self.levels) or list(self.levels) != sorted(set(self.levels)):
            raise ValueError(f"levels {list(self.levels)} must be positive, ascending and different")
        for split, required in self.required_levels.items():
            if not required or not set(required) <= set(self.levels):
                raise ValueError(f"required_levels.{split} {list(required)} must name some of levels {list(self.levels)}")
        return self

    @model_validator(mode="after")
    def _options_are_read(self) -> "Data":
        if self.tiles != Tiles() and self.fit != "tiles":
            raise ValueError(f"tiles are for fit 'tiles', but fit is {self.fit!r}")
        if self.corruption is not None and len(self.levels) == 1:
            raise ValueError("corruption makes a low image of the next larger level, but there is one level")
        if self.corruption is not None and self.corruption.jpeg is not None and self.channels not in (1, 3):
            raise ValueError(f"corruption.jpeg takes 1 or 3 channels, but channels is {self.channels}")
        if self.corruption is not None and self.corruption.jpeg is not None and self.bits != 8:
            raise ValueError(f"corruption.jpeg takes 8 bits, but bits is {self.bits}")
        return self

    @model_validator(mode="after")
    def _codec_holds_them(self) -> "Data":
        held = {"jpeg": (1, 3), "webp": (1, 3, 4)}.get(self.codec.format)
        if held is not None and (self.bits != 8 or self.channels not in held):
            what = f"{self.channels} channels of {self.bits} bits"
            allowed = f"8 bits of {' or '.join(map(str, held))} channels"
            raise ValueError(f"codec.format {self.codec.format!r} takes {allowed}, not {what}: take png")
        return self

    def required(self, split: str) -> tuple[int, ...]:
        """Levels that every sample of ``split`` must have; all of them unless the recipe says otherwise."""
        return self.required_levels.get(split, self.levels)  # type: ignore[arg-type]


class Optimizer(Section):
    name: Literal["adam", "adamw"] = "adam"
    learning_rate: float = Field(default=1e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(default=0.0, ge=0)


class LearningRate(Section):
    """Shape of the learning rate over images seen: linear warm-up, then constant or cosine down to ``final`` of the peak."""

    name: Literal["constant", "cosine"] = "constant"
    warmup_images: int = Field(default=0, ge=0)
    final: float = Field(default=0.0, ge=0, le=1)


class Ema(Section):
    """Exponential moving average of the weights; with ``warmup`` the decay is min(decay, (1 + steps) / (10 + steps))."""

    decay: float = Field(default=0.9999, ge=0, lt=1)
    warmup: bool = True


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


class Mix(Section):
    """Training on several ShardSets: ``weight`` samples of the recipe's own data for ``others[i].weight`` of each other, exactly."""

    weight: int = Field(default=1, ge=1)
    others: tuple[OtherData, ...] = Field(min_length=1)


class Training(Section):
    """How long and with what a stage is trained. Every length is counted in images seen, at any world size."""

    LATER: ClassVar[tuple[str, ...]] = ("mix",)

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
    precision: Literal["float32", "bfloat16"] = "float32"
    deterministic: bool = False
    checkpoint_images: int = Field(gt=0)
    log_images: int = Field(gt=0)
    keep_checkpoints: int = Field(default=2, ge=1)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _divides(self) -> "Training":
        if self.global_batch % self.micro_batch:
            raise ValueError(f"global_batch {self.global_batch} must be a multiple of micro_batch {self.micro_batch}")
        for field in ("images", "checkpoint_images", "log_images"):
            if getattr(self, field) % self.global_batch:
                raise ValueError(f"{field} {getattr(self, field)} must be a multiple of global_batch {self.global_batch}")
        return self


class Stage(Section):
    """One model of the cascade, the train room's section: ``low`` -> ``high`` pixels (``low`` null: unconditional)."""

    name: str = Field(pattern=_NAME)
    low: int | None = Field(default=None, gt=0)
    high: int = Field(gt=0)
    channels: int = Field(default=3, ge=1, le=64)
    model: Plugin
    objective: Plugin
    training: Training
    sampling: dict[str, Any] = {}

    @model_validator(mode="after")
    def _low_below_high(self) -> "Stage":
        if self.low is not None and (self.low >= self.high or self.high % self.low):
            raise ValueError(f"low {self.low} must divide high {self.high}")
        crop = self.training.crop
        if crop is not None and (crop > self.high or (self.low is not None and crop % (self.high // self.low))):
            raise ValueError(f"training.crop {crop} must be at most high {self.high} and a multiple of the scale")
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


class Search(Section):
    """Choice of the sampling options on held-out validation photos: the candidate with the best ``metric`` is used."""

    split: SplitName = "val"
    metric: str = "lpips"
    candidates: tuple[dict[str, Any], ...] = Field(min_length=1)


class Rule(Section):
    """One condition of the gate, on the mean of ``metric``: better than a baseline (paired per photo) or within ``limit``."""

    metric: str
    than: str | None = None
    limit: float | None = Field(default=None, allow_inf_nan=False)

    @model_validator(mode="after")
    def _one_of(self) -> "Rule":
        if (self.than is None) == (self.limit is None):
            raise ValueError("a gate rule takes either 'than' (a baseline) or 'limit' (a number)")
        return self


class Evaluation(Section):
    """The evaluate room's section. ``variants`` are named changes of the sampling options that are reported beside the chosen ones."""

    split: SplitName = "test"
    metrics: tuple[Plugin, ...]
    baselines: tuple[str, ...] = ("bicubic",)
    search: Search | None = None
    variants: dict[str, dict[str, Any]] = {}
    gate: tuple[Rule, ...] = ()
    seed: int = Field(default=0, ge=0)

    @field_validator("metrics", mode="before")
    @classmethod
    def _names_alone(cls, value: Any) -> Any:
        return [{"name": item} if isinstance(item, str) else item for item in value] if isinstance(value, (list, tuple)) else value


class Export(Section):
    """The export room's section: the registered model's name and the alias that a passing version receives."""

    model: str = Field(pattern=_NAME)
    alias: str = Field(default="champion", pattern=_NAME)


class Scaling(Section):
    """Where and how widely a run works; it changes no result and is in no fingerprint.

    In each training worker ``loader_threads`` make batches, up to ``prefetch_bytes`` of them ahead; with ``shard_cache``, a folder on its
    machine, what is read of remote shards is kept there, at most ``shard_cache_bytes``.
    """

    LATER: ClassVar[tuple[str, ...]] = ("loader_threads", "prefetch_bytes", "shard_cache", "shard_cache_bytes")

    workers: int = Field(default=1, ge=1)
    accelerator: Literal["cpu", "gpu"] = "cpu"
    cpus_per_worker: int | None = Field(default=None, ge=1)
    loader_threads: int = Field(default=2, ge=1)
    prefetch_bytes: int = Field(default=256 * 1024 * 1024, ge=1)
    shard_cache: str | None = None
    shard_cache_bytes: int = Field(default=16 * 1024**3, ge=1)


class Recipe(Section):
    """A complete named run."""

    name: str = Field(pattern=_NAME)
    data: Data
    stages: tuple[Stage, ...] = Field(min_length=1)
    evaluation: Evaluation
    export: Export
    scaling: Scaling = Scaling()

    @model_validator(mode="after")
    def _stages_chain(self) -> "Recipe":
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"stage names {names} must be different")
        levels = self.data.levels
        for before, stage in zip((None, *self.stages), self.stages, strict=False):
            for level in (stage.low, stage.high):
                if level is not None and level not in levels:
                    raise ValueError(f"stage {stage.name} works at {level}, which is not among data.levels {list(levels)}")
            if stage.low is not None and levels.index(stage.low) + 1 != levels.index(stage.high):
                raise ValueError(f"stage {stage.name} must go from one of data.levels {list(levels)} to the next")
            if before is not None and stage.low != before.high:
                raise ValueError(f"stage {stage.name} starts at {stage.low}, but stage {before.name} ends at {before.high}")
            if stage.channels != self.data.channels:
                raise ValueError(f"stage {stage.name} has {stage.channels} channels, but data.channels is {self.data.channels}")
            if stage.training.global_batch % (stage.training.micro_batch * self.scaling.workers):
                raise ValueError(
                    f"stage {stage.name}: global_batch {stage.training.global_batch} must be a multiple of "
                    f"micro_batch {stage.training.micro_batch} x scaling.workers {self.scaling.workers}"
                )
        if self.data.corruption is not None:
            self._refuse_what_undoes_a_resize()
        if self.stages[0].low is None and len(self.stages) == 1 and (self.evaluation.gate or self.evaluation.search):
            raise ValueError("an unconditional recipe has nothing to be judged by: leave evaluation.gate and evaluation.search empty")
        return self

    def _refuse_what_undoes_a_resize(self) -> None:
        """Consistency and projection hold an output to its low image through a linear operator, which a corrupted one did not come by."""
        lowest = self.data.levels[0]
        if any(stage.high == lowest for stage in self.stages):
            raise ValueError(f"data.corruption is for a low image, but a stage is to make level {lowest}")
        if any(metric.name == "consistency" for metric in self.evaluation.metrics):
            raise ValueError("with data.corruption the low image is no resize of the high one: leave evaluation.metrics 'consistency' out")
        others = [*(self.evaluation.search.candidates if self.evaluation.search else ()), *self.evaluation.variants.values()]
        for stage in self.stages:
            if stage.low == lowest and any(sampling.get("projection") for sampling in (stage.sampling, *others)):
                raise ValueError(f"with data.corruption stage {stage.name} cannot project onto its low image: set projection to 0")


def fingerprint(*parts: str) -> str:
    """16 hex digits over ``parts`` (section JSON, upstream manifest hashes, schema versions), in order."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def load(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by name or path and apply ``a.b=c`` overrides. Raises BadInput with the nearest valid name or key."""
    return parse(Recipe, recipe_file.read(name_or_path, overrides))


def parse(section: type[SectionT], values: Any) -> SectionT:
    """Validate ``values`` (a mapping, or canonical JSON as text) as ``section``; BadInput names key, got and allowed."""
    if isinstance(values, str):
        try:
            values = json.loads(values)
        except json.JSONDecodeError as error:
            raise BadInput(
                f"a {section.__name__} section that is not JSON ({error})", "one JSON object", "pass the section as JSON"
            ) from None
    refuse_secrets(values)
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise _as_bad_input(section, error) from None


def options(section: type[SectionT], values: Mapping[str, Any], owner: str) -> SectionT:
    """A plug-in's own options, validated; ``owner`` names the plug-in in the message."""
    try:
        return section.model_validate(dict(values))
    except ValidationError as error:
        raise _as_bad_input(section, error, prefix=f"{owner}.options.") from None


def _as_bad_input(section: type[Section], error: ValidationError, prefix: str = "") -> BadInput:
    first = error.errors(include_url=False)[0]
    place = (prefix + ".".join(str(part) for part in first["loc"])).removesuffix(".")
    if first["type"] == "extra_forbidden":
        allowed = _keys_at(section, first["loc"][:-1])
        return BadInput(f"unknown key {place}", nearest(str(first["loc"][-1]), allowed), "mend the key")
    if first["type"] == "missing":
        return BadInput(f"no value for {place}", "a value: the key is required", "add it")
    got = repr(first["input"])
    got = got if len(got) <= 80 else got[:77] + "..."
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return BadInput(f"{place or section.__name__}: {message}", "values that agree", "change one of them")
    return BadInput(f"{place}={got}", message[0].lower() + message[1:], "change the value")


def _keys_at(section: type[Section], loc: Sequence[Any]) -> list[str]:
    """Field names of the section that ``loc`` leads to from ``section``."""
    current: Any = section
    for part in loc:
        if isinstance(part, int):
            continue
        field = current.model_fields.get(part) if isinstance(current, type) and issubclass(current, Section) else None
        if field is None:
            break
        current = _section_of(field.annotation) or current
    return list(current.model_fields)


def _section_of(annotation: Any) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    for part in getattr(annotation, "__args__", ()):
        found = _section_of(part)
        if found:
            return found
    return None
