"""From what was seen of each input to what is said of the source: counts, duplicates, leakage, levels, a verdict. No files, no pixels.

``findings`` is the machine-readable answer of ``sr3 doctor``; its keys are stable within ``SCHEMA_VERSION`` and described there.
"""

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sr3_core import config
from sr3_core.config import Data, SplitName
from sr3_core.data import near, plan
from sr3_core.data.degrade import crops, top_level
from sr3_core.doctor_checks import FLAT_DETAIL, LOW_JPEG_QUALITY, MIN_SIDE, Enlarged
from sr3_core.errors import BadInput

SCHEMA_VERSION = 1
LADDER = (16, 32, 64, 128, 256, 512, 1024, 2048)  # levels that are looked at when no recipe names its own
NEAR_BITS = 6  # of 64: two perceptual hashes that differ in at most so many are called near-duplicates
REACHED_SHARE = 0.5  # the largest level proposed is one that at least this part of the photos reaches
STAGE_SCALE = 4  # from one proposed level to the next
SMALLEST_LOW = 16
MOST_LEVELS = 3
MANY_SHARE = 0.05  # of the photos: a warning's subject is said to matter from here on
REASON_ALL = "nothing usable"


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
    jpeg_quality: int | None = None
    detail: float = 0.0  # data.degrade.detail
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


def proposed(seen: Sequence[Seen], source: str, options: Mapping[str, Any]) -> Data | None:
    """A data section that prepare takes for these inputs, with the largest levels it can have; None when there is none."""
    good = [item for item in seen if not item.reason]
    for top in reversed(LADDER):
        levels = [top // STAGE_SCALE**power for power in reversed(range(MOST_LEVELS)) if top // STAGE_SCALE**power >= SMALLEST_LOW]
        if len(levels) < 2 or _share(item.sharp_side >= top for item in good) < REACHED_SHARE:
            continue
        for start in range(len(levels) - 1):  # the optional largest level may be one that a split lacks altogether
            data = _section(good, levels[: len(levels) - start], source, options)
            made = planned(seen, data)
            share = len(made.rejected) / (len(made.rejected) + made.accepted)
            if share > data.max_rejected_share:
                data = data.model_copy(update={"max_rejected_share": math.ceil(100 * share) / 100})
            try:
                plan.refuse_too_few(made, data, "")
            except BadInput:
                continue
            return data
    return None


def _section(good: Sequence[Seen], levels: list[int], source: str, options: Mapping[str, Any]) -> Data:
    bits, channels = depth_and_channels(good)
    is_published = {item.split for item in good} == set(config.SPLITS)  # with all three, and nothing beside them
    values: dict[str, Any] = {
        "source": source,
        "options": dict(options),
        "levels": levels,
        "required_levels": dict.fromkeys(config.SPLITS, levels[:2]) if len(levels) > 2 else {},
        "fit": "tiles" if statistics.median(item.sharp_side for item in good) >= 2 * levels[-1] else "crop",
        "bits": bits,
        "channels": channels,
        "split": {"by": "published" if is_published else "content_hash"},
    }
    return Data.model_validate(values)


def depth_and_channels(good: Sequence[Seen]) -> tuple[int, int]:
    """(bits, channels) that most of the usable inputs have; colour where any of the 8-bit pictures is in colour."""
    bits = Counter(item.bits for item in good).most_common(1)[0][0]
    counts = Counter(item.channels for item in good if item.bits == bits)
    return bits, 3 if set(counts) == {1, 3} else counts.most_common(1)[0][0]


def planned(seen: Sequence[Seen], data: Data) -> plan.Plan:
    """What prepare would plan of the inputs by ``data``, near-duplicates left aside. Raises BadInput as ``plan.make`` does."""
    photos = [_photo(_judged(item, data)) for item in sorted(seen, key=lambda item: item.key)]
    return plan.make(photos, data.model_copy(update={"near_duplicates": None}))


def verdict(content: Mapping[str, Any], seen: Sequence[Seen], data: Data | None, *, is_judged: bool) -> dict[str, Any]:
    """``usable``, ``problems`` (prepare would refuse), ``warnings``, and the settings: ``data`` (a section) and ``stages`` (low, high).

    ``data`` is the section asked about (``is_judged``: its limits count) or the proposed one; None when nothing fits.
    """
    problems: list[str] = []
    good = content["inputs"]["usable"]
    if not good:
        problems.append(f"{REASON_ALL}: all of {content['inputs']['looked_at']} inputs are refused")
    elif data is None:
        problems.append(f"{REASON_ALL}: no levels of {SMALLEST_LOW} pixels or more that half of the photos and every split reach")
    else:
        try:
            made = planned(seen, data)
            if content["inputs"]["not_looked_at"] == 0 and is_judged:
                plan.refuse_too_few(made, data, "this answer")
        except BadInput as error:
            problems.append(f"prepare would refuse it: {error.got}; allowed: {error.allowed}")
    levels = data.levels if data else ()
    return {
        "usable": not problems,
        "problems": problems,
        "warnings": warnings(content),
        "data": data.model_dump(mode="json") if data else None,
        "stages": [{"low": low, "high": high} for low, high in itertools.pairwise(levels)],
    }


def warnings(content: Mapping[str, Any]) -> list[str]:
    """What a person should know before training, a line each, the most harmful first."""
    inputs, lines = content["inputs"], list[str]()
    good = max(1, inputs["usable"])
    if leaks := content["leakage"]:
        kinds = ", ".join(f"{count} {kind}" for kind, count in _counted(leak["kind"] for leak in leaks).items())
        lines.append(f"leaks between published splits: {len(leaks)} ({kinds}); a score on them flatters")
    if refused := inputs["refused"]:
        reasons = ", ".join(f"{reason} {count}" for reason, count in content["refused"]["reasons"].items())
        lines.append(f"{refused} of {inputs['looked_at']} inputs cannot be used ({reasons})")
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


def written_pixels(height: int, width: int, data: Data) -> int:
    """Pixels that prepare stores of a photo of this size, all levels of all crops."""
    top = top_level(height, width, data)
    if top is None:
        return 0
    if data.fit == "keep":
        return sum(height * width * level * level // (top * top) for level in data.levels if level <= top)
    return len(crops(height, width, data)) * sum(level * level for level in data.levels if level <= top)


def _judged(item: Seen, data: Data) -> Seen:
    """``item`` refused where ``data`` has another depth or other channels than it can be brought to."""
    if item.reason:
        return item
    if item.bits != data.bits:
        return replace(item, reason="other depth", reason_detail=f"{item.bits} bits; the set has {data.bits}")
    if item.channels != data.channels and not {item.channels, data.channels} <= {1, 3}:
        return replace(item, reason="other channels", reason_detail=f"{item.channels}; the set has {data.channels}")
    return item


def _photo(item: Seen) -> plan.Photo:
    return plan.Photo(
        key=item.key,
        uri=item.uri,
        split=item.split,
        label=item.label,
        attributes={"group": item.group} if item.group else {},
        content_hash=item.content_hash,
        height=item.height,
        width=item.width,
        reason=item.reason,
        detail=item.reason_detail,
    )


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


def _listing(counts: Mapping[str, int], unit: str) -> str:
    return ", ".join(f"{name} {unit}: {count}" for name, count in counts.items())


def _share(holds: Iterable[bool]) -> float:
    values = list(holds)
    return sum(values) / len(values) if values else 0.0
