"""What tests share: one Ray head and one MLflow server for the session, both started when first asked for and ended by their pids."""

import os

os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0", MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="1")
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"  # no emulator has that call: each one would stall for a minute
for _name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
    os.environ.pop(_name, None)

import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from sr3_core import images, processes
from tests.stores import gcs_proxy, object_store, s3_proxy, store  # noqa: F401  - fixtures

REPOSITORY = Path(__file__).resolve().parent.parent
RECIPES = Path(__file__).resolve().parent / "recipes"
BIN = Path(sys.executable).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--schemas", type=Path, default=REPOSITORY.parent / "shared" / "schemas", help="Folder of the published schemas of KubeRay and KFP."
    )


@pytest.fixture(scope="session")
def schemas(pytestconfig: pytest.Config) -> Path:
    """The folder of published schemas, which are no part of this repository; without it the test says so."""
    folder: Path = pytestconfig.getoption("--schemas")
    if not folder.is_dir():
        pytest.skip(f"nothing is checked against the published schemas: no folder {folder} (--schemas DIR)")
    return folder


@dataclass(frozen=True)
class RayHead:
    """A Ray head on loopback: ``address`` for ray.init, ``jobs`` for job submission."""

    address: str
    jobs: str


@pytest.fixture(scope="session")
def ray_head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHead]:
    """A Ray head with 4 CPUs (a test may ask for more workers than this machine has cores) and its job server."""
    port, dashboard, agent = free_port(), free_port(), free_port()
    log = tmp_path_factory.mktemp("ray") / "head.log"
    command = [
        str(BIN / "ray"), "start", "--head", "--block", f"--port={port}", "--num-cpus=4", "--object-store-memory=300000000",
        "--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}",
        "--disable-usage-stats",
    ]  # fmt: skip
    first = {"PYTHONPATH": str(REPOSITORY), "PATH": str(BIN)}  # a submitted job runs the "python" of the head's PATH
    path = {name: os.pathsep.join(filter(None, [place, os.environ.get(name)])) for name, place in first.items()}
    environment = {**os.environ, **path}
    with _server(command, log, ready=lambda: answers(f"http://127.0.0.1:{dashboard}/api/version"), environment=environment):
        yield RayHead(address=f"127.0.0.1:{port}", jobs=f"http://127.0.0.1:{dashboard}")


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URI of an MLflow server that serves artifacts."""
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts"), "--serve-artifacts",
    ]  # fmt: skip
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with _server(command, folder / "server.log", ready=lambda: answers(f"http://127.0.0.1:{port}/health"), environment=environment):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 14 generated PNG images of 40 x 48 pixels: smooth colour fields with edges, all different."""
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder, 14)
    return folder


def write_photos(folder: Path, count: int, *, size: tuple[int, int] = (40, 48)) -> None:
    """``count`` generated photos under ``folder``: a gradient, a disc and a bar in random colours."""
    folder.mkdir(parents=True, exist_ok=True)
    height, width = size
    rows, columns = np.mgrid[0:height, 0:width]
    for index in range(count):
        random = np.random.default_rng(index)
        colours = random.uniform(0, 255, (3, 3))
        image = colours[0] * (rows / height)[..., None] + (255 - colours[0]) * (columns / width)[..., None] / 2
        centre, radius = random.uniform(0.3, 0.7, 2) * size, random.uniform(0.1, 0.3) * height
        image[(rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2] = colours[1]
        image[:, int(random.uniform(0, width - 4)) :][:, :3] = colours[2]
        (folder / f"photo {index:02d}.png").write_bytes(images.encode(image.clip(0, 255).astype(np.uint8), format="png", quality=95))


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


class _server:
    """A server process for a ``with`` block: waits until ``ready``, ends it and all below it by pid."""

    def __init__(self, command: list[str], log: Path, *, ready: Callable[[], bool], environment: dict[str, str]) -> None:
        self.command, self.log, self.ready, self.environment = command, log, ready, environment

    def __enter__(self) -> None:
        with self.log.open("w") as stream:
            self.process = subprocess.Popen(
                self.command,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        deadline = time.monotonic() + 120
        while not self.ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise RuntimeError(f"{self.command[:3]} did not start:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.25)

    def __exit__(self, *_: object) -> None:
        below = processes.descendants(self.process.pid)
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        processes.end(below, patience_seconds=5)


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


@pytest.fixture(scope="session")
def sr3() -> Callable[..., Ended]:
    """Run ``sr3 ARGS`` as a user does, in a process of its own; ``cwd`` and extra ``environment`` may be given."""

    def run(*arguments: str, cwd: Path | None = None, environment: dict[str, str] | None = None, timeout: float = 800) -> Ended:
        done = subprocess.run(
            [str(BIN / "sr3"), *arguments], cwd=cwd, env={**os.environ, **(environment or {})}, capture_output=True, text=True,
            timeout=timeout, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return Ended(done.returncode, done.stdout, done.stderr)

    return run
