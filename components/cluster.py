"""Ray for every room: connect by the rules below, map a function over items with retries.

Beside ``components/jobs.py`` (a room as a submitted job) and ``components/train/ray_launcher.py`` the only importer of ray, and only
inside functions: a room that finds its result up to date starts no Ray.
"""

import hashlib
import http.client
import json
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from sr3_core.errors import BadInput, Failed
from sr3_core.progress import say

Item = TypeVar("Item")
Result = TypeVar("Result")

PROJECT = Path(__file__).resolve().parent.parent
LOCK = "infra/images/requirements.lock"
KUBERNETES = "kubernetes://"  # kubernetes://NAMESPACE: a Ray cluster for this room alone, by KubeRay
ADDRESSES = "HOST:PORT of a head, http://HOST:8265 for a submitted job, kubernetes://NAMESPACE for a cluster of its own, or none"
CODE_HASH_VARIABLE = "SR3_CODE_HASH"
MAX_SOCKET_PATH_BYTES = 107  # sockaddr_un on Linux
_SOCKET_BELOW_TEMP = "/ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store"
_OBJECT_STORE_BYTES = 256 * 1024 * 1024  # rooms exchange URIs and counts, not images
_CONNECT_SECONDS = 5.0
_QUIET = {
    "RAY_AUTH_MODE": "disabled",  # else a token file in the home folder turns authentication on
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",  # de-duplication holds lines back for seconds
    "RAY_COLOR_PREFIX": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # the default of 2 s is added to every stage's start and end
}


@dataclass(frozen=True)
class Cluster:
    """The Ray a room works on: its address as text, its CPUs and GPUs, and the CPUs that one worker may use."""

    address: str
    cpus: int
    gpus: int
    cpus_per_worker: int


def cores() -> int:
    """CPU cores this process may use: affinity, and the container's quota where there is one; at least 1."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return count
    return count if quota == "max" else max(1, min(count, int(quota) // int(period)))


def resolve(ray_address: str) -> str:
    """The address to use: the one given, else RAY_ADDRESS of the environment (a submitted job's, or the user's), else "" (a local Ray).

    Raises BadInput for a form that is not supported.
    """
    address = ray_address or os.environ.get("RAY_ADDRESS", "")
    if address.startswith("ray://"):
        raise BadInput(f"ray address {address}", ADDRESSES, "use the job address")
    return address


def is_job_address(address: str) -> bool:
    """Whether the room's entry is to be submitted there as a job instead of running here: to a Ray, or to one made for it."""
    return address.startswith(("http://", "https://", KUBERNETES))


def check(ray_address: str) -> None:
    """What can be known before any work: an address answers (a job address as Ray does), a local Ray's socket paths fit; else BadInput."""
    address = resolve(ray_address)
    if address.startswith(KUBERNETES):
        return  # asked when the cluster is made: the recipe's settings belong to it
    if is_job_address(address):
        _check_job_server(address)
    elif not address:
        _check_socket_path()
    elif address != "auto":
        _check_answers(address)


@contextmanager
def connect(
    ray_address: str,
    *,
    workers: int,
    cpus_per_worker: int | None = None,
    gpus_per_worker: int = 0,
    dashboard: bool = False,
    room: str = "ray",
    least: int | None = None,
) -> Generator[Cluster, None, None]:
    """Connect to Ray for the length of the block; a Ray started here ends with it.

    No address: a local Ray with max(workers, cores) CPUs, never one that happens to run on this machine. Ray Train wants
    ``dashboard``, or it repeats warnings. Raises BadInput when the address does not answer or has less than
    ``workers`` x ``cpus_per_worker`` CPUs (None: its CPUs divided by the workers) or ``gpus_per_worker`` GPUs; with ``least``, a number
    of workers to begin with, when it has less than those need.
    """
    quieten()
    import ray

    _same_code()
    address = resolve(ray_address)
    if is_job_address(address):
        raise BadInput(
            f"ray address {address} to work on directly",
            "HOST:PORT of a head, or none",
            "run the room's command, which submits a job there",
        )
    check(address)
    shared = ray.is_initialized()
    if not shared:
        with _own_term():
            _start(address, workers=workers, dashboard=dashboard)
    try:
        yield _resources(
            address,
            shared=shared,
            workers=workers,
            least=least or workers,
            cpus_per_worker=cpus_per_worker,
            gpus_per_worker=gpus_per_worker,
            room=room,
        )
    finally:
        if not shared:
            ray.shutdown()


