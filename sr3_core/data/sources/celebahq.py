"""CelebA-HQ as people have it: a folder of 30,000 numbered photos, the data<size>x<size> folders, arrays imgHQ00000.npy, or an LMDB."""

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import Field

from sr3_core import storage
from sr3_core.config import Section, SplitName
from sr3_core.data.sources import _arrays, _files
from sr3_core.data.sources import lmdb as lmdb_source
from sr3_core.data.sources._base import Example
from sr3_core.errors import BadInput

LAST = 29_999
LAST_TRAINING = 26_999
Numbers = Annotated[tuple[int, int], _files.within(0, LAST)]
_NAME = re.compile(r"(?:.*/)?(?:imgHQ|img)?(?P<number>\d{1,6})\.[A-Za-z]+")
_SIZED = re.compile(r"data(\d+)x\1")
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".npy")


class Options(Section):
    """``uri``: the folder; the photos may lie in it, in CelebA-HQ-img, or in data1024x1024 and the like (the largest is taken, or the one
    called ``folder``). A folder with data.mdb is an LMDB of a public SR3 code (see the plug-in lmdb), ``resolution`` picks the size there.

    ``numbers``: the first and last photo to use (0 .. 29999); one of these that is not there is a rejected input.
    ``split``: "27k" - the first 27,000 for training, the last 3,000 held out; "celeba" - each photo as in CelebA's list_eval_partition.txt,
    found through CelebA-HQ-to-CelebA-mapping.txt (``partition`` and ``mapping`` name other places); "lists" - as in the text files of
    ``lists``, a photo's name a line, for the splits it names. ``held_out``: the name that the 3,000 take here.
    """

    uri: str
    folder: str = ""
    resolution: int | None = Field(default=None, ge=1)
    numbers: Numbers = (0, LAST)
    split: Literal["27k", "celeba", "lists"] = "27k"
    held_out: _files.HeldOut = "val"
    mapping: str = "CelebA-HQ-to-CelebA-mapping.txt"
    partition: str = "list_eval_partition.txt"
    lists: dict[SplitName, str] = Field(default={})


def examples(options: Options) -> Iterator[Example]:
    """Every photo of ``numbers`` once. Raises BadInput for a folder that is missing or laid out otherwise, and for lists that are."""
    for item in _items(options):
        yield item.example


def listing(options: Options) -> str:
    """``key size stamp split`` a line."""
    return _files.layout_listing(_items(options))


def read(options: Options, example: Example) -> bytes:
    """A file's bytes; a channels-first array of the original release as (H, W, C); a value of the LMDB."""
    if example.member:
        return lmdb_source.read(_lmdb_options(options), example)
    if example.uri.endswith(".npy"):
        return _arrays.whole(storage.read_bytes(example.uri), "NCHW")
    return storage.read_bytes(example.uri)


def _items(options: Options) -> list[_files.Listed]:
    if lmdb_source.is_lmdb(options.uri):
        found = [_of_lmdb(item, options) for item in lmdb_source.items(_lmdb_options(options))]
        found = [item for item in found if item.example.reason or options.numbers[0] <= int(item.example.key) <= options.numbers[1]]
    else:
        found = _numbered(options)
    splits = _splits(options)
    items: list[_files.Listed] = []
    for item in found:
        if item.example.reason:
            items.append(item)
            continue
        split = splits.get(int(item.example.key))
        items.append(_files.changed(item, split=split) if split else _files.changed(item, reason="not in the lists of the split"))
    return items


def _numbered(options: Options) -> list[_files.Listed]:
    files = _files.listed(options.uri, _SUFFIXES)
    folder = options.folder or _folder(files)
    inside = _files.folder_of(files, folder)
    if not any(_NAME.fullmatch(info.path_relative) for info in inside):
        layout = "30,000 files as 00000.jpg, 0.jpg, img00000.png or imgHQ00000.npy, there or in data1024x1024 and the like"
        raise _files.wrong_layout(options.uri, files, layout, "set data.options.uri, or data.options.folder, to the folder that holds them")
    base = storage.join(storage.absolute(options.uri), folder).rstrip("/")

    def missing(number: int) -> str:
        return storage.join(base, f"{number:05d}.jpg")

    return _files.numbered(inside, name=_NAME, numbers=options.numbers, within=(0, LAST), key="{number:05d}", missing=missing)


def _folder(files: Sequence[storage.FileInfo]) -> str:
    first = {info.path_relative.split("/")[0] for info in files if "/" in info.path_relative}
    sized = [(int(match[1]), name) for name in first if (match := _SIZED.fullmatch(name))]
    if sized:
        return max(sized)[1]
    return "CelebA-HQ-img" if "CelebA-HQ-img" in first else ""


def _lmdb_options(options: Options) -> lmdb_source.Options:
    return lmdb_source.Options(uri=options.uri, resolution=options.resolution)


def _of_lmdb(item: _files.Listed, options: Options) -> _files.Listed:
    return _files.changed(item, key=item.example.key.rpartition("_")[2]) if not item.example.reason else item


def _splits(options: Options) -> dict[int, SplitName]:
    """Number -> split, for the numbers that have one."""
    if options.split == "27k":
        return {number: "train" if number <= LAST_TRAINING else options.held_out for number in range(LAST + 1)}
    if options.split == "lists":
        return _from_lists(options)
    mapping = _files.beside(options.uri, options.mapping)
    partition = _files.beside(options.uri, options.partition)
    originals: dict[str, SplitName] = dict(_files.partition_list(partition))
    splits: dict[int, SplitName] = {}
    for words in _files.table(mapping, "lines of: number, number in CelebA, file name in CelebA"):
        if words[0].isdecimal() and len(words) >= 3:
            if words[2] not in originals:
                raise BadInput(f"{words[2]} of {mapping} is not in {partition}", "lists of one release", "fetch both again")
            splits[int(words[0])] = originals[words[2]]
    return splits


def _from_lists(options: Options) -> dict[int, SplitName]:
    if not options.lists:
        raise BadInput("split lists without data.options.lists", "a file for each split, as {train: ..., val: ...}", "name them")
    splits: dict[int, SplitName] = {}
    for split, name in options.lists.items():
        place = _files.beside(options.uri, name)
        for words in _files.table(place, "a photo's name a line"):
            match = _NAME.fullmatch(words[0] if "." in words[0] else f"{words[0]}.jpg")
            if match is None:
                raise BadInput(f"{words[0]!r} in {place}", "a photo's name a line, as imgHQ00000.npy", "mend the list")
            if splits.setdefault(int(match["number"]), split) != split:
                raise BadInput(f"photo {int(match['number'])} in the lists of two splits", "one split for each", "mend the lists")
    return splits
