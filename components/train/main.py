"""The train room's work: one stage on a ShardSet -> ModelBundle under ``<root>/train/<stage>/<fingerprint>``, over Ray Train."""

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from components import cluster, provenance
from components.jobs import run_elsewhere, scaling_there
from components.train.gauges import Gauges
from sr3_core import config, plugins, storage, tracking
from sr3_core.artifacts import bundle
from sr3_core.artifacts.bundle import ModelBundle
from sr3_core.artifacts.lease import Lease, lease
from sr3_core.artifacts.shardset import ShardSet
from sr3_core.config import Scaling, Stage
from sr3_core.data.loader import opened
from sr3_core.errors import BadInput, Failed
from sr3_core.progress import Progress, say
from sr3_core.tracking import Tracker
from sr3_core.training.loop import micro_batches_per_step
from sr3_core.training.state import CheckpointStore
from sr3_core.training.watching import held_out

ROOM = "train"
SAMPLES = "samples"  # folder of a run's artifacts


class TrainResult(NamedTuple):
    bundle_uri: str
    bundle_sha256: str  # of the manifest


def run(
    *,
    section: str,
    scaling: str,
    shards_uri: str,
    shards_sha256: str,
    root: str,
    mlflow_uri: str,
    run_key: str,
    ray_address: str = "",
    mlflow_run_id: str = "",
) -> TrainResult:
    """Train the stage of ``section`` (config.Stage as JSON) on the ShardSet at ``shards_uri``, or find its bundle up to date.

    A run that was broken off goes on from its last checkpoint. Raises BadInput for a section, ShardSet, root, Ray or MLflow that cannot
    be used and for more workers than there are resources, Failed when training itself fails.
    """
    stage, scale = config.parse(Stage, section), config.parse(Scaling, scaling)
    for workers in reversed(scale.sizes):
        micro_batches_per_step(stage.training, workers)
    plugins.load("objectives", stage.objective.name)
    shards = ShardSet.open(shards_uri)
    if shards.manifest_sha256 != shards_sha256:
        got = f"ShardSet {shards_uri} with manifest sha256 {shards.manifest_sha256[:12]}..."
        raise BadInput(got, f"{shards_sha256[:12]}..., as prepare handed it on", "run prepare again, or pass that ShardSet's sha256")
    here = scale.model_copy(update={"shard_cache": None})  # a folder of the workers' machines
    batches = opened(shards.uri, stage, here)  # refuses what the data cannot serve, before Ray starts
    if stage.training.watch is not None:
        held_out(batches.sets[0], stage)
    root, task = storage.absolute(root), f"{ROOM}-{stage.name}"
    others = [other.manifest_sha256 for other in batches.sets[1:]]
    init = None if stage.training.init is None else {"uri": stage.training.init, "sha256": ModelBundle.verify(stage.training.init)}
    others += [] if init is None else [f"init {init['sha256']}"]
    mark = config.fingerprint(stage.canonical_json(), shards_sha256, *others, f"train {bundle.SCHEMA_VERSION}")
    folder = storage.join(root, "train", stage.name, mark)
    place = storage.join(folder, "bundle")
    storage.check_writable(root)
    cluster.check(ray_address)
    address = cluster.resolve(ray_address)
    if cluster.is_job_address(address) and _finished(place, task) is None:
        there = scaling_there(address, ROOM, scale).canonical_json()
        arguments = {"section": stage.canonical_json(), "scaling": there, "shards-uri": shards.uri, "root": root}
        arguments |= {"shards-sha256": shards_sha256, "mlflow-uri": mlflow_uri, "run-key": run_key, "mlflow-run-id": mlflow_run_id}
        given = [f"--{name}={value}" for name, value in arguments.items()]
        run_elsewhere(address, "components.train", given, fingerprint=mark, scaling=scale)
        return TrainResult(place, ModelBundle.verify(place))
    with tracking.child(mlflow_uri, mlflow_run_id, task, mark) as tracker:
        tracker.log_params({"stage": stage.model_dump(mode="json"), "scaling": scale.model_dump(mode="json"), "shards": shards.uri})
        tracker.set_tags(provenance.tags())
        sha256 = _finished(place, task)
        if sha256 is None:
            with lease(folder, task=task) as held:
                sha256 = _train(stage, scale, shards, init, address=address, folder=folder, tracker=tracker, held=held, task=task)
        tracker.set_tags({"sr3.bundle_uri": place, "sr3.bundle_sha256": sha256})
    return TrainResult(place, sha256)


