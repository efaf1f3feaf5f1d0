"""From what was seen of each input to what is said of the source: counts, duplicates, leakage, levels, warnings. No files, no pixels.

``findings`` is the machine-readable answer of ``sr3 doctor``; its keys are stable within ``SCHEMA_VERSION`` and described there.
"""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sr3_core.config import Data, SplitName
from sr3_core.data import near
from sr3_core.doctor.checks import FLAT_DETAIL, LOW_JPEG_QUALITY, MIN_SIDE, Enlarged

SCHEMA_VERSION = 1
LADDER = (16, 32, 64, 128, 256, 512, 1024, 2048)  # levels that are looked at when no recipe names its own
NEAR_BITS = 6  # of 64: two perceptual hashes that differ in at most so many are called near-duplicates
MISSING = "missing"
OTHER_PICTURES = frozenset(
    (".heic", ".heif", ".avif", ".jxl", ".jp2", ".gif", ".tga", ".psd", ".exr", ".hdr", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf",
     ".orf", ".rw2")
)  # fmt: skip
MANY_SHARE = 0.05  # of the photos: a warning's subject is said to matter from here on


@dataclass(frozen=True)
class Seen:
    """One input that was looked at. ``reason`` says why it cannot be used, and is empty for a good one; sizes are upright, in pixels."""

    key: str
    uri: str
    split: SplitName | None
    label: int | None
    group: str  # the source's own name of the scene or person; empty where it has none
    bytes: int = 0
    content_hash: str = ""  # sha256
    near_hash: str = ""  # perceptual hash, 16 hex digits
    format: str = ""
    mode: str = ""
    bits: int = 0
    channels: int = 0  # of the decoded image
    height: int = 0
    width: int = 0
    frames: int = 1  # pages or frames in the file; the first is used
    jpeg_quality: int | None = None
    detail: float = 0.0  # data.degrade.detail
    flat_tiles: dict[str, float] = field(default_factory=dict[str, float])  # data.plan.flat_tiles, by a section that was asked about
    enlarged: Enlarged | None = None
    reason: str = ""
    reason_detail: str = ""

    @property
    def short_side(self) -> int:
        return min(self.height, self.width)

    @property
    def sharp_side(self) -> int:
        """The short side that holds all its detail: smaller than ``short_side`` for an enlarged image."""
        return self.short_side if self.enlarged is None else int(self.short_side / self.enlarged.scale)

    @property
    def is_flat(self) -> bool:
        return not self.reason and self.detail < FLAT_DETAIL


