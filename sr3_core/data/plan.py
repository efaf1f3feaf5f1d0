"""What becomes of each input: looked at once, accepted or rejected by reason, put into a split and a shard. Writes nothing."""

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from sr3_core import images
from sr3_core.config import Data, SplitName
from sr3_core.data import reading
from sr3_core.data.degrade import Crop, crops, top_level
from sr3_core.data.sources._base import Example
from sr3_core.errors import BadInput

SAFE_KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")  # from the least to the most held out
_SLUG_CHARACTERS = 60


@dataclass(frozen=True)
class Photo:
    """One input after it was read and decoded. ``reason`` says why it cannot be used, and is empty for a good one."""

    key: str
    uri: str
    split: SplitName | None
    label: int | None
    attributes: dict[str, Any]
    content_hash: str = ""  # sha256 of the file
    height: int = 0  # upright, in pixels
    width: int = 0
    reason: str = ""
    detail: str = ""
    member: str = ""  # this and ``place`` as in Example: where a container has it
    place: str = ""


@dataclass(frozen=True)
class Rejected:
    """A refused input and why: a line of rejected.jsonl. ``reason`` is counted, ``detail`` is for the one who mends it."""

    key: str
    uri: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Sample:
    """One sample to be written: a crop of a photo under a key that WebDataset takes for one."""

    key: str
    photo: Photo
    crop: Crop


@dataclass(frozen=True)
class ShardPlan:
    """The samples of one shard, in order. ``name`` is its tar's path in the ShardSet."""

    name: str
    split: SplitName
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Plan:
    """Everything that is to be written, a function of the photos and the section alone."""

    shards: tuple[ShardPlan, ...]
    rejected: tuple[Rejected, ...]
    accepted: int  # photos


def refuse_equal_keys(examples: Iterable[Example]) -> list[Example]:
    """The examples sorted by key; BadInput when there is none or when two have one key."""
    ordered = sorted(examples, key=lambda example: (example.key, example.uri))
    if not ordered:
        raise BadInput("a source without photos", "at least one", "check data.options")
    for first, second in itertools.pairwise(ordered):
        if first.key == second.key:
            got = f"two inputs with one key {first.key!r}: {first.uri} and {second.uri}"
            raise BadInput(got, "a key for each input", "rename or remove one of them")
    return ordered


def inspect(example: Example, data: Data) -> Photo:
    """Read and decode one input of the source that ``data`` names.

    What is wrong with it is its ``reason``; only a store that does not answer raises (Failed).
    """
    known: dict[str, Any] = {name: getattr(example, name) for name in ("key", "uri", "split", "label", "member", "place")}
    photo = Photo(**known, attributes=dict(example.attributes))
    if example.reason:
        return _refused(photo, example.reason, example.detail)
    try:
        content = reading.read(data, example)
        array = images.decode(content, channels=data.channels)
    except FileNotFoundError:
        return _refused(photo, "missing", "it was listed, but is not there")
    except IsADirectoryError:
        return _refused(photo, "not a file", "")
    except PermissionError as error:
        return _refused(photo, "no read permission", error.strerror or str(error))
    except images.BadImage as error:
        return _refused(photo, error.reason, error.detail)
    digest = hashlib.sha256(content).hexdigest()
    return replace(photo, content_hash=digest, height=array.shape[0], width=array.shape[1])


def make(photos: Sequence[Photo], data: Data) -> Plan:
    """Splits and shards for ``photos``, which are sorted by key.

    A split published by the source is kept; an exact copy of a held-out photo in a less held-out split is rejected there. By content
    hash, equal files have equal splits; a split short of its minimum takes photos from the one with most to spare, by hash order.
    Raises BadInput when two safe keys meet or a published split is asked for and not there. Limits are ``refuse_too_few``'s.
    """
    rejected = [_as_rejected(photo) for photo in photos if photo.reason]
    good = [photo for photo in photos if not photo.reason]
    published = data.split.by == "published" or (data.split.by == "auto" and all(photo.split is not None for photo in good))
    splits = _published(good, rejected) if published else _by_content_hash(good, data)
    accepted: dict[SplitName, list[Photo]] = {split: [] for split in SPLITS}
    for photo in good:
        split = splits.get(photo.key)
        if split is None:
            continue
        if _fits(photo, split, data):
            accepted[split].append(photo)
        else:
            need = max(data.required(split))
            detail = f"{photo.width} x {photo.height}; {split} needs {need} x {need}"
            rejected.append(Rejected(photo.key, photo.uri, "too small", detail))
    shards = tuple(shard for split in SPLITS for shard in _shards(split, accepted[split], data))
    _refuse_equal_safe_keys(shards)
    rejected.sort(key=lambda item: item.key)
    return Plan(shards, tuple(rejected), sum(map(len, accepted.values())))


def refuse_too_few(plan: Plan, data: Data, listed_at: str) -> None:
    """BadInput when too large a share of the inputs was rejected, a split has fewer photos than ``data.split.minimum``, or none of its
    photos has the largest level: a stage that can be neither trained nor judged should be known before the others are trained.
    """
    total = plan.accepted + len(plan.rejected)
    reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons_of(plan).items()))
    why = f" ({reasons}; each is named in {listed_at})" if plan.rejected else ""
    if len(plan.rejected) > data.max_rejected_share * total or not plan.accepted:
        got = f"{len(plan.rejected)} of {total} inputs rejected{why}"
        allowed = f"at most {data.max_rejected_share:.0%}, data.max_rejected_share, and one accepted"
        raise BadInput(got, allowed, "mend or remove them, or allow more")
    for split, minimum in data.split.minimum.items():
        count = len({sample.photo.key for shard in plan.shards if shard.split == split for sample in shard.samples})
        if count < minimum:
            got = f"{count} of {total} photos for split {split}{why}"
            raise BadInput(got, f"at least {minimum}, data.split.minimum.{split}", "add photos or lower the minimum")
        top = max(
            (top_level(s.photo.height, s.photo.width, data) or 0 for shard in plan.shards if shard.split == split for s in shard.samples),
            default=0,
        )
        if minimum and top < data.levels[-1]:
            got = f"no photo of split {split} reaches {data.levels[-1]} pixels; the largest level there is {top}"
            do = "add larger photos, or leave that level and its stage out: --set 'data.levels=[64, 256]' --set 'stages=[{name: sr256}]'"
            raise BadInput(got, f"at least one for each of data.levels {list(data.levels)}", do)


