"""Which MLflow a run speaks to and with what manners: its URI, its patience, its silence. Imports no mlflow."""

import logging
import os
import re
import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from sr3_core.config import refuse_secrets
from sr3_core.errors import BadInput

DEFAULT_ROOT = "sr3-runs"  # in the folder a command is given in
SQLITE = "sqlite:///"
_ALLOWED = "http(s)://host:port of an MLflow server, or sqlite:////absolute/path/mlflow.db"


def default_uri(root: str) -> str:
    """The embedded default: ``sqlite:///<root>/mlflow.db``, its artifacts under ``<root>/mlartifacts``. BadInput for a remote root."""
    if re.match(r"^(?!file:)[a-z][a-z0-9+.-]*://", root):
        raise BadInput(f"no MLflow URI with the remote root {root}", _ALLOWED, "give --mlflow-uri")
    return absolute(f"{SQLITE}{Path(root.removeprefix('file://')).absolute()}/mlflow.db")


def absolute(uri: str) -> str:
    """``uri`` with a relative sqlite path made absolute: a relative one is another database in every working directory.

    Raises BadInput for schemes that MLflow cannot use and for credentials in the URI.
    """
    refuse_secrets(uri, "mlflow_uri")
    if uri.startswith(("http://", "https://")) and urlsplit(uri).hostname:
        return uri.rstrip("/")
    if not uri.startswith(SQLITE) or uri == SQLITE:
        raise BadInput(f"MLflow URI {uri!r}", _ALLOWED, "give such a URI")
    if re.search(r"[%?]", uri):
        raise BadInput(f"MLflow URI {uri!r} with % or ?", "a sqlite path without these characters", "use another root or an MLflow server")
    return SQLITE + str(Path(uri.removeprefix(SQLITE)).absolute())


def ui_command(uri: str) -> str:
    """The command that shows the runs of ``uri`` in a browser (or the address of a server)."""
    return f"mlflow ui --backend-store-uri '{uri}' --port 5000" if uri.startswith(SQLITE) else uri


def check_sqlite(path: Path) -> None:
    """Raise BadInput when the sqlite file ``path`` cannot be used or made. Creates nothing."""
    # sqlalchemy would try an unusable file again for a minute
    folder = next(parent for parent in path.parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise BadInput(
            f"MLflow database {path}: {folder} is not a writable folder", "a writable folder", "choose another root or --mlflow-uri"
        )
    if not path.exists():
        return
    try:
        connection = sqlite3.connect(path.as_uri() + "?mode=rw", uri=True, timeout=20)
        try:
            connection.execute("PRAGMA schema_version").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise BadInput(f"MLflow database {path}: {error}", "a readable and writable sqlite file", "mend or move it") from None


@contextmanager
def patience(*, retries: int, seconds: int) -> Generator[None, None, None]:
    """How often and how long requests to an MLflow server are tried within this block; mlflow's own default is minutes."""
    wanted = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(retries), "MLFLOW_HTTP_REQUEST_TIMEOUT": str(seconds)}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def quiet() -> None:
    """Settings that mlflow reads at import or at a request: no telemetry, no bars, no run links, short retries."""
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
        "GIT_PYTHON_REFRESH": "quiet",
    }.items():
        os.environ.setdefault(name, value)
    for name in ("mlflow.store.db.utils", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
