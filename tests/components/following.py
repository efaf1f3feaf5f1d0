"""What the tests of a Ray cluster of the run's own share: an emulated API server, a follower in a thread; the test plays KubeRay."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from components import kubernetes_api, rayjobs
from sr3_core import config
from sr3_core.errors import BadInput, Failed
from tests.conftest import RECIPES
from tests.kubernetes_emulator import NAMESPACE, Cluster, emulated

ADDRESS = f"kubernetes://{NAMESPACE}"
ARGUMENTS = ['--section={"name": "it\'s $HOME"}', "--root=gs://bucket/runs"]
NAME = "sr3-0123456789abcdef-0"
RAYJOBS = f"/apis/ray.io/v1/namespaces/{NAMESPACE}/rayjobs"
SCALING = config.load(str(RECIPES / "gpu.yaml")).scaling


@pytest.fixture
def emulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster; this process follows quickly there and as a pod of its own."""
    with emulated(tmp_path) as made:
        values = {"KUBECONFIG": str(made.kubeconfig), "SR3_IMAGE": "registry.example/sr3-{room}:0123abc"}
        values |= {"POD_NAME": "sr3-train-pod", "POD_UID": "uid-1", "POD_NAMESPACE": NAMESPACE}
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(kubernetes_api, "WATCH_SECONDS", 1)
        monkeypatch.setattr(kubernetes_api, "SLACK_SECONDS", 0.0)
        monkeypatch.setattr(kubernetes_api, "RETRIES", 1)
        monkeypatch.setattr(rayjobs, "STUCK_SECONDS", 0.0)
        yield made


class Following(threading.Thread):
    """A follower in a thread; ``ended`` gives what it raised."""

    def __init__(self, arguments: list[str] = ARGUMENTS, scaling: config.Scaling = SCALING) -> None:
        super().__init__(daemon=True)
        self._arguments, self._scaling, self._error = arguments, scaling, None
        self.start()

    def run(self) -> None:
        try:
            rayjobs.run(ADDRESS, "components.train", self._arguments, fingerprint="0123456789abcdef", scaling=self._scaling)
        except (BadInput, Failed) as error:
            self._error = error

    def ended(self) -> BadInput | Failed | None:
        self.join(60)
        assert not self.is_alive()
        return self._error


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def running(emulator: Cluster, name: str = NAME) -> Following:
    """A follower whose job runs, with its submitter's pod."""
    follower = Following()
    until(lambda: name in emulator.rayjobs())
    emulator.pod("submitter", {"job-name": name})
    emulator.log("submitter", "sr3| train x2 Ray at 10.0.0.1")
    emulator.status(name, jobDeploymentStatus="Running", jobStatus="RUNNING")
    return follower
