"""The pipeline, unrolled from a recipe at compile time: one train task per stage. Read this file first.

`kfp dsl compile --py pipeline/dag.py --function demo --output demo.yaml` works too: every recipe's name is an attribute here.
"""

import json

from kfp import dsl

from components.evaluate.component import evaluate
from components.export.component import export, finish
from components.prepare.component import prepare
from components.train.component import train
from pipeline import resources
from pipeline.placement import place_on_server
from sr3_core import config


def build(
    recipe: config.Recipe, *, on_server: bool = True, images: str = resources.IMAGES, ray_address: str = ""
) -> dsl.base_component.BaseComponent:
    """The KFP pipeline of ``recipe``. Locally (``on_server`` false) there are no retries and no resource requests.

    Four runtime parameters stand in no recipe: root, mlflow_uri, run_key, ray_address. Rooms hand on strings - a URI and
    the sha256 of its manifest - and KFP's cache is off: the finished manifest under root is the only one.
    """
    scaling = recipe.scaling.canonical_json()

    def place(task: dsl.PipelineTask, room: str, name: str) -> dsl.PipelineTask:
        task.set_display_name(name).set_caching_options(False).set_container_image(resources.image(room, images))
        if on_server:
            place_on_server(task, room, recipe.scaling, images=images, ray_address=ray_address)
        return task

    @dsl.pipeline(name=pipeline_name(recipe), description="prepare -> train each stage -> evaluate -> export")
    def rooms(root: str, mlflow_uri: str, run_key: str = default_run_key(recipe), ray_address: str = ray_address):
        """1. prepare: images become a ShardSet. 2. train: each stage becomes a ModelBundle. 3. evaluate: stages, cascade and baselines
        become a report. 4. export: the gate and the registry. However they end, finish closes the MLflow run."""
        run = {"root": root, "mlflow_uri": mlflow_uri, "run_key": run_key, "job_id": dsl.PIPELINE_JOB_ID_PLACEHOLDER}
        work = {**run, "scaling": scaling, "ray_address": ray_address}
        with dsl.ExitHandler(place(finish(**run), "finish", "finish"), name="rooms"):
            prepared = place(prepare(section=recipe.data.canonical_json(), recipe_name=recipe.name, **work), "prepare", "prepare")
            child = {**work, "mlflow_run_id": prepared.outputs["mlflow_run_id"]}
            shards = {"shards_uri": prepared.outputs["shards_uri"], "shards_sha256": prepared.outputs["shards_sha256"]}
            trained = [
                place(train(section=stage.canonical_json(), stage=stage.name, **shards, **child), "train", f"train-{stage.name}")
                for stage in recipe.stages
            ]
            bundles = bundle_list([task.outputs for task in trained])
            evaluated = place(
                evaluate(section=recipe.evaluation.canonical_json(), bundles=bundles, **shards, **child), "evaluate", "evaluate"
            )
            report = {"report_uri": evaluated.outputs["report_uri"], "report_sha256": evaluated.outputs["report_sha256"]}
            place(export(section=recipe.export.canonical_json(), bundles=bundles, **report, **child), "export", "export")

    return rooms


def bundle_list(outputs: list[dict[str, object]]) -> str:
    """The bundles in cascade order as one JSON string whose values KFP fills in (f-strings of outputs become placeholders)."""
    items = [f'{{"uri":"{output["bundle_uri"]}","sha256":"{output["bundle_sha256"]}"}}' for output in outputs]
    return f"[{','.join(items)}]"


def pipeline_name(recipe: config.Recipe) -> str:
    """The pipeline's name on a server and the start of its folders under .kfp."""
    return f"sr3-{recipe.name}".replace("_", "-")


def default_run_key(recipe: config.Recipe) -> str:
    """``<name>-<fingerprint>``: the same recipe is the same run, so that the same command goes on where it was stopped."""
    values = recipe.model_dump(mode="json", exclude={"scaling"})
    return f"{recipe.name}-{config.fingerprint(json.dumps(values, sort_keys=True))}"


def __getattr__(name: str) -> dsl.base_component.BaseComponent:
    if name not in config.recipe_names():
        raise AttributeError(name)
    return build(config.load(name))