def findings(seen: Sequence[Seen], *, listed: int, data: Data | None, near_looked_for: bool) -> dict[str, Any]:
    """Everything but ``source``, ``estimate`` and ``verdict``, as JSON values; ``data`` is a recipe's section, None without a recipe.

    inputs          listed, looked_at, not_looked_at, usable, refused; bytes of what was looked at
    splits, labels  inputs by published split ("none" without); number of different labels
    sizes           width, height, short_side: {min, median, max} in pixels, of the usable
    formats, modes, depths, channels    name -> number of usable inputs
    levels          [{level, photos, sharp}]: photos whose short side reaches it; sharp leaves out what was enlarged to reach it
    refused         reasons: reason -> count; inputs: [{key, uri, reason, detail}]
    duplicates      extra: files beyond the first of each content; groups: [{content_hash, keys}]
    near_duplicates looked_for; bits: the distance; pairs: [{keys, bits}]
    leakage         [{kind: exact | near | group, keys, splits}]: inputs of two published splits that show the same
    first_frames    inputs: [{key, uri, frames}] whose file has several pages or frames, of which the first is used
    flat            limit; inputs: [{key, uri, detail}], flattest first
    enlarged        checked; inputs: [{key, uri, kind, scale, strength}], strongest first
    jpeg            files; quality: {min, median, max} or null; limit; low: [{key, uri, quality}], lowest first
    """
    good = [item for item in seen if not item.reason]
    refused = [item for item in seen if item.reason]
    qualities = [item.jpeg_quality for item in good if item.jpeg_quality is not None]
    flat = sorted((item for item in good if item.is_flat), key=lambda item: (item.detail, item.key))
    enlarged = [(item.enlarged, item) for item in good if item.enlarged is not None]
    enlarged.sort(key=lambda pair: (-pair[0].strength, pair[1].key))
    low = sorted((pair for pair in _with_quality(good) if pair[0] < LOW_JPEG_QUALITY), key=lambda pair: (pair[0], pair[1].key))
    groups = _copies(good)
    near_pairs = _near_pairs(good) if near_looked_for else []
    return {
        "schema": SCHEMA_VERSION,
        "inputs": {
            "listed": listed,
            "looked_at": len(seen),
            "not_looked_at": listed - len(seen),
            "usable": len(good),
            "refused": len(refused),
            "bytes": sum(item.bytes for item in seen),
        },
        "splits": dict(Counter(item.split or "none" for item in seen)),
        "labels": len({item.label for item in seen if item.label is not None}),
        "sizes": {name: spread([getattr(item, name) for item in good]) for name in ("width", "height", "short_side")},
        "formats": _counted(item.format for item in good),
        "modes": _counted(item.mode for item in good),
        "depths": _counted(str(item.bits) for item in good),
        "channels": _counted(str(item.channels) for item in good),
        "levels": [level_row(level, good) for level in (data.levels if data else LADDER)],
        "refused": {
            "reasons": _counted(item.reason for item in refused),
            "inputs": [{**_named(item), "reason": item.reason, "detail": item.reason_detail} for item in refused],
        },
        "duplicates": {
            "extra": sum(len(same) - 1 for same in groups),
            "groups": [{"content_hash": same[0].content_hash, "keys": [item.key for item in same]} for same in groups],
        },
        "near_duplicates": {
            "looked_for": near_looked_for,
            "bits": NEAR_BITS,
            "pairs": [{"keys": [first.key, second.key], "bits": bits} for first, second, bits in near_pairs],
        },
        "leakage": leakage(good, groups, near_pairs),
        "first_frames": {"inputs": [{**_named(item), "frames": item.frames} for item in good if item.frames > 1]},
        "flat": {"limit": FLAT_DETAIL, "inputs": [{**_named(item), "detail": round(item.detail, 3)} for item in flat]},
        "enlarged": {
            "checked": sum(item.short_side >= MIN_SIDE for item in good),
            "inputs": [
                {**_named(item), "kind": found.kind, "scale": found.scale, "strength": round(found.strength, 3)} for found, item in enlarged
            ],
        },
        "jpeg": {
            "files": len(qualities),
            "quality": spread(qualities),
            "limit": LOW_JPEG_QUALITY,
            "low": [{**_named(item), "quality": quality} for quality, item in low],
        },
    }


def leakage(good: Sequence[Seen], groups: Sequence[Sequence[Seen]], near_pairs: Sequence[tuple[Seen, Seen, int]]) -> list[dict[str, Any]]:
    """Inputs of different published splits that are equal, look alike or show one scene: an entry for each further split."""
    scenes: dict[str, list[Seen]] = {}
    for item in good:
        if item.group:
            scenes.setdefault(item.group, []).append(item)
    found: list[dict[str, Any]] = []
    for kind, sets in (("exact", groups), ("near", [[first, second] for first, second, _ in near_pairs]), ("group", list(scenes.values()))):
        for together in sets:
            firsts: dict[SplitName, Seen] = {}
            for item in together:
                if item.split is not None:
                    firsts.setdefault(item.split, item)
            (first, *others) = firsts.values() if firsts else (None,)
            found += [{"kind": kind, "keys": [first.key, other.key], "splits": [first.split, other.split]} for other in others if first]
    return found


