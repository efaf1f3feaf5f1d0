"""The docker runner's rules that need no engine: what is mounted, what counts as done, who ends whom, refusals in one line.

Containers themselves run in tests/e2e/test_containers.py.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from components import entry
from pipeline import containers, dag
from sr3_core import config, storage
from sr3_core.errors import BadInput, Failed
from tests.conftest import RECIPES, Ended

TINY = str(RECIPES / "tiny.yaml")


def test_inputs_are_the_paths_that_a_recipe_names(tmp_path: Path) -> None:
    folder, file = tmp_path / "with space", tmp_path / "weights.bin"
    folder.mkdir()
    file.touch()
    values = {
        "uri": str(folder),
        "others": [{"shards": file.as_uri()}, f"{tmp_path}/missing"],
        "steps": 3,
        "name": "etc",
        "far": "gs://b/x",
    }
    assert containers.paths_in(values) == {folder, file}
    with pytest.raises(BadInput, match="names /"):
        containers.paths_in({"uri": "/"})


def finished(root: Path, recipe: config.Recipe) -> Path:
    """What the containers of a whole run leave for the engine: each task's result, and the manifests that the results name."""
    run = root / f"{dag.pipeline_name(recipe)}-2026"
    named = {"prepare": ("shards", "manifest.json"), "train": ("bundle", "bundle.json"), "evaluate": ("report", "report.json")}
    for task, (what, name) in named.items():
        manifest = root / what / name
        manifest.parent.mkdir(parents=True)
        manifest.write_text(task)
        leave(run, task, {f"{what}_uri": str(manifest.parent), f"{what}_sha256": storage.sha256(str(manifest))})
    leave(run, "export", {"model_uri": "models:/tiny/1", "version": "1"})
    return run


def leave(run: Path, task: str, values: dict[str, str]) -> None:
    (run / task).mkdir(parents=True)
    (run / task / "executor_output.json").write_text(json.dumps({"parameterValues": values}))


def test_a_task_is_done_when_its_manifest_is_there(tmp_path: Path) -> None:
    recipe = config.load(TINY)
    run = finished(tmp_path, recipe)
    since = time.time() - 60
    containers.accept(recipe, tmp_path, since=since)
    with pytest.raises(Failed, match="task prepare ended without a result"):
        containers.accept(recipe, tmp_path, since=time.time() + 60)  # these are an earlier run's

    (tmp_path / "bundle" / "bundle.json").write_text("another")
    with pytest.raises(Failed, match=r"task train says that it made .*/bundle.json, which is missing or another one"):
        containers.accept(recipe, tmp_path, since=since)
    (run / "train" / "executor_output.json").unlink()
    with pytest.raises(Failed, match="task train ended without a result"):
        containers.accept(recipe, tmp_path, since=since)


def test_every_stage_of_a_cascade_has_to_be_done(tmp_path: Path) -> None:
    recipe = config.load(str(RECIPES / "pair.yaml"))
    finished(tmp_path, recipe)
    with pytest.raises(Failed, match="task train-2 ended without a result"):
        containers.accept(recipe, tmp_path, since=time.time() - 60)


def test_a_room_ends_with_whoever_held_its_lock(tmp_path: Path) -> None:
    """kill -9 of `sr3 run` runs no code of it; the room, in a container, sees no process outside."""
    lock = tmp_path / "alive"
    hold = (
        "import sys, time; from pathlib import Path; from pipeline import containers\n"
        "with containers.held(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    watch = "import time; from components import entry; entry.watch_parent(); print('up', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", hold, str(lock)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    environment = {**os.environ, entry.ALIVE: str(lock)}
    room = subprocess.Popen([sys.executable, "-c", watch], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert room.stdout is not None and room.stdout.readline() == "up\n"
        with pytest.raises(subprocess.TimeoutExpired):
            room.wait(1.5)
        holder.send_signal(signal.SIGKILL)
        assert room.wait(10) == 1
    finally:
        for process in (holder, room):
            process.kill()
            process.communicate()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--runner", "docker"), "no container engine answers at unix:///nowhere/docker.sock"),
        (("--images", "sr3-{room}:1"), "--images sr3-{room}:1 with --runner subprocess"),
    ],
)
def test_a_runner_that_cannot_be_is_refused_in_one_line(
    arguments: tuple[str, ...], line: str, photos: Path, tmp_path: Path, sr3: Callable[..., Ended]
) -> None:
    ended = sr3(
        *("run", TINY, "--set", f"data.options.uri={photos}", "--root", str(tmp_path / "root")),
        *arguments,
        environment={"DOCKER_HOST": "unix:///nowhere/docker.sock"},
    )
    assert ended.code == 2 and line in ended.stderr and "do: " in ended.stderr and ended.stderr.count("\n") == 1, ended.stderr
    assert not list(tmp_path.glob("root/*/*")), "work was begun"
