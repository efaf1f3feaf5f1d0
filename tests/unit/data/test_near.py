"""Near-duplicates: every close pair of hashes is found and no other; lookalikes never cross splits, and each is listed."""

import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sr3_core import images
from sr3_core.artifacts.shardset import ShardSet
from sr3_core.config import Data
from sr3_core.data import near, plan
from sr3_core.data.shards import build
from sr3_core.data.sources import folder
from tests.conftest import write_photos

imagehash = pytest.importorskip("imagehash")


def bits(first: int, second: int) -> int:
    return (first ^ second).bit_count()


@pytest.mark.parametrize("distance", [0, 1, 4, 9, 16])
def test_every_close_pair_is_found(distance: int) -> None:
    """Against comparing all with all, on hashes with many neighbours at every distance and on few far ones."""
    draw = random.Random(distance)
    hashes = [draw.getrandbits(64) for _ in range(40)] + [0, 2**64 - 1]
    for _ in range(400):
        changed = draw.choice(hashes)
        for place in draw.sample(range(64), draw.randint(0, 10)):
            changed ^= 1 << place
        hashes.append(changed)
    expected = {pair: bits(*pair) for pair in itertools.combinations(sorted(set(hashes)), 2) if bits(*pair) <= distance}
    assert near.close_pairs(hashes, distance) == expected
    assert distance == 0 or len(expected) > 10


def test_a_bucket_larger_than_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "_BLOCK", 7)
    expected = {pair: bits(*pair) for pair in itertools.combinations(range(50), 2) if bits(*pair) <= 2}
    assert near.close_pairs(range(50), 2) == expected


def test_links_join() -> None:
    found = near.joined([("a",), ("b", "c"), ("d", "c"), ("e", "f")])
    assert found["b"] == found["c"] == found["d"] != found["e"] == found["f"] and found["a"] == "a"


def write_copies(root: Path, sources: Path) -> None:
    """Each photo again: half as large, as JPEG, brighter."""
    for path in sorted(sources.glob("*.png")):
        photo = images.decode(path.read_bytes())
        (root / f"{path.stem} half.png").write_bytes(images.encode(images.resize(photo, (64, 80), "bicubic")))
        (root / f"{path.stem} jpeg.jpg").write_bytes(images.encode(photo, "jpeg", 60))
        (root / f"{path.stem} bright.png").write_bytes(images.encode((photo * 0.8 + 40).astype(np.uint8)))


def prepare(source: Path, target: Path, **changes: Any) -> ShardSet:
    values = {"source": "folder", "options": {"uri": str(source)}, "levels": (16, 32), "split": {"val": 0.3, "test": 0.3}, **changes}
    return build(str(target), Data.model_validate(values), folder.examples(folder.Options(uri=str(source))), fingerprint="f")


def sides(made: ShardSet) -> dict[str, set[str]]:
    """Photo (the first two words of its key) -> the splits that it and its copies are in."""
    found: dict[str, set[str]] = {}
    for split in ("train", "val", "test"):
        for index in range(made.count(split)):
            words = made.sample(split, index).source.split("/")[-1].split()
            found.setdefault(" ".join(words[:2]), set()).add(split)
    return found


def test_lookalikes_share_a_split_and_are_listed(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 12, size=(128, 160))
    write_copies(tmp_path / "photos", tmp_path / "photos")
    blind = prepare(tmp_path / "photos", tmp_path / "blind")
    assert any(len(where) > 1 for where in sides(blind).values()), "without the option they cross"
    assert "near_duplicates" not in blind.manifest and not (tmp_path / "blind" / "near_duplicates.jsonl").exists()

    made = prepare(tmp_path / "photos", tmp_path / "seeing", near_duplicates=6)
    assert made.manifest["accepted"] == 48
    assert all(len(where) == 1 for where in sides(made).values()) and len(sides(made)) == 12
    lines = [json.loads(line) for line in (tmp_path / "seeing" / "near_duplicates.jsonl").read_text().splitlines()]
    assert made.manifest["near_duplicates"]["photos"] == len(lines) == 48
    assert made.manifest["near_duplicates"]["groups"] == len({line["group"] for line in lines})
    for line in lines:
        assert line["distance"] <= 6 and line["nearest"] != line["key"]
        assert {line["split"]} == sides(made)[" ".join(line["key"].split()[:2])]


