"""What a run tells MLflow: one parent run per pipeline run, one child per room. The only importer of mlflow besides components/export.

mlflow is imported inside functions: it costs seconds and no room needs it before its first line. Every call names the tracking
URI; mlflow's global one is set inside ``current`` alone.
"""

import fcntl
import json
import os
import re
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from sr3_core.errors import BadInput, Failed
from sr3_core.journal import Journal
from sr3_core.progress import say
from sr3_core.tracking_uri import SQLITE, absolute, check_sqlite, default_uri, patience, quiet, ui_command

__all__ = [
    "MlflowTracker", "Tracker", "absolute", "check", "child", "client", "close_parent", "current", "default_uri", "download",
    "experiment_id", "find_parent", "open_parent", "patience", "quiet", "ui_command", "upload_left_behind",
]  # fmt: skip

EXPERIMENT = "sr3"
JOURNAL = "mlflow-journal-"
RUN_KEY, RECIPE, TASK, FINGERPRINT, PARENT = "sr3.run_key", "sr3.recipe", "sr3.task", "sr3.fingerprint", "mlflow.parentRunId"
RETRY_SECONDS = 60.0  # how long a tracker that lost its server writes to the journal alone before it tries again
ANSWER_SECONDS, UPLOAD_SECONDS = 5, 60  # a server that hangs may hold a training up for that long once in RETRY_SECONDS
_PARAM_CHARACTERS, _TAG_CHARACTERS, _KEY_CHARACTERS, _BATCH = 6000, 8000, 250, 100  # limits of mlflow.utils.validation
Status = Literal["FINISHED", "FAILED", "KILLED"]


