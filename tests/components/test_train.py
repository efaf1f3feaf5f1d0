"""The train room as a person runs it: on a Ray of its own, with a worker killed in the middle, and again when all is done."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from components import cluster
from components.train import main as room
from sr3_core import config, images, processes, storage, tracking
from sr3_core.artifacts.bundle import ModelBundle
from sr3_core.artifacts.shardset import ShardSet
from sr3_core.config import Data, Stage
from sr3_core.data import shards as writer
from sr3_core.data.sources import folder as source
from sr3_core.errors import BadInput, Failed
from sr3_core.training.watching import GAP, held_out
from tests.conftest import REPOSITORY, write_photos

TRAINING = {"images": 320, "global_batch": 8, "micro_batch": 2, "checkpoint_images": 32, "log_images": 32}
STAGE = {
    "name": "x2",
    "low": 16,
    "high": 32,
    "model": {
        "name": "unet",
        "options": {"channels": 32, "multipliers": [1, 2, 2], "blocks": 2, "middle_attention": False, "dropout": 0.1},
    },
    "objective": {"name": "diffusion", "options": {"prediction": "v", "target": "residual"}},
    "training": TRAINING,
    "sampling": {"sampler": "ddim", "steps": 2},
}
WATCHED = {**TRAINING, "watch": {"images": 160, "samples": 2, "loss_samples": 4}}
TWO_WORKERS = '{"workers": 2, "cpus_per_worker": 1}'


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Twelve photos at 16 and 32 pixels."""
    at = tmp_path_factory.mktemp("shards")
    write_photos(at / "photos", 12)
    data = config.parse(
        Data, {"source": "folder", "options": {"uri": str(at / "photos")}, "levels": [16, 32], "split": {"val": 0.2, "test": 0.2}}
    )
    return writer.build(str(at / "out"), data, source.examples(source.Options(uri=str(at / "photos"))), fingerprint="test")


def section(**changes: Any) -> str:
    return config.parse(Stage, {**STAGE, **changes}).canonical_json()


