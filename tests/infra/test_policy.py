"""The security rules: every manifest and every compiled pipeline keeps them, and each rule refuses what breaks it."""

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import submit
from sr3_core import config
from tests.conftest import RECIPES
from tests.infra import policy
from tests.infra.manifests import K8S, TREES, Document, name_of, parse, render

POD: Document = {
    "automountServiceAccountToken": False,
    "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
    "containers": [
        {
            "name": "room",
            "image": "registry.example/sr3-train@sha256:" + "ab" * 32,
            "env": [{"name": "MLFLOW_TRACKING_PASSWORD", "valueFrom": {"secretKeyRef": {"name": "sr3-mlflow-client", "key": "password"}}}],
            "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "1Gi"}},
            "securityContext": {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}},
        }
    ],
}


def deployment() -> Document:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "good", "namespace": "sr3"},
        "spec": {"template": {"spec": copy.deepcopy(POD)}},
    }


def job() -> Document:
    """A RayJob whose head has an autoscaler."""
    group = {"template": {"spec": copy.deepcopy(POD)}}
    options = {key: copy.deepcopy(POD["containers"][0][key]) for key in ("resources", "securityContext")}
    cluster = {"enableInTreeAutoscaling": True, "autoscalerOptions": options, "headGroupSpec": group, "workerGroupSpecs": []}
    meta = {"name": "good", "namespace": "sr3"}
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": meta, "spec": {"rayClusterSpec": cluster}}


def plain(kind: str, **values: Any) -> Document:
    return {"kind": kind, "metadata": {"name": "bad", "namespace": "sr3"}, **values}


