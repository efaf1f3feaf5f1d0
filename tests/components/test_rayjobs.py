"""A Ray cluster of the run's own, through the real Kubernetes client on an emulated API server; the test plays KubeRay."""

import copy
import os
import shlex
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client import ApiException

from components import cluster, kubernetes_api, rayjobs
from components.rayjob_manifest import ALONE_SECONDS, PLACE_SECONDS, manifest
from sr3_core import config
from sr3_core.artifacts.lease import InUse
from sr3_core.errors import BadInput, Failed
from tests import published
from tests.components.following import ADDRESS, ARGUMENTS, NAME, RAYJOBS, SCALING, Following, running, until
from tests.conftest import free_port
from tests.kubernetes_emulator import NAMESPACE, Cluster


def test_a_rayjob_is_created_followed_and_removed(emulator: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    follower = running(emulator)
    until(lambda: "Ray at 10.0.0.1" in capsys.readouterr().out)  # the log comes while the job runs
    emulator.log("submitter", "sr3| train x2 48/48 images", ended=True)
    emulator.status(NAME, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    assert follower.ended() is None
    assert emulator.rayjobs() == {}
    said = capsys.readouterr().out.splitlines()
    assert "sr3| train x2 48/48 images" in said and f"sr3| ray RayJob {NAME}: Complete/SUCCEEDED" in said


def test_what_is_created(emulator: Cluster, schemas: Path) -> None:
    follower = running(emulator)
    job = copy.deepcopy(emulator.rayjobs()[NAME])
    published.kuberay(schemas, "rayjobs").validate({key: value for key, value in job.items() if key != "status"})
    meta, spec = job["metadata"], job["spec"]
    assert meta["ownerReferences"] == [{"apiVersion": "v1", "kind": "Pod", "name": "sr3-train-pod", "uid": "uid-1"}]
    assert meta["labels"]["kueue.x-k8s.io/queue-name"] == "team-a" and spec["suspend"] is True
    assert shlex.split(spec["entrypoint"].replace("$$", "$")) == ["python", "-m", "components.train", *ARGUMENTS]
    assert spec["shutdownAfterJobFinishes"] is True and spec["ttlSecondsAfterFinished"] > 0 and spec["backoffLimit"] == 0
    workers = spec["rayClusterSpec"]["workerGroupSpecs"][0]
    assert (workers["replicas"], workers["minReplicas"], workers["maxReplicas"]) == (2, 2, 2)
    pods = {"worker": workers["template"]["spec"], "head": spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]}
    pods["submitter"] = spec["submitterPodTemplate"]["spec"]
    for name, pod in pods.items():
        (container,) = pod["containers"]
        assert container["image"] == "registry.example/sr3-train:0123abc", name
        assert container["resources"]["limits"] == container["resources"]["requests"], name
        assert container["resources"]["limits"].get("nvidia.com/gpu") == ("1" if name == "worker" else None), name
        assert pod["securityContext"]["runAsNonRoot"] and container["securityContext"]["readOnlyRootFilesystem"], name
        assert ("cloud.google.com/gke-spot" in pod["nodeSelector"]) == (name == "worker"), name
        assert pod["serviceAccountName"] == "sr3" and pod["priorityClassName"] == "batch", name
        login = {"name": "MLFLOW_TRACKING_PASSWORD", "valueFrom": {"secretKeyRef": {"name": "mlflow-login", "key": "password"}}}
        assert login in container["env"] and {"name": cluster.CODE_HASH_VARIABLE, "value": cluster.code_hash()} in container["env"]
    assert pods["worker"]["containers"][0]["resources"]["limits"]["memory"] == "64Gi"
    emulator.log("submitter", ended=True)
    emulator.status(NAME, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    assert follower.ended() is None


@pytest.mark.parametrize("room", ["prepare", "train", "evaluate"])
@pytest.mark.parametrize("scaling", [SCALING, config.Scaling()], ids=["gpu", "cpu"])
def test_every_rooms_rayjob_is_what_kuberay_takes(room: str, scaling: config.Scaling, schemas: Path) -> None:
    made = manifest(
        NAME, namespace=NAMESPACE, module=f"components.{room}", arguments=[], fingerprint="0", image="i", scaling=scaling, variables={},
        owner=None,
    )  # fmt: skip
    validator = published.kuberay(schemas, "rayjobs")
    validator.validate(made)
    made["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replica"] = 1
    assert not validator.is_valid(made), "a key that KubeRay does not know would pass"


def test_bad_input_of_the_job_is_this_ones(emulator: Cluster) -> None:
    follower = running(emulator)
    emulator.log("submitter", "sr3| train-x2 failed: bad input: no value for name; allowed: a value; do: add it", ended=True)
    message = "Job entrypoint command failed with exit code 2, last available logs (truncated to 20,000 chars):\nsr3| ..."
    emulator.status(NAME, jobDeploymentStatus="Failed", jobStatus="FAILED", reason="AppFailed", message=message)
    error = follower.ended()
    assert isinstance(error, BadInput) and (error.got, error.allowed, error.do) == ("no value for name", "a value", "add it")
    assert emulator.rayjobs() == {}


def test_a_folder_in_use_may_be_tried_again(emulator: Cluster) -> None:
    """The lease of a cluster that was lost is there for a minute more: KFP's retry must not be refused for good."""
    follower = running(emulator)
    in_use = InUse("gs://bucket/runs/train is in use by pid 7 on head", "one writer at a time", "wait for it")
    emulator.log("submitter", f"sr3| train-x2 failed: {in_use}", ended=True)
    emulator.status(NAME, jobDeploymentStatus="Failed", jobStatus="FAILED", reason="AppFailed", message="failed with exit code 2, logs")
    error = follower.ended()
    assert isinstance(error, InUse) and str(error) == str(in_use)


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (
            {"jobStatus": "FAILED", "reason": "AppFailed", "message": "failed with exit code 1, logs"},
            "FAILED (AppFailed, exit code 1)",
        ),
        ({"reason": "DeadlineExceeded", "message": "has passed the activeDeadlineSeconds"}, "Failed (DeadlineExceeded, has passed"),
        ({"jobStatus": "STOPPED", "jobDeploymentStatus": "Complete"}, "ended as STOPPED"),
    ],
)
def test_a_job_that_fails_is_removed_and_said(status: dict[str, str], says: str, emulator: Cluster) -> None:
    follower = running(emulator)
    emulator.status(NAME, **{"jobDeploymentStatus": "Failed", **status})
    emulator.log("submitter", ended=True)
    error = follower.ended()
    assert isinstance(error, Failed) and says in str(error)
    assert emulator.rayjobs() == {}


