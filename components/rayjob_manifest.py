"""The Ray cluster that a run brings with it, as a KubeRay RayJob (ray.io/v1): a plain mapping, made of the recipe's scaling section."""

import shlex
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from sr3_core import config
from sr3_core.config import Scaling

GROUP, VERSION, PLURAL = "ray.io", "v1", "rayjobs"
FINGERPRINT_LABEL = "sr3.fingerprint"  # of what is being made: a retried room finds its attempts by it
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
TTL_SECONDS = 300  # the follower removes the RayJob; where it has gone, KubeRay removes the cluster after this
_SUBMITTER_RETRIES = 2  # of the pod that submits and prints the log: it goes on with a job that is there
_SUBMITTER = config.Room(cpu="500m", memory="1Gi")
_RAYLET = ("52365", "local_raylet_healthz")  # Ray's own health pages: the agent's port on each node, the dashboard's on the head
_GCS = ("8265", "gcs_healthz")


def manifest(
    name: str,
    *,
    namespace: str,
    module: str,
    arguments: Sequence[str],
    fingerprint: str,
    image: str,
    scaling: Scaling,
    variables: dict[str, str],
    owner: tuple[str, str] | None,
) -> dict[str, Any]:
    """The RayJob ``name`` that runs ``python -m module arguments`` on ``scaling.workers`` worker pods of ``image`` and a head beside them.

    ``variables`` are set in every pod; secrets come by their names alone (``scaling.kubernetes.env_from``). ``owner`` is name and uid of
    the pod in the same namespace whose end ends the cluster. A second try is the caller's (``backoffLimit`` 0), since it finds its
    checkpoints. With a queue the job begins suspended, and Kueue starts all its pods or none.
    """
    settings, room = scaling.kubernetes, module.rpartition(".")[2]
    gpu = scaling.accelerator == "gpu" and room in ("train", "evaluate")
    worker_cpu, worker_memory = settings.size(room)
    resources = {"cpu": worker_cpu, "memory": worker_memory, **({settings.accelerator_resource: "1"} if gpu else {})}
    head = {"cpu": str(config.HEAD.cpu), "memory": str(config.HEAD.memory)}
    submitter = {"cpu": str(_SUBMITTER.cpu), "memory": str(_SUBMITTER.memory)}

    def pod(container: str, resources: dict[str, str], *, works: bool, probes: dict[str, Any]) -> dict[str, Any]:
        return _pod(
            container, resources, image=image, settings=settings, variables=variables, gpu=gpu and works, works=works, probes=probes
        )

    labels = {FINGERPRINT_LABEL: fingerprint, "app.kubernetes.io/part-of": "sr3", "app.kubernetes.io/component": room}
    spec: dict[str, Any] = {
        "entrypoint": shlex.join(["python", "-m", module, *arguments]),
        "submissionMode": "K8sJobMode",
        "submitterConfig": {"backoffLimit": _SUBMITTER_RETRIES},
        "submitterPodTemplate": {"spec": {"restartPolicy": "Never", **pod("ray-job-submitter", submitter, works=False, probes={})}},
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": TTL_SECONDS,
        "backoffLimit": 0,
        "rayClusterSpec": {
            "rayVersion": metadata.version("ray"),
            "headGroupSpec": {
                "rayStartParams": {"dashboard-host": "0.0.0.0", "num-cpus": "0"},  # noqa: S104 - in a pod, beside its network policy
                "template": {"spec": pod("ray-head", head, works=False, probes=_probes(_RAYLET, _GCS))},
            },
            "workerGroupSpecs": [
                {
                    "groupName": "workers",
                    "replicas": scaling.workers,
                    "minReplicas": scaling.workers,
                    "maxReplicas": scaling.workers,
                    "rayStartParams": {},
                    "template": {"spec": pod("ray-worker", resources, works=True, probes=_probes(_RAYLET))},
                }
            ],
        },
    }
    if settings.timeout_seconds is not None:
        spec["activeDeadlineSeconds"] = settings.timeout_seconds
    if settings.queue is not None:
        labels[QUEUE_LABEL] = settings.queue
        spec["suspend"] = True
    meta: dict[str, Any] = {"name": name, "namespace": namespace, "labels": labels}
    if owner is not None:
        meta["ownerReferences"] = [{"apiVersion": "v1", "kind": "Pod", "name": owner[0], "uid": owner[1]}]
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": "RayJob", "metadata": meta, "spec": spec}


def _pod(
    container: str,
    resources: dict[str, str],
    *,
    image: str,
    settings: config.Kubernetes,
    variables: dict[str, str],
    gpu: bool,
    works: bool,
    probes: dict[str, Any],
) -> dict[str, Any]:
    """A pod's spec under the restricted pod security standard: no root, no privilege, nothing written but to /tmp."""
    plain = [{"name": name, "value": value} for name, value in {"HOME": "/tmp", **variables}.items()]  # noqa: S108 - an emptyDir
    named = [{"name": v.variable, "valueFrom": {"secretKeyRef": {"name": v.name, "key": v.key}}} for v in settings.env_from]
    spec: dict[str, Any] = {
        "automountServiceAccountToken": False,  # the work needs no right in the cluster; workload identity does not use this token
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},  # the image names its user by number
        "containers": [
            {
                "name": container,
                "image": image,
                "imagePullPolicy": settings.image_pull_policy,
                "env": [*plain, *named],
                "resources": {"requests": dict(resources), "limits": dict(resources)},
                "securityContext": {
                    "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108
                **probes,
            }
        ],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    }  # fmt: skip
    tolerations = [_toleration(taint) for taint in settings.tolerated(works=works)]
    chosen = {
        "serviceAccountName": settings.service_account,
        "priorityClassName": settings.priority_class,
        "nodeSelector": settings.selector(gpu=gpu, works=works),
        "tolerations": tolerations,
    }
    return {**spec, **{name: value for name, value in chosen.items() if value}}


def _toleration(taint: config.Toleration) -> dict[str, Any]:
    values = {
        "key": taint.key, "operator": taint.operator, "value": taint.value or None, "effect": taint.effect,
        "tolerationSeconds": taint.seconds,
    }  # fmt: skip
    return {name: value for name, value in values.items() if value is not None}


def _probes(*pages: tuple[str, str]) -> dict[str, Any]:
    """Readiness and liveness by Ray's health pages, asked with Python: KubeRay's own probes want wget, which the images do not have."""
    asks = "".join(f"assert b'success' in u.urlopen('http://localhost:{port}/api/{page}', timeout=4).read();" for port, page in pages)
    asked = {"exec": {"command": ["python", "-c", f"import urllib.request as u;{asks}"]}, "timeoutSeconds": 10, "periodSeconds": 10}
    return {
        "readinessProbe": {**asked, "initialDelaySeconds": 5, "failureThreshold": 10},
        "livenessProbe": {**asked, "initialDelaySeconds": 30, "failureThreshold": 60},
    }