def test_a_near_copy_of_a_held_out_photo_is_not_trained_on(tmp_path: Path) -> None:
    write_photos(tmp_path / "all", 6, size=(128, 160))
    for split, numbers in {"train": (0, 1, 2, 3), "val": (4,), "test": (5,)}.items():
        (tmp_path / "photos" / split).mkdir(parents=True)
        for number in numbers:
            (tmp_path / "photos" / split / f"photo {number:02d}.png").write_bytes(
                (tmp_path / "all" / f"photo {number:02d}.png").read_bytes()
            )
    held_out = images.decode((tmp_path / "photos" / "test" / "photo 05.png").read_bytes())
    (tmp_path / "photos" / "train" / "again 05.jpg").write_bytes(images.encode(held_out, "jpeg", 70))
    (tmp_path / "photos" / "val" / "again 05.png").write_bytes(images.encode(images.resize(held_out, (64, 80), "box")))
    (tmp_path / "photos" / "train" / "copy 05.png").write_bytes((tmp_path / "photos" / "test" / "photo 05.png").read_bytes())
    made = prepare(tmp_path / "photos", tmp_path / "out", near_duplicates=4, split={"by": "published"}, max_rejected_share=0.5)
    assert made.manifest["rejected"] == {"near copy of a held-out photo": 2, "copy of a held-out photo": 1}
    lines = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert {line["key"]: line["detail"] for line in lines} == {
        "train/again 05": "looks like test/photo 05 of split test",
        "val/again 05": "looks like test/photo 05 of split test",
        "train/copy 05": "equal to test/photo 05 of split test",
    }
    near_lines = [json.loads(line) for line in (tmp_path / "out" / "near_duplicates.jsonl").read_text().splitlines()]
    assert {line["key"]: line["split"] for line in near_lines}["train/again 05"] is None
    assert {line["group"] for line in near_lines} == {"test/photo 05"}


def test_groups_and_looks_are_joined() -> None:
    """A scene of two photos, one of which looks like a third: all three on one side, whatever their hashes say."""
    photos = [
        plan.Photo(
            f"{index}", f"/{index}", None, None, {"group": "wall"} if index in (3, 17) else {},
            content_hash=f"{index * 6364136223846793005 % 2**64:064x}"[::-1], height=40, width=40,
            near_hash=f"{[0xFF00FF, 0xFF00FE][index == 29] if index in (17, 29) else index * 0x9E3779B97F4A7C15 % 2**64:016x}",
        )
        for index in range(40)
    ]  # fmt: skip
    data = Data.model_validate({"source": "folder", "levels": (16,), "near_duplicates": 2, "split": {"val": 0.3, "test": 0.3}})
    made = plan.make(photos, data)
    splits = {sample.photo.key: shard.split for shard in made.shards for sample in shard.samples}
    assert splits["3"] == splits["17"] == splits["29"] and set(splits.values()) == {"train", "val", "test"}
    assert [(item.key, item.nearest, item.distance) for item in made.near] == [("17", "29", 1), ("29", "17", 1)]


def test_no_two_of_the_sample_photos_look_alike() -> None:
    """The photos that come with the project are 31 different ones: their published split stands with the option on."""
    paths = sorted((Path(folder.__file__).parents[1] / "sample_photos").glob("*.jpg"))
    hashes = [int(images.perceptual_hash(images.decode(path.read_bytes())), 16) for path in paths]
    assert len(paths) == 31 and near.close_pairs(hashes, 16) == {}


def test_the_hash_takes_any_channels_and_depth() -> None:
    write = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    smooth = images.resize(images.resize(write, (5, 6), "box"), (40, 48), "bicubic")
    larger = images.resize(smooth, (80, 96), "bicubic")
    assert bits(int(images.perceptual_hash(smooth), 16), int(images.perceptual_hash(larger), 16)) <= 6
    grey = smooth[:, :, :1]
    assert bits(int(images.perceptual_hash(grey), 16), int(images.perceptual_hash(grey.astype(np.uint16) * 257), 16)) <= 1
    assert len(images.perceptual_hash(np.concatenate([smooth, grey], axis=2))) == 16
