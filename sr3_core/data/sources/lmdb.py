"""An LMDB as the best-known public SR3 code (Janspiry) writes it: ``hr_128_00001`` -> an encoded image, ``length`` -> how many there are.

Its ``lr_`` and ``sr_`` values are made anew by prepare and not read. LMDB maps a file into memory, so it must be on this machine.
"""

import os
import re
import threading
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import Field

from sr3_core import storage
from sr3_core.config import Section
from sr3_core.data.sources import _files
from sr3_core.data.sources._base import Example
from sr3_core.errors import BadImage, BadInput

FILE = "data.mdb"
_KEY = re.compile(rb"(?P<kind>hr|lr|sr)_(?:\d+_)?(?P<resolution>\d+)_(?P<number>\d+)")


class Options(Section):
    """``uri``: the folder that holds data.mdb, or that file, on this machine. ``resolution``: of the ``hr_<resolution>_`` values to read;
    None: the only one there is. A number below ``length`` without a value is a rejected input.
    """

    uri: str
    resolution: int | None = Field(default=None, ge=1)


def examples(options: Options) -> Iterator[Example]:
    """Every high-resolution value once, by key. Raises BadInput for no LMDB, one of another layout, and when the package is missing."""
    for item in items(options):
        yield item.example


def listing(options: Options) -> str:
    """``key size`` and the file's size and stamp a line."""
    return _files.layout_listing(items(options))


def read(options: Options, example: Example) -> bytes:
    """The value. Raises FileNotFoundError for a key that is not there, BadImage for damage."""
    with _kept.transaction(example.container, example.place) as transaction:
        try:
            value = transaction.get(example.member.encode())
        except _errors() as error:
            raise BadImage("corrupt", str(error)) from None
    if value is None:
        raise FileNotFoundError(example.uri)
    return bytes(value)


def is_lmdb(uri: str) -> bool:
    """True for a folder on this machine that holds data.mdb, and for such a file."""
    return storage.is_local(uri) and (os.path.isfile(os.path.join(storage.absolute(uri), FILE)) or uri.endswith(".mdb"))


def items(options: Options) -> list[_files.Listed]:
    """The inputs, with the LMDB's own file for the listing."""
    uri = storage.absolute(options.uri)
    if not storage.is_local(uri):
        raise BadInput(f"an LMDB at {uri}", "one on this machine: it is mapped into memory", "copy it here first")
    storage.check_readable(uri)
    if not is_lmdb(uri):
        raise BadInput(f"no {FILE} in {uri}", f"a folder with {FILE}", "mend data.options.uri")
    info = storage.info(uri if uri.endswith(".mdb") else os.path.join(uri, FILE))
    place = f"{info.size} {info.stamp}"
    with _kept.transaction(uri, place) as transaction:
        try:
            length = transaction.get(b"length")
            keys = [bytes(key) for key in transaction.cursor().iternext(keys=True, values=False)]
        except _errors() as error:
            raise BadInput(f"{uri} is damaged ({error})", "an undamaged LMDB", "copy it again") from None
    _kept.close()
    matched = [(match, key) for key in keys if (match := _KEY.fullmatch(key)) and match["kind"] == b"hr"]
    sizes = Counter(int(match["resolution"]) for match, _ in matched)
    layout = "keys as hr_128_00001, and length"
    if not sizes or length is None or not length.isdigit():
        shown = ", ".join(repr(key.decode("utf-8", "replace")) for key in keys[:3])
        raise BadInput(f"{uri} with {len(keys)} keys ({shown or 'none'})", layout, "write it with that code's prepare_data.py --lmdb")
    resolution = options.resolution or (next(iter(sizes)) if len(sizes) == 1 else 0)
    if resolution not in sizes:
        got = f"hr values of {', '.join(map(str, sorted(sizes)))} pixels in {uri}" + (f", none of {resolution}" if resolution else "")
        raise BadInput(got, "one of these", "set data.options.resolution")
    found: dict[str, _files.Listed] = {}
    present: set[int] = set()
    for match, key in matched:
        if int(match["resolution"]) == resolution:
            name = key.decode()
            present.add(int(match["number"]))
            found[name] = _files.Listed(Example(name, f"{uri}#{name}", member=name, place=place), info)
    if len(present) < int(length):
        for number in sorted(set(range(int(length))) - present)[: int(length) - len(present)]:
            name = f"hr_{resolution}_{number:05d}"
            found[name] = _files.Listed(Example(name, f"{uri}#{name}", member=name, place=place), None)
    return [found[name] for name in sorted(found)]


class _Kept:
    """The environment that the last read used, open: the library allows no file to be opened twice in a process.

    One thread at a time: no other may close it, or open it once more, while it is read.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._of: tuple[str, str] = ("", "")
        self._environment: Any = None

    @contextmanager
    def transaction(self, uri: str, place: str) -> Generator[Any, None, None]:
        """A transaction on the environment at ``uri`` in the state that ``place`` names."""
        with self._lock:
            if self._of != (uri, place):
                self.close()
                self._environment = _open(uri)
                self._of = (uri, place)
            with self._environment.begin() as transaction:
                yield transaction

    def close(self) -> None:
        with self._lock:
            if self._environment is not None:
                self._environment.close()
            self._of, self._environment = ("", ""), None


_kept = _Kept()


def _errors() -> type[Exception]:
    import lmdb

    return lmdb.Error


def _open(uri: str) -> Any:
    try:
        import lmdb
    except ImportError:
        raise BadInput("an LMDB, but no package to read it with", "the package lmdb", "pip install lmdb") from None
    try:
        return lmdb.open(uri, subdir=not uri.endswith(".mdb"), readonly=True, lock=False, readahead=False, create=False)
    except lmdb.Error as error:
        raise BadInput(f"{uri} does not open ({error})", "an undamaged LMDB", "copy it again") from None