def warnings(content: Mapping[str, Any]) -> list[str]:
    """What a person should know before training, a line each, the most harmful first."""
    inputs, lines = content["inputs"], list[str]()
    good = max(1, inputs["usable"])
    if leaks := content["leakage"]:
        kinds = ", ".join(f"{count} {kind}" for kind, count in _counted(leak["kind"] for leak in leaks).items())
        lines.append(f"leaks between published splits: {len(leaks)} ({kinds}); a score on them flatters")
    if refused := inputs["refused"]:
        reasons = content["refused"]["reasons"]
        line = f"{refused} of {inputs['looked_at']} inputs cannot be used ({_named_counts(reasons)})"
        lines.append(line + ("; fetch what is missing, or narrow data.options" if MISSING in reasons else ""))
    if unread := {name: count for name, count in content["other_files"].items() if name in OTHER_PICTURES}:
        lines.append(f"pictures with endings that are no inputs: {_named_counts(unread)}; convert them to PNG or TIFF")
    if several := content["first_frames"]["inputs"]:
        lines.append(
            f"several pages or frames in a file: {len(several)}; the first alone is used (the plug-in stack takes all pages of a TIFF)"
        )
    if enlarged := content["enlarged"]["inputs"]:
        share = f"enlarged or soft: {len(enlarged)} of {good} photos have fewer details than pixels"
        lines.append(share + ("; train at a smaller level or leave them out" if len(enlarged) >= MANY_SHARE * good else ""))
    if flat := content["flat"]["inputs"]:
        lines.append(f"flat: {len(flat)} of {good} photos; they teach nothing")
    if extra := content["duplicates"]["extra"]:
        lines.append(f"exact copies of other files: {extra}")
    if pairs := content["near_duplicates"]["pairs"]:
        bits = content["near_duplicates"]["bits"]
        lines.append(f"pairs that look alike: {len(pairs)}; data.near_duplicates={bits} keeps each in one split")
    if low := content["jpeg"]["low"]:
        lines.append(f"JPEG below quality {content['jpeg']['limit']}: {len(low)} of {good} photos; a network learns their blocks")
    if len(content["depths"]) > 1:
        lines.append(f"depths are mixed ({_listing(content['depths'], 'bit')}): a set has one")
    if len(content["channels"]) > 1 and set(content["channels"]) != {"1", "3"}:
        lines.append(f"channels are mixed ({_listing(content['channels'], 'channels')}): a set has one number")
    if content["splits"].get("none") and len(content["splits"]) > 1:
        lines.append(f"{content['splits']['none']} inputs have no published split and the others do: data.split.by=content_hash")
    return lines


def spread(values: Sequence[int]) -> dict[str, float] | None:
    """min, median and max; None of nothing."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)} if values else None


def level_row(level: int, good: Sequence[Seen]) -> dict[str, int]:
    """How many photos reach ``level`` with their pixels, and with their detail."""
    return {
        "level": level,
        "photos": sum(item.short_side >= level for item in good),
        "sharp": sum(item.sharp_side >= level for item in good),
    }


def _copies(good: Sequence[Seen]) -> list[list[Seen]]:
    together: dict[str, list[Seen]] = {}
    for item in good:
        together.setdefault(item.content_hash, []).append(item)
    return [same for same in together.values() if len(same) > 1]


def _near_pairs(good: Sequence[Seen]) -> list[tuple[Seen, Seen, int]]:
    """Pairs of different files that look alike and in how many bits; flat images, which all look alike, are left out."""
    looks: dict[int, list[Seen]] = {}
    contents: set[str] = set()
    for item in good:
        if item.near_hash and not item.is_flat and item.content_hash not in contents:
            contents.add(item.content_hash)
            looks.setdefault(int(item.near_hash, 16), []).append(item)
    pairs = [(same[0], other, 0) for same in looks.values() for other in same[1:]]
    pairs += [(looks[first][0], looks[second][0], bits) for (first, second), bits in near.close_pairs(looks, NEAR_BITS).items()]
    return sorted(pairs, key=lambda pair: (pair[2], pair[0].key, pair[1].key))


def _with_quality(good: Sequence[Seen]) -> list[tuple[int, Seen]]:
    return [(item.jpeg_quality, item) for item in good if item.jpeg_quality is not None]


def _named(item: Seen) -> dict[str, str]:
    return {"key": item.key, "uri": item.uri}


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items(), key=lambda pair: (-pair[1], pair[0])))


def _named_counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _listing(counts: Mapping[str, int], unit: str) -> str:
    return ", ".join(f"{name} {unit}: {count}" for name, count in counts.items())
