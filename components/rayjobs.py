"""A room as a RayJob: a Ray cluster of the run's own at ``kubernetes://NAMESPACE``, created, followed, ended and removed.

The state comes by watching the RayJob, the log from the pod that KubeRay submits the job with: both through the API server, so that rights
in one namespace are all it takes and the follower may stand anywhere. Some tries stand between a lost API server and the end of the
follower; the RayJob then goes on and is found again.
"""

import os
import re
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from components import cluster, entry
from components.kubernetes_api import Api, OutOfReach, Refused
from components.rayjob_log import SUBMITTER_LABEL, Log
from components.rayjob_manifest import ALONE_SECONDS, PLACE_SECONDS, deadline, manifest
from sr3_core.config import Scaling
from sr3_core.errors import EXIT_BAD_INPUT, BadInput, Failed
from sr3_core.progress import say

IMAGE_VARIABLE = "SR3_IMAGE"
STUCK_SECONDS = 60.0  # how long a pod may fail to start for a reason that rarely mends itself
_STUCK = ("ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError")
_EXIT_CODE = re.compile(r"failed with exit code (\d+)")
_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_QUOTA = "exceeded quota"  # how Kubernetes' admission begins what it says of one
PROLONG_SECONDS = ALONE_SECONDS / 6
_ATTEMPTS = 20  # of one fingerprint that may be there at once
_NAMED = ("SR3_PROGRESS_SECONDS",)  # of this process's environment, kept in the cluster


def run(address: str, module: str, arguments: Sequence[str], *, fingerprint: str, scaling: Scaling) -> None:
    """Run ``python -m module arguments`` on a Ray cluster made for it, print its log, end as it ends; the cluster is gone then.

    The RayJob's name is ``sr3-<fingerprint>-<attempt>``: a retried caller follows the attempt that is still there. Raises BadInput for
    what the cluster refuses and when the job ends with exit code 2, Failed when it ends otherwise or the API server stays out of reach, or
    refuses what it granted before: the RayJob then goes on for ``ALONE_SECONDS``. An interrupt or TERM of the caller, or the end of the
    one who started it, removes the RayJob; so does KubeRay after that time when the caller was killed.
    """
    image = image_of(module.rpartition(".")[2])
    api = Api(namespace(address, scaling))
    held: list[dict[str, Any]] = []  # the RayJob that is this caller's to remove
    log: Log | None = None

    def end() -> None:
        for job in held:
            api.delete(job)

    with entry.when_orphaned(end):
        try:
            name = _attempt(api, held, module, arguments, fingerprint=fingerprint, image=image, scaling=scaling)
            log = Log(api.core, api.namespace, name)
            log.start()
            status = _follow(api, name, image, scaling)
            log.end()
        except OutOfReach as error:
            state = "refuses what it granted before" if isinstance(error, Refused) else "is out of reach"
            lost = f"Kubernetes at {address} {state} ({error})"
            left = (
                f"; RayJob {held[0]['metadata']['name']} goes on for {ALONE_SECONDS // 60} minutes: the same command follows it again"
                if held
                else "; check the cluster"
            )
            held.clear()
            raise Failed(lost + left) from None
        finally:
            if log is not None:
                log.stop()
            end()
    _close(name, api.namespace, status, log)


def image_of(room: str) -> str:
    """The image of the cluster's pods: SR3_IMAGE, in which {room} stands for the room; in a pipeline's task it is the task's own."""
    image = os.environ.get(IMAGE_VARIABLE, "").replace("{room}", room)
    if not image:
        do = f"set {IMAGE_VARIABLE}, as registry.example/sr3-{{room}}:COMMIT; in a pipeline --images does it"
        raise BadInput("no image for the Ray cluster's pods", "the rooms' images, by digest or commit", do)
    return image


def check_address(address: str, scaling: Scaling) -> None:
    """What can be known before any work: image, credentials, namespace, KubeRay and the right to list RayJobs; else BadInput."""
    image_of("train")
    try:
        Api(namespace(address, scaling)).attempts("none")
    except OutOfReach as error:
        raise BadInput(f"Kubernetes at {address} does not answer ({error})", "a cluster within reach", "check the kubeconfig") from None


def namespace(address: str, scaling: Scaling) -> str:
    """The namespace of ``kubernetes://NAMESPACE``; of ``kubernetes://`` the recipe's, else that of the pod this runs in."""
    named = address.removeprefix(cluster.KUBERNETES).strip("/") or scaling.kubernetes.namespace or os.environ.get("POD_NAMESPACE", "")
    if not _NAMESPACE.fullmatch(named):
        got = f"ray address {address}" + (f" with namespace {named!r}" if named else " without a namespace")
        raise BadInput(got, "kubernetes://NAMESPACE, in small letters, digits and -", "name it there or in scaling.kubernetes.namespace")
    return named


