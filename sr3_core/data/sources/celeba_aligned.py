"""CelebA, aligned and cropped: img_align_celeba/000001.jpg .. 202599.jpg with the published partition, and identities where asked for."""

from collections.abc import Iterator
from typing import Annotated

from sr3_core import storage
from sr3_core.config import Section, SplitName
from sr3_core.data.sources import _files
from sr3_core.data.sources._base import Example
from sr3_core.errors import BadInput

PHOTOS = "img_align_celeba"
LAST = 202_599


class Options(Section):
    """``uri``: the folder that holds img_align_celeba and the lists, or the folder above it when it is called celeba.

    ``partition``: the published split, ``000001.jpg 0`` a line (0 train, 1 val, 2 test) or the same as CSV; what it names and is not there
    is a rejected input, as is a photo that it does not name. ``identity``: a list as identity_CelebA.txt (``000001.jpg 2880``); when
    given, photos of one person share a group, and a person who is in several splits is rejected in the less held-out ones.
    ``numbers``: the first and last photo to use.
    """

    uri: str
    partition: str = "list_eval_partition.txt"
    identity: str = ""
    numbers: Annotated[tuple[int, int], _files.within(1, LAST)] = (1, LAST)


def examples(options: Options) -> Iterator[Example]:
    """Every photo of ``numbers`` once, by name. Raises BadInput for a folder or list that is missing or laid out otherwise."""
    for item in _items(options):
        yield item.example


def listing(options: Options) -> str:
    """``key size stamp split identity`` a line."""
    return _files.layout_listing(_items(options))


def _items(options: Options) -> list[_files.Listed]:
    files = _files.listed(options.uri, (".jpg",))
    places = [f"{top}{PHOTOS}{nested}" for top in ("", "celeba/") for nested in (f"/{PHOTOS}", "")]
    folder = next((place for place in places if _files.folder_of(files, place)), None)
    if folder is None:
        layout = f"{PHOTOS}/000001.jpg .. 202599.jpg beside list_eval_partition.txt"
        raise _files.wrong_layout(options.uri, files, layout, f"set data.options.uri to the folder that holds {PHOTOS}")
    top = storage.join(storage.absolute(options.uri), "celeba") if folder.startswith("celeba/") else options.uri
    splits = _files.partition_list(_files.beside(top, options.partition))
    wanted: dict[str, SplitName] = {
        name: split for name, split in splits.items() if options.numbers[0] <= _number(name, options) <= options.numbers[1]
    }
    base = storage.join(storage.absolute(options.uri), folder)
    there = {info.path_relative: info for info in _files.folder_of(files, folder)}
    found = [_item(name, wanted[name], there.get(name), base) for name in sorted(wanted)]
    for name, info in sorted(there.items()):
        if name not in splits:
            found.append(_files.Listed(Example(name, info.uri, reason="not in the partition list", detail=options.partition), info))
    return _by_identity(found, _files.beside(top, options.identity)) if options.identity else found


def _item(name: str, split: SplitName, info: storage.FileInfo | None, base: str) -> _files.Listed:
    return _files.Listed(Example(_files.stem(name), info.uri if info else storage.join(base, name), split=split), info)


def _number(name: str, options: Options) -> int:
    stem = _files.stem(name)
    if not stem.isdecimal():
        raise BadInput(f"{name!r} in {options.partition}", "names as 000001.jpg", "mend data.options.partition")
    return int(stem)


def _by_identity(items: list[_files.Listed], place: str) -> list[_files.Listed]:
    identities = {words[0]: words[1] for words in _files.table(place, "a photo's name and a person's number a line") if len(words) == 2}
    held: dict[str, SplitName] = {}  # person -> the most held-out split with a photo of them
    for item in items:
        person, split = identities.get(_name(item)), item.example.split
        if person and split and _files.SPLITS.index(split) > _files.SPLITS.index(held.get(person, "train")):
            held[person] = split
    found: list[_files.Listed] = []
    for item in items:
        person = identities.get(_name(item))
        if item.example.reason:
            found.append(item)
        elif person is None:
            found.append(_files.changed(item, reason="no identity", detail=place))
        elif held.get(person, "train") != item.example.split:
            detail = f"identity {person} is in {held[person]}"
            found.append(_files.changed(item, reason="person of a held-out photo", detail=detail))
        else:
            found.append(_files.changed(item, attributes={"group": f"identity {person}"}))
    return found


def _name(item: _files.Listed) -> str:
    return f"{item.example.key}.jpg"
