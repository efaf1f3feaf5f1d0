"""What the doctor says of a source: each finding on a folder that has it and on one that has not, the keys of the answer, the verdict."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sr3_core import doctor, images, plugins
from sr3_core.config import Data
from sr3_core.data.sources import sample_photos
from sr3_core.data.sources._base import Example
from sr3_core.doctor import examination, findings, page, verdict
from sr3_core.doctor.findings import Seen
from sr3_core.errors import BadInput

Pixels = np.ndarray[Any, np.dtype[Any]]
PHOTOS = ("astronaut", "building", "church", "coffee", "flowers-1", "rocket")


def examine(folder: Path, *overrides: str, limit: int | None = None) -> dict[str, Any]:
    return doctor.examine(doctor.resolve(str(folder), overrides), limit=limit)[0]


def photo(name: str) -> Pixels:
    return images.decode((sample_photos.FOLDER / f"{name}.jpg").read_bytes())


def resized(pixels: Pixels, side: int, filter: images.Filter = "bicubic") -> Pixels:
    return images.resize(pixels, (side, side), filter)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six good photos, their splits not published."""
    root = tmp_path / "photos"
    root.mkdir()
    for name in PHOTOS:
        shutil.copy(sample_photos.FOLDER / f"{name}.jpg", root)
    return root


def keys(items: list[dict[str, Any]]) -> list[str]:
    return [item["key"] for item in items]


def test_nothing_is_said_of_good_photos(folder: Path) -> None:
    content = examine(folder)
    assert content["inputs"] == {
        "listed": 6, "looked_at": 6, "not_looked_at": 0, "usable": 6, "refused": 0,
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
    }  # fmt: skip
    assert content["verdict"]["usable"] and content["verdict"]["problems"] == content["verdict"]["warnings"] == []
    assert content["formats"] == {"JPEG": 6} and content["depths"] == {"8": 6} and content["channels"] == {"3": 6}
    assert content["sizes"]["short_side"] == {"min": 400, "median": 469.5, "max": 512}
    assert {row["level"]: row["photos"] for row in content["levels"]}[512] == 3
    assert content["jpeg"]["quality"] == {"min": 95, "median": 95, "max": 95}


def test_files_of_several_pages_are_named(folder: Path) -> None:
    pages = [Image.fromarray(photo(name)).resize((300, 300)) for name in ("church", "coffee")]
    pages[0].save(folder / "pages.tiff", save_all=True, append_images=pages[1:])
    content = examine(folder)
    assert content["first_frames"]["inputs"] == [{"key": "pages", "uri": str(folder / "pages.tiff"), "frames": 2}]
    assert any(line.startswith("several pages or frames in a file: 1") for line in content["verdict"]["warnings"])


def test_each_finding_is_found_and_no_more(folder: Path) -> None:
    (folder / "copy.jpg").write_bytes((folder / "church.jpg").read_bytes())
    (folder / "smaller.png").write_bytes(images.encode(resized(photo("building"), 300, "lanczos")))
    (folder / "enlarged.png").write_bytes(images.encode(resized(photo("picosdeeuropa")[300:556, 300:556], 768)))
    (folder / "sky.png").write_bytes(images.encode(np.full((300, 300, 3), 130, np.uint8)))
    (folder / "blocks.jpg").write_bytes(images.encode(photo("campus-506"), "jpeg", 40))
    (folder / "empty.png").write_bytes(b"")
    (folder / "cut.jpg").write_bytes((folder / "coffee.jpg").read_bytes()[:9000])
    content = examine(folder)
    assert content["refused"]["reasons"] == {"empty file": 1, "truncated": 1}
    assert sorted(keys(content["refused"]["inputs"])) == ["cut", "empty"]
    assert [group["keys"] for group in content["duplicates"]["groups"]] == [["church", "copy"]] and content["duplicates"]["extra"] == 1
    assert content["near_duplicates"]["looked_for"]
    assert [pair["keys"] for pair in content["near_duplicates"]["pairs"]] == [["building", "smaller"]]
    assert keys(content["enlarged"]["inputs"]) == ["enlarged"]
    assert keys(content["flat"]["inputs"]) == ["sky"]
    assert content["jpeg"]["low"] == [{"key": "blocks", "uri": str(folder / "blocks.jpg"), "quality": 40}]
    assert content["leakage"] == []  # no split is published
    assert len(content["verdict"]["warnings"]) == 6
    sharp = {row["level"]: (row["photos"], row["sharp"]) for row in content["levels"]}
    assert sharp[512][0] - sharp[512][1] == 1


