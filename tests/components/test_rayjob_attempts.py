"""Attempts of one work as RayJobs, on an emulated API server: what a job is handed, who owns it, who follows it, what is left."""

import json
import shlex
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import kmock
import pytest
from kubernetes.client import ApiException

from components import jobs, kubernetes_api
from components.evaluate import main as evaluate
from components.train import main as train
from sr3_core import config
from sr3_core.artifacts.shardset import ShardSet
from sr3_core.errors import BadInput, Failed
from tests.components.evaluation import SECTION
from tests.components.following import ADDRESS, NAME, RAYJOBS, Following, running, until
from tests.components.test_train import section, shards  # noqa: F401  - a fixture
from tests.kubernetes_emulator import NAMESPACE, Cluster

BUNDLES = json.dumps([{"uri": "gs://b/x2", "sha256": "0" * 64}])


def handed(emulator: Cluster, room: Any, given: dict[str, str]) -> dict[str, Any]:
    """The scaling section that the job of ``room`` is given; the job is removed then."""
    ended: list[Failed] = []

    def work() -> None:
        with pytest.raises(Failed) as error:
            room.run(**given, ray_address=ADDRESS, run_key="key", mlflow_uri="")
        ended.append(error.value)

    follower = threading.Thread(target=work, daemon=True)
    follower.start()
    until(lambda: len(emulator.rayjobs()) == 1 or not follower.is_alive())
    ((name, job),) = emulator.rayjobs().items()
    emulator.custom().delete_namespaced_custom_object("ray.io", "v1", NAMESPACE, "rayjobs", name)
    follower.join(60)
    assert "was deleted while it ran" in str(ended[0])
    words = shlex.split(job["spec"]["entrypoint"].replace("$$", "$"))
    options = dict(pairwise(words)) | dict(word.split("=", 1) for word in words if "=" in word)
    return dict(json.loads(options["--scaling"]))


@pytest.mark.parametrize(("scaling", "expected"), [({"workers": 2, "min_workers": 1}, 8), ({"workers": 2, "cpus_per_worker": 3}, 3)])
def test_a_worker_of_a_cluster_made_for_it_has_a_pods_cpus(
    scaling: dict[str, int],
    expected: int,
    emulator: Cluster,
    shards: ShardSet,  # noqa: F811
    tmp_path: Path,
) -> None:
    """A cluster that begins with one of two pods has 8 CPUs: 4 for each of two workers would put both of them on that one."""
    given = {"section": json.dumps(SECTION), "scaling": json.dumps(scaling), "root": str(tmp_path / "root")}
    result = handed(emulator, evaluate, {**given, "shards_uri": "gs://b/shards", "shards_sha256": "0" * 64, "bundles": BUNDLES})
    assert result["cpus_per_worker"] == expected and result["workers"] == 2

    stage = {"section": section(), "shards_uri": shards.uri, "shards_sha256": shards.manifest_sha256}
    result = handed(emulator, train, {**given, **stage})
    assert result["cpus_per_worker"] == expected


@pytest.mark.parametrize(("cpu", "expected"), [("12", 12), ("500m", 1), ("7900m", 7), ("0.5", 1), ("3.9", 3)])
def test_a_pods_cpus_are_whole(cpu: str, expected: int) -> None:
    """A Ray worker asks for whole CPUs, and no more than the pod has."""
    scaling = config.parse(config.Scaling, {"kubernetes": {"rooms": {"train": {"cpu": cpu}}}})
    assert jobs.scaling_there("kubernetes://", "train", scaling).cpus_per_worker == expected
    assert jobs.scaling_there("http://head:8265", "train", scaling) == scaling, "the standing cluster's own CPUs are divided"


def owners(emulator: Cluster) -> list[str]:
    return [owner["uid"] for owner in emulator.rayjobs()[NAME]["metadata"].get("ownerReferences", [])]


