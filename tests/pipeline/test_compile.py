"""The compiled pipeline: golden files, what stands in it and what may not, and KFP's own tools on it."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import components

from pipeline import dag, resources, submit
from sr3_core import config
from sr3_core.errors import BadInput
from tests.conftest import BIN, RECIPES, REPOSITORY, Ended

GOLDEN = Path(__file__).parent / "golden"
RECIPE_OF = {"demo": "demo", "tiny": str(RECIPES / "tiny.yaml"), "gpu": str(RECIPES / "gpu.yaml")}


def compiled(recipe: config.Recipe, folder: Path, **options: str) -> list[dict[str, Any]]:
    submit.compile_to(recipe, folder / "pipeline.yaml", **options)
    return list(yaml.safe_load_all((folder / "pipeline.yaml").read_text()))


@pytest.mark.parametrize("name", RECIPE_OF)
def test_compiled_pipeline_is_the_golden_file(name: str, tmp_path: Path, sr3: Callable[..., Ended]) -> None:
    """SR3_UPDATE_GOLDEN=1 writes the golden files anew; look at their difference before you commit it."""
    done = sr3("compile", RECIPE_OF[name], "-o", str(tmp_path / "pipeline.yaml"))
    assert done.code == 0, done.stderr
    text = (tmp_path / "pipeline.yaml").read_text()
    golden = GOLDEN / f"{name}.yaml"
    if os.environ.get("SR3_UPDATE_GOLDEN") == "1":
        golden.write_text(text)
    assert text == golden.read_text(), "the compiled pipeline changed: SR3_UPDATE_GOLDEN=1 make test, then read the difference"


def test_one_train_task_per_stage_and_no_cache(tmp_path: Path) -> None:
    recipe = config.load(str(RECIPES / "pair.yaml"))
    spec = compiled(recipe, tmp_path)[0]
    tasks = spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    assert sorted(tasks) == ["evaluate", "export", "prepare", "train", "train-2"]
    assert {tasks[task]["taskInfo"]["name"] for task in ("train", "train-2")} == {"train-x16", "train-x32"}
    assert all(not task["cachingOptions"].get("enableCache") for task in [*tasks.values(), spec["root"]["dag"]["tasks"]["finish"]])
    sections = {
        json.loads(tasks[task]["inputs"]["parameters"]["section"]["runtimeValue"]["constant"])["name"] for task in ("train", "train-2")
    }
    assert sections == {"x16", "x32"}


def test_rooms_hand_on_strings_and_assign_no_uri(tmp_path: Path) -> None:
    """Artifacts are receipts; no room takes one in."""
    spec = compiled(config.load("demo"), tmp_path)[0]
    for name, component in spec["components"].items():
        assert "artifacts" not in component.get("inputDefinitions", {}), name
        for parameter, definition in component.get("inputDefinitions", {}).get("parameters", {}).items():
            assert definition["parameterType"] in ("STRING", "TASK_FINAL_STATUS"), f"{name}.{parameter}"
    for name, executor in spec["deploymentSpec"]["executors"].items():
        source = executor["container"]["command"][-1]
        assert ".uri =" not in source and "Input[" not in source, name
        assert "pip install" not in " ".join(executor["container"]["command"]), name


def test_accelerators_follow_scaling(tmp_path: Path) -> None:
    overrides = ["scaling.accelerator=gpu", "scaling.workers=2"]
    recipe = config.load("demo", overrides)
    here = compiled(recipe, tmp_path)[0]["deploymentSpec"]["executors"]
    for room in ("train", "evaluate"):  # as many as the room asks Ray for
        assert here[f"exec-{room}"]["container"]["resources"]["accelerator"] == {
            "count": "2", "resourceCount": "2", "resourceType": "nvidia.com/gpu", "type": "nvidia.com/gpu",
        }  # fmt: skip
    assert "accelerator" not in here["exec-prepare"]["container"]["resources"]
    remote = compiled(recipe, tmp_path, ray_address="http://head:8265")[0]["deploymentSpec"]["executors"]
    assert all("accelerator" not in executor["container"]["resources"] for executor in remote.values())
    assert all(
        "accelerator" not in executor["container"]["resources"]
        for executor in compiled(config.load("demo"), tmp_path)[0]["deploymentSpec"]["executors"].values()
    )


def test_images_are_named_by_the_caller(tmp_path: Path) -> None:
    spec = compiled(config.load("demo"), tmp_path, images="registry.example/sr3-{room}:0123abc")[0]
    assert {executor["container"]["image"] for executor in spec["deploymentSpec"]["executors"].values()} == {
        f"registry.example/sr3-{room}:0123abc" for room in ("prepare", "train", "evaluate", "export")
    }
    assert set(resources.TABLE) == {"prepare", "train", "evaluate", "export", "finish"}


@pytest.mark.parametrize("images", [resources.IMAGES, "host:5000/team/sr3-{room}:v1.2", "sr3-{room}@sha256:" + "0a" * 32])
def test_images_that_stay_what_they_are(images: str) -> None:
    resources.check_images(images)
    assert resources.image("finish", images) == images.replace("{room}", "export")


@pytest.mark.parametrize(
    ("images", "says"),
    [
        ("one-image:1.0", "with {room} in it"),
        ("registry.example:5000/sr3-{room}", "no tag"),
        ("sr3-{room}:latest", "moving tag 'latest'"),
        ("sr3-{room}:Main", "moving tag 'Main'"),
        ("sr3-{room}:dev", "moving tag 'dev'"),
        ("sr3-{room}-{stage}:1.0", "with {room} in it"),
        ("sr3-{room}{}:1.0", "with {room} in it"),
        ("sr3-{room}:", "with {room} in it"),
        ("sr3-{room}@sha256:short", "a digest"),
        ("sr3 {room}:1.0", "with {room} in it"),
    ],
)
def test_images_that_may_become_others_are_refused(images: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput) as refused:
        compiled(config.load("demo"), tmp_path, images=images)
    assert says in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_local_pipeline_has_no_retries(tmp_path: Path) -> None:
    from kfp import compiler

    compiler.Compiler().compile(dag.build(config.load("demo"), on_server=False), str(tmp_path / "local.yaml"))
    assert "maxRetryCount" not in (tmp_path / "local.yaml").read_text()
    assert "maxRetryCount" in (GOLDEN / "demo.yaml").read_text()


def test_run_key_names_the_recipe_and_its_values() -> None:
    recipe = config.load("demo")
    assert dag.default_run_key(recipe).startswith("demo-")
    assert dag.default_run_key(recipe) == dag.default_run_key(config.load("demo", ["scaling.workers=1"]))
    assert dag.default_run_key(recipe) != dag.default_run_key(config.load("demo", ["evaluation.seed=7"]))


def test_kfp_tools_accept_it(tmp_path: Path) -> None:
    assert components.load_component_from_file(str(GOLDEN / "demo.yaml")).name == "sr3-demo"
    command = [str(BIN / "kfp"), "dsl", "compile", "--py", str(REPOSITORY / "pipeline" / "dag.py"), "--function", "demo"]
    done = subprocess.run([*command, "--output", str(tmp_path / "demo.yaml")], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "demo.yaml").read_text() == (GOLDEN / "demo.yaml").read_text()


@pytest.mark.parametrize("output", ["pipeline.json", "no/such/folder/pipeline.yaml"])
def test_compile_refuses_an_output_it_cannot_write(output: str, tmp_path: Path, sr3: Callable[..., Ended]) -> None:
    done = sr3("compile", "demo", "-o", output, cwd=tmp_path)
    assert done.code == 2 and done.stderr.startswith("sr3: bad input: ") and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
