"""The ShardSet prepare leaves: its file names, its manifest, reading single images by ranged reads, verifying. No torch, no writing.

manifest.json            written last; a folder without it is no ShardSet
<split>/NNNNNN.tar       ustar (WebDataset): <key>.<level>.<ext> for every level, <key>.json
<split>/NNNNNN.json      the shard's entry of the manifest, written after its tar: its presence means done
rejected.jsonl           one line for each refused input (and each refused tile of an accepted one): key, uri, reason, detail
renamed.jsonl            where inputs had one key: key, was, uri
near_duplicates.jsonl    where photos look alike and near-duplicates are looked for: key, uri, split, group, nearest, distance
"""

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sr3_core import config, images, storage
from sr3_core.artifacts.range_cache import RangeCache
from sr3_core.data import degrade
from sr3_core.errors import BadInput

MANIFEST = "manifest.json"
REJECTED = "rejected.jsonl"
RENAMED = "renamed.jsonl"
NEAR_DUPLICATES = "near_duplicates.jsonl"
SCHEMA_VERSION = 1
CACHE_BYTES = 64 * 1024 * 1024

_PREPARE_AGAIN = "run prepare again"


@dataclass(frozen=True)
class SampleRecord:
    """Where one sample lies and where it came from. Sizes are (height, width) in pixels."""

    key: str  # unique in the ShardSet; ASCII letters, digits, "-" and "_"
    shard: str  # "train/000000.tar"
    members: Mapping[int, tuple[int, int, str]]  # level -> (offset, size, extension), in bytes of the shard
    label: int | None
    original_size: tuple[int, int]
    source: str  # the example's key in its source
    split: str
    content_hash: str  # sha256 of the source file: equal for exact duplicates and for tiles of one photo
    group: str  # photos of one scene share it where the source says so (attribute "group"), else the content hash: the unit of intervals


