"""Inputs as they come: links, what is no file, files without end, flat tiles, whole photos. Each is used or refused by reason."""

import datetime
import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sr3_core import images, storage
from sr3_core.artifacts.shardset import ShardSet
from sr3_core.config import Data, SplitName
from sr3_core.data import degrade, plan, reading
from sr3_core.data.shards import INSPECTED, build
from sr3_core.data.sources import folder
from sr3_core.data.sources._base import Example
from tests.conftest import write_photos


def prepare(source: Path, target: Path, *more: Example, **changes: Any) -> ShardSet:
    values = {"source": "folder", "options": {"uri": str(source)}, "levels": (16, 32), "max_rejected_share": 0.9, **changes}
    examples = [*folder.examples(folder.Options(uri=str(source))), *more]
    return build(str(target), Data.model_validate(values), examples, fingerprint="f")


def rejected(target: Path) -> dict[str, str]:
    lines = [json.loads(line) for line in (target / "rejected.jsonl").read_text().splitlines()]
    return {line["key"]: line["reason"] for line in lines}


def test_links_out_of_the_source_are_refused_and_those_inside_are_read(tmp_path: Path) -> None:
    source = tmp_path / "photos"
    write_photos(source, 6)
    write_photos(tmp_path / "elsewhere", 2)
    (source / "inside.png").symlink_to("photo 00.png")
    (source / "outside.png").symlink_to(tmp_path / "elsewhere" / "photo 01.png")
    (source / "folder").symlink_to(tmp_path / "elsewhere")
    (source / "sneaky.png").symlink_to("../photos/../elsewhere/photo 00.png")
    (source / "up").symlink_to("..")  # followed, it would list the whole machine
    made = prepare(source, tmp_path / "out")
    keys = ("outside", "sneaky", "folder/photo 00", "folder/photo 01")
    assert rejected(tmp_path / "out") == dict.fromkeys(keys, "link leads outside")
    sources = {made.sample(split, index).source for split in ("train", "val", "test") for index in range(made.count(split))}
    assert sources == {"inside", *(f"photo {index:02d}" for index in range(6))}


def test_the_source_itself_may_be_a_link(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 4)
    (tmp_path / "link").symlink_to("photos")
    assert prepare(tmp_path / "link", tmp_path / "out").manifest["accepted"] == 4


def test_what_is_no_file_is_never_opened(tmp_path: Path) -> None:
    """A pipe would never end, a loop of links never resolve; a source may list such things."""
    source = tmp_path / "photos"
    write_photos(source, 4)
    os.mkfifo(source / "pipe.png")
    (source / "a.png").symlink_to("b.png")
    (source / "b.png").symlink_to("a.png")
    (source / "nowhere.png").symlink_to("gone.png")
    (source / "folder.png").mkdir()
    with open(source / "endless.png", "wb") as stream:
        stream.truncate(reading.MAX_FILE_BYTES + 1)  # takes no disk
    prepare(source, tmp_path / "out", Example("folder", str(source / "folder.png")))
    assert rejected(tmp_path / "out") == {
        "pipe": "not a file", "a": "broken link", "b": "broken link", "nowhere": "broken link", "folder": "not a file",
        "endless": "too large a file",
    }  # fmt: skip


def test_flat_tiles_are_left_out_and_listed(tmp_path: Path) -> None:
    source = tmp_path / "photos"
    source.mkdir()
    for index in range(5):
        photo = np.full((32, 96, 3), 90, np.uint8)
        photo[:, : 32 * (index % 3)] = np.random.default_rng(index).integers(0, 256, (32, 32 * (index % 3), 3))
        (source / f"{index}.png").write_bytes(images.encode(photo))
    made = prepare(source, tmp_path / "out", fit="tiles", tiles={"min_detail": 2}, split={"val": 0.3, "test": 0.3})
    keys = {key for split in ("train", "val", "test") for key in made.keys(split)}
    assert keys == {"1-t0x0", "2-t0x0", "2-t0x1", "4-t0x0"}
    assert made.manifest["accepted"] == 3 and made.manifest["rejected"] == {"flat photo": 2}
    assert made.manifest["refused_tiles"] == {"flat tile": 5}
    assert rejected(tmp_path / "out") == {
        "0": "flat photo", "3": "flat photo",
        **dict.fromkeys(("1-t0x1", "1-t0x2", "2-t0x2", "4-t0x1", "4-t0x2"), "flat tile"),
    }  # fmt: skip
    assert "refused_tiles" not in prepare(source, tmp_path / "all", fit="tiles").manifest


