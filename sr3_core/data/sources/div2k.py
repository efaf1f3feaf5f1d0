"""DIV2K as published: DIV2K_train_HR/0001.png .. 0800.png for training and DIV2K_valid_HR/0801.png .. 0900.png for validation."""

import re
from collections.abc import Iterator
from functools import partial
from typing import Annotated

from sr3_core import storage
from sr3_core.config import Section
from sr3_core.data.sources import _files
from sr3_core.data.sources._base import Example

PARTS = {"DIV2K_train_HR": (1, 800), "DIV2K_valid_HR": (801, 900)}
LAST = 900
Numbers = Annotated[tuple[int, int], _files.within(1, LAST)]
LICENCE = "DIV2K: academic research purpose only; the photos' authors keep their rights"


class Options(Section):
    """``uri``: the folder that holds DIV2K_train_HR and DIV2K_valid_HR, or the folder above it when it is called DIV2K.

    ``numbers``: the first and last photo to use; one of these that is not there is a rejected input. ``held_out``: the name that the
    validation part takes here.
    """

    uri: str
    numbers: Numbers = (1, LAST)
    held_out: _files.HeldOut = "val"


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
    above = next((top for top in ("", "DIV2K/") if any(_files.folder_of(files, f"{top}{part}") for part in PARTS)), None)
    if above is None:
        layout = "DIV2K_train_HR/0001.png .. 0800.png and DIV2K_valid_HR/0801.png .. 0900.png"
        raise _files.wrong_layout(options.uri, files, layout, "set data.options.uri to the folder that holds them")
    found: list[_files.Listed] = []
    for part, (first, last) in PARTS.items():
        numbers = (max(first, options.numbers[0]), min(last, options.numbers[1]))
        base = storage.join(storage.absolute(options.uri), f"{above}{part}")
        inside = _files.folder_of(files, f"{above}{part}")
        named_files = _files.numbered(
            inside,
            name=re.compile(r"(?P<number>\d{4})\.png"),
            numbers=numbers,
            within=(first, last),
            key="{number:04d}",
            missing=partial(_path, base),
            prefix=f"{part}/",
        )
        for item in named_files:
            split = None if item.example.reason else "train" if part == "DIV2K_train_HR" else options.held_out
            found.append(_files.changed(item, split=split, attributes={"licence": LICENCE}))
    return found


def _path(base: str, number: int) -> str:
    return storage.join(base, f"{number:04d}.png")
