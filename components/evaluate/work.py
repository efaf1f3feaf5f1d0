"""What one worker does for one job: images in, metrics (and pictures) out. Models and metrics are loaded once per worker process."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from components.evaluate.plan import Draw, Job, Setting, Task
from sr3_core import baselines, images, labels, seeds, storage
from sr3_core.artifacts.bundle import ModelBundle
from sr3_core.artifacts.report import NOISE, OURS, PICTURES, SECONDS, Measurement, picture_name
from sr3_core.artifacts.shardset import ShardSet
from sr3_core.cascade import Cascade, sample_seed
from sr3_core.errors import BadInput, Failed
from sr3_core.inference import Upscaler
from sr3_core.metrics import _base as metrics

PARTS = "parts"


def run(job: Job | Draw) -> list[Measurement]:
    """Compute a job, keep its result under ``PARTS`` for a run that is started again, and return one measurement per task and metric.

    An image from noise has one measurement, its seconds, and is always kept as a picture.
    """
    torch.set_num_threads(job.setting.threads)
    found = _drawn(job) if isinstance(job, Draw) else _judged(job)
    storage.write_json(part_uri(job), [vars(measurement) for measurement in found])
    return found


def _judged(job: Job) -> list[Measurement]:
    found: list[Measurement] = []
    for task, output, seconds in _outputs(job):
        values = judge(job, task, output)
        if task.name in job.pictured:
            _keep(job.setting, picture_name(task.name, job.photo.key, job.model), output)
        sampling = job.sampling[task.stop - 1] if job.sampling is not None else ""
        where = {"split": job.photo.split, "task": task.name, "model": job.model, "key": job.photo.key, "photo": job.photo.photo}
        found += [Measurement(**where, metric=name, value=value, sampling=sampling, seconds=seconds) for name, value in values.items()]
    return found


def _drawn(job: Draw) -> list[Measurement]:
    outputs = {output.stop: output.name for output in job.outputs}
    where = {"split": NOISE, "model": OURS, "key": job.key, "photo": job.key, "metric": SECONDS}
    found: list[Measurement] = []
    chain = _chain(job, None, sample_seed(job.setting.seed, job.number), job.label, job.sampling, first=0, wanted=outputs)
    for stop, output, seconds in chain:
        _keep(job.setting, picture_name(outputs[stop], job.key, OURS), output)
        found.append(Measurement(**where, task=outputs[stop], value=seconds, sampling=job.sampling[stop - 1], seconds=seconds))
    return found


def part_uri(job: Job | Draw) -> str:
    """Where the job's finished result lies until the report is published."""
    return storage.join(job.setting.folder, PARTS, f"{job.identity()}.json")


def finished(job: Job | Draw) -> list[Measurement] | None:
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
            low = metrics.signed(_image(job, task.low))  # a square, or a whole photo of any shape
            size = (low.shape[-2] * task.scale, low.shape[-1] * task.scale)
            prediction = model.predict(low, seeds=[0], size=size)
            yield task, _rounded(prediction, job, task.name), time.perf_counter() - start
        return
    tasks = {task.stop: task for task in job.tasks}
    low = metrics.signed(_image(job, job.tasks[0].low))
    drawn = seeds.from_key(job.photo.key, job.setting.seed)
    names = {stop: task.name for stop, task in tasks.items()}
    for stop, output, seconds in _chain(job, low, drawn, job.photo.label, job.sampling, first=job.tasks[0].first, wanted=names):
        yield tasks[stop], output, seconds


def _chain(
    job: Job | Draw,
    low: Tensor | None,
    drawn: int,
    label: int | None,
    sampling: Sequence[str],
    *,
    first: int,
    wanted: Mapping[int, str],
) -> Iterator[tuple[int, Tensor, float]]:
    """(stop, output, seconds from the low image or the noise on) of the stages whose ``stop`` is ``wanted``, by the seed ``drawn`` and the
    image's own ``label``.

    The seconds leave out what is done with an output before the next one is asked for.
    """
    whole_photos = _shards(job.setting.shards_uri).data.fit == "keep"
    cascade = _cascade(job.setting.bundles, job.setting.device, job.setting.bits, tiled=whole_photos)
    options: list[Mapping[str, Any]] = [json.loads(each) for each in sampling]
    chain = cascade.outputs(low, seeds=[drawn], labels=labels.tensor(label), first=first, stop=max(wanted), sampling=options)
    seconds = 0.0
    for stop in range(first + 1, max(wanted) + 1):
        start = time.perf_counter()
        prediction = next(chain)
        output = _rounded(prediction, job, wanted[stop]) if stop in wanted else None
        seconds += time.perf_counter() - start
        if output is not None:
            yield stop, output, seconds


def _rounded(prediction: Tensor, job: Job | Draw, task: str) -> Tensor:
    if not bool(torch.isfinite(prediction).all()):
        raise Failed(f"{task} gave NaN or infinity: {job.name}")
    return metrics.quantised(prediction.cpu(), job.setting.bits)


def _keep(setting: Setting, name: str, output: Tensor) -> None:
    """``output`` (1, C, H, W) in [0, 1] as a picture of the report."""
    file = storage.join(setting.folder, PICTURES, name)
    storage.write_bytes(file, images.encode(images.preview(images.from_unit(metrics.signed(output)[0].numpy()))))


def _image(job: Job, level: int) -> Tensor:
    """A stored level of the photo, (1, C, level, level) or of its own shape, in [0, 1]."""
    array = _shards(job.setting.shards_uri).image(job.photo.split, job.photo.index, level)
    return torch.from_numpy(array.astype(np.float32)).permute(2, 0, 1)[None] / images.peak(job.setting.bits)


@lru_cache(maxsize=1)
def _shards(uri: str) -> ShardSet:
    return ShardSet.open(uri)


@lru_cache(maxsize=1)
def _cascade(bundles: tuple[tuple[str, str], ...], device: str, bits: int, *, tiled: bool) -> Cascade:
    loaded: list[ModelBundle] = []
    for uri, sha256 in bundles:
        bundle = ModelBundle.load(uri)
        if bundle.manifest_sha256 != sha256:
            raise BadInput(
                f"bundle {uri} with sha256 {bundle.manifest_sha256[:12]}", f"the one training handed on ({sha256[:12]})", "run train again"
            )
        if bundle.bits != bits:
            raise BadInput(f"bundle {uri} of {bundle.bits} bits", f"the {bits} of the ShardSet", "run train again")
        bundle.network.to(device)
        loaded.append(bundle)
    cascade = Cascade(loaded)
    return Upscaler(cascade).cascade if tiled else cascade  # a whole photo is seen as a user's is: in tiles where it is large


@lru_cache(maxsize=64)
def _metric(name: str, options: str, scale: int, degradation: str, channels: int) -> metrics.Metric:
    return metrics.make(name, json.loads(options), scale=scale, degradation=degradation, channels=channels)
