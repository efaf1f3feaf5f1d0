"""What has to be computed: tasks (stages and the cascade), photos, and one job per photo and model. Decides; computes nothing.

A job runs a chain of stages once and hands out every output that some task asks for, so that no image is sampled twice: the first
stage's output is at once that stage's result and the cascade's intermediate. Where the first stage is unconditional, a few draws from
noise are made beside, by it and by the whole chain: they are shown and compared with nothing.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sr3_core import config, labels, plugins
from sr3_core.artifacts.report import CASCADE, OURS
from sr3_core.artifacts.shardset import ShardSet
from sr3_core.config import Evaluation, Plugin, Search, Stage
from sr3_core.errors import BadInput

NUM_PICTURED = 4  # images of a task whose outputs are kept and shown; as many are drawn from noise


@dataclass(frozen=True)
class Task:
    """Stages ``first`` .. ``stop`` - 1, from true low images of ``low`` pixels to ``high`` pixels."""

    name: str
    first: int
    stop: int
    low: int
    high: int

    @property
    def scale(self) -> int:
        return self.high // self.low

    @property
    def label(self) -> str:
        return f"{self.name} {self.low} -> {self.high}"


@dataclass(frozen=True)
class Generated:
    """Stages 0 .. ``stop`` - 1 from noise to ``high`` pixels: there is no true image to compare with."""

    name: str
    stop: int
    high: int

    @property
    def label(self) -> str:
        return f"{self.name} noise -> {self.high}"


@dataclass(frozen=True)
class Photo:
    """One image of the ShardSet. ``photo`` names the photo that it was cut from (its content hash), ``label`` is its class."""

    split: str
    index: int
    key: str
    photo: str
    levels: tuple[int, ...]
    label: int | None

    def serves(self, task: Task) -> bool:
        """Whether it has both the low image and the truth of ``task``."""
        return task.low in self.levels and task.high in self.levels


@dataclass(frozen=True)
class Setting:
    """What all jobs of one evaluation share; every field is plain, so that a job travels to any worker."""

    folder: str
    shards_uri: str
    bundles: tuple[tuple[str, str], ...]  # (uri, sha256) in the order of the cascade
    channels: int
    bits: int
    degradation: str
    seed: int
    threads: int
    device: str


@dataclass(frozen=True)
class Job:
    """One photo through one model. ``sampling``: JSON of the options of every stage; None makes ``model`` a baseline.

    ``pixels``: those that pass through every stage's network for one sample, () for a baseline. ``metrics``: (name, JSON of options).
    ``pictured``: names of the tasks whose output is kept as a picture.
    """

    setting: Setting
    photo: Photo
    model: str
    tasks: tuple[Task, ...]
    sampling: tuple[str, ...] | None
    pixels: tuple[int, ...]
    metrics: tuple[tuple[str, str], ...]
    pictured: tuple[str, ...] = ()

    @property
    def cost(self) -> float:
        """Work in pixels through the network, roughly: what takes longest starts first."""
        if self.sampling is None:
            return float(sum(task.high**2 for task in self.tasks)) / 100
        return float(sum(self.pixels[index] for index in {index for task in self.tasks for index in range(task.first, task.stop)}))

    @property
    def name(self) -> str:
        return f"{self.model} of {', '.join(task.name for task in self.tasks)} on {self.photo.key}"

    def identity(self) -> str:
        """16 hex digits: the same job in a repeated run has the same, wherever and however widely it runs."""
        return _identity(self)


@dataclass(frozen=True)
class Draw:
    """One image from noise by ``outputs``, all of one chain; ``number`` counts them. ``sampling`` and ``pixels``: as a Job's.
    ``label`` is the class that is asked for, None where the chain is told none."""

    setting: Setting
    number: int
    outputs: tuple[Generated, ...]
    sampling: tuple[str, ...]
    pixels: tuple[int, ...]
    label: int | None

    @property
    def cost(self) -> float:
        """As a Job's."""
        return float(sum(self.pixels))

    @property
    def key(self) -> str:
        """Names its picture."""
        return sample_key(self.number)

    @property
    def name(self) -> str:
        return f"{', '.join(output.name for output in self.outputs)} from noise, {self.key}"

    def identity(self) -> str:
        """As a Job's."""
        return _identity(self)


def tasks(stages: Sequence[Stage]) -> list[Task]:
    """Each stage that has a low image, then the whole cascade where there is more than one; none of an unconditional stage alone."""
    found = [Task(stage.name, index, index + 1, stage.low, stage.high) for index, stage in enumerate(stages) if stage.low is not None]
    if CASCADE in {stage.name for stage in stages}:
        raise BadInput(f"a stage named {CASCADE}", "any other name", "rename the stage")
    if len(stages) > 1 and stages[0].low is not None:
        found.append(Task(CASCADE, 0, len(stages), stages[0].low, stages[-1].high))
    return found


def generated(stages: Sequence[Stage]) -> list[Generated]:
    """What is drawn from noise: the unconditional first stage alone and, with further stages, the whole chain; else nothing."""
    first, *further = stages
    if first.low is not None:
        return []
    found = [Generated(first.name, 1, first.high)]
    return [*found, Generated(CASCADE, len(stages), further[-1].high)] if further else found


def photos(shards: ShardSet, split: str) -> list[Photo]:
    """Every image of ``split``, in order."""
    samples = [shards.sample(split, index) for index in range(shards.count(split))]
    return [Photo(split, index, item.key, item.group, tuple(sorted(item.members)), item.label) for index, item in enumerate(samples)]