class Tracker(Protocol):
    """Where a room tells what it did. No method raises because a server is gone."""

    run_id: str

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record settings; nested mappings become dotted names. The whole of them is also the artifact ``params.json``."""
        ...

    def log_metrics(self, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Record numbers at ``step`` (images seen)."""
        ...

    def log_artifact(self, path: Path, *, folder: str | None = None) -> None:
        """Keep a local file with the run, under ``folder`` of its artifacts."""
        ...

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set or replace tags of the run."""
        ...


def check(uri: str) -> None:
    """Raise BadInput within seconds when ``uri`` cannot take runs. Creates nothing."""
    uri = absolute(uri)
    if uri.startswith(SQLITE):
        check_sqlite(Path(uri.removeprefix(SQLITE)))
        return
    with patience(retries=0, seconds=5):
        try:
            _client(uri).search_experiments(max_results=1)
        except Exception as error:
            raise _down(uri, error) from None


def open_parent(uri: str, run_key: str, recipe_name: str) -> str:
    """The run id of the pipeline run ``run_key``: found again by its tag, else created. BadInput when MLflow is down."""
    if not re.fullmatch(r"[\w.:-]{1,200}", run_key):
        raise BadInput(f"run_key {run_key!r}", "1 to 200 letters, digits, and . _ : -", "choose another run_key")
    uri = absolute(uri)
    check(uri)
    with _reporting_down(uri):
        create = {RUN_KEY: run_key, RECIPE: recipe_name}
        run_id = _find_or_create(uri, tags={RUN_KEY: run_key}, create=create, name=f"{recipe_name} {run_key}")
    upload_left_behind(uri, Path.cwd())
    return run_id


def find_parent(uri: str, run_key: str) -> str:
    """The run id of the pipeline run ``run_key``, "" when there is none (or no database yet). BadInput when MLflow is down."""
    uri = absolute(uri)
    check(uri)
    if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).exists():
        return ""
    with _reporting_down(uri):
        return _find(uri, {RUN_KEY: run_key}) or ""


def close_parent(uri: str, run_id: str, status: Status) -> None:
    """End the parent run; an empty ``run_id`` (a room run alone) is nothing to close. Raises Failed when MLflow is down."""
    if not run_id:
        return
    uri = absolute(uri)
    try:
        check(uri)
        _client(uri).set_terminated(run_id, status=status)
    except Exception as error:
        raise Failed(f"MLflow run {run_id} could not be marked {status} at {uri}: {_reason(error)}") from None


@contextmanager
def child(
    uri: str, parent_id: str | None, task: str, fingerprint: str, *, journal: Path | None = None
) -> Generator["MlflowTracker", None, None]:
    """The room's own run under ``parent_id`` (unparented when empty), found again by task and fingerprint.

    MLflow down now: BadInput. Down later: what is told goes to ``journal`` (a local folder; default
    ``mlflow-journal-<task>-<fingerprint>`` in the working directory) and is uploaded when MLflow answers again, at the latest by the
    next child with this journal. On leaving, the run ends FINISHED, FAILED (an error) or KILLED (a signal).
    """
    uri = absolute(uri)
    check(uri)
    with _reporting_down(uri):
        tags = {TASK: task, FINGERPRINT: fingerprint, **({PARENT: parent_id} if parent_id else {})}
        run_id = _find_or_create(uri, tags=tags, create=tags, name=task)
    folder = (journal or Path(f"{JOURNAL}{task}-{fingerprint}")).absolute()
    tracker = MlflowTracker(uri, run_id, task=task, journal=Journal(folder))
    status: Status = "FINISHED"
    try:
        tracker.upload()
        yield tracker
    except Exception:
        status = "FAILED"
        raise
    except BaseException:
        status = "KILLED"
        raise
    finally:
        tracker.close(status)


def upload_left_behind(uri: str, folder: Path) -> None:
    """Send the journals in ``folder`` that earlier runs could not send to ``uri``; those of running rooms are theirs."""
    for place in sorted(folder.glob(f"{JOURNAL}*")):
        try:
            journal = Journal(place)
        except (BlockingIOError, FileNotFoundError):
            continue
        entries = journal.entries()
        if entries and entries[0]["uri"] == absolute(uri):
            MlflowTracker(absolute(uri), entries[0]["run_id"], task=place.name.removeprefix(JOURNAL), journal=journal).upload()
        journal.release()


class MlflowTracker:
    """A Tracker on one MLflow run. What cannot be sent is journalled, said once, and sent later in order."""

    def __init__(self, uri: str, run_id: str, *, task: str, journal: Journal) -> None:
        self.uri, self.run_id, self.task, self.journal = uri, run_id, task, journal
        self._params: dict[str, Any] = {}
        self._lost_at: float | None = None
        self._lock = threading.Lock()

    def log_params(self, params: Mapping[str, Any]) -> None:
        self._params.update(params)
        self._tell({"kind": "params", "values": {_key(key): str(value) for key, value in _flat(params)}})
        self._tell({"kind": "json", "name": "params.json", "value": json.loads(json.dumps(self._params, default=str))})

    def log_metrics(self, metrics: Mapping[str, float], *, step: int = 0) -> None:
        values = {_key(key): float(value) for key, value in metrics.items()}
        self._tell({"kind": "metrics", "values": values, "step": int(step), "timestamp": _now()})

    def log_artifact(self, path: Path, *, folder: str | None = None) -> None:
        if not Path(path).is_file():
            raise FileNotFoundError(path)
        self._tell({"kind": "artifact", "path": str(Path(path).absolute()), "folder": folder})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self._tell({"kind": "tags", "values": {key[:_KEY_CHARACTERS]: str(value)[:_TAG_CHARACTERS] for key, value in tags.items()}})

    def upload(self) -> None:
        """Send what the journal holds; leaves it as it is when MLflow does not answer."""
        with self._lock:
            self._upload()

    def close(self, status: Status) -> None:
        """End the run; says where the journal lies when MLflow is still gone."""
        with self._lock:
            self._lost_at = None  # one more attempt, however recent the last one
        self._tell({"kind": "end", "status": status, "timestamp": _now()})
        if len(self.journal):
            say(
                self.task, f"MLflow at {self.uri} is still down: {len(self.journal)} entries wait in {self.journal.folder} for the next run"
            )
        self.journal.release()

    def _tell(self, entry: dict[str, Any]) -> None:
        with self._lock:
            entry = {"uri": self.uri, "run_id": self.run_id, **entry}
            if not self._upload():
                self.journal.append(entry)
                return
            try:
                self._send(entry)
            except Exception as error:
                self._lost(error)
                self.journal.append(entry)

    def _upload(self) -> bool:
        """Whether the journal is empty afterwards."""
        if not len(self.journal):
            return True
        if self._lost_at is not None and time.monotonic() - self._lost_at < RETRY_SECONDS:
            return False
        sent = 0
        try:
            for entry in self.journal.entries():
                self._send(entry)
                sent += 1
        except Exception as error:
            self._lost(error)
        self.journal.drop(sent)
        if not len(self.journal):
            self._lost_at = None
            say(self.task, f"MLflow at {self.uri} took the {sent} entries of the journal")
        return not len(self.journal)

    def _send(self, entry: dict[str, Any]) -> None:
        with patience(retries=0, seconds=ANSWER_SECONDS if entry["kind"] != "artifact" else UPLOAD_SECONDS):
            _send(self.uri, entry)

    def _lost(self, error: Exception) -> None:
        if self._lost_at is None and not len(self.journal):
            say(
                self.task,
                f"MLflow at {self.uri} does not answer ({_reason(error)}); going on, its entries are kept in {self.journal.folder}",
            )
        self._lost_at = time.monotonic()


def _send(uri: str, entry: dict[str, Any]) -> None:
    from mlflow.entities import Metric, Param, RunTag

    client, run_id, kind = _client(uri), entry["run_id"], entry["kind"]
    if kind == "metrics":
        items = [Metric(key, value, entry["timestamp"], entry["step"]) for key, value in entry["values"].items()]
        for start in range(0, len(items), _BATCH):
            client.log_batch(run_id, metrics=items[start : start + _BATCH])
    elif kind == "params":
        known = client.get_run(run_id).data.params  # a parameter is written once: a resumed run keeps the first, a change is a tag
        values = {key: value[:_PARAM_CHARACTERS] for key, value in entry["values"].items()}
        new = [Param(key, value) for key, value in values.items() if key not in known]
        changed = [RunTag(f"sr3.changed.{key}"[:_KEY_CHARACTERS], value) for key, value in values.items() if known.get(key, value) != value]
        for start in range(0, len(new), _BATCH):
            client.log_batch(run_id, params=new[start : start + _BATCH])
        for start in range(0, len(changed), _BATCH):
            client.log_batch(run_id, tags=changed[start : start + _BATCH])
    elif kind == "tags":
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in entry["values"].items()])
    elif kind == "json":
        client.log_dict(run_id, entry["value"], entry["name"])
    elif kind == "artifact":
        client.log_artifact(run_id, entry["path"], entry["folder"])
    else:
        client.set_terminated(run_id, status=entry["status"], end_time=entry["timestamp"])


@lru_cache(maxsize=8)
def _client(uri: str) -> Any:
    quiet()
    from mlflow import MlflowClient

    if not uri.startswith(SQLITE):
        return MlflowClient(uri, uri)
    path = Path(uri.removeprefix(SQLITE))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(path.name + ".lock").open("w") as lock:  # two rooms must not both run the migrations of a new database
        fcntl.flock(lock, fcntl.LOCK_EX)
        return MlflowClient(uri, uri)


def client(uri: str) -> Any:
    """An ``MlflowClient`` of ``uri`` for the registry work of the export room; BadInput when MLflow is down."""
    uri = absolute(uri)
    check(uri)
    return _client(uri)


@contextmanager
def current(uri: str) -> Generator[None, None, None]:
    """Within this block those functions of mlflow that take no URI, and those that ignore theirs (models:/...), mean ``uri``."""
    client(uri)
    from mlflow import get_tracking_uri, is_tracking_uri_set
    from mlflow import set_tracking_uri as set_uri

    set_tracking_uri = cast(Callable[[str | None], None], set_uri)  # None unsets it; its annotation does not say so
    names = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
    before = {name: os.environ.get(name) for name in names}
    chosen = get_tracking_uri() if is_tracking_uri_set() else None
    os.environ["MLFLOW_REGISTRY_URI"] = absolute(uri)
    set_tracking_uri(absolute(uri))
    try:
        yield
    finally:
        set_tracking_uri(None if chosen == before["MLFLOW_TRACKING_URI"] else chosen)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def download(uri: str, artifact_uri: str, destination: Path) -> Path:
    """Copy the folder ``artifact_uri`` (models:/..., runs:/...) into ``destination``; returns where it is. BadInput when MLflow is down."""
    with current(uri), _reporting_down(uri):
        from mlflow.artifacts import download_artifacts

        return Path(download_artifacts(artifact_uri=artifact_uri, dst_path=str(destination)))


def experiment_id(uri: str) -> str:
    """The experiment of all runs, created at first use; on sqlite its artifacts stand beside the database."""
    from mlflow.exceptions import MlflowException

    client = _client(uri)
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is None:
        beside = Path(uri.removeprefix(SQLITE)).with_name("mlartifacts").as_uri() if uri.startswith(SQLITE) else None
        try:
            return client.create_experiment(EXPERIMENT, artifact_location=beside)
        except MlflowException:  # another room was first
            found = client.get_experiment_by_name(EXPERIMENT)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise BadInput(
            f"the MLflow experiment {EXPERIMENT!r} at {uri} is deleted",
            "an active one",
            f"mlflow experiments restore -x {found.experiment_id}",
        )
    return found.experiment_id


def _find_or_create(uri: str, *, tags: Mapping[str, str], create: Mapping[str, str], name: str) -> str:
    found = _find(uri, tags)
    if found is None:
        return _client(uri).create_run(experiment_id(uri), tags=dict(create), run_name=name).info.run_id
    _client(uri).update_run(found, status="RUNNING")
    return found


def _find(uri: str, tags: Mapping[str, str]) -> str | None:
    where = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    for run in _client(uri).search_runs([experiment_id(uri)], filter_string=where, order_by=["attributes.start_time DESC"]):
        if run.data.tags.get(PARENT) == tags.get(PARENT):
            return run.info.run_id
    return None


@contextmanager
def _reporting_down(uri: str) -> Generator[None, None, None]:
    try:
        yield
    except BadInput:
        raise
    except Exception as error:
        raise _down(uri, error) from None


def _down(uri: str, error: Exception) -> BadInput:
    return BadInput(
        f"MLflow at {uri} does not answer ({_reason(error)})", "a tracking server that runs", "start it or give another --mlflow-uri"
    )


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    for known in (
        "Connection refused",
        "timed out",
        "Name or service not known",
        "Temporary failure in name resolution",
        "database is locked",
    ):
        if known in text:
            return known
    return text[:160] or type(error).__name__


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _key(name: str) -> str:
    return re.sub(r"[^\w.\- :/]", "_", name)[:_KEY_CHARACTERS]


def _now() -> int:
    return int(time.time() * 1000)
