"""The rooms as containers of this machine: KFP's DockerRunner, and what it lacks.

It mounts its own folder alone, lets a lost container pass for a finished one, and knows neither signals nor MLflow. So here: root and
local inputs at the paths they have outside, an MLflow server for as long as the run lasts, an orderly end, and a look at what was made.

The rooms use this machine's network, so that every address means in them what it means outside and MLflow listens on 127.0.0.1 alone.
Otherwise they can do less than a process: no capability, no way to gain one, a root file system that cannot be written.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from components import cluster, entry
from pipeline import dag, resources
from sr3_core import config, processes, storage
from sr3_core.errors import BadInput, Failed
from sr3_core.tracking.uri import SQLITE

ROOMS = ("prepare", "train", "evaluate", "export")
LABEL = "sr3.run"  # on a container: the identity of the process that started it
CODE_LABEL, VARIANT_LABEL, ROOM_LABEL = "sr3.code-hash", "sr3.variant", "sr3.room"  # on an image
TEMP = "/tmp"  # noqa: S108 - inside a container: the images' HOME and TMPDIR
SHARED_MEMORY = "1g"  # Ray's object store and the loader's batches
MEMORY_SHARE = 0.9  # of this machine's, for one container: a room that grows without end is ended, not the machine
_PASSED_ON = ("AWS_", "GOOGLE_", "GCSFS_", "MLFLOW_", "OMP_", "RAY_", "SR3_", "STORAGE_EMULATOR_HOST", "DO_NOT_TRACK")
_KEPT_BACK = (entry.PARENT, "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "RAY_TMPDIR", "RAY_ADDRESS")  # of this machine's processes
_CREDENTIALS = "GOOGLE_APPLICATION_CREDENTIALS"
_START_SECONDS = 180.0
_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)  # PR_SET_PDEATHSIG; what replaces this program inherits it
os.execv(sys.argv[1], sys.argv[1:])
"""
_MANIFESTS = (("shards", "manifest.json"), ("bundle", "bundle.json"), ("report", "report.json"))
_PATIENCE_SECONDS = 20.0  # for a room to close its leases, its MLflow run and its Ray
# To the room's own process: the shell that KFP starts it by is the container's first process, which signals do not reach.
_TERMINATE = """
for process in /proc/[0-9]*; do
  if tr '\\0' ' ' <"$process/cmdline" 2>/dev/null | grep -q '^python3 -m kfp.dsl.executor_main '; then kill -TERM "${process#/proc/}"; fi
done
"""


