"""Any folder of photos at any fsspec URI, at any depth; the published split is the first folder's name (train, val or test)."""

import os
from collections.abc import Iterator

from sr3_core import storage
from sr3_core.config import Section, SplitName
from sr3_core.data.sources._base import Example
from sr3_core.errors import BadInput

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
_SPLITS: tuple[SplitName, ...] = ("train", "val", "test")


class Options(Section):
    """``uri``: the folder. Files with other endings than ``suffixes`` (lower case, with the dot) and hidden ones are no inputs."""

    uri: str
    suffixes: tuple[str, ...] = SUFFIXES


def examples(options: Options) -> Iterator[Example]:
    """Every photo once, by relative path. Raises BadInput for a folder that is missing, not readable or without photos."""
    for info in _files(options):
        first, _, rest = info.path_relative.partition("/")
        split: SplitName | None = next((name for name in _SPLITS if rest and name == first), None)
        yield Example(key=os.path.splitext(info.path_relative)[0], uri=info.uri, split=split)


def listing(options: Options) -> str:
    """``path size stamp`` a line."""
    return "\n".join(f"{info.path_relative}\t{info.size}\t{info.stamp}" for info in _files(options))


def _files(options: Options) -> list[storage.FileInfo]:
    uri = storage.absolute(options.uri)
    storage.check_readable(uri)
    try:
        files = storage.list_files(uri, suffixes=options.suffixes)
    except PermissionError as error:
        got = f"{error.filename or uri} cannot be listed"
        raise BadInput(got, "a folder you may list and read", "check access and credentials") from None
    if not files:
        raise BadInput(f"no photo in {uri}", f"files that end in {', '.join(options.suffixes)}", "check data.options.uri")
    return files
