"""One run in this process, whole or broken off after so many steps, and what its newest checkpoint holds."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sr3_core.training.loop import train
from sr3_core.training.pace import NAMES
from sr3_core.training.state import CheckpointStore, TrainState
from sr3_core.training.worker import LocalWorker
from tests.plugins.tiny_objective import Memory, stage

Lines = list[tuple[int, dict[str, float]]]


def run(folder: Path, *, steps: int | None = None, **training: Any) -> tuple[TrainState, Lines, list[str]]:
    """The tiny stage with ``training`` changed; with ``steps`` it stops in order after as many. State, log without clock, what was said."""
    lines: Lines = []
    said: list[str] = []
    done = iter(range(10**6))
    state = train(
        stage(**training),
        None,
        worker=LocalWorker(stop=lambda: steps is not None and next(done) + 1 == steps),
        checkpoints=CheckpointStore(str(folder), keep=2, say=said.append),
        batches=Memory(),
        say=said.append,
        log=lambda at, line: lines.append((at, {name: value for name, value in line.items() if name not in NAMES})),
    )
    return state, lines, said


def newest(folder: Path) -> dict[str, Any]:
    """The newest checkpoint's manifest but for what depends on the machine: sha256 of its files, and what is carried beside them."""
    manifest = json.loads((max(folder.iterdir()) / "state.json").read_text())
    return {name: manifest[name] for name in ("files", "images_seen", "window", "logged", "carried")}


def assert_broken_off_is_whole(folder: Path, breaks: Sequence[int], **training: Any) -> tuple[TrainState, Lines, list[str]]:
    """Broken off after each of ``breaks`` steps and resumed: all files, counters and log lines are those of one run."""
    whole = run(folder / "whole", **training)
    logged: dict[int, dict[str, float]] = {}
    for steps in (*breaks, None):
        _, lines, _ = run(folder / "broken", steps=steps, **training)
        for at, line in lines:
            if line:
                assert logged.setdefault(at, line) == line
    assert newest(folder / "broken") == newest(folder / "whole")
    assert logged == {at: line for at, line in whole[1] if line}
    return whole
