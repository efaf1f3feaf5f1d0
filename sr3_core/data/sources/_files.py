"""What sources that are files in folders share: listing with one clear error each, patterns, keys, splits by name, lines of a listing."""

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import AfterValidator, model_validator

from sr3_core import storage
from sr3_core.config import SplitName
from sr3_core.data.sources import _tar
from sr3_core.data.sources._base import Example
from sr3_core.errors import BadInput

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".npy")
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
HeldOut = Literal["val", "test"]
ARCHIVES = (".zip", *_tar.SUFFIXES)

# Ending of a file that holds many images -> its plug-in.
CONTAINERS = {**dict.fromkeys(ARCHIVES, "archive"), ".parquet": "parquet", ".npz": "stack", ".mdb": "lmdb"}
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
        every = storage.list_files(uri)
    except PermissionError as error:
        got = f"{error.filename or uri} cannot be listed"
        raise BadInput(got, "a folder you may list and read", "check access and credentials") from None
    except NotADirectoryError:
        name = container_plugin(uri)
        do = f"name the plug-in {name}" if name else "give its folder"
        raise BadInput(f"{uri} is a file", "a folder", do) from None
    if pattern:
        matches = glob_expression(pattern)
        files = [info for info in every if matches.fullmatch(info.path_relative)]
    else:
        files = [info for info in every if suffixes is None or ending(info.path_relative) in suffixes]
    if not files:
        allowed = f"files that match {pattern}" if pattern else f"files that end in {', '.join(suffixes or ('anything',))}"
        raise _without(uri, every, allowed)
    return files


def ending(path: str) -> str:
    """The last extension in lower case, with its dot; empty where there is none."""
    return os.path.splitext(path)[1].lower()


def endings(paths: Iterable[str]) -> dict[str, int]:
    """Ending -> how many of ``paths`` have it, most first; "none" for those without."""
    return dict(sorted(Counter(ending(path) or "none" for path in paths).items(), key=lambda pair: (-pair[1], pair[0])))


def container_plugin(path: str) -> str:
    """The plug-in for a file that holds many images, by its ending; empty for another file."""
    return next((name for suffix, name in CONTAINERS.items() if path.lower().endswith(suffix)), "")


def split_glob(uri: str) -> tuple[str, str]:
    """A URI with ``*`` or ``?`` in it as the folder before the first of them and the pattern below that folder; no pattern is "".

    A local file or folder that is really called so is taken literally.
    """
    if not re.search(r"[*?]", uri) or "::" in uri or (storage.is_local(uri) and storage.exists(uri)):
        return uri, ""
    parts = uri.split("/")
    first = next(index for index, part in enumerate(parts) if "*" in part or "?" in part)
    return "/".join(parts[:first]) or ("/" if uri.startswith("/") else "."), "/".join(parts[first:])


def _with_glob(cls: type[Any], values: Any) -> Any:
    """Options as they are given, with a pattern in ``uri`` parted into ``uri`` and ``glob``."""
    if not isinstance(values, Mapping) or not isinstance(values.get("uri"), str) or values.get("glob"):
        return values
    uri, glob = split_glob(values["uri"])
    return {**values, "uri": uri, "glob": glob}


split_uri = model_validator(mode="before")(_with_glob)  # for Options with ``uri`` and ``glob``


def containers(uri: str, suffixes: tuple[str, ...], pattern: str = "") -> tuple[bool, list[storage.FileInfo]]:
    """Whether ``uri`` is one file, and that file or those below the folder, by relative path. BadInput as ``listed``."""
    uri = storage.absolute(uri)
    storage.check_readable(uri)
    try:
        return True, [storage.info(uri)]
    except (IsADirectoryError, FileNotFoundError):  # a store has no folders, only names that begin alike
        pass
    every = listed(uri, pattern=pattern or "**")
    files = [info for info in every if info.path_relative.lower().endswith(suffixes)]
    if not files:
        raise _without(uri, every, f"files that end in {', '.join(suffixes)}")
    return False, files


def glob_expression(pattern: str) -> re.Pattern[str]:
    """``**/`` any number of folders, ``*`` and ``?`` within a name, ``[a-z]`` a set, ``[!a-z]`` its opposite; case counts."""
    tokens = re.split(r"(\*\*/|\*\*|\*|\?|\[!?[^\]]+\])", pattern)
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts: list[str] = []
    for token in tokens:
        if token.startswith("[") and token.endswith("]") and len(token) > 2:
            inside = token[1:-1].replace("\\", r"\\").replace("[", r"\[")
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
    """The split that the first of several parts of a path names, in full or as folders of splits are called: ``Validation/a.png``."""
    first, _, rest = path.partition("/")
    return _SPLIT_WORDS.get(first.lower()) if rest else None


