"""The vendored photos: list and folder agree, splits are by scene, sizes and licences are what the project promises."""

from collections import defaultdict

import pytest
from PIL import Image

from sr3_core import plugins
from sr3_core.data.sources import sample_photos
from sr3_core.data.sources.sample_photos import FOLDER, Options, examples, listing, photos
from sr3_core.errors import BadInput

ALLOWED_LICENCES = {"CC0-1.0", "CC-BY-4.0", "MIT", "public domain"}
MAX_BYTES = 8_000_000


def sides(split: str) -> dict[str, int]:
    """Key -> side in pixels of every photo of ``split``; also checks that each is a square RGB image that decodes."""
    found: dict[str, int] = {}
    for example in examples(Options()):
        if example.split == split:
            with Image.open(example.uri) as image:
                image.load()
                assert image.mode == "RGB" and image.width == image.height, example.key
                found[example.key] = image.width
    return found


def test_the_folder_is_a_plugin() -> None:
    assert plugins.load("data.sources", "sample_photos") is sample_photos


def test_list_and_folder_agree() -> None:
    listed = [photo.file for photo in photos()]
    assert sorted(listed) == sorted(path.name for path in FOLDER.glob("*.jpg"))
    assert len(listed) == len(set(listed))


def test_every_file_is_attributed() -> None:
    text = (FOLDER / "ATTRIBUTION.md").read_text(encoding="utf-8")
    for photo in photos():
        row = next(line for line in text.splitlines() if line.startswith(f"| {photo.file} |"))
        for value in (photo.split, photo.author, photo.title, photo.source, photo.licence, photo.change):
            assert value in row, (photo.file, value)


def test_licences_and_size() -> None:
    assert {photo.licence for photo in photos()} <= ALLOWED_LICENCES
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= MAX_BYTES


def test_a_scene_and_a_wallpaper_author_stand_in_one_split() -> None:
    by_scene: dict[str, set[str]] = defaultdict(set)
    for photo in photos():
        by_scene[photo.photo].add(photo.split)
        if photo.source.startswith("Debian"):
            by_scene[photo.author].add(photo.split)
    assert {scene: splits for scene, splits in by_scene.items() if len(splits) > 1} == {}


@pytest.mark.parametrize(("split", "scenes", "at_1024"), [("train", 7, 7), ("val", 3, 3), ("test", 5, 3)])
def test_splits_are_large_enough(split: str, scenes: int, at_1024: int) -> None:
    found = sides(split)
    assert min(found.values()) >= 256
    scene_of = {photo.key: photo.photo for photo in photos()}
    assert len({scene_of[key] for key in found}) >= scenes
    assert len({scene_of[key] for key, side in found.items() if side >= 1024}) >= at_1024


def test_a_choice_of_photos_and_its_listing() -> None:
    few = Options(photos=("parks", "astronaut"))
    assert [example.key for example in examples(few)] == ["parks", "astronaut"]
    assert listing(few) == listing(few)
    assert len(listing(few).splitlines()) == 2
    assert set(listing(few).splitlines()) < set(listing(Options()).splitlines())


def test_an_unknown_photo_is_refused_with_the_nearest() -> None:
    with pytest.raises(BadInput, match="astronaut"):
        list(examples(Options(photos=("astronot",))))
