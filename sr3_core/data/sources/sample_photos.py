"""The vendored demo photos with their published splits; origin and licence of each are in sr3_core/data/sample_photos/ATTRIBUTION.md."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import yaml

from sr3_core import config
from sr3_core.config import Section, SplitName
from sr3_core.data.sources._base import Example
from sr3_core.errors import BadInput

FOLDER = Path(__file__).parents[1] / "sample_photos"
LIST = "photos.yaml"


class Photo(Section):
    """One line of the list. ``photo`` names the scene or series: files that share it share a split."""

    file: str
    split: SplitName
    photo: str
    author: str
    title: str
    source: str
    licence: str
    change: str

    @property
    def key(self) -> str:
        return Path(self.file).stem


class Options(Section):
    """``photos``: keys to use (file names without ``.jpg``), all of them when empty."""

    photos: tuple[str, ...] = ()


def photos() -> tuple[Photo, ...]:
    """The list as it is published: train, then val, then test. Raises BadInput when the package came without its data."""
    path = FOLDER / LIST
    if not path.is_file():
        raise BadInput(f"no {LIST} among the sample photos", "an installation with its package data", "install the project again")
    return tuple(config.parse(Photo, row) for row in yaml.safe_load(path.read_text(encoding="utf-8")))


def examples(options: Options) -> Iterator[Example]:
    """Every chosen photo once, in the order of the list. Raises BadInput for an unknown key or a missing file."""
    for photo in _chosen(options):
        yield Example(
            key=photo.key,
            uri=str(_path(photo)),
            split=photo.split,
            attributes={
                "group": photo.photo,
                "author": photo.author,
                "title": photo.title,
                "licence": photo.licence,
                "source": photo.source,
                "change": photo.change,
            },
        )


def listing(options: Options) -> str:
    """``file size sha256`` a line. The stamp is the content, not the time of the check-out: the same fingerprint on every machine."""
    lines: list[str] = []
    for photo in _chosen(options):
        content = _path(photo).read_bytes()
        lines.append(f"{photo.file} {len(content)} {hashlib.sha256(content).hexdigest()} {photo.split}")
    return "\n".join(lines)


def _chosen(options: Options) -> tuple[Photo, ...]:
    every = photos()
    if not options.photos:
        return every
    keys = [photo.key for photo in every]
    for key in options.photos:
        if key not in keys:
            raise BadInput(f"no sample photo {key!r}", config.nearest(key, keys), "mend data.options.photos")
    return tuple(photo for photo in every if photo.key in options.photos)


def _path(photo: Photo) -> Path:
    path = FOLDER / photo.file
    if not path.is_file():
        raise BadInput(f"sample photo {photo.file} is missing", f"every file that {LIST} names", "install the project again")
    return path
