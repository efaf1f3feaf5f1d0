"""A single room by ``ray job submit --working-dir .`` on a Ray head, as the README shows it."""

import subprocess
import sys
from pathlib import Path

import pytest

from sr3_core import config
from sr3_core.artifacts.bundle import ModelBundle
from sr3_core.artifacts.shardset import ShardSet
from sr3_core.config import Data
from sr3_core.data import shards
from sr3_core.data.sources import folder
from tests.conftest import BIN, RECIPES, REPOSITORY, RayHead, write_photos


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Twelve photos at 16 and 32 pixels."""
    at = tmp_path_factory.mktemp("shards")
    write_photos(at / "photos", 12)
    data = config.parse(Data, {"source": "folder", "options": {"uri": str(at / "photos")}, "levels": [16, 32]})
    return shards.build(str(at / "out"), data, folder.examples(folder.Options(uri=str(at / "photos"))), fingerprint="test")


def submitted(command: list[str], made: ShardSet, root: Path) -> str:
    """The output of ``command``, which must end well with a bundle below ``root``."""
    ended = subprocess.run(command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-2000:]
    assert "sr3| train-x2 Ray at " in ended.stdout and "sr3| train x2 48/48 images" in ended.stdout
    (place,) = (root / "train" / "x2").glob("*/bundle")
    assert ModelBundle.load(str(place)).manifest["lineage"]["shards_sha256"] == made.manifest_sha256
    return ended.stdout


def room(made: ShardSet, root: Path) -> list[str]:
    stage = ["--recipe", str(RECIPES / "tiny.yaml"), "--stage", "x2"]
    return ["-m", "components.train", *stage, "--shards-uri", made.uri, "--root", str(root)]


def test_the_train_room_as_a_ray_job(tmp_path: Path, made: ShardSet, ray_head: RayHead) -> None:
    submit = [str(BIN / "ray"), "job", "submit", "--address", ray_head.jobs, "--working-dir", "."]
    submitted([*submit, "--", "python", *room(made, tmp_path)], made, tmp_path)


def test_the_train_room_submits_itself_to_a_job_address(tmp_path: Path, made: ShardSet, ray_head: RayHead) -> None:
    said = submitted([sys.executable, *room(made, tmp_path), "--ray-address", ray_head.jobs], made, tmp_path)
    assert f"to {ray_head.jobs}" in said and "bundle -> " in said
