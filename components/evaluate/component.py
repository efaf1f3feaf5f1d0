"""The evaluate room as a KFP component. Every name its body uses is imported inside."""

from typing import NamedTuple

from kfp import dsl


@dsl.component(base_image="sr3-evaluate", install_kfp_package=False)
def evaluate(
    section: str,
    scaling: str,
    shards_uri: str,
    shards_sha256: str,
    bundles: str,
    root: str,
    mlflow_uri: str,
    run_key: str,
    ray_address: str,
    mlflow_run_id: str,
    job_id: str,
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
) -> NamedTuple("Evaluated", [("report_uri", str), ("report_sha256", str), ("passed", bool)]):
    """Stages, cascade and baselines are measured on held-out photos and become an EvalReport."""
    from components import entry

    with entry.guard("evaluate", root=root, run_key=run_key, job_id=job_id):
        from components.evaluate import main
        from sr3_core.artifacts.report import EvalReport

        result = main.run(
            section=section,
            scaling=scaling,
            shards_uri=shards_uri,
            shards_sha256=shards_sha256,
            bundles=bundles,
            root=root,
            mlflow_uri=mlflow_uri,
            run_key=run_key,
            ray_address=ray_address,
            mlflow_run_id=mlflow_run_id,
        )
        for name, value in EvalReport.open(result.report_uri).metrics().items():
            metrics.log_metric(name, value)
        report.metadata.update(entry.receipt(report.path, uri=result.report_uri, sha256=result.report_sha256, name="report.html"))
        return result
