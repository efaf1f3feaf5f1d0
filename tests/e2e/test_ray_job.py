"""A single room by ``ray job submit`` on a Ray head, as README.md and infra/README.md show it."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sr3_core import config
from sr3_core.artifacts.bundle import ModelBundle
from sr3_core.artifacts.shardset import ShardSet
from sr3_core.config import Data
from sr3_core.data import shards
from sr3_core.data.sources import folder
from tests.conftest import BIN, RECIPES, REPOSITORY, Ended, RayHead, write_photos
from tests.infra.readme import of


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


def test_a_pipelines_rooms_submit_themselves_to_a_job_address(tmp_path: Path, ray_head: RayHead, sr3: Callable[..., Ended]) -> None:
    """prepare, train and evaluate of one run, each a job that its task follows; export works in its task."""
    write_photos(tmp_path / "photos", 14)
    source = f"data.options.uri={tmp_path}/photos"
    done = sr3("run", str(RECIPES / "tiny.yaml"), "--set", source, "--root", str(tmp_path / "runs"), "--ray-address", ray_head.jobs)
    (log,) = (tmp_path / "runs" / "runs").glob("*/run.log")
    said = log.read_text()
    assert done.code == 0, said[-4000:] + done.stderr[-2000:]
    for place in ("shards", "train/x2", "eval"):
        (mark,) = (path.name for path in (tmp_path / "runs" / place).glob("*") if re.fullmatch("[0-9a-f]{16}", path.name))
        assert said.count(f"sr3| ray submitted job sr3-{mark}-0 to {ray_head.jobs}") == 1, place
    assert "sr3| train x2 48/48 images" in said  # the log of the job came with it


def test_the_four_rooms_one_after_the_other_as_the_cluster_readme_submits_them(tmp_path: Path, ray_head: RayHead) -> None:
    """The commands of infra/README.md with this machine's places and the test's recipe in them; what a room prints is the next one's."""
    write_photos(tmp_path / "photos", 14)
    root, tiny = tmp_path / "runs", str(RECIPES / "tiny.yaml")
    places = {
        "http://localhost:8265": ray_head.jobs, "gs://my-project-sr3/runs": str(root), "http://sr3-mlflow.sr3:5000": f"sqlite:///{tmp_path}/m.db",
        "sr3-demo": "sr3-tiny", "sr256": "x2",
    }  # fmt: skip
    said: dict[str, str] = {}
    for words in of("ray", "job", "submit"):
        room = words[words.index("-m") + 1].removeprefix("components.")
        text = "\0".join(words).replace("\0--recipe\0demo", f"\0--recipe\0{tiny}" + f"\0--set\0data.options.uri={tmp_path}/photos")
        for shown, here in places.items():
            text = text.replace(shown, here)
        text = re.sub("\0--bundle\0[^\0]*/sr1024/[^\0]*", "", text).replace("HEX", said.get("x2 sha256", ""))
        for place in ("shards", "train/x2", "eval"):  # where the rooms before it have put what this one takes
            fingerprints = [path.name for path in (root / place).glob("*") if re.fullmatch("[0-9a-f]{16}", path.name)]
            text = text.replace(f"{root}/{place}/FINGERPRINT", f"{root}/{place}/{''.join(fingerprints)}")
        assert "FINGERPRINT" not in text, room
        command = [str(BIN / "ray"), "job", "submit", *text.split("\0")]
        ended = subprocess.run(command, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
        assert ended.returncode == 0, f"{room}: {ended.stdout[-4000:]}{ended.stderr[-2000:]}"
        said[room], sha256 = re.findall(r"^((?:/|models:)\S+)(?: ([0-9a-f]{64}))?$", ended.stdout, re.MULTILINE)[-1]
        if room == "train":
            said["x2 sha256"] = sha256
    assert list(said) == ["prepare", "train", "x2 sha256", "evaluate", "export"]
    assert said["export"].startswith("models:/")