class ShardSet:
    """A verified-on-demand view of a ShardSet at any URI. Thread-safe; a copy in another process opens the URI itself."""

    def __init__(
        self, uri: str, manifest: dict[str, Any], manifest_sha256: str, *, cache_bytes: int = CACHE_BYTES, ranges: RangeCache | None = None
    ) -> None:
        """Use ``open``. Raises KeyError, TypeError or ValueError for a manifest that is not what its schema says."""
        self.uri, self.manifest, self.manifest_sha256 = uri, manifest, manifest_sha256
        self.data = config.parse(config.Data, manifest["section"])
        self._samples: dict[str, list[SampleRecord]] = {split: [] for split in config.SPLITS}
        for shard in manifest["shards"]:
            self._samples[shard["split"]].extend(_record(shard, member) for member in shard["members"])
        self._cache: OrderedDict[tuple[str, int, int], images.Array] = OrderedDict()
        self._cache_bytes, self._cached = cache_bytes, 0
        self._ranges, self._sha256 = ranges, {str(shard["name"]): str(shard["sha256"]) for shard in manifest["shards"]}
        self._lock, self._brought = threading.Lock(), threading.local()
        self._totals: dict[tuple[str, int], int] = {}

    @classmethod
    def open(cls, uri: str, *, cache_bytes: int = CACHE_BYTES, ranges: RangeCache | None = None) -> "ShardSet":
        """Read the manifest at ``uri``; ``cache_bytes`` bounds the decoded images kept, ``ranges`` keeps what is read on a local disk.

        Raises BadInput when there is no manifest, when it is damaged or of a newer schema.
        """
        uri = storage.absolute(uri)
        where = storage.join(uri, MANIFEST)
        try:
            data = storage.read_bytes(where)
        except (FileNotFoundError, NotADirectoryError):
            raise BadInput(f"no {MANIFEST} in {uri}", "a finished ShardSet", "run prepare, or check the URI") from None
        except PermissionError:
            raise BadInput(f"{where} may not be read", "a ShardSet you may read", "check access and credentials") from None
        try:
            manifest = json.loads(data)
            schema = int(manifest["schema"])
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{where} is damaged ({error})", "the manifest prepare wrote", _PREPARE_AGAIN) from None
        if schema > SCHEMA_VERSION:
            got = f"{where} has schema {schema}"
            raise BadInput(got, f"schema {SCHEMA_VERSION} or older", "use the version of the project that wrote it")
        try:
            return cls(uri, manifest, hashlib.sha256(data).hexdigest(), cache_bytes=cache_bytes, ranges=ranges)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise BadInput(f"{where} is damaged ({error!r})", "the manifest prepare wrote", _PREPARE_AGAIN) from None

    def keys(self, split: str) -> list[str]:
        """Keys of the split's samples, in index order."""
        return [sample.key for sample in self._samples[split]]

    def count(self, split: str, level: int | None = None) -> int:
        """Number of samples of ``split``, or of those that have ``level``."""
        samples = self._samples[split]
        return len(samples) if level is None else sum(level in sample.members for sample in samples)

    def sample(self, split: str, index: int) -> SampleRecord:
        """The record of sample ``index`` (0 <= index < count)."""
        return self._samples[split][index]

    def has(self, split: str, index: int, level: int) -> bool:
        """Whether the sample has that level of the pyramid."""
        return level in self._samples[split][index].members

    def image(self, split: str, index: int, level: int) -> images.Array:
        """(level, level, channels) uint8, uint16 for a set of 16 bits; read-only. Whole photos: the size of ``degrade.level_size``.

        Raises KeyError for a level it lacks, BadInput for a missing or changed shard.
        """
        place = (split, index, level)
        kept = self._kept(place)
        if kept is not None:
            return kept
        array = self._decoded(place, None)
        self._keep(place, array)
        return array

    def size(self, split: str, index: int, level: int) -> tuple[int, int]:
        """(height, width) of the sample's image at ``level``; nothing is read for it."""
        return degrade.level_size(*self._samples[split][index].original_size, level, self.data)

    def rows(self, split: str, index: int, level: int, top: int, bottom: int, *, then: int | None = None) -> images.Array:
        """``image(split, index, level)[top:bottom]``, read-only, for a reader that wants no more of it. Raises as ``image``.

        ``then``: the level of the same sample that this thread will ask for next; one ranged read brings both.

        Where the split's images are more than the cache may keep, those below ``bottom`` are not decoded and nothing is kept: in a
        shuffled order an image comes again long after it was dropped.
        """
        place = (split, index, level)
        kept = self._kept(place)
        if kept is None and self._decoded_bytes(split, level) > self._cache_bytes:
            return self._decoded(place, bottom, then)[top:bottom]
        if kept is None:
            kept = self._decoded(place, None, then)
            self._keep(place, kept)
        return kept[top:bottom]

    def verify(self) -> None:
        """Compare size and sha256 of every shard with the manifest. Raises BadInput that names the first shard that differs."""
        for shard in self.manifest["shards"]:
            verify_shard(self.uri, shard)

    def summary(self) -> dict[str, Any]:
        """The manifest without its member lists: small enough for a receipt at any number of samples."""
        shards = [{name: value for name, value in shard.items() if name != "members"} for shard in self.manifest["shards"]]
        return {**self.manifest, "shards": shards}

    def _decoded(self, place: tuple[str, int, int], rows: int | None, then: int | None = None) -> images.Array:
        """The image at ``place``, or its first ``rows`` rows and perhaps more."""
        split, index, level = place
        sample = self._samples[split][index]
        shard = storage.join(self.uri, sample.shard)
        height, width = self.size(split, index, level)
        try:
            data = self._bytes(place, shard, then)
            if rows is not None:
                data = images.first_rows(data, rows)
            array = images.decode(data, channels=self.data.channels, bits=self.data.bits)
        except FileNotFoundError:
            raise BadInput(f"shard {shard} is missing", "every shard of the manifest", _PREPARE_AGAIN) from None
        except PermissionError:
            raise BadInput(f"shard {shard} may not be read", "a ShardSet you may read", "check access and credentials") from None
        except images.BadImage as error:
            raise _changed(shard, f"{sample.key} at {level}: {error}") from None
        if array.shape[:2] not in ((height, width), (rows, width)):
            raise _changed(shard, f"{sample.key} at {level} is {array.shape[0]} x {array.shape[1]}")
        array.setflags(write=False)
        return array

    def _bytes(self, place: tuple[str, int, int], shard: str, then: int | None) -> bytes:
        """The file at ``place``: from what this thread read last, where it was brought along, else from the shard."""
        split, index, level = place
        sample = self._samples[split][index]
        offset, length, _ = sample.members[level]
        brought: tuple[tuple[str, int, int], bytes] | None = getattr(self._brought, "last", None)
        self._brought.last = None
        if brought is not None and brought[0] == place:
            return brought[1]
        ends = [sample.members[wanted][:2] for wanted in (level, then) if wanted is not None]
        start, stop = min(first for first, _ in ends), max(first + size for first, size in ends)
        if self._ranges is None:
            data = storage.read_range(shard, start, stop - start)
        else:
            data = self._ranges.read(shard, self._sha256[sample.shard], start, stop - start)
        if then is not None:
            first, size, _ = sample.members[then]
            self._brought.last = (split, index, then), data[first - start :][:size]
        return data[offset - start :][:length]

    def _decoded_bytes(self, split: str, level: int) -> int:
        """Of all images of the split at ``level``, counted once."""
        if (split, level) not in self._totals:
            sizes = (self.size(split, index, level) for index in range(len(self._samples[split])) if self.has(split, index, level))
            pixels = sum(height * width for height, width in sizes)
            self._totals[split, level] = pixels * self.data.channels * self.data.bits // 8
        return self._totals[split, level]

    def _kept(self, place: tuple[str, int, int]) -> images.Array | None:
        with self._lock:
            if place not in self._cache:
                return None
            self._cache.move_to_end(place)
            return self._cache[place]

    def _keep(self, place: tuple[str, int, int], array: images.Array) -> None:
        with self._lock:
            if place in self._cache or array.nbytes > self._cache_bytes:
                return
            self._cache[place] = array
            self._cached += array.nbytes
            while self._cached > self._cache_bytes:
                self._cached -= self._cache.popitem(last=False)[1].nbytes


