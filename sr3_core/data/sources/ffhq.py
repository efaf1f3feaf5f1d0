"""FFHQ as published: images1024x1024/00000/00000.png .. 69000/69999.png (or its thumbnails); 60,000 to train, 10,000 to validate."""

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Annotated, Any

from sr3_core import storage
from sr3_core.config import Section
from sr3_core.data.sources import _files
from sr3_core.data.sources._base import Example
from sr3_core.errors import BadInput

FOLDERS = ("images1024x1024", "thumbnails128x128", "")  # as published; the last: the numbered files lie in ``uri`` itself
LAST_TRAINING = 59_999
LAST = 69_999
Numbers = Annotated[tuple[int, int], _files.within(0, LAST)]
JSON = "ffhq-dataset-v2.json"


class Options(Section):
    """``uri``: the folder that holds images1024x1024 or thumbnails128x128, or the numbered files, in folders of 1,000 or not.

    ``numbers``: the first and last photo to use; one of these that is not there is a rejected input. ``held_out``: the name that the
    validation part takes here. ``metadata``: the data set's JSON (ffhq-dataset-v2.json, 267 MB; relative to ``uri``, or a URI); with it the
    split is its ``category`` and each sample keeps author, licence and page; without it the split is by number, which is the same.
    """

    uri: str
    numbers: Numbers = (0, LAST)
    held_out: _files.HeldOut = "val"
    metadata: str = ""


def examples(options: Options) -> Iterator[Example]:
    """Every photo of ``numbers`` once. Raises BadInput for a folder that is missing or laid out otherwise."""
    for item in _items(options):
        yield item.example


def listing(options: Options) -> str:
    """``key size stamp split`` a line."""
    return _files.layout_listing(_items(options))


def _items(options: Options) -> list[_files.Listed]:
    files = _files.listed(options.uri, (".png", ".jpg", ".jpeg", ".webp"))
    name = re.compile(r"(?:.*/)?(?P<number>\d{5})\.[a-z]+")
    folder = next(
        (folder for folder in FOLDERS if any(name.fullmatch(info.path_relative) for info in _files.folder_of(files, folder))), None
    )
    if folder is None:
        layout = "images1024x1024/00000/00000.png .. 69000/69999.png"
        raise _files.wrong_layout(options.uri, files, layout, "set data.options.uri to the folder that holds images1024x1024")
    inside = _files.folder_of(files, folder)
    sorted_in = any("/" in info.path_relative for info in inside)
    base = storage.join(storage.absolute(options.uri), folder).rstrip("/")

    def missing(number: int) -> str:
        return storage.join(base, *([f"{number // 1000 * 1000:05d}"] if sorted_in else []), f"{number:05d}.png")

    found = _files.numbered(inside, name=name, numbers=options.numbers, within=(0, LAST), key="{number:05d}", missing=missing)
    if not options.metadata:
        return [
            _files.changed(
                item, split=None if item.example.reason else "train" if int(item.example.key) <= LAST_TRAINING else options.held_out
            )
            for item in found
        ]
    return [_described(item, _metadata(options), options) for item in found]


def _described(item: _files.Listed, known: dict[int, dict[str, str]], options: Options) -> _files.Listed:
    if item.example.reason:
        return item
    entry = known.get(int(item.example.key))
    if entry is None:
        return _files.changed(item, reason="not in the metadata", detail=options.metadata)
    attributes = {name: value for name, value in entry.items() if name != "category"}
    return _files.changed(item, split="train" if entry["category"] == "training" else options.held_out, attributes=attributes)


def _metadata(options: Options) -> dict[int, dict[str, str]]:
    uri = _files.beside(options.uri, options.metadata)
    try:
        return _parsed(storage.info(uri))
    except (FileNotFoundError, IsADirectoryError):
        raise BadInput(f"no metadata at {uri}", f"the data set's {JSON}", "mend data.options.metadata, or leave it out") from None


@lru_cache(maxsize=1)
def _parsed(info: storage.FileInfo) -> dict[int, dict[str, str]]:
    """Number -> category, author, licence, source; landmarks, which are most of the file, are dropped while it is read."""

    def short(value: dict[str, Any]) -> dict[str, Any]:
        if "category" in value:
            about = value.get("metadata", {})
            named = {"author": about.get("author"), "licence": about.get("license"), "source": about.get("photo_url")}
            return {"category": value["category"], **{name: text for name, text in named.items() if text}}
        return {} if "face_landmarks" in value else value

    allowed = f"the data set's {JSON}: an object with a number and its category, training or validation, for each photo"
    try:
        entries = json.loads(storage.read_bytes(info.uri), object_hook=short)
        parsed = {int(number): entry for number, entry in entries.items()}
        categories = {str(entry["category"]) for entry in parsed.values()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{info.uri} ({type(error).__name__}: {error})", allowed, "fetch it again") from None
    if not categories or not categories <= {"training", "validation"}:
        raise BadInput(f"{info.uri} with categories {sorted(categories)}", allowed, "fetch it again")
    return parsed
