"""Attempts of one work as RayJobs, on an emulated API server: what a job is handed, who owns it, who follows it, what is left."""

import json
import shlex
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from components import jobs
from components.evaluate import main as evaluate
from components.train import main as train
from sr3_core import config
from sr3_core.artifacts.shardset import ShardSet
from sr3_core.errors import Failed
from tests.components.evaluation import SECTION
from tests.components.following import ADDRESS, until
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