def verify_shard(uri: str, shard: Mapping[str, Any]) -> None:
    """BadInput unless the shard named by a manifest entry is there with its size and sha256."""
    where = storage.join(uri, shard["name"])
    try:
        size = storage.size(where)
        if size != shard["bytes"]:
            raise _changed(where, f"{size} bytes instead of {shard['bytes']}")
        if storage.sha256(where) != shard["sha256"]:
            raise _changed(where, "its sha256 differs")
    except (FileNotFoundError, NotADirectoryError):
        raise BadInput(f"shard {where} is missing", "every shard of the manifest", f"{_PREPARE_AGAIN}; it makes that shard anew") from None


def _changed(shard: str, how: str) -> BadInput:
    return BadInput(f"shard {shard} changed ({how})", "the shard as prepare wrote it", f"{_PREPARE_AGAIN}; it makes that shard anew")


def _record(shard: Mapping[str, Any], member: Mapping[str, Any]) -> SampleRecord:
    members: dict[int, tuple[int, int, str]] = {}
    for level, (offset, size, extension) in member["levels"].items():
        if offset < 0 or size < 1 or offset + size > shard["bytes"]:
            raise ValueError(f"{member['key']} at {level} lies outside {shard['name']}")
        members[int(level)] = (int(offset), int(size), str(extension))
    height, width = member["original_size"]
    return SampleRecord(
        key=str(member["key"]),
        shard=str(shard["name"]),
        members=members,
        label=member["label"],
        original_size=(int(height), int(width)),
        source=str(member["source"]),
        split=str(shard["split"]),
        content_hash=str(member["content_hash"]),
        group=str(member.get("group", member["content_hash"])),
    )
