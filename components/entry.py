"""What every room's entry does around its work: the error protocol, the working folder, the code look-up check, the orphan watch.

``with entry.guard("train-x4", root=root, run_key=run_key): main.run(...)`` in component.py and in __main__.py alike.
"""

import contextlib
import fcntl
import importlib.util
import json
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from sr3_core import processes, storage
from sr3_core.artifacts.lease import IN_USE, InUse
from sr3_core.errors import EXIT_BAD_INPUT, EXIT_FAILED, BadInput, Failed
from sr3_core.progress import say

PARENT = "SR3_PARENT"  # set by `sr3 run`: identity of the process whose end ends the rooms (a shell stands between them)
ALIVE = "SR3_ALIVE"  # in a container, which sees no process outside: a file that who started it holds a lock on
_PACKAGES = ("pipeline", "components", "sr3_core")
_WATCH_SECONDS = 0.5
_LAST_WORD_SECONDS = 8.0  # for what is to be ended elsewhere, once the one who started the room is gone
_last_words: list[Callable[[], None]] = []
BAD_INPUT = "bad input: "  # the head of what a BadInput says
RECEIPT_BYTES = 8 * 1024 * 1024  # an artifact is carried whole to each consumer and to the browser


@contextlib.contextmanager
def guard(task: str, *, root: str, run_key: str, job_id: str = "") -> Iterator[None]:
    """Run a room's body: paths are absolute from here on, the working folder is ``work_folder(root)``.

    BadInput ends the process with exit 2, everything else with 1; the line is printed and stands in
    ``<root>/runs/<run_key>/<task>.error.json`` for whoever started the room. ``job_id`` names the pipeline run:
    a retry within the same run ends at once where the first try found bad input, unless that was a folder in use. TERM ends
    the room as an error does, so that leases and MLflow runs are closed.
    """
    start = time.monotonic()
    try:
        check_code_lookup()
        _refuse_retry(task, root, run_key, job_id)
        enter_work_folder(root)
        watch_parent()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _terminated)
        yield
        say(task, f"finished in {time.monotonic() - start:.0f} s")
    except SystemExit:
        raise
    except BaseException as error:  # every failure of a room is recorded, an interrupt too; nothing is swallowed: it ends in an exit
        code, line = _reason(error)
        if _innermost(error) is None:
            traceback.print_exc()
        say(task, f"failed: {line}")
        again = {"again": True} if isinstance(_innermost(error), InUse) else {}
        _record(task, root, run_key, {"exit": code, "line": line, "job_id": job_id, **again})
        sys.stderr.flush()
        raise SystemExit(code) from None


def error_uri(root: str, run_key: str, task: str) -> str:
    """Where a failed room leaves ``{"exit": 1 | 2, "line": ..., "job_id": ...}``, with ``"again": true`` when waiting may mend it."""
    return storage.join(root, "runs", run_key, f"{task}.error.json")


def enter_work_folder(root: str) -> None:
    """Work in ``work_folder(root)``; relative places on PYTHONPATH stay what they are for the processes that are started from there."""
    if given := os.environ.get("PYTHONPATH"):
        os.environ["PYTHONPATH"] = os.pathsep.join(os.path.abspath(place) for place in given.split(os.pathsep) if place)
    os.chdir(work_folder(root))


def work_folder(root: str) -> Path:
    """The local working folder: ``<root>/work``, or one in the temporary folder when root is remote. Made if missing."""
    folder = Path(tempfile.gettempdir()) / f"sr3-work-{os.getuid()}"
    if storage.is_local(root):
        folder = storage.local_path(root) / "work"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"root {root} is not writable ({error.strerror})", "a folder one may write to", "choose another --root") from None
    return folder


def check_code_lookup() -> None:
    """The project's packages must come from one folder: a stray components/ or pipeline.py on the path would run instead of ours."""
    home = Path(storage.__file__).resolve().parent.parent
    for name in _PACKAGES:
        spec = importlib.util.find_spec(name)
        places = [Path(place).resolve() for place in (spec.submodule_search_locations or [])] if spec else []
        if places != [home / name]:
            found = places[0] if places else (spec.origin if spec else "nowhere")
            raise BadInput(
                f"{name} is found at {found}", f"{home / name}, beside the rest of sr3", "leave that folder or take it off PYTHONPATH"
            )


