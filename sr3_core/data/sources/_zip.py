"""Zip files read in place: the members by the directory at the file's end, a member's bytes by one ranged read."""

import stat
import struct
import zipfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, cast

from sr3_core import storage
from sr3_core.data.sources import _tar
from sr3_core.errors import BadImage, BadInput

_LOCAL = struct.Struct("<4s22xHH")  # of a member's own header: signature, length of the name, length of the extra field
_SLACK = 1024  # bytes of name and extra field read along with the data; a second read follows where they are longer
_ENCRYPTED = 0x1


@dataclass(frozen=True)
class Member:
    """One member that is no folder. ``place`` is what ``read`` takes."""

    name: str
    kind: Literal["file", "link", "encrypted", "unsupported compression"]
    size: int
    place: str


@lru_cache(maxsize=64)
def members(info: storage.FileInfo) -> tuple[Member, ...]:
    """The members in the directory's order. BadInput for a damaged or truncated zip."""
    found: list[Member] = []
    try:
        with storage.open_read(info.uri) as stream, zipfile.ZipFile(cast(Any, stream)) as archive:
            for item in archive.infolist():
                if item.is_dir():
                    continue
                place = f"{item.header_offset} {item.compress_size} {item.file_size} {item.CRC} {item.compress_type}"
                found.append(Member(item.filename, _kind(item), item.file_size, place))
    except (FileNotFoundError, PermissionError) as error:
        raise BadInput(f"{info.uri} cannot be read ({error.strerror})", "a zip file you may read", "check access") from None
    except (zipfile.BadZipFile, zipfile.LargeZipFile, ValueError, NotImplementedError, struct.error) as error:
        raise BadInput(f"{info.uri} is no whole zip file ({error})", "an undamaged one", "copy it again, or take it out") from None
    return tuple(found)


def read(uri: str, place: str) -> bytes:
    """A member's bytes, at most as many as the directory says and checked by its CRC. Raises BadImage."""
    start, packed, size, crc, method = map(int, place.split(" "))
    _tar.refuse_large(max(size, packed))
    raw = storage.read_range(uri, start, _LOCAL.size + _SLACK + packed)
    if len(raw) < _LOCAL.size or not raw.startswith(b"PK\x03\x04"):
        raise BadImage("corrupt", "no member's header where the directory says")
    _, name, extra = _LOCAL.unpack_from(raw)
    begin = _LOCAL.size + name + extra
    data = raw[begin : begin + packed] if begin + packed <= len(raw) else storage.read_range(uri, start + begin, packed)
    if len(data) != packed:
        raise BadImage("truncated", f"{len(data)} of {packed} bytes")
    if method == zipfile.ZIP_DEFLATED:
        try:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
        except zlib.error as error:
            raise BadImage("corrupt", str(error)) from None
    if len(data) != size or zlib.crc32(data) != crc:
        raise BadImage("corrupt", "its bytes do not agree with the directory")
    return data


def _kind(item: zipfile.ZipInfo) -> Literal["file", "link", "encrypted", "unsupported compression"]:
    if stat.S_ISLNK(item.external_attr >> 16):
        return "link"
    if item.flag_bits & _ENCRYPTED:
        return "encrypted"
    return "file" if item.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) else "unsupported compression"
