"""`sr3 doctor SOURCE`: looks at every input of a source before any training and says what is wrong and what recipe would work. No torch.

What can be said of one image is in doctor_checks.py, what is said of all in doctor_findings.py, how it is shown in doctor_page.py.
"""

import contextlib
import difflib
import hashlib
import io
import os
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from sr3_core import config, doctor_checks, doctor_findings, doctor_page, doctor_verdict, images, plugins, storage
from sr3_core.config import Data, recipe_file
from sr3_core.data import plan, reading, shards
from sr3_core.data.degrade import detail
from sr3_core.data.sources import _files
from sr3_core.data.sources._base import Example
from sr3_core.doctor_findings import Seen
from sr3_core.errors import EXIT_DONE, EXIT_FAILED, BadInput, nearest
from sr3_core.progress import Progress

ROOM = "doctor"
MEASURED_PHOTOS = 6  # that are prepared to tell what all would cost
QUIET_SECONDS = 2.0  # progress is shown of what takes longer


@dataclass(frozen=True)
class Asked:
    """What SOURCE and --set stand for. ``is_judged``: the section is a recipe's (``recipe`` is its name) or its levels were given;
    else ``data`` says the source alone and a section is proposed."""

    data: Data
    is_judged: bool
    recipe: str = ""


def run(source: str, overrides: Sequence[str], *, as_json: bool, report: str, limit: int | None, verbose: bool) -> int:
    """Print the answer, and write doctor.html and doctor.json to the folder or URI ``report``. The exit code.

    0: usable (there may be warnings); 1: not usable as it is, or the recipe's prepare would refuse it. Raises BadInput (2) for a source,
    a recipe or a report folder that cannot be used. Progress goes to stderr: stdout is the answer alone.
    """
    asked = resolve(source, overrides)
    if report:
        storage.check_writable(report)
    with contextlib.redirect_stdout(sys.stderr):
        content, seen, examples = examine(asked, limit=limit)
        if report:
            pages = {
                "doctor.json": storage.json_bytes(content),
                "doctor.html": doctor_page.page(content, pictures(asked, seen, examples)).encode("utf-8", "backslashreplace"),
            }
            for name, data in pages.items():
                storage.write_bytes(storage.join(storage.absolute(report), name), data)
    if as_json:
        print(storage.json_bytes(content).decode(), end="")
    else:
        print(doctor_page.text(content, verbose=verbose))
        if report:
            print(f"report: {storage.join(storage.absolute(report), 'doctor.html')}")
    return EXIT_DONE if content["verdict"]["usable"] else EXIT_FAILED


def resolve(source: str, overrides: Sequence[str]) -> Asked:
    """The data section that ``source`` names: a recipe (name or YAML file), a source plug-in (name or dotted module), a folder or URI.

    A folder with the name of a recipe or plug-in is given as ``./name``. Overrides of a recipe are those of ``sr3 run``; else
    ``uri=...`` is an option of the source and ``data.levels=...`` a key of the section. Raises BadInput.
    """
    if source in config.recipe_names() or source.endswith((".yaml", ".yml")):
        recipe = config.load(source, overrides)
        return Asked(recipe.data, True, recipe.name)
    name, options = _named(source)
    values: dict[str, Any] = {"data": {"source": name, "levels": [1], "options": options}}
    fields = getattr(plugins.load("data.sources", name), "Options", Data).model_fields
    for item in overrides:
        key = re.split(r"[.=]", item)[0]
        if key in Data.model_fields and key not in fields:
            raise BadInput(f"--set {item}", f"an option of {name}, or a key of the section with data. before it", f"--set data.{item}")
    given = [item if item.startswith("data.") else f"data.options.{item}" for item in overrides]
    recipe_file.change(values, given)
    place = values["data"]["options"].get("uri")
    if isinstance(place, str) and place:
        values["data"]["options"]["uri"] = storage.absolute(place)  # the values that are proposed work from any folder
    asked = config.parse(Data, values["data"])
    try:
        reading.source_of(asked)
    except BadInput as error:
        lacking = error.got.removeprefix("no value for data.options.")
        raise error if lacking == error.got else BadInput(error.got, error.allowed, f"--set {lacking}=...") from None
    return Asked(asked, any(item.startswith("data.levels=") for item in given))


