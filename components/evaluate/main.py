"""The evaluate room: plan, compute on Ray, choose the sampling, judge, publish an EvalReport.

1. read the ShardSet's and the bundles' manifests   2. search the sampling options on the search's split, baselines beside it
3. ours and its variants on the judged split, images from noise where the first stage is unconditional
4. means, paired gains, gate   5. pictures, page, manifest last, MLflow
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from components import cluster, provenance
from components.evaluate import plan, verdict, work
from components.evaluate.plan import Draw, Job, Setting
from components.jobs import run_elsewhere, scaling_there
from sr3_core import config, images, labels, storage, tracking
from sr3_core.artifacts import bundle, report, report_figures, report_page
from sr3_core.artifacts.bundle import ModelBundle, handed_on, handed_on_json
from sr3_core.artifacts.lease import lease
from sr3_core.artifacts.report import OURS, EvalReport, Measurement
from sr3_core.artifacts.shardset import ShardSet
from sr3_core.config import Evaluation, Scaling, Stage
from sr3_core.errors import BadInput
from sr3_core.progress import Progress, say

ROOM = "evaluate"
RETRIES = 2
SHOWN_METRICS = 3  # numbers below a picture

Mapper = Callable[[Sequence[Job | Draw], Callable[[Job | Draw, list[Measurement]], None]], list[list[Measurement]]]


class Measured(NamedTuple):
    """What was computed: for the search, on the judged split, and from noise."""

    searched: list[Measurement]
    judged: list[Measurement]
    drawn: list[Measurement]


class EvaluateResult(NamedTuple):
    """What the room hands on."""

    report_uri: str
    report_sha256: str
    passed: bool


def run(
    *,
    section: str,
    scaling: str,
    shards_uri: str,
    shards_sha256: str,
    bundles: str,
    root: str,
    mlflow_uri: str,
    run_key: str,
    ray_address: str = "",
    mlflow_run_id: str = "",
) -> EvaluateResult:
    """Evaluate ``bundles`` (JSON list of {"uri", "sha256"} in cascade order) on the ShardSet; a finished report is verified and returned.

    Raises BadInput for inputs that do not fit, a root that cannot be written, an address that does not answer, an output folder in use.
    """
    evaluation = config.parse(Evaluation, section)
    handed, root = handed_on(bundles), storage.absolute(root)
    fingerprint = config.fingerprint(
        evaluation.canonical_json(), shards_sha256, *[sha256 for _, sha256 in handed], str(report.SCHEMA_VERSION)
    )
    folder = storage.join(root, "eval", fingerprint)
    storage.check_writable(root)
    done = _finished(folder)
    if done is None:
        cluster.check(ray_address)  # before a run in MLflow is opened; a finished report needs no Ray
    address = cluster.resolve(ray_address)
    scale = config.parse(Scaling, scaling)
    if cluster.is_job_address(address) and done is None:
        there = scaling_there(address, ROOM, scale).canonical_json()
        given = {"section": section, "scaling": there, "shards_uri": storage.absolute(shards_uri), "shards_sha256": shards_sha256}
        place = {"root": root, "mlflow_uri": mlflow_uri, "run_key": run_key, "mlflow_run_id": mlflow_run_id}
        place["bundles"] = handed_on_json(handed)
        run_elsewhere(address, "components.evaluate", _arguments({**given, **place}), fingerprint=fingerprint, scaling=scale)
        return _result(EvalReport.open(folder))
    with tracking.child(mlflow_uri, mlflow_run_id or None, ROOM, fingerprint) as tracker:
        tracker.set_tags(provenance.tags())
        tracker.log_params({"evaluation": evaluation.model_dump(mode="json"), "scaling": scale.model_dump(mode="json")})
        if done is None:
            shards = _shards(shards_uri, shards_sha256)
            stages = [stage_of(uri, sha256) for uri, sha256 in handed]
            with lease(folder, task=ROOM) as held:
                prepared = Evaluating(evaluation, stages, handed, shards, folder=folder, fingerprint=fingerprint)
                measured = _over_ray(prepared, scale, ray_address)
                held.check()
                done = prepared.publish(measured)
        tracker.log_params({"shards": shards_uri, "sampling": done.sampling})
        tracker.log_metrics(done.metrics())
        tracker.set_tags({"sr3.report": done.uri, "sr3.gate": "passed" if done.passed else "failed"})
        for name in (report.MANIFEST, report.PAGE):
            tracker.log_artifact(_local_copy(done.uri, name), folder="report")
    for line in done.notes():
        say(ROOM, line)
    for line in done.failures():
        say(ROOM, f"gate: {line}")
    say(ROOM, f"report {done.page_uri}")
    return _result(done)


def _over_ray(prepared: "Evaluating", scaling: Scaling, ray_address: str) -> Measured:
    gpus = 1 if scaling.accelerator == "gpu" else 0
    with cluster.connect(
        ray_address, workers=scaling.workers, cpus_per_worker=scaling.cpus_per_worker, gpus_per_worker=gpus, room=ROOM
    ) as ray:

        def mapper(jobs: Sequence[Job | Draw], on_done: Callable[[Job | Draw, list[Measurement]], None]) -> list[list[Measurement]]:
            return cluster.map_tasks(
                work.run, jobs, retries=RETRIES, on_done=on_done, cpus_per_task=ray.cpus_per_worker, gpus_per_task=gpus,
                at_once=scaling.workers, name=_job_name,
            )  # fmt: skip

        return prepared.measure(mapper, threads=ray.cpus_per_worker, device="cuda" if gpus else "cpu")


class Evaluating:
    """One evaluation between its inputs and its report; the mapper decides where jobs run."""

    def __init__(
        self,
        evaluation: Evaluation,
        stages: Sequence[Stage],
        bundles: Sequence[tuple[str, str]],
        shards: ShardSet,
        *,
        folder: str,
        fingerprint: str,
    ) -> None:
        self.evaluation, self.stages, self.bundles, self.shards = evaluation, list(stages), tuple(bundles), shards
        self.folder, self.fingerprint = folder, fingerprint
        self.tasks, self.generated = plan.tasks(self.stages), plan.generated(self.stages)
        self.photos = plan.photos(shards, evaluation.split)
        if self.tasks and not any(photo.serves(task) for photo in self.photos for task in self.tasks):
            got = f"no image of split {evaluation.split} has the levels of any stage"
            raise BadInput(got, "at least one held-out image", "add photos, or change data.split and data.required_levels")
        self.definitions = verdict.Definitions.of(
            evaluation, self.tasks, degradation=shards.data.degradation, channels=shards.data.channels
        )
        self.judge = verdict.check(evaluation, self.definitions)
        self._check_labels()
        for stage in self.stages:
            verdict.notes(stage, plan.changes(stage, evaluation))  # refuses sampling before anything is computed

    def _check_labels(self) -> None:
        """BadInput where a stage that is given held-out images is told labels, and theirs are missing or unknown to it."""
        search = self.evaluation.search
        splits = {self.evaluation.split, *([search.split] if search is not None else [])}
        for split in sorted(splits):
            found = [photo.label for photo in plan.photos(self.shards, split)]
            for stage in self.stages:
                if stage.low is not None:
                    labels.check_samples(stage, found, f"split {split} of {self.shards.uri}")

    def measure(self, mapper: Mapper, *, threads: int, device: str) -> Measured:
        """Everything, by two calls of ``mapper``: the search and the baselines, then what is sampled as the search chose."""
        data, search = self.shards.data, self.evaluation.search
        setting = Setting(
            folder=self.folder, shards_uri=self.shards.uri, bundles=self.bundles, channels=data.channels, bits=data.bits,
            degradation=data.degradation, seed=self.evaluation.seed, threads=threads, device=device,
        )  # fmt: skip
        held_out = plan.photos(self.shards, search.split) if search is not None else []
        searching = plan.search_jobs(setting, self.stages, self.tasks, held_out, search, judge=self.judge)
        baselines = plan.baseline_jobs(setting, self.tasks, self.photos, self.evaluation)
        first = _computed([*searching, *baselines], mapper, "search and baselines")
        searched = [item for job in searching for item in first[job]]
        _, chosen = verdict.search(searched, self.stages, self.evaluation, self.definitions)
        for stage, sampling in chosen.items():
            say(ROOM, f"{stage} samples with {report_figures.option_text(sampling)}")
        ours = plan.model_jobs(setting, self.stages, self.tasks, self.photos, self.evaluation, chosen=chosen)
        draws = plan.draws(setting, self.stages, self.generated, chosen=chosen)
        second = _computed([*ours, *draws], mapper, self.evaluation.split if ours else "noise")
        judged = [item for done, jobs in ((second, ours), (first, baselines)) for job in jobs for item in done[job]]
        return Measured(searched, judged, [item for job in draws for item in second[job]])

    def publish(self, measured: Measured) -> EvalReport:
        """Write the report; the partial results go when its manifest stands."""
        content = self.content(measured)
        figures = [*self._figures(measured.judged), *self._galleries(measured.drawn)]
        rows = [item for items in measured for item in items]
        done = report.publish(self.folder, content, rows, page=report_page.page(content, figures))
        storage.remove(storage.join(self.folder, work.PARTS), recursive=True)
        return done

    def content(self, measured: Measured) -> dict[str, Any]:
        """report.json."""
        evaluation, definitions = self.evaluation, self.definitions
        searched, judged, drawn = measured
        found, chosen = verdict.search(searched, self.stages, evaluation, definitions)
        rows = verdict.results(judged, definitions, seed=evaluation.seed)
        gains = verdict.gains(judged, definitions, evaluation, self.tasks)
        notes = {stage.name: verdict.notes(stage, self._used(stage, chosen[stage.name])) for stage in self.stages}
        return {
            "title": config.sizes(self.stages),
            "fingerprint": self.fingerprint,
            "section": evaluation.model_dump(mode="json"),
            "split": evaluation.split,
            "degradation": self.shards.data.degradation,
            "baselines": list(evaluation.baselines),
            "variants": list(evaluation.variants),
            "shards": {"uri": self.shards.uri, "sha256": self.shards.manifest_sha256},
            "bundles": [
                {"stage": stage.name, "uri": uri, "sha256": sha256} for stage, (uri, sha256) in zip(self.stages, self.bundles, strict=True)
            ],
            "tasks": [verdict.task_json(task, self.photos, judged) for task in self.tasks],
            "generated": [
                verdict.generated_json(
                    made,
                    drawn,
                    [report.picture_name(made.name, key, OURS) for key in _keys(drawn)],
                    seed=evaluation.seed,
                    labels=plan.drawn_labels(self.stages),
                )
                for made in self.generated
            ],
            "metrics": definitions.as_json(),
            "results": rows,
            "gains": gains,
            "gate": verdict.gate(rows, gains, definitions, evaluation.gate, self.tasks),
            "search": found,
            "sampling": chosen,
            "notes": notes,
        }

    def _used(self, stage: Stage, chosen: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The sampling options that the report is about: the chosen ones and, where the stage is judged, the variants."""
        variants = self.evaluation.variants.values() if stage.low is not None else ()
        return [{**chosen, **change} for change in ({}, *variants)]

    def _figures(self, judged: Sequence[Measurement]) -> list[report_figures.Figure]:
        shown = plan.pictured(self.tasks, self.photos)
        models = [*self.evaluation.baselines[:1], OURS]
        names = list(self.definitions.reports)[:SHOWN_METRICS]
        values = {(item.task, item.model, item.key, item.metric): item.value for item in judged}
        figures: list[report_figures.Figure] = []
        for task in self.tasks:
            for photo in (photo for photo in self.photos if photo.key in shown[task.name]):
                outputs = {model: self._picture(task.name, photo.key, model) for model in models}
                notes = {model: _note(values, task.name, model, photo.key, names) for model in models}
                low = images.preview(self.shards.image(photo.split, photo.index, task.low))
                truth = images.preview(self.shards.image(photo.split, photo.index, task.high))
                figures.append(report_figures.figure(task=task.name, key=photo.key, low=low, outputs=outputs, truth=truth, notes=notes))
        return figures

    def _galleries(self, drawn: Sequence[Measurement]) -> list[report_figures.Figure]:
        found: list[report_figures.Figure] = []
        asked = {
            plan.sample_key(number): "" if label is None else f"label {label}, "
            for number, label in enumerate(plan.drawn_labels(self.stages))
        }
        for made in self.generated:
            notes = {item.key: f"{asked[item.key]}{report.number(item.seconds)} s" for item in drawn if item.task == made.name}
            pictures = {key: self._picture(made.name, key, OURS) for key in notes}
            found.append(
                report_figures.gallery(task=made.name, key=f"{made.label}, seed {self.evaluation.seed}", pictures=pictures, notes=notes)
            )
        return found

    def _picture(self, task: str, key: str, model: str) -> "np.ndarray[Any, np.dtype[np.uint8]]":
        file = storage.join(self.folder, report.PICTURES, report.picture_name(task, key, model))
        return images.decode(storage.read_bytes(file), channels=3 if self.shards.data.channels >= 3 else 1)


