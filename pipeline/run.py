"""`sr3 run`: the compiled DAG on this machine by KFP's own engine - one process or container per task - from checks to the closing table.

Order: checks, run.log, the engine, the table. A signal ends every process below this one, by pid; the same command goes on.
"""

import contextlib
import ctypes
import json
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from components import entry
from pipeline import console, dag, next_steps, preflight, resources
from sr3_core import config, processes, storage, tracking
from sr3_core.errors import EXIT_BAD_INPUT, EXIT_DONE, EXIT_FAILED, BadInput, Failed

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SAMPLE_SECONDS = 2.0
_PATIENCE_SECONDS = 25.0  # for a room to end its step, save it and close its lease, its MLflow run and its Ray; a pod is given 30 s
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Place:
    """Where a run works: the runtime parameters that stand in no recipe, all absolute."""

    root: str
    mlflow_uri: str
    ray_address: str
    run_key: str
    default_root: str  # the root that a command without --root would use
    folder: Path  # the one that the command was given in


class Rooms(Protocol):
    """What the rooms run in: ``_Processes``, or ``pipeline.containers.Containers``, whose docstrings hold for both."""

    images: str
    notes: list[str]

    def started(self, *, root: str, mlflow_uri: str, kfp_root: Path, log: Path) -> contextlib.AbstractContextManager[tuple[Any, str]]: ...
    def stop(self, *, at_once: bool) -> None: ...
    def memory_bytes(self) -> int: ...
    def accept(self, kfp_root: Path, *, since: float) -> None: ...


def run(
    recipe_name: str,
    overrides: list[str],
    *,
    root: str,
    mlflow_uri: str,
    ray_address: str,
    run_key: str,
    verbose: bool,
    runner: str = "subprocess",
    images: str = "",
) -> int:
    """Run the recipe here, its rooms as processes or, with ``runner`` "docker", as containers of ``images``; the exit code.

    Raises BadInput before anything was started.
    """
    start = time.time()
    recipe = preflight.absolute_sources(config.load(recipe_name, overrides))
    place = resolve(recipe, root=root, mlflow_uri=mlflow_uri, ray_address=ray_address, run_key=run_key)
    rooms = _rooms(recipe, runner, images)
    preflight.check(recipe, root=place.root, mlflow_uri=place.mlflow_uri, ray_address=place.ray_address, run_key=place.run_key)
    entry.check_code_lookup()
    entry.enter_work_folder(place.root)
    tasks = ["prepare", *(f"train-{stage.name}" for stage in recipe.stages), "evaluate", "export", "finish"]
    for task in tasks:
        _forget_error(place, task)

    log = _local(place, "runs", place.run_key, "run.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    screen = console.Console(log, terminal=sys.stdout, verbose=verbose)
    screen.say(f"log: {log}")
    screen.say(f"run {place.run_key}: {' -> '.join(tasks[:-1])} under {place.root}")
    for note in rooms.notes:
        screen.say(note)
    failure = ""
    with _watching(place, screen, rooms) as peak, contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen):  # type: ignore[type-var]
        try:
            _run_engine(recipe, place, rooms, log=log.with_name("mlflow.log"))
            rooms.accept(_local(place, ".kfp"), since=start)
        except Failed as error:
            failure = str(error)
        except Exception as error:  # the engine's RuntimeError says which task failed; the task's own file says why
            failure = f"{type(error).__name__}: {error}"
    code = _close(place, tasks, screen, failure)
    _closing_lines(place, screen, recipe, start=start, peak_bytes=peak.bytes, done=code == EXIT_DONE)
    screen.close()
    return code


def resolve(recipe: config.Recipe, *, root: str, mlflow_uri: str, ray_address: str, run_key: str) -> Place:
    """Absolute runtime parameters with their defaults: ./sr3-runs, sqlite under root, no Ray, the recipe's run key."""
    config.refuse_secrets({"root": root, "mlflow_uri": mlflow_uri, "ray_address": ray_address})
    default = storage.absolute(tracking.DEFAULT_ROOT)
    root = storage.absolute(root) if root else default
    uri = tracking.absolute(mlflow_uri) if mlflow_uri else tracking.default_uri(root)
    key = run_key or dag.default_run_key(recipe)
    return Place(root=root, mlflow_uri=uri, ray_address=ray_address, run_key=key, default_root=default, folder=Path.cwd())