def test_leaks_between_published_splits(tmp_path: Path) -> None:
    for split, name in (("train", "church"), ("train", "coffee"), ("test", "church"), ("test", "rocket"), ("train", "rocket-small")):
        path = tmp_path / split / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        pixels = resized(photo("rocket"), 200, "box") if name == "rocket-small" else photo(name)
        path.write_bytes(images.encode(pixels))
    leaks = examine(tmp_path)["leakage"]
    assert {(leak["kind"], *sorted(leak["keys"])) for leak in leaks} == {
        ("exact", "test/church", "train/church"),
        ("near", "test/rocket", "train/rocket-small"),
    }
    assert all(sorted(leak["splits"]) == ["test", "train"] for leak in leaks)


def seen(key: str, **changes: Any) -> Seen:
    values: dict[str, Any] = {
        "key": key, "uri": f"/x/{key}", "split": None, "label": None, "group": "", "bytes": 10, "content_hash": key, "format": "PNG",
        "mode": "RGB", "bits": 8, "channels": 3, "height": 600, "width": 600, "detail": 9.0,
    }  # fmt: skip
    return Seen(**{**values, **changes})


def found(*items: Seen) -> dict[str, Any]:
    return findings.findings(items, listed=len(items), data=None, near_looked_for=True)


def test_photos_of_one_scene_in_two_splits_leak() -> None:
    apart = [seen("a", split="train", group="x"), seen("b", split="test", group="x"), seen("c", split="val", group="y")]
    assert found(*apart)["leakage"] == [{"kind": "group", "keys": ["a", "b"], "splits": ["train", "test"]}]
    together = [seen("a", split="train", group="x"), seen("b", split="train", group="x"), seen("c", split="val", group="y")]
    assert found(*together)["leakage"] == []


def test_flat_images_are_no_near_duplicates() -> None:
    alike = {"near_hash": "0000000000000000"}
    assert found(seen("a", detail=0.1, **alike), seen("b", detail=0.1, **alike))["near_duplicates"]["pairs"] == []
    assert found(seen("a", **alike), seen("b", **alike))["near_duplicates"]["pairs"] == [{"keys": ["a", "b"], "bits": 0}]
    far = found(seen("a", **alike), seen("b", near_hash="00000000000000ff"))
    assert far["near_duplicates"]["pairs"] == []


SCHEMA: dict[str, Any] = {
    "schema": int, "seconds": float, "judged": bool, "recipe": (str, type(None)), "not_looked_at": list, "labels": int, "splits": dict,
    "other_files": dict,
    "source": {"name": str, "options": dict},
    "inputs": {"listed": int, "looked_at": int, "not_looked_at": int, "usable": int, "refused": int, "bytes": int},
    "sizes": {"width": dict, "height": dict, "short_side": dict},
    "formats": dict, "modes": dict, "depths": dict, "channels": dict, "levels": list, "leakage": list,
    "refused": {"reasons": dict, "inputs": list}, "duplicates": {"extra": int, "groups": list},
    "near_duplicates": {"looked_for": bool, "bits": int, "pairs": list}, "flat": {"limit": float, "inputs": list},
    "first_frames": {"inputs": list},
    "enlarged": {"checked": int, "inputs": list}, "jpeg": {"files": int, "quality": (dict, type(None)), "limit": int, "low": list},
    "estimate": {"photos": int, "samples": int, "shards": int, "bytes": int, "seconds_per_core": float, "measured_on": int},
    "verdict": {"usable": bool, "problems": list, "warnings": list, "data": dict, "stages": list},
}  # fmt: skip


def agrees(value: Any, schema: Any) -> bool:
    if isinstance(schema, dict):
        return isinstance(value, dict) and set(value) == set(schema) and all(agrees(value[name], schema[name]) for name in schema)
    return isinstance(value, schema)


