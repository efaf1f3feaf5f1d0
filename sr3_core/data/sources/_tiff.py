"""The pages of a TIFF file, each as a TIFF file of its own: directory entries and data blocks are copied, nothing is decoded.

A page is read by its ranges alone, so a stack of thousands is never in memory. Classic TIFF and BigTIFF, either byte order (TIFF 6.0,
section 2; the BigTIFF proposal).
"""

import struct
from dataclasses import dataclass
from functools import lru_cache

from sr3_core import storage
from sr3_core.errors import BadImage

MAX_PAGES = 1_000_000
MAX_PAGE_BYTES = 2**30
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_BLOCKS = {273: 279, 324: 325}  # offsets of strips and tiles -> their byte counts
_ELSEWHERE = frozenset({330, 34665, 34853, 40965, 513, 514})  # directories and thumbnails that lie outside of the page's own blocks
_LONG = 4
_LAST = 2**63 - 1  # no file is longer, and no system call takes more


@dataclass(frozen=True)
class _Layout:
    """How this file writes numbers: byte order, and the widths of classic TIFF or BigTIFF."""

    order: str
    big: bool

    @property
    def offset(self) -> str:
        return self.order + ("Q" if self.big else "I")

    @property
    def count(self) -> str:
        return self.order + ("Q" if self.big else "H")

    @property
    def entry(self) -> struct.Struct:
        return struct.Struct(self.order + ("HHQ8s" if self.big else "HHI4s"))


@lru_cache(maxsize=64)
def pages(info: storage.FileInfo) -> tuple[int, ...]:
    """Where the directory of each page lies. Raises BadImage for what is no TIFF, and for a chain of pages that is broken or a ring."""
    layout, at = _start(info.uri)
    found: dict[int, None] = {}
    while at:
        if at in found or len(found) >= MAX_PAGES or at >= info.size:
            raise BadImage("corrupt", f"page {len(found)} lies at byte {at} of {info.size}")
        found[at] = None
        (entries,) = struct.unpack(layout.count, _exactly(info.uri, at, struct.calcsize(layout.count)))
        next_at = at + struct.calcsize(layout.count) + entries * layout.entry.size
        (at,) = struct.unpack(layout.offset, _exactly(info.uri, next_at, struct.calcsize(layout.offset)))
    return tuple(found)


def page(uri: str, at: int) -> bytes:
    """The page whose directory lies at ``at`` as a classic TIFF file of its own. Raises BadImage."""
    layout, _ = _start(uri)
    head = struct.calcsize(layout.count)
    (count,) = struct.unpack(layout.count, _exactly(uri, at, head))
    raw = _exactly(uri, at + head, count * layout.entry.size)
    entries = {tag: (kind, number, value) for tag, kind, number, value in layout.entry.iter_unpack(raw) if tag not in _ELSEWHERE}
    blocks: dict[int, list[bytes]] = {}
    for offsets, counts in _BLOCKS.items():
        if offsets in entries and counts in entries:
            places = _numbers(uri, layout, entries[offsets])
            sizes = _numbers(uri, layout, entries[counts])
            if len(places) != len(sizes) or sum(sizes) > MAX_PAGE_BYTES:
                raise BadImage("corrupt", f"{len(places)} blocks with {len(sizes)} sizes, {sum(sizes)} bytes")
            blocks[offsets] = [_exactly(uri, place, size) for place, size in zip(places, sizes, strict=True)]
    if len(blocks) != 1:
        raise BadImage("corrupt", "a page without strips or tiles")
    try:
        return _written(uri, layout, entries, *blocks.popitem())
    except struct.error as error:
        raise BadImage("corrupt", f"a value that needs more than 4 bytes ({error})") from None


def _written(uri: str, layout: _Layout, entries: dict[int, tuple[int, int, bytes]], offsets: int, blocks: list[bytes]) -> bytes:
    """Header, directory, values that do not fit into it, blocks."""
    order = layout.order
    behind = bytearray()
    start = 8 + 2 + 12 * len(entries) + 4
    directory = bytearray()
    values = {tag: (kind, number, _value(uri, layout, kind, number, value)) for tag, (kind, number, value) in sorted(entries.items())}
    room = sum(len(value) + len(value) % 2 for _, _, value in values.values() if len(value) > _LONG)
    room += 0 if len(blocks) == 1 else 4 * len(blocks)  # offsets are written anew, as 4 bytes each
    room -= sum(len(value) + len(value) % 2 for tag, (_, _, value) in values.items() if tag == offsets and len(value) > _LONG)
    place = start + room
    for tag, (kind, number, value) in values.items():
        if tag == offsets:
            kind, number = _LONG, len(blocks)  # noqa: PLW2901
            places: list[int] = []
            for block in blocks:
                places.append(place)
                place += len(block)
            value = struct.pack(f"{order}{len(places)}I", *places)  # noqa: PLW2901
        elif kind in (16, 17, 18):
            kind = 4  # noqa: PLW2901  - BigTIFF's 8 bytes, where they fit into 4
            value = struct.pack(f"{order}{number}I", *struct.unpack(f"{order}{number}Q", value))  # noqa: PLW2901
        if len(value) > _LONG:
            directory += struct.pack(f"{order}HHII", tag, kind, number, start + len(behind))
            behind += value + bytes(len(value) % 2)
        else:
            directory += struct.pack(f"{order}HHI4s", tag, kind, number, value.ljust(4, b"\0"))
    behind += bytes(room - len(behind))
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(f"{order}IH", 8, len(entries)) + bytes(directory) + bytes(4) + bytes(behind) + b"".join(blocks)


def _numbers(uri: str, layout: _Layout, entry: tuple[int, int, bytes]) -> list[int]:
    kind, number, value = entry
    letters = {3: "H", 4: "I", 16: "Q"}
    if kind not in letters:
        raise BadImage("corrupt", f"offsets of type {kind}")
    return list(struct.unpack(f"{layout.order}{number}{letters[kind]}", _value(uri, layout, kind, number, value)))


def _value(uri: str, layout: _Layout, kind: int, number: int, value: bytes) -> bytes:
    size = _TYPE_BYTES.get(kind, 0) * number
    if not size or size > MAX_PAGE_BYTES:
        raise BadImage("corrupt", f"a value of type {kind}, {number} times")
    if size <= len(value):
        return value[:size]
    return _exactly(uri, struct.unpack(layout.offset, value)[0], size)


def _start(uri: str) -> tuple[_Layout, int]:
    raw = storage.read_range(uri, 0, 16)
    order = {b"II": "<", b"MM": ">"}.get(raw[:2], "")
    version = struct.unpack(f"{order}H", raw[2:4])[0] if order and len(raw) >= 8 else 0
    if version == 42:
        return _Layout(order, False), struct.unpack(f"{order}I", raw[4:8])[0]
    if version == 43 and len(raw) == 16:
        return _Layout(order, True), struct.unpack(f"{order}Q", raw[8:16])[0]
    raise BadImage("not an image", "no TIFF")


def _exactly(uri: str, start: int, length: int) -> bytes:
    if start + length > _LAST:
        raise BadImage("corrupt", f"{length} bytes at {start}")
    data = storage.read_range(uri, start, length)
    if len(data) != length:
        raise BadImage("truncated", f"{len(data)} of {length} bytes at {start}")
    return data
