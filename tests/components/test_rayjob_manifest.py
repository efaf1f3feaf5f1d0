"""What the RayJob of a run is made of: the rules of security, the shell that KubeRay hands it to, a number of workers that may change."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from components.rayjob_manifest import manifest
from sr3_core import config
from tests import published
from tests.conftest import RECIPES
from tests.infra import policy

GPU = config.load(str(RECIPES / "gpu.yaml")).scaling
ELASTIC = config.Scaling(workers=4, min_workers=2, accelerator="gpu")
CACHED = config.Scaling(shard_cache="/tmp/cache", shard_cache_bytes=2**30)


def made(scaling: config.Scaling, *, room: str = "train", arguments: tuple[str, ...] = ()) -> dict[str, Any]:
    return manifest(
        "sr3-0123456789abcdef-0", namespace=policy.NAMESPACE, module=f"components.{room}", arguments=arguments,
        fingerprint="0123456789abcdef", image="registry.example/sr3-train:0123abc", scaling=scaling, variables={}, owner=None,
    )  # fmt: skip


@pytest.mark.parametrize("rule", policy.RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("scaling", [config.Scaling(), GPU, ELASTIC], ids=["cpu", "gpu", "elastic"])
def test_it_keeps_every_rule_of_the_manifests(scaling: config.Scaling, rule: policy.Rule) -> None:
    found = list(rule(made(scaling)))
    assert not found, "\n".join(found)


def kubernetes_expands(text: str, environment: dict[str, str]) -> str:
    """A container's argument as the kubelet makes it: $(NAME) is a variable where there is one, $$ is $."""
    expanded, rest = "", text
    while rest:
        before, dollar, rest = rest.partition("$")
        expanded += before
        name, closed, after = rest[1:].partition(")")
        if rest.startswith("$"):
            expanded, rest = expanded + "$", rest[1:]
        elif rest.startswith("(") and closed and name in environment:
            expanded, rest = expanded + environment[name], after
        else:
            expanded += dollar
    return expanded


@pytest.mark.parametrize("value", ["$(MLFLOW_TRACKING_PASSWORD)", "$$(HOME) $HOME", "a $ b", 'it\'s \\ "quoted" `ls`'])
def test_an_argument_comes_through_kubernetes_and_the_shell_as_it_is(value: str) -> None:
    entrypoint = made(config.Scaling(), arguments=(f"--section={value}",))["spec"]["entrypoint"]
    seen = kubernetes_expands(entrypoint, {"MLFLOW_TRACKING_PASSWORD": "canary", "HOME": "/tmp"})
    shown = seen.replace("python -m components.train", f"{sys.executable} -c 'import sys; print(sys.argv[1])'")
    assert subprocess.run(["bash", "-c", shown], capture_output=True, text=True, check=True).stdout == f"--section={value}\n"


def test_training_may_begin_with_the_fewest_workers(schemas: Path) -> None:
    job = made(ELASTIC)
    published.kuberay(schemas, "rayjobs").validate(job)
    cluster = job["spec"]["rayClusterSpec"]
    (group,) = cluster["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (2, 2, 4)
    assert cluster["enableInTreeAutoscaling"] is True
    pod, token = cluster["headGroupSpec"]["template"]["spec"], "kubernetes"
    assert token in {volume["name"] for volume in pod["volumes"]}
    assert token in {mount["name"] for mount in cluster["autoscalerOptions"]["volumeMounts"]}
    assert token not in {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}, "the room's driver holds a token"


@pytest.mark.parametrize(
    ("scaling", "room"),
    [
        (config.Scaling(workers=4), "train"),
        (ELASTIC, "prepare"),  # it has nothing that goes on with fewer
        (ELASTIC.model_copy(update={"kubernetes": config.Kubernetes(queue="team")}), "train"),  # Kueue counts the workers once
    ],
    ids=["fixed", "prepare", "queue"],
)
def test_otherwise_the_number_of_workers_is_fixed(scaling: config.Scaling, room: str) -> None:
    cluster = made(scaling, room=room)["spec"]["rayClusterSpec"]
    (group,) = cluster["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (4, 4, 4)
    assert "enableInTreeAutoscaling" not in cluster and "autoscalerOptions" not in cluster


def test_the_cache_of_shards_fits_into_the_workers_tmp() -> None:
    def tmp(scaling: config.Scaling) -> int:
        (group,) = made(scaling)["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        (volume,) = group["template"]["spec"]["volumes"]
        return int(volume["emptyDir"]["sizeLimit"])

    assert tmp(CACHED) - tmp(config.Scaling()) == CACHED.shard_cache_bytes


def test_no_pod_is_moved_to_empty_its_node_and_workers_end_within_a_spot_nodes_notice() -> None:
    spec = made(GPU)["spec"]
    (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    templates = [spec["submitterPodTemplate"], spec["rayClusterSpec"]["headGroupSpec"]["template"], group["template"]]
    assert [t["metadata"]["annotations"]["cluster-autoscaler.kubernetes.io/safe-to-evict"] for t in templates] == ["false"] * 3
    assert group["template"]["spec"]["terminationGracePeriodSeconds"] < 30


def test_no_work_is_placed_on_the_head() -> None:
    start = made(GPU)["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]
    assert (start["num-cpus"], start["num-gpus"]) == ("0", "0"), "Ray would count the GPUs that it sees"