def reasons_of(plan: Plan) -> dict[str, int]:
    """How many inputs were rejected for each reason."""
    return dict(Counter(item.reason for item in plan.rejected))


def safe_key(key: str) -> str:
    """A key of ASCII letters, digits, "-" and "_": WebDataset cuts a member's name at the first dot, and not every tool takes the rest.

    A key that is safe stays; another becomes what is readable of it and 8 hex digits of its hash.
    """
    if SAFE_KEY.fullmatch(key):
        return key
    slug = re.sub(r"[^A-Za-z0-9_-]+", "-", key)[-_SLUG_CHARACTERS:].strip("-")
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return f"{slug}-{digest}" if slug else digest


def _refused(photo: Photo, reason: str, detail: str) -> Photo:
    return replace(photo, reason=reason, detail=detail)


def _as_rejected(photo: Photo) -> Rejected:
    return Rejected(photo.key, photo.uri, photo.reason, photo.detail)


def _fits(photo: Photo, split: SplitName, data: Data) -> bool:
    return min(photo.height, photo.width) >= max(data.required(split))


def _published(photos: Sequence[Photo], rejected: list[Rejected]) -> dict[str, SplitName]:
    """Split by key; copies that would cross are added to ``rejected`` and left out."""
    holder: dict[str, Photo] = {}  # content -> the most held-out photo that has it
    for photo in photos:
        if photo.split is None:
            got = f"{photo.uri} has no published split"
            raise BadInput(
                got,
                f"a split of {', '.join(SPLITS)} for each photo",
                "set data.split.by=content_hash (or auto), or sort the photos into such folders",
            )
        other = holder.get(photo.content_hash)
        if other is None or SPLITS.index(photo.split) > SPLITS.index(cast(SplitName, other.split)):
            holder[photo.content_hash] = photo
    splits: dict[str, SplitName] = {}
    for photo in photos:
        other = holder[photo.content_hash]
        if photo.split == other.split:
            splits[photo.key] = cast(SplitName, photo.split)
        else:
            rejected.append(Rejected(photo.key, photo.uri, "copy of a held-out photo", f"equal to {other.key} of split {other.split}"))
    return splits


def _by_content_hash(photos: Sequence[Photo], data: Data) -> dict[str, SplitName]:
    """Split by key. The hash as a number in [0, 1): the lowest share is test, the next val, the rest train.

    What must not be parted - equal contents, and photos that their source says show one scene - goes by its smallest hash.
    """
    groups = _inseparable(photos)
    ordered = sorted(groups)
    where: dict[str, SplitName] = {}
    for content in ordered:
        part = int(content[:16], 16) / 2**64
        where[content] = "test" if part < data.split.test else "val" if part < data.split.test + data.split.val else "train"

    def spare(split: SplitName) -> int:
        usable = sum(len(groups[content]) for content in ordered if where[content] == split and _fits(groups[content][0], split, data))
        return usable - data.split.minimum.get(split, 0)

    for needy in SPLITS:
        while spare(needy) < 0:
            donors: list[SplitName] = sorted((split for split in SPLITS if spare(split) > 0), key=spare, reverse=True)
            given = next(
                (
                    content
                    for donor in donors
                    for content in ordered
                    if where[content] == donor and len(groups[content]) <= spare(donor) and _fits(groups[content][0], needy, data)
                ),
                None,
            )
            if given is None:
                break  # refuse_too_few says so
            where[given] = needy
    return {photo.key: where[content] for content, together in groups.items() for photo in together}


def _inseparable(photos: Sequence[Photo]) -> dict[str, list[Photo]]:
    """Photos that share a content or a ``group`` attribute, by the smallest content hash among them."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for photo in photos:
        if "group" in photo.attributes:
            parent[root(f"group {photo.attributes['group']}")] = root(photo.content_hash)
    together: dict[str, list[Photo]] = {}
    for photo in photos:
        together.setdefault(root(photo.content_hash), []).append(photo)
    return {min(photo.content_hash for photo in members): members for members in together.values()}


def _shards(split: SplitName, photos: Sequence[Photo], data: Data) -> list[ShardPlan]:
    samples = [
        Sample(safe_key(photo.key) + crop.suffix, photo, crop) for photo in photos for crop in crops(photo.height, photo.width, data)
    ]
    starts = range(0, len(samples), data.shard_samples)
    return [
        ShardPlan(f"{split}/{number:06d}.tar", split, tuple(samples[start : start + data.shard_samples]))
        for number, start in enumerate(starts)
    ]


def _refuse_equal_safe_keys(shards: Sequence[ShardPlan]) -> None:
    seen: dict[str, str] = {}
    for shard in shards:
        for sample in shard.samples:
            if sample.key in seen:
                got = f"inputs {seen[sample.key]!r} and {sample.photo.key!r} would both become {sample.key!r}"
                raise BadInput(got, "a key for each input", "rename one of them")
            seen[sample.key] = sample.photo.key
