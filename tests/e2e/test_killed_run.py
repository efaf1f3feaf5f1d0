"""A run that is stopped - by TERM, by kill -9 of `sr3 run`, by kill -9 of a training worker - and started again by the same command
ends finished, with bundles equal to those of an undisturbed run, and leaves no process behind."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sr3_core import processes
from tests.conftest import BIN, RECIPES, Ended

pytestmark = pytest.mark.timeout(2400)


@pytest.fixture(scope="module")
def command(photos: Path) -> tuple[str, ...]:
    return ("run", str(RECIPES / "pair.yaml"), "--set", f"data.options.uri={photos}")


@pytest.fixture(scope="module")
def undisturbed(command: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory, sr3: Callable[..., Ended]) -> Path:
    root = tmp_path_factory.mktemp("undisturbed")
    ended = sr3(*command, "--root", str(root), timeout=900)
    assert ended.code == 0, ended.stdout + ended.stderr
    return root


class Started:
    """A started ``sr3 run``; ``below`` remembers every process ever seen below it."""

    def __init__(self, command: tuple[str, ...], root: Path) -> None:
        self.root = root
        self.output = (root.parent / f"{root.name}.out").open("a+")
        heard = ["env", "--default-signal=INT"]  # ignored where the tests run in the background
        self.process = subprocess.Popen(
            [*heard, str(BIN / "sr3"), *command, "--root", str(root)], stdout=self.output, stderr=subprocess.STDOUT
        )
        self.below: dict[int, str] = {}

    def look(self) -> None:
        self.below |= {pid: processes.identity(pid) for pid in processes.descendants(self.process.pid)}

    def until(self, happened: Callable[[], bool], *, seconds: float = 300) -> None:
        deadline = time.monotonic() + seconds
        while not happened():
            assert self.process.poll() is None, f"ended with {self.process.returncode}: {self.said()}"
            assert time.monotonic() < deadline, self.said()
            self.look()
            time.sleep(0.05)
        self.look()

    def said(self) -> str:
        self.output.seek(0)
        return self.output.read()[-5000:]

    def alive(self) -> list[int]:
        return [pid for pid, who in self.below.items() if processes.is_alive(who)]

    def all_gone_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self.alive() and time.monotonic() < deadline:
            time.sleep(0.1)
        return not self.alive()

    def log(self) -> str:
        """run.log: everything that every start of this run said."""
        return next(self.root.glob("runs/*/run.log")).read_text()

    def training(self) -> str:
        """The stage that is being trained: the one with a finished checkpoint and no bundle."""
        begun = (s for s in ("x16", "x32") if list(self.root.glob(f"train/{s}/*/checkpoints/*/state.json")))
        return next((s for s in begun if not list(self.root.glob(f"train/{s}/*/bundle/bundle.json"))), "")


@pytest.fixture
def start(command: tuple[str, ...]) -> Iterator[Callable[[Path], Started]]:
    started: list[Started] = []

    def begin(root: Path) -> Started:
        started.append(Started(command, root))
        return started[-1]

    yield begin
    for run in started:
        run.look()
        processes.end([run.process.pid, *run.alive()], patience_seconds=5)
        run.process.wait()
        run.output.close()


def bundles(root: Path) -> dict[str, dict[str, str]]:
    """sha256 of the weights and of the whole lineage of data, per stage."""
    found = {path.parts[-4]: json.loads(path.read_text()) for path in root.glob("train/*/*/bundle/bundle.json")}
    return {
        stage: {
            "weights": bundle["files"]["model.safetensors"],
            "shards": bundle["lineage"]["shards_sha256"],
            "images": str(bundle["lineage"]["images_seen"]),
        }
        for stage, bundle in found.items()
    }


def finish(run: Started, stage: str, undisturbed: Path) -> None:
    """The run ends, having gone on with ``stage`` in the middle of its training, as if nothing had happened."""
    assert run.process.wait(timeout=900) == 0, run.said()
    assert run.all_gone_within(20), run.alive()
    assert set(bundles(run.root)) == {"x16", "x32"}
    assert bundles(run.root) == bundles(undisturbed)
    assert not list(run.root.glob("runs/*/*.error.json"))
    resumed = re.findall(rf"train-{stage} resuming at (\d+) of (\d+) images", run.log())
    assert any(0 < int(seen) < int(images) for seen, images in resumed), f"nothing was killed in training: {resumed}\n{run.said()}"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_stopped_run_is_finished_by_the_same_command(
    number: signal.Signals, code: int, start: Callable[[Path], Started], undisturbed: Path, tmp_path: Path
) -> None:
    first = start(tmp_path / "root")
    first.until(lambda: first.training() != "")
    stage = first.training()
    first.process.send_signal(number)
    assert first.process.wait(timeout=60) == code, first.said()
    assert first.all_gone_within(30), first.alive()
    assert stage not in bundles(first.root), "the stage had ended before the signal came: the test saw nothing"

    second = start(tmp_path / "root")
    finish(second, stage, undisturbed)
    assert f"train-{stage} finished in" in second.said()


def test_a_killed_training_worker_costs_nothing_but_time(start: Callable[[Path], Started], undisturbed: Path, tmp_path: Path) -> None:
    run = start(tmp_path / "root")
    run.until(lambda: run.training() != "" and bool(workers(run)))
    stage, victim = run.training(), workers(run)[0]
    os.kill(victim, signal.SIGKILL)
    finish(run, stage, undisturbed)


def workers(run: Started) -> list[int]:
    """Training workers among the descendants, by the title Ray gives them."""
    found: list[int] = []
    for pid in processes.descendants(run.process.pid):
        try:
            title = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if title.startswith("ray::") and "TrainWorker" in title:
            found.append(pid)
    return found


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_other_signals_end_a_run_in_order(number: signal.Signals, code: int, start: Callable[[Path], Started], tmp_path: Path) -> None:
    run = start(tmp_path / "root")
    run.until(lambda: "prepare Ray" in run.said())
    run.process.send_signal(number)
    assert run.process.wait(timeout=60) == code, run.said()
    assert run.all_gone_within(20), run.alive()
    assert f"{number.name}: ending the rooms" in run.said()
