"""A run that is broken off and resumed ends bit-equal to one that is not: weights, average, optimizer, logged losses."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sr3_core.training import pace
from sr3_core.training.loop import train
from sr3_core.training.state import CheckpointStore
from sr3_core.training.worker import LocalWorker
from tests.plugins.tiny_objective import Memory, stage

REPOSITORY = Path(__file__).resolve().parents[3]
Lines = list[tuple[int, dict[str, float]]]


def newest(folder: Path) -> dict[str, str]:
    """sha256 by name of the files in the newest checkpoint below ``folder``."""
    manifest = json.loads((sorted(path for path in folder.iterdir())[-1] / "state.json").read_text())
    return {name: entry["sha256"] for name, entry in manifest["files"].items()}


def without_clock(lines: Lines) -> dict[int, dict[str, float]]:
    """Metrics by images seen; a replayed line must equal its first occurrence."""
    found: dict[int, dict[str, float]] = {}
    for at, line in lines:
        if not line:  # where a run starts
            continue
        kept = {name: value for name, value in line.items() if name not in pace.NAMES}
        assert found.setdefault(at, kept) == kept
    return found


@pytest.fixture(scope="module")
def gloo(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """By world size, a folder with the runs of tests/plugins/gloo_train.py."""
    folders: dict[int, Path] = {}
    for world_size in (1, 2, 3):
        folder = folders[world_size] = tmp_path_factory.mktemp(f"world{world_size}")
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.plugins.gloo_train", str(folder)]
        workers = [
            subprocess.Popen(
                [*command, str(rank), str(world_size)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            for rank in range(world_size)
        ]
        outputs = [worker.communicate(timeout=120)[0] for worker in workers]
        assert [worker.returncode for worker in workers] == [0] * world_size, "\n".join(outputs)
    return folders


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_broken_and_resumed_run_is_bit_equal(gloo: dict[int, Path], world_size: int) -> None:
    folder = gloo[world_size]
    assert newest(folder / "whole") == newest(folder / "broken")
    whole, broken = (without_clock(json.loads((folder / f"{name}.json").read_text())) for name in ("whole", "broken"))
    assert whole == broken and set(whole) == {36, 72, 96}


def test_the_stream_is_the_same_for_any_number_of_workers(gloo: dict[int, Path]) -> None:
    logs = {size: without_clock(json.loads((folder / "whole.json").read_text())) for size, folder in gloo.items()}
    for size in (2, 3):
        for at in (36, 72, 96):
            for name in ("loss", "bias_of_thirds"):
                assert logs[size][at][name] == pytest.approx(logs[1][at][name], rel=1e-5, abs=1e-7)
            assert logs[size][at]["learning_rate"] == logs[1][at]["learning_rate"]


@pytest.fixture
def whole(tmp_path: Path) -> Iterator[dict[str, str]]:
    run(tmp_path / "whole")
    yield newest(tmp_path / "whole")


def run(folder: Path, *, steps: int | None = None) -> Lines:
    """Train in this process; with ``steps`` stop in order after as many."""
    lines: Lines = []
    done = iter(range(10**6))
    worker = LocalWorker(stop=lambda: steps is not None and next(done) + 1 == steps)
    store = CheckpointStore(str(folder), keep=2, say=lambda text: None)
    train(
        stage(),
        None,
        worker=worker,
        checkpoints=store,
        batches=Memory(),
        say=lambda text: None,
        log=lambda at, line: lines.append((at, line)),
    )
    return lines


@pytest.mark.parametrize("steps", [1, 2, 5, 7])
def test_a_stop_in_order_at_any_step_changes_nothing(tmp_path: Path, whole: dict[str, str], steps: int) -> None:
    run(tmp_path / "stopped", steps=steps)
    assert [int(path.name) for path in (tmp_path / "stopped").iterdir()][-1] >= 12
    run(tmp_path / "stopped")
    assert newest(tmp_path / "stopped") == whole


def test_a_finished_run_is_only_loaded(tmp_path: Path, whole: dict[str, str]) -> None:
    assert run(tmp_path / "whole") == [(96, {})]
    assert newest(tmp_path / "whole") == whole
