"""The export room as a KFP component, and the task that ends a pipeline run. Every name their bodies use is imported inside."""

from typing import NamedTuple

from kfp import dsl


@dsl.component(base_image="sr3-export", install_kfp_package=False)
def export(
    section: str,
    scaling: str,
    report_uri: str,
    report_sha256: str,
    bundles: str,
    root: str,
    mlflow_uri: str,
    run_key: str,
    ray_address: str,
    mlflow_run_id: str,
    job_id: str,
) -> NamedTuple("Exported", [("model_uri", str), ("version", str)]):
    """The gate, the cascade bundle and the registered model."""
    from components import entry

    with entry.guard("export", root=root, run_key=run_key, job_id=job_id):
        from components.export import main

        return main.run(
            section=section,
            scaling=scaling,
            report_uri=report_uri,
            report_sha256=report_sha256,
            bundles=bundles,
            root=root,
            mlflow_uri=mlflow_uri,
            run_key=run_key,
            ray_address=ray_address,
            mlflow_run_id=mlflow_run_id,
        )


@dsl.component(base_image="sr3-export", install_kfp_package=False)
def finish(root: str, mlflow_uri: str, run_key: str, job_id: str, status: dsl.PipelineTaskFinalStatus):
    """Exit task of the pipeline: marks the parent MLflow run FAILED when a room failed; runs whether or not they succeeded."""
    from components import entry

    with entry.guard("finish", root=root, run_key=run_key, job_id=job_id):
        from components.export import finish as work

        work.run(mlflow_uri=mlflow_uri, run_key=run_key, state=status.state)