def search_jobs(
    setting: Setting,
    stages: Sequence[Stage],
    every_task: Sequence[Task],
    found: Sequence[Photo],
    search: Search | None,
    *,
    judge: Plugin | None,
) -> list[Job]:
    """One job per stage, candidate and photo of the search's split, with the metric ``judge`` alone; none when there is no choice."""
    if search is None or judge is None or len(search.candidates) < 2:
        return []
    jobs: list[Job] = []
    for task in every_task:
        if task.name == CASCADE:
            continue
        judged = [photo for photo in found if photo.serves(task)]
        if not judged:
            got = f"no image of split {search.split} with levels {task.low} and {task.high}"
            raise BadInput(got, f"at least one, to choose the sampling of {task.name}", "add photos or require these levels of that split")
        for candidate in _different(merged(stages[task.first], candidate) for candidate in search.candidates):
            sampling = tuple(candidate if index == task.first else "{}" for index in range(len(stages)))
            pixels = _pixels(stages, sampling)
            jobs += [Job(setting, photo, OURS, (task,), sampling, pixels, (as_text(judge),)) for photo in judged]
    return jobs


def baseline_jobs(setting: Setting, every_task: Sequence[Task], found: Sequence[Photo], evaluation: Evaluation) -> list[Job]:
    """One job per photo and baseline for all tasks that the photo serves."""
    shown = pictured(every_task, found)
    metrics = tuple(as_text(plugin) for plugin in evaluation.metrics)
    jobs: list[Job] = []
    for photo in found:
        served = tuple(task for task in every_task if photo.serves(task))
        for name in evaluation.baselines if served else ():
            jobs.append(Job(setting, photo, name, served, None, (), metrics, _shown(served, photo, shown)))
    return jobs


def model_jobs(
    setting: Setting,
    stages: Sequence[Stage],
    every_task: Sequence[Task],
    found: Sequence[Photo],
    evaluation: Evaluation,
    *,
    chosen: Mapping[str, Mapping[str, Any]],
) -> list[Job]:
    """Ours and its variants: one job per photo, model and first stage of a chain."""
    shown = pictured(every_task, found)
    metrics = tuple(as_text(plugin) for plugin in evaluation.metrics)
    jobs: list[Job] = []
    for model, change in ((OURS, {}), *evaluation.variants.items()):
        sampling = tuple(_json({**chosen.get(stage.name, {}), **(change if stage.low is not None else {})}) for stage in stages)
        pixels = _pixels(stages, sampling)
        for photo in found:
            for first in range(len(stages)):
                served = tuple(task for task in every_task if task.first == first and photo.serves(task))
                if served:
                    jobs.append(Job(setting, photo, model, served, sampling, pixels, metrics, _shown(served, photo, shown)))
    return jobs


def draws(
    setting: Setting, stages: Sequence[Stage], outputs: Sequence[Generated], *, chosen: Mapping[str, Mapping[str, Any]]
) -> list[Draw]:
    """``NUM_PICTURED`` images from noise, each through the whole chain; none when there is nothing to draw."""
    if not outputs:
        return []
    sampling = tuple(_json(chosen[stage.name]) for stage in stages)
    pixels = _pixels(stages, sampling)
    return [Draw(setting, number, tuple(outputs), sampling, pixels, label) for number, label in enumerate(drawn_labels(stages))]


def drawn_labels(stages: Sequence[Stage]) -> list[int | None]:
    """The label of each draw: 0, 1, 2, ... and from 0 again, None for networks that are told none."""
    count = labels.of(*stages).count
    return [number % count if count else None for number in range(NUM_PICTURED)]


def sample_key(number: int) -> str:
    """What the ``number``-th draw is called, from 0."""
    return f"sample-{number + 1}"


def pictured(every_task: Sequence[Task], found: Sequence[Photo]) -> dict[str, list[str]]:
    """Keys of the images that the report shows, by task: the first few that serve it."""
    return {task.name: [photo.key for photo in found if photo.serves(task)][:NUM_PICTURED] for task in every_task}


def longest_first(jobs: Iterable[Job | Draw]) -> list[Job | Draw]:
    """Jobs by falling cost: a long one that starts last would leave the other workers idle."""
    return sorted(jobs, key=lambda job: -job.cost)


def merged(stage: Stage, change: Mapping[str, Any]) -> str:
    """The stage's sampling options with ``change`` on top, as JSON."""
    return _json({**stage.sampling, **change})


def as_text(plugin: Plugin) -> tuple[str, str]:
    """A plug-in as (name, JSON of its options)."""
    return plugin.name, _json(plugin.options)


def changes(stage: Stage, evaluation: Evaluation) -> list[Mapping[str, Any]]:
    """What may be changed of the stage's sampling options, no change first; nothing of an unconditional stage, which nothing judges."""
    if stage.low is None:
        return [{}]
    return [{}, *(evaluation.search.candidates if evaluation.search is not None else ()), *evaluation.variants.values()]


def _pixels(stages: Sequence[Stage], sampling: Sequence[str]) -> tuple[int, ...]:
    """Through every stage's network for one sample by its options; the objective counts the calls."""
    objectives = [plugins.load("objectives", stage.objective.name).Objective(stage, {}) for stage in stages]
    calls = [made.network_calls(json.loads(options)) for made, options in zip(objectives, sampling, strict=True)]
    return tuple(stage.high**2 * count for stage, count in zip(stages, calls, strict=True))


def _identity(job: Job | Draw) -> str:
    values = asdict(job)
    del values["pixels"]  # which follow from what is left
    for where_it_runs in ("threads", "device", "folder", "shards_uri"):
        del values["setting"][where_it_runs]
    values["setting"]["bundles"] = [sha256 for _, sha256 in job.setting.bundles]
    return config.fingerprint(json.dumps(values, sort_keys=True))


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(dict(values), sort_keys=True)


def _different(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def _shown(served: Sequence[Task], photo: Photo, shown: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    return tuple(task.name for task in served if photo.key in shown[task.name])