def test_the_keys_of_the_answer_are_those_of_its_schema(folder: Path) -> None:
    content = json.loads(json.dumps(examine(folder)))
    assert content["schema"] == findings.SCHEMA_VERSION == 1
    assert agrees(content, SCHEMA), content
    assert not agrees({**content, "more": 1}, SCHEMA) and not agrees({**content, "labels": "1"}, SCHEMA)


def test_what_is_proposed_goes_through_prepare(folder: Path, tmp_path: Path) -> None:
    from sr3_core.data import shards
    from sr3_core.data.sources import folder as source

    (folder / "tiny.png").write_bytes(images.encode(resized(photo("church"), 20)))
    content = examine(folder)
    data = Data.model_validate(content["verdict"]["data"])
    assert len(data.levels) >= 2
    assert [(stage["low"], stage["high"]) for stage in content["verdict"]["stages"]] == list(
        zip(data.levels, data.levels[1:], strict=False)
    )
    made = shards.build(str(tmp_path / "out"), data, source.examples(source.Options(uri=str(folder))), fingerprint="f")
    made.verify()
    assert made.manifest["accepted"] == content["estimate"]["photos"]
    assert len(made.manifest["shards"]) == content["estimate"]["shards"]
    size = sum(shard["bytes"] for shard in made.manifest["shards"])
    assert 0.5 * size < content["estimate"]["bytes"] < 2 * size


def test_the_proposal_looks_at_detail_and_not_at_pixels(tmp_path: Path) -> None:
    for name in ("picosdeeuropa", "life", "parks", "walls-4"):
        (tmp_path / f"{name}.png").write_bytes(images.encode(resized(photo(name)[400:656, 400:656], 1024)))
    content = examine(tmp_path)
    assert len(content["enlarged"]["inputs"]) == 4
    assert content["verdict"]["data"]["levels"][-1] < 1024


@pytest.mark.parametrize(("channels", "dtype"), [(1, np.uint16), (5, np.uint8)])
def test_other_depths_and_channels_are_proposed_as_they_are(channels: int, dtype: Any, tmp_path: Path) -> None:
    for index, name in enumerate(PHOTOS):
        grey = photo(name)[:256, :256].mean(axis=2, keepdims=True)
        array = np.repeat(grey, channels, axis=2).astype(dtype) * (257 if dtype == np.uint16 else 1)
        (tmp_path / f"{index}.npy").write_bytes(images.encode(array.astype(dtype), "npy"))
    content = examine(tmp_path, "suffixes=[.npy]")
    assert content["depths"] == {"16" if dtype == np.uint16 else "8": 6} and content["channels"] == {str(channels): 6}
    data = Data.model_validate(content["verdict"]["data"])
    assert (data.bits, data.channels) == (16 if dtype == np.uint16 else 8, channels)
    assert content["verdict"]["usable"] and content["estimate"]["photos"] == 6


def test_mixed_depths_are_warned_of(folder: Path) -> None:
    (folder / "deep.png").write_bytes(images.encode(photo("chelsea")[:, :, :1].astype(np.uint16) * 257))
    content = examine(folder)
    assert content["depths"] == {"8": 6, "16": 1}
    assert any("depths are mixed" in line for line in content["verdict"]["warnings"])
    assert content["verdict"]["data"]["channels"] == 3


def test_a_limit_takes_the_same_inputs_each_time_and_names_the_others(folder: Path) -> None:
    first, again = examine(folder, limit=4), examine(folder, limit=4)
    assert first["not_looked_at"] == again["not_looked_at"] and len(first["not_looked_at"]) == 2
    assert first["inputs"]["listed"] == 6 and first["inputs"]["looked_at"] == 4
    assert set(examine(folder, limit=2)["not_looked_at"]) > set(first["not_looked_at"])
    assert first["estimate"]["photos"] == 6  # of all that are listed


def test_given_levels_are_judged(folder: Path) -> None:
    content = examine(folder, "data.levels=[64, 256]")
    assert content["judged"] and [row["level"] for row in content["levels"]] == [64, 256]
    assert content["verdict"]["usable"]
    too_large = examine(folder, "data.levels=[512, 2048]")
    assert not too_large["verdict"]["usable"] and "prepare would refuse it" in too_large["verdict"]["problems"][0]
    assert too_large["estimate"] is None


