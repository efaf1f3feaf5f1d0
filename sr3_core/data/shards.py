"""Writes a ShardSet: each shard once, its stats after it, the manifest last. Knows no Ray: ``build`` is given the map to use."""

import hashlib
import io
import json
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from sr3_core import config, images, storage
from sr3_core.artifacts.lease import Lease
from sr3_core.artifacts.shardset import MANIFEST, NEAR_DUPLICATES, REJECTED, RENAMED, SCHEMA_VERSION, ShardSet, verify_shard
from sr3_core.config import Data
from sr3_core.data import degrade, levels, plan, reading
from sr3_core.data.sources._base import Example
from sr3_core.errors import BadInput
from sr3_core.progress import Progress, say

INSPECTED = "inspected.jsonl"  # what was seen of each input; there while a ShardSet is being made, so that a killed run goes on
INSPECT_AT_ONCE = 16  # inputs one task looks at: a task costs milliseconds of its own
ROOM = "prepare"

Item = TypeVar("Item")
Result = TypeVar("Result")


class Mapper(Protocol):
    """``[function(item) for item in items]`` in any order and anywhere; ``on_done(item, result)`` is called here as each one ends."""

    def __call__(
        self, function: Callable[[Item], Result], items: Sequence[Item], on_done: Callable[[Item, Result], None], /
    ) -> list[Result]: ...


def in_process(function: Callable[[Item], Result], items: Sequence[Item], on_done: Callable[[Item, Result], None]) -> list[Result]:
    """The plain Mapper: one after another, here."""
    results: list[Result] = []
    for item in items:
        results.append(function(item))
        on_done(item, results[-1])
    return results


@dataclass(frozen=True)
class InspectTask:
    """Some inputs to look at. Their levels are made then too and kept in the file ``keep`` below ``uri``, unless it is empty."""

    examples: tuple[Example, ...]
    data: Data
    uri: str = ""
    keep: str = ""


@dataclass(frozen=True)
class ShardTask:
    """One shard to be made below ``uri``."""

    uri: str
    data: Data
    shard: plan.ShardPlan


def build(
    uri: str, data: Data, examples: Iterable[Example], *, fingerprint: str, held: Lease | None = None, mapper: Mapper = in_process
) -> ShardSet:
    """Make the ShardSet at ``uri``, going on where an earlier run with this ``fingerprint`` ended. ``held`` is checked before publishing.

    A photo is decoded once: its levels wait below ``uri`` until their shard is written, so for that long twice the space is taken. The
    bytes depend on the photos and the section alone, not on the mapper or on interruptions. Raises BadInput for inputs that
    cannot be used (``plan.make``, ``plan.refuse_too_few``); then there is no manifest, and rejected.jsonl names each refused input.
    """
    storage.remove_parts(uri)
    named, renamed = plan.distinct_keys(examples)
    if data.near_duplicates is not None:
        images.check_perceptual_hash()
    photos = _inspected(uri, data, named, mapper)
    try:
        made = plan.make(photos, data)
        storage.write_bytes(storage.join(uri, REJECTED), _lines([*made.rejected, *made.flat]))
        _list(uri, RENAMED, [*renamed, *made.renamed], "inputs had the key of another and have a new one")
        _list(uri, NEAR_DUPLICATES, made.near, "photos look like another one")
        plan.refuse_too_few(made, data, storage.join(uri, REJECTED))
        entries = _entries(uri, data, made, mapper)
    except BadInput:
        _forget(uri)  # what the user mends must be looked at again
        raise
    if held is not None:
        held.check()
    storage.write_json(storage.join(uri, MANIFEST), _manifest(data, made, entries, fingerprint))
    storage.remove_parts(uri)  # tasks of a run that was killed may have gone on for seconds
    _forget(uri)
    return ShardSet.open(uri)


