"""The files of one sample, level by level, and where they wait for their shard: a photo is decoded once, when it is looked at.

What is kept is a short cut and nothing more: where it is missing or damaged the photo is read again and the same bytes are made.
"""

import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sr3_core import config, images, seeds, storage
from sr3_core.config import Data
from sr3_core.data import degrade

FOLDER = ".levels"  # below a ShardSet that is being made; hidden, so that no listing shows it

Files = Mapping[int, tuple[str, bytes]]  # level -> (extension, content), ascending
Place = list[Any]  # [offset, crc32, [[level, extension, bytes], ...]] of one crop's files, which follow each other; plain JSON


def decoded(source: bytes, data: Data) -> tuple[images.Header, images.Array]:
    """A file as the set takes it: smaller than its header says where ``data.decoding`` is fast and the photo large. Raises BadImage."""
    header = images.header(source)
    return header, images.decode(source, channels=data.channels, bits=data.bits, shrink=_shrink(header, data))


def encoded(
    source: bytes, photo: images.Array, crop: degrade.Crop, data: Data, *, corrupt: str | None = None
) -> tuple[Files, dict[str, Any]]:
    """The files of one crop of ``source``, which ``decoded`` gave as ``photo``, and what was drawn for them.

    The source's own bytes where they are the level already; JPEG for the largest level alone. ``corrupt``: the key of a held-out sample
    of a set with ``data.corruption``, whose lowest image is corrupted by draws from its key; a training sample keeps the plain one,
    since the loader draws anew for every sample of the stream.
    """
    header = images.header(source)
    made = dict(degrade.pyramid(photo, crop, data, shrunk=_shrink(header, data)))
    whole = {level for level, pixels in made.items() if (header.height, header.width) == pixels.shape[:2]}
    lowest, lossless = data.levels[0], images.lossless(data.channels, data.bits)
    files: dict[int, tuple[str, bytes]] = {}
    drawn: dict[str, Any] = {}
    if corrupt is not None and data.corruption is not None and len(made) > 1:
        random = seeds.generator(0, "degrade", seeds.from_key(corrupt))
        size, above = made[lowest].shape[:2], made[data.levels[1]]
        made[lowest], drawn["corruption"] = degrade.corrupted(above, size, data.degradation, data.corruption, random)
        whole.discard(lowest)
    for level, pixels in made.items():
        largest = level == data.levels[-1]
        passes = level in whole and header.is_stored_as(channels=data.channels, bits=data.bits)
        if passes and (header.format == lossless.upper() or (largest and header.format == "JPEG")):
            files[level] = ("jpg" if header.format == "JPEG" else lossless, source)
        else:
            format, content = _encoded(pixels, data.codec, lossless, largest=largest)
            files[level] = (images.EXTENSIONS[format], content)
    return dict(sorted(files.items())), drawn


class Keeper:
    """Collects the files of several photos as one file, published at ``uri`` when the block ends without an error."""

    def __init__(self, uri: str) -> None:
        self._uri, self._size = uri, 0

    def __enter__(self) -> "Keeper":
        self._folder = tempfile.TemporaryDirectory(prefix="sr3-levels-")
        self._path = Path(self._folder.name) / "levels"
        self._stream = self._path.open("wb")
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._stream.close()
        try:
            if kind is None and self._size:
                storage.publish_file(self._path, self._uri)
        finally:
            self._folder.cleanup()

    def add(self, files: Files) -> Place:
        """Where the files of one crop will lie."""
        content = b"".join(data for _, data in files.values())
        place = [self._size, zlib.crc32(content), [[level, extension, len(data)] for level, (extension, data) in files.items()]]
        self._stream.write(content)
        self._size += len(content)
        return place


def kept(uri: str, place: Place) -> Files | None:
    """What a Keeper put at ``place`` of the file at ``uri``, by one ranged read; None when it is not there, or damaged."""
    offset, checksum, listed = place
    try:
        content = storage.read_range(uri, offset, sum(size for _, _, size in listed))
    except FileNotFoundError:
        return None
    if zlib.crc32(content) != checksum:
        return None
    files: dict[int, tuple[str, bytes]] = {}
    start = 0
    for level, extension, size in listed:
        files[level] = (extension, content[start : start + size])
        start += size
    return files


def _shrink(header: images.Header, data: Data) -> int:
    return degrade.shrink(header.height, header.width, data) if header.format == "JPEG" else 1


def _encoded(pixels: images.Array, codec: config.Codec, lossless: images.Format, *, largest: bool) -> tuple[images.Format, bytes]:
    """One level as the recipe's codec stores it; ``lossless`` is what holds it exactly where the codec does not."""
    if codec.format == "webp" and max(pixels.shape[:2]) <= images.WEBP_SIDE:
        return "webp", images.encode(pixels, "webp")
    if codec.format != "jpeg" or not largest:
        return lossless, images.encode(pixels, lossless)
    if codec.min_psnr is not None:
        return images.encode_above(pixels, quality=codec.quality, min_psnr=codec.min_psnr)
    return "jpeg", images.encode(pixels, "jpeg", codec.quality)
