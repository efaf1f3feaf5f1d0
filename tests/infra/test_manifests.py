"""infra/k8s: every tree renders, every object is one that Kubernetes and KubeRay know, and what must hold together does."""

import copy
import re
from importlib import metadata
from pathlib import Path

import kubernetes_validate
import pytest

from tests import published
from tests.infra.manifests import OVERLAYS, RUNS, TREES, Document, name_of, one, pods, render

NOT_BUILT_IN = ("ray.io/", "kueue.x-k8s.io/", "monitoring.coreos.com/")
VERSIONS = ("1.32", "1.37")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("tree", ["runs/local", "runs/gke-kueue"])  # all that the overlays have, and the jobs
def test_every_object_is_one_that_kubernetes_knows(tree: str, version: str) -> None:
    documents = render(tree)
    assert len(documents) > 20
    assert len({name_of(document) for document in documents}) == len(documents), "two objects of one name"
    checked = 0
    for document in documents:
        if not document["apiVersion"].startswith(NOT_BUILT_IN):
            kubernetes_validate.validate(document, version, strict=True)
            checked += 1
        for place, pod in pods(document):  # those of a RayCluster too, which its own schema reads less strictly
            whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": pod}
            try:
                kubernetes_validate.validate(whole, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                pytest.fail(f"{place}: {error.message}")
    assert checked > 15


def test_an_unknown_field_is_refused() -> None:
    deployment = copy.deepcopy(one(render("overlays/local"), "Deployment", "sr3-mlflow"))
    deployment["spec"]["template"]["spec"]["containers"][0]["resource"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, VERSIONS[0], strict=True)


@pytest.mark.parametrize("tree", TREES)
def test_ray_resources_fit_the_published_schemas(tree: str, schemas: Path) -> None:
    kinds = [document for document in render(tree) if document["apiVersion"] == "ray.io/v1"]
    assert {document["kind"] for document in kinds} == ({"RayCluster", "RayJob"} if tree in RUNS else {"RayCluster"})
    for document in kinds:
        assert not list(faults(document, schemas)), name_of(document)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"enableAutoscaling": True}, "Additional properties are not allowed ('enableAutoscaling' was unexpected)"),
        ({"rayVersion": 2.6}, "2.6 is not of type 'string'"),
        ({"autoscalerOptions": {"version": "v3"}}, "'v3' is not one of ['v1', 'v2']"),
        ({"headGroupSpec": {}}, "'template' is a required property"),
    ],
)
def test_a_wrong_ray_cluster_is_refused(change: Document, told: str, schemas: Path) -> None:
    cluster = one(render("overlays/local"), "RayCluster", "sr3")
    assert told in list(faults({**cluster, "spec": {**cluster["spec"], **change}}, schemas))


def faults(document: Document, schemas: Path) -> list[str]:
    """What the published schema of the document's kind has against it, unknown fields included."""
    return [error.message for error in published.kuberay(schemas, f"{document['kind'].lower()}s").iter_errors(document)]


