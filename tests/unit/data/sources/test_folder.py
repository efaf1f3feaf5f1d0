"""Patterns of the folder plug-in, here and in a store."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sr3_core import config, plugins, storage
from sr3_core.errors import BadInput

FILES = ("a.png", "b.PNG", "deep/c.png", "deep/er/d.png", "deep/er/e.jpg", "x1.png", "x2.png", "y.dat", ".hidden/f.png", "train/g.png")


@pytest.fixture(params=["file", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    uri = str(tmp_path) if request.param == "file" else f"memory://folder-{tmp_path.name}"
    for name in FILES:
        storage.write_bytes(storage.join(uri, name), b"x")
    yield uri
    storage.remove(uri, recursive=True)


def keys(**options: Any) -> list[str]:
    module = plugins.load("data.sources", "folder")
    given = config.options(module.Options, options, "data")
    found = list(module.examples(given))
    assert len(module.listing(given).splitlines()) == len(found)
    return [example.key for example in found]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.png", ["a", "x1", "x2"]),
        ("**/*.png", ["a", "deep/c", "deep/er/d", "train/g", "x1", "x2"]),
        ("deep/**", ["deep/c", "deep/er/d", "deep/er/e"]),
        ("deep/*/*.jpg", ["deep/er/e"]),
        ("x?.png", ["x1", "x2"]),
        ("*.dat", ["y"]),
    ],
)
def test_patterns_in_the_uri_and_beside_it(place: str, pattern: str, expected: list[str]) -> None:
    above = "deep/" if pattern.startswith("deep/") else ""
    assert [above + key for key in keys(uri=f"{place}/{pattern}")] == expected
    assert keys(uri=place, glob=pattern) == expected


def test_sets_of_characters(place: str) -> None:
    assert keys(uri=place, glob="x[2-9].png") == ["x2"]
    assert keys(uri=place, glob="[!a-c]*.png") == ["x1", "x2"]


def test_the_folder_of_a_pattern_is_the_source(place: str) -> None:
    """Prepare compares its root with ``uri``, so that must be the folder."""
    module = plugins.load("data.sources", "folder")
    options = module.Options(uri=f"{place}/deep/**/*.png")
    assert (options.uri, options.glob) == (f"{place}/deep", "**/*.png")
    assert module.Options.model_validate(options.model_dump()) == options
    with pytest.raises(BadInput, match=r"allowed: files that match \*\*/\*\.gif"):
        keys(uri=f"{place}/**/*.gif")


def test_first_folders_that_name_a_split_in_other_words(place: str) -> None:
    module = plugins.load("data.sources", "folder")
    before = module.listing(module.Options(uri=place))
    for name in ("Training/h.png", "validation/i.png", "testing/j.png", "trainers/k.png"):
        storage.write_bytes(storage.join(place, name), b"x")
    splits = {example.key: example.split for example in module.examples(module.Options(uri=place)) if "/" in example.key}
    assert splits == {
        "Training/h": "train", "validation/i": "val", "testing/j": "test", "trainers/k": None, "train/g": "train", "deep/c": None,
        "deep/er/d": None, "deep/er/e": None,
    }  # fmt: skip
    listing = module.listing(module.Options(uri=place)).splitlines()
    assert [line for line in listing if not line.startswith(("Training", "validation", "testing", "trainers"))] == before.splitlines()
    assert [line.split("\t")[-1] for line in listing if line.startswith(("Training", "validation"))] == ["train", "val"]


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ((), "which is empty; allowed: files that end in .jpg"),
        (("a.txt", "b.TXT", "c"), "but files: .txt 2, none 1; allowed: .*; do: check the place"),
        (("data/train-0.parquet", "README.md"), "do: name another plug-in, as sr3 doctor parquet --set uri="),
        (
            ("000.tar", "001.tar"),
            "do: name another plug-in, as sr3 doctor archive .or, for shards of <key>.<extension>, webdataset. --set uri=",
        ),
        (("data.mdb", "lock.mdb"), "do: name another plug-in, as sr3 doctor lmdb --set uri="),
    ],
)
def test_a_folder_without_photos_says_what_it_holds_and_who_reads_that(files: tuple[str, ...], says: str, tmp_path: Path) -> None:
    for name in files:
        storage.write_bytes(str(tmp_path / name), b"x")
    with pytest.raises(BadInput, match=says):
        keys(uri=str(tmp_path))


@pytest.mark.parametrize(("file", "do"), [("a.png", "give its folder"), ("a.zip", "name the plug-in archive")])
def test_a_file_is_no_folder(tmp_path: Path, file: str, do: str) -> None:
    (tmp_path / file).write_bytes(b"x")
    with pytest.raises(BadInput, match=f"{file} is a file; allowed: a folder; do: {do}"):
        keys(uri=str(tmp_path / file))


def test_a_folder_that_is_really_called_so(tmp_path: Path) -> None:
    (tmp_path / "what?").mkdir()
    (tmp_path / "what?" / "a.png").write_bytes(b"x")
    assert keys(uri=str(tmp_path / "what?")) == ["a"]
