"""The prepare room as a KFP component. Its body runs in a process of its own: every name it uses is imported inside."""

from typing import NamedTuple

from kfp import dsl


@dsl.component(base_image="sr3-prepare", install_kfp_package=False)
def prepare(
    section: str,
    scaling: str,
    recipe_name: str,
    root: str,
    mlflow_uri: str,
    run_key: str,
    ray_address: str,
    job_id: str,
    manifest: dsl.Output[dsl.Dataset],
) -> NamedTuple("Prepared", [("shards_uri", str), ("shards_sha256", str), ("mlflow_run_id", str)]):
    """Images from anywhere become a ShardSet; opens the MLflow run of the whole pipeline."""
    from components import entry

    with entry.guard("prepare", root=root, run_key=run_key, job_id=job_id):
        from components.prepare import main

        result = main.run(
            section=section,
            scaling=scaling,
            recipe_name=recipe_name,
            root=root,
            mlflow_uri=mlflow_uri,
            run_key=run_key,
            ray_address=ray_address,
        )
        manifest.metadata.update(entry.receipt(manifest.path, uri=result.shards_uri, sha256=result.shards_sha256, name="manifest.json"))
        return result