@pytest.mark.parametrize(
    ("source", "overrides", "says"),
    [
        ("nowhere-at-all", (), "unknown source"),
        ("foldr", (), "folder (nearest)"),
        ("no.such.module", (), "does not import"),
        ("sample_photos", ("photoz=[x]",), "photos (nearest)"),
        ("folder", (), "data.options.uri"),
        ("/nowhere/at/all", (), "does not exist"),
        ("nosuch://bucket/x", (), "nosuch"),
        ("demo", ("data.levelz=[1]",), "levels (nearest)"),
        ("imagnet", (), "imagenet (nearest)"),
        ("my_photos", (), "do: name one of these, or write your own: sr3 doctor --example prints one"),
        ("my_photos.py", (), "check the module, PYTHONPATH"),
        ("folder", (), "do: --set uri=..."),
        ("lmdb", ("url=x",), "unknown key data.options.url; allowed: uri (nearest)"),
        ("/nowhere", ("levels=[1]",), "do: --set data.levels=[1]"),
        ("folder", ("uri=/nowhere", "data.levels=64"), "a list, as [1, 2]"),
        ("df2k", (), "no uri, which holds both"),
        ("./photos", ("access_key=CANARY",), "credential"),
    ],
)
def test_bad_sources(source: str, overrides: tuple[str, ...], says: str) -> None:
    with pytest.raises(BadInput) as error:
        doctor.examine(doctor.resolve(source, overrides), limit=None)
    assert says in str(error.value) and "CANARY" not in str(error.value)


