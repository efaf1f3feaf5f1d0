"""The rooms as containers: what their images are, and the whole pipeline through KFP's DockerRunner on a real engine.

Needs an engine that answers and the images of this very code (`make images`); without them it fails in one line. E2E=no-containers
leaves it out, and says what was not tested.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest

from components import cluster
from pipeline import containers
from sr3_core import config, processes
from sr3_core.artifacts.bundle import ModelBundle
from sr3_core.artifacts.report import EvalReport
from sr3_core.artifacts.shardset import ShardSet
from sr3_core.errors import BadInput
from tests.conftest import BIN, RECIPES, REPOSITORY, Ended, answers

pytestmark = pytest.mark.timeout(1200)

TINY = str(RECIPES / "tiny.yaml")
# As a careful host starts one: nothing of the root file system can be written, no capability, no network.
STRICT = {"read_only": True, "cap_drop": ["ALL"], "security_opt": ["no-new-privileges"], "network_mode": "none", "tmpfs": {"/tmp": "exec"}}


@pytest.fixture(scope="module")
def images() -> str:
    """The names of this code's images, {room} in them."""
    if "no-containers" in os.environ.get("E2E", "").split(","):
        pytest.skip("not tested: the images, sr3 run --runner docker, failing and stopped containers")
    try:
        return containers.Containers(config.load(TINY), "").images
    except BadInput as error:
        pytest.fail(f"{error}; or leave containers out by E2E=no-containers", pytrace=False)


@pytest.fixture(scope="module")
def engine(images: str) -> Iterator[docker.DockerClient]:
    client = docker.from_env()
    yield client
    client.close()


def image(images: str, room: str) -> str:
    return images.replace("{room}", room)


def in_container(engine: docker.DockerClient, name: str, *command: str, **options: object) -> str:
    """What a container of the image says, started as STRICT says; it must end with 0."""
    said = engine.containers.run(name, list(command), remove=True, stderr=True, **{**STRICT, **options})
    return said.decode()


def ours(engine: docker.DockerClient) -> list[docker.models.containers.Container]:
    return engine.containers.list(all=True, filters={"label": containers.LABEL})


@pytest.mark.parametrize("room", containers.ROOMS)
def test_an_image_says_what_it_is_and_starts_as_nobody(room: str, images: str, engine: docker.DockerClient) -> None:
    found = engine.images.get(image(images, room))
    settings, labels = found.attrs["Config"], found.labels
    assert not settings.get("Entrypoint") and settings["User"] == "10001:10001"
    assert labels["sr3.room"] == room and len(labels["org.opencontainers.image.revision"]) == 40
    assert labels["org.opencontainers.image.created"].endswith("Z") and labels["org.opencontainers.image.version"] == "0.1.0"
    said = in_container(
        engine,
        found.id,
        "python3",
        "-c",
        "import os, getpass, importlib.util as util\n"
        "from components import cluster\n"
        f"import components.{room}.__main__\n"
        "print(os.getuid(), getpass.getuser(), cluster.code_hash(), bool(util.find_spec('torch')), os.environ['SR3_GIT_COMMIT'])\n"
        "for place in ('/written', '/opt/sr3/written', '/home/written'):\n"
        "    try: open(place, 'w')\n"
        "    except OSError: print('refused')\n",
    )
    revision = labels["org.opencontainers.image.revision"]
    assert said.split() == ["10001", "sr3", cluster.code_hash(), str(room != "prepare"), revision, "refused", "refused", "refused"]
    assert labels["sr3.code-hash"] == cluster.code_hash(), "the image is of other code"


def test_a_prepared_set_comes_out_of_the_smallest_image_alone(
    images: str, engine: docker.DockerClient, photos: Path, tmp_path: Path
) -> None:
    """As nobody, on a root file system that cannot be written, without a network; sqlite takes the run."""
    root = tmp_path / "root"
    root.mkdir()
    for folder in (*tmp_path.parents[:3], tmp_path, root, photos.parent):  # pytest's are for their owner alone
        if folder.is_relative_to("/tmp") and folder != Path("/tmp"):
            folder.chmod(0o755)
    photos.chmod(0o755)
    os.chown(root, 10001, 10001)
    mounts = {str(root): {"bind": "/root-of-run", "mode": "rw"}, str(photos): {"bind": "/photos", "mode": "ro"}}
    section = config.load(TINY, ["data.options.uri=/photos"]).data.canonical_json()
    command = ["python3", "-m", "components.prepare", "--section", section, "--root", "/root-of-run"]
    said = in_container(engine, image(images, "prepare"), *command, volumes=mounts, shm_size="1g")
    assert "prepare finished in" in said, said
    shards = ShardSet.open(str(next((root / "shards").iterdir())))
    shards.verify()
    assert shards.count("train") == 9 and (root / "mlflow.db").is_file()
    assert {path.stat().st_uid for path in root.rglob("*")} == {10001}


def test_two_images_that_differ_are_told_apart(images: str, engine: docker.DockerClient) -> None:
    compare = [sys.executable, str(REPOSITORY / "infra" / "images" / "compare.py"), os.environ.get("DOCKER") or "docker"]
    done = subprocess.run([*compare, image(images, "base"), image(images, "prepare")], capture_output=True, text=True)
    assert done.returncode == 1 and "site-packages/components" in done.stdout and " files differ between " in done.stdout, done.stdout


@pytest.fixture(scope="module")
def command(images: str, photos: Path) -> tuple[str, ...]:
    return ("run", TINY, "--set", f"data.options.uri={photos}", "--runner", "docker", "--images", images)


