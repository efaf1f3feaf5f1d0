"""Ray Train as the launcher of the training loop: a group of workers that is restarted when one is lost. All Ray of this room.

Three things end a group in order, with a checkpoint after the step at hand: Ray's notice of a node that will be taken away and room for
more workers, after which a new group goes on, and a TERM of this process, after which the same command goes on. Lost workers are given no
notice: the new group goes on from the last checkpoint.

The loop's own checkpoints hold the state; Ray's hold nothing. What rank 0 has to tell comes to the driver through a mailbox, so
that the driver prints it as its own lines and alone speaks to MLflow.
"""

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow.fs
import ray
import ray.train
import torch
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from components.train.growth import Growth
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
_NOTICE_SECONDS = 2.0  # between two questions to Ray, which wait for every worker
_WATCH_SECONDS = 1  # between two of Ray's own looks at its nodes
_PATIENCE_SECONDS = 60.0  # for a step and its checkpoint after a TERM
_START_SECONDS = 30  # for a group to start: where a node was lost, Ray waits as long for the size that it had (its own default: 60)
_ROOM_SECONDS = 5.0  # between two looks for room for more workers
LEAVING = "a node will be taken away"
GROWING = "there is room for more workers"

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
    """A worker of Ray Train's process group. With ``notices`` it ends after Ray's notice of a node that goes away: ``noticed`` is set."""

    def __init__(self, device: torch.device, *, stop: Callable[[], bool], notices: bool) -> None:
        super().__init__(device, stop=stop)
        self.noticed = False
        self._notices, self._asked = notices, time.monotonic()

    def report(self, metrics: Mapping[str, float], *, checkpoint: bool) -> None:
        ray.train.report(dict(metrics))

    def should_stop(self) -> bool:
        """One number goes round after each step: 2 to stop, 1 when it is time to ask Ray, which every rank then does."""
        ask = self._notices and self.rank == 0 and time.monotonic() - self._asked > _NOTICE_SECONDS
        wish = self.largest(2 if self._stop() else int(ask))
        if wish == 1:
            self._asked = time.monotonic()
            self.noticed = ray.train.get_preemption_info() is not None
        return self.noticed or wish == 2


class Mailbox:
    """Events from rank 0 to the driver, in order; a fatal error is kept, so that a restarted group ends at once.

    The other way the driver asks the workers to stop, for good (a TERM) or for a larger group. ``leave`` says why a group ended that is to
    be followed by another one, ``left`` tells it once.
    """

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._fatal: BadInput | Failed | None = None
        self._stopping = self._growing = False
        self._left = ""

    def stop(self) -> None:
        self._stopping = True

    def grow(self) -> None:
        self._growing = True

    def asked(self) -> tuple[bool, bool]:
        """Whether to stop for good, whether to stop for a larger group."""
        return self._stopping, self._growing

    def leave(self, why: str) -> None:
        self._left = why

    def left(self) -> str:
        left, self._left, self._growing = self._left, "", False
        return "" if self._stopping else left

    def put(self, event: Event) -> None:
        self._events.append(event)

    def take(self) -> list[Event]:
        taken, self._events = self._events, []
        return taken

    def fail(self, error: BadInput | Failed) -> None:
        self._fatal = self._fatal or error

    def fatal(self) -> BadInput | Failed | None:
        return self._fatal


def fit(job: Job, *, sizes: range, gpu: bool, folder_uri: str, own_ray: bool, on_event: Callable[[Event], None]) -> None:
    """Run the loop to its end on as many workers of ``sizes`` as there are resources for; ``on_event`` is called in a thread.

    What Ray itself keeps is removed at the end: it stands in the working folder with ``own_ray``, else where every node of the cluster
    reaches it, under ``folder_uri``.

    A lost worker restarts the group from the last checkpoint, ``MAX_FAILURES`` times; a node's notice, and room for more workers, does so
    as often as it comes. After a TERM the handler that was there takes over. Raises BadInput and Failed of the loop as they are (they are
    not tried again), Failed when the restarts are used up, and what ``on_event`` raised when all else went well.
    """
    name, parent = f"ray-{folder_uri.rpartition('/')[2]}", storage.absolute(".") if own_ray else folder_uri
    # on our own node: another may be lost, and the run with it
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    mailbox: Any = ray.remote(num_cpus=0, scheduling_strategy=here)(Mailbox).remote()
    # a Ray of our own has one node and loses it with us: nobody needs the actor that looks for notices
    os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0" if own_ray else "1"
    os.environ["RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S"] = str(_WATCH_SECONDS)
    if len(sizes) > 1:
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(_START_SECONDS))
    each = {"CPU": job.threads, **({"GPU": 1} if gpu else {})}
    ended, errors = threading.Event(), list[Exception]()
    room = _Room(Growth(sizes[-1], each), mailbox)

    def heard(event: Event) -> None:
        if event[0] == "about":
            room.workers = event[1]["world_size"]
        on_event(event)

    with _ending_in_order(mailbox, ended, on_event):
        follower = threading.Thread(target=follow, args=(mailbox, heard, ended, errors), name="sr3-mailbox", daemon=True)
        follower.start()
        if not own_ray and len(sizes) > 1:
            threading.Thread(target=room.watch, args=(ended,), name="sr3-room", daemon=True).start()
        try:
            going = True
            while going:
                _remove(storage.join(parent, name), on_event)  # of a run that was killed or has left: Ray would go on with it
                room.workers = None
                _trainer(job, mailbox, name=name, parent=parent, sizes=sizes, each=each, notices=not own_ray).fit()
                why = ray.get(mailbox.left.remote())
                going = why != ""
                if going:
                    on_event(("say", f"{why}: going on with a new group of workers"))
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


