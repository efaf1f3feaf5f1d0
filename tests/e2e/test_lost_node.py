"""Training on three Ray nodes of which one is announced to go away and another is lost: it goes on with who is left, to the same end."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sr3_core import config, processes, storage
from sr3_core.artifacts.shardset import ShardSet
from sr3_core.config import Data, Stage
from sr3_core.data import shards as writer
from sr3_core.data.sources import folder as source
from sr3_core.training.loop import train
from sr3_core.training.state import CheckpointStore
from sr3_core.training.worker import LocalWorker
from tests.components.test_train import STAGE, Run
from tests.conftest import BIN, REPOSITORY, write_photos

pytestmark = pytest.mark.timeout(900)

# no checkpoint before the last but those of a notice: what is resumed from tells which it was
TRAINING = {
    "images": 480, "global_batch": 12, "micro_batch": 2, "checkpoint_images": 480, "log_images": 12, "reduce_dtype": "float64",
}  # fmt: skip


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder for Ray: below it a socket's path stays within 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="sr3-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture
def three_nodes(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head and two more raylets of one CPU each."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("RAY_TMPDIR", str(short_folder))  # else the address of this head would pass for that of the user's cluster
    from components import cluster

    cluster.quieten()
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 100_000_000})
    try:
        for number in (2, 3):  # addresses of their own: the room connects to the raylet of this machine's
            nodes.add_node(num_cpus=1, object_store_memory=100_000_000, node_ip_address=f"127.0.0.{number}")
        nodes.wait_for_nodes()
        yield nodes
    finally:
        nodes.shutdown()


@pytest.fixture
def shards(tmp_path: Path) -> ShardSet:
    """Twelve photos at 16 and 32 pixels."""
    write_photos(tmp_path / "photos", 12)
    options = {"uri": str(tmp_path / "photos")}
    data = config.parse(Data, {"source": "folder", "options": options, "levels": [16, 32], "split": {"val": 0.2, "test": 0.2}})
    return writer.build(str(tmp_path / "shards"), data, source.examples(source.Options(**options)), fingerprint="test")


@pytest.fixture
def room(tmp_path: Path, shards: ShardSet, three_nodes: Any) -> Iterator[Run]:
    command = [sys.executable, "-m", "components.train", f"--section={stage().canonical_json()}", f"--shards-uri={shards.uri}"]
    command += ['--scaling={"workers": 3, "min_workers": 1, "cpus_per_worker": 1}', f"--root={tmp_path / 'root'}"]
    process = subprocess.Popen(
        [*command, f"--ray-address={three_nodes.address}"],
        cwd=REPOSITORY,
        env={**os.environ, "SR3_PROGRESS_SECONDS": "0", "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    yield Run(process)
    if process.poll() is None:
        below = processes.descendants(process.pid)
        process.kill()
        process.wait()
        processes.end(below, patience_seconds=2)


def stage() -> Stage:
    return config.parse(Stage, {**STAGE, "training": TRAINING})


def seen(line: str) -> int:
    """Images seen by a progress line."""
    return int(line.partition("/480 images")[0].rpartition(" ")[2])


def test_training_goes_on_with_the_nodes_that_are_left(tmp_path: Path, shards: ShardSet, three_nodes: Any, room: Run) -> None:
    room.until(lambda line: "/480 images" in line and seen(line) >= 12)
    announced, lost = three_nodes.worker_nodes
    drain = ["drain-node", "--address", three_nodes.address, "--node-id", announced.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    subprocess.run([str(BIN / "ray"), *drain, "--reason-message", "test", "--deadline-remaining-seconds", "600"], check=True, timeout=60)
    resumed = room.until(lambda line: "resuming at" in line)
    position = int(resumed.split("resuming at ")[1].split()[0])
    before = max(seen(line) for line in room.lines if "/480 images" in line)
    assert 0 < before == position < 480, "a step was lost, or the notice did nothing"
    assert "world_size 3 -> 2" in room.until(lambda line: "another environment" in line)

    room.until(lambda line: "/480 images" in line and seen(line) > position)
    three_nodes.remove_node(lost, allow_graceful=False)
    again = room.until(lambda line: "resuming at" in line)
    assert f"resuming at {position} of" in again  # nobody announced it
    assert "world_size 3 -> 1" in room.until(lambda line: "another environment" in line)
    assert room.end() == 0, "".join(room.lines)

    alone = CheckpointStore(str(tmp_path / "alone"), keep=1, say=print)
    torch.set_num_threads(1)
    train(stage(), shards, worker=LocalWorker(), checkpoints=alone, log=lambda at, line: None, say=print)
    (manifest,) = (tmp_path / "root").glob("train/*/*/checkpoints/000000000480/state.json")
    there, here = (json.loads(text) for text in (manifest.read_text(), storage.read_bytes(f"{alone.uri}/000000000480/state.json")))
    assert there["logged"]["loss"] == pytest.approx(here["logged"]["loss"], rel=1e-4)
