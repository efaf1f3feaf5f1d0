"""What one worker does for one job: images in, metrics (and pictures) out. Models and metrics are loaded once per worker process."""

import json
import time
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from components.evaluate.plan import Job, Task
from sr3_core import baselines, images, seeds, storage
from sr3_core.artifacts.bundle import ModelBundle
from sr3_core.artifacts.report import PICTURES, Measurement, picture_name
from sr3_core.artifacts.shardset import ShardSet
from sr3_core.cascade import Cascade
from sr3_core.errors import BadInput, Failed
from sr3_core.metrics import _base as metrics

PARTS = "parts"


def run(job: Job) -> list[Measurement]:
    """Compute a job, keep its result under ``PARTS`` for a run that is started again, and return one measurement per task and metric."""
    torch.set_num_threads(job.setting.threads)
    found: list[Measurement] = []
    for task, output, seconds in _outputs(job):
        values = judge(job, task, output)
        if task.name in job.pictured:
            file = storage.join(job.setting.folder, PICTURES, picture_name(task.name, job.photo.key, job.model))
            storage.write_bytes(file, images.encode(images.from_unit(metrics.signed(output)[0].numpy())))
        sampling = job.sampling[task.stop - 1] if job.sampling is not None else ""
        where = {"split": job.photo.split, "task": task.name, "model": job.model, "key": job.photo.key, "photo": job.photo.photo}
        found += [Measurement(**where, metric=name, value=value, sampling=sampling, seconds=seconds) for name, value in values.items()]
    storage.write_json(part_uri(job), [vars(measurement) for measurement in found])
    return found


def part_uri(job: Job) -> str:
    """Where the job's finished result lies until the report is published."""
    return storage.join(job.setting.folder, PARTS, f"{job.identity()}.json")


def finished(job: Job) -> list[Measurement] | None:
    """What an earlier run left of the job, None when it is still to be computed."""
    uri = part_uri(job)
    return [Measurement(**row) for row in storage.read_json(uri)] if storage.exists(uri) else None


def judge(job: Job, task: Task, output: Tensor) -> dict[str, float]:
    """Every metric of one output (1, C, H, W), rounded, in [0, 1]."""
    low, truth = _image(job, task.low), _image(job, task.high)
    values: dict[str, float] = {}
    for name, options in job.metrics:
        metric = _metric(name, options, task.scale, job.setting.degradation, job.setting.channels)
        given = metric.values(output, reference=truth, low=low)
        values.update({value: numbers[0] for value, numbers in given.items()})
    return values


def _outputs(job: Job) -> Iterator[tuple[Task, Tensor, float]]:
    """(task, its rounded output in [0, 1], seconds it took from the low image on), the chain computed once."""
    if job.sampling is None:
        model = baselines.Baseline(job.model)
        for task in job.tasks:
            start = time.perf_counter()
            prediction = model.predict(metrics.signed(_image(job, task.low)), seeds=[0], size=(task.high, task.high))
            yield task, _rounded(prediction, job, task), time.perf_counter() - start
        return
    cascade = _cascade(job.setting.bundles, job.setting.device)
    wanted = {task.stop: task for task in job.tasks}
    first = job.tasks[0].first
    low = metrics.signed(_image(job, job.tasks[0].low))
    sampling: list[Mapping[str, Any]] = [json.loads(options) for options in job.sampling]
    start = time.perf_counter()
    chain = cascade.outputs(low, seeds=[seeds.from_key(job.photo.key, job.setting.seed)], first=first, stop=max(wanted), sampling=sampling)
    for stop, prediction in enumerate(chain, start=first + 1):
        if stop in wanted:
            yield wanted[stop], _rounded(prediction, job, wanted[stop]), time.perf_counter() - start


def _rounded(prediction: Tensor, job: Job, task: Task) -> Tensor:
    if not bool(torch.isfinite(prediction).all()):
        raise Failed(f"{job.model} of {task.name} gave NaN or infinity on {job.photo.key}")
    return metrics.quantised(prediction.cpu())


def _image(job: Job, level: int) -> Tensor:
    """A stored level of the photo, (1, C, level, level) in [0, 1]."""
    array = _shards(job.setting.shards_uri).image(job.photo.split, job.photo.index, level)
    return torch.from_numpy(array.copy()).permute(2, 0, 1)[None].float() / metrics.LEVELS


@lru_cache(maxsize=1)
def _shards(uri: str) -> ShardSet:
    return ShardSet.open(uri)


@lru_cache(maxsize=1)
def _cascade(bundles: tuple[tuple[str, str], ...], device: str) -> Cascade:
    loaded: list[ModelBundle] = []
    for uri, sha256 in bundles:
        bundle = ModelBundle.load(uri)
        if bundle.manifest_sha256 != sha256:
            raise BadInput(
                f"bundle {uri} with sha256 {bundle.manifest_sha256[:12]}", f"the one training handed on ({sha256[:12]})", "run train again"
            )
        bundle.network.to(device)
        loaded.append(bundle)
    return Cascade(loaded)


@lru_cache(maxsize=64)
def _metric(name: str, options: str, scale: int, degradation: str, channels: int) -> metrics.Metric:
    return metrics.make(name, json.loads(options), scale=scale, degradation=degradation, channels=channels)