def _computed(jobs: Sequence[Job | Draw], mapper: Mapper, what: str) -> dict[Job | Draw, list[Measurement]]:
    """Results by job in the order given; what an earlier run finished is read, the rest computed, the longest first."""
    if not jobs:
        return {}
    found = {job: work.finished(job) for job in jobs}
    missing = plan.longest_first(job for job, result in found.items() if result is None)
    computed: dict[Job | Draw, list[Measurement]] = {}
    with Progress(ROOM, what, total=len(found), unit="images", done=len(found) - len(missing)) as progress:
        for job, result in zip(missing, mapper(missing, lambda job, _: progress.advance(note=job.name)), strict=True):
            computed[job] = result
    return {job: result if result is not None else computed[job] for job, result in found.items()}


def _finished(folder: str) -> EvalReport | None:
    """The finished report in ``folder``; None when there is none, or when it is damaged, which is said."""
    manifest = storage.join(folder, report.MANIFEST)
    if not storage.exists(manifest):
        return None
    try:
        done = EvalReport.open(folder)
    except BadInput as error:
        say(ROOM, f"{error.got}: made anew")
        storage.remove(manifest)
        return None
    say(ROOM, f"up to date: {done.uri}")
    return done


def _job_name(job: Job | Draw) -> str:
    return job.name