def inspect_all(task: InspectTask) -> list[plan.Photo]:
    """What ``plan.look`` says of each of the task's inputs, and where its levels are kept."""
    if not task.keep:
        return [plan.inspect(example, task.data) for example in task.examples]
    photos: list[plan.Photo] = []
    with levels.Keeper(storage.join(task.uri, task.keep)) as keeper:
        for example in task.examples:
            photo, seen = plan.look(example, task.data)
            if seen is not None:
                cuts = [crop for crop in degrade.crops(photo.height, photo.width, task.data) if crop.suffix not in photo.flat]
                places = {crop.suffix: keeper.add(levels.encoded(*seen, crop, task.data)[0]) for crop in cuts}
                photo = replace(photo, kept=task.keep, places=places)
            photos.append(photo)
    return photos


def make_shard(task: ShardTask) -> tuple[dict[str, Any], bool]:
    """The shard's manifest entry, and whether it was there already, whole and with these samples. Raises BadInput for a changed source."""
    stats = storage.join(task.uri, task.shard.name.removesuffix(".tar") + ".json")
    entry = _finished(task, stats)
    if entry is not None:
        return entry, True
    storage.remove(stats)
    with tempfile.TemporaryDirectory(prefix="sr3-shard-") as folder:
        local = Path(folder) / "shard.tar"
        members = _write_tar(local, task)
        storage.publish_file(local, storage.join(task.uri, task.shard.name))
        entry = {
            "name": task.shard.name,
            "split": task.shard.split,
            "samples": len(members),
            "bytes": local.stat().st_size,
            "sha256": storage.sha256(str(local)),
            "members": members,
        }
    storage.write_json(stats, entry)
    return entry, False


def _lines(items: Iterable[Any]) -> bytes:
    return "".join(json.dumps(asdict(item), sort_keys=True) + "\n" for item in items).encode()


def _forget(uri: str) -> None:
    """Remove what was seen of the inputs, and their levels that waited."""
    storage.remove(storage.join(uri, INSPECTED))
    storage.remove(storage.join(uri, levels.FOLDER), recursive=True)


def _list(uri: str, name: str, items: Sequence[Any], what: str) -> None:
    """Write ``items`` to the file ``name`` and say so; without items there is no such file."""
    where = storage.join(uri, name)
    if items:
        storage.write_bytes(where, _lines(items))
        say(ROOM, f"{len(items)} {what}; each is named in {where}")
    else:
        storage.remove(where)


def _inspected(uri: str, data: Data, examples: Sequence[Example], mapper: Mapper) -> list[plan.Photo]:
    kept = storage.join(uri, INSPECTED)
    if storage.exists(kept):
        try:
            photos = [plan.Photo(**json.loads(line)) for line in storage.read_bytes(kept).splitlines()]
        except (TypeError, ValueError) as error:  # another version of the project, with other fields, or damage
            say(ROOM, f"looks again: what an earlier run saw cannot be read here ({error})")
            photos = []
        if [(photo.key, photo.uri) for photo in photos] == [(example.key, example.uri) for example in examples]:
            say(ROOM, f"goes on with what an earlier run saw of {len(photos)} inputs")
            return photos
    tasks = [
        InspectTask(tuple(examples[start : start + INSPECT_AT_ONCE]), data, uri, f"{levels.FOLDER}/{number:06d}")
        for number, start in enumerate(range(0, len(examples), INSPECT_AT_ONCE))
    ]
    with Progress(ROOM, "inspect", total=len(examples), unit="photos") as progress:
        found = mapper(inspect_all, tasks, lambda task, photos: progress.advance(len(photos)))
    photos = [photo for group in found for photo in group]
    storage.write_bytes(kept, _lines(photos))
    return photos


def _entries(uri: str, data: Data, made: plan.Plan, mapper: Mapper) -> list[dict[str, Any]]:
    tasks = [ShardTask(uri, data, shard) for shard in made.shards]
    with Progress(ROOM, "write", total=len(tasks), unit="shards") as progress:
        results = mapper(make_shard, tasks, lambda task, result: progress.advance(1))
    kept = sum(was_there for _, was_there in results)
    if kept:
        say(ROOM, f"{kept} of {len(tasks)} shards were done already")
    return [entry for entry, _ in results]


