"""The prepare room as a whole, over a real Ray: what it leaves, what it finds up to date, what it refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components import cluster
from components.prepare import main as room
from sr3_core import images, progress, storage
from sr3_core.artifacts.shardset import MANIFEST, ShardSet
from sr3_core.config import Data
from sr3_core.data import shards
from sr3_core.data.sources import folder
from sr3_core.errors import BadInput
from tests.conftest import REPOSITORY, RayHead, write_photos


def section(photos: Path | str, **changes: Any) -> str:
    values = {"source": "folder", "options": {"uri": str(photos)}, "levels": (16, 32), "shard_samples": 4}
    return Data.model_validate({**values, **changes}).canonical_json()


def prepare(photos: Path | str, root: Path, *, ray_address: str = "127.0.0.1:1", **changes: Any) -> room.PrepareResult:
    """By default with an address where no Ray answers: what is up to date or refused starts none."""
    return room.run(
        section=section(photos, **changes), scaling='{"workers": 1}', root=str(root), mlflow_uri=f"sqlite:///{root}/mlflow.db",
        run_key="k", ray_address=ray_address, recipe_name="test",
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(ray_head: RayHead, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, room.PrepareResult]:
    root = tmp_path_factory.mktemp("prepare") / "root"
    return root, prepare(photos, root, ray_address=ray_head.address)


def test_shards_made_over_ray_are_those_made_in_process(finished: tuple[Path, room.PrepareResult], photos: Path, tmp_path: Path) -> None:
    _, result = finished
    made = ShardSet.open(result.shards_uri)
    made.verify()
    assert made.manifest_sha256 == result.shards_sha256
    assert made.manifest["accepted"] == 14
    examples = folder.examples(folder.Options(uri=str(photos)))
    alone = shards.build(str(tmp_path / "alone"), made.data, examples, fingerprint=made.manifest["fingerprint"])
    assert alone.manifest_sha256 == result.shards_sha256
    names = {info.path_relative for info in storage.list_files(result.shards_uri)}
    assert names == {info.path_relative for info in storage.list_files(alone.uri)}  # no lease and no scratch left


def test_a_second_run_does_nothing_and_says_so(
    finished: tuple[Path, room.PrepareResult], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, result = finished
    before = {path: path.stat().st_mtime_ns for path in (root / "shards").rglob("*")}
    assert prepare(photos, root) == result
    assert "sr3| prepare up to date: train" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (root / "shards").rglob("*")} == before


def test_a_changed_shard_is_said_and_made_anew(
    finished: tuple[Path, room.PrepareResult], photos: Path, ray_head: RayHead, capsys: pytest.CaptureFixture[str]
) -> None:
    root, result = finished
    tar = next((root / "shards").rglob("train/000000.tar"))
    whole = tar.read_bytes()
    tar.write_bytes(whole[:-1] + b"x")
    assert prepare(photos, root, ray_address=ray_head.address) == result
    said = capsys.readouterr().out
    assert "train/000000.tar changed (its sha256 differs): made anew" in said
    assert "shards were done already" in said
    assert tar.read_bytes() == whole


def test_another_section_or_source_is_another_folder(photos: Path) -> None:
    data = Data.model_validate_json(section(photos))
    other = data.model_copy(update={"degradation": "box"})
    marks = {room.fingerprint(data, "a"), room.fingerprint(data, "b"), room.fingerprint(other, "a")}
    assert len(marks) == 3


def test_the_run_is_in_mlflow(finished: tuple[Path, room.PrepareResult]) -> None:
    from sr3_core import tracking

    root, result = finished
    client = tracking.client(f"sqlite:///{root}/mlflow.db")
    assert client.get_run(result.mlflow_run_id).data.tags["sr3.run_key"] == "k"
    runs = client.search_runs([tracking.experiment_id(f"sqlite:///{root}/mlflow.db")], filter_string="tags.`sr3.task` = 'prepare'")
    assert {run.data.tags["sr3.shards_sha256"] for run in runs} == {result.shards_sha256}
    assert runs[0].data.metrics["accepted"] == 14
    assert runs[0].data.tags["sr3.code"] == cluster.code_hash() and {"data.levels", "scaling.workers"} <= runs[0].data.params.keys()


@pytest.mark.parametrize("inside", ["", "runs", "a/b"])
def test_root_in_the_source_is_refused(photos: Path, inside: str) -> None:
    with pytest.raises(BadInput, match="inside the source"):
        prepare(photos, photos / inside)
    assert not (photos / "shards").exists()


def test_root_in_the_source_by_a_link_is_refused(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(photos)
    with pytest.raises(BadInput, match="inside the source"):
        prepare(photos, tmp_path / "link" / "runs")
    room.refuse_root_inside(str(photos) + "-runs", str(photos))
    room.refuse_root_inside("gs://bucket/photos-2", "gs://bucket/photos")
    with pytest.raises(BadInput, match="inside the source"):
        room.refuse_root_inside("gs://bucket/photos/x", "gs://bucket/photos/")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"source": "foldr"}, r"unknown data\.sources plug-in 'foldr'; allowed: folder"),
        ({"options": {"uri": "x", "urls": "x"}}, r"unknown key data\.options\.urls; allowed: uri"),
        ({"options": {}}, r"no value for data\.options\.uri"),
    ],
)
def test_a_section_that_cannot_be(photos: Path, tmp_path: Path, changes: dict[str, Any], line: str) -> None:
    with pytest.raises(BadInput, match=line):
        prepare(photos, tmp_path / "root", **changes)
    assert not (tmp_path / "root" / "shards").exists()


def test_a_root_that_cannot_be_written(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadInput, match="cannot be written"):
        prepare(photos, tmp_path / "file" / "root")


def test_no_ray_there_leaves_nothing_a_later_run_would_trust(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no Ray at 127\.0\.0\.1:1"):
        prepare(photos, tmp_path / "root")
    assert not list((tmp_path / "root" / "shards").rglob(MANIFEST))


def test_the_command_reads_a_recipe_and_ends_with_its_code(tmp_path: Path, ray_head: RayHead) -> None:
    write_photos(tmp_path / "my 100% photos#1", 6)

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        start = [sys.executable, "-m", "components.prepare", "--root", "runs", "--ray-address", ray_head.address]
        return subprocess.run([*start, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True)

    recipe = ("--recipe", str(REPOSITORY / "tests/recipes/tiny.yaml"), "--set")
    done = command(*recipe, "data.options.uri=my 100% photos#1")
    assert done.returncode == 0, done.stdout + done.stderr
    uri, sha256 = done.stdout.splitlines()[-2].split(" ")
    assert ShardSet.open(uri).manifest_sha256 == sha256
    assert uri.startswith(str(tmp_path / "runs" / "shards"))
    assert all(line.startswith(progress.PREFIX) for line in done.stdout.splitlines() if not line.startswith(uri))

    done = command(*recipe, "data.options.uri=gone")
    assert done.returncode == 2
    assert f"bad input: {tmp_path}/gone does not exist" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    error = json.loads((tmp_path / "runs" / "runs" / "prepare" / "prepare.error.json").read_text())
    assert error["exit"] == 2

    done = command()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("bad input: neither --recipe nor --section")


def test_killed_workers_and_a_store_that_fails_leave_the_shards_as_they_should_be(ray_head: RayHead, photos: Path, tmp_path: Path) -> None:
    from tests.plugins import tasks

    data = Data.model_validate_json(section(photos))
    examples = list(folder.examples(folder.Options(uri=str(photos))))
    alone = shards.build(str(tmp_path / "alone"), data, examples, fingerprint="f")

    def mapper(function: Any, items: Any, on_done: Any) -> list[Any]:
        if function is not shards.make_shard:
            return shards.in_process(function, items, on_done)
        how = {0: "killed", 1: "raised", 2: "killed"}
        troubled = [tasks.Troubled(str(tmp_path / f"tried {number}"), how.get(number, "raised"), task) for number, task in enumerate(items)]
        return cluster.map_tasks(tasks.make_shard_on_second_try, troubled, on_done=lambda item, result: on_done(item.task, result))

    with cluster.connect(ray_head.address, workers=1, cpus_per_worker=1, room="test"):
        made = shards.build(str(tmp_path / "out"), data, examples, fingerprint="f", mapper=mapper)
    made.verify()
    assert made.manifest_sha256 == alone.manifest_sha256
    assert len(list(tmp_path.glob("tried *"))) == len(made.manifest["shards"]) > 3


def test_a_task_that_dies_is_tried_again_and_bad_input_passes_through(ray_head: RayHead, tmp_path: Path) -> None:
    """A photo that changes between listing and writing is the user's to mend, also when a Ray worker meets it."""
    write_photos(tmp_path / "photos", 4)
    data = Data.model_validate_json(section(tmp_path / "photos"))
    uri = str(tmp_path / "out")
    shards.build(uri, data, folder.examples(folder.Options(uri=str(tmp_path / "photos"))), fingerprint="f")
    record = ShardSet.open(uri).sample("train", 0)
    assert record.source
    kept = storage.join(uri, shards.INSPECTED)
    examples = list(folder.examples(folder.Options(uri=str(tmp_path / "photos"))))
    seen = shards.inspect_all(shards.InspectTask(tuple(examples), data))
    storage.remove(uri, recursive=True)
    storage.write_bytes(kept, "".join(json.dumps(vars(photo)) + "\n" for photo in seen).encode())
    storage.write_bytes(examples[0].uri, images.encode(np.zeros((40, 48, 3), np.uint8)))

    with (
        cluster.connect(ray_head.address, workers=1, cpus_per_worker=1, room="test"),
        pytest.raises(BadInput, match="changed while prepare ran"),
    ):
        shards.build(uri, data, examples, fingerprint="f", mapper=room._over_ray)  # pyright: ignore[reportPrivateUsage]