@dataclass
class Run:
    """The room in a process of its own, its lines read as they come."""

    process: "subprocess.Popen[str]"
    lines: list[str] = field(default_factory=list)

    def until(self, condition: Callable[[str], bool]) -> str:
        """The first further line that meets ``condition``; fails with the log when the room ends before."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if condition(line):
                return line
        raise AssertionError(f"the room ended with {self.process.wait()}:\n{''.join(self.lines)}")

    def end(self) -> int:
        assert self.process.stdout is not None
        self.lines += self.process.stdout
        return self.process.wait(60)


@pytest.fixture
def start(shards: ShardSet) -> Iterator[Callable[..., Run]]:
    started: list[Run] = []

    def begin(root: Path, *arguments: str) -> Run:
        command = [sys.executable, "-m", "components.train", f"--section={section(training=WATCHED)}", f"--scaling={TWO_WORKERS}"]
        process = subprocess.Popen(
            [*command, f"--shards-uri={shards.uri}", f"--root={root}", *arguments],
            cwd=REPOSITORY,
            env={**os.environ, "SR3_PROGRESS_SECONDS": "0", "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(Run(process))
        return started[-1]

    yield begin
    for run in started:
        if run.process.poll() is None:
            below = processes.descendants(run.process.pid)
            run.process.kill()
            run.process.wait()
            processes.end(below, patience_seconds=2)


def workers_of(run: Run) -> list[int]:
    """Pids of Ray Train's workers, whose process title Ray sets."""
    below = processes.descendants(run.process.pid)
    return [pid for pid in below if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::RayTrainWorker")]


def trained_by_gloo(folder: Path, shards: ShardSet) -> dict[str, str]:
    """sha256 of the final state's files after undisturbed training by two plain gloo processes."""
    command = [sys.executable, "-m", "tests.plugins.gloo_stage", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    group = [subprocess.Popen([*command, str(rank), "2", section(), shards.uri], env=environment) for rank in range(2)]
    assert [process.wait(200) for process in group] == [0, 0]
    return state_files(folder / "checkpoints")


def state_files(checkpoints: Path) -> dict[str, str]:
    newest = sorted(checkpoints.iterdir())[-1]
    assert int(newest.name) == TRAINING["images"]
    return {name: entry["sha256"] for name, entry in json.loads((newest / "state.json").read_text())["files"].items()}


def test_a_killed_worker_changes_nothing_and_a_second_run_does_nothing(tmp_path: Path, start: Callable[..., Run], shards: ShardSet) -> None:
    root = tmp_path / "root"
    run = start(root)
    run.until(lambda line: "64/320 images" in line)
    os.kill(workers_of(run)[1], signal.SIGKILL)
    resumed = run.until(lambda line: line.startswith("sr3| ") and "resuming at" in line)
    assert 32 <= int(resumed.split("resuming at ")[1].split()[0]) < 320
    assert run.end() == 0, "".join(run.lines)

    folder = next((root / "train" / "x2").iterdir())
    assert state_files(folder / "checkpoints") == trained_by_gloo(tmp_path, shards)
    bundle = ModelBundle.load(str(folder / "bundle"))
    assert run.lines[-2].split() == [bundle.uri, bundle.manifest_sha256] or f"{bundle.uri} {bundle.manifest_sha256}\n" in run.lines
    assert bundle.manifest["lineage"]["images_seen"] == 320 and bundle.manifest["lineage"]["shards_sha256"] == shards.manifest_sha256
    assert sorted(path.name for path in folder.iterdir()) == ["bundle", "checkpoints"]
    assert not list((root / "work").glob("ray*"))

    uri = tracking.default_uri(str(root))
    client = tracking.client(uri)
    (logged,) = client.search_runs([tracking.experiment_id(uri)])
    assert logged.info.status == "FINISHED" and logged.data.params["stage.training.images"] == "320"
    for name in ("loss", "gradient_norm", "learning_rate", "images_per_second"):
        steps = [metric.step for metric in client.get_metric_history(logged.info.run_id, name)]
        assert steps == list(range(32, 321, 32)), name  # what was replayed is told once
    assert [metric.step for metric in client.get_metric_history(logged.info.run_id, "validation/loss")] == [160, 320]
    pictures = client.list_artifacts(logged.info.run_id, "samples")
    assert [item.path for item in pictures] == ["samples/000000000160.png", "samples/000000000320.png"]
    (beside,) = root.rglob("000000000320.png")
    assert images.decode(beside.read_bytes(), channels=3).shape == (2 * 32 + GAP, 3 * 32 + 2 * GAP, 3)
    lock = storage.sha256(str(REPOSITORY / cluster.LOCK))
    assert logged.data.tags["sr3.lock_sha256"] == lock and logged.data.tags["sr3.code"] == cluster.code_hash()
    assert logged.data.tags.get("sr3.git_commit") == bundle.manifest["lineage"]["git_commit"]
    assert logged.data.tags["sr3.environment.world_size"] == "2" and logged.data.tags["sr3.environment.device"] == "cpu"
    assert client.get_metric_history(logged.info.run_id, "loss_by_half_log_snr/0 to 2")
    assert logged.data.params["scaling.workers"] == "2" and logged.data.params["shards"] == shards.uri

    before = time.monotonic()
    again = start(root)
    assert again.end() == 0, "".join(again.lines)
    assert any("up to date" in line for line in again.lines) and not any("Ray of its own" in line for line in again.lines)
    assert time.monotonic() - before < 60


def in_process(root: Path, shards: ShardSet, **changes: Any) -> room.TrainResult:
    place = {
        "shards_uri": shards.uri,
        "shards_sha256": shards.manifest_sha256,
        "root": str(root),
        "mlflow_uri": f"sqlite:///{root}/mlflow.db",
    }
    return room.run(**{"section": section(), "scaling": TWO_WORKERS, "run_key": "test", **place, **changes})


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"scaling": '{"workers": 3}'}, "global_batch 8 with micro_batch 2 on 3 workers"),
        ({"scaling": '{"workers": 4, "min_workers": 2}'}, "global_batch 8 with micro_batch 2 on 3 workers"),
        ({"scaling": '{"workers": 1, "min_workers": 2}'}, "min_workers 2 must be at most workers 1"),
        ({"scaling": '{"wrkers": 3}'}, "unknown key wrkers; allowed: workers"),
        ({"section": "{"}, "a Stage section that is not JSON"),
        (
            {"section": section(training={**TRAINING, "watch": {"images": 32, "sampling": {"stpes": 1}}})},
            "unknown key stage x2: sampling.options.stpes; allowed: steps (nearest)",
        ),
        ({"section": section(objective={"name": "difusion"})}, "unknown objectives plug-in 'difusion'; allowed: diffusion"),
        ({"section": section(high=64)}, "64"),
        ({"shards_sha256": "0" * 64}, "with manifest sha256"),
        ({"shards_uri": "/nowhere"}, "/nowhere"),
        ({"ray_address": "127.0.0.1:1"}, "no Ray at 127.0.0.1:1"),
        ({"mlflow_uri": "http://127.0.0.1:1"}, "MLflow at http://127.0.0.1:1 does not answer"),
    ],
)
def test_bad_input_is_refused_before_any_work(tmp_path: Path, shards: ShardSet, changes: dict[str, Any], line: str) -> None:
    with pytest.raises(BadInput) as refused:
        in_process(tmp_path, shards, **changes)
    assert line in str(refused.value)
    assert not list(tmp_path.glob("train/*/*/checkpoints")) and not list(tmp_path.glob("train/*/*/bundle"))


