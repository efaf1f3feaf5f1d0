"""A complete run: the sections of evaluate, export and scaling, and the recipe that holds them all together. No torch here."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from sr3_core.config import recipe_file
from sr3_core.config.data import Data
from sr3_core.config.kubernetes import Kubernetes
from sr3_core.config.section import NAME, Plugin, Section, SplitName, parse
from sr3_core.config.stage import Stage


class Search(Section):
    """Choice of the sampling options on held-out validation photos: the candidate with the best ``metric`` is used."""

    split: SplitName = "val"
    metric: str = "lpips"
    candidates: tuple[dict[str, Any], ...] = Field(min_length=1)


class Rule(Section):
    """One condition of the gate, on the mean of ``metric``: better than a baseline (paired per photo) or within ``limit``."""

    metric: str
    than: str | None = None
    limit: float | None = None

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
    variants: dict[str, dict[str, Any]] = Field(default={})
    gate: tuple[Rule, ...] = ()
    seed: int = Field(default=0, ge=0)

    @field_validator("metrics", mode="before")
    @classmethod
    def _names_alone(cls, value: Any) -> Any:
        return [{"name": item} if isinstance(item, str) else item for item in value] if isinstance(value, (list, tuple)) else value


class Export(Section):
    """The export room's section: the registered model's name and the alias that a passing version receives."""

    model: str = Field(pattern=NAME)
    alias: str = Field(default="champion", pattern=NAME)


class Scaling(Section):
    """Where and how widely a run works; it changes no result and is in no fingerprint.

    In each training worker ``loader_threads`` make batches, up to ``prefetch_bytes`` of them ahead; with ``shard_cache``, a folder on its
    machine, what is read of remote shards is kept there, at most ``shard_cache_bytes``. With ``min_workers`` training starts with as many
    workers between the two as there are resources for, goes on with fewer when a node is lost and with more when one comes.
    ``kubernetes`` is for pods on a cluster alone.
    """

    LATER: ClassVar[tuple[str, ...]] = (
        "min_workers", "loader_threads", "prefetch_bytes", "shard_cache", "shard_cache_bytes", "kubernetes",
    )  # fmt: skip

    workers: int = Field(default=1, ge=1)
    min_workers: int | None = Field(default=None, ge=1)
    accelerator: Literal["cpu", "gpu"] = "cpu"
    cpus_per_worker: int | None = Field(default=None, ge=1)
    loader_threads: int = Field(default=2, ge=1)
    prefetch_bytes: int = Field(default=256 * 1024 * 1024, ge=1)
    shard_cache: str | None = None
    shard_cache_bytes: int = Field(default=16 * 1024**3, ge=1)
    kubernetes: Kubernetes = Kubernetes()

    @model_validator(mode="after")
    def _fewest_first(self) -> "Scaling":
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers {self.min_workers} must be at most workers {self.workers}")
        return self

    @property
    def sizes(self) -> range:
        """Every number of workers that training may run with."""
        return range(self.min_workers or self.workers, self.workers + 1)


class Recipe(Section):
    """A complete named run."""

    name: str = Field(pattern=NAME)
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
            for workers in reversed(self.scaling.sizes):
                if stage.training.global_batch % (stage.training.micro_batch * workers):
                    between = "" if workers == self.scaling.workers else f", of which min_workers allows {workers}"
                    raise ValueError(
                        f"stage {stage.name}: global_batch {stage.training.global_batch} must be a multiple of "
                        f"micro_batch {stage.training.micro_batch} x scaling.workers {self.scaling.workers}{between}"
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


def load(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by name or path and apply ``a.b=c`` overrides. Raises BadInput with the nearest valid name or key."""
    return parse(Recipe, recipe_file.read(name_or_path, overrides))
