"""RayJobs and pods of one namespace through the Kubernetes client; what the server refuses becomes one line that says what to check.

The client is imported here alone, and only inside functions.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

from components import cluster
from components.rayjob_manifest import FINGERPRINT_LABEL, GROUP, PLURAL, VERSION, owner_reference
from sr3_core.artifacts.lease import InUse
from sr3_core.errors import BadInput, Failed
from sr3_core.progress import say

Result = TypeVar("Result")

RETRIES = 5  # of a server that fails or does not answer: after 1, 2, 4, 8 and 16 seconds
WATCH_SECONDS = 10  # of one watch, by the server's clock; between two of them the pods are looked at
SLACK_SECONDS = 5.0  # that the server may take longer
_TIMES: dict[str, Any] = {"_request_timeout": (10.0, 30.0)}  # to connect, to answer; seconds


class OutOfReach(Exception):
    """The API server did not answer, or not with anything that could be used, for RETRIES tries."""


class Refused(OutOfReach):
    """The API server refused what it had granted before: a login ran out, or rights are being changed. No job ends for that."""


class Api:
    """RayJobs and pods of one namespace through the real client; errors of the server become one line each.

    A right that is missing from the beginning is BadInput, one that was there is Refused: so is any while the caller follows a job that it
    did not make (``adopted``).
    """

    def __init__(self, namespace: str) -> None:
        from kubernetes import client, config
        from kubernetes.config.config_exception import ConfigException

        self.namespace, self._blind = namespace, False
        self.adopted, self._granted = False, set[str]()
        settings = client.Configuration()
        try:
            if os.environ.get("KUBERNETES_SERVICE_HOST"):
                config.load_incluster_config(client_configuration=settings)
            else:
                config.load_kube_config(config_file=os.environ.get("KUBECONFIG") or None, client_configuration=settings)
        except (ConfigException, OSError, ValueError, TypeError) as error:
            got = f"no credentials for Kubernetes ({cluster.last_line(error)})"
            raise BadInput(got, "a pod's service account, or a kubeconfig", "run in the cluster, or set KUBECONFIG") from None
        settings.retries = False  # counted here
        connection = client.ApiClient(settings)
        self.core, self._custom = client.CoreV1Api(connection), client.CustomObjectsApi(connection)
        self._place = {"group": GROUP, "version": VERSION, "namespace": namespace, "plural": PLURAL}

    def attempts(self, fingerprint: str) -> list[dict[str, Any]]:
        chosen = f"{FINGERPRINT_LABEL}={fingerprint}"
        found = self._ask("list", lambda: self._custom.list_namespaced_custom_object(**self._place, label_selector=chosen, **_TIMES))
        return [job for job in found["items"] if job["metadata"].get("labels", {}).get(FINGERPRINT_LABEL) == fingerprint]

    def create(self, body: dict[str, Any]) -> dict[str, Any] | None:
        """The RayJob as it was created; None when one of its name is there."""
        from kubernetes.client import ApiException

        def make() -> dict[str, Any] | None:
            try:
                return dict(self._custom.create_namespaced_custom_object(**self._place, body=body, **_TIMES))
            except ApiException as error:
                if error.status == 409:
                    return None
                raise

        return self._ask("create", make)

    def get(self, name: str) -> dict[str, Any] | None:
        """The RayJob, or None when it is gone."""
        from kubernetes.client import ApiException

        def read() -> dict[str, Any] | None:
            try:
                return dict(self._custom.get_namespaced_custom_object(**self._place, name=name, **_TIMES))
            except ApiException as error:
                if error.status == 404:
                    return None
                raise

        return self._ask("get", read)

    def prolong(self, name: str, seconds: int) -> None:
        """Let the RayJob, if it is there, run for ``seconds`` from its start on."""
        from kubernetes.client import ApiException

        def change() -> None:
            body = {"spec": {"activeDeadlineSeconds": seconds}}
            try:
                self._custom.patch_namespaced_custom_object(**self._place, name=name, body=body, **_TIMES)
            except ApiException as error:
                if error.status != 404:
                    raise

        self._ask("patch", change)

    def own(self, name: str, owner: tuple[str, str]) -> bool:
        """Add the pod ``owner`` (name, uid) to those that the RayJob belongs to; False when it is gone.

        Beside the first follower's pod and not in its place: Kubernetes removes an object when the last of its owners is gone, and takes
        those that are gone off the list before. So the first pod's removal does not end the job under the one that follows it now, nor the
        other way round where both do, and the last one's removal still ends it.
        """
        from kubernetes.client import ApiException

        def add() -> bool:
            job = self.get(name)
            if job is None or job["metadata"].get("deletionTimestamp"):
                return False
            there = job["metadata"].get("ownerReferences", [])
            if any(reference["uid"] == owner[1] for reference in there):
                return True
            # a merge replaces the list: the version refuses it when another one has changed the job meanwhile, KubeRay its status
            meta = {"ownerReferences": [*there, owner_reference(owner)], "resourceVersion": job["metadata"].get("resourceVersion")}
            try:
                self._custom.patch_namespaced_custom_object(**self._place, name=name, body={"metadata": meta}, **_TIMES)
            except ApiException as error:
                if error.status == 404:
                    return False
                raise
            return True

        return self._ask("patch", add, again=(409,))

    def delete(self, job: dict[str, Any]) -> None:
        """Remove the RayJob, and with it (KubeRay owns them by it) its cluster and its submitter; never another one that bears its name by
        now. ``job`` is as the server gave it, or as it was to be created. Says so when it cannot be removed."""
        from kubernetes.client import ApiException, V1DeleteOptions, V1Preconditions

        name = job["metadata"]["name"]

        def remove() -> None:
            uid = job["metadata"].get("uid")
            if uid is None:  # it may not be there, or be another's that was quicker
                there = self.get(name)
                if there is None or there["spec"]["entrypoint"] != job["spec"]["entrypoint"]:
                    return
                uid = there["metadata"].get("uid")
            options = V1DeleteOptions(propagation_policy="Background", preconditions=V1Preconditions(uid=uid))
            try:
                self._custom.delete_namespaced_custom_object(**self._place, name=name, body=options, **_TIMES)
            except ApiException as error:
                if error.status not in (404, 409):  # gone; another one
                    raise

        try:
            self._ask("delete", remove)
        except (BadInput, Failed, OutOfReach) as error:
            say(
                "ray", f"could not remove RayJob {name} in {self.namespace} ({error}); do: kubectl -n {self.namespace} delete rayjob {name}"
            )

    def watch(self, name: str) -> Iterator[dict[str, Any] | None]:
        """The RayJob as it is and at each change, for WATCH_SECONDS or until the connection breaks; None when it is gone."""
        import urllib3
        from kubernetes import watch
        from kubernetes.client import ApiException

        yield self.get(name)
        times = {"timeout_seconds": WATCH_SECONDS, "_request_timeout": (10.0, WATCH_SECONDS + SLACK_SECONDS)}
        chosen = f"metadata.name={name}"
        stream = watch.Watch().stream(self._custom.list_namespaced_custom_object, **self._place, field_selector=chosen, **times)
        try:
            with contextlib.closing(stream):
                for event in stream:
                    self._granted.add("watch")
                    job = event["object"]
                    if job["metadata"]["name"] == name:
                        yield None if event["type"] == "DELETED" else job
            self._granted.add("watch")
        except ApiException as error:
            if error.status in (401, 403):
                self._refuse(error, "watch")
            time.sleep(1)  # asked for by itself next
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            if isinstance(error, urllib3.exceptions.ReadTimeoutError):  # nothing came, and no refusal either
                self._granted.add("watch")
            time.sleep(1)

    def pods(self, label: str) -> list[Any]:
        """The pods with ``label`` (name=value); none, said once, where they cannot be listed."""
        try:
            return list(self._ask("list pods", lambda: self.core.list_namespaced_pod(self.namespace, label_selector=label, **_TIMES)).items)
        except (BadInput, Failed, Refused) as error:
            if not self._blind:
                say("ray", f"cannot tell why pods do not start: {error}")
            self._blind = True
            return []

    def _ask(self, verb: str, question: Callable[[], Result], *, again: tuple[int, ...] = ()) -> Result:
        """What ``question`` answers; tried again when the server fails, does not answer or answers with one of ``again``, explained when it
        refuses."""
        import urllib3
        from kubernetes.client import ApiException

        for tries in range(RETRIES + 1):
            try:
                answer = question()
                self._granted.add(verb)
                return answer
            except ApiException as error:
                if error.status not in (0, 408, 429, *again) and error.status < 500:
                    self._refuse(error, verb)
                lost: Exception = error
                reason = f"{error.status} {_message(error)}"
            except (urllib3.exceptions.HTTPError, OSError) as error:
                lost, reason = error, cluster.last_line(error)
            if tries == RETRIES:
                raise OutOfReach(reason) from lost
            if tries == 0:
                say("ray", f"the API server does not serve ({reason}), trying again")
            time.sleep(2**tries)
        raise AssertionError("the last try returns or raises")

    def _refuse(self, error: Any, verb: str) -> NoReturn:
        """Raise what the refusal of ``verb`` comes to."""
        if error.status in (401, 403) and (self.adopted or verb in self._granted):
            raise Refused(f"{verb}: {error.status} {_message(error)}")
        _explain(error, verb, self.namespace)


def _message(error: Any) -> str:
    """What the API server says, in one line."""
    try:
        text = json.loads(error.body)["message"]
    except (TypeError, ValueError, KeyError):
        text = error.reason or ""
    return " ".join(str(text).split())[:500]


def _quota(namespace: str, message: str) -> InUse:
    """No room in the namespace: InUse, since another stage may hold it for a while, so that KFP's retries are not refused."""
    do = f"ask for less in scaling, wait, or raise the quota: kubectl -n {namespace} describe quota"
    return InUse(f"quota exceeded in {namespace} ({message})", "what the namespace's ResourceQuota leaves", do)


def _explain(error: Any, verb: str, namespace: str) -> NoReturn:
    """Raise the one line that an answer of the API server comes to."""
    message = _message(error)
    if error.status == 401:
        raise BadInput(f"Kubernetes does not know these credentials (401 {message})", "a valid login", "log in, or check KUBECONFIG")
    if error.status == 403 and "exceeded quota" in message:
        raise _quota(namespace, message)
    if error.status == 403:
        what = verb if " " in verb else f"{verb} rayjobs.ray.io"
        do = f"have a Role with it bound to this service account: kubectl auth can-i {what} -n {namespace}"
        raise BadInput(f"no right to {what} in {namespace} (403 {message})", "that right", do)
    if error.status == 404 and "namespaces" in message:
        raise BadInput(f"no namespace {namespace} ({message})", "a namespace that is there", f"kubectl create namespace {namespace}")
    if error.status == 404:
        raise BadInput(f"this cluster knows no RayJobs (404 {message})", "a cluster with KubeRay", "install the KubeRay operator")
    if error.status in (400, 422):
        raise BadInput(
            f"the cluster refuses the RayJob ({error.status} {message})", "what its KubeRay and policies take", "mend what it names"
        )
    raise Failed(f"Kubernetes refused to {verb} ({error.status} {message})")
