"""WebDataset shards that exist already: tars whose <key>.<ext> members stand together; a label from <key>.cls. Read by offset."""

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sr3_core import storage
from sr3_core.config import Section, SplitName
from sr3_core.data.sources import _files, _tar
from sr3_core.data.sources._base import Example
from sr3_core.errors import BadInput

PICTURES = frozenset(suffix[1:] for suffix in _files.SUFFIXES)
_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)", re.DOTALL)  # as the webdataset library parts a name: at the first dot after the folder
_BRACES = re.compile(r"\{([^{}]*)\}")


class Options(Section):
    """``uri``: a shard, a folder of shards, a pattern, or the library's braces (``gs://b/train-{000000..000146}.tar``; each must be there).

    ``extension``: of the image (``jpg``, ``1024.png``), needed where a sample has several. ``label``: the extension of a member with the
    class as a number; null looks for none. ``attributes``: fields of the sample's ``.json`` to keep with it. ``split``: of all inputs;
    None: a word in the shard's name or folder (``train-000000.tar``). ``glob``: as the folder plug-in's.
    """

    uri: str
    extension: str = ""
    label: str | None = "cls"
    attributes: tuple[str, ...] = ()
    split: SplitName | None = None
    glob: str = ""

    _split_uri = _files.split_uri


def examples(options: Options) -> Iterator[Example]:
    """Every sample once, by shard and place. Raises BadInput for a shard that is missing or damaged, and for several images in one."""
    for item in _items(options):
        yield item.example


def listing(options: Options) -> str:
    """``key`` and the shard's size and stamp a line."""
    return _files.layout_listing(_items(options))


def read(options: Options, example: Example) -> bytes:
    """The member's bytes."""
    return _tar.read(example.container, example.place)


def _items(options: Options) -> list[_files.Listed]:
    found: list[_files.Listed] = []
    for info in _shards(options):
        small = tuple(f".{name}" for name in (options.label, "json" if options.attributes else "") if name)
        parted = [(match, member) for member in _tar.members(info, small) if (match := _NAME.fullmatch(member.name))]
        for key, group in itertools.groupby(parted, key=lambda item: item[0][1]):
            named = [(match[2].lower(), member) for match, member in group]
            sample = _sample(key, dict(named), info, options)
            is_twice = len({extension for extension, _ in named}) < len(named)
            found.append(_files.changed(sample, reason="two members of one name") if is_twice else sample)
    if not found:
        raise BadInput(f"no sample in {options.uri}", "tars with <key>.<ext> members", "check data.options.uri")
    return found


def _shards(options: Options) -> Sequence[storage.FileInfo]:
    if not _BRACES.search(options.uri):
        return _files.containers(options.uri, _tar.SUFFIXES, options.glob)[1]
    shards: list[storage.FileInfo] = []
    for uri in _expanded(options.uri):
        try:
            shards.append(storage.info(uri))
        except (FileNotFoundError, IsADirectoryError):
            raise BadInput(f"no shard {uri}", f"every shard of {options.uri}", "fetch it, or mend the range") from None
    return shards


def _expanded(uri: str) -> list[str]:
    """``a{0..2}b{x,y}`` -> a0bx, a0by, a1bx, ...; numbers keep the width that they are written with."""
    match = _BRACES.search(uri)
    if match is None:
        return [uri]
    first, dots, last = match[1].partition("..")
    if dots and first.isdecimal() and last.isdecimal() and int(first) <= int(last):
        names = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    elif "," in match[1]:
        names = match[1].split(",")
    else:
        raise BadInput(f"braces {match[0]} in {uri}", "{first..last} of numbers, or {a,b,c}", "mend data.options.uri")
    return [done for name in names for done in _expanded(uri[: match.start()] + name + uri[match.end() :])]


def _sample(key: str, members: Mapping[str, _tar.Member], info: storage.FileInfo, options: Options) -> _files.Listed:
    name = f"{_files.stem(info.path_relative)}/{key}"
    if options.extension:
        images = [extension for extension in members if extension == options.extension.lower()]
    else:
        images = [extension for extension in members if extension.rpartition(".")[2] in PICTURES]
    if len(images) > 1:
        got = f"sample {key} of {info.uri} with images {', '.join(sorted(images))}"
        raise BadInput(got, "one, or data.options.extension", "set data.options.extension to one of them")
    split = options.split or _files.split_in_name(info.path_relative)
    if not images:
        detail = f"members: {', '.join(sorted(members))}"
        return _files.Listed(Example(name, f"{info.uri}#{key}", split, member=key, reason="no image in the sample", detail=detail), info)
    image = members[images[0]]
    label, reason = _label(members.get(options.label or ""))
    attributes, bad = _attributes(members.get("json"), options)
    reason = {"file": "", "link": "link", "other": "not a file"}[image.kind] or reason or bad
    example = Example(name, f"{info.uri}#{image.name}", split, label, attributes, image.name, image.place, reason)
    return _files.Listed(example, info)


def _label(member: _tar.Member | None) -> tuple[int | None, str]:
    if member is None:
        return None, ""
    text = (member.content or b"").strip()
    return (int(text), "") if text.isdigit() else (None, "label that is no number")


def _attributes(member: _tar.Member | None, options: Options) -> tuple[dict[str, Any], str]:
    if not options.attributes:
        return {}, ""
    try:
        fields = json.loads(member.content or b"") if member else {}
        return {name: fields[name] for name in options.attributes if name in fields}, ""
    except (ValueError, TypeError):
        return {}, "damaged .json member"
