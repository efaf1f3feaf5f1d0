"""Photos to a ShardSet, in this process: what is accepted, what is refused and why, and that no interruption shows in the bytes."""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sr3_core import images, storage
from sr3_core.artifacts.shardset import MANIFEST, ShardSet
from sr3_core.config import Data
from sr3_core.data import levels, plan, shards
from sr3_core.data.sources import folder
from sr3_core.data.sources._base import Example
from sr3_core.errors import BadInput

LEVELS = (8, 16, 32)


def photo(seed: int, size: tuple[int, int] = (40, 48)) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def section(**changes: Any) -> Data:
    values: dict[str, Any] = {"source": "folder", "levels": LEVELS, "shard_samples": 3, "split": {"val": 0.2, "test": 0.2}}
    return Data.model_validate({**values, **changes})


def examples(source: Path) -> list[Example]:
    return list(folder.examples(folder.Options(uri=str(source))))


def build(source: Path, target: Path | str, **changes: Any) -> ShardSet:
    return shards.build(str(target), section(**changes), examples(source), fingerprint="f")


def tree(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Twelve good photos."""
    root = tmp_path / "photos"
    root.mkdir()
    for index in range(12):
        (root / f"{index:02d}.png").write_bytes(images.encode(photo(index)))
    return root


def test_every_level_of_every_photo_is_stored_and_read_back(source: Path, tmp_path: Path) -> None:
    made = build(source, tmp_path / "out")
    made.verify()
    assert made.manifest["accepted"] == 12
    assert sum(made.count(split) for split in ("train", "val", "test")) == 12
    for split in ("train", "val", "test"):
        assert made.manifest["counts"][split] == {str(level): made.count(split, level) for level in LEVELS}
        for index in range(made.count(split)):
            record = made.sample(split, index)
            cut = images.centre_square(photo(int(record.source)))
            expected = images.resize(cut, (32, 32), "box")
            assert np.array_equal(made.image(split, index, 32), expected)
            for level in (16, 8):
                expected = images.resize(expected, (level, level), "bicubic")
                assert np.array_equal(made.image(split, index, level), expected)
            assert (record.split, record.original_size) == (split, (40, 48))


def test_tar_is_plain_ustar_for_webdataset(source: Path, tmp_path: Path) -> None:
    made = build(source, tmp_path / "out")
    for entry in made.manifest["shards"]:
        where = tmp_path / "out" / entry["name"]
        assert json.loads(where.with_suffix(".json").read_text()) == entry
        with tarfile.open(where) as tar:
            members = {member.name: member for member in tar.getmembers()}
            assert all(member.mtime == 0 and member.uid == 0 and not member.pax_headers for member in members.values())
            for item in entry["members"]:
                for level, (offset, size, extension) in item["levels"].items():
                    member = members.pop(f"{item['key']}.{level}.{extension}")
                    assert (member.offset_data, member.size) == (offset, size)
                stream = tar.extractfile(members.pop(f"{item['key']}.json"))
                assert stream is not None
                described = json.load(stream)
                assert described["crop"] == [0, 4, 40, 40]
                assert described["content_hash"] == item["content_hash"]
            assert not members


def test_webdataset_reads_it_by_key(source: Path, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    made = build(source, tmp_path / "out")
    (name,) = [entry["name"] for entry in made.manifest["shards"] if entry["split"] == "test"][:1]
    samples = list(webdataset.WebDataset(str(tmp_path / "out" / name), shardshuffle=False, empty_check=False))
    assert [sample["__key__"] for sample in samples] == made.keys("test")[: len(samples)]
    assert {"8.png", "16.png", "32.png", "json"} <= samples[0].keys()


def _transparent() -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGBA", (40, 40), (1, 2, 3, 0)).save(buffer, "PNG")
    return buffer.getvalue()


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "empty file"),
    "text": (lambda: b"no image at all", "not an image"),
    "cut": (lambda: images.encode(photo(90), "jpeg")[:-900], "truncated"),
    "small": (lambda: images.encode(photo(91, (31, 400))), "too small"),
    "clear": (_transparent, "transparency"),
}


def test_bad_photos_among_good_ones_are_listed_by_reason(source: Path, tmp_path: Path) -> None:
    for name, (content, _) in BAD.items():
        (source / f"{name}.png").write_bytes(content())
    made = build(source, tmp_path / "out", max_rejected_share=0.5)
    assert made.manifest["accepted"] == 12
    assert made.manifest["rejected"] == {reason: 1 for _, reason in BAD.values()}
    lines = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert {line["key"]: line["reason"] for line in lines} == {name: reason for name, (_, reason) in BAD.items()}
    assert all(line["uri"] == str(source / f"{line['key']}.png") for line in lines)
    assert "400 x 31; " in next(line["detail"] for line in lines if line["key"] == "small")


def test_over_the_share_nothing_is_made(source: Path, tmp_path: Path) -> None:
    for index in range(4):
        (source / f"bad {index}.jpg").write_bytes(b"x")
    with pytest.raises(BadInput, match=r"4 of 16 inputs rejected \(not an image 4; each is named in .*rejected.jsonl\)"):
        build(source, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"rejected.jsonl"}
    for index in range(4):
        (source / f"bad {index}.jpg").write_bytes(images.encode(photo(50 + index), "jpeg"))
    assert build(source, tmp_path / "out").manifest["accepted"] == 16


def test_all_rejected(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"x")
    with pytest.raises(BadInput, match="1 of 1 inputs rejected"):
        build(tmp_path / "photos", tmp_path / "out", max_rejected_share=1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_photo_without_read_permission_is_rejected(source: Path, tmp_path: Path) -> None:
    (source / "00.png").chmod(0)
    assert build(source, tmp_path / "out").manifest["rejected"] == {"no read permission": 1}


def test_listed_but_not_readable_is_rejected_by_reason(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = storage.read_bytes

    def refuse(uri: str) -> bytes:
        if uri.endswith(("00.png", "01.png")):
            raise PermissionError(13, "Permission denied", uri)
        return read(uri)

    monkeypatch.setattr(storage, "read_bytes", refuse)
    assert build(source, tmp_path / "out").manifest["rejected"] == {"no read permission": 2}


def test_copies_share_a_split_and_published_copies_are_not_trained_on(source: Path, tmp_path: Path) -> None:
    for index in range(12):
        (source / f"copy of {index:02d}.png").write_bytes((source / f"{index:02d}.png").read_bytes())
    made = build(source, tmp_path / "out")
    sides: dict[str, set[str]] = {}
    for split in ("train", "val", "test"):
        for index in range(made.count(split)):
            sides.setdefault(made.sample(split, index).content_hash, set()).add(split)
    assert len(sides) == 12
    assert all(len(side) == 1 for side in sides.values())

    published = tmp_path / "published"
    for split, seeds in {"train": (0, 1, 2, 3), "val": (4, 0), "test": (5, 1, 4)}.items():
        (published / split).mkdir(parents=True)
        for seed in seeds:
            (published / split / f"{seed}.png").write_bytes(images.encode(photo(seed)))
    made = build(published, tmp_path / "out2", split={"by": "published"}, max_rejected_share=0.5)
    assert made.manifest["rejected"] == {"copy of a held-out photo": 3}
    assert {split: made.count(split) for split in ("train", "val", "test")} == {"train": 2, "val": 1, "test": 3}


def test_auto_takes_published_splits_where_every_photo_has_one(source: Path, tmp_path: Path) -> None:
    """A flat folder is split by content; the same photos in folders of the three names as these say."""
    assert sum(build(source, tmp_path / "flat").count(split) for split in ("train", "val", "test")) > 0
    for split, seeds in {"train": (0, 1, 2, 3), "val": (4,), "test": (5,)}.items():
        (tmp_path / "sorted" / split).mkdir(parents=True)
        for seed in seeds:
            (tmp_path / "sorted" / split / f"{seed}.png").write_bytes(images.encode(photo(seed)))
    made = build(tmp_path / "sorted", tmp_path / "out")
    assert {split: made.count(split) for split in ("train", "val", "test")} == {"train": 4, "val": 1, "test": 1}


def test_photos_of_one_scene_stay_together() -> None:
    """Whatever the hashes say: three photos of a group, one of them copied under another name, are on one side."""
    digests = [hashlib.sha256(b"%d" % index).hexdigest() for index in range(40)]
    attributes = [{"group": "wall"} if index in (3, 17, 29) else {} for index in range(40)]
    photos = [
        plan.Photo(f"{index}", f"/{index}", None, None, given, content_hash=digest, height=40, width=40)
        for index, (digest, given) in enumerate(zip(digests, attributes, strict=True))
    ]
    photos.append(plan.Photo("copy", "/copy", None, None, {}, content_hash=digests[17], height=40, width=40))
    made = plan.make(photos, section(split={"val": 0.3, "test": 0.3}))
    splits = {sample.photo.key: shard.split for shard in made.shards for sample in shard.samples}
    assert len({splits[key] for key in ("3", "17", "29", "copy")}) == 1
    assert set(splits.values()) == {"train", "val", "test"}


def test_published_split_must_be_there(source: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="has no published split"):
        build(source, tmp_path / "out", split={"by": "published"})


def test_small_sets_fill_their_minimum_and_large_ones_follow_the_hash() -> None:
    def photos(count: int) -> list[plan.Photo]:
        return [
            plan.Photo(f"{i}", f"/{i}", None, None, {}, content_hash=hashlib.sha256(b"%d" % i).hexdigest(), height=40, width=40)
            for i in range(count)
        ]

    def splits(count: int, **changes: Any) -> dict[str, set[str]]:
        made = plan.make(photos(count), section(**changes))
        return {
            split: {s.key for shard in made.shards if shard.split == split for s in shard.samples} for split in ("train", "val", "test")
        }

    for count in range(3, 12):
        assert all(splits(count).values())
    minimum = {"train": 2, "val": 3, "test": 5}
    assert {name: len(keys) for name, keys in splits(10, split={"val": 0, "test": 0, "minimum": minimum}).items()} == {**minimum}
    many, more = splits(400), splits(500)
    assert 50 < len(many["val"]) < 110
    assert all(many[name] <= more[name] for name in many)


def test_a_largest_level_that_no_photo_of_a_split_reaches(tmp_path: Path) -> None:
    """It would be found after the other stages were trained."""
    (tmp_path / "photos").mkdir()
    for index in range(8):
        (tmp_path / "photos" / f"{index}.png").write_bytes(images.encode(photo(index, (20, 20))))
    required = {"train": (8, 16), "val": (8, 16), "test": (8, 16)}
    with pytest.raises(BadInput, match=r"no photo of split train reaches 32 pixels; the largest level there is 16.*stages="):
        build(tmp_path / "photos", tmp_path / "out", required_levels=required)
    assert not (tmp_path / "out" / MANIFEST).exists()
    assert build(tmp_path / "photos", tmp_path / "out", levels=(8, 16)).count("train") > 0


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_photos_than_the_splits_need(tmp_path: Path, count: int) -> None:
    (tmp_path / "photos").mkdir()
    for index in range(count):
        (tmp_path / "photos" / f"{index}.png").write_bytes(images.encode(photo(index)))
    with pytest.raises(BadInput, match=r"photos for split \w+; allowed: at least 1, data.split.minimum"):
        build(tmp_path / "photos", tmp_path / "out")
    assert not (tmp_path / "out" / MANIFEST).exists()


def test_required_levels_are_per_split(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    for split, sizes in {"train": (40, 20), "val": (40,), "test": (20, 40, 12)}.items():
        (root / split).mkdir(parents=True)
        for index, side in enumerate(sizes):
            (root / split / f"{index}.png").write_bytes(images.encode(photo(10 * len(split) + index + side, (side, side))))
    made = build(root, tmp_path / "out", split={"by": "published"}, required_levels={"test": (8, 16)}, max_rejected_share=0.5)
    assert made.manifest["counts"] == {
        "train": {"8": 1, "16": 1, "32": 1}, "val": {"8": 1, "16": 1, "32": 1}, "test": {"8": 2, "16": 2, "32": 1},
    }  # fmt: skip
    assert made.manifest["rejected"] == {"too small": 2}
    assert [made.has("test", index, 32) for index in range(2)] == [False, True]
    with pytest.raises(KeyError):
        made.image("test", 0, 32)


def test_two_inputs_with_one_key_get_two(source: Path, tmp_path: Path) -> None:
    (source / "00.jpg").write_bytes(images.encode(photo(70), "jpeg"))
    made = build(source, tmp_path / "out")
    sources = {made.sample(split, index).source for split in ("train", "val", "test") for index in range(made.count(split))}
    assert {"00.jpg", "00.png", "01"} <= sources and len(sources) == 13
    lines = [json.loads(line) for line in (tmp_path / "out" / "renamed.jsonl").read_text().splitlines()]
    assert lines == [{"key": f"00.{end}", "was": "00", "uri": str(source / f"00.{end}")} for end in ("jpg", "png")]
    (source / "00.jpg").unlink()
    build(source, tmp_path / "out")
    assert not (tmp_path / "out" / "renamed.jsonl").exists()


def test_keys_that_endings_do_not_tell_apart() -> None:
    """Where the source lies does not show in the keys; a file named as the new key would be keeps its name."""
    found: list[dict[str, str]] = []
    for root in ("/a", "/elsewhere/b"):
        given = {"/1/x.png": "x", "/2/x.png": "x", "/y.jpg": "y", "/y.png": "y", "/y.png.png": "y.png"}
        named, renamed = plan.distinct_keys(Example(key, root + uri) for uri, key in given.items())
        assert len({example.key for example in named}) == 5 and len(renamed) == 4
        found.append({example.uri.removeprefix(root): example.key for example in named})
    assert found[0] == found[1]
    assert found[0]["/y.png.png"] == "y.png"
    with pytest.raises(BadInput, match=r"two inputs with one key 'x' and one location /a/x\.png"):
        plan.distinct_keys([Example("x", "/a/x.png"), Example("x", "/a/x.png")])


def test_a_photo_named_as_the_tile_of_another_gets_another_name(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    for index, (name, size) in enumerate(
        {"wide": (32, 64), plan.safe_key("a b"): (32, 32), "wide-t0x0": (32, 32), "a b": (32, 32)}.items()
    ):
        (root / f"{name}.png").write_bytes(images.encode(photo(index, size)))
    (root / "wide-t0x0-t0x0.png").write_bytes(images.encode(photo(9, (32, 32))))
    made = [build(root, tmp_path / name, fit="tiles", split={"minimum": {"train": 1}}) for name in ("out", "again")]
    keys = [key for split in ("train", "val", "test") for key in made[0].keys(split)]
    assert len(set(keys)) == len(keys) == 6
    assert all(plan.SAFE_KEY.fullmatch(key) for key in keys)
    lines = [json.loads(line) for line in (tmp_path / "out" / "renamed.jsonl").read_text().splitlines()]
    assert {line["was"] for line in lines} == {plan.safe_key("a b") + "-t0x0"}
    assert {line["key"] for line in lines} <= set(keys) and len(lines) == 2
    assert made[0].manifest_sha256 == made[1].manifest_sha256


HARD = ["a b", "100%", "#1", "Grüße", "a.b.c", "x/y.z", "日本", "-", "A" * 200, "a.b", "a/b", "a_b", "a-b"]


def test_hard_names_get_safe_different_keys(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    for index, name in enumerate(HARD):
        (root / f"{name}.png").parent.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.png").write_bytes(images.encode(photo(index)))
    made = build(root, tmp_path / "out")
    records = [made.sample(split, index) for split in ("train", "val", "test") for index in range(made.count(split))]
    assert {record.source for record in records} == set(HARD)
    assert len({record.key for record in records}) == len(HARD)
    assert all(plan.SAFE_KEY.fullmatch(record.key) for record in records)
    assert next(record.key for record in records if record.source == "a_b") == "a_b"


def test_a_name_that_is_no_utf8(source: Path, tmp_path: Path) -> None:
    try:
        os.rename(os.fsencode(source / "00.png"), os.fsencode(source) + b"/\xff\xfe.png")
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    made = build(source, tmp_path / "out")
    assert made.manifest["accepted"] == 12


@pytest.mark.parametrize("top", [32, 16])
@pytest.mark.parametrize("stored", ["png", "jpeg"])
def test_bytes_pass_through_when_the_size_fits(tmp_path: Path, top: int, stored: images.Format) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    content = {f"{index}": images.encode(photo(index, (top, top)), stored) for index in range(6)}
    for name, data in content.items():
        (root / f"{name}.{images.EXTENSIONS[stored]}").write_bytes(data)
    for split in ("train", "val", "test"):  # one photo of the largest level each, whatever the others are
        (root / split).mkdir()
        (root / split / "large.png").write_bytes(images.encode(photo(len(split), (40, 40))))
    for path in list(root.glob("*.*")):
        path.rename(root / "train" / path.name)
    every = dict.fromkeys(("train", "val", "test"), (8, 16))
    made = build(root, tmp_path / "out", required_levels=every, codec={"format": "jpeg"})
    for index in range(made.count("train")):
        record = made.sample("train", index)
        if record.source == "train/large":
            continue
        offset, size, extension = record.members[top]
        data = (tmp_path / "out" / record.shard).read_bytes()[offset : offset + size]
        passed = stored == "png" or top == 32  # a low image is never JPEG
        assert (data == content[record.source.removeprefix("train/")]) == passed
        assert extension == (images.EXTENSIONS[stored] if passed else "png")
        assert np.array_equal(made.image("train", index, top), images.decode(content[record.source.removeprefix("train/")]))
        assert all(entry[2] == "png" for level, entry in record.members.items() if level != 32)


def test_a_turned_photo_does_not_pass_through(tmp_path: Path) -> None:
    from PIL import Image

    root = tmp_path / "photos"
    root.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    for index in range(4):
        Image.fromarray(photo(index, (32, 32))).save(root / f"{index}.png", exif=exif)
    made = build(root, tmp_path / "out")
    record = made.sample("test", 0)
    assert np.array_equal(made.image("test", 0, 32), np.rot90(photo(int(record.source), (32, 32)), -1))


def test_jpeg_top_level(source: Path, tmp_path: Path) -> None:
    made = build(source, tmp_path / "out", codec={"format": "jpeg", "quality": 90})
    assert {level: entry[2] for level, entry in made.sample("train", 0).members.items()} == {8: "png", 16: "png", 32: "jpg"}


def test_tiles_and_resize(source: Path, tmp_path: Path) -> None:
    (source / "wide.png").write_bytes(images.encode(photo(99, (70, 101))))
    made = build(source, tmp_path / "tiles", fit="tiles")
    wide = [(split, i) for split in ("train", "val", "test") for i in range(made.count(split)) if made.sample(split, i).source == "wide"]
    assert len(wide) == 6
    assert len({split for split, _ in wide}) == 1
    assert [made.sample(*place).key for place in wide][:2] == ["wide-t0x0", "wide-t0x1"]
    assert np.array_equal(made.image(*wide[1], 32), photo(99, (70, 101))[3:35, 34:66])
    made = build(source, tmp_path / "resize", fit="resize")
    record = made.sample("train", 0)
    assert np.array_equal(made.image("train", 0, 32), images.resize(photo(int(record.source)), (32, 32), "box"))


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after", ["inspect", "one shard", "a tar without its stats", "all but the manifest"])
def test_a_killed_run_continues_to_the_same_bytes(
    source: Path, tmp_path: Path, after: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (source / "bad.png").write_bytes(b"x")
    build(source, tmp_path / "whole")
    calls = {"inspect": 1, "one shard": 3, "a tar without its stats": 3, "all but the manifest": 99}[after]

    def mapper(function: Callable[[Any], Any], items: Sequence[Any], on_done: Callable[[Any, Any], None]) -> list[Any]:
        nonlocal calls
        results: list[Any] = []
        for item in items:
            calls -= 1
            if calls < 0:
                raise Killed
            results.append(function(item))
            on_done(item, results[-1])
        return results

    target = tmp_path / "broken"
    with monkeypatch.context() as patch:
        if after == "all but the manifest":
            write = storage.write_json
            patch.setattr(storage, "write_json", lambda uri, value: _die() if uri.endswith(MANIFEST) else write(uri, value))
        with pytest.raises(Killed):
            shards.build(str(target), section(), examples(source), fingerprint="f", mapper=mapper)
    with pytest.raises(BadInput, match=r"no manifest\.json"):
        ShardSet.open(str(target))
    if after == "a tar without its stats":
        next(target.rglob("000000.json")).unlink()
    (target / "train").mkdir(exist_ok=True)
    (target / "train" / ".sr3-part-left").write_bytes(b"half")
    capsys.readouterr()
    build(source, target)
    assert tree(target) == tree(tmp_path / "whole")
    said = capsys.readouterr().out
    assert "goes on with what an earlier run saw of 13 inputs" in said
    if after == "all but the manifest":
        assert "shards were done already" in said


def _die() -> None:
    raise Killed


def test_a_source_that_changes_meanwhile(source: Path, tmp_path: Path) -> None:
    """What was made when it was looked at is what is stored; a photo that has to be read again must be the same."""
    whole = build(source, tmp_path / "whole")
    lost = False

    def mapper(function: Callable[[Any], Any], items: Sequence[Any], on_done: Callable[[Any, Any], None]) -> list[Any]:
        if function is shards.make_shard:
            (source / "03.png").write_bytes(images.encode(photo(77)))
            if lost:
                next((tmp_path / "out" / levels.FOLDER).iterdir()).unlink()
        return shards.in_process(function, items, on_done)

    made = shards.build(str(tmp_path / "once"), section(), examples(source), fingerprint="f", mapper=mapper)
    assert made.manifest_sha256 == whole.manifest_sha256
    lost = True
    (source / "03.png").write_bytes(images.encode(photo(3)))
    with pytest.raises(BadInput, match=r"03.png changed while prepare ran"):
        shards.build(str(tmp_path / "out"), section(), examples(source), fingerprint="f", mapper=mapper)
    assert build(source, tmp_path / "out").manifest["accepted"] == 12


def test_memory_store_gives_the_same_shards(source: Path, tmp_path: Path) -> None:
    for path in source.iterdir():
        storage.write_bytes(f"memory://{tmp_path.name}/in/{path.name}", path.read_bytes())
    remote = folder.examples(folder.Options(uri=f"memory://{tmp_path.name}/in"))
    made = shards.build(f"memory://{tmp_path.name}/out", section(), remote, fingerprint="f")
    assert made.manifest_sha256 == build(source, tmp_path / "out").manifest_sha256
    made.verify()
    assert made.image("test", 0, 8).shape == (8, 8, 3)
