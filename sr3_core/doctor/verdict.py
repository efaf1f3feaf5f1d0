"""Whether prepare would take a source, and what recipe would: a verdict from what was seen of each input. No files, no pixels."""

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sr3_core import config
from sr3_core.config import Data
from sr3_core.data import plan
from sr3_core.data.degrade import crops, top_level
from sr3_core.doctor.findings import LADDER, Seen, warnings
from sr3_core.errors import BadInput

REACHED_SHARE = 0.5  # the largest level proposed is one that at least this part of the photos reaches
REFUSED_SHARE = 0.5  # with more than this part of the inputs refused nothing is proposed: the source is another than was meant
STAGE_SCALE = 4  # from one proposed level to the next
SMALLEST_LOW = 16
MOST_LEVELS = 3
REASON_ALL = "nothing usable"


def proposed(seen: Sequence[Seen], source: str, options: Mapping[str, Any]) -> Data | None:
    """A data section that prepare takes for these inputs, with the largest levels it can have; None when there is none."""
    good = [item for item in seen if not item.reason]
    if len(good) < (1 - REFUSED_SHARE) * len(seen):
        return None
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
    elif data is None and good < (1 - REFUSED_SHARE) * content["inputs"]["looked_at"]:
        problems.append("most inputs cannot be used: mend the source, name another plug-in or other data.options, or give data.levels")
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
        "warnings": [*warnings(content), *([] if is_judged or data is None else _dropped_splits(seen, data))],
        "data": data.model_dump(mode="json") if data else None,
        "stages": [{"low": low, "high": high} for low, high in itertools.pairwise(levels)],
    }


def _dropped_splits(seen: Sequence[Seen], data: Data) -> list[str]:
    """A warning where splits are published, but not all that a recipe needs, so that the proposal divides the photos anew."""
    published = [split for split in config.SPLITS if any(item.split == split for item in seen if not item.reason)]
    if not published or data.split.by == "published":
        return []
    lacking = [split for split in config.SPLITS if split not in published]
    why = f"none for {' and '.join(lacking)}" if lacking else "not for every photo"
    return [f"published splits: {', '.join(published)}, but {why}; the values below divide all photos anew"]


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
        flat=item.flat_tiles,
    )


def _share(holds: Iterable[bool]) -> float:
    values = list(holds)
    return sum(values) / len(values) if values else 0.0
