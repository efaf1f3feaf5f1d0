"""What a run tells MLflow: one parent run per pipeline run, one child per room. The only importer of mlflow besides components/export."""

from sr3_core.tracking.client import check, client, current, download, experiment_id
from sr3_core.tracking.runs import child, close_parent, find_parent, open_parent
from sr3_core.tracking.tracker import MlflowTracker, Status, Tracker, upload_left_behind
from sr3_core.tracking.uri import DEFAULT_ROOT, absolute, default_uri, patience, quiet, ui_command

__all__ = [
    "DEFAULT_ROOT",
    "MlflowTracker",
    "Status",
    "Tracker",
    "absolute",
    "check",
    "child",
    "client",
    "close_parent",
    "current",
    "default_uri",
    "download",
    "experiment_id",
    "find_parent",
    "open_parent",
    "patience",
    "quiet",
    "ui_command",
    "upload_left_behind",
]
