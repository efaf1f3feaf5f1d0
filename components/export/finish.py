"""The last word of a pipeline run: a run that did not succeed leaves no MLflow parent run that looks as if it were still going on."""

from sr3_core import tracking
from sr3_core.progress import say


def run(*, mlflow_uri: str, run_key: str, state: str) -> None:
    """Mark the parent run of ``run_key`` FAILED unless ``state`` (of the pipeline) is SUCCEEDED; export has closed it then."""
    if state == "SUCCEEDED":
        return
    for run_id in unfinished(mlflow_uri, run_key):
        tracking.close_parent(mlflow_uri, run_id, "FAILED")
        say("finish", f"MLflow run {run_id} marked FAILED")


def unfinished(mlflow_uri: str, run_key: str) -> list[str]:
    """Ids of the parent runs of ``run_key`` that are still RUNNING."""
    client = tracking.client(mlflow_uri)
    where = f"tags.`{tracking.RUN_KEY}` = '{run_key}' and attributes.status = 'RUNNING'"
    return [found.info.run_id for found in client.search_runs([tracking.experiment_id(mlflow_uri)], filter_string=where)]
