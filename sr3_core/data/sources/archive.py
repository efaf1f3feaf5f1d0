"""Photos in zip and tar archives, read where they lie; a first folder train, val or test is the published split (as the
folder plug-in takes it). Nothing is extracted.
"""

import re
from collections.abc import Iterator

from sr3_core import storage
from sr3_core.config import Section
from sr3_core.data.sources import _files, _tar, _zip
from sr3_core.data.sources._base import Example
from sr3_core.errors import BadInput

_OUTSIDE = re.compile(r"[/\\]|[A-Za-z]:|(?:.*[/\\])?\.\.(?:[/\\]|$)", re.DOTALL)


class Options(Section):
    """``uri``: an archive (.zip, .tar, .tar.gz, .tar.bz2, .tar.xz), a folder of them, or a pattern; ``glob``: as the folder plug-in's.

    Members with other endings than ``suffixes`` and hidden ones are no inputs. Members that are links, whose names lead outside, that are
    encrypted or too large are rejected inputs. A compressed tar is unpacked once by every worker: a plain tar or a zip is read in place.
    """

    uri: str
    suffixes: tuple[str, ...] = _files.SUFFIXES
    glob: str = ""

    _split_uri = _files.split_uri


def examples(options: Options) -> Iterator[Example]:
    """Every photo once, by archive and name. Raises BadInput for an archive that is missing, damaged or without photos."""
    for item in _items(options):
        yield item.example


def listing(options: Options) -> str:
    """``key`` and the archive's size and stamp a line."""
    return _files.layout_listing(_items(options))


def read(options: Options, example: Example) -> bytes:
    """The member's bytes."""
    uri = example.container
    return _zip.read(uri, example.place) if uri.lower().endswith(".zip") else _tar.read(uri, example.place)


def _items(options: Options) -> list[_files.Listed]:
    found: list[_files.Listed] = []
    single, archives = _files.containers(options.uri, _files.ARCHIVES, options.glob)
    for info in archives:
        members = _zip.members(info) if info.uri.lower().endswith(".zip") else _tar.members(info)
        above = "" if single else f"{_files.stem(info.path_relative).removesuffix('.tar')}/"
        found += [_item(member, info, above) for member in members if _wanted(member.name, options)]
    if not found:
        got = f"no photo in {options.uri}"
        raise BadInput(got, f"members that end in {', '.join(options.suffixes)}", "check data.options.uri and data.options.suffixes")
    return sorted(found, key=lambda item: (item.example.key, item.example.uri))


def _wanted(name: str, options: Options) -> bool:
    parts = name.replace("\\", "/").split("/")
    hidden = any(part.startswith(".") and part not in (".", "..") for part in parts) or "__MACOSX" in parts
    return name.lower().endswith(options.suffixes) and not hidden


def _item(member: _tar.Member | _zip.Member, info: storage.FileInfo, above: str) -> _files.Listed:
    reason = "" if member.kind == "file" else "not a file" if member.kind == "other" else member.kind
    if _OUTSIDE.match(member.name):
        reason = "leads outside its archive"
    elif not reason and member.size > _tar.MAX_MEMBER_BYTES:
        reason = "too large"
    example = Example(
        key=above + _files.stem(member.name),
        uri=f"{info.uri}#{member.name}",
        split=_files.first_folder_split(member.name),
        member=member.name,
        place=member.place,
        reason=reason,
        detail=member.name if reason else "",
    )
    return _files.Listed(example, info)
