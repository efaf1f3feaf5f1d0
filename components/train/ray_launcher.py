"""Ray Train as the launcher of the training loop: a group of workers that is restarted when one is lost. All Ray of this room.

The loop's own checkpoints hold the state; Ray's hold nothing. What rank 0 has to tell comes to the driver through a mailbox, so
that the driver prints it as its own lines and alone speaks to MLflow.
"""

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow.fs
import ray
import ray.train
import torch
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from sr3_core import config, remote, storage
from sr3_core.config import Scaling, Stage
from sr3_core.data.loader import opened
from sr3_core.errors import BadInput, Failed
from sr3_core.training.loop import environment, train
from sr3_core.training.state import CheckpointStore
from sr3_core.training.watching import Watcher, held_out
from sr3_core.training.worker import DistributedWorker

MAX_FAILURES = 3  # restarts of the group; each one goes on from the last checkpoint
_POLL_SECONDS = 0.5

Event = tuple[Any, ...]  # ("log", images_seen, metrics) | ("look", images_seen, metrics, PNG or None) | ("about", facts) | ("say", text)


@dataclass(frozen=True)
class Job:
    """What every worker needs to know; plain values, since it travels."""

    stage: str  # the section as JSON
    shards_uri: str
    checkpoints_uri: str
    threads: int  # of torch, in each worker
    scaling: str  # the section as JSON


class RayWorker(DistributedWorker):
    """A worker of Ray Train's process group."""

    def report(self, metrics: Mapping[str, float], *, checkpoint: bool) -> None:
        ray.train.report(dict(metrics))


class Mailbox:
    """Events from rank 0 to the driver, in order; a fatal error is kept, so that a restarted group ends at once."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._fatal: BadInput | Failed | None = None

    def put(self, event: Event) -> None:
        self._events.append(event)

    def take(self) -> list[Event]:
        taken, self._events = self._events, []
        return taken

    def fail(self, error: BadInput | Failed) -> None:
        self._fatal = self._fatal or error

    def fatal(self) -> BadInput | Failed | None:
        return self._fatal


def fit(job: Job, *, workers: int, gpu: bool, folder_uri: str, own_ray: bool, on_event: Callable[[Event], None]) -> None:
    """Run the loop on ``workers`` workers to its end; ``on_event`` is called in a thread of this process.

    What Ray itself keeps is removed at the end: it stands in the working folder with ``own_ray``, else where every node of the cluster
    reaches it, under ``folder_uri``.

    A lost worker restarts the group from the last checkpoint, ``MAX_FAILURES`` times. Raises BadInput and Failed of the loop as they
    are (they are not tried again), Failed when the restarts are used up, and what ``on_event`` raised when all else went well.
    """
    name, parent = f"ray-{folder_uri.rpartition('/')[2]}", storage.absolute(".") if own_ray else folder_uri
    _remove(storage.join(parent, name), on_event)  # of a run that was killed: Ray would go on with it
    mailbox: Any = ray.remote(num_cpus=0)(Mailbox).remote()
    trainer = TorchTrainer(
        _work,
        train_loop_config={"job": asdict(job), "mailbox": mailbox},
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=gpu, resources_per_worker={"CPU": job.threads, **({"GPU": 1} if gpu else {})}
        ),
        run_config=RunConfig(
            name=name,
            **ray_storage(parent),
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    ended, errors = threading.Event(), list[Exception]()
    follower = threading.Thread(target=follow, args=(mailbox, on_event, ended, errors), name="sr3-mailbox", daemon=True)
    follower.start()
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        fatal: BadInput | Failed | None = ray.get(mailbox.fatal.remote())
        if fatal is None:
            raise Failed(f"training failed after {MAX_FAILURES} restarts, at last with: {_cause(error)}") from error
    finally:
        ended.set()
        follower.join()
        _remove(storage.join(parent, name), on_event)
    fatal = ray.get(mailbox.fatal.remote())
    if fatal is not None:
        raise fatal
    if errors:
        raise errors[0]


def ray_storage(uri: str) -> dict[str, Any]:
    """The arguments of RunConfig for a folder at ``uri``: of the schemes that fsspec knows, pyarrow knows a few by itself."""
    if storage.is_local(uri):
        return {"storage_path": uri}
    filesystem, path = remote.filesystem(uri)
    return {"storage_path": path, "storage_filesystem": pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem))}


def _remove(uri: str, on_event: Callable[[Event], None]) -> None:
    """Nobody reads it again: what cannot be removed must not cost the training, nor hide its error."""
    try:
        storage.remove(uri, recursive=True)
    except (OSError, Failed) as error:
        on_event(("say", f"could not remove {uri} ({error})"))


def _work(given: dict[str, Any]) -> None:
    """The body of each worker."""
    job, mailbox = Job(**given["job"]), given["mailbox"]
    if ray.get(mailbox.fatal.remote()) is not None:
        return
    torch.set_num_threads(job.threads)
    stage = config.parse(Stage, job.stage)
    if stage.training.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    device = get_device()
    worker = RayWorker(device)

    def tell(*event: Any) -> None:
        if worker.rank == 0:
            ray.get(mailbox.put.remote(event))

    checkpoints = CheckpointStore(job.checkpoints_uri, keep=stage.training.keep_checkpoints, say=lambda text: tell("say", text))
    try:
        batches = opened(job.shards_uri, stage, config.parse(Scaling, job.scaling))
        tell("about", {**environment(worker), **({"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {})})
        watcher = None
        if stage.training.watch is not None and worker.rank == 0:
            shards = batches.sets[0]
            watcher = Watcher(
                stage,
                held_out(shards, stage),
                degradation=shards.data.degradation,
                tell=lambda images_seen, metrics, picture: tell("look", images_seen, metrics, picture),
            )
        train(
            stage,
            None,
            batches=batches,
            watcher=watcher,
            worker=worker,
            checkpoints=checkpoints,
            log=lambda images_seen, metrics: tell("log", images_seen, metrics),
            say=lambda text: tell("say", text),
        )
    except (BadInput, Failed) as error:
        ray.get(mailbox.fail.remote(error))
        raise


def follow(mailbox: Any, on_event: Callable[[Event], None], ended: threading.Event, errors: list[Exception]) -> None:
    """Call ``on_event`` for what comes into the mailbox until ``ended``, to the last event; the body of a thread.

    What goes wrong is put into ``errors``, for whoever waits for the thread to raise; the events after it are handed on as before.
    """
    last = False
    while not last:
        last = ended.wait(_POLL_SECONDS)
        try:
            events: list[Event] = ray.get(mailbox.take.remote())
        except Exception as error:
            errors.append(error)
            continue
        for event in events:
            try:
                on_event(event)
            except Exception as error:
                errors.append(error)


def _cause(error: BaseException) -> str:
    """The worker's own error, without the tracebacks that Ray wraps around it."""
    failures = getattr(error, "worker_failures", {})
    first = next(iter(failures.values()), error)
    inner = getattr(first, "cause", None) or first
    lines = [line.strip() for line in str(inner).strip().splitlines() if line.strip()]
    return f"{type(inner).__name__}: {lines[-1] if lines else ''}"[:400]
