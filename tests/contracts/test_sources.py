"""What every dataset plug-in keeps to. A new file in sr3_core/data/sources is tested by existing; only its options are added here."""

import json
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sr3_core import config, images, plugins, storage
from sr3_core.config import Data, Section
from sr3_core.data import plan, reading
from sr3_core.data.sources._base import Example, Source
from sr3_core.errors import BadInput
from tests import source_trees

NAMES = plugins.names("data.sources")


def load(name: str, photos: Path, tree: Path) -> tuple[ModuleType, Section]:
    """The plug-in and the options of a good source, made below ``tree`` (tests/source_trees.py, where a new plug-in adds its layout)."""
    module = plugins.load("data.sources", name)
    return module, config.options(module.Options, source_trees.BUILD[name](photos, tree), "data")


def listed(module: Any, options: Section) -> list[Example]:
    examples: Iterable[Example] = module.examples(options)
    return list(examples)


def test_there_are_sources() -> None:
    assert {"folder", "sample_photos"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_module_has_the_three_names(name: str, photos: Path, tmp_path: Path) -> None:
    module, options = load(name, photos, tmp_path / "tree")
    assert isinstance(module, Source)
    assert issubclass(module.Options, Section)
    with pytest.raises(BadInput, match=r"unknown key data\.options\.no_such_option"):
        config.options(module.Options, {**options.model_dump(), "no_such_option": 1}, "data")


@pytest.mark.parametrize("name", NAMES)
def test_examples_are_what_they_say(name: str, photos: Path, tmp_path: Path) -> None:
    module, options = load(name, photos, tmp_path / "tree")
    data = Data.model_validate({"source": name, "options": options.model_dump(mode="json"), "levels": [16]})
    examples = listed(module, options)
    assert examples
    assert len({example.key for example in examples}) == len(examples)
    for example in examples:
        assert example.key
        assert example.split in (None, *config.SPLITS)
        assert storage.absolute(example.uri) == example.uri
        json.dumps(example.attributes, allow_nan=False)
        assert example.uri == f"{example.container}#{example.member}" if example.member else example.container == example.uri
    assert not [photo for photo in (plan.inspect(example, data) for example in examples) if photo.reason]
    assert images.decode(reading.read(data, examples[-1])).ndim == 3


@pytest.mark.parametrize("name", NAMES)
def test_the_same_source_says_the_same(name: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, options = load(name, photos, tmp_path / "tree")
    examples, listing = listed(module, options), module.listing(options)
    monkeypatch.chdir(tmp_path)
    assert listed(module, options) == examples
    assert module.listing(options) == listing
    assert len(listing.splitlines()) == len(examples)


def test_the_listing_of_a_folder_follows_its_files(photos: Path, tmp_path: Path) -> None:
    for path in photos.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    module, options = load("folder", tmp_path, tmp_path)
    before = module.listing(options)
    first = sorted(tmp_path.iterdir())[0]
    first.write_bytes(first.read_bytes() + b"x")
    assert module.listing(options) != before


def test_a_folder_knows_published_splits_and_leaves_other_files(photos: Path, tmp_path: Path) -> None:
    content = sorted(photos.iterdir())[0].read_bytes()
    for name in ("train/a.png", "test/deep/b.JPG", "val/c.webp", "other/d.png", "e.png", "train.png", "README.txt", ".hidden.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    module, options = load("folder", tmp_path, tmp_path)
    expected = {"train/a": "train", "test/deep/b": "test", "val/c": "val", "other/d": None, "e": None, "train": None}
    assert {example.key: example.split for example in listed(module, options)} == expected


@pytest.mark.parametrize("ask", ["examples", "listing"])
def test_a_folder_that_is_missing_or_empty(tmp_path: Path, ask: str) -> None:
    module = plugins.load("data.sources", "folder")
    with pytest.raises(BadInput, match="does not exist"):
        list(getattr(module, ask)(module.Options(uri=str(tmp_path / "missing"))))
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(BadInput, match="no photo in"):
        list(getattr(module, ask)(module.Options(uri=str(tmp_path))))


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(uri: str, *, suffixes: object = None) -> list[storage.FileInfo]:
        raise PermissionError(13, "Permission denied", f"{uri}/private")

    module = plugins.load("data.sources", "folder")
    monkeypatch.setattr(storage, "list_files", refuse)
    with pytest.raises(BadInput, match="private cannot be listed"):
        module.listing(module.Options(uri=str(tmp_path)))