def _train(
    stage: Stage,
    scale: Scaling,
    shards: ShardSet,
    init: dict[str, str] | None,
    *,
    address: str,
    folder: str,
    tracker: Tracker,
    held: Lease,
    task: str,
) -> str:
    """Train to the end and publish the bundle; its manifest's sha256. ``init``: URI and manifest sha256 of ``training.init``'s bundle."""
    gpu = scale.accelerator == "gpu"
    store = CheckpointStore(storage.join(folder, "checkpoints"), keep=stage.training.keep_checkpoints, say=lambda text: say(task, text))
    with cluster.connect(
        address,
        workers=scale.workers,
        least=scale.sizes[0],
        cpus_per_worker=scale.cpus_per_worker,
        gpus_per_worker=int(gpu),
        dashboard=True,
        room=task,
    ) as ray_cluster:
        from components.train import ray_launcher  # imports ray, which reads its settings then

        job = ray_launcher.Job(
            stage=stage.canonical_json(), shards_uri=shards.uri, checkpoints_uri=store.uri, threads=ray_cluster.cpus_per_worker,
            scaling=scale.canonical_json(),
        )  # fmt: skip
        ray_launcher.fit(job, sizes=scale.sizes, gpu=gpu, folder_uri=folder, own_ray=not address, on_event=_Follower(stage, tracker, task))
    checkpoint = store.latest()
    if checkpoint is None or checkpoint.images_seen != stage.training.images:
        seen = checkpoint.images_seen if checkpoint else 0
        raise Failed(f"training ended at {seen} of {stage.training.images} images; the same command goes on from there")
    if init is not None and checkpoint.manifest["init_sha256"] != init["sha256"]:
        started = str(checkpoint.manifest["init_sha256"])
        raise Failed(f"{init['uri']} was changed while training started: {started[:12]}... was read; delete {folder} and run again")
    held.check()
    sha256 = ModelBundle.save(
        storage.join(folder, "bundle"),
        stage=stage,
        network_state=store.averaged_weights(checkpoint),
        measured=checkpoint.manifest["measured"],
        degradation=shards.data.degradation,
        bits=shards.data.bits,
        lineage=bundle.lineage(
            shards_sha256=shards.manifest_sha256, images_seen=checkpoint.images_seen, git_commit=provenance.git_commit(), init=init
        ),
        metrics={"training": checkpoint.manifest["logged"]},
    )
    say(task, f"bundle -> {storage.join(folder, 'bundle')}")
    return sha256


class _Follower:
    """Turns the loop's events into progress lines and MLflow metrics. A line that a restarted group replays is told once."""

    def __init__(self, stage: Stage, tracker: Tracker, task: str) -> None:
        self._stage, self._tracker, self._task = stage, tracker, task
        self._gauges = Gauges(stage.name)
        self._progress: Progress | None = None
        self._seen = self._looked = 0

    def __call__(self, event: tuple[Any, ...]) -> None:
        kind, *content = event
        if kind == "say":
            say(self._task, content[0])
            return
        if kind == "about":
            self._tracker.set_tags({f"sr3.environment.{name}": str(value) for name, value in content[0].items()})
            return
        if kind == "look":
            self._look(*content)
            return
        images_seen, metrics = content
        if self._progress is None:
            self._seen, self._looked = images_seen, images_seen - 1  # a look may be owed since the last run
            self._progress = Progress(ROOM, self._stage.name, total=self._stage.training.images, unit="images", done=images_seen)
            self._progress.advance(0)
        elif images_seen > self._seen:
            self._progress.advance(images_seen - self._seen, f"loss {metrics['loss']:.4g}" if "loss" in metrics else "")
            self._tracker.log_metrics(metrics, step=images_seen)
            self._gauges.tell(images_seen, metrics)
            self._seen = images_seen

    def _look(self, images_seen: int, metrics: dict[str, float], picture: bytes | None) -> None:
        """What the averaged weights make of held-out images; the picture becomes the artifact ``samples/<images seen>.png``."""
        if images_seen <= self._looked:
            return
        self._looked = images_seen
        self._tracker.log_metrics(metrics, step=images_seen)
        self._gauges.tell(images_seen, metrics)
        short = {"validation/loss": "loss", "validation/psnr_rgb": "PSNR in dB", "validation/lpips": "LPIPS", "validation/ssim": "SSIM"}
        found = [f"{name} {metrics[metric]:.4g}" for metric, name in short.items() if metric in metrics]
        watch = self._stage.training.watch
        if picture is not None:
            with tempfile.TemporaryDirectory(prefix="sr3-samples-") as folder:
                path = Path(folder, f"{images_seen:012d}.png")
                path.write_bytes(picture)
                self._tracker.log_artifact(path, folder=SAMPLES)
            found.append(f"samples in MLflow: {SAMPLES}/{images_seen:012d}.png")
        elif watch is not None and watch.samples:
            found.append("no samples: they hold values that are not finite")
        say(self._task, f"held-out images at {images_seen}: {', '.join(found)}")


def _finished(place: str, task: str) -> str | None:
    """sha256 of the finished bundle's manifest; None when there is none, or when it is damaged, which is said."""
    if not storage.exists(storage.join(place, bundle.MANIFEST)):
        return None
    try:
        sha256 = ModelBundle.verify(place)
    except BadInput as error:
        say(task, f"{error.got}: made anew")
        return None
    say(task, f"up to date: {place}")
    return sha256
