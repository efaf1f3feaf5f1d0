"""Flickr2K as published: Flickr2K/Flickr2K_HR/000001.png .. 002650.png. It has no published split; the one given is a known SR3 code's."""

import re
from collections.abc import Iterator
from typing import Annotated

from sr3_core import storage
from sr3_core.config import Section
from sr3_core.data.sources import _files
from sr3_core.data.sources._base import Example

LAST = 2650
Numbers = Annotated[tuple[int, int], _files.within(1, LAST)]
FOLDERS = ("Flickr2K/Flickr2K_HR", "Flickr2K_HR", "")  # the last: the numbered files lie in ``uri`` itself


class Options(Section):
    """``uri``: the folder that holds Flickr2K or Flickr2K_HR, or the numbered files themselves.

    ``numbers``: the first and last photo to use; one of these that is not there is a rejected input. ``test`` and ``val``: first and last
    number of these splits, the rest is for training; the default is novwaul/SR3's (1 .. 1000 test, 1001 .. 2650 training). With both null
    no split is published.
    """

    uri: str
    numbers: Numbers = (1, LAST)
    test: Numbers | None = (1, 1000)
    val: Numbers | None = None


def examples(options: Options) -> Iterator[Example]:
    """Every photo of ``numbers`` once. Raises BadInput for a folder that is missing or laid out otherwise."""
    for item in items(options):
        yield item.example


def listing(options: Options) -> str:
    """``key size stamp split`` a line."""
    return _files.layout_listing(items(options))


def items(options: Options) -> list[_files.Listed]:
    """The inputs with their files, by number; DF2K is made of them too."""
    files = _files.listed(options.uri, (".png",))
    name = re.compile(r"(?P<number>\d{6})\.png")
    folder = next(
        (folder for folder in FOLDERS if any(name.fullmatch(info.path_relative) for info in _files.folder_of(files, folder))), None
    )
    if folder is None:
        layout = "Flickr2K/Flickr2K_HR/000001.png .. 002650.png"
        raise _files.wrong_layout(options.uri, files, layout, "set data.options.uri to the folder that holds Flickr2K")
    base = storage.join(storage.absolute(options.uri), folder).rstrip("/")

    def missing(number: int) -> str:
        return storage.join(base, f"{number:06d}.png")

    inside = _files.folder_of(files, folder)
    found = _files.numbered(inside, name=name, numbers=options.numbers, within=(1, LAST), key="{number:06d}", missing=missing)
    return [_with_split(item, options) for item in found]


def _with_split(item: _files.Listed, options: Options) -> _files.Listed:
    if item.example.reason or (options.test is None and options.val is None):
        return item
    number = int(item.example.key)
    if options.test and options.test[0] <= number <= options.test[1]:
        return _files.changed(item, split="test")
    if options.val and options.val[0] <= number <= options.val[1]:
        return _files.changed(item, split="val")
    return _files.changed(item, split="train")
