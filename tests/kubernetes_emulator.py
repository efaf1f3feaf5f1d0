"""A Kubernetes API on loopback (kmock's emulator, no controllers) that the real client talks to; the test is the controller."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kmock
import yaml

NAMESPACE = "team-a"
RAYJOBS = kmock.resource("ray.io", "v1", "rayjobs")
PODS = kmock.resource("", "v1", "pods")


class Cluster:
    """The emulator in a thread of its own, and what a controller does there."""

    def __init__(self, handler: kmock.KubernetesEmulator, url: str, loop: asyncio.AbstractEventLoop, folder: Path) -> None:
        self.handler, self.url, self._loop = handler, url, loop
        self.kubeconfig = folder / "kubeconfig"
        context = {"cluster": "emulator", "user": "tester"}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "emulator", "cluster": {"server": url}}],
            "users": [{"name": "tester", "user": {}}],
            "contexts": [{"name": "emulator", "context": context}],
            "current-context": "emulator",
        }
        self.kubeconfig.write_text(yaml.safe_dump(config))
        self._logs: dict[str, tuple[list[str], threading.Event]] = {}

    def custom(self) -> Any:
        """A client of the test's own."""
        from kubernetes import client, config

        return client.CustomObjectsApi(config.new_client_from_config(str(self.kubeconfig)))

    def do(self, action: Callable[[], Any]) -> None:
        """Run ``action`` in the emulator's thread."""

        async def act() -> None:
            action()

        asyncio.run_coroutine_threadsafe(act(), self._loop).result(10)

    def answer(self, where: str, payload: Any, *, status: int) -> None:
        """From now on the emulator answers requests to ``where`` ("post /path") with an error as Kubernetes gives it."""
        body = {"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": status, "message": payload}
        self.do(lambda: self.handler[where] << kmock.Response(payload=body, status=status))

    def rayjobs(self) -> dict[str, dict[str, Any]]:
        """The RayJobs that are there, by name."""
        found = self.custom().list_namespaced_custom_object("ray.io", "v1", NAMESPACE, "rayjobs")
        return {job["metadata"]["name"]: job for job in found["items"]}

    def status(self, name: str, **values: Any) -> None:
        """Set the RayJob's status, as KubeRay does."""
        self.custom().patch_namespaced_custom_object("ray.io", "v1", NAMESPACE, "rayjobs", name, {"status": values})

    def pod(
        self, name: str, labels: dict[str, str], *, phase: str = "Running", waiting: tuple[str, str] | None = None, unplaced: str = ""
    ) -> None:
        """A pod, perhaps with a container that waits for a reason, or one that no node takes."""
        state = {"waiting": {"reason": waiting[0], "message": waiting[1]}} if waiting else {"running": {}}
        container = {"name": "main", "image": "i", "imageID": "", "ready": not waiting, "restartCount": 0, "state": state}
        meta = {"name": name, "namespace": NAMESPACE, "labels": labels, "creationTimestamp": "2026-01-01T00:00:00Z"}
        pod = {"metadata": meta, "spec": {"containers": [{"name": "main"}]}, "status": {"phase": phase, "containerStatuses": [container]}}
        if unplaced:
            reason = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": unplaced}
            pod["status"] = {"phase": "Pending", "conditions": [reason]}
        self.do(lambda: self.handler.objects.__setitem__((PODS, NAMESPACE, name), pod))

    def log(self, pod: str, *lines: str, ended: bool = False) -> None:
        """More lines of the pod's log; a follower waits for the next ones unless it has ``ended``."""
        if pod not in self._logs:
            self._logs[pod] = ([], threading.Event())
            self.do(
                lambda: self.handler[f"get /api/v1/namespaces/{NAMESPACE}/pods/{pod}/log"] << (lambda request: self._stream(request, pod))
            )
        said, over = self._logs[pod]
        said.extend(lines)
        if ended:
            over.set()

    def end_logs(self) -> None:
        """Let go who still follows a log: the server waits for them when it ends."""
        for _, over in self._logs.values():
            over.set()

    async def _stream(self, request: Any, pod: str) -> AsyncIterator[bytes]:
        said, over = self._logs[pod]
        sent = 0
        yield b""
        while True:
            is_over = over.is_set()
            for line in said[sent:]:
                yield line.encode() + b"\n"
                sent += 1
            if is_over or request.params.get("follow") != "True":
                return
            await asyncio.sleep(0.05)


def _labelled(request: Any, handler: kmock.KubernetesEmulator) -> dict[str, Any]:
    """The pods that a label selector chooses: the emulator itself gives all."""
    wanted = dict(part.split("=", 1) for part in request.params.get("labelSelector", "").split(",") if part)
    pods = [pod.raw for (resource, _, _), pod in handler.objects.items() if resource == PODS and not pod.deleted]
    items = [pod for pod in pods if all(pod["metadata"].get("labels", {}).get(key) == value for key, value in wanted.items())]
    return {"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": items}


@contextmanager
def emulated(folder: Path) -> Iterator[Cluster]:
    """A cluster with KubeRay's resource; its kubeconfig lies in ``folder``."""
    loop = asyncio.new_event_loop()
    ready, done = threading.Event(), asyncio.Event()
    made: list[Cluster] = []

    async def serve() -> None:
        async with kmock.KubernetesEmulator() as handler, kmock.Server(handler) as server:
            handler.resources[RAYJOBS] = {"kind": "RayJob", "namespaced": True}
            handler[kmock.action.LIST, PODS] << (lambda request: _labelled(request, handler))
            made.append(Cluster(handler, str(server.url).rstrip("/"), loop, folder))
            ready.set()
            await done.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert ready.wait(20), "the emulator did not start"
    try:
        yield made[0]
    finally:
        made[0].end_logs()
        loop.call_soon_threadsafe(done.set)
        thread.join(20)
        loop.close()