class Containers:
    """One run's engine, images and containers. Making it checks the engine and the images and starts nothing.

    ``images``: names with ``{room}`` in them and a fixed tag or digest; "" takes those that `make images` built of this very code.
    Raises BadInput when no engine answers or an image is not there.
    """

    def __init__(self, recipe: config.Recipe, images: str) -> None:
        import docker

        self._recipe = recipe
        self._identity = processes.identity(os.getpid())
        try:
            self._client = docker.from_env()
            self._client.ping()
        except docker.errors.DockerException as error:
            place = os.environ.get("DOCKER_HOST", "the default socket")
            raise BadInput(
                f"no container engine answers at {place} ({_line(error)})",
                "a Docker engine that runs",
                "install docker.io and start dockerd, set DOCKER_HOST, or leave out --runner docker",
            ) from None
        self.gpu = recipe.scaling.accelerator == "gpu"
        self.images = images or self._built()
        resources.check_images(self.images)
        self.notes = [note for room in ROOMS for note in self._check(room)]

    @contextlib.contextmanager
    def started(self, *, root: str, mlflow_uri: str, kfp_root: Path, log: Path) -> Iterator[tuple[Any, str]]:
        """(KFP's runner, the MLflow URI that the rooms are to use) for the length of the block; no container outlives it.

        A sqlite ``mlflow_uri`` is served over HTTP meanwhile, ``log`` takes what the server says; an address is used as it is.
        """
        from kfp import local

        served = mlflow_uri.startswith(SQLITE)
        database = Path(mlflow_uri.removeprefix(SQLITE))
        writable = [storage.local_path(root)] if storage.is_local(root) else []
        if served:
            writable.append(database.with_name("mlartifacts"))
        for folder in (kfp_root, *writable):
            folder.mkdir(parents=True, exist_ok=True)  # what is missing would be made by the engine, as root's
        alive = log.with_name(f"alive-{os.getpid()}")
        try:
            with held(alive), _mlflow(database, log) if served else contextlib.nullcontext(mlflow_uri) as uri:
                yield local.DockerRunner(**self._arguments(writable, alive)), uri
        finally:
            self.stop(at_once=True)

    def stop(self, *, at_once: bool) -> None:
        """End this run's containers: TERM to each room and patience with it, unless ``at_once``, then KILL."""
        import docker

        gone = (docker.errors.NotFound, docker.errors.APIError)  # it ended by itself meanwhile
        with contextlib.closing(docker.from_env()) as client:  # the runner's own may be in the middle of a call
            running = client.containers.list(filters={"label": f"{LABEL}={self._identity}"})
            for container in [] if at_once else running:
                with contextlib.suppress(*gone):
                    container.exec_run(["sh", "-c", _TERMINATE])
            deadline = time.monotonic() + (0 if at_once else _PATIENCE_SECONDS)
            while time.monotonic() < deadline and client.containers.list(filters={"label": f"{LABEL}={self._identity}"}):
                time.sleep(0.2)
            for container in client.containers.list(all=True, filters={"label": f"{LABEL}={self._identity}"}):
                with contextlib.suppress(*gone):
                    container.remove(force=True, v=True)

    def memory_bytes(self) -> int:
        """What this run's containers hold now, without the pages of files that the kernel would give back."""
        import docker

        total = 0
        with contextlib.closing(docker.from_env()) as client, contextlib.suppress(docker.errors.DockerException):
            for container in client.containers.list(filters={"label": f"{LABEL}={self._identity}"}):
                memory = container.stats(stream=False, one_shot=True).get("memory_stats", {})
                details = memory.get("stats", {})
                total += memory.get("usage", 0) - details.get("total_inactive_file", details.get("inactive_file", 0))
        return total

    def accept(self, kfp_root: Path, *, since: float) -> None:
        accept(self._recipe, kfp_root, since=since)

    def _built(self) -> str:
        """The images of this code and variant among those of the engine, newest first."""
        code, variant = cluster.code_hash(), "gpu" if self.gpu else "cpu"
        labels = [f"{CODE_LABEL}={code}", f"{VARIANT_LABEL}={variant}"]
        found = {
            room: [tag for image in self._client.images.list(filters={"label": [*labels, f"{ROOM_LABEL}={room}"]}) for tag in image.tags]
            for room in ROOMS
        }
        for tag in found["prepare"]:
            if "prepare" in tag:
                pattern = "{room}".join(tag.rsplit("prepare", 1))
                if all(pattern.replace("{room}", room) in found[room] for room in ROOMS):
                    return pattern
        raise BadInput(
            f"no images of this code ({code}, {variant}) on this engine",
            "all four rooms' images of one commit",
            f"make images{' VARIANT=gpu' if self.gpu else ''}, or name others by --images",
        )

    def _check(self, room: str) -> list[str]:
        import docker

        name = resources.image(room, self.images)
        try:
            try:
                image = self._client.images.get(name)
            except docker.errors.ImageNotFound:
                host, slash, _ = name.partition("/")
                if not slash or not ("." in host or ":" in host):  # of this engine alone: a hub has none of that name
                    raise
                image = self._client.images.pull(name)
        except docker.errors.APIError as error:
            raise BadInput(
                f"no image {name} ({_line(error)})", "an image on this engine or in a registry", "make images, or check --images"
            ) from None
        if image.attrs["Config"].get("Entrypoint"):
            raise BadInput(f"image {name} has an ENTRYPOINT", "an image without one", "build it by make images")
        code, here = image.labels.get(CODE_LABEL, "none"), cluster.code_hash()
        return [f"{name} is of other code than this ({code}, here {here})"] if code != here else []

    def _arguments(self, writable: list[Path], alive: Path) -> dict[str, Any]:
        """What `docker run` is given for every room."""
        from docker.types import DeviceRequest, Mount

        inputs = {path for path in paths_in(self._recipe.model_dump(mode="json")) if not any(path.is_relative_to(w) for w in writable)}
        environment = {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON) and name not in _KEPT_BACK}
        if _CREDENTIALS in environment:
            inputs.add(Path(environment[_CREDENTIALS]).absolute())
        mounts = [Mount(target=str(path), source=str(path), type="bind") for path in writable]
        mounts += [Mount(target=str(path), source=str(path), type="bind", read_only=True) for path in [*sorted(inputs), alive]]
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return {
            "entrypoint": "",
            "user": f"{os.getuid()}:{os.getgid()}",
            "group_add": [str(group) for group in os.getgroups()],
            "network_mode": "host",
            "read_only": True,
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges"],
            "mounts": [*mounts, Mount(target=TEMP, source=None, type="volume")],
            "environment": {
                **environment,
                "HOME": TEMP,
                "TMPDIR": TEMP,
                "PYTHONIOENCODING": "ascii:backslashreplace",  # the runner decodes each piece of output by itself, wherever it was cut
                entry.ALIVE: str(alive),
            },
            "labels": {LABEL: self._identity},
            "mem_limit": int(total * MEMORY_SHARE),
            "shm_size": SHARED_MEMORY,
            **({"device_requests": [DeviceRequest(count=-1, capabilities=[["gpu"]])]} if self.gpu else {}),
        }


