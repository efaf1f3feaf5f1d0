"""The log of a RayJob as it comes: from the pod that KubeRay submits the job with, through the API server."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from components import cluster, entry
from sr3_core.progress import say

SUBMITTER_LABEL = "job-name"  # set by Kubernetes on a Job's pods; KubeRay names the submitter's Job as the RayJob
_POLL_SECONDS = 1.0
_END_SECONDS = 15.0  # for the log's last lines after the job has ended


class Log(threading.Thread):
    """Prints every line once, from the first, also when the connection breaks or another submitter pod goes on with the job.

    ``bad`` is the last line about bad input, without its head. A log that cannot be read is said once: the job does not depend on it.
    """

    def __init__(self, core: Any, namespace: str, name: str) -> None:
        super().__init__(name="sr3-rayjob-log", daemon=True)
        self.bad = ""
        self._core, self._namespace, self._job = core, namespace, name
        self._printed = 0
        self._ending = threading.Event()
        self._said = False

    def run(self) -> None:
        while True:
            ending = self._ending.is_set()  # then one more look: the last lines may have come meanwhile
            try:
                for pod in self._pods():
                    self._print(pod)
                    self._said = False
            except Exception as error:  # the client raises what its HTTP library does; none of it ends the job
                self._trouble(error)
            if ending:
                return
            self._ending.wait(_POLL_SECONDS)

    def end(self) -> None:
        """Wait for the last lines; call it when the job has ended and its pods are still there."""
        self.stop()
        self.join(_END_SECONDS)

    def stop(self) -> None:
        """Follow no further."""
        self._ending.set()

    def _pods(self) -> list[str]:
        """Names of the submitter's pods that have begun, the newest alone: it prints the job's log from the beginning."""
        found = self._core.list_namespaced_pod(
            self._namespace, label_selector=f"{SUBMITTER_LABEL}={self._job}", _request_timeout=(10.0, 30.0)
        ).items
        begun = [pod for pod in found if pod.status.phase in ("Running", "Succeeded", "Failed")]
        newest = max(begun, key=lambda pod: str(pod.metadata.creation_timestamp), default=None)
        return [] if newest is None else [newest.metadata.name]

    def _print(self, pod: str) -> None:
        for number, line in enumerate(self._lines(pod)):
            if number < self._printed:
                continue
            self._printed = number + 1
            print(line, flush=True)
            if entry.BAD_INPUT in line:
                self.bad = line.partition(entry.BAD_INPUT)[2]

    def _lines(self, pod: str) -> Iterator[str]:
        """The pod's log from its beginning to its end, or to where the job has ended."""
        answer = self._core.read_namespaced_pod_log(
            pod, self._namespace, follow=not self._ending.is_set(), _preload_content=False, _request_timeout=(10.0, 60.0)
        )
        rest = b""
        with contextlib.closing(answer):
            for chunk in answer.stream(decode_content=False):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from (line.decode(errors="replace") for line in lines)
            if rest:
                yield rest.decode(errors="replace")

    def _trouble(self, error: Exception) -> None:
        status = getattr(error, "status", None)
        if status in (400, 404) or type(error).__name__ == "ReadTimeoutError":  # not begun, gone, or quiet for a minute
            return
        if not self._said:
            self._said = True
            right = "; the right to list pods and get pods/log is missing" if status == 403 else ""
            reason = f"{status} {getattr(error, 'reason', '')}" if status else cluster.last_line(error)
            say("ray", f"cannot read the log of RayJob {self._job} ({reason}){right}; the job goes on")
