"""The rules that every manifest and every compiled pipeline keeps: functions from what is judged to lines that say what is wrong."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from pipeline import resources
from sr3_core.errors import BadInput
from tests.infra.manifests import Document, name_of, pods

NAMESPACE = "sr3"
CLUSTER_WIDE = ("Namespace", "ResourceFlavor", "ClusterQueue")
TOKEN_READERS = ("autoscaler",)  # the only containers that may hold a token of Kubernetes
_SECRET_NAME = re.compile(r"token|secret|password|passwd|access_?key|credential|private_?key", re.IGNORECASE)
_SECRET_TEXT = re.compile(r"-----BEGIN|AKIA[0-9A-Z]{12}|AIza[\w-]{30}|ghp_\w{30}|eyJ[\w-]{10,}\.|[a-z][a-z0-9+.-]*://[^/\s:@]+:[^/\s@$]+@")
_WORD = re.compile(r"[A-Za-z0-9+/_=-]{24,}")
_ENTROPY_BITS = 4.0  # a character; hexadecimal keys have 3.7 to 4, base64 5 to 6, names and paths in English below 3.9
Rule = Callable[[Document], Iterator[str]]


def is_pinned(image: str) -> bool:
    """Whether ``image`` ends in a digest, or in a tag that stays what it is: the rule of ``sr3 submit --images``."""
    folder, slash, last = image.rpartition("/")
    name, separator, rest = last.partition("@") if "@" in last else last.partition(":")
    try:
        resources.check_images(f"{folder}{slash}{{room}}{separator}{rest}")
    except BadInput:
        return False
    return bool(name)


def no_root(document: Document) -> Iterator[str]:
    for place, pod, container in containers(document):
        merged = {**pod.get("securityContext", {}), **container.get("securityContext", {})}
        if merged.get("runAsNonRoot") is not True or merged.get("runAsUser", 0) == 0:
            yield f"{place} may run as root"
        if merged.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{place} has no seccomp profile"


def no_privilege(document: Document) -> Iterator[str]:
    for place, pod in pods(document):
        yield from (f"{place} has {key}" for key in ("hostNetwork", "hostPID", "hostIPC") if pod.get(key))
    for place, _, container in containers(document):
        context = container.get("securityContext", {})
        if context.get("privileged") or context.get("allowPrivilegeEscalation") is not False:
            yield f"{place} may gain privileges"
        if context.get("capabilities") != {"drop": ["ALL"]}:
            yield f"{place} keeps capabilities"
        if context.get("readOnlyRootFilesystem") is not True:
            yield f"{place} writes to its image"
        if any("hostPort" in port for port in container.get("ports", [])):
            yield f"{place} takes a port of its node"


def no_host_path(document: Document) -> Iterator[str]:
    for place, pod in pods(document):
        yield from (f"{place} mounts the node's {v['hostPath']['path']}" for v in pod.get("volumes", []) if "hostPath" in v)


def images_pinned(document: Document) -> Iterator[str]:
    for place, _, container in containers(document):
        if not is_pinned(container.get("image", "")):
            yield f"{place} has image {container.get('image')!r}, which may be another tomorrow"


def limits_everywhere(document: Document) -> Iterator[str]:
    for place, _, container in containers(document):
        for kind in ("requests", "limits"):
            missing = {"cpu", "memory"} - set(container.get("resources", {}).get(kind, {}))
            if missing:
                yield f"{place} has no {kind} of {' and '.join(sorted(missing))}"
    for place, pod in pods(document):
        unbounded = [v["name"] for v in pod.get("volumes", []) if "emptyDir" in v and "sizeLimit" not in (v["emptyDir"] or {})]
        yield from (f"{place} has volume {name} without a sizeLimit" for name in unbounded)


def no_tokens(document: Document) -> Iterator[str]:
    if document["kind"] == "ServiceAccount" and document.get("automountServiceAccountToken") is not False:
        yield f"{name_of(document)} mounts its token everywhere"
    for place, pod in pods(document):
        if pod.get("automountServiceAccountToken") is not False:
            yield f"{place} mounts a token"
        tokens = {
            v["name"] for v in pod.get("volumes", []) for s in v.get("projected", {}).get("sources", []) if "serviceAccountToken" in s
        }
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            mounted = tokens & {mount["name"] for mount in container.get("volumeMounts", [])}
            if mounted and container["name"] not in TOKEN_READERS:
                yield f"{place}: {container['name']} mounts a token"


def no_secret_literals(document: Document) -> Iterator[str]:
    """Secrets stand in no file: no object of that kind, no value under a secret's name, nothing that looks like a key."""
    if document["kind"] == "Secret":
        yield f"{name_of(document)} is a Secret; it is made by a command and referred to by name"
    if document["kind"] == "ConfigMap":
        yield from (f"{name_of(document)} holds {key}" for key in document.get("data", {}) if _SECRET_NAME.search(key))
    for place, pod in pods(document):
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            for variable in container.get("env", []):
                if _SECRET_NAME.search(variable["name"]) and "value" in variable:
                    yield f"{place}: {variable['name']} has a value instead of a reference"
    yield from secret_texts(document, name_of(document))


