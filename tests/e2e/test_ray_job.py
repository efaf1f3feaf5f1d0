"""A single room by ``ray job submit --working-dir .`` on a Ray head, as the README shows it."""

import subprocess
from pathlib import Path

from sr3_core import config
from sr3_core.artifacts.bundle import ModelBundle
from sr3_core.config import Data
from sr3_core.data import shards
from sr3_core.data.sources import folder
from tests.conftest import BIN, RECIPES, REPOSITORY, RayHead, write_photos


def test_the_train_room_as_a_ray_job(tmp_path: Path, ray_head: RayHead) -> None:
    write_photos(tmp_path / "photos", 12)
    data = config.parse(Data, {"source": "folder", "options": {"uri": str(tmp_path / "photos")}, "levels": [16, 32]})
    made = shards.build(str(tmp_path / "shards"), data, folder.examples(folder.Options(uri=str(tmp_path / "photos"))), fingerprint="test")
    room = ["python", "-m", "components.train", "--recipe", str(RECIPES / "tiny.yaml"), "--stage", "x2", "--shards-uri", made.uri]
    command = [
        str(BIN / "ray"),
        "job",
        "submit",
        "--address",
        ray_head.jobs,
        "--working-dir",
        ".",
        "--",
        *room,
        "--root",
        str(tmp_path / "root"),
    ]
    ended = subprocess.run(command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-2000:]
    assert "sr3| train-x2 Ray at " in ended.stdout and "sr3| train x2 48/48 images" in ended.stdout
    (place,) = (tmp_path / "root" / "train" / "x2").glob("*/bundle")
    assert ModelBundle.load(str(place)).manifest["lineage"]["shards_sha256"] == made.manifest_sha256
