"""The last word of a pipeline run: one that did not succeed leaves no MLflow parent run that looks as if it were still going on."""

from sr3_core import tracking
from sr3_core.progress import say


def run(*, mlflow_uri: str, run_key: str, state: str) -> None:
    """Mark the parent run of ``run_key`` FAILED unless ``state`` (of the pipeline) is SUCCEEDED: export has closed it then."""
    if state == "SUCCEEDED":
        return
    close(mlflow_uri, run_key, "FAILED")


def close(mlflow_uri: str, run_key: str, status: tracking.Status) -> None:
    """Mark the parent run of ``run_key`` as ``status``, if there is one."""
    run_id = tracking.find_parent(mlflow_uri, run_key)
    if run_id:
        tracking.close_parent(mlflow_uri, run_id, status)
        say("finish", f"MLflow run {run_id} marked {status}")