def accept(recipe: config.Recipe, kfp_root: Path, *, since: float) -> None:
    """Raise Failed unless every task of the run that began at ``since`` (epoch seconds) left its result, and what that names is there.

    The engine removes a container as it ends, and takes one that it no longer finds for one that did well.
    """
    runs = [run for run in kfp_root.glob(f"{dag.pipeline_name(recipe)}-*") if run.stat().st_mtime >= since]
    trainings = ["train", *(f"train-{number}" for number in range(2, len(recipe.stages) + 1))]
    for task in ["prepare", *trainings, "evaluate", "export"]:
        results = [run / task / "executor_output.json" for run in runs]
        written = [path for path in results if path.is_file() and path.stat().st_mtime >= since]
        if not written:
            raise Failed(f"the container of task {task} ended without a result, though its engine calls it done; see run.log")
        _accept(task, json.loads(written[0].read_text(encoding="utf-8")).get("parameterValues", {}))


def paths_in(values: object) -> set[Path]:
    """Files and folders of this machine that a recipe's values name - sources, shards, bundles, weights - by absolute path or file URI."""
    if isinstance(values, dict):
        return {path for value in values.values() for path in paths_in(value)}
    if isinstance(values, list):
        return {path for value in values for path in paths_in(value)}
    if not isinstance(values, str) or not values.startswith(("/", "file://")):
        return set()
    path = Path(unquote(urlsplit(values).path) if values.startswith("file://") else values)
    if path == Path("/"):
        raise BadInput("the recipe names /", "a folder below it", "give the folder that holds the images")
    return {path} if path.exists() else set()


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """A lock on ``path`` for the length of the block, or of this process: rooms wait for it and end when they get it."""
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _mlflow(database: Path, log: Path) -> Iterator[str]:
    """An MLflow server of ``database`` on 127.0.0.1; it ends with the block, and with this process however that ends.

    Rooms write artifacts to the folder itself, beside the database as ever: what they register is found later without a server.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--no-serve-artifacts",
        "--backend-store-uri", f"{SQLITE}{database}", "--default-artifact-root", database.with_name("mlartifacts").as_uri(),
    ]  # fmt: skip
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with log.open("w") as said:
        server = subprocess.Popen(
            [sys.executable, "-c", _WITH_PARENT, *command], stdout=said, stderr=said, stdin=subprocess.DEVNULL, env=environment
        )
    try:
        _until(lambda: _answers(f"{uri}/health"), server, log)
        yield uri
    finally:
        processes.end([server.pid, *processes.descendants(server.pid)])
        server.wait()


def _until(ready: Callable[[], bool], server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not ready():
        if server.poll() is not None or time.monotonic() > deadline:
            last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            raise Failed(f"the MLflow server of this run did not start ({' '.join(last)}); see {log}")
        time.sleep(0.2)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 - our own server
            return answer.status == 200
    except OSError:
        return False


def _accept(task: str, result: dict[str, Any]) -> None:
    for what, name in _MANIFESTS:
        if uri := result.get(f"{what}_uri"):
            manifest = storage.join(uri, name)
            if not storage.exists(manifest) or storage.sha256(manifest) != result[f"{what}_sha256"]:
                raise Failed(f"task {task} says that it made {manifest}, which is missing or another one; see run.log")
            return
    if not result.get("model_uri"):
        raise Failed(f"the container of task {task} ended without a result, though its engine calls it done; see run.log")


def _line(error: Exception) -> str:
    return " ".join(str(getattr(error, "explanation", None) or error).split())[:200]