def watch_parent() -> None:
    """End this process and its descendants when the one that started it is gone: a room never outlives its run."""
    named = os.environ.get(PARENT, "")
    parent = named or (processes.identity(os.getppid()) if os.getppid() > 1 else "")
    if parent:
        threading.Thread(target=_watch, args=(parent,), name="sr3-orphan-watch", daemon=True).start()
    if lock := os.environ.get(ALIVE, ""):
        threading.Thread(target=_watch_lock, args=(Path(lock),), name="sr3-lock-watch", daemon=True).start()


@contextlib.contextmanager
def when_orphaned(act: Callable[[], None]) -> Iterator[None]:
    """Within the block ``act`` is called, for some seconds at most, before this process ends because the one that started it is gone: what
    it has going on another machine ends with it."""
    _last_words.append(act)
    try:
        yield
    finally:
        _last_words.remove(act)


def told(line: str, *, see: str) -> BadInput:
    """The BadInput that a room elsewhere told of in ``line``, its text without the head: InUse where waiting may mend it. ``see`` is where
    to look when the line says little."""
    got, _, rest = line.partition("; allowed: ")
    allowed, _, do = rest.partition("; do: ")
    kind = InUse if IN_USE in got else BadInput
    return kind(got or "input that the job refused", allowed or "see the job's log", do or see)


def _terminated(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def _watch(parent: str) -> None:
    while processes.is_alive(parent):
        time.sleep(_WATCH_SECONDS)
    _end_all()


def _watch_lock(path: Path) -> None:
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # the kernel gives it when its holder ends, however it ends
    _end_all()


def _end_all() -> None:
    words = [threading.Thread(target=act, daemon=True) for act in _last_words]
    for word in words:
        word.start()
    for word in words:
        word.join(_LAST_WORD_SECONDS)
    below = processes.descendants(os.getpid())
    processes.end(below, patience_seconds=0.5)
    os._exit(EXIT_FAILED)


def _reason(error: BaseException) -> tuple[int, str]:
    """Exit code and line of the innermost BadInput or Failed among the error and what it wraps (Ray wraps what its tasks raise)."""
    found = _innermost(error)
    if found is not None:
        return (EXIT_BAD_INPUT if isinstance(found, BadInput) else EXIT_FAILED), str(found)
    return EXIT_FAILED, " ".join(f"{type(error).__name__}: {error}".split())[:500]


def _innermost(error: BaseException) -> BaseException | None:
    inner = [getattr(error, "cause", None), error.__cause__, *getattr(error, "worker_failures", {}).values()]
    for wrapped in inner:
        if isinstance(wrapped, BaseException) and wrapped is not error and (found := _innermost(wrapped)) is not None:
            return found
    return error if isinstance(error, (BadInput, Failed)) else None


def _refuse_retry(task: str, root: str, run_key: str, job_id: str) -> None:
    uri = error_uri(root, run_key, task)
    if not job_id or not storage.exists(uri):
        return
    recorded = storage.read_json(uri)
    if recorded.get("job_id") == job_id and recorded.get("exit") == EXIT_BAD_INPUT and not recorded.get("again"):
        say(task, f"not tried again: {recorded['line']}")
        raise SystemExit(EXIT_BAD_INPUT)


def _record(task: str, root: str, run_key: str, error: dict[str, object]) -> None:
    try:
        storage.write_bytes(error_uri(root, run_key, task), json.dumps(error, indent=1).encode())
    except (BadInput, OSError) as reason:
        say(task, f"could not write {error_uri(root, run_key, task)} ({reason})")


def receipt(path: str, *, uri: str, sha256: str, name: str) -> dict[str, str]:
    """Copy the small file ``name`` of the folder ``uri`` to ``path`` (a KFP artifact's) and return the artifact's metadata.

    A KFP artifact is a receipt, not the data: what is larger than RECEIPT_BYTES is left where it stands and only named.
    """
    source = storage.join(uri, name)
    small = storage.size(source) <= RECEIPT_BYTES
    content = storage.read_bytes(source) if small else json.dumps({"uri": source, "manifest_sha256": sha256}).encode()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(content)
    return {"uri": uri, "manifest_sha256": sha256}