@pytest.mark.parametrize("rule", policy.RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("tree", TREES)
def test_every_manifest_keeps_every_rule(tree: str, rule: policy.Rule) -> None:
    found = [line for document in render(tree) for line in rule(document)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("make", [deployment, job])
def test_what_is_good_is_taken(make: Callable[[], Document]) -> None:
    assert not [line for rule in policy.RULES for line in rule(make())]


def _set(*path: Any, value: Any) -> Callable[[], Document]:
    """A deployment with ``value`` at ``path`` of its pod."""

    def make() -> Document:
        document = deployment()
        *above, last = path
        functools.reduce(lambda inner, key: inner[key], above, document["spec"]["template"]["spec"])[last] = value
        return document

    return make


def _job(*path: Any, value: Any) -> Callable[[], Document]:
    def make() -> Document:
        document = job()
        *above, last = path
        functools.reduce(lambda inner, key: inner[key], above, document["spec"]["rayClusterSpec"])[last] = value
        return document

    return make


C = ("containers", 0)
TOKEN = {"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}
BAD: tuple[tuple[policy.Rule, Callable[[], Document]], ...] = (
    (policy.no_root, _set("securityContext", "runAsNonRoot", value=False)),
    (policy.no_root, _set("securityContext", "runAsUser", value=0)),
    (policy.no_root, _set(*C, "securityContext", "runAsUser", value=0)),
    (policy.no_root, _set("securityContext", value={})),
    (policy.no_root, _set("securityContext", "seccompProfile", value={"type": "Unconfined"})),
    (policy.no_privilege, _set(*C, "securityContext", "privileged", value=True)),
    (policy.no_privilege, _set(*C, "securityContext", "allowPrivilegeEscalation", value=True)),
    (policy.no_privilege, _set(*C, "securityContext", "capabilities", value={"drop": ["ALL"], "add": ["SYS_ADMIN"]})),
    (policy.no_privilege, _set(*C, "securityContext", "readOnlyRootFilesystem", value=False)),
    (policy.no_privilege, _set(*C, "ports", value=[{"containerPort": 80, "hostPort": 80}])),
    (policy.no_privilege, _set("hostNetwork", value=True)),
    (policy.no_privilege, _job("autoscalerOptions", "securityContext", value={})),
    (policy.no_host_path, _set("volumes", value=[{"name": "v", "hostPath": {"path": "/"}}])),
    (policy.images_pinned, _set(*C, "image", value="sr3-train:latest")),
    (policy.images_pinned, _set(*C, "image", value="sr3-train")),
    (policy.images_pinned, _set(*C, "image", value="registry.example:5000/sr3-train")),
    (policy.images_pinned, _set(*C, "image", value="sr3-train:main")),
    (policy.images_pinned, _set("initContainers", value=[{**POD["containers"][0], "image": "busybox"}])),
    (policy.limits_everywhere, _set(*C, "resources", value={"requests": {"cpu": "1", "memory": "1Gi"}})),
    (policy.limits_everywhere, _set(*C, "resources", "limits", value={"memory": "1Gi"})),
    (policy.limits_everywhere, _set("volumes", value=[{"name": "v", "emptyDir": {}}])),
    (policy.limits_everywhere, _job("autoscalerOptions", "resources", value={})),
    (policy.no_tokens, _set("automountServiceAccountToken", value=True)),
    (policy.no_tokens, lambda: plain("ServiceAccount")),
    (
        policy.no_tokens,
        lambda: _set("volumes", value=[TOKEN])() | {"spec": {"template": {"spec": {**POD, "volumes": [TOKEN], "containers": [
            {**POD["containers"][0], "volumeMounts": [{"name": "t", "mountPath": "/t"}]}]}}}},
    ),
    (policy.no_secret_literals, lambda: plain("Secret", data={})),
    (policy.no_secret_literals, _set(*C, "env", value=[{"name": "DB_PASSWORD", "value": "x"}])),
    (policy.no_secret_literals, _set(*C, "args", value=["--store=postgresql://mlflow:hunter2@db/mlflow"])),
    (policy.no_secret_literals, _set(*C, "env", value=[{"name": "KEY", "value": "9f86d081884c7d659a2feaa0c55ad015"}])),
    (policy.no_secret_literals, lambda: plain("ConfigMap", data={"password": "x"})),
    (policy.no_secret_literals, lambda: plain("ConfigMap", data={"db-password.txt": "x"})),
    (policy.no_secret_literals, lambda: plain("ConfigMap", data={"a": "ya29Zq8RtWm3LxKd71PvBn64HsJu"})),
    (policy.no_secret_literals, lambda: plain("ConfigMap", data={"a": "-----BEGIN PRIVATE KEY-----"})),
    (policy.nothing_exposed, lambda: plain("Service", spec={"type": "LoadBalancer"})),
    (policy.nothing_exposed, lambda: plain("Ingress", spec={})),
    (policy.nothing_exposed, _job("headGroupSpec", "serviceType", value="NodePort")),
    (policy.rights_are_narrow, lambda: plain("ClusterRoleBinding")),
    (policy.rights_are_narrow, lambda: plain("Role", rules=[{"apiGroups": [""], "resources": ["*"], "verbs": ["get"]}])),
    (policy.rights_are_narrow, lambda: plain("Role", rules=[{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}])),
    (policy.in_the_namespace, lambda: {"kind": "Service", "metadata": {"name": "bad"}}),
    (policy.pods_are_restricted, lambda: {"kind": "Namespace", "metadata": {"name": "sr3", "labels": {}}}),
)  # fmt: skip


@pytest.mark.parametrize(("rule", "make"), BAD, ids=[f"{rule.__name__}-{index}" for index, (rule, _) in enumerate(BAD)])
def test_each_rule_refuses_what_breaks_it(rule: policy.Rule, make: Callable[[], Document]) -> None:
    found = list(rule(make()))
    assert found
    assert all("hunter2" not in line and "9f86d08" not in line for line in found), "a secret is told in the message"


def test_no_rule_is_without_a_bad_manifest() -> None:
    assert {rule for rule, _ in BAD} == set(policy.RULES)


PIPELINES = [*config.recipe_names(), *map(str, (RECIPES / "gpu.yaml", RECIPES / "tiny.yaml", *sorted((K8S / "recipes").glob("*.yaml"))))]


@pytest.mark.parametrize("recipe", PIPELINES, ids=lambda recipe: Path(recipe).stem)
def test_every_compiled_pipeline_keeps_the_rules(recipe: str, tmp_path: Path) -> None:
    found = list(policy.pipeline_faults(*_compiled(recipe, tmp_path)))
    assert not found, "\n".join(found)


def _compiled(recipe: str, folder: Path) -> tuple[Document, Document]:
    submit.compile_to(config.load(recipe), folder / "pipeline.yaml", images="registry.example/sr3-{room}@sha256:" + "ab" * 32)
    spec, platform = [*parse((folder / "pipeline.yaml").read_text()), {}][:2]
    return spec, platform


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (("image",), "sr3-train:latest", "exec-train has image 'sr3-train:latest', which may be another tomorrow"),
        (("resources",), {}, "exec-train has no resourceMemoryLimit"),
        (("env",), [{"name": "API_TOKEN", "value": "x"}], "exec-train: API_TOKEN has a value instead of a reference"),
        (("env",), [{"name": "A", "value": "s3://user:hunter2@host/x"}], "exec-train.env[0].value holds what looks like a key"),
    ],
)
def test_a_bad_pipeline_is_refused(path: tuple[str, ...], value: Any, told: str, tmp_path: Path) -> None:
    spec, platform = _compiled(str(RECIPES / "tiny.yaml"), tmp_path)
    container = spec["deploymentSpec"]["executors"]["exec-train"]["container"]
    container[path[0]] = value
    assert told in list(policy.pipeline_faults(spec, platform))


def test_a_task_that_may_be_root_is_refused(tmp_path: Path) -> None:
    spec, platform = _compiled(str(RECIPES / "tiny.yaml"), tmp_path)
    for pod in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
        pod["securityContext"].pop("runAsNonRoot")
    assert "exec-train may run as root" in list(policy.pipeline_faults(spec, platform))


def test_a_secret_among_a_pipelines_constants_is_found(tmp_path: Path) -> None:
    spec, platform = _compiled(str(RECIPES / "tiny.yaml"), tmp_path)
    tasks = spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    tasks["train"]["inputs"]["parameters"]["section"] = {"runtimeValue": {"constant": '{"key": "ghp_' + "a1B2" * 9 + '"}'}}
    assert list(policy.pipeline_faults(spec, platform))


@pytest.mark.parametrize(
    "image", ["sr3-train:0.1.0", "europe-west4-docker.pkg.dev/p/sr3/sr3-train:1f2e3d4", "a/b@sha256:" + "0" * 64, "h:5000/a:1"]
)
def test_fixed_images_are_taken(image: str) -> None:
    assert policy.is_pinned(image)


def test_names_are_no_keys() -> None:
    for word in ("sr3-mlflow.sr3.svc.cluster.local", "cloud.google.com/gke-accelerator", "iam.gke.io/gcp-service-account", "c" * 64,
                 "MLFLOW_FLASK_SERVER_SECRET_KEY", "europe-west4-docker.pkg.dev/my-project/sr3/sr3-train"):  # fmt: skip
        assert not list(policy.secret_texts(word, "x")), word


def test_a_tree_has_pods_to_judge() -> None:
    """A rule that finds no pod would find no fault either."""
    judged = {name_of(document) for tree in TREES for document in render(tree) for _ in policy.containers(document)}
    assert {"RayCluster/sr3", "RayJob/sr3-run", "Deployment/sr3-mlflow", "StatefulSet/sr3-postgres", "StatefulSet/sr3-bucket"} <= judged