def _rooms(recipe: config.Recipe, runner: str, images: str) -> Rooms:
    if runner == "docker":
        from pipeline import containers

        return containers.Containers(recipe, images)
    if images:
        raise BadInput(f"--images {images} with --runner {runner}", "--images with --runner docker", "leave it out, or add --runner docker")
    return _Processes()


def _run_engine(recipe: config.Recipe, place: Place, rooms: Rooms, *, log: Path) -> None:
    """The DAG through kfp.local; raises RuntimeError when a task fails. Its own files go to <root>/.kfp."""
    from kfp import local

    workspace = Path.cwd() / "kfp-workspace"  # the engine deletes it after every run
    pipeline = dag.build(recipe, on_server=False, images=rooms.images)
    kfp_root = _local(place, ".kfp")
    with (
        rooms.started(root=place.root, mlflow_uri=place.mlflow_uri, kfp_root=kfp_root, log=log) as (runner, mlflow_uri),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", module=r"kfp\.local\..*")  # images and display names mean nothing here: known
        local.init(runner, pipeline_root=str(kfp_root), workspace_root=str(workspace))
        pipeline(root=place.root, mlflow_uri=mlflow_uri, run_key=place.run_key, ray_address=place.ray_address)


class _Processes:
    """The rooms as processes below this one: what ends, measures and judges them is what does so for every process below it."""

    images = resources.IMAGES
    notes: list[str] = []  # noqa: RUF012 - never filled

    @contextlib.contextmanager
    def started(self, *, root: str, mlflow_uri: str, kfp_root: Path, log: Path) -> Iterator[tuple[Any, str]]:
        from kfp import local

        with _plain_interpreter():
            yield local.SubprocessRunner(use_venv=False), mlflow_uri

    def stop(self, *, at_once: bool) -> None:
        end_below(patience_seconds=0.0 if at_once else _PATIENCE_SECONDS)

    def memory_bytes(self) -> int:
        return 0

    def accept(self, kfp_root: Path, *, since: float) -> None:
        """A process that ended has an exit code, which the engine has looked at."""


@contextlib.contextmanager
def _plain_interpreter() -> Iterator[None]:
    """The engine puts sys.executable unquoted into a shell line: let that be the word python3, found on PATH, so a path may hold spaces."""
    before, path = sys.executable, os.environ.get("PATH", "")
    folder = Path(before).parent
    os.environ[entry.PARENT] = processes.identity(os.getpid())
    os.environ["PYTHONUNBUFFERED"] = "1"
    os.environ["PATH"] = os.pathsep.join([str(folder), path])
    if (folder / "python3").exists():
        sys.executable = "python3"
    try:
        yield
    finally:
        sys.executable = before
        os.environ["PATH"] = path


class _Peak:
    """Highest memory of this process, everything below it and ``beside``, sampled."""

    def __init__(self, beside: Callable[[], int]) -> None:
        self.bytes = 0
        self._beside = beside
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="sr3-memory", daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        me = os.getpid()
        while True:
            self.bytes = max(self.bytes, processes.memory_bytes([me, *processes.descendants(me)]) + self._beside())
            if self._stop.wait(_SAMPLE_SECONDS):
                return

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


@contextlib.contextmanager
def _watching(place: Place, screen: console.Console, rooms: Rooms) -> Iterator[_Peak]:
    """Signals end everything below this process; orphans below it come to it; its memory is sampled."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    stopping = False

    def stop(number: int, _frame: object) -> None:
        nonlocal stopping
        if stopping:  # a second signal: no more patience
            processes.end(processes.descendants(os.getpid()), patience_seconds=0.0)
            return
        stopping = True
        with contextlib.suppress(RuntimeError):  # the signal came in the middle of a write
            screen.say(f"{signal.Signals(number).name}: ending the rooms; the same command goes on from here")
        rooms.stop(at_once=False)
        end_below(patience_seconds=_PATIENCE_SECONDS)
        _mark_killed(place, screen)
        screen.close()
        raise SystemExit(128 + number)

    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # nohup stays in force
            signal.signal(number, stop)
    peak = _Peak(rooms.memory_bytes)
    try:
        yield peak
    finally:
        peak.stop()
        end_below(patience_seconds=_PATIENCE_SECONDS)  # a room that died hard may have left a Ray behind
        for number, handler in before.items():
            signal.signal(number, handler)


def end_below(*, patience_seconds: float) -> None:
    """End all descendants of this process: the rooms first (a shell stands between), so that they end their own Ray in order."""
    me = os.getpid()
    rooms = [pid for pid in processes.descendants(me) if processes.depth_below(pid, me) <= 2]
    processes.end(rooms, patience_seconds=patience_seconds)
    while below := processes.descendants(me):
        processes.end(below, patience_seconds=1.0)


def _mark_killed(place: Place, screen: console.Console) -> None:
    from components.export import finish

    try:
        with contextlib.redirect_stdout(screen):  # type: ignore[type-var]
            finish.close(place.mlflow_uri, place.run_key, "KILLED")
    except (BadInput, Failed) as error:
        screen.say(str(error))


def _close(place: Place, tasks: list[str], screen: console.Console, failure: str) -> int:
    """The exit code by the rooms' error files; their lines on stderr, with the end of the log unless all of it was bad input."""
    if not failure:
        return EXIT_DONE
    found = [storage.read_json(uri) for task in tasks if storage.exists(uri := entry.error_uri(place.root, place.run_key, task))]
    code = found[0]["exit"] if found else EXIT_FAILED
    if code != EXIT_BAD_INPUT:
        for line in screen.tail():
            screen.say(f"  | {line}")
    for line in [recorded["line"] for recorded in found] or [failure]:
        console.error(line)
    return code


def _closing_lines(place: Place, screen: console.Console, recipe: config.Recipe, *, start: float, peak_bytes: int, done: bool) -> None:
    seconds = time.time() - start
    report = _report_uri(place, recipe, start)
    if report:
        from sr3_core.artifacts.report import EvalReport

        found = EvalReport.open(report)
        screen.say("")
        for line in found.table().splitlines():
            screen.say(line)
        screen.say("")
        screen.say(f"report:  {found.page_uri}")
    times = ", ".join(f"{task} {taken} s" for task, taken in screen.seconds.items() if task != "finish")
    screen.say(f"time:    {seconds:.0f} s ({times})" if times else f"time:    {seconds:.0f} s")
    screen.say(f"memory:  {peak_bytes / 1024**3:.1f} GiB at most, the whole process tree, sampled every {_SAMPLE_SECONDS:.0f} s")
    if not done:
        return
    folder, path = place.folder, os.environ.get("PATH", "")
    screen.say(f"mlflow:  {next_steps.ui_command(place.mlflow_uri, folder=folder, path=path)}")
    steps = next_steps.commands(
        recipe, root=place.root, mlflow_uri=place.mlflow_uri, default_root=place.default_root, folder=folder, path=path
    )
    for index, (use, command) in enumerate(steps):
        screen.say(("next:    " if index == 0 else "         ") + f"{use}: {command}")


def _report_uri(place: Place, recipe: config.Recipe, since: float) -> str:
    """The report's folder, read from what the evaluate task of this run handed to the engine; "" when it did not get there."""
    outputs = _local(place, ".kfp").glob(f"{dag.pipeline_name(recipe)}-*/evaluate/executor_output.json")
    ours = [path for path in outputs if path.stat().st_mtime >= since]
    return json.loads(ours[0].read_text())["parameterValues"]["report_uri"] if ours else ""


def _forget_error(place: Place, task: str) -> None:
    uri = entry.error_uri(place.root, place.run_key, task)
    if storage.exists(uri):
        storage.remove(uri)


def _local(place: Place, *parts: str) -> Path:
    """A folder of root, or its like in the working folder when root is remote: a log grows line by line, the engine wants paths."""
    return (storage.local_path(place.root) if storage.is_local(place.root) else Path.cwd()).joinpath(*parts)
