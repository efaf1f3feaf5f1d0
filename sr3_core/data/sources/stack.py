"""Stacks of images: numpy's .npy and .npz files and TIFF files of many pages; each slice or page is an input."""

import io
import zipfile
import zlib
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, BinaryIO, cast

import numpy as np

from sr3_core import storage
from sr3_core.config import Section
from sr3_core.data.sources import _arrays, _files, _tiff
from sr3_core.data.sources._base import Example
from sr3_core.errors import BadImage

SUFFIXES = (".npy", ".npz", ".tif", ".tiff")


class Options(Section):
    """``uri``: a file, a folder of them, or a pattern; ``glob``: as the folder plug-in's.

    ``axes``: of numpy's arrays, N the slices, H, W, and C the channels; None: HW, NHW or NHWC by their number. Arrays are of uint8 or
    uint16. A slice of an .npy file and a page of a TIFF are read by their ranges; an array of an .npz file is read as a whole.
    """

    uri: str
    axes: _arrays.Axes | None = None
    glob: str = ""

    _split_uri = _files.split_uri


def examples(options: Options) -> Iterator[Example]:
    """Every slice once, by file and number; a file that holds no slices is one input, rejected. BadInput for a source without files."""
    for item in _items(options):
        yield item.example


def listing(options: Options) -> str:
    """``key`` and the file's size and stamp a line."""
    return _files.layout_listing(_items(options))


def read(options: Options, example: Example) -> bytes:
    """The slice as an .npy file of (H, W, C), the page as a TIFF file of its own."""
    kind, index, size, stamp = example.place.split(" ", 3)
    info = storage.FileInfo(example.container, "", int(size), stamp)
    if kind == "tiff":
        return _tiff.page(info.uri, int(index))
    if kind == "npy":
        return _arrays.slice_bytes(info.uri, _header(info, options.axes), int(index))
    about, array = _zipped(info, example.member.rpartition("/")[0], options.axes)
    return _arrays.as_npy(array[int(index)] if about.axes and about.axes[0] == "N" else array, about.axes or "")


def _items(options: Options) -> list[_files.Listed]:
    single, files = _files.containers(options.uri, SUFFIXES, options.glob)
    found: list[_files.Listed] = []
    for info in files:
        stem = _files.stem(info.path_relative)
        split = None if single else _files.first_folder_split(info.path_relative)
        for key, member, place, problem in _slices(info, stem, options):
            reason, detail = (problem.reason, problem.detail) if problem else ("", "")
            state = f"{place} {info.size} {info.stamp}"
            found.append(_files.Listed(Example(key, f"{info.uri}#{member}", split, None, {}, member, state, reason, detail), info))
    return found


def _slices(info: storage.FileInfo, stem: str, options: Options) -> Iterator[tuple[str, str, str, BadImage | None]]:
    """(key, member, what kind of slice lies where, what is wrong with it)."""
    try:
        if info.uri.lower().endswith(".npy"):
            yield from _numbered(stem, "", "npy", _header(info, options.axes), info.path_relative, info.size)
        elif info.uri.lower().endswith(".npz"):
            for name, about in _headers(info, options.axes).items():
                yield from _numbered(f"{stem}/{name}", f"{name}/", "npz", about, f"{info.path_relative}/{name}", info.size)
        else:
            for number, at in enumerate(_tiff.pages(info)):
                yield f"{stem}/{number:06d}", str(number), f"tiff {at}", None
    except BadImage as error:
        yield info.path_relative, "file", "none 0", error
    except FileNotFoundError:
        yield info.path_relative, "file", "none 0", BadImage("missing", "it was listed, but is not there")
    except PermissionError as error:
        yield info.path_relative, "file", "none 0", BadImage("no read permission", error.strerror or "")


def _numbered(
    stem: str, member: str, kind: str, about: _arrays.Header, whole: str, size: int
) -> Iterator[tuple[str, str, str, BadImage | None]]:
    problem = BadImage(about.reason, about.detail) if about.reason else None
    if problem is None and about.slices > size:  # a header alone could name any number of them
        problem = BadImage("truncated", f"{about.slices} slices in a file of {size} bytes")
    if problem is not None:
        yield whole, f"{member}file", "none 0", problem
        return
    for number in range(about.slices):
        yield f"{stem}/{number:06d}", f"{member}{number}", f"{kind} {number}", None


@lru_cache(maxsize=512)
def _header(info: storage.FileInfo, axes: _arrays.Axes | None) -> _arrays.Header:
    with storage.open_read(info.uri) as stream:
        return _arrays.header(stream, axes)


@lru_cache(maxsize=64)
def _headers(info: storage.FileInfo, axes: _arrays.Axes | None) -> dict[str, _arrays.Header]:
    try:
        with storage.open_read(info.uri) as stream, zipfile.ZipFile(cast(Any, stream)) as archive:
            found: dict[str, _arrays.Header] = {}
            for name in archive.namelist():
                with archive.open(name) as inside:
                    found[name.removesuffix(".npy")] = _arrays.header(cast(BinaryIO, inside), axes)
            return found
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, zlib.error) as error:
        raise BadImage("corrupt", str(error)) from None


@lru_cache(maxsize=1)
def _zipped(info: storage.FileInfo, name: str, axes: _arrays.Axes | None) -> tuple[_arrays.Header, Any]:
    about = _headers(info, axes)[name]
    _arrays.bounded(about.data_bytes)
    try:
        with storage.open_read(info.uri) as stream, zipfile.ZipFile(cast(Any, stream)) as archive, archive.open(f"{name}.npy") as inside:
            return about, np.load(io.BytesIO(inside.read(about.start + about.data_bytes)), allow_pickle=False)
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, zlib.error) as error:
        raise BadImage("corrupt", str(error)) from None
