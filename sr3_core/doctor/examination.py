"""Looking at every input, and at a few as prepare would make them, to say what a source holds and what all of it would cost."""

import contextlib
import hashlib
import io
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import Any

from sr3_core import config, images, storage
from sr3_core.config import Data
from sr3_core.data import plan, reading, shards
from sr3_core.data.degrade import detail
from sr3_core.data.sources import _files
from sr3_core.data.sources._base import Example
from sr3_core.doctor import checks, findings, page, verdict
from sr3_core.doctor.asked import Asked
from sr3_core.doctor.findings import Seen
from sr3_core.errors import BadInput
from sr3_core.progress import Progress

ROOM = "doctor"
MEASURED_PHOTOS = 6  # that are prepared to tell what all would cost
QUIET_SECONDS = 2.0  # progress is shown of what takes longer


def examine(asked: Asked, *, limit: int | None) -> tuple[dict[str, Any], list[Seen], dict[str, Example]]:
    """The whole answer as JSON values, what was seen of each input, and the inputs by key.

    Beside the keys of ``findings.findings``:

    source          name, options
    recipe, judged  its name or null; whether the section is a recipe's or its levels were given
    not_looked_at   keys
    other_files     ending -> files below the source's uri that are no inputs and hold none
    verdict         as ``verdict.verdict``
    estimate        photos, samples, shards, bytes, seconds_per_core, measured_on (photos); null where nothing can be prepared
    seconds         that it took

    With ``limit``, so many inputs are looked at: those whose keys have the smallest sha256, the same each time.
    """
    start = time.monotonic()
    module, options = reading.source_of(asked.data)
    listed, _ = plan.distinct_keys(module.examples(options))
    chosen = sample(listed, limit)
    others = other_files(options, listed)
    seen = look_at_all(chosen, asked)
    data = asked.data if asked.is_judged else None
    content = findings.findings(seen, listed=len(listed), data=data, near_looked_for=_can_hash())
    section = data or verdict.proposed(seen, asked.data.source, asked.data.options)
    content["source"] = {"name": asked.data.source, "options": asked.data.model_dump(mode="json")["options"]}
    content["recipe"], content["judged"] = asked.recipe or None, asked.is_judged
    content["other_files"] = others
    looked_at = {example.key for example in chosen}
    content["not_looked_at"] = [example.key for example in listed if example.key not in looked_at]
    content["verdict"] = verdict.verdict(content, seen, section, is_judged=asked.is_judged)
    content["estimate"] = estimate(seen, chosen, section, listed=len(listed)) if section and content["verdict"]["usable"] else None
    content["seconds"] = round(time.monotonic() - start, 3)
    return content, seen, {example.key: example for example in chosen}


def sample(examples: Sequence[Example], limit: int | None) -> list[Example]:
    """``limit`` of the examples, in their order: those whose keys have the smallest sha256. All without a limit."""
    if limit is None or limit >= len(examples):
        return list(examples)
    by_hash = sorted(examples, key=lambda example: hashlib.sha256(example.key.encode("utf-8", "surrogateescape")).digest())
    chosen = {example.key for example in by_hash[:limit]}
    return [example for example in examples if example.key in chosen]


def other_files(options: Any, listed: Sequence[Example]) -> dict[str, int]:
    """Ending -> files below ``options.uri`` that the source passed over; nothing for a source without such a folder."""
    place = getattr(options, "uri", "")
    if not isinstance(place, str) or not place:
        return {}
    place, used = storage.absolute(place), {example.container for example in listed}
    try:
        below = [] if place in used else storage.list_files(place)
    except (NotADirectoryError, FileNotFoundError):
        below = []  # a file (a list of locations, say), or a name that stands for several
    return _files.endings(info.path_relative for info in below if info.uri not in used)


def look_at_all(examples: Sequence[Example], asked: Asked) -> list[Seen]:
    """``look`` at each, in order, in as many threads as there are cores (decoders and transforms release the interpreter's lock)."""
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    is_hashed = _can_hash()
    with ThreadPoolExecutor(workers) as pool, _shown("look", len(examples)) as progress:
        coming = (pool.submit(look, example, asked, is_hashed=is_hashed) for example in examples)
        waiting: list[Future[Seen]] = []
        seen: list[Seen] = []
        while True:
            waiting += islice(coming, 4 * workers - len(waiting))  # decoded photos are large: few are ahead of the counting
            if not waiting:
                return seen
            seen.append(waiting.pop(0).result())
            progress.advance()