def _named(source: str) -> tuple[str, dict[str, Any]]:
    """(plug-in, options) that SOURCE stands for: a place is a folder, or a file of many images by its ending."""
    names = plugins.names("data.sources")
    container = _files.container_plugin(source)
    is_pattern = any(character in source for character in "*?[")
    is_there = source not in names and os.path.exists(source)
    if is_pattern or is_there or container or "://" in source or os.sep in source or source[:1] == "~":
        if container or not (storage.is_local(source) and os.path.isfile(os.path.expanduser(source))):
            return container or "folder", {"uri": source}
        if source.lower().endswith(".npy"):
            return "stack", {"uri": source}
        if source.endswith(".py"):
            do = "put it into sr3_core/data/sources and name it without .py, or give its dotted name with its folder on PYTHONPATH"
            raise BadInput(f"{source} is a file of Python", "a plug-in by its name", do)
        raise BadInput(f"{source} is a file", f"a folder, or a file that ends in {', '.join(_files.CONTAINERS)}", "give its folder")
    if source not in names and "." not in source:
        known = [*names, *difflib.get_close_matches(source, config.recipe_names(), n=1, cutoff=0.5)]
        do = "name one of these, or write your own: sr3 doctor --example prints one"
        raise BadInput(f"unknown source {source!r}", f"a recipe, ./FOLDER, a URI, or a plug-in: {nearest(source, known)}", do)
    return source, {}


def examine(asked: Asked, *, limit: int | None) -> tuple[dict[str, Any], list[Seen], dict[str, Example]]:
    """The whole answer as JSON values, what was seen of each input, and the inputs by key.

    Beside the keys of ``doctor_findings.findings``:

    source          name, options
    recipe, judged  its name or null; whether the section is a recipe's or its levels were given
    not_looked_at   keys
    other_files     ending -> files below the source's uri that are no inputs and hold none
    verdict         as ``doctor_verdict.verdict``
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
    content = doctor_findings.findings(seen, listed=len(listed), data=data, near_looked_for=_can_hash())
    section = data or doctor_verdict.proposed(seen, asked.data.source, asked.data.options)
    content["source"] = {"name": asked.data.source, "options": asked.data.model_dump(mode="json")["options"]}
    content["recipe"], content["judged"] = asked.recipe or None, asked.is_judged
    content["other_files"] = others
    looked_at = {example.key for example in chosen}
    content["not_looked_at"] = [example.key for example in listed if example.key not in looked_at]
    content["verdict"] = doctor_verdict.verdict(content, seen, section, is_judged=asked.is_judged)
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
        return replace(seen, reason=doctor_findings.MISSING, reason_detail="no such file")
    except IsADirectoryError:
        return replace(seen, reason="not a file")
    except PermissionError as error:
        return replace(seen, reason="no read permission", reason_detail=error.strerror or str(error))
    except images.BadImage as error:
        return replace(seen, reason=error.reason, reason_detail=error.detail)
    measured = detail(array)
    is_flat = measured < doctor_checks.FLAT_DETAIL  # a flat image has no detail to end anywhere
    return replace(
        seen,
        near_hash=images.perceptual_hash(array) if is_hashed else "",
        format=header.format,
        mode=header.mode or f"{header.channels} channels",
        bits=images.bits_of(array),
        channels=array.shape[2],
        height=array.shape[0],
        width=array.shape[1],
        jpeg_quality=doctor_checks.jpeg_quality(data),
        detail=measured,
        enlarged=None if is_flat else doctor_checks.enlarged(doctor_checks.luminance(array)),
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
    made = doctor_verdict.planned(seen, data)
    photos = {sample.photo.key: sample.photo for shard in made.shards for sample in shard.samples}
    if not photos:
        return None
    keys = sorted(photos)
    chosen = set(keys[:: max(1, len(keys) // MEASURED_PHOTOS)][:MEASURED_PHOTOS])
    written = {key: doctor_verdict.written_pixels(photo.height, photo.width, data) for key, photo in photos.items()}
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


def pictures(asked: Asked, seen: Sequence[Seen], examples: Mapping[str, Example]) -> doctor_page.Pictures:
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
