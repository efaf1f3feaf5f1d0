"""``python -m components.prepare`` killed with kill -9 anywhere, or started twice at once: the ShardSet is that of one undisturbed run.

Three random points here, the other seventeen in ``make test-nightly``.
"""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from sr3_core.artifacts.lease import LEASE
from sr3_core.artifacts.shardset import MANIFEST, ShardSet
from sr3_core.data.shards import INSPECTED
from tests.conftest import REPOSITORY, RayHead, write_photos

pytestmark = pytest.mark.timeout(1200)

PHOTOS, SHARD_SAMPLES = 60, 2
Process = subprocess.Popen[str]


class Prepare:
    """Starts the command on one Ray and one MLflow store, always for the same photos."""

    def __init__(self, folder: Path, head: RayHead) -> None:
        self.folder, self.head = folder, head
        write_photos(folder / "photos", PHOTOS, size=(140, 150))
        (folder / "photos" / "bad.png").write_bytes(b"no image")
        source = {"source": "folder", "options": {"uri": str(folder / "photos")}, "split": {"val": 0.2, "test": 0.2}}
        self.section = json.dumps({**source, "levels": [16, 32, 64, 128], "shard_samples": SHARD_SAMPLES})

    def start(self, root: Path) -> Process:
        command = [
            sys.executable, "-m", "components.prepare", "--section", self.section, "--root", str(root), "--ray-address", self.head.address,
            "--mlflow-uri", f"sqlite:///{self.folder}/mlflow.db",
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def finish(self, root: Path) -> str:
        done = self.start(root)
        said, _ = done.communicate(timeout=300)
        assert done.returncode == 0, said
        return said


@pytest.fixture(scope="module")
def prepare(tmp_path_factory: pytest.TempPathFactory, ray_head: RayHead) -> Prepare:
    return Prepare(tmp_path_factory.mktemp("prepare"), ray_head)


@pytest.fixture(scope="module")
def undisturbed(prepare: Prepare) -> dict[str, str]:
    prepare.finish(prepare.folder / "undisturbed")
    found = tree(prepare.folder / "undisturbed")
    assert len(found) > 2 * PHOTOS / SHARD_SAMPLES
    return found


@pytest.fixture
def start(prepare: Prepare) -> Iterator[Callable[[Path], Process]]:
    started: list[Process] = []

    def begin(root: Path) -> Process:
        started.append(prepare.start(root))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def tree(root: Path) -> dict[str, str]:
    """Every file of the one ShardSet below ``root``, hidden ones too, by its sha256."""
    files = [path for path in (root / "shards").rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def every(root: Path) -> list[str]:
    """The name of every file of the ShardSet so far, hidden ones too; while others rename them."""
    return [name for _, _, files in os.walk(root / "shards") for name in files]


def more_shards_than(root: Path, count: int) -> bool:
    return sum(name.endswith(".tar") for name in every(root)) > count


def until(happened: Callable[[], bool], process: Process) -> bool:
    """False when the process ends first."""
    deadline = time.monotonic() + 120
    while not happened():
        if process.poll() is not None:
            return happened()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return True


def killed_at(point: int, prepare: Prepare, undisturbed: dict[str, str], start: Callable[[Path], Process], root: Path) -> None:
    """Kill the first run once it has left so many files (of those an undisturbed run leaves), and some milliseconds; run it again."""
    draw = random.Random(point)
    files, wait = draw.randrange(1, len(undisturbed)), draw.uniform(0, 0.03)
    first = start(root)
    assert until(lambda: len(every(root)) >= files, first), first.communicate()[0]
    time.sleep(wait)
    first.send_signal(signal.SIGKILL)
    assert first.wait(30) == -signal.SIGKILL, f"it had ended before the kill after {files} files"
    left = every(root)
    assert MANIFEST not in left or set(left) >= {Path(name).name for name in undisturbed}, "the manifest comes last"
    said = prepare.finish(root)
    found = tree(root)
    if MANIFEST in left:  # killed between the manifest and the end of its lease, which nobody takes in a finished folder: it may stay
        found = {name: hashed for name, hashed in found.items() if not name.endswith(f"/{LEASE}")}
    assert found == undisturbed
    ShardSet.open(str(next((root / "shards").iterdir()))).verify()
    if INSPECTED in left and MANIFEST not in left:
        assert f"goes on with what an earlier run saw of {PHOTOS + 1} inputs" in said


@pytest.mark.parametrize("point", range(3))
def test_killed_anywhere_and_run_again(
    point: int, prepare: Prepare, undisturbed: dict[str, str], start: Callable[[Path], Process], tmp_path: Path
) -> None:
    killed_at(point, prepare, undisturbed, start, tmp_path / "root")


@pytest.mark.nightly
@pytest.mark.parametrize("point", range(3, 20))
def test_killed_at_seventeen_more_points(
    point: int, prepare: Prepare, undisturbed: dict[str, str], start: Callable[[Path], Process], tmp_path: Path
) -> None:
    killed_at(point, prepare, undisturbed, start, tmp_path / "root")


def test_killed_again_and_again(prepare: Prepare, undisturbed: dict[str, str], start: Callable[[Path], Process], tmp_path: Path) -> None:
    """Every start gets a few shards further before it is killed; the last one ends."""
    root, shards = tmp_path / "root", len([name for name in undisturbed if name.endswith(".tar")])
    for count in (shards // 4, shards // 2):
        run = start(root)
        assert until(partial(more_shards_than, root, count), run), run.communicate()[0]
        run.kill()
        run.wait(30)
    assert "shards were done already" in prepare.finish(root)
    assert tree(root) == undisturbed


def test_two_at_once_do_not_interleave(
    prepare: Prepare, undisturbed: dict[str, str], start: Callable[[Path], Process], tmp_path: Path
) -> None:
    """The second waits for the first and finds its work done, or is refused in one line."""
    root = tmp_path / "root"
    first = start(root)
    assert until(lambda: LEASE in every(root), first), first.communicate()[0]
    others = [start(root), start(root)]
    said, _ = first.communicate(timeout=300)
    assert first.returncode == 0, said
    for other in others:
        answer, _ = other.communicate(timeout=300)
        assert "sr3| prepare write" not in answer, "two wrote"
        if other.returncode == 0:
            assert "prepare up to date" in answer
        else:
            assert other.returncode == 2 and "is in use by" in answer, answer
            assert "Traceback" not in answer
    assert tree(root) == undisturbed
