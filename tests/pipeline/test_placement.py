"""Where the tasks' pods go on a server: image, accelerator, retries, secrets, tolerations, node labels and time-outs of each task."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import compiler

from pipeline import dag, placement, resources, submit
from sr3_core import config
from tests.conftest import RECIPES

GOLDEN = Path(__file__).parent / "golden"
GPU = str(RECIPES / "gpu.yaml")
WORKING = ("prepare", "train", "train-2", "evaluate")
ALL = (*WORKING, "export", "finish")


def documents(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Every task's container, and what kfp-kubernetes says of its pod; both by the executor's name without ``exec-``."""
    spec, platform = yaml.safe_load_all(path.read_text())
    containers = {name.removeprefix("exec-"): executor["container"] for name, executor in spec["deploymentSpec"]["executors"].items()}
    pods = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return containers, {name.removeprefix("exec-"): pod for name, pod in pods.items()}


def compiled(recipe: config.Recipe, folder: Path, **options: str) -> tuple[dict[str, Any], dict[str, Any]]:
    submit.compile_to(recipe, folder / "pipeline.yaml", **options)
    return documents(folder / "pipeline.yaml")


def retries(path: Path) -> dict[str, int]:
    spec = next(yaml.safe_load_all(path.read_text()))
    tasks = {**spec["components"]["comp-exit-handler-1"]["dag"]["tasks"], "finish": spec["root"]["dag"]["tasks"]["finish"]}
    return {name: task["retryPolicy"]["maxRetryCount"] for name, task in tasks.items()}


@pytest.mark.parametrize("name", ["demo", "gpu"])
def test_caching_is_off_and_the_image_is_the_rooms(name: str) -> None:
    spec = next(yaml.safe_load_all((GOLDEN / f"{name}.yaml").read_text()))
    tasks = {**spec["components"]["comp-exit-handler-1"]["dag"]["tasks"], "finish": spec["root"]["dag"]["tasks"]["finish"]}
    assert len(tasks) >= 5
    for task, values in tasks.items():
        assert values["cachingOptions"] == {}, task  # KFP writes enableCache=false as nothing, and true as {enableCache: true}
    containers, _ = documents(GOLDEN / f"{name}.yaml")
    for executor, container in containers.items():
        room = {"train-2": "train", "finish": "export"}.get(executor, executor)
        assert container["image"] == f"sr3-{room}:{resources.VERSION}"
        assert {"name": placement.IMAGE_VARIABLE, "value": container["image"]} in container["env"]


def test_the_demo_asks_for_cpus_alone() -> None:
    containers, pods = documents(GOLDEN / "demo.yaml")
    assert set(containers) == set(pods) == set(ALL)
    assert retries(GOLDEN / "demo.yaml") == {"prepare": 2, "train": 3, "train-2": 3, "evaluate": 2, "export": 2, "finish": 2}
    for task, container in containers.items():
        assert "accelerator" not in container["resources"], task
        assert set(pods[task]) == {"fieldPathAsEnv", "imagePullPolicy", "podMetadata", "securityContext"}, task
        assert pods[task]["securityContext"] == {"runAsNonRoot": True}, task
        assert pods[task]["podMetadata"] == {"annotations": {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}}, task
        assert pods[task]["imagePullPolicy"] == "IfNotPresent"
        assert {item["name"]: item["fieldPath"] for item in pods[task]["fieldPathAsEnv"]} == {
            "POD_NAME": "metadata.name", "POD_UID": "metadata.uid", "POD_NAMESPACE": "metadata.namespace",
        }  # fmt: skip
    asked = containers["train"]["resources"]
    assert (asked["resourceCpuRequest"], asked["resourceCpuLimit"], asked["resourceMemoryLimit"]) == ("8", "8", "32Gi")


