"""What sources that are files in folders share: listing with one clear error each, patterns, keys, splits by name, lines of a listing."""

import os
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sr3_core import storage
from sr3_core.config import SplitName
from sr3_core.data.sources._base import Example
from sr3_core.errors import BadInput

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".npy")
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
HeldOut = Literal["val", "test"]

_SPLIT_WORDS: dict[str, SplitName] = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


@dataclass(frozen=True)
class Listed:
    """An input and what the listing says of its file; ``info`` is None where the layout promises a file that is not there."""

    example: Example
    info: storage.FileInfo | None


def listed(uri: str, suffixes: Collection[str] | None = None, *, pattern: str = "") -> list[storage.FileInfo]:
    """Files below the folder ``uri`` by relative path: those that ``pattern`` matches when there is one, else those with ``suffixes``.

    Raises BadInput for a folder that is missing, cannot be listed or has no such file.
    """
    uri = storage.absolute(uri)
    storage.check_readable(uri)
    try:
        files = storage.list_files(uri, suffixes=None if pattern else suffixes)
    except PermissionError as error:
        got = f"{error.filename or uri} cannot be listed"
        raise BadInput(got, "a folder you may list and read", "check access and credentials") from None
    if pattern:
        matches = glob_expression(pattern)
        files = [info for info in files if matches.fullmatch(info.path_relative)]
    if not files:
        allowed = f"files that match {pattern}" if pattern else f"files that end in {', '.join(suffixes or ('anything',))}"
        raise BadInput(f"no photo in {uri}", allowed, "check data.options.uri")
    return files


def split_glob(uri: str) -> tuple[str, str]:
    """A URI with ``*`` or ``?`` in it as the folder before the first of them and the pattern below that; ("", "") never: no pattern is "".

    A local file or folder that is really called so is taken literally.
    """
    if not re.search(r"[*?]", uri) or "::" in uri or (storage.is_local(uri) and storage.exists(uri)):
        return uri, ""
    parts = uri.split("/")
    first = next(index for index, part in enumerate(parts) if "*" in part or "?" in part)
    return "/".join(parts[:first]) or ("/" if uri.startswith("/") else "."), "/".join(parts[first:])


def glob_expression(pattern: str) -> re.Pattern[str]:
    """``**/`` any number of folders, ``*`` and ``?`` within a name, ``[a-z]`` a set, ``[!a-z]`` its opposite; case counts."""
    tokens = re.split(r"(\*\*/|\*\*|\*|\?|\[!?[^\]]+\])", pattern)
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts: list[str] = []
    for token in tokens:
        if token.startswith("[") and token.endswith("]") and len(token) > 2:
            inside = token[1:-1].replace("\\", r"\\")
            parts.append(f"[^{inside[1:]}]" if inside.startswith("!") else f"[{inside}]")
        else:
            parts.append(known.get(token) or re.escape(token))
    try:
        return re.compile("".join(parts), re.DOTALL)
    except re.error as error:
        raise BadInput(f"pattern {pattern} ({error})", "*, ?, **, [a-z] and [!a-z]", "mend it") from None


def stem(path: str) -> str:
    """The path without its last extension."""
    return os.path.splitext(path)[0]


def first_folder_split(path: str) -> SplitName | None:
    """The split that the first of several parts of a path names: train, val or test."""
    first, _, rest = path.partition("/")
    found: SplitName | None = next((name for name in SPLITS if rest and name == first), None)
    return found


def split_in_name(path: str) -> SplitName | None:
    """The split that a word of the file's name, or else of the nearest folder, tells: ``train-00000-of-00002.parquet``, ``val/000.tar``."""
    for part in reversed(path.split("/")):
        found = {_SPLIT_WORDS[word] for word in re.split(r"[^A-Za-z]+", part.lower()) if word in _SPLIT_WORDS}
        if len(found) == 1:
            return found.pop()
    return None


def lines(items: Iterable[tuple[str, storage.FileInfo]]) -> str:
    """A listing: ``name size stamp`` a line."""
    return "\n".join(line(name, str(info.size), info.stamp) for name, info in items)


def line(*parts: object) -> str:
    """One line of a listing; what would break the line is escaped."""
    return "\t".join(part if part.isprintable() else "".join(map(_printable, part)) for part in map(str, parts))


def layout_listing(items: Iterable[Listed]) -> str:
    """The listing of a source whose splits, labels or groups come from elsewhere than the files: these stand in the lines too."""
    return "\n".join(
        line(
            item.example.key,
            *((item.info.size, item.info.stamp) if item.info else ("", "missing")),
            item.example.split or "",
            "" if item.example.label is None else item.example.label,
            item.example.attributes.get("group", ""),
            item.example.reason,
        )
        for item in items
    )


def numbered(
    files: Iterable[storage.FileInfo],
    *,
    name: re.Pattern[str],
    numbers: tuple[int, int],
    key: str,
    missing: str,
    attributes: dict[str, str] | None = None,
) -> list[Listed]:
    """The inputs of a layout with a file for each number of ``numbers`` = (first, last), in that order, without splits.

    ``name`` matches a file's relative path and has the group ``number``; ``key`` and ``missing`` are format strings of ``{number}``: the
    example's key, and the URI where a file that is not there should be. Files outside of ``numbers`` are no inputs; photos whose name is
    none of the layout's, and second files of one number, are inputs with a reason.
    """
    by_number: dict[int, storage.FileInfo] = {}
    strange: list[Listed] = []
    for info in files:
        match = name.fullmatch(info.path_relative)
        number = int(match["number"]) if match else -1
        if match is None or number in by_number:
            reason = "not in the layout" if match is None else "second file of one number"
            strange.append(Listed(Example(info.path_relative, info.uri, reason=reason, detail=info.path_relative), info))
        else:
            by_number[number] = info
    found: list[Listed] = []
    for number in range(numbers[0], numbers[1] + 1):
        info = by_number.get(number)
        uri = info.uri if info else missing.format(number=number)
        found.append(Listed(Example(key.format(number=number), uri, attributes=attributes or {}), info))
    return found + strange


def with_split(item: Listed, split: SplitName | None) -> Listed:
    return replace(item, example=replace(item.example, split=split))


def check_numbers(numbers: Sequence[int], name: str, allowed: tuple[int, int]) -> None:
    """ValueError, for a validator, unless ``numbers`` are (first, last) within ``allowed``."""
    first, last = numbers
    if not allowed[0] <= first <= last <= allowed[1]:
        raise ValueError(f"{name} {[first, last]} must be [first, last] within {list(allowed)}")


def folder_of(files: Iterable[storage.FileInfo], folder: str) -> list[storage.FileInfo]:
    """The files below ``folder`` (relative to the source), with paths relative to it; ``""`` gives all."""
    if not folder:
        return list(files)
    return [
        replace(info, path_relative=info.path_relative[len(folder) + 1 :]) for info in files if info.path_relative.startswith(f"{folder}/")
    ]


def wrong_layout(uri: str, files: Sequence[storage.FileInfo], layout: str, do: str) -> BadInput:
    """The error for a folder that is there and is not laid out as it should be: what was found, what the layout is, what to do."""
    folders = sorted({os.path.dirname(info.path_relative) or "." for info in files})
    shown = ", ".join(folders[:4]) + (", ..." if len(folders) > 4 else "")
    return BadInput(f"{uri} with {len(files)} files in {shown or 'no folder'}", layout, do)


def _printable(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode()