class _Room:
    """Asks the group to stop when the cluster has room for a larger one; ``workers`` is the group's size, None before it has begun."""

    def __init__(self, growth: Growth, mailbox: Any) -> None:
        self.workers: int | None = None
        self._growth, self._mailbox = growth, mailbox

    def watch(self, ended: threading.Event) -> None:
        """The body of a thread: look until ``ended``."""
        while not ended.wait(_ROOM_SECONDS):
            workers = self.workers
            if workers is None:
                continue
            free, total = ray.available_resources(), ray.cluster_resources()
            if self._growth.due(time.monotonic(), workers=workers, free=free, total=total):
                ray.get(self._mailbox.grow.remote())


def _trainer(job: Job, mailbox: Any, *, name: str, parent: str, sizes: range, each: dict[str, float], notices: bool) -> TorchTrainer:
    workers, gpu = sizes[0] if len(sizes) == 1 else (sizes[0], sizes[-1]), "GPU" in each
    return TorchTrainer(
        _work,
        train_loop_config={"job": asdict(job), "mailbox": mailbox, "notices": notices},
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=gpu,
            resources_per_worker=each,
            elastic_resize_monitor_interval_s=math.inf,  # Ray would end a group without a checkpoint to enlarge it
        ),
        run_config=RunConfig(
            name=name,
            **ray_storage(parent),
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )


@contextmanager
def _ending_in_order(mailbox: Any, ended: threading.Event, on_event: Callable[[Event], None]) -> Generator[None, None, None]:
    """For the block, a TERM lets the workers end in order; then, or after a second one, it does what it did before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, came = signal.getsignal(signal.SIGTERM), threading.Event()

    def note(number: int, _frame: Any) -> None:
        if came.is_set():
            signal.signal(number, before)
            os.kill(os.getpid(), number)
        came.set()

    def pass_on() -> None:
        while not ended.is_set():
            if came.wait(_POLL_SECONDS):
                ray.get(mailbox.stop.remote())
                on_event(("say", "TERM: ending after this step, with a checkpoint; the same command goes on from there"))
                if not ended.wait(_PATIENCE_SECONDS):
                    os.kill(os.getpid(), signal.SIGTERM)
                return

    signal.signal(signal.SIGTERM, note)
    threading.Thread(target=pass_on, name="sr3-term", daemon=True).start()
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
    if came.is_set():
        os.kill(os.getpid(), signal.SIGTERM)


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
    asked, growing, over = threading.Event(), threading.Event(), threading.Event()
    device = get_device()
    worker = RayWorker(device, stop=asked.is_set, notices=given["notices"])

    def listen() -> None:
        while not over.wait(_POLL_SECONDS):
            for_good, for_more = ray.get(mailbox.asked.remote())
            if for_more:
                growing.set()
            if for_good or for_more:
                asked.set()
                return

    def tell(*event: Any) -> None:
        if worker.rank == 0:
            ray.get(mailbox.put.remote(event))

    best = 0 if stage.training.watch is None else stage.training.watch.keep_best
    checkpoints = CheckpointStore(job.checkpoints_uri, keep=stage.training.keep_checkpoints, best=best, say=lambda text: tell("say", text))
    if worker.rank == 0:
        threading.Thread(target=listen, name="sr3-stop", daemon=True).start()
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
        state = train(
            stage,
            None,
            batches=batches,
            watcher=watcher,
            worker=worker,
            checkpoints=checkpoints,
            log=lambda images_seen, metrics: tell("log", images_seen, metrics),
            say=lambda text: tell("say", text),
        )
        if worker.rank == 0 and state.images_seen < stage.training.images and (worker.noticed or growing.is_set()):
            ray.get(mailbox.leave.remote(LEAVING if worker.noticed else GROWING))
    except (BadInput, Failed) as error:
        ray.get(mailbox.fail.remote(error))
        raise
    finally:
        over.set()


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