def look(example: Example, asked: Asked, *, is_hashed: bool) -> Seen:
    """Read, decode and check one input. What is wrong with it is its ``reason``; only a store that does not answer raises (Failed).

    It is decoded as prepare does by a judged section; else to its own channels and bits.
    """
    group = example.attributes.get("group")
    seen = Seen(example.key, example.uri, example.split, example.label, "" if group is None else str(group))
    if example.reason:
        return replace(seen, reason=example.reason, reason_detail=example.detail)
    try:
        data = reading.read(asked.data, example)
        seen = replace(seen, bytes=len(data), content_hash=hashlib.sha256(data).hexdigest())
        header = images.header(data)
        wanted = (asked.data.channels, asked.data.bits) if asked.is_judged else natural(header)
        array = images.decode(data, channels=wanted[0], bits=wanted[1])
    except FileNotFoundError:
        return replace(seen, reason=findings.MISSING, reason_detail="no such file")
    except IsADirectoryError:
        return replace(seen, reason="not a file")
    except PermissionError as error:
        return replace(seen, reason="no read permission", reason_detail=error.strerror or str(error))
    except images.BadImage as error:
        return replace(seen, reason=error.reason, reason_detail=error.detail)
    measured = detail(array)
    is_flat = measured < checks.FLAT_DETAIL  # a flat image has no detail to end anywhere
    return replace(
        seen,
        near_hash=images.perceptual_hash(array) if is_hashed else "",
        format=header.format,
        mode=header.mode or f"{header.channels} channels",
        bits=images.bits_of(array),
        channels=array.shape[2],
        height=array.shape[0],
        width=array.shape[1],
        frames=header.frames,
        jpeg_quality=checks.jpeg_quality(data),
        detail=measured,
        flat_tiles=plan.flat_tiles(array, asked.data) if asked.is_judged else {},
        enlarged=None if is_flat else checks.enlarged(checks.luminance(array)),
    )


def natural(header: images.Header) -> tuple[int, int]:
    """(channels, bits) a file is decoded to when no section asks: grey 1, colour 3 (its alpha must be opaque), an array its own.

    Raises BadImage for an array of more channels than a set may have, as a stack of images has.
    """
    bits = 16 if header.bits > 8 else 8
    if header.format == images.NPY:
        if header.channels not in images.CHANNELS:
            detail = (
                f"{header.channels} channels; at most {images.CHANNELS[-1]}; for many images in a file name the plug-in stack, with axes"
            )
            raise images.BadImage("unsupported shape", detail)
        return header.channels, bits
    return 1 if header.mode in ("1", "L", "LA") or header.mode.startswith("I") else 3, bits


def estimate(seen: Sequence[Seen], examples: Sequence[Example], data: Data, *, listed: int) -> dict[str, Any] | None:
    """What prepare would make by ``data``, of all ``listed`` inputs, and what it costs: a few photos are prepared to know.

    Bytes and seconds are scaled by pixels written, and pixels read and written. None when no photo can be prepared.
    """
    made = verdict.planned(seen, data)
    photos = {sample.photo.key: sample.photo for shard in made.shards for sample in shard.samples}
    if not photos:
        return None
    keys = sorted(photos)
    chosen = set(keys[:: max(1, len(keys) // MEASURED_PHOTOS)][:MEASURED_PHOTOS])
    written = {key: verdict.written_pixels(photo.height, photo.width, data) for key, photo in photos.items()}
    handled = {key: written[key] + photo.height * photo.width for key, photo in photos.items()}
    changes = {
        "split": config.Split(by="content_hash", val=0, test=0, minimum={}),
        "required_levels": dict.fromkeys(config.SPLITS, data.levels[:1]),
        "max_rejected_share": 1.0,
        "near_duplicates": None,
    }
    trial = data.model_copy(update=changes)
    with tempfile.TemporaryDirectory(prefix="sr3-doctor-") as folder, contextlib.redirect_stdout(io.StringIO()):
        start = time.perf_counter()
        result = shards.build(folder, trial, [example for example in examples if example.key in chosen], fingerprint=ROOM)
        seconds = time.perf_counter() - start
    size = sum(shard["bytes"] for shard in result.manifest["shards"])
    scale = listed / len(seen)  # to those not looked at
    samples = sum(len(shard.samples) for shard in made.shards)
    return {
        "photos": round(made.accepted * scale),
        "samples": round(samples * scale),
        "shards": max(len(made.shards), round(samples * scale / data.shard_samples)),
        "bytes": round(size * scale * sum(written.values()) / sum(written[key] for key in chosen)),
        "seconds_per_core": round(seconds * scale * sum(handled.values()) / sum(handled[key] for key in chosen), 3),
        "measured_on": len(chosen),
    }


def pictures(asked: Asked, seen: Sequence[Seen], examples: Mapping[str, Example]) -> page.Pictures:
    """Reads the input of a key once more: what the page shows of the worst is not kept until then."""
    by_key = {item.key: item for item in seen}

    def picture(key: str) -> images.Array | None:
        item = by_key[key]
        try:
            array = images.decode(reading.read(asked.data, examples[key]), channels=item.channels, bits=item.bits)
        except (OSError, images.BadImage):
            return None  # it changed since it was looked at: the page says its name alone
        return images.preview(array)

    return picture


def _can_hash() -> bool:
    """Whether the package behind near-duplicates is there; without it the answer says that none were looked for."""
    try:
        images.check_perceptual_hash()
    except BadInput:
        return False
    return True


class _shown:
    """Progress of what takes longer than ``QUIET_SECONDS``; nothing of what does not."""

    def __init__(self, stage: str, total: int) -> None:
        self.stage, self.total, self.done = stage, total, 0
        self._start = time.monotonic()
        self._progress: Progress | None = None

    def __enter__(self) -> "_shown":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def advance(self) -> None:
        self.done += 1
        if self._progress is not None:
            self._progress.advance()
        elif time.monotonic() - self._start > QUIET_SECONDS:
            self._progress = Progress(ROOM, self.stage, total=self.total, unit="photos", done=self.done).__enter__()