def ends(emulator: Cluster, name: str = NAME) -> None:
    emulator.log("submitter", ended=True)
    emulator.status(name, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")


@pytest.mark.parametrize(
    ("where", "status", "message"),
    [
        (f"get {RAYJOBS}/{NAME}", 401, "Unauthorized"),
        (f"get {RAYJOBS}/{NAME}", 403, 'cannot get resource "rayjobs"'),
        (f"get {RAYJOBS}", 403, 'cannot watch resource "rayjobs"'),
    ],
)
def test_a_refusal_in_the_middle_of_a_run_leaves_the_job_to_the_next_try(
    where: str, status: int, message: str, emulator: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """A login that ran out says nothing about the job."""
    follower = running(emulator)
    until(lambda: "Running/RUNNING" in capsys.readouterr().out)  # seen by a watch
    emulator.answer(where, message, status=status)
    error = follower.ended()
    assert type(error) is Failed and f"{status} {message}" in str(error)
    assert f"RayJob {NAME} goes on for 30 minutes: the same command follows it again" in str(error)
    assert NAME in {name for _, _, name in emulator.handler.objects}
    emulator.log("submitter", ended=True)


def test_one_that_goes_on_with_a_job_never_removes_it_for_a_right_that_it_lacks(emulator: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    first = running(emulator)
    monkeypatch.setenv("POD_UID", "uid-2")
    emulator.answer(f"patch {RAYJOBS}/{NAME}", 'cannot patch resource "rayjobs"', status=403)
    error = Following().ended()
    assert isinstance(error, BadInput) and "no right to patch rayjobs.ray.io" in str(error)
    assert NAME in emulator.rayjobs()
    with pytest.raises(ApiException):
        ends(emulator)  # refused as well, and done all the same
    assert first.ended() is None


def test_a_job_belongs_to_every_pod_that_follows_it(emulator: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubernetes removes what all owners of are gone: neither the first pod's removal ends it under the second one, nor the reverse."""
    first = running(emulator)
    assert owners(emulator) == ["uid-1"]
    monkeypatch.setenv("POD_NAME", "sr3-train-pod-2")
    monkeypatch.setenv("POD_UID", "uid-2")
    again = Following()
    until(lambda: owners(emulator) == ["uid-1", "uid-2"])
    third = Following()  # of the same pod
    time.sleep(2)
    assert owners(emulator) == ["uid-1", "uid-2"]
    ends(emulator)
    assert first.ended() is None and again.ended() is None and third.ended() is None


def test_owners_that_come_at_once_are_all_kept(emulator: Cluster) -> None:
    """A merge replaces the list: the API server refuses it by the version that it was made from, and it is made again."""
    first = running(emulator)
    asked: list[Any] = []
    conflict = {"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": 409, "message": "the object has been modified"}

    def answer(request: Any) -> Any:
        asked.append(request.data.get("metadata", {}).get("resourceVersion"))
        if len(asked) > 1:
            return kmock.Response(payload={}, status=200)
        request.data["metadata"]["ownerReferences"][1]["uid"] = "uid-3"  # what is done is another's
        return kmock.Response(payload=conflict, status=409)

    version = {"metadata": {"resourceVersion": "7"}}  # the emulator gives none
    emulator.custom().patch_namespaced_custom_object("ray.io", "v1", NAMESPACE, "rayjobs", NAME, version)
    emulator.do(lambda: emulator.handler[f"patch {RAYJOBS}/{NAME}"] << answer)
    api = kubernetes_api.Api(NAMESPACE)
    assert api.own(NAME, ("pod-2", "uid-2")) and owners(emulator) == ["uid-1", "uid-3", "uid-2"]
    assert asked[:2] == ["7", "7"]
    ends(emulator)
    assert first.ended() is None


def test_attempts_that_have_ended_are_removed_when_a_new_one_is_made(emulator: Cluster) -> None:
    """Their followers were killed; others' work, what goes on and what has ended otherwise stay."""
    follower = running(emulator)
    entry = emulator.rayjobs()[NAME]["spec"]["entrypoint"]
    ends(emulator)
    assert follower.ended() is None and emulator.rayjobs() == {}
    meta = {"namespace": NAMESPACE, "labels": {"sr3.fingerprint": "0123456789abcdef"}}
    kinds = [(entry, "Complete"), (entry, "Failed"), ("another", "Failed"), (entry, "ValidationFailed")]
    for number, (entrypoint, state) in enumerate(kinds):
        body = {"metadata": {**meta, "name": f"{NAME[:-1]}{number}"}, "spec": {"entrypoint": entrypoint}}
        body["status"] = {"jobDeploymentStatus": state}
        emulator.custom().create_namespaced_custom_object("ray.io", "v1", NAMESPACE, "rayjobs", body)
    new = f"{NAME[:-1]}4"
    follower = Following()
    until(lambda: set(emulator.rayjobs()) == {f"{NAME[:-1]}2", new})
    ends(emulator, new)
    assert follower.ended() is None
    assert list(emulator.rayjobs()) == [f"{NAME[:-1]}2"]