def map_tasks(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    retries: int = 2,
    on_done: Callable[[Item, Result], None] | None = None,
    cpus_per_task: float = 1,
    gpus_per_task: float = 0,
    at_once: int | None = None,
    name: Callable[[Item], str] = repr,
) -> list[Result]:
    """``[function(item) for item in items]`` as Ray tasks inside ``connect``; results in the order of ``items``.

    A task that raises, or whose process dies, is tried ``retries`` times more; BadInput is never retried and passes through.
    On a final error the other tasks are cancelled and Failed names the item. ``on_done`` is called here as each one ends,
    in order of completion. At most ``at_once`` tasks (None: as many as the CPUs and GPUs take) are in flight. A task sees the GPUs
    that it asked for and no others; its process goes on to the next task, with the models that it holds.
    """
    import ray
    from ray.exceptions import RayError

    limit = at_once or _at_once(cpus_per_task, gpus_per_task)
    # max_calls=0: Ray would end a process with a GPU after one task, and each task would load its models again
    remote = ray.remote(num_cpus=cpus_per_task, num_gpus=gpus_per_task, max_retries=0, max_calls=0)(function)
    results: dict[int, Result] = {}
    running: dict[Any, tuple[int, int]] = {}  # reference -> (index, attempt)
    waiting = [(index, 0) for index in reversed(range(len(items)))]
    try:
        while waiting or running:
            while waiting and len(running) < limit:
                index, attempt = waiting.pop()
                running[remote.remote(items[index])] = (index, attempt)
            done, _ = ray.wait(list(running), num_returns=1)
            index, attempt = running.pop(done[0])
            try:
                results[index] = ray.get(done[0])
            except RayError as error:
                cause = getattr(error, "cause", None) or error
                if isinstance(cause, BadInput):
                    raise cause from None
                if attempt == retries:
                    text = f"{type(cause).__name__}: {last_line(cause)}"
                    raise Failed(f"{name(items[index])} failed {attempt + 1} times, at last with {text}") from error
                waiting.append((index, attempt + 1))
                continue
            if on_done is not None:
                on_done(items[index], results[index])
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
    return [results[index] for index in range(len(items))]