def test_the_gpu_recipe_asks_for_what_it_says() -> None:
    containers, pods = documents(GOLDEN / "gpu.yaml")
    assert set(containers) == set(pods) == set(ALL)
    assert set(retries(GOLDEN / "gpu.yaml").values()) == {5}
    exists = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    dedicated = {"key": "dedicated", "operator": "Equal", "value": "training", "effect": "NoExecute", "tolerationSeconds": "300"}
    spot = {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
    for task, pod in pods.items():
        has_gpu, works = task in ("train", "train-2", "evaluate"), task in WORKING
        accelerator = containers[task]["resources"].get("accelerator")
        assert (accelerator and (accelerator["resourceType"], accelerator["resourceCount"])) == (
            ("nvidia.com/gpu", "2") if has_gpu else None
        ), task
        labels = {"topology.kubernetes.io/zone": "europe-west4-a"}
        labels |= {"cloud.google.com/gke-accelerator": "nvidia-l4"} if has_gpu else {}
        labels |= {"cloud.google.com/gke-spot": "true"} if works else {}
        assert pod["nodeSelector"]["labels"] == labels, task
        assert pod["tolerations"] == [exists, dedicated, *([spot] if works else [])], task
        assert pod["activeDeadlineSeconds"] == "172800"
        named = {item["keyToEnv"][0]["envVar"]: (item["secretName"], item["keyToEnv"][0]["secretKey"]) for item in pod["secretAsEnv"]}
        assert named == {
            "MLFLOW_TRACKING_USERNAME": ("mlflow-login", "username"), "MLFLOW_TRACKING_PASSWORD": ("mlflow-login", "password"),
        }  # fmt: skip
        assert not any(item["optional"] for item in pod["secretAsEnv"])
    size = {task: (c["resources"]["resourceCpuRequest"], c["resources"]["resourceMemoryLimit"]) for task, c in containers.items()}
    assert size["train"] == size["train-2"] == ("12", "64Gi") and size["prepare"] == ("4", "16Gi") and size["evaluate"] == ("8", "32Gi")


@pytest.mark.parametrize("address", ["http://head:8265", "kubernetes://team-a"])
def test_a_task_that_follows_its_work_elsewhere_asks_for_little(address: str, tmp_path: Path) -> None:
    containers, pods = compiled(config.load(GPU), tmp_path, ray_address=address)
    for task in WORKING:
        assert "accelerator" not in containers[task]["resources"]
        assert containers[task]["resources"]["resourceCpuRequest"] == config.FOLLOWER.cpu
        assert set(pods[task]["nodeSelector"]["labels"]) == {"topology.kubernetes.io/zone"}, "a follower is not put on a spot node"
    assert containers["export"]["resources"]["resourceMemoryLimit"] == "8Gi"  # it does its work itself


def test_a_head_to_connect_to_leaves_the_driver_in_the_task(tmp_path: Path) -> None:
    containers, _ = compiled(config.load(GPU), tmp_path, ray_address="head:6379")
    assert containers["train"]["resources"]["resourceMemoryLimit"] == "64Gi" and "accelerator" not in containers["train"]["resources"]


def test_settings_that_a_task_cannot_have_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compiled(config.load(GPU), tmp_path)
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "queue, priority_class" in said and "kubernetes://" in said
    compiled(config.load(GPU), tmp_path, ray_address="kubernetes://team-a")
    assert capsys.readouterr().out == ""


def test_locally_none_of_it_applies(tmp_path: Path) -> None:
    compiler.Compiler().compile(dag.build(config.load(GPU), on_server=False), str(tmp_path / "local.yaml"))
    found = list(yaml.safe_load_all((tmp_path / "local.yaml").read_text()))
    assert len(found) == 1, "a platform's settings stand in a document of their own"
    for executor in found[0]["deploymentSpec"]["executors"].values():
        assert "resources" not in executor["container"] and "env" not in executor["container"]


def test_the_settings_travel_to_the_rooms_but_change_no_run_key(tmp_path: Path) -> None:
    plain, changed = config.load(GPU), config.load(GPU, ["scaling.kubernetes.spot=false", "scaling.kubernetes.namespace=other"])
    assert dag.default_run_key(plain) == dag.default_run_key(changed)
    scaling = json.loads(changed.scaling.canonical_json())["kubernetes"]
    assert scaling["namespace"] == "other" and scaling["env_from"][1]["name"] == "mlflow-login"
    assert "kubernetes" not in json.loads(config.load("demo").scaling.canonical_json())