def _attempt(
    api: Api, held: list[dict[str, Any]], module: str, arguments: Sequence[str], *, fingerprint: str, image: str, scaling: Scaling
) -> str:
    """The name of the RayJob to follow: one that is there with the same entry and not at its end, else a new one. It is ``held`` then."""
    variables = {
        cluster.CODE_HASH_VARIABLE: cluster.code_hash(), "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_METRICS_ENABLED": "1",  # for the cluster's Prometheus; see components/train/gauges.py
        **{name: os.environ[name] for name in _NAMED if name in os.environ},
    }  # fmt: skip
    there = {job["metadata"]["name"]: job for job in api.attempts(fingerprint)}
    owner = _owner(api.namespace)
    for number in range(_ATTEMPTS):
        name = f"sr3-{fingerprint}-{number}"
        body = manifest(
            name, namespace=api.namespace, module=module, arguments=arguments, fingerprint=fingerprint, image=image, scaling=scaling,
            variables=variables, owner=owner,
        )  # fmt: skip
        if name not in there:
            held[:] = [body]  # before it is there: a TERM may come in the middle
            if (job := api.create(body)) is not None:
                held[:] = [job]
                _tidy(api, there.values(), body)
                say("ray", f"created RayJob {name} in {api.namespace}: {scaling.workers} workers of {image}")
                return name
            held.clear()
        job = there.get(name) or api.get(name)  # 409: made by another meanwhile, or by a try of ours whose answer was lost
        if job is not None and _may_be_followed(job, body) and (owner is None or api.own(name, owner)):
            api.adopted, held[:] = True, [job]
            say("ray", f"following RayJob {name} in {api.namespace}, which is there already")
            return name
    raise Failed(f"conflict (409): {_ATTEMPTS} RayJobs sr3-{fingerprint}-N are there in {api.namespace}; remove those that are done with")


def _may_be_followed(job: dict[str, Any], body: dict[str, Any]) -> bool:
    is_going = not job["metadata"].get("deletionTimestamp") and not _ended(job.get("status", {}))
    return is_going and job["spec"]["entrypoint"] == body["spec"]["entrypoint"]


def _tidy(api: Api, there: Iterable[dict[str, Any]], body: dict[str, Any]) -> None:
    """Remove the attempts at the same that have ended: their followers were killed, and KubeRay removes their clusters alone."""
    for job in there:
        if _ended(job.get("status", {})) and job["spec"]["entrypoint"] == body["spec"]["entrypoint"]:
            api.delete(job)


def _owner(namespace: str) -> tuple[str, str] | None:
    """Name and uid of the pod this runs in, where it is in ``namespace``: an owner must stand beside what it owns."""
    name, uid = os.environ.get("POD_NAME", ""), os.environ.get("POD_UID", "")
    if not name or not uid:
        return None
    if os.environ.get("POD_NAMESPACE", namespace) != namespace:
        most = f"{ALONE_SECONDS // 60} minutes"
        say("ray", f"the Ray cluster in {namespace} outlives this pod by {most} if it is killed: its owner must be in the same namespace")
        return None
    return name, uid


def _ended(status: dict[str, Any]) -> bool:
    return status.get("jobDeploymentStatus") in ("Complete", "Failed", "ValidationFailed")


def _follow(api: Api, name: str, image: str, scaling: Scaling) -> dict[str, Any]:
    """The RayJob's last status. A line for each change of its state; BadInput when pods cannot start, Failed when they find no place."""
    said, waited, since, status, prolonged = "", "", 0.0, dict[str, Any](), None
    while True:
        for job in api.watch(name):
            if job is None or job["metadata"].get("deletionTimestamp"):
                raise Failed(f"RayJob {name} in {api.namespace} was deleted while it ran")
            status = job.get("status", {})
            state = "/".join(filter(None, [status.get("jobDeploymentStatus", "New"), status.get("jobStatus", "")]))
            if state != said:
                said = state
                say("ray", f"RayJob {name}: {state}" + (f" ({status['reason']})" if status.get("reason") else ""))
            if status.get("reason") == "PreRunningDeadlineExceeded":
                last = f", at last: {waited}" if waited else ""
                raise Failed(f"RayJob {name} in {api.namespace} found no place in {PLACE_SECONDS // 60} minutes{last}")
            if _ended(status):
                return status
            prolonged = _prolong(api, name, status, scaling, prolonged)
        begins = said.startswith(("New", "Initializing"))
        pods = _pods(api, name, status) if begins else []
        reason = _stuck(status, pods, image) if begins else None
        if (waits := _unplaced(status, pods) if begins else "") != waited:
            waited = waits
            if waits:
                say("ray", f"RayJob {name} waits for a place: {waits}")
        since = 0.0 if reason is None else since or time.monotonic()
        if reason is not None and time.monotonic() - since >= STUCK_SECONDS:
            raise reason


