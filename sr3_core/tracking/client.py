"""Speaking to MLflow: a client of a URI, the experiment, downloads, and errors as one line.

mlflow is imported inside functions: it costs seconds and no room needs it before its first line. Every call names the tracking
URI; mlflow's global one is set inside ``current`` alone.
"""

import fcntl
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from sr3_core.errors import BadInput
from sr3_core.tracking.uri import SQLITE, absolute, check_sqlite, patience, quiet

EXPERIMENT = "sr3"


def check(uri: str) -> None:
    """Raise BadInput within seconds when ``uri`` cannot take runs. Creates nothing."""
    uri = absolute(uri)
    if uri.startswith(SQLITE):
        check_sqlite(Path(uri.removeprefix(SQLITE)))
        return
    with patience(retries=0, seconds=5):
        try:
            connected(uri).search_experiments(max_results=1)
        except Exception as error:
            raise _down(uri, error) from None


def client(uri: str) -> Any:
    """An ``MlflowClient`` of ``uri`` for the registry work of the export room; BadInput when MLflow is down."""
    uri = absolute(uri)
    check(uri)
    return connected(uri)


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
    with current(uri), reporting_down(uri):
        from mlflow.artifacts import download_artifacts

        return Path(download_artifacts(artifact_uri=artifact_uri, dst_path=str(destination)))


def experiment_id(uri: str) -> str:
    """The experiment of all runs, created at first use; on sqlite its artifacts stand beside the database."""
    from mlflow.exceptions import MlflowException

    client = connected(uri)
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


@lru_cache(maxsize=8)
def connected(uri: str) -> Any:
    quiet()
    from mlflow import MlflowClient

    if not uri.startswith(SQLITE):
        return MlflowClient(uri, uri)
    path = Path(uri.removeprefix(SQLITE))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(path.name + ".lock").open("w") as lock:  # two rooms must not both run the migrations of a new database
        fcntl.flock(lock, fcntl.LOCK_EX)
        return MlflowClient(uri, uri)


@contextmanager
def reporting_down(uri: str) -> Generator[None, None, None]:
    try:
        yield
    except BadInput:
        raise
    except Exception as error:
        raise _down(uri, error) from None


def _down(uri: str, error: Exception) -> BadInput:
    return BadInput(
        f"MLflow at {uri} does not answer ({reason(error)})", "a tracking server that runs", "start it or give another --mlflow-uri"
    )


def reason(error: Exception) -> str:
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
