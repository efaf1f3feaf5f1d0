"""A room's run in MLflow that loses nothing: what cannot be sent now is journalled, said once, and sent later in order."""

import json
import re
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from sr3_core.progress import say
from sr3_core.tracking.client import connected, reason
from sr3_core.tracking.journal import Journal
from sr3_core.tracking.uri import absolute, patience

JOURNAL = "mlflow-journal-"
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
                f"MLflow at {self.uri} does not answer ({reason(error)}); going on, its entries are kept in {self.journal.folder}",
            )
        self._lost_at = time.monotonic()


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


def _send(uri: str, entry: dict[str, Any]) -> None:
    from mlflow.entities import Metric, Param, RunTag

    client, run_id, kind = connected(uri), entry["run_id"], entry["kind"]
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