@pytest.fixture(scope="module")
def root(command: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory, sr3: Callable[..., Ended]) -> Path:
    """The root of a whole run in containers."""
    place = tmp_path_factory.mktemp("containers") / "runs here"
    ended = sr3(*command, "--root", str(place), timeout=900)
    assert ended.code == 0, ended.stdout + ended.stderr
    assert "export models:/tiny/1 loaded in a fresh process" in ended.stdout
    return place


def test_the_whole_pipeline_in_containers(
    root: Path, engine: docker.DockerClient, tmp_path: Path, photos: Path, sr3: Callable[..., Ended]
) -> None:
    shards = ShardSet.open(str(next((root / "shards").iterdir())))
    shards.verify()
    bundle = ModelBundle.load(str(next(root.glob("train/x2/*/bundle"))))
    assert bundle.manifest["lineage"]["shards_sha256"] == shards.manifest_sha256
    commit = engine.images.get(_log_image(root)).labels["org.opencontainers.image.revision"]
    assert bundle.manifest["lineage"]["git_commit"] == commit, "the bundle says which commit's image made it"
    assert EvalReport.open(str(next(root.glob("eval/*/report.json")).parent)).passed
    assert not ours(engine), "a container outlived its run"
    assert not list(root.glob("runs/*/*.error.json")) and not list(root.glob("runs/*/alive-*"))
    assert not answers(_mlflow_uri(root) + "/health"), "the MLflow server outlived its run"

    larger = tmp_path / "larger.png"  # what was registered is found without a server
    ended = sr3("upscale", str(photos / "photo 00.png"), "-o", str(larger), "--model", "models:/tiny@champion", "--root", str(root))
    assert ended.code == 0 and larger.is_file(), ended.stderr


def test_a_gate_that_does_not_hold_fails_the_run_with_its_line(
    root: Path, command: tuple[str, ...], engine: docker.DockerClient, sr3: Callable[..., Ended]
) -> None:
    ended = sr3(*command, "--root", str(root), "--set", "evaluation.gate=[{metric: colour_bias, limit: -1}]")
    assert ended.code == 1 and "gate failed: " in ended.stderr and "nothing registered" in ended.stderr, ended.stdout + ended.stderr
    assert "train-x2 up to date" in ended.stdout, "the finished manifest is the cache, in containers too"
    assert not ours(engine)


class Started:
    """A started run in containers; its output goes to a file."""

    def __init__(self, command: tuple[str, ...], root: Path) -> None:
        self.root, self.output = root, root.with_suffix(".out")
        with self.output.open("w") as stream:
            self.process = subprocess.Popen([str(BIN / "sr3"), *command, "--root", str(root)], stdout=stream, stderr=subprocess.STDOUT)

    def until_a_room_works(self, engine: docker.DockerClient) -> docker.models.containers.Container:
        deadline = time.monotonic() + 180
        while "prepare Ray of its own" not in self.said():
            assert self.process.poll() is None and time.monotonic() < deadline, self.said()
            time.sleep(0.1)
        (container,) = ours(engine)
        return container

    def said(self) -> str:
        return self.output.read_text()


@pytest.fixture
def started(command: tuple[str, ...], tmp_path: Path, engine: docker.DockerClient) -> Iterator[Started]:
    run = Started(command, tmp_path / "root")
    yield run
    processes.end([run.process.pid, *processes.descendants(run.process.pid)])
    run.process.wait()
    for container in ours(engine):
        container.remove(force=True)


def test_a_container_that_is_killed_fails_the_run(started: Started, engine: docker.DockerClient) -> None:
    started.until_a_room_works(engine).kill()
    assert started.process.wait(120) == 1, started.said()
    (line,) = [line for line in started.said().splitlines() if line.startswith("sr3: ")]
    assert "FAILURE" in line and "'prepare'" in line, started.said()
    assert not ours(engine)


def test_a_stopped_run_ends_its_rooms_in_order(started: Started, engine: docker.DockerClient) -> None:
    started.until_a_room_works(engine)
    started.process.send_signal(signal.SIGTERM)
    assert started.process.wait(120) == 143, started.said()
    assert "SIGTERM: ending the rooms" in started.said() and "marked KILLED" in started.said(), started.said()
    assert not ours(engine)


def test_a_killed_run_leaves_no_container(started: Started, engine: docker.DockerClient) -> None:
    started.until_a_room_works(engine)
    server = _mlflow_uri(started.root) + "/health"
    assert answers(server)
    started.process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60
    while (ours(engine) or answers(server)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not ours(engine) and not answers(server)


def test_an_image_that_is_not_there_is_refused_in_one_line(
    command: tuple[str, ...], engine: docker.DockerClient, tmp_path: Path, sr3: Callable[..., Ended]
) -> None:
    ended = sr3(*command[:-1], "sr3-{room}:no-such-commit", "--root", str(tmp_path / "root"))
    assert ended.code == 2 and "no image sr3-prepare:no-such-commit" in ended.stderr and "make images" in ended.stderr, ended.stderr
    assert ended.stderr.count("\n") == 1 and not list(tmp_path.glob("root/runs/*/run.log"))


def _log_image(root: Path) -> str:
    return next(root.glob("runs/*/run.log")).read_text().split("Found image '")[1].split("'")[0]


def _mlflow_uri(root: Path) -> str:
    log = next(root.glob("runs/*/mlflow.log")).read_text()
    return "http://127.0.0.1:" + log.split("http://127.0.0.1:")[1].split()[0].strip("/")