def test_the_order_of_names(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.resolve("demo", ()).recipe == "demo"
    assert doctor.resolve("sample_photos", ()).data.source == "sample_photos"
    monkeypatch.chdir(folder.parent)
    (folder.parent / "demo").mkdir()
    assert doctor.resolve("photos", ()).data.options == {"uri": str(folder)}  # absolute: what is proposed works from any folder
    assert doctor.resolve("./demo", ()).data.options == {"uri": str(folder.parent / "demo")}
    assert doctor.resolve("folder", ("uri=2024",)).data.options == {"uri": str(folder.parent / "2024")}
    assert doctor.resolve("photos/*.jpg", ()).data.source == "folder"


def test_an_archive_is_opened_and_another_file_is_refused(folder: Path) -> None:
    packed = shutil.make_archive(str(folder.parent / "packed"), "zip", folder)
    content = doctor.examine(doctor.resolve(packed, ()), limit=None)[0]
    assert content["source"]["name"] == "archive" and content["inputs"]["usable"] == 6 and content["verdict"]["usable"]
    with pytest.raises(BadInput, match="is a file"):
        doctor.resolve(str(folder / "church.jpg"), ())
    for name, source in (
        ("a.npz", "stack"),
        ("a.NPY", "stack"),
        ("a.parquet", "parquet"),
        ("train-*.parquet", "parquet"),
        ("data.mdb", "lmdb"),
    ):
        (folder / name.replace("*", "0")).write_bytes(b"x")
        assert doctor.resolve(str(folder / name), ()).data.source == source
    assert doctor.resolve(str(folder / "*.npy"), ()).data.source == "folder"  # arrays of one image each
    assert doctor.resolve("gs://bucket/rows.parquet", ()).data.source == "parquet"


def test_a_plug_in_of_the_user(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_of_doctor").mkdir()
    (tmp_path / "mine_of_doctor" / "photos.py").write_text(
        "from sr3_core.config import Section\n"
        "from sr3_core.data.sources._base import Example\n"
        "from pathlib import Path\n"
        "class Options(Section):\n    where: str\n"
        "def examples(options):\n"
        "    for path in sorted(Path(options.where).iterdir()):\n"
        "        yield Example(key=path.name, uri=str(path), label=len(path.stem) % 2)\n"
        "    yield Example(key='lost', uri='/x', reason='lost in the post', detail='last week')\n"
        "def listing(options):\n    return 'x'\n"
        "def read(options, example):\n    return Path(example.uri).read_bytes()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    content = doctor.examine(doctor.resolve("mine_of_doctor.photos", (f"where={folder}",)), limit=None)[0]
    assert content["inputs"]["usable"] == 6 and content["labels"] == 2
    assert content["refused"]["reasons"] == {"lost in the post": 1}


def test_files_that_are_no_inputs_are_counted(folder: Path) -> None:
    for name in ("a.HEIC", "b.heic", "c.cr2", "notes.txt", "LICENCE", ".hidden"):
        (folder / name).write_bytes(b"x")
    content = examine(folder)
    assert content["other_files"] == {".heic": 2, ".cr2": 1, ".txt": 1, "none": 1} and content["inputs"]["listed"] == 6
    assert content["verdict"]["warnings"] == ["pictures with endings that are no inputs: .heic 2, .cr2 1; convert them to PNG or TIFF"]
    assert "other files, which are no inputs: .heic 2, .cr2 1, .txt 1, none 1" in page.text(content, verbose=False)


def test_arrays_of_too_many_channels_are_refused_as_a_stack(folder: Path) -> None:
    np.save(folder / "stack.npy", np.zeros((3, 70, 65), np.uint8))
    (refused,) = examine(folder)["refused"]["inputs"]
    assert refused["reason"] == "unsupported shape" and "65 channels; at most 64" in refused["detail"] and "stack" in refused["detail"]


def test_a_source_of_which_most_is_missing_is_not_usable(folder: Path) -> None:
    for name in ("astronaut", "building"):
        (folder / f"0000{len(name) % 2}.jpg").write_bytes((folder / f"{name}.jpg").read_bytes())
    asked = doctor.resolve("celebahq", (f"uri={folder}", "numbers=[0, 5]"))
    content = doctor.examine(asked, limit=None)[0]
    assert content["refused"]["reasons"] == {"not in the layout": 6, "missing": 4}
    assert not content["verdict"]["usable"] and content["verdict"]["data"] is None and content["estimate"] is None
    assert content["verdict"]["problems"][0].startswith("most inputs cannot be used")
    assert content["verdict"]["warnings"][0].endswith("; fetch what is missing, or narrow data.options")
    assert "refused, missing (no such file), 4: 00002, 00003" in page.text(content, verbose=False)
    part = doctor.examine(doctor.resolve("celebahq", (f"uri={folder}", "numbers=[0, 5]", "data.levels=[16, 64]")), limit=None)[0]
    assert part["judged"] and "prepare would refuse it" in part["verdict"]["problems"][0]


def test_flat_tiles_count_as_prepare_counts_them(tmp_path: Path) -> None:
    """A judged section's least detail: photos without it are a problem, not an error of the trial that measures the cost."""
    for index in range(12):
        (tmp_path / f"{index}.png").write_bytes(images.encode(np.full((64, 64, 3), 20 * index, np.uint8)))
    asked = ("data.levels=[16, 32]", "data.fit=tiles", "data.tiles.min_detail=3")
    content = examine(tmp_path, *asked)
    assert not content["verdict"]["usable"] and "flat photo 12" in content["verdict"]["problems"][0]
    assert content["estimate"] is None
    assert examine(tmp_path, *asked[:2])["estimate"]["photos"] == 12


def test_published_splits_that_the_proposal_drops_are_said(tmp_path: Path) -> None:
    for index, name in enumerate(PHOTOS):
        (tmp_path / ("Train" if index % 2 else "valid")).mkdir(exist_ok=True)
        shutil.copy(sample_photos.FOLDER / f"{name}.jpg", tmp_path / ("Train" if index % 2 else "valid"))
    content = examine(tmp_path)
    assert content["splits"] == {"train": 3, "val": 3}
    assert content["verdict"]["warnings"] == ["published splits: train, val, but none for test; the values below divide all photos anew"]


def test_the_values_shown_are_those_that_are_not_defaults(folder: Path) -> None:
    lines = page.settings(examine(folder))
    assert lines[0] == "data:" and f'  options: {{"uri": "{folder}"}}' in lines and '  split: {"by": "content_hash"}' in lines
    names = [line.split(":")[0].strip() for line in lines]
    assert not {"bits", "channels", "codec", "shard_samples"} & set(names) and "levels" in names and "fit" in names


def test_the_example_is_a_source_of_20_lines(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = plugins.EXAMPLE.read_text()
    assert len([line for line in text.splitlines() if line.strip()]) <= 20
    (folder.parent / "mine_of_example").mkdir()
    (folder.parent / "mine_of_example" / "photos.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder.parent))
    content = doctor.examine(doctor.resolve("mine_of_example.photos", (f"uri={folder}",)), limit=None)[0]
    assert content["verdict"]["usable"] and content["labels"] == 6


def test_a_remote_folder(folder: Path) -> None:
    import fsspec

    memory: Any = fsspec.filesystem("memory")
    for path in folder.iterdir():
        memory.pipe_file(f"/doctor/{path.name}", path.read_bytes())
    content = doctor.examine(doctor.resolve("memory://doctor", ()), limit=None)[0]
    assert content["inputs"]["usable"] == 6 and content["verdict"]["usable"]


def test_a_missing_file_and_one_that_may_not_be_read_are_reasons(folder: Path) -> None:
    asked = doctor.resolve(str(folder), ())
    gone = examination.look(Example(key="gone", uri=str(folder / "gone.png")), asked, is_hashed=False)
    assert gone.reason == "missing"
    (folder / "inner.png").mkdir()
    assert examination.look(Example(key="x", uri=str(folder / "inner.png")), asked, is_hashed=False).reason == "not a file"


def test_the_page_shows_the_worst_and_needs_no_network(folder: Path) -> None:
    (folder / "copy.jpg").write_bytes((folder / "church.jpg").read_bytes())
    (folder / "a<b>.png").write_bytes(images.encode(np.full((300, 300, 1), 130, np.uint8)))
    (folder / "enlarged.png").write_bytes(images.encode(resized(photo("life")[300:556, 300:556], 768, "nearest")))
    (folder / "empty.png").write_bytes(b"")
    asked = doctor.resolve(str(folder), ())
    content, every, examples = doctor.examine(asked, limit=None)
    html = page.page(content, doctor.pictures(asked, every, examples))
    assert "a&lt;b&gt;" in html and "a<b>" not in html
    assert html.count("<img ") == 2 + 1 + 2  # whole and close of one, the flat one, the pair
    assert "http" not in html.replace("http-equiv", "") and "<script" not in html
    assert "empty file" in html and "each pixel repeated x3" in html
    (folder / "enlarged.png").unlink()  # gone between the look and the page
    assert page.page(content, doctor.pictures(asked, every, examples)).count("<img ") == 3


def test_long_lists_of_the_page_are_cut_and_say_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "ROWS", 3)
    for index in range(4):
        (folder / f"empty{index}.png").write_bytes(b"")
    html = page.page(examine(folder), lambda key: None)
    assert "<h2>Refused inputs (4)</h2><p>Shown: 3 of 4; doctor.json names all.</p>" in html
    assert "empty2" in html and "empty3" not in html


def test_the_terminal_names_few_or_all(folder: Path) -> None:
    for index in range(9):
        (folder / f"empty{index}.png").write_bytes(b"")
    content = examine(folder)
    short, long = page.text(content, verbose=False), page.text(content, verbose=True)
    assert "and 4 more (--verbose names all)" in short and "empty8" not in short
    assert all(f"empty{index}" in long for index in range(9))
    assert "warning: 9 of 15 inputs cannot be used (empty file 9)" in short


def test_written_pixels_are_those_of_the_pyramid(folder: Path) -> None:
    from sr3_core.data import degrade

    pixels = photo("astronaut")
    fits: tuple[str, ...] = ("crop", "resize", "tiles")
    for fit in fits:
        data = Data.model_validate({"source": "folder", "levels": [32, 64, 128], "fit": fit})
        made = [degrade.pyramid(pixels, crop, data) for crop in degrade.crops(512, 512, data)]
        stored = sum(level.shape[0] * level.shape[1] for levels in made for level in levels.values())
        assert verdict.written_pixels(512, 512, data) == stored


def test_sizes_and_durations() -> None:
    assert [page.size(count) for count in (0, 1023, 1024, 5.5 * 1024**3)] == ["0 B", "1023 B", "1 KiB", "5.5 GiB"]
    assert [page.duration(seconds) for seconds in (0.5, 119, 180, 7200, 3 * 86400)] == ["0.5 s", "119 s", "3 min", "2 h", "3 days"]