def test_what_is_watched_is_the_same_images_of_the_named_split_unturned(shards: ShardSet) -> None:
    stage = config.parse(Stage, section(training={**WATCHED, "seed": 5}))
    seen = held_out(shards, stage)
    count = shards.count("val")
    batch = seen.batch(0, count)
    assert sorted(batch.keys) == sorted(shards.sample("val", index).key for index in range(count))
    place = next(index for index in range(count) if shards.sample("val", index).key == batch.keys[0])
    assert (images.from_unit(batch.high[0].numpy()) == shards.image("val", place, 32)).all()
    assert (seen.batch(0, 1).high[0] == batch.high[0]).all() and seen.batch(count, 1).keys[0] in batch.keys


def test_ray_keeps_its_state_wherever_storage_can_write() -> None:
    cluster.quieten()
    from components.train import ray_launcher

    assert ray_launcher.ray_storage("/runs/train") == {"storage_path": "/runs/train"}
    uri = "memory://bucket/train"
    given = ray_launcher.ray_storage(uri)
    with given["storage_filesystem"].open_output_stream(f"{given['storage_path']}/ray/marker") as stream:
        stream.write(b"x")
    assert storage.read_bytes(f"{uri}/ray/marker") == b"x"
    storage.remove(uri, recursive=True)


def test_more_workers_than_resources_is_refused(tmp_path: Path, shards: ShardSet, ray_head: Any) -> None:
    with pytest.raises(BadInput, match="what is there: 4 CPU, 0 GPU"):
        in_process(tmp_path, shards, scaling='{"workers": 2, "accelerator": "gpu"}', ray_address=ray_head.address)


def test_an_event_that_the_driver_cannot_record_is_not_lost(ray_head: Any) -> None:
    """An error of ``on_event`` (here: a tracking server that is gone) is kept for ``fit`` to raise; the events after it are handed on."""
    heard: list[str] = []
    errors: list[Exception] = []

    def on_event(event: tuple[Any, ...]) -> None:
        heard.append(event[1])
        if event[1] == "first":
            raise ConnectionError("no tracking server")

    with cluster.connect(ray_head.address, workers=1):
        import ray

        from components.train import ray_launcher

        mailbox: Any = ray.remote(num_cpus=0)(ray_launcher.Mailbox).remote()
        ended = threading.Event()
        follower = threading.Thread(target=ray_launcher.follow, args=(mailbox, on_event, ended, errors))
        follower.start()
        ray.get([mailbox.put.remote(("say", text)) for text in ("first", "second")])
        ended.set()
        follower.join()
    assert heard == ["first", "second"]
    assert [str(error) for error in errors] == ["no tracking server"]


def test_a_loss_that_is_not_finite_ends_the_run_without_restarts(tmp_path: Path, shards: ShardSet, ray_head: Any) -> None:
    objective = {"name": "tests.plugins.tiny_objective", "options": {"width": 8, "poison": 41}}
    poisoned = section(objective=objective, model={"name": "tests.plugins.tiny_objective"}, sampling={})
    with pytest.raises(Failed, match="stage x2, images 40 to 48, turn net: loss nan"):
        in_process(tmp_path, shards, section=poisoned, ray_address=ray_head.address)
    assert sorted(path.name for path in (next((tmp_path / "train" / "x2").iterdir()) / "checkpoints").iterdir()) == ["000000000032"]
    assert not list(tmp_path.glob("train/x2/*/ray*"))
    ended = tracking.client(f"sqlite:///{tmp_path}/mlflow.db")
    assert [run.info.status for run in ended.search_runs([tracking.experiment_id(f"sqlite:///{tmp_path}/mlflow.db")])] == ["FAILED"]