def split_in_name(path: str) -> SplitName | None:
    """The split that a word of the file's name, or else of the nearest folder, tells: ``train-00000-of-00002.parquet``, ``val/000.tar``."""
    for part in reversed(path.split("/")):
        found: set[SplitName] = {_SPLIT_WORDS[word] for word in re.split(r"[^A-Za-z]+", part.lower()) if word in _SPLIT_WORDS}
        if len(found) == 1:
            return found.pop()
    return None


def lines(items: Iterable[tuple[str, storage.FileInfo]]) -> str:
    """A listing: ``name size stamp`` a line."""
    return "\n".join(line(name, info.size, info.stamp) for name, info in items)


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
    within: tuple[int, int],
    key: str,
    missing: Callable[[int], str],
    prefix: str = "",
) -> list[Listed]:
    """The inputs of a layout with a file for each number of ``numbers`` = (first, last), in that order, without splits.

    ``name`` matches a file's relative path and has the group ``number``; ``key`` is a format string of ``{number}``, the example's key;
    ``missing`` tells the URI where a file that is not there should be. Files of the layout outside of ``numbers`` are no inputs; files
    that are none of it - another name, a number not ``within`` it, a second file of one number - are inputs with a reason, named by
    ``prefix`` and their path.
    """
    by_number: dict[int, storage.FileInfo] = {}
    strange: list[Listed] = []
    for info in files:
        match = name.fullmatch(info.path_relative)
        number = int(match["number"]) if match else within[0] - 1
        if not within[0] <= number <= within[1] or number in by_number:
            reason = "second file of one number" if number in by_number else "not in the layout"
            strange.append(Listed(Example(prefix + info.path_relative, info.uri, reason=reason, detail=info.path_relative), info))
        else:
            by_number[number] = info
    found: list[Listed] = []
    for number in range(numbers[0], numbers[1] + 1):
        there = by_number.get(number)
        found.append(Listed(Example(key.format(number=number), there.uri if there else missing(number)), there))
    return found + strange


def changed(item: Listed, **fields: Any) -> Listed:
    """The item with some of its example's fields replaced."""
    return replace(item, example=replace(item.example, **fields))


def beside(uri: str, name: str) -> str:
    """Where ``name`` is: itself when it is a URI or an absolute path, else below the folder ``uri``."""
    return storage.absolute(name if "://" in name or os.path.isabs(name) else storage.join(storage.absolute(uri), name))


def within(least: int, most: int) -> AfterValidator:
    """For an option that is (first, last): both in ``least`` .. ``most``, in order."""

    def check(numbers: tuple[int, int]) -> tuple[int, int]:
        if not least <= numbers[0] <= numbers[1] <= most:
            raise ValueError(f"{list(numbers)} must be [first, last] within {[least, most]}")
        return numbers

    return AfterValidator(check)


def table(uri: str, allowed: str) -> list[list[str]]:
    """The words of each line of a small text file, parted by commas or spaces; empty lines left out. BadInput says what is ``allowed``."""
    try:
        text = storage.read_bytes(uri).decode("utf-8-sig")
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise BadInput(f"no list at {uri}", allowed, "fetch it, or mend data.options") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{uri} is no text ({error})", allowed, "fetch it again") from None
    found = [text_line.replace(",", " ").split() for text_line in text.splitlines() if text_line.strip()]
    if not found:
        raise BadInput(f"{uri} is empty", allowed, "fetch it again")
    return found


def partition_list(uri: str) -> dict[str, SplitName]:
    """CelebA's list_eval_partition.txt: ``000001.jpg 0`` a line, or the same as CSV with a head; 0 train, 1 val, 2 test."""
    allowed = "a photo's name and 0, 1 or 2 a line, as list_eval_partition.txt"
    splits: dict[str, SplitName] = {}
    for number, words in enumerate(table(uri, allowed)):
        if len(words) == 2 and words[1] in ("0", "1", "2"):
            splits[words[0]] = SPLITS[int(words[1])]
        elif number:
            raise BadInput(f"line {number + 1} of {uri}: {' '.join(words)[:80]!r}", allowed, "fetch it again")
    return splits


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


def few(names: Sequence[str]) -> str:
    """The first of many names, for a message."""
    return ", ".join(names[:5]) + (f", ... ({len(names)})" if len(names) > 5 else "")


def _without(uri: str, every: Sequence[storage.FileInfo], allowed: str) -> BadInput:
    """The error for a folder without what is ``allowed``: what it holds instead, and the plug-in that reads that."""
    found = [f"{name} {count}" for name, count in endings(info.path_relative for info in every).items()]
    got = f"no photo in {uri}" + (f", but files: {few(found)}" if found else ", which is empty")
    plugin = next((name for info in every if (name := container_plugin(info.path_relative))), "")
    names = {"archive": "archive (or, for shards of <key>.<extension>, webdataset)"}.get(plugin, plugin)
    return BadInput(got, allowed, f"name another plug-in, as sr3 doctor {names} --set uri=..." if names else "check the place")


def _printable(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode()