def _keys(drawn: Sequence[Measurement]) -> list[str]:
    return list(dict.fromkeys(item.key for item in drawn))


def _note(values: Mapping[tuple[str, str, str, str], float], task: str, model: str, key: str, names: Sequence[str]) -> str:
    parts = [f"{name} {report.number(values[task, model, key, name])}" for name in names if (task, model, key, name) in values]
    return ", ".join(parts)


def stage_of(uri: str, sha256: str) -> Stage:
    """The stage of a verified bundle, with the sampling options that the bundle uses by default."""
    got = ModelBundle.verify(uri)
    if got != sha256:
        raise BadInput(f"bundle {uri} with sha256 {got[:12]}", f"the one training handed on ({sha256[:12]})", "run train again")
    manifest = storage.read_json(storage.join(uri, bundle.MANIFEST))
    return config.parse(Stage, manifest["stage"]).model_copy(update={"sampling": manifest["sampling"]})


def _shards(uri: str, sha256: str) -> ShardSet:
    shards = ShardSet.open(uri)
    if shards.manifest_sha256 != sha256:
        raise BadInput(
            f"ShardSet {uri} with sha256 {shards.manifest_sha256[:12]}", f"the one prepare handed on ({sha256[:12]})", "run prepare again"
        )
    return shards


def _arguments(values: Mapping[str, Any]) -> list[str]:
    """The command line of this room for a submitted job, which finds its Ray by RAY_ADDRESS."""
    names = ("section", "scaling", "shards_uri", "shards_sha256", "bundles", "root", "mlflow_uri", "run_key", "mlflow_run_id")
    return [part for name in names if values[name] for part in (f"--{name.replace('_', '-')}", str(values[name]))]


def _local_copy(uri: str, name: str) -> Path:
    """A local path of a report's file: itself, or a copy in the working folder."""
    file = storage.join(uri, name)
    if storage.is_local(file):
        return storage.local_path(file)
    copy = Path(f"{uri.rstrip('/').rpartition('/')[2]}-{name}").absolute()
    copy.write_bytes(storage.read_bytes(file))
    return copy


def _result(done: EvalReport) -> EvaluateResult:
    return EvaluateResult(done.uri, done.manifest_sha256, done.passed)