def secret_texts(value: Any, place: str) -> Iterator[str]:
    """Places of text in ``value`` that is a secret by its look, or by the name it stands under. The text itself is never told."""
    if isinstance(value, dict):
        for key, item in value.items():
            if isinstance(item, str) and item and _SECRET_NAME.fullmatch(str(key)):
                yield f"{place}.{key} is the value of a secret"
            yield from secret_texts(item, f"{place}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from secret_texts(item, f"{place}[{index}]")
    elif isinstance(value, str) and (_SECRET_TEXT.search(value) or any(is_random(word) for word in _WORD.findall(value))):
        yield f"{place} holds what looks like a key"


def is_random(word: str) -> bool:
    """Whether a word of 24 characters or more is a key and no name: letters and digits mixed, many different ones, no dashes of a name."""
    if re.fullmatch(r"[0-9a-f]{64}", word):  # a sha256: of an image or a manifest
        return False
    mixed = bool(re.search(r"[0-9]", word)) and bool(re.search(r"[A-Za-z]", word))
    longest = max(map(len, re.split(r"[-_/=+]", word)))
    return mixed and longest >= 20 and entropy(word) >= min(_ENTROPY_BITS, math.log2(16) * 0.85)


def entropy(word: str) -> float:
    """Bits a character, by how often each occurs in ``word``."""
    counts = Counter(word).values()
    return -sum(count / len(word) * math.log2(count / len(word)) for count in counts)


def nothing_exposed(document: Document) -> Iterator[str]:
    if document["kind"] == "Ingress" or document.get("spec", {}).get("type") in ("LoadBalancer", "NodePort"):
        yield f"{name_of(document)} is open to the outside"
    for group in _found(document, "headGroupSpec"):
        if group.get("enableIngress") or group.get("serviceType", "ClusterIP") != "ClusterIP":
            yield f"{name_of(document)}: the head is open to the outside"


def rights_are_narrow(document: Document) -> Iterator[str]:
    if document["kind"] in ("ClusterRole", "ClusterRoleBinding"):
        yield f"{name_of(document)} reaches beyond the namespace"
    for rule in document.get("rules", []) or [] if document["kind"] in ("Role", "ClusterRole") else []:
        if "*" in [*rule["verbs"], *rule["resources"], *rule["apiGroups"]]:
            yield f"{name_of(document)} has a rule with *"
        if "secrets" in rule["resources"]:
            yield f"{name_of(document)} reads secrets"


def in_the_namespace(document: Document) -> Iterator[str]:
    if document["kind"] not in CLUSTER_WIDE and document["metadata"].get("namespace") != NAMESPACE:
        yield f"{name_of(document)} is not in namespace {NAMESPACE}"


def pods_are_restricted(document: Document) -> Iterator[str]:
    labels = document["metadata"].get("labels", {})
    if document["kind"] == "Namespace" and labels.get("pod-security.kubernetes.io/enforce") != "restricted":
        yield f"{name_of(document)} takes pods of any kind"


RULES: tuple[Rule, ...] = (
    no_root, no_privilege, no_host_path, images_pinned, limits_everywhere, no_tokens, no_secret_literals, nothing_exposed,
    rights_are_narrow, in_the_namespace, pods_are_restricted,
)  # fmt: skip


def containers(document: Document) -> Iterator[tuple[str, Document, Document]]:
    """(place, pod spec, container) of every container and init container."""
    for place, pod in pods(document):
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            yield f"{place}: {container['name']}", pod, container


def pipeline_faults(spec: Document, platform: Document) -> Iterator[str]:
    """What a compiled pipeline has against the rules: moving images, tasks without limits, secrets as values, the node's files."""
    for name, executor in spec["deploymentSpec"]["executors"].items():
        container = executor["container"]
        if not is_pinned(container["image"]):
            yield f"{name} has image {container['image']!r}, which may be another tomorrow"
        asked = container.get("resources", {})
        for key in ("resourceCpuRequest", "resourceCpuLimit", "resourceMemoryRequest", "resourceMemoryLimit"):
            if not asked.get(key):
                yield f"{name} has no {key}"
        for variable in container.get("env", []):
            if _SECRET_NAME.search(variable["name"]):
                yield f"{name}: {variable['name']} has a value instead of a reference"
        yield from secret_texts(container.get("env", []), f"{name}.env")
    yield from (f"{place}" for place in secret_texts(_constants(spec), "parameters"))
    settings = platform.get("platforms", {}).get("kubernetes", {}).get("deploymentSpec", {}).get("executors", {})
    yield from (f"{name} may run as root" for name in spec["deploymentSpec"]["executors"] if not _as_nobody(settings.get(name, {})))
    for name, pod in settings.items():
        yield from (f"{name} mounts the node's files" for key in pod if "hostPath" in key)
        if pod.get("securityContext", {}).get("privileged"):
            yield f"{name} is privileged"


def _as_nobody(pod: Document) -> bool:
    return pod.get("securityContext", {}).get("runAsNonRoot") is True


def _constants(value: Any) -> list[str]:
    """Every constant that the pipeline hands to a task."""
    return [str(found) for item in _found(value, "runtimeValue") for found in [item.get("constant", "")]]


def _found(value: Any, key: str) -> list[Any]:
    if isinstance(value, list):
        return [found for item in value for found in _found(item, key)]
    if not isinstance(value, dict):
        return []
    own = [value[key]] if isinstance(value.get(key), dict) else []
    return own + [found for item in value.values() for found in _found(item, key)]
