"""What the tests of infra/k8s share: the trees as kubectl renders them, and every pod that stands in a document."""

import functools
import os
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.conftest import REPOSITORY

K8S = REPOSITORY / "infra" / "k8s"
OVERLAYS = ("overlays/local", "overlays/gke")
RUNS = ("runs/local", "runs/gke", "runs/gke-kueue")
TREES = (*OVERLAYS, *RUNS)
Document = dict[str, Any]


def render(tree: str) -> list[Document]:
    """The objects of ``infra/k8s/<tree>``, as ``kubectl kustomize`` makes them; fails in one line where there is no kubectl."""
    return list(_rendered(tree))


def parse(text: str) -> list[Document]:
    """The documents of ``text``, by the parser of libyaml where there is one: ten times as fast."""
    return list(yaml.load_all(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


@functools.cache
def _rendered(tree: str) -> tuple[Document, ...]:
    if shutil.which("kubectl") is None:
        if "no-kubernetes" in os.environ.get("E2E", "").split(","):
            pytest.skip("not tested without kubectl: the manifests under infra/k8s")
        pytest.fail(
            "kubectl is missing: install 1.27 or newer (https://kubernetes.io/docs/tasks/tools), or set E2E=no-kubernetes", pytrace=False
        )
    done = subprocess.run(["kubectl", "kustomize", str(K8S / tree)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return tuple(parse(done.stdout))


def name_of(document: Document) -> str:
    return f"{document['kind']}/{document['metadata']['name']}"


def one(documents: list[Document], kind: str, name: str) -> Document:
    """The only ``kind`` of that ``name``."""
    (found,) = [document for document in documents if name_of(document) == f"{kind}/{name}"]
    return found


def pods(document: Document) -> Iterator[tuple[str, Document]]:
    """(place, pod spec) of every pod in ``document``, of a RayCluster's groups as of a Deployment. The container that KubeRay adds for
    the autoscaler is part of the head's pod."""
    yield from _pods(document, name_of(document))


def _pods(value: Any, place: str) -> Iterator[tuple[str, Document]]:
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _pods(item, f"{place}[{index}]")
    if not isinstance(value, dict):
        return
    if isinstance(value.get("containers"), list):
        yield place, value
        return
    for key, item in value.items():
        found = list(_pods(item, f"{place}.{key}"))
        if key == "headGroupSpec" and value.get("enableInTreeAutoscaling"):
            found = [(at, _with_autoscaler(pod, value.get("autoscalerOptions", {}))) for at, pod in found]
        yield from found


def _with_autoscaler(pod: Document, options: Document) -> Document:
    taken = ("resources", "securityContext", "volumeMounts", "env")
    container = {"name": "autoscaler", "image": pod["containers"][0]["image"], **{key: options[key] for key in taken if key in options}}
    return {**pod, "containers": [*pod["containers"], container]}