@pytest.mark.parametrize("tree", TREES)
def test_what_is_named_is_there(tree: str) -> None:
    """Accounts, volumes, ConfigMaps and ports that a pod names exist in the same tree; secrets are the four of the README."""
    documents = render(tree)
    names = {name_of(document) for document in documents}
    for document in documents:
        for place, pod in pods(document):
            if "serviceAccountName" in pod:
                assert f"ServiceAccount/{pod['serviceAccountName']}" in names, place
            claims = {claim["metadata"]["name"] for claim in document["spec"].get("volumeClaimTemplates", [])}
            volumes = {volume["name"] for volume in pod.get("volumes", [])} | claims
            for container in [*pod["containers"], *pod.get("initContainers", [])]:
                assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes, place
                for variable in container.get("env", []):
                    source = variable.get("valueFrom", {})
                    if "configMapKeyRef" in source:
                        settings = one(documents, "ConfigMap", source["configMapKeyRef"]["name"])
                        assert source["configMapKeyRef"]["key"] in settings["data"], place
                    if "secretKeyRef" in source:
                        assert source["secretKeyRef"]["name"] in ("sr3-mlflow-client", "sr3-mlflow-server", "sr3-postgres"), place
    for service in (document for document in documents if document["kind"] == "Service"):
        backs = [
            pod
            for document in documents
            if document["kind"] in ("Deployment", "StatefulSet")
            and service["spec"]["selector"].items() <= document["spec"]["template"]["metadata"]["labels"].items()
            for _, pod in pods(document)
        ]
        (pod,) = backs
        ports = {port["name"] for container in pod["containers"] for port in container["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


@pytest.mark.parametrize("tree", OVERLAYS)
def test_the_cluster_sleeps_grows_and_shrinks(tree: str) -> None:
    spec = one(render(tree), "RayCluster", "sr3")["spec"]
    assert spec["suspend"] is True
    assert spec["rayVersion"] == metadata.version("ray")
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert 60 <= spec["autoscalerOptions"]["idleTimeoutSeconds"] <= 900
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] == group["replicas"] == 0 < group["maxReplicas"]
        variables = {item["name"]: item.get("value") for item in group["template"]["spec"]["containers"][0]["env"]}
        assert variables["RAY_AUTH_MODE"] == "disabled"


def test_spot_workers_go_to_spot_nodes_and_the_head_never() -> None:
    spec = one(render("overlays/gke"), "RayCluster", "sr3")["spec"]
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    pod = groups["gpu-spot"]["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"} in pod["tolerations"]
    assert pod["terminationGracePeriodSeconds"] < 30
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    for other in (groups["cpu"]["template"]["spec"], spec["headGroupSpec"]["template"]["spec"]):
        assert "nodeSelector" not in other
        assert "tolerations" not in other


@pytest.mark.parametrize("tree", RUNS)
def test_a_job_brings_the_overlays_cluster_and_takes_it_away(tree: str) -> None:
    documents = render(tree)
    job, cluster = one(documents, "RayJob", "sr3-run")["spec"], one(documents, "RayCluster", "sr3")["spec"]
    assert job["shutdownAfterJobFinishes"] is True
    assert 0 < job["ttlSecondsAfterFinished"] <= 3600 < job["activeDeadlineSeconds"]
    assert "suspend" not in job["rayClusterSpec"]
    assert job["rayClusterSpec"]["headGroupSpec"] == cluster["headGroupSpec"]
    if tree != "runs/gke-kueue":
        assert {**job["rayClusterSpec"], "suspend": True} == cluster


def test_a_queued_job_waits_for_kueue_with_a_fixed_number_of_workers() -> None:
    documents = render("runs/gke-kueue")
    job = one(documents, "RayJob", "sr3-run")
    queue = one(documents, "LocalQueue", job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"])
    assert job["spec"]["suspend"] is True
    assert job["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] is False
    quota = one(documents, "ResourceQuota", "sr3")["spec"]["hard"]
    (group,) = one(documents, "ClusterQueue", queue["spec"]["clusterQueue"])["spec"]["resourceGroups"]
    nominal = {resource["name"]: resource["nominalQuota"] for resource in group["flavors"][0]["resources"]}
    assert int(nominal["cpu"]) < int(quota["requests.cpu"])
    assert nominal["nvidia.com/gpu"] == quota["requests.nvidia.com/gpu"]


def test_workload_identity_comes_from_the_settings() -> None:
    documents = render("overlays/gke")
    settings = one(documents, "ConfigMap", "sr3-settings")["data"]
    for account, setting in (("sr3-ray-head", "rooms"), ("sr3-ray-worker", "rooms"), ("sr3-mlflow", "mlflow")):
        annotations = one(documents, "ServiceAccount", account)["metadata"]["annotations"]
        assert annotations == {"iam.gke.io/gcp-service-account": settings[f"{setting}-account"]}


@pytest.mark.parametrize("tree", OVERLAYS)
def test_the_network_is_closed_and_then_opened_for_what_works(tree: str) -> None:
    policies = {document["metadata"]["name"]: document["spec"] for document in render(tree) if document["kind"] == "NetworkPolicy"}
    assert policies["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    reaches = [
        (name, source)
        for name, spec in policies.items()
        for rule in spec.get("ingress", [])
        if 8265 in [port["port"] for port in rule.get("ports", [])]
        for source in rule["from"]
    ]
    assert {name for name, _ in reaches} == {"ray-dashboard"}
    assert all(source["podSelector"] for _, source in reaches), "a whole namespace reaches the dashboard"
    for name, spec in policies.items():
        for rule in spec.get("ingress", []):
            assert rule.get("from"), f"{name} lets in everyone"


def test_kfps_rooms_may_follow_jobs_and_nothing_else() -> None:
    documents = render("overlays/local")
    binding = one(documents, "RoleBinding", "sr3-ray-jobs")
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "pipeline-runner", "namespace": "kubeflow"}]
    rules = one(documents, "Role", binding["roleRef"]["name"])["rules"]
    verbs = {resource: set(rule["verbs"]) for rule in rules for resource in rule["resources"]}
    assert verbs == {"rayjobs": {"create", "get", "list", "watch", "patch", "delete"}, "pods": {"list"}, "pods/log": {"get"}}


def test_images_are_the_projects_own() -> None:
    for tree in OVERLAYS:
        images = {container["image"].rpartition("/")[2] for d in render(tree) for _, pod in pods(d) for container in pod["containers"]}
        assert {"sr3-train", "sr3-mlflow"} <= {re.split("[:@]", image)[0] for image in images}


def test_without_kubectl_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("E2E", raising=False)
    with pytest.raises(pytest.fail.Exception, match=r"kubectl is missing: install 1\.27 or newer"):
        render("base")
    for left_out in ("no-kubernetes", "no-containers,no-kubernetes"):
        monkeypatch.setenv("E2E", left_out)
        with pytest.raises(pytest.skip.Exception, match="not tested without kubectl"):
            render("base")