def test_a_retried_caller_follows_what_is_there(emulator: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    first = running(emulator)
    again = Following()
    until(lambda: "which is there already" in capsys.readouterr().out)
    other = Following(["--section={}"])
    until(lambda: "sr3-0123456789abcdef-1" in emulator.rayjobs())  # another entry is another attempt
    emulator.log("submitter", ended=True)
    for name in list(emulator.rayjobs()):
        emulator.status(name, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    assert first.ended() is None and again.ended() is None and other.ended() is None
    assert emulator.rayjobs() == {}


def test_one_that_is_removed_behind_its_back(emulator: Cluster) -> None:
    follower = running(emulator)
    emulator.custom().delete_namespaced_custom_object("ray.io", "v1", NAMESPACE, "rayjobs", NAME)
    assert "was deleted while it ran" in str(follower.ended())


def test_another_that_bears_the_name_by_now_is_not_removed(emulator: Cluster) -> None:
    follower = running(emulator)
    other = {"spec": {"entrypoint": "another"}, "status": {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}}
    emulator.custom().patch_namespaced_custom_object("ray.io", "v1", NAMESPACE, "rayjobs", NAME, other)
    emulator.log("submitter", ended=True)
    assert follower.ended() is None
    assert list(emulator.rayjobs()) == [NAME]


def test_a_rayjob_is_removed_by_its_uid(emulator: Cluster) -> None:
    """The emulator knows no preconditions; the API server removes nothing whose uid is another."""
    asked: list[Any] = []
    emulator.do(lambda: emulator.handler[f"delete {RAYJOBS}/{NAME}"] << (lambda request: asked.append(request.data) or {}))
    job = {"metadata": {"name": NAME, "uid": "uid-7"}, "spec": {"entrypoint": "e"}}
    emulator.custom().create_namespaced_custom_object("ray.io", "v1", NAMESPACE, "rayjobs", job)
    kubernetes_api.Api(NAMESPACE).delete(job)
    assert [options["preconditions"] for options in asked] == [{"uid": "uid-7"}]


def since(seconds: float) -> str:
    """That long ago, as the API server says it."""
    return (datetime.now(UTC) - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def test_a_job_that_nobody_follows_ends(emulator: Cluster) -> None:
    """The follower may be killed without a word: KubeRay ends the job then, unless one that follows has put that off."""
    follower = running(emulator)
    assert emulator.rayjobs()[NAME]["spec"]["activeDeadlineSeconds"] == ALONE_SECONDS
    emulator.status(NAME, startTime=since(10_000))
    until(lambda: emulator.rayjobs()[NAME]["spec"]["activeDeadlineSeconds"] >= 10_000 + ALONE_SECONDS)
    emulator.log("submitter", ended=True)
    emulator.status(NAME, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    assert follower.ended() is None


def test_it_is_put_off_again_and_again_up_to_the_time_out(emulator: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rayjobs, "PROLONG_SECONDS", 0.0)
    assert SCALING.kubernetes.timeout_seconds == 172_800
    follower = running(emulator)
    for seconds, expected in ((100, 100 + ALONE_SECONDS), (5000, 5000 + ALONE_SECONDS), (172_000, 172_800)):
        emulator.status(NAME, startTime=since(seconds))
        until(lambda expected=expected: 0 <= emulator.rayjobs()[NAME]["spec"]["activeDeadlineSeconds"] - expected < 60)
    emulator.log("submitter", ended=True)
    emulator.status(NAME, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    assert follower.ended() is None


def test_the_right_to_put_it_off_is_missed_at_once(emulator: Cluster) -> None:
    follower = running(emulator)
    emulator.answer(f"patch {RAYJOBS}/{NAME}", 'cannot patch resource "rayjobs"', status=403)
    with pytest.raises(ApiException):
        emulator.status(NAME, startTime=since(1))  # refused as well, and done all the same
    error = follower.ended()
    assert isinstance(error, BadInput) and "no right to patch rayjobs.ray.io" in str(error)


FOLLOW = """
import sys
from components import entry, rayjobs
from sr3_core import config
with entry.guard("train-x2", root=sys.argv[1], run_key="key"):
    rayjobs.run(sys.argv[2], "components.train", [], fingerprint="0123456789abcdef", scaling=config.Scaling())
"""


def test_term_removes_the_rayjob(emulator: Cluster, tmp_path: Path) -> None:
    follower = subprocess.Popen([sys.executable, "-c", FOLLOW, str(tmp_path), ADDRESS], stdout=subprocess.DEVNULL)
    until(lambda: NAME in emulator.rayjobs())
    follower.send_signal(signal.SIGTERM)
    assert follower.wait(60) == 128 + signal.SIGTERM
    assert emulator.rayjobs() == {}


def test_the_end_of_the_one_who_started_it_removes_the_rayjob(emulator: Cluster, tmp_path: Path) -> None:
    command = shlex.join([sys.executable, "-c", FOLLOW, str(tmp_path), ADDRESS])
    launcher = subprocess.Popen(["sh", "-c", f"{command} & wait"], stdout=subprocess.DEVNULL)
    until(lambda: NAME in emulator.rayjobs())
    launcher.kill()
    launcher.wait()
    until(lambda: emulator.rayjobs() == {})


@pytest.mark.parametrize(
    ("where", "status", "message", "says"),
    [
        (f"get {RAYJOBS}", 401, "Unauthorized", "does not know these credentials"),
        (f"get {RAYJOBS}", 403, 'cannot list resource "rayjobs"', "no right to list rayjobs.ray.io in team-a"),
        (f"post {RAYJOBS}", 403, 'cannot create resource "rayjobs"', "no right to create rayjobs.ray.io in team-a"),
        (f"post {RAYJOBS}", 403, "exceeded quota: compute, requested: count/rayjobs.ray.io=1", "quota exceeded in team-a"),
        (f"post {RAYJOBS}", 404, 'namespaces "team-a" not found', "no namespace team-a"),
        (f"get {RAYJOBS}", 404, "the server could not find the requested resource", "knows no RayJobs"),
        (f"post {RAYJOBS}", 422, "spec.suspend: Invalid value", "refuses the RayJob"),
    ],
)
def test_what_the_cluster_refuses_is_one_line(where: str, status: int, message: str, says: str, emulator: Cluster) -> None:
    emulator.answer(where, message, status=status)
    error = Following().ended()
    assert isinstance(error, BadInput) and says in str(error) and message in str(error) and "\n" not in str(error)
    assert isinstance(error, InUse) == ("quota" in message), "a quota may have room later, the rest is for the user to mend"


@pytest.mark.parametrize(("status", "message"), [(500, "etcdserver: timeout"), (503, "unavailable"), (429, "too many requests")])
def test_a_server_that_fails_is_asked_again_then_left(
    status: int, message: str, emulator: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    emulator.answer(f"get {RAYJOBS}", message, status=status)
    error = Following().ended()
    assert isinstance(error, Failed) and f"out of reach ({status} {message})" in str(error)
    assert f"does not serve ({status} {message}), trying again" in capsys.readouterr().out


def test_names_that_are_all_taken_are_a_conflict(emulator: Cluster) -> None:
    meta = {"namespace": NAMESPACE, "labels": {"sr3.fingerprint": "0123456789abcdef"}}
    for number in range(20):
        job = {"metadata": {**meta, "name": f"{NAME[:-1]}{number}"}, "spec": {"entrypoint": "another"}}
        emulator.custom().create_namespaced_custom_object("ray.io", "v1", NAMESPACE, "rayjobs", job)
    error = Following().ended()
    assert isinstance(error, Failed) and "conflict (409)" in str(error)
    assert len(emulator.rayjobs()) == 20, "what others made is not removed"


def test_a_rayjob_whose_creation_was_not_answered_is_found(emulator: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    emulator.answer(f"post {RAYJOBS}", "upstream timed out", status=504)  # it is created all the same
    follower = Following()
    until(lambda: "which is there already" in capsys.readouterr().out)
    emulator.status(NAME, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    assert follower.ended() is None and emulator.rayjobs() == {}


def test_a_server_that_is_lost_leaves_the_job_to_the_next_try(emulator: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    follower = running(emulator)
    emulator.answer(f"get {RAYJOBS}/{NAME}", "unavailable", status=503)
    error = follower.ended()
    assert isinstance(error, Failed) and f"RayJob {NAME} goes on for 30 minutes: the same command follows it again" in str(error)
    assert NAME in emulator.rayjobs()
    emulator.log("submitter", ended=True)


@pytest.mark.parametrize(
    ("waiting", "says"),
    [
        (("ImagePullBackOff", 'Back-off pulling image "registry.example/sr3-train:0123abc"'), "cannot be pulled (pod head"),
        (("InvalidImageName", "couldn't parse image"), "cannot be pulled (pod head"),
        (("CreateContainerConfigError", 'secret "mlflow-login" not found'), 'secret "mlflow-login" not found'),
    ],
)
def test_pods_that_cannot_start(waiting: tuple[str, str], says: str, emulator: Cluster) -> None:
    follower = Following()
    until(lambda: NAME in emulator.rayjobs())
    emulator.pod("head", {"ray.io/cluster": "sr3-cluster"}, phase="Pending", waiting=waiting)
    emulator.status(NAME, jobDeploymentStatus="Initializing", rayClusterName="sr3-cluster")
    error = follower.ended()
    assert isinstance(error, BadInput) and says in str(error) and "\n" not in str(error)
    assert emulator.rayjobs() == {}


def test_pods_that_no_node_takes_are_waited_for_and_said_once(emulator: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    follower = Following()
    until(lambda: NAME in emulator.rayjobs())
    emulator.pod("worker", {"ray.io/cluster": "sr3-cluster"}, unplaced="0/3 nodes are available:\n3 Insufficient nvidia.com/gpu.")
    emulator.status(NAME, jobDeploymentStatus="Initializing", rayClusterName="sr3-cluster")
    line = f"sr3| ray RayJob {NAME} waits for a place: pod worker: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    said: list[str] = []
    until(lambda: line in (said.extend(capsys.readouterr().out.splitlines()) or said))
    time.sleep(3)  # two more looks
    emulator.status(NAME, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    assert follower.ended() is None
    assert [*said, *capsys.readouterr().out.splitlines()].count(line) == 1


def test_pods_that_the_quota_keeps_out_are_waited_for_and_said_once(emulator: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    """A stage beside this one may hold it; KubeRay gives the pod another name at each try."""
    follower = Following()
    line = f"sr3| ray RayJob {NAME} waits for a place: exceeded quota: gpus, requested: 2"
    said: list[str] = []
    until(lambda: NAME in emulator.rayjobs())
    for pod in ("w-1", "w-2", "w-3"):
        reason = {"type": "ReplicaFailure", "status": "True", "message": f'pods "{pod}" is forbidden: exceeded quota: gpus, requested: 2'}
        emulator.status(NAME, jobDeploymentStatus="Initializing", rayClusterStatus={"conditions": [reason]})
        until(lambda: line in (said.extend(capsys.readouterr().out.splitlines()) or said))
        time.sleep(2)  # one more look at least
    emulator.status(NAME, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED", rayClusterStatus={})
    assert follower.ended() is None
    assert [*said, *capsys.readouterr().out.splitlines()].count(line) == 1


def test_pods_that_found_no_place_in_time_may_be_tried_again(emulator: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    follower = Following()
    until(lambda: NAME in emulator.rayjobs())
    assert emulator.rayjobs()[NAME]["spec"]["preRunningDeadlineSeconds"] == PLACE_SECONDS
    emulator.pod("worker", {"ray.io/cluster": "sr3-cluster"}, unplaced="0/3 nodes are available.")
    emulator.status(NAME, jobDeploymentStatus="Initializing", rayClusterName="sr3-cluster")
    until(lambda: "waits for a place" in capsys.readouterr().out)
    emulator.status(NAME, jobDeploymentStatus="Failed", reason="PreRunningDeadlineExceeded", message="has passed")
    error = follower.ended()
    assert isinstance(error, Failed) and "found no place in 30 minutes, at last: pod worker: 0/3 nodes are available." in str(error)
    assert emulator.rayjobs() == {}


def test_pods_that_the_namespace_does_not_admit(emulator: Cluster) -> None:
    follower = Following()
    until(lambda: NAME in emulator.rayjobs())
    reason = {"type": "ReplicaFailure", "status": "True", "message": 'pods "w" is forbidden: violates PodSecurity'}
    emulator.status(NAME, jobDeploymentStatus="Initializing", rayClusterStatus={"conditions": [reason]})
    error = follower.ended()
    assert isinstance(error, BadInput) and not isinstance(error, InUse) and "violates PodSecurity" in str(error)


def test_a_log_that_may_not_be_read_does_not_end_the_job(emulator: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    emulator.answer(f"get /api/v1/namespaces/{NAMESPACE}/pods/submitter/log", "pods/log is forbidden", status=403)
    follower = Following()
    until(lambda: NAME in emulator.rayjobs())
    emulator.pod("submitter", {"job-name": NAME})
    until(lambda: "get pods/log is missing; the job goes on" in capsys.readouterr().out)
    emulator.status(NAME, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    assert follower.ended() is None


def refused(address: str = ADDRESS, **settings: Any) -> str:
    with pytest.raises(BadInput) as found:
        rayjobs.check_address(address, config.parse(config.Scaling, {"kubernetes": settings}))
    assert "\n" not in str(found.value)
    return str(found.value)


def test_checks_before_any_work(emulator: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rayjobs.check_address(ADDRESS, SCALING)
    rayjobs.check_address("kubernetes://", SCALING)  # the recipe names one
    assert rayjobs.namespace("kubernetes://", config.Scaling()) == NAMESPACE  # the pod's own
    assert "kubernetes://NAMESPACE" in refused("kubernetes://Team_A")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    assert "no credentials for Kubernetes" in refused()
    emulator.kubeconfig.write_text(emulator.kubeconfig.read_text().replace(emulator.url, f"http://127.0.0.1:{free_port()}"))
    monkeypatch.setenv("KUBECONFIG", str(emulator.kubeconfig))
    assert "does not answer" in refused()
    monkeypatch.delenv("POD_NAMESPACE")
    assert "without a namespace" in refused("kubernetes://")
    monkeypatch.delenv("SR3_IMAGE")
    assert "no image" in refused() and os.environ.get("SR3_IMAGE") is None


def test_an_owner_elsewhere_is_named(emulator: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("POD_NAMESPACE", "kubeflow")
    follower = running(emulator)
    assert "ownerReferences" not in emulator.rayjobs()[NAME]["metadata"]
    emulator.status(NAME, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    emulator.log("submitter", ended=True)
    assert follower.ended() is None and "outlives this pod" in capsys.readouterr().out