def _finished(task: ShardTask, stats: str) -> dict[str, Any] | None:
    try:
        entry = storage.read_json(stats)
        expected = [(sample.key, sample.photo.content_hash) for sample in task.shard.samples]
        if [(member["key"], member["content_hash"]) for member in entry["members"]] != expected:
            return None
        verify_shard(task.uri, entry)
    except (FileNotFoundError, BadInput, KeyError, TypeError):
        return None
    return entry


def _write_tar(local: Path, task: ShardTask) -> list[dict[str, Any]]:
    """Write the shard's tar, the same bytes each time (no times, no owners), and tell where each member's bytes lie."""
    members: list[dict[str, Any]] = []
    before: tuple[str, bytes, images.Array] | None = None  # tiles of one photo follow each other: it is read once
    data, drawn = task.data, dict[str, Any]()
    corrupts = data.corruption is not None and task.shard.split != "train"  # known only now that the splits are
    with tarfile.open(local, "w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in task.shard.samples:
            files = None if corrupts else _kept(task.uri, sample)
            if files is None:
                if before is None or before[0] != sample.photo.uri:
                    source = _unchanged(sample.photo, data)
                    before = (sample.photo.uri, source, levels.decoded(source, data)[1])
                files, drawn = levels.encoded(*before[1:], sample.crop, data, corrupt=sample.key if corrupts else None)
            placed: dict[str, list[Any]] = {}
            for level, (extension, content) in files.items():
                placed[str(level)] = [_add(tar, f"{sample.key}.{level}.{extension}", content), len(content), extension]
            member = {
                "key": sample.key,
                "levels": placed,
                "label": sample.photo.label,
                "source": sample.photo.key,
                "original_size": [sample.photo.height, sample.photo.width],
                "content_hash": sample.photo.content_hash,
                "group": plan.group_of(sample.photo) or sample.photo.content_hash,
            }
            crop = [sample.crop.top, sample.crop.left, sample.crop.height, sample.crop.width]
            described = {**member, "crop": crop, "attributes": sample.photo.attributes, "levels": sorted(files), **drawn}
            _add(tar, f"{sample.key}.json", storage.json_bytes(described))
            members.append(member)
    return members


def _kept(uri: str, sample: plan.Sample) -> levels.Files | None:
    place = sample.photo.places.get(sample.crop.suffix)
    return None if place is None else levels.kept(storage.join(uri, sample.photo.kept), place)


def _unchanged(photo: plan.Photo, data: Data) -> bytes:
    try:
        content = reading.read(data, Example(photo.key, photo.uri, member=photo.member, place=photo.place))
    except (FileNotFoundError, PermissionError, images.BadImage):
        content = b""
    if hashlib.sha256(content).hexdigest() != photo.content_hash:
        raise BadInput(f"{photo.uri} changed while prepare ran", "a source at rest", "run it again")
    return content


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Append a member; the offset of its content in the tar."""
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = len(content), 0o644, 0
    start = tar.offset + tarfile.BLOCKSIZE  # a ustar header is one block: names here are far below its 255 bytes
    tar.addfile(info, io.BytesIO(content))
    return start


def _manifest(data: Data, made: plan.Plan, entries: Sequence[dict[str, Any]], fingerprint: str) -> dict[str, Any]:
    counts = {split: {str(level): 0 for level in data.levels} for split in config.SPLITS}
    for entry in entries:
        for member in entry["members"]:
            for level in member["levels"]:
                counts[entry["split"]][level] += 1
    # said only by sets that ask for it or have it, so that the others keep their bytes
    profiles = {"profiles": found} if (found := plan.profiles_of(made)) else {}
    frames = {"first_frames": count} if (count := plan.num_first_frames(made)) else {}
    tiles = {"refused_tiles": {"flat tile": len(made.flat)}} if data.tiles.min_detail > 0 else {}
    groups = len({item.group for item in made.near})
    near = {} if data.near_duplicates is None else {"near_duplicates": {"photos": len(made.near), "groups": groups}}
    return {
        **tiles,
        **near,
        **profiles,
        **frames,
        "schema": SCHEMA_VERSION,
        "section": data.model_dump(mode="json"),
        "fingerprint": fingerprint,
        "shards": list(entries),
        "counts": counts,
        "rejected": plan.reasons_of(made),
        "accepted": made.accepted,
    }
