"""The whole DAG through KFP's local engine on generated images, from a hostile folder, with secrets in the environment."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from sr3_core import images
from sr3_core.artifacts.report import EvalReport
from sr3_core.artifacts.shardset import ShardSet
from tests.conftest import RECIPES, Ended

CANARY = "c4n4ry-b7d1"
HOSTILE = "import pathlib; pathlib.Path(__file__).with_name('ran').touch(); raise SystemExit('hostile code ran')\n"


@dataclass(frozen=True)
class Finished:
    """A finished run: its root, the folder it was started from, Ray's own files, the command and how it ended."""

    root: Path
    folder: Path
    ray: Path
    command: tuple[str, ...]
    environment: dict[str, str]
    ended: Ended


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, photos: Path, sr3: Callable[..., Ended]) -> Iterator[Finished]:
    folder = tmp_path_factory.mktemp("hostile")
    for name in ("components/__init__.py", "components/train/__init__.py", "pipeline.py", "sr3_core/__init__.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(HOSTILE)
    (folder / "credentials.json").write_text(json.dumps({"private_key": CANARY}))
    ray = Path(tempfile.mkdtemp(prefix="sr3-", dir="/tmp"))  # short: Ray's sockets lie in it
    environment = {
        "RAY_TMPDIR": str(ray),
        "GOOGLE_APPLICATION_CREDENTIALS": str(folder / "credentials.json"),
        **dict.fromkeys(
            ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MLFLOW_TRACKING_PASSWORD", "HF_TOKEN"), CANARY
        ),
    }
    root = tmp_path_factory.mktemp("root") / "runs here"  # with a space: paths are quoted on their way
    command = ("run", str(RECIPES / "tiny.yaml"), "--set", f"data.options.uri={photos}", "--root", str(root))
    yield Finished(root, folder, ray, command, environment, sr3(*command, cwd=folder, environment=environment))
    shutil.rmtree(ray, ignore_errors=True)


def test_it_ends_with_the_table_and_what_to_do_next(finished: Finished) -> None:
    ended = finished.ended
    assert ended.code == 0, ended.stdout + ended.stderr
    lines = ended.stdout.splitlines()
    assert lines[0] == f"log: {next(finished.root.glob('runs/*/run.log'))}"
    assert any(re.match(r"stage +metric +ours +bicubic", line) for line in lines)
    shown = dict(re.findall(r"^(report|time|memory|mlflow|next): +(.*)$", ended.stdout, re.MULTILINE))
    assert Path(shown["report"]).is_file() and "sr3 upscale" in shown["next"] and str(finished.root) in shown["mlflow"]
    assert re.match(r"\d+ s \(prepare \d+ s, train-x2 \d+ s, evaluate \d+ s, export \d+ s\)", shown["time"])
    assert 0.2 < float(shown["memory"].split()[0]) < 8


def test_every_room_left_what_the_next_one_verifies(finished: Finished) -> None:
    shards = ShardSet.open(str(next(finished.root.glob("shards/*"))))
    shards.verify()
    bundle = next(finished.root.glob("train/x2/*/bundle/bundle.json"))
    assert json.loads(bundle.read_text())["lineage"]["shards_sha256"] == shards.manifest_sha256
    report = EvalReport.open(str(next(finished.root.glob("eval/*/report.json")).parent))
    assert report.passed and {result["model"] for result in report.content["results"]} >= {"ours", "bicubic", "lanczos"}
    assert not list(finished.root.glob("runs/*/*.error.json"))


SECTIONS = {
    "prepare": {"data", "scaling"},
    "train-x2": {"stage", "scaling"},
    "evaluate": {"evaluation", "scaling"},
    "export": {"export"},
}


def test_mlflow_holds_one_finished_parent_with_its_rooms_and_the_model(finished: Finished) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{finished.root}/mlflow.db")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 1 and parents[0].info.status == "FINISHED"
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id]
    assert len(children) == 4 and {run.info.status for run in children} == {"FINISHED"}
    code = {(run.data.tags["sr3.code"], run.data.tags["sr3.lock_sha256"], run.data.tags.get("sr3.git_commit")) for run in children}
    assert len(code) == 1, "every room says which code it ran"
    sections = {run.data.tags["sr3.task"]: {name.split(".")[0] for name in run.data.params} for run in children}
    assert all(own <= sections[task] for task, own in SECTIONS.items()), sections
    assert str(client.get_model_version_by_alias("tiny", "champion").version) == "1"


def test_hostile_code_did_not_run(finished: Finished) -> None:
    assert not list(finished.folder.rglob("ran"))
    assert {path.name for path in finished.folder.iterdir()} == {"components", "pipeline.py", "sr3_core", "credentials.json"}


def test_no_secret_is_written_anywhere(finished: Finished) -> None:
    assert CANARY not in finished.ended.stdout + finished.ended.stderr
    files = [path for place in (finished.root, finished.ray) for path in place.rglob("*") if path.is_file()]
    assert len(files) > 30
    assert not [path for path in files if CANARY.encode() in path.read_bytes()]


def test_no_process_is_left(finished: Finished) -> None:
    mark = str(finished.ray).encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                assert mark not in (entry / "environ").read_bytes(), (entry / "cmdline").read_bytes()
            except OSError:
                continue


def test_the_same_command_again_does_nothing(finished: Finished, sr3: Callable[..., Ended]) -> None:
    kept = {
        path: path.stat().st_mtime_ns
        for part in ("shards", "train", "eval", "export")
        for path in (finished.root / part).rglob("*")
        if path.is_file()
    }
    again = sr3(*finished.command, cwd=finished.folder, environment=finished.environment)
    assert again.code == 0, again.stdout + again.stderr
    assert again.stdout.count("up to date") >= 3
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_upscale_uses_the_registered_champion(finished: Finished, sr3: Callable[..., Ended], tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (19, 27, 3), dtype=np.uint8)
    (tmp_path / "photo.png").write_bytes(images.encode(image, format="png", quality=95))
    command = (
        "upscale",
        "photo.png",
        "-o",
        "big.png",
        "--model",
        "models:/tiny@champion",
        "--mlflow-uri",
        f"sqlite:///{finished.root}/mlflow.db",
    )
    done = sr3(*command, cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert images.decode((tmp_path / "big.png").read_bytes(), channels=3).shape == (38, 54, 3)
    refused = sr3(*command, cwd=tmp_path)
    assert refused.code == 2 and "big.png exists" in refused.stderr and refused.stderr.count("\n") == 1


def test_upscale_without_a_model_names_the_three_places(sr3: Callable[..., Ended], tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(images.encode(np.zeros((8, 8, 3), np.uint8), format="png", quality=95))
    done = sr3("upscale", "photo.png", "-o", "big.png", cwd=tmp_path)
    assert done.code == 2 and done.stderr.count("\n") == 1
    assert all(place in done.stderr for place in ("--mlflow-uri", "MLFLOW_TRACKING_URI", "default root")), done.stderr
    assert not (tmp_path / "big.png").exists() and not (tmp_path / "sr3-runs").exists()


def test_the_project_can_be_imported_from_anywhere(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from components import entry; entry.check_code_lookup()"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
