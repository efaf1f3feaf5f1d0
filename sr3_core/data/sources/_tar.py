"""Tar files read in place: where each member lies, and its bytes by range. Nothing is ever extracted to a name that an archive chose."""

import bz2
import gzip
import lzma
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import IO, Any, Literal, cast

from sr3_core import storage
from sr3_core.errors import BadImage, BadInput

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
MAX_MEMBER_BYTES = 2**29  # no picture of ``images.MAX_PIXELS`` pixels is larger
MAX_UNPACKED_BYTES = 64 * 2**30  # of a compressed tar, which is unpacked into one nameless temporary file to be read at any place
_BLOCK = 2**20
_SMALL_BYTES = 2**16
_OPENERS: dict[str, Callable[[IO[bytes]], Any]] = {"gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}


@dataclass(frozen=True)
class Member:
    """One member that is no folder. ``place`` is what ``read`` takes; ``content`` is there for the small ones that were asked for."""

    name: str
    kind: Literal["file", "link", "other"]
    size: int
    place: str
    content: bytes | None = None


@lru_cache(maxsize=512)
def members(info: storage.FileInfo, small: tuple[str, ...] = ()) -> tuple[Member, ...]:
    """The members in order, with the content of those whose names end in one of ``small``. BadInput for a damaged or truncated tar."""
    stamp = f" {info.size} {info.stamp}" if _compression(info.uri) else ""
    found: list[Member] = []
    try:
        with storage.open_read(info.uri) if not stamp else _unpacked(info.uri, f"{info.size} {info.stamp}").open() as stream:
            tar = tarfile.open(fileobj=cast(Any, stream), mode="r:")  # noqa: SIM115  - the stream is closed; a TarFile holds nothing else
            while (item := tar.next()) is not None:
                cast(Any, tar).members = []  # it would keep them all
                if item.isdir():
                    continue
                kind = "link" if item.islnk() or item.issym() else "file" if item.isreg() and not item.issparse() else "other"
                content = None
                if kind == "file" and small and item.name.endswith(small) and item.size <= _SMALL_BYTES:
                    stream.seek(item.offset_data)
                    content = stream.read(item.size)
                found.append(Member(item.name.removeprefix("./"), kind, item.size, f"{item.offset_data} {item.size}{stamp}", content))
            stream.seek(tar.offset)
            whole = stream.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, lzma.LZMAError, ValueError, OSError) as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise BadInput(f"{info.uri} cannot be read ({error.strerror})", "a tar file you may read", "check access") from None
        raise BadInput(f"{info.uri} is no whole tar file ({error})", "an undamaged one", "copy it again, or take it out") from None
    if not whole:  # tarfile takes damage after the first member for the end
        got = f"{info.uri} ends or is damaged after {len(found)} members, {tar.offset} bytes"
        raise BadInput(got, "a tar file with its end mark", "copy it again, or take it out")
    return tuple(found)


def read(uri: str, place: str) -> bytes:
    """A member's bytes. Raises BadImage for one that is too large or whose tar ends before it does."""
    start, size, *state = place.split(" ", 2)
    refuse_large(int(size))
    if state:
        with _unpacked(uri, state[0]).open() as stream:
            stream.seek(int(start))
            data = stream.read(int(size))
    else:
        data = storage.read_range(uri, int(start), int(size))
    if len(data) != int(size):
        raise BadImage("truncated", f"{len(data)} of {size} bytes")
    return data


def refuse_large(size: int) -> None:
    """BadImage for a member that is larger than any picture."""
    if size > MAX_MEMBER_BYTES:
        raise BadImage("too large", f"{size} bytes; allowed: {MAX_MEMBER_BYTES}")


@dataclass(frozen=True)
class _Temporary:
    """The contents of a compressed tar, in a file that has no name of the archive's choosing and goes with the process."""

    path: IO[bytes]

    def open(self) -> IO[bytes]:
        return open(self.path.name, "rb")


@lru_cache(maxsize=1)
def _unpacked(uri: str, state: str) -> _Temporary:
    """``state`` (size and stamp) makes a changed file a new one. A worker unpacks a compressed tar once; plain ones are read in place."""
    kept = cast(IO[bytes], tempfile.NamedTemporaryFile(prefix="sr3-tar-"))  # noqa: SIM115  - it lives as long as the cache holds it
    total = 0
    with storage.open_read(uri) as packed, _OPENERS[_compression(uri)](packed) as stream:
        while block := stream.read(_BLOCK):
            total += len(block)
            if total > MAX_UNPACKED_BYTES:
                raise BadInput(
                    f"{uri} unpacks to more than {MAX_UNPACKED_BYTES} bytes", "a smaller one", "unpack it, or make it a plain tar"
                )
            kept.write(block)
    kept.flush()
    return _Temporary(kept)


def _compression(uri: str) -> str:
    ending = uri.rpartition(".")[2].lower()
    return {"tgz": "gz", "tbz2": "bz2", "txz": "xz"}.get(ending, ending if ending in _OPENERS else "")
