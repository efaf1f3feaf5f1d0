"""Hugging Face data sets as parquet files: a row is an input; ``image`` is a column of struct{bytes, path} or of bytes."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import lru_cache
from typing import Any

import pyarrow
import pyarrow.parquet

from sr3_core import storage
from sr3_core.config import Section, SplitName
from sr3_core.data.sources import _files
from sr3_core.data.sources._base import Example
from sr3_core.errors import BadImage, BadInput


class Options(Section):
    """``uri``: a parquet file, a folder of them, or a pattern; ``glob``: as the folder plug-in's.

    ``image`` and ``label``: the columns; a label column that is not there means no labels, and null looks for none. ``attributes``: columns
    to keep with each sample. ``split``: of all inputs; None: a word in the file's name or folder (``train-00000-of-00002.parquet``).
    """

    uri: str
    image: str = "image"
    label: str | None = "label"
    attributes: tuple[str, ...] = ()
    split: SplitName | None = None
    glob: str = ""

    _split_uri = _files.split_uri


def examples(options: Options) -> Iterator[Example]:
    """Every row once, by file and number. Raises BadInput for a file that is missing, damaged or without the columns."""
    for info in _parquets(options):
        described = _described(info, options)
        for row in range(_rows(info)):
            yield _example(info, row, options, described)


def listing(options: Options) -> str:
    """``key`` and the file's size and stamp a line; only the files' ends are read."""
    return "\n".join(_files.line(_key(info, row), info.size, info.stamp, row) for info in _parquets(options) for row in range(_rows(info)))


def read(options: Options, example: Example) -> bytes:
    """The row's image. Raises BadImage for a row without one, one that only names a file elsewhere, and for damage to its row group."""
    size, _, stamp = example.place.partition(" ")
    info = storage.FileInfo(example.container, "", int(size), stamp)
    row = int(example.member)
    for group, (start, count) in enumerate(_groups(info)):
        if start <= row < start + count:
            value = _images(info, group, options.image)[row - start].as_py()
            path = value.get("path") if isinstance(value, dict) else None
            data = value.get("bytes") if isinstance(value, dict) else value
            if data and isinstance(data, bytes):
                return data
            named = f"only the path {path}" if path else f"a value of {type(data).__name__}" if data else "null"
            raise BadImage("no bytes in the row", named)
    raise FileNotFoundError(example.uri)


def _parquets(options: Options) -> list[storage.FileInfo]:
    return _files.containers(options.uri, (".parquet",), options.glob)[1]


def _key(info: storage.FileInfo, row: int) -> str:
    return f"{_files.stem(info.path_relative)}/{row:08d}"


def _example(info: storage.FileInfo, row: int, options: Options, described: Mapping[str, list[Any]]) -> Example:
    split = options.split or _files.split_in_name(info.path_relative)
    label = described[options.label][row] if options.label and options.label in described else None
    attributes = {name: described[name][row] for name in options.attributes}
    reason = "" if label is None or label >= 0 else "negative label"  # how such sets mark a test row
    place = f"{info.size} {info.stamp}"
    return Example(_key(info, row), f"{info.uri}#{row}", split, None if reason else label, attributes, str(row), place, reason, "")


def _described(info: storage.FileInfo, options: Options) -> dict[str, list[Any]]:
    """The columns that are not the image."""
    with _opened(info) as file:
        names = file.schema_arrow.names
        if options.image not in names:
            raise BadInput(f"{info.uri} with columns {_files.few(names)}", f"a column {options.image}", "set data.options.image")
        for name in options.attributes:
            if name not in names:
                raise BadInput(f"no column {name} in {info.uri}", _files.few(names), "mend data.options.attributes")
        label = options.label if options.label in names else ""
        if label and not pyarrow.types.is_integer(file.schema_arrow.field(label).type):
            got = f"column {label} of {file.schema_arrow.field(label).type} in {info.uri}"
            raise BadInput(got, "whole numbers", "set data.options.label to another column, or to null for none")
        wanted = [*options.attributes, *([label] if label else [])]
        return {name: file.read(columns=[name])[name].to_pylist() for name in wanted}


def _rows(info: storage.FileInfo) -> int:
    return sum(count for _, count in _groups(info))


@lru_cache(maxsize=512)
def _groups(info: storage.FileInfo) -> tuple[tuple[int, int], ...]:
    """(first row, rows) of each row group."""
    with _opened(info) as file:
        counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    return tuple((sum(counts[:group]), count) for group, count in enumerate(counts))


@lru_cache(maxsize=2)
def _images(info: storage.FileInfo, group: int, column: str) -> Any:
    """The images of one row group: neighbours in the order of keys, which is how tasks ask for them."""
    with _opened(info) as file:
        try:
            return file.read_row_group(group, columns=[column])[column]
        except (pyarrow.ArrowException, OSError) as error:
            if _is_damage(error):
                raise BadImage("corrupt", f"row group {group}: {error}") from None
            raise


def _is_damage(error: BaseException | None) -> bool:
    """Whether the bytes are wrong, and not their store or the disk: those say which error of the system it was."""
    return isinstance(error, pyarrow.ArrowException) or (type(error) is OSError and error.errno is None)


class _opened:
    """A parquet file for a ``with`` block; BadInput for a damaged one and for one that cannot be read."""

    def __init__(self, info: storage.FileInfo) -> None:
        self._uri, self._stack = info.uri, ExitStack()

    def __enter__(self) -> Any:
        try:
            return pyarrow.parquet.ParquetFile(self._stack.enter_context(storage.open_read(self._uri)))
        except (FileNotFoundError, PermissionError) as error:
            raise BadInput(f"{self._uri} cannot be read ({error.strerror})", "a parquet file you may read", "check access") from None
        except (pyarrow.ArrowException, OSError) as error:
            self._stack.close()
            raise self._damaged(error) from None

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> None:
        self._stack.close()
        if _is_damage(error):
            raise self._damaged(error) from None

    def _damaged(self, error: BaseException | None) -> BadInput:
        return BadInput(f"{self._uri} is no whole parquet file ({error})", "an undamaged one", "copy it again, or take it out")