def _prolong(api: Api, name: str, status: dict[str, Any], scaling: Scaling, last: float | None) -> float | None:
    """Put off the end of the job, which somebody follows; when that was done last. By the clocks: a few minutes between this one and
    KubeRay's do no harm."""
    if "startTime" not in status or (last is not None and time.monotonic() - last < PROLONG_SECONDS):
        return last
    elapsed = datetime.now(UTC) - datetime.fromisoformat(status["startTime"])
    api.prolong(name, deadline(scaling, elapsed.total_seconds()))
    return time.monotonic()


def _pods(api: Api, name: str, status: dict[str, Any]) -> list[Any]:
    named = status.get("rayClusterName", "")
    return [*(api.pods(f"ray.io/cluster={named}") if named else []), *api.pods(f"{SUBMITTER_LABEL}={name}")]


def _unplaced(status: dict[str, Any], pods: list[Any]) -> str:
    """What the quota says of pods that it keeps out, else the scheduler of the first one that no node takes; others may make room and more
    nodes may come, so that it is waited for."""
    if quota := next((text for text in _not_made(status) if _QUOTA in text), ""):
        return quota[quota.index(_QUOTA) :]  # without the pod's name, another one at each try
    for pod in pods:
        for condition in pod.status.conditions or []:
            if condition.type == "PodScheduled" and condition.status == "False":
                return f"pod {pod.metadata.name}: {' '.join((condition.message or condition.reason or '').split())[:300]}"
    return ""


def _not_made(status: dict[str, Any]) -> list[str]:
    """Why KubeRay could not make pods, each in one line."""
    found = status.get("rayClusterStatus", {}).get("conditions", [])
    failed = [c for c in found if c.get("type") == "ReplicaFailure" and c.get("status") == "True"]
    return [" ".join(str(condition.get("message", "")).split())[:500] for condition in failed]


def _stuck(status: dict[str, Any], pods: list[Any], image: str) -> BadInput | None:
    """Why the pods do not start, where that is for the user to mend: an image, a Secret, a policy."""
    for message in _not_made(status):
        if _QUOTA not in message:
            return BadInput(f"KubeRay cannot make the pods ({message})", "pods that the namespace admits", "mend what it names")
    for pod in pods:
        for container in [*(pod.status.init_container_statuses or []), *(pod.status.container_statuses or [])]:
            waiting = container.state.waiting if container.state else None
            if waiting and waiting.reason in _STUCK:
                detail = f"pod {pod.metadata.name}: {waiting.reason}: {waiting.message or ''}"
                if waiting.reason == "CreateContainerConfigError":
                    return BadInput(detail, "Secrets and keys that are there", "check scaling.kubernetes.env_from")
                return BadInput(f"image {image} cannot be pulled ({detail})", "an image that the nodes may pull", "check name and registry")
    return None


def _close(name: str, namespace: str, status: dict[str, Any], log: Log) -> None:
    """Return when the job succeeded; else raise what it ended with."""
    message = str(status.get("message", ""))
    if status.get("jobStatus") == "SUCCEEDED" and status.get("jobDeploymentStatus") == "Complete":
        return
    code = _EXIT_CODE.search(message)
    if code and int(code[1]) == EXIT_BAD_INPUT:
        found = [line.partition(entry.BAD_INPUT)[2] for line in message.splitlines() if entry.BAD_INPUT in line]
        raise entry.told(log.bad or (found[-1] if found else ""), see="mend it")
    if status.get("reason") == "ValidationFailed":
        raise BadInput(
            f"KubeRay refuses RayJob {name} ({message})", "what its version takes", "check scaling.kubernetes and KubeRay's version"
        )
    state = status["jobStatus"] if status.get("jobStatus") in ("FAILED", "STOPPED") else status["jobDeploymentStatus"]
    reason = ", ".join(filter(None, [status.get("reason"), f"exit code {code[1]}" if code else " ".join(message.split())[:300]]))
    raise Failed(f"RayJob {name} in {namespace} ended as {state} ({reason})")
