"""The train room as a KFP component, one task per stage. Every name its body uses is imported inside."""

from typing import NamedTuple

from kfp import dsl


@dsl.component(base_image="sr3-train", install_kfp_package=False)
def train(
    section: str,
    scaling: str,
    stage: str,
    shards_uri: str,
    shards_sha256: str,
    root: str,
    mlflow_uri: str,
    run_key: str,
    ray_address: str,
    mlflow_run_id: str,
    job_id: str,
    card: dsl.Output[dsl.Markdown],
) -> NamedTuple("Trained", [("bundle_uri", str), ("bundle_sha256", str)]):
    """One stage of the cascade is trained to a ModelBundle."""
    from components import entry

    with entry.guard(f"train-{stage}", root=root, run_key=run_key, job_id=job_id):
        from components.train import main

        result = main.run(
            section=section,
            scaling=scaling,
            shards_uri=shards_uri,
            shards_sha256=shards_sha256,
            root=root,
            mlflow_uri=mlflow_uri,
            run_key=run_key,
            ray_address=ray_address,
            mlflow_run_id=mlflow_run_id,
        )
        card.metadata.update(entry.receipt(card.path, uri=result.bundle_uri, sha256=result.bundle_sha256, name="card.md"))
        return result
