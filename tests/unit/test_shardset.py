"""What a reader of a ShardSet is told when it is not what prepare wrote."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sr3_core import images
from sr3_core.artifacts.shardset import MANIFEST, SCHEMA_VERSION, ShardSet
from sr3_core.config import Data
from sr3_core.data import shards
from sr3_core.data.sources import folder
from sr3_core.errors import BadInput


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A ShardSet of six photos with levels 8 and 16."""
    (tmp_path / "photos").mkdir()
    for index in range(6):
        pixels = np.random.default_rng(index).integers(0, 256, (20, 20, 3), dtype=np.uint8)
        (tmp_path / "photos" / f"{index}.png").write_bytes(images.encode(pixels))
    data = Data.model_validate({"source": "folder", "levels": (8, 16)})
    examples = folder.examples(folder.Options(uri=str(tmp_path / "photos")))
    shards.build(str(tmp_path / "shards"), data, examples, fingerprint="f")
    return tmp_path / "shards"


def change(made: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((made / MANIFEST).read_text())
    edit(manifest)
    (made / MANIFEST).write_text(json.dumps(manifest))


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no manifest\.json in .*; do: run prepare, or check the URI"):
        ShardSet.open(str(tmp_path))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": "x"}', '{"schema": 1}', "null"])
def test_damaged_manifest(made: Path, content: str) -> None:
    (made / MANIFEST).write_text(content)
    with pytest.raises(BadInput, match="is damaged"):
        ShardSet.open(str(made))


def test_newer_schema(made: Path) -> None:
    change(made, lambda manifest: manifest.update(schema=SCHEMA_VERSION + 1))
    with pytest.raises(BadInput, match=r"has schema 2; allowed: schema 1 or older"):
        ShardSet.open(str(made))


def test_a_member_outside_its_shard(made: Path) -> None:
    change(made, lambda manifest: manifest["shards"][0]["members"][0]["levels"]["8"].__setitem__(1, 10**9))
    with pytest.raises(BadInput, match=r"lies outside train/000000\.tar"):
        ShardSet.open(str(made))


def test_a_missing_shard(made: Path) -> None:
    (made / "val" / "000000.tar").unlink()
    opened = ShardSet.open(str(made))
    with pytest.raises(BadInput, match=r"shard .*val/000000\.tar is missing.* run prepare again"):
        opened.verify()
    with pytest.raises(BadInput, match=r"val/000000\.tar is missing"):
        opened.image("val", 0, 8)


@pytest.mark.parametrize("how", ["longer", "one bit"])
def test_a_changed_shard(made: Path, how: str) -> None:
    opened = ShardSet.open(str(made))
    tar = made / "train" / "000000.tar"
    content = bytearray(tar.read_bytes())
    offset = opened.sample("train", 0).members[16][0]
    content[offset + 2] ^= 1
    tar.write_bytes(content if how == "one bit" else content + b"x")
    with pytest.raises(BadInput, match=r"train/000000\.tar changed"):
        opened.verify()
    with pytest.raises(BadInput, match=r"train/000000\.tar changed"):
        opened.image("train", 0, 16)


def test_images_are_cached_within_their_bound_and_cannot_be_written(made: Path) -> None:
    opened = ShardSet.open(str(made), cache_bytes=2 * 16 * 16 * 3)
    first = opened.image("train", 0, 16)
    assert opened.image("train", 0, 16) is first
    with pytest.raises(ValueError, match="read-only"):
        first[0, 0, 0] = 1
    opened.image("train", 1, 16)
    opened.image("train", 2, 16)
    assert opened.image("train", 0, 16) is not first
    assert np.array_equal(opened.image("train", 0, 16), first)


def test_the_summary_has_no_members(made: Path) -> None:
    opened = ShardSet.open(str(made))
    summary = opened.summary()
    assert all("members" not in shard and shard["sha256"] for shard in summary["shards"])
    assert summary["counts"] == opened.manifest["counts"]
    assert opened.data.levels == (8, 16)