def code_hash() -> str:
    """Hash of every Python file of the project's packages, and of the lock where it is there: equal here and on the cluster when both
    run the same code with the same libraries."""
    lock = PROJECT / LOCK
    files = [path for package in ("components", "sr3_core") for path in sorted((PROJECT / package).rglob("*.py"))]
    digest = hashlib.sha256()
    for path in [*files, *([lock] if lock.is_file() else [])]:
        digest.update(path.relative_to(PROJECT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def quieten() -> None:
    """Settings that Ray reads when it is imported or started; what the user has set stands."""
    for key, value in _QUIET.items():
        os.environ.setdefault(key, value)


def _same_code() -> None:
    expected = os.environ.get(CODE_HASH_VARIABLE)
    if expected and expected != code_hash():
        raise BadInput(
            f"code {code_hash()} on the cluster", f"the submitter's, {expected}", "run the cluster from the image of the same build"
        )


@contextmanager
def _own_term() -> Generator[None, None, None]:
    """For the block; a handler of TERM that was there stays: Ray puts its own in its place, which ends the process with another code."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if callable(before) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def _start(address: str, *, workers: int, dashboard: bool) -> None:
    import ray

    if not address:
        # the raylet's processes inherit this environment: a room works in <root>/work, not beside the packages
        parts = [str(PROJECT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(parts))
        ray.init(
            address="local",
            num_cpus=max(workers, cores()),
            object_store_memory=_OBJECT_STORE_BYTES,
            include_dashboard=dashboard,
            logging_level=logging.ERROR,
        )
        return
    try:
        ray.init(address=address, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise BadInput(
            f"no Ray at {address} ({last_line(error)})",
            "HOST:PORT of a running head",
            "check the address, or leave it out for a local Ray",
        ) from None


def _resources(
    address: str, *, shared: bool, workers: int, least: int, cpus_per_worker: int | None, gpus_per_worker: int, room: str
) -> Cluster:
    import ray

    there = ray.cluster_resources()
    cpus, gpus = int(there.get("CPU", 0)), int(there.get("GPU", 0))
    each = cpus_per_worker or max(1, (cpus if address or shared else cores()) // workers)
    label = "Ray that this process is connected to" if shared else f"Ray at {address}" if address else "Ray of its own"
    count = f"{workers} workers" if least == workers else f"{least} to {workers} workers"
    have, need = f"{cpus} CPU, {gpus} GPU", f"{count} x {each} CPU" + (f" x {gpus_per_worker} GPU" if gpus_per_worker else "")
    if least * each > cpus or least * gpus_per_worker > gpus:
        raise BadInput(
            f"{need} on {label}", f"what is there: {have}", "lower scaling.workers or scaling.cpus_per_worker, or use a larger cluster"
        )
    say(room, f"{label}: {have}; {need}")
    return Cluster(address=address, cpus=cpus, gpus=gpus, cpus_per_worker=each)


def _at_once(cpus: float, gpus: float) -> int:
    """How many tasks of ``cpus`` and ``gpus`` each run side by side on this Ray; at least 1."""
    import ray

    there = ray.cluster_resources()
    by_cpus = there.get("CPU", 1) // max(cpus, 1e-3)
    return max(1, int(min(by_cpus, there.get("GPU", 0) // gpus) if gpus else by_cpus))


def _check_socket_path() -> None:
    linux = sys.platform.startswith("linux")
    variable = next((name for name in ("RAY_TMPDIR", *(["TMPDIR"] if linux else [])) if os.environ.get(name)), "")  # Ray's own order
    folder = os.environ[variable] if variable else "/tmp" if linux else tempfile.gettempdir()  # noqa: S108
    length = len(os.fsencode(folder + _SOCKET_BELOW_TEMP))
    if length > MAX_SOCKET_PATH_BYTES:
        allowed = f"at most {MAX_SOCKET_PATH_BYTES - len(_SOCKET_BELOW_TEMP)} bytes, so that a socket path fits"
        raise BadInput(
            f"{variable or 'temporary folder'} of {len(os.fsencode(folder))} bytes ({folder})",
            allowed,
            "set RAY_TMPDIR to a shorter folder",
        )


def _check_answers(address: str) -> None:
    parts = urlsplit(f"//{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not port:
        raise BadInput(f"ray address {address!r}", ADDRESSES, "mend the address")
    try:
        socket.create_connection((host, port), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise BadInput(
            f"no Ray at {address} ({error})", "HOST:PORT of a running head", "check the address, or leave it out for a local Ray"
        ) from None


def _check_job_server(address: str) -> None:
    allowed = "the dashboard address of a Ray head"
    try:
        with urllib.request.urlopen(f"{address.rstrip('/')}/api/version", timeout=_CONNECT_SECONDS) as answer:  # noqa: S310 - http(s) by is_job_address
            json.loads(answer.read())["ray_version"]
    except (OSError, http.client.HTTPException) as error:
        raise BadInput(f"ray job address {address} does not answer ({error})", allowed, "check it and that the head runs") from None
    except (ValueError, KeyError, TypeError):
        raise BadInput(f"what answers at {address} is not Ray", allowed, "check the port") from None


def last_line(error: BaseException) -> str:
    """What an error says in the end, without the traceback that Ray puts before it."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
