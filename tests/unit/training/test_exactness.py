"""A run that is killed and resumed ends bit-equal to one that is not: weights, average, optimizer, logged losses; with another number of
workers it goes on the same up to rounding."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

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


def logged(folder: Path, run: str) -> dict[int, dict[str, float]]:
    return without_clock([json.loads(line) for line in (folder / f"{run}.jsonl").read_text().splitlines()])


def killed(workers: int, **training: Any) -> tuple[NDArray[np.int64], list[dict[str, Any]]]:
    """At which step of each life something dies, and the lives: 24 images are always behind the second."""
    steps = np.random.default_rng(workers).integers(1, [4, 4, 3])
    dying: list[dict[str, Any]] = [
        {"kill": {str(workers - 1): int(steps[0])}},
        {"kill": {"0": int(steps[1]) + 2}},
        {"kill_all": int(steps[2])},
        {},
    ]
    shared = {"workers": workers, "training": training}
    return steps, [{"run": "whole", **shared}, *({"run": "killed", **shared, **how} for how in dying)]


def elsewhere(reduce_dtype: str, sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """One worker goes on alone; others go on from its checkpoint at 60 images."""
    training = {"images": 540, "log_images": 12, "checkpoint_images": 60, "reduce_dtype": reduce_dtype}
    others = [{"run": f"with{workers}", "workers": workers, "from": ["alone", 60], "training": training} for workers in sizes]
    return [{"run": "alone", "workers": 1, "training": training}, *others]


DDP = {
    "static": {"ddp": {"static_graph": True}},
    "copied": {"ddp": {"bucket_views": False, "bucket_megabytes": 0.05}},
}
SIZES = {"float32": (2, 3), "float64": (3,)}
PLANS = {
    **{f"killed{workers}": killed(workers)[1] for workers in (1, 2, 3)},
    **{name: killed(2, **training)[1] for name, training in DDP.items()},
    "noticed": [
        {"run": "whole", "workers": 2},
        {"run": "noticed", "workers": 2, "term": {"1": 3}},
        {"run": "noticed", "workers": 2},
    ],
    **{reduce_dtype: elsewhere(reduce_dtype, sizes) for reduce_dtype, sizes in SIZES.items()},
}


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[list[int]]]]:
    """Every plan's folder and how its groups ended (exit codes by group and rank), all lived by tests/plugins/gloo_train.py at once:
    a process that imports torch costs more than a life."""
    folder = tmp_path_factory.mktemp("lives")
    for plan in PLANS:
        (folder / plan).mkdir()
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.plugins.gloo_train", str(folder), json.dumps(PLANS)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=800, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return {plan: (folder / plan, json.loads((folder / plan / "ended.json").read_text())) for plan in PLANS}


Lived = dict[str, tuple[Path, list[list[int]]]]


@pytest.mark.parametrize(("plan", "workers"), [("killed1", 1), ("killed2", 2), ("killed3", 3), *((name, 2) for name in DDP)])
def test_a_run_killed_at_random_steps_ends_bit_equal(lived: Lived, plan: str, workers: int) -> None:
    """Killed by -9: the last worker, the first (which writes), then all at once; each time the rest breaks off and the run starts anew."""
    folder, (whole, last, first, every, end) = lived[plan]
    assert whole == end == [0] * workers
    assert last[-1] == first[0] == -9 and every == [-9] * workers and 0 not in last + first, killed(workers)[0]
    assert newest(folder / "whole") == newest(folder / "killed")
    assert logged(folder, "whole") == logged(folder, "killed") and set(logged(folder, "whole")) == {36, 72, 96}
    said = (folder / "killed.said").read_text()
    assert said.count("starting from scratch") + said.count("resuming at") == 4 and "resuming at" in said


def test_how_gradients_are_exchanged_moves_no_bit(lived: Lived) -> None:
    """With buckets of one size; smaller ones may be added up in another order."""
    plain, static = (newest(lived[plan][0] / "whole") for plan in ("killed2", "static"))
    assert plain == static


def test_a_notice_to_one_worker_stops_all_after_that_step_with_a_checkpoint(lived: Lived) -> None:
    """TERM within the third step: a checkpoint at 36 images, between those at 24 and 48, and nothing of the run is done twice."""
    folder, ended = lived["noticed"]
    assert ended == [[0, 0]] * 3
    assert [int(path.name) for path in sorted((folder / "noticed").iterdir())][:2] == [24, 36]
    assert "resuming at 36 of 96 images" in (folder / "noticed.said").read_text()
    assert newest(folder / "whole") == newest(folder / "noticed") and logged(folder, "whole") == logged(folder, "noticed")


@pytest.mark.parametrize(("reduce_dtype", "at_40"), [("float32", 1e-4), ("float64", 1e-6)])
def test_a_run_goes_on_the_same_with_another_number_of_workers(lived: Lived, reduce_dtype: str, at_40: float) -> None:
    """The loss of every step after a resume at 60 images with several workers, relative to that of the one worker that went on alone."""
    (folder, ended), sizes = lived[reduce_dtype], SIZES[reduce_dtype]
    assert ended == [[0], *([0] * workers for workers in sizes)]
    alone = logged(folder, "alone")
    for workers in sizes:
        went_on = logged(folder, f"with{workers}")
        assert set(went_on) == set(range(72, 541, 12))
        for step, (at, line) in enumerate(sorted(went_on.items()), start=1):
            assert line["loss"] == pytest.approx(alone[at]["loss"], rel=1e-6 if step <= 5 else at_40), (workers, step)
            assert line["learning_rate"] == alone[at]["learning_rate"]
            assert line["bias_of_thirds"] == pytest.approx(alone[at]["bias_of_thirds"], rel=1e-3, abs=1e-4)
        assert "world_size 1 -> " in (folder / f"with{workers}.said").read_text()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was not broken off."""
    folder = tmp_path_factory.mktemp("run") / "whole"
    run(folder)
    return folder


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
def test_a_stop_in_order_at_any_step_changes_nothing(tmp_path: Path, whole: Path, steps: int) -> None:
    run(tmp_path / "stopped", steps=steps)
    assert [int(path.name) for path in (tmp_path / "stopped").iterdir()][-1] >= 12
    run(tmp_path / "stopped")
    assert newest(tmp_path / "stopped") == newest(whole)


def test_a_finished_run_is_only_loaded(whole: Path) -> None:
    before = newest(whole)
    assert run(whole) == [(96, {})]
    assert newest(whole) == before