def test_overlapping_tiles_of_a_photo_stay_together(tmp_path: Path) -> None:
    source = tmp_path / "photos"
    write_photos(source, 8, size=(48, 64))
    made = prepare(source, tmp_path / "out", fit="tiles", tiles={"stride": 8}, split={"val": 0.3, "test": 0.3})
    records = [made.sample(split, index) for split in ("train", "val", "test") for index in range(made.count(split))]
    assert Counter(record.source for record in records) == dict.fromkeys((f"photo {index:02d}" for index in range(8)), 15)
    assert all(len({record.split for record in records if record.source == source}) == 1 for source in {r.source for r in records})
    assert all(len({record.group for record in records if record.source == source}) == 1 for source in {r.source for r in records})
    assert len({record.key for record in records}) == len(records)


@pytest.mark.parametrize("size", [(40, 48), (33, 70)])
def test_whole_photos_are_stored_and_read_back(tmp_path: Path, size: tuple[int, int]) -> None:
    write_photos(tmp_path / "photos", 5, size=size)
    made = prepare(tmp_path / "photos", tmp_path / "out", fit="keep")
    made.verify()
    for split in ("train", "val", "test"):
        for index in range(made.count(split)):
            photo = images.decode((tmp_path / "photos" / f"{made.sample(split, index).source}.png").read_bytes())
            (crop,) = degrade.crops(*size, made.data)
            assert (crop.height, crop.width) == (size[0] // 2 * 2, size[1] // 2 * 2)
            assert np.array_equal(made.image(split, index, 32), degrade.cut(photo, crop))
            low = images.resize(degrade.cut(photo, crop), (size[0] // 2, size[1] // 2), "bicubic")
            assert np.array_equal(made.image(split, index, 16), low)
    whole = images.decode((tmp_path / "photos" / "photo 00.png").read_bytes())
    passed = [p for p in (tmp_path / "out").rglob("*.tar") if (tmp_path / "photos" / "photo 00.png").read_bytes() in p.read_bytes()]
    assert bool(passed) == (whole.shape[0] % 2 == 0 and whole.shape[1] % 2 == 0), "bytes pass through where nothing is cut off"


def test_photos_of_one_scene_are_not_parted_by_published_splits() -> None:
    """A held-out scene is not trained on; a group of None is none at all, neither here nor where the hashes divide."""

    def made(splits: Sequence[SplitName | None], groups: Sequence[str | None]) -> plan.Plan:
        photos = [
            plan.Photo(
                f"{index:02d}", f"/{index}", split, None, {"group": group},
                content_hash=hashlib.sha256(b"%d" % index).hexdigest(), height=40, width=40,
            )
            for index, (split, group) in enumerate(zip(splits, groups, strict=True))
        ]  # fmt: skip
        return plan.make(photos, Data(source="folder", levels=(32,)))

    published = [plan.SPLITS[index % 3] for index in range(60)]
    parted = made(published, ["wall" if index in (3, 4, 5, 30) else f"{index}" for index in range(60)])
    assert [(item.key, item.reason) for item in parted.rejected] == [(key, "group of a held-out photo") for key in ("03", "04", "30")]
    assert parted.accepted == 57
    assert not made(published, [None] * 60).rejected
    assert {shard.split for shard in made([None] * 60, [None] * 60).shards} == {"train", "val", "test"}


def test_attributes_that_cannot_be_kept_are_a_reason(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 4)
    write_photos(tmp_path / "more", 2)
    attributes: list[dict[str, Any]] = [{"taken": datetime.datetime(2026, 1, 1)}, {"score": math.nan}]
    more = [Example(f"more {i}", str(tmp_path / "more" / f"photo {i:02d}.png"), attributes=given) for i, given in enumerate(attributes)]
    assert prepare(tmp_path / "photos", tmp_path / "out", *more).manifest["accepted"] == 4
    assert rejected(tmp_path / "out") == dict.fromkeys(("more 0", "more 1"), "attributes that are no JSON values")


@pytest.mark.parametrize("line", ['{"key": "photo 00", "of_tomorrow": 1}', '{"key": ', "[]"])
def test_what_another_version_saw_is_looked_at_again(tmp_path: Path, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_photos(tmp_path / "photos", 4)
    storage.write_bytes(str(tmp_path / "out" / INSPECTED), line.encode())
    assert prepare(tmp_path / "photos", tmp_path / "out").manifest["accepted"] == 4
    assert "looks again" in capsys.readouterr().out
