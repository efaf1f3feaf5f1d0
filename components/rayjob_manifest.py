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
ALONE_SECONDS = 1800  # a job whose follower was killed before it could remove it ends then: each look of a follower puts that off
PLACE_SECONDS = 1800  # for all pods to find a place and to start: meanwhile those that have one wait, and cost what they cost
_SUBMITTER_RETRIES = 2  # of the pod that submits and prints the log: it goes on with a job that is there
_SUBMITTER = config.Room(cpu="500m", memory="1Gi")
_RAYLET = ("52365", "local_raylet_healthz")  # Ray's own health pages: the agent's port on each node, the dashboard's on the head
_GCS = ("8265", "gcs_healthz")
_USER = 10001  # of the images; named, since a namespace's policy may ask for it, and so that /tmp is theirs
_TMP_BYTES = 20 * 1024**3  # of Ray's session and its logs; a cache of shards comes on top
_AUTOSCALER = config.Room(cpu="500m", memory="1Gi")
_TOKEN = {
    "name": "kubernetes",
    "projected": {
        "sources": [
            {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
        ]
    },
}
_STAYS = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}  # to empty a node that is half used costs the work since a checkpoint
_GRACE_SECONDS = 25  # of a worker; a spot node gives 30
_TMP_MOUNT = {"name": "tmp", "mountPath": "/tmp"}  # noqa: S108 - an emptyDir
_CONTAINER_SECURITY = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
_TOKEN_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"  # noqa: S105 - a folder


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
    checkpoints. With a queue the job begins suspended, and Kueue starts all its pods or none. Training with ``min_workers`` begins on as
    many, and Ray's autoscaler adds the others when there is room for them: KubeRay hands in no job before every worker asked for is there.
    With a queue it begins with all, since Kueue counts them once.

    Pods may look for a place for ``PLACE_SECONDS``. KubeRay counts them anew when a suspended job is let go, so that its turn in a queue
    has no bound.
    """
    settings, room = scaling.kubernetes, module.rpartition(".")[2]
    gpu = scaling.accelerator == "gpu" and room in ("train", "evaluate")
    worker_cpu, worker_memory = settings.size(room)
    resources = {"cpu": worker_cpu, "memory": worker_memory, **({settings.accelerator_resource: "1"} if gpu else {})}
    head = {"cpu": str(config.HEAD.cpu), "memory": str(config.HEAD.memory)}
    submitter = {"cpu": str(_SUBMITTER.cpu), "memory": str(_SUBMITTER.memory)}

    def pod(container: str, resources: dict[str, str], *, works: bool, probes: dict[str, Any]) -> dict[str, Any]:
        tmp_bytes = _TMP_BYTES + (scaling.shard_cache_bytes if works and scaling.shard_cache is not None else 0)
        return _pod(
            container, resources, image=image, settings=settings, variables=variables, gpu=gpu and works, works=works, probes=probes,
            tmp_bytes=tmp_bytes,
        )  # fmt: skip

    least = scaling.sizes[0] if room == "train" and settings.queue is None else scaling.workers
    labels = {FINGERPRINT_LABEL: fingerprint, "app.kubernetes.io/part-of": "sr3", "app.kubernetes.io/component": room}
    spec: dict[str, Any] = {
        "entrypoint": entrypoint(module, arguments),
        "submissionMode": "K8sJobMode",
        "submitterConfig": {"backoffLimit": _SUBMITTER_RETRIES},
        "submitterPodTemplate": {
            "metadata": {"annotations": dict(_STAYS)},
            "spec": {"restartPolicy": "Never", **pod("ray-job-submitter", submitter, works=False, probes={})},
        },
        "shutdownAfterJobFinishes": True,
        "activeDeadlineSeconds": deadline(scaling),
        "preRunningDeadlineSeconds": PLACE_SECONDS,
        "ttlSecondsAfterFinished": TTL_SECONDS,
        "backoffLimit": 0,
        "rayClusterSpec": {
            "rayVersion": metadata.version("ray"),
            "headGroupSpec": {
                "rayStartParams": {"dashboard-host": "0.0.0.0", "num-cpus": "0", "num-gpus": "0"},  # noqa: S104 - beside its network policy
                "template": {
                    "metadata": {"annotations": dict(_STAYS)},
                    "spec": pod("ray-head", head, works=False, probes=_probes(_RAYLET, _GCS)),
                },
            },
            "workerGroupSpecs": [
                {
                    "groupName": "workers",
                    "replicas": least,
                    "minReplicas": least,
                    "maxReplicas": scaling.workers,
                    "rayStartParams": {},
                    "template": {
                        "metadata": {"annotations": dict(_STAYS)},
                        "spec": {
                            "terminationGracePeriodSeconds": _GRACE_SECONDS,
                            **pod("ray-worker", resources, works=True, probes=_probes(_RAYLET)),
                        },
                    },
                }
            ],
        },
    }
    if least < scaling.workers:
        _grow(spec["rayClusterSpec"], settings)
    if settings.queue is not None:
        labels[QUEUE_LABEL] = settings.queue
        spec["suspend"] = True
    meta: dict[str, Any] = {"name": name, "namespace": namespace, "labels": labels}
    if owner is not None:
        meta["ownerReferences"] = [owner_reference(owner)]
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": "RayJob", "metadata": meta, "spec": spec}


def owner_reference(pod: tuple[str, str]) -> dict[str, str]:
    """The pod (name, uid) as one that an object in its namespace belongs to."""
    return {"apiVersion": "v1", "kind": "Pod", "name": pod[0], "uid": pod[1]}


def deadline(scaling: Scaling, elapsed: float = 0.0) -> int:
    """Seconds from its start on after which KubeRay ends a job that has run for ``elapsed``: when nobody follows it any longer, and by the
    recipe's ``timeout_seconds`` at the latest. KFP ends a task's container a tenth of a second after TERM, too soon to rely on."""
    alone, limit = int(max(elapsed, 0.0)) + ALONE_SECONDS, scaling.kubernetes.timeout_seconds
    return alone if limit is None else min(alone, limit)


def entrypoint(module: str, arguments: Sequence[str]) -> str:
    """``python -m module arguments`` for a shell. KubeRay makes it an argument of a container, where Kubernetes puts variables (a Secret's
    too) in the place of $(NAME) and reads $$ as $."""
    return shlex.join(["python", "-m", module, *arguments]).replace("$", "$$")


def _grow(cluster: dict[str, Any], settings: config.Kubernetes) -> None:
    """Have Ray's autoscaler beside the head. It alone holds a token of Kubernetes; KubeRay makes the role for it."""
    asked = {"cpu": str(_AUTOSCALER.cpu), "memory": str(_AUTOSCALER.memory)}
    cluster["enableInTreeAutoscaling"] = True
    cluster["autoscalerOptions"] = {
        "version": "v2",
        "imagePullPolicy": settings.image_pull_policy,
        "resources": {"requests": dict(asked), "limits": dict(asked)},
        "securityContext": dict(_CONTAINER_SECURITY),
        "volumeMounts": [dict(_TMP_MOUNT), {"name": _TOKEN["name"], "mountPath": _TOKEN_PATH, "readOnly": True}],
    }
    cluster["headGroupSpec"]["template"]["spec"]["volumes"].append(_TOKEN)


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
    tmp_bytes: int,
) -> dict[str, Any]:
    """A pod's spec under the restricted pod security standard: no root, no privilege, nothing written but to /tmp."""
    plain = [{"name": name, "value": value} for name, value in {"HOME": "/tmp", **variables}.items()]  # noqa: S108 - an emptyDir
    named = [{"name": v.variable, "valueFrom": {"secretKeyRef": {"name": v.name, "key": v.key}}} for v in settings.env_from]
    spec: dict[str, Any] = {
        "automountServiceAccountToken": False,  # the work needs no right in the cluster; workload identity does not use this token
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True, "runAsUser": _USER, "runAsGroup": _USER, "fsGroup": _USER, "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": container,
                "image": image,
                "imagePullPolicy": settings.image_pull_policy,
                "env": [*plain, *named],
                "resources": {"requests": dict(resources), "limits": dict(resources)},
                "securityContext": dict(_CONTAINER_SECURITY),
                "volumeMounts": [dict(_TMP_MOUNT)],
                **probes,
            }
        ],
        "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": str(tmp_bytes)}}],
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
