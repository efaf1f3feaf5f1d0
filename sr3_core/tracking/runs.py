"""The runs in MLflow: one parent a pipeline run, one child a room, found again by their tags when a run goes on."""

import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from sr3_core.errors import BadInput, Failed
from sr3_core.tracking.client import check, connected, experiment_id, reason, reporting_down
from sr3_core.tracking.journal import Journal
from sr3_core.tracking.tracker import JOURNAL, MlflowTracker, Status, upload_left_behind
from sr3_core.tracking.uri import SQLITE, absolute

RUN_KEY, RECIPE, TASK, FINGERPRINT, PARENT = "sr3.run_key", "sr3.recipe", "sr3.task", "sr3.fingerprint", "mlflow.parentRunId"


def open_parent(uri: str, run_key: str, recipe_name: str) -> str:
    """The run id of the pipeline run ``run_key``: found again by its tag, else created. BadInput when MLflow is down."""
    if not re.fullmatch(r"[\w.:-]{1,200}", run_key):
        raise BadInput(f"run_key {run_key!r}", "1 to 200 letters, digits, and . _ : -", "choose another run_key")
    uri = absolute(uri)
    check(uri)
    with reporting_down(uri):
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
    with reporting_down(uri):
        return _find(uri, {RUN_KEY: run_key}) or ""


def close_parent(uri: str, run_id: str, status: Status) -> None:
    """End the parent run; an empty ``run_id`` (a room run alone) is nothing to close. Raises Failed when MLflow is down."""
    if not run_id:
        return
    uri = absolute(uri)
    try:
        check(uri)
        connected(uri).set_terminated(run_id, status=status)
    except Exception as error:
        raise Failed(f"MLflow run {run_id} could not be marked {status} at {uri}: {reason(error)}") from None


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
    with reporting_down(uri):
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


def _find_or_create(uri: str, *, tags: Mapping[str, str], create: Mapping[str, str], name: str) -> str:
    found = _find(uri, tags)
    if found is None:
        return connected(uri).create_run(experiment_id(uri), tags=dict(create), run_name=name).info.run_id
    connected(uri).update_run(found, status="RUNNING")
    return found


def _find(uri: str, tags: Mapping[str, str]) -> str | None:
    where = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    for run in connected(uri).search_runs([experiment_id(uri)], filter_string=where, order_by=["attributes.start_time DESC"]):
        if run.data.tags.get(PARENT) == tags.get(PARENT):
            return run.info.run_id
    return None
