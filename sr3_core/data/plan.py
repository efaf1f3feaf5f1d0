"""What becomes of each input: looked at once, accepted or rejected by reason, put into a split and a shard. Writes nothing."""

import hashlib
import json
import os
import re
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from sr3_core import images
from sr3_core.config import Data, SplitName
from sr3_core.data import levels, near, reading
from sr3_core.data.degrade import Crop, crops, cut, detail, top_level
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
    flat: dict[str, float] = field(default_factory=dict[str, float])  # suffix of a tile below the minimum detail -> its detail
    near_hash: str = ""  # perceptual hash, 16 hex digits, where near-duplicates are looked for
    profile: str = ""  # "other" or "broken" where its colours come with such a profile: images.Header
    frames: int = 1  # pages of a TIFF or frames of an animation, of which the first is used
    member: str = ""  # this and ``place`` as in Example: where a container has it
    place: str = ""
    kept: str = ""  # the file below the ShardSet's folder where its levels wait for their shard, where they do: levels.Keeper
    places: dict[str, list[Any]] = field(default_factory=dict[str, list[Any]])  # suffix of a crop -> levels.Place in it


@dataclass(frozen=True)
class Rejected:
    """A refused input, or a refused tile of an accepted one, and why: a line of rejected.jsonl. ``reason`` is counted, ``detail`` is
    for the one who mends it."""

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
class Renamed:
    """An input, or a sample of it, whose key another one has too, under its new key: a line of renamed.jsonl."""

    key: str
    was: str
    uri: str


@dataclass(frozen=True)
class Near:
    """A photo that looks like another of its ``group`` (the group's first key): a line of near_duplicates.jsonl.

    ``distance`` is to ``nearest``, in bits of the perceptual hash; ``split`` None for a photo that was rejected for it.
    """

    key: str
    uri: str
    split: SplitName | None
    group: str
    nearest: str
    distance: int


@dataclass(frozen=True)
class Plan:
    """Everything that is to be written, a function of the photos and the section alone."""

    shards: tuple[ShardPlan, ...]
    rejected: tuple[Rejected, ...]  # inputs
    accepted: int  # photos
    flat: tuple[Rejected, ...] = ()  # tiles of accepted photos
    near: tuple[Near, ...] = ()
    renamed: tuple[Renamed, ...] = ()  # samples


def distinct_keys(examples: Iterable[Example]) -> tuple[list[Example], list[Renamed]]:
    """The examples sorted by key, each with a key of its own, and those whose key is new.

    Inputs of one key get their file's ending after it (``a.jpg`` and ``a.png``), or where that does not tell them apart 8 hex digits of
    the hash of what differs in their URIs. One whose attributes are no JSON values gets a reason. BadInput when there is no example, or
    one input is listed twice.
    """
    ordered = sorted(map(_with_json, examples), key=lambda example: (example.key, example.uri))
    if not ordered:
        raise BadInput("a source without photos", "at least one", "check data.options")
    together: dict[str, list[Example]] = {}
    for example in ordered:
        together.setdefault(example.key, []).append(example)
    taken = set(together)
    made: list[Example] = []
    renamed: list[Renamed] = []
    for key, same in together.items():
        if len(same) == 1:
            made += same
            continue
        uris = [example.uri for example in same]
        if len(set(uris)) < len(uris):
            got = f"two inputs with one key {key!r} and one location {next(uri for uri in uris if uris.count(uri) > 1)}"
            raise BadInput(got, "every input once", "mend data.options or the source")
        shared = len(os.path.commonprefix(uris))  # noqa: RUF071 - text to leave out, not a path
        keys = [key + os.path.splitext(uri)[1] for uri in uris]
        if len(set(keys)) < len(keys) or taken & set(keys):
            keys = [f"{key}-{_digest(uri[shared:])}" for uri in uris]
        if len(set(keys)) < len(keys) or taken & set(keys):
            raise BadInput(f"inputs with one key {key!r}: {' and '.join(uris[:2])}", "a key for each input", "rename one of them")
        taken |= set(keys)
        made += [replace(example, key=new) for example, new in zip(same, keys, strict=True)]
        renamed += [Renamed(new, key, example.uri) for example, new in zip(same, keys, strict=True)]
    return sorted(made, key=lambda example: example.key), renamed


def inspect(example: Example, data: Data) -> Photo:
    """What ``look`` says of one input, without its pixels."""
    return look(example, data)[0]


def look(example: Example, data: Data) -> tuple[Photo, tuple[bytes, images.Array] | None]:
    """Read and decode one input of the source that ``data`` names: what is known of it, and its file and its pixels.

    What is wrong with it is its ``reason``, and then nothing else is given; only a store that does not answer raises (Failed).
    """
    known: dict[str, Any] = {name: getattr(example, name) for name in ("key", "uri", "split", "label", "member", "place")}
    photo = Photo(**known, attributes=dict(example.attributes))
    if example.reason:
        return _refused(photo, example.reason, example.detail), None
    try:
        content = reading.read(data, example)
        header, array = levels.decoded(content, data)
    except FileNotFoundError:
        return _refused(photo, "missing", "it was listed, but is not there"), None
    except IsADirectoryError:
        return _refused(photo, "not a file", ""), None
    except PermissionError as error:
        return _refused(photo, "no read permission", error.strerror or str(error)), None
    except images.BadImage as error:
        return _refused(photo, error.reason, error.detail), None
    seen = replace(
        photo,
        content_hash=hashlib.sha256(content).hexdigest(),
        height=header.height,
        width=header.width,
        flat=flat_tiles(array, data),
        profile=header.profile if header.profile in ("other", "broken") else "",
        frames=header.frames,
        near_hash="" if data.near_duplicates is None else images.perceptual_hash(array),
    )
    return seen, (content, array)


def flat_tiles(array: images.Array, data: Data) -> dict[str, float]:
    """Suffix -> detail of the tiles of an upright (H, W, C) photo that have less than ``data.tiles.min_detail``."""
    if data.tiles.min_detail <= 0:
        return {}
    measured = {crop.suffix: detail(cut(array, crop)) for crop in crops(array.shape[0], array.shape[1], data)}
    return {suffix: round(value, 3) for suffix, value in measured.items() if value < data.tiles.min_detail}


def group_of(photo: Photo) -> str:
    """What its source says that it shows (the attribute ``group``); empty where the source says nothing."""
    group = photo.attributes.get("group")
    return "" if group is None else str(group)


def make(photos: Sequence[Photo], data: Data) -> Plan:
    """Splits and shards for ``photos``, which are sorted by key.

    A split published by the source is kept; an exact or near copy of a held-out photo in a less held-out split is rejected there, and so
    is a photo of its group. By content hash, equal files have equal splits; a split short of its minimum takes photos from the one with
    most to spare, by hash order. Raises BadInput when a published split is asked for and not there. Limits are ``refuse_too_few``'s.
    """
    rejected = [_as_rejected(photo) for photo in photos if photo.reason]
    good = [photo for photo in photos if not photo.reason]
    flat_photos = {photo.key: _flat(photo, data) for photo in good if _flat(photo, data)}
    rejected += [Rejected(photo.key, photo.uri, "flat photo", flat_photos[photo.key]) for photo in good if photo.key in flat_photos]
    good = [photo for photo in good if photo.key not in flat_photos]
    pairs = near.close_pairs((int(photo.near_hash, 16) for photo in good), data.near_duplicates) if data.near_duplicates is not None else {}
    published = data.split.by == "published" or (data.split.by == "auto" and all(photo.split is not None for photo in good))
    splits = _published(good, pairs, rejected) if published else _by_content_hash(good, pairs, data)
    accepted: dict[SplitName, list[Photo]] = {split: [] for split in SPLITS}
    flat: list[Rejected] = []
    for photo in good:
        split = splits.get(photo.key)
        if split is None:
            continue
        if not _fits(photo, split, data):
            need = max(data.required(split))
            text = f"{photo.width} x {photo.height}; {split} needs {need} x {need}"
            rejected.append(Rejected(photo.key, photo.uri, "too small", text))
        else:
            accepted[split].append(photo)
            least = f"at least {data.tiles.min_detail:g}, data.tiles.min_detail"
            flat += [Rejected(photo.key + tile, photo.uri, "flat tile", f"{value}; {least}") for tile, value in photo.flat.items()]
    shards, renamed = _shards(accepted, data)
    rejected.sort(key=lambda item: item.key)
    alike = _near(good, pairs, splits) if data.near_duplicates is not None else ()
    return Plan(shards, tuple(rejected), sum(map(len, accepted.values())), tuple(flat), alike, renamed)


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


def profiles_of(plan: Plan) -> dict[str, int]:
    """How many accepted photos have a colour profile that was followed ("other") or could not be ("broken")."""
    profiles = {sample.photo.key: sample.photo.profile for shard in plan.shards for sample in shard.samples}
    return dict(sorted(Counter(profile for profile in profiles.values() if profile).items()))


def num_first_frames(plan: Plan) -> int:
    """How many accepted photos are the first page or frame of several in their file."""
    return len({sample.photo.key for shard in plan.shards for sample in shard.samples if sample.photo.frames > 1})


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
    return f"{slug}-{_digest(key)}" if slug else _digest(key)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]


def _with_json(example: Example) -> Example:
    try:
        json.dumps(dict(example.attributes), allow_nan=False)
    except (TypeError, ValueError) as error:
        known = (example.reason, example.detail) if example.reason else ("attributes that are no JSON values", str(error))
        return replace(example, attributes={}, reason=known[0], detail=known[1])
    return example


def _refused(photo: Photo, reason: str, detail: str) -> Photo:
    return replace(photo, reason=reason, detail=detail)


def _as_rejected(photo: Photo) -> Rejected:
    return Rejected(photo.key, photo.uri, photo.reason, photo.detail)


def _flat(photo: Photo, data: Data) -> str:
    """What to say of a photo all of whose tiles are flat; "" for others."""
    if not photo.flat or len(photo.flat) < len(crops(photo.height, photo.width, data)):
        return ""
    return f"none of its {len(photo.flat)} tiles has more detail than {max(photo.flat.values())}; at least {data.tiles.min_detail:g}"


def _fits(photo: Photo, split: SplitName, data: Data) -> bool:
    return min(photo.height, photo.width) >= max(data.required(split))


def _published(photos: Sequence[Photo], pairs: Mapping[tuple[int, int], int], rejected: list[Rejected]) -> dict[str, SplitName]:
    """Split by key; exact and near copies and photos of one group that would cross are added to ``rejected`` and left out."""
    for photo in photos:
        if photo.split is None:
            got = f"{photo.uri} has no published split"
            raise BadInput(
                got,
                f"a split of {', '.join(SPLITS)} for each photo",
                "set data.split.by=content_hash (or auto), or sort the photos into such folders",
            )
    copies = _most_held_out((photo.content_hash, photo) for photo in photos)
    looks = _most_held_out((int(photo.near_hash, 16), photo) for photo in photos if photo.near_hash)
    scenes = _most_held_out((group_of(photo), photo) for photo in photos if group_of(photo))
    alike = dict(looks)
    for first, second in pairs:
        for one, other in ((first, second), (second, first)):
            if _rank(looks[other]) > _rank(alike[one]):
                alike[one] = looks[other]
    splits: dict[str, SplitName] = {}
    for photo in photos:
        copy = copies[photo.content_hash]
        lookalike = alike[int(photo.near_hash, 16)] if photo.near_hash else photo
        scene = scenes.get(group_of(photo), photo)
        if _rank(photo) < _rank(copy):
            rejected.append(Rejected(photo.key, photo.uri, "copy of a held-out photo", f"equal to {copy.key} of split {copy.split}"))
        elif _rank(photo) < _rank(lookalike):
            text = f"looks like {lookalike.key} of split {lookalike.split}"
            rejected.append(Rejected(photo.key, photo.uri, "near copy of a held-out photo", text))
        elif _rank(photo) < _rank(scene):
            text = f"{group_of(photo)}, as {scene.key} of split {scene.split}"
            rejected.append(Rejected(photo.key, photo.uri, "group of a held-out photo", text))
        else:
            splits[photo.key] = cast(SplitName, photo.split)
    return splits


def _rank(photo: Photo) -> int:
    return SPLITS.index(cast(SplitName, photo.split))


def _most_held_out(photos: Iterable[tuple[Any, Photo]]) -> dict[Any, Photo]:
    """What photos may share -> the most held-out one that has it, the first of several."""
    holder: dict[Any, Photo] = {}
    for shared, photo in photos:
        if shared not in holder or _rank(photo) > _rank(holder[shared]):
            holder[shared] = photo
    return holder


def _by_content_hash(photos: Sequence[Photo], pairs: Mapping[tuple[int, int], int], data: Data) -> dict[str, SplitName]:
    """Split by key. The hash as a number in [0, 1): the lowest share is test, the next val, the rest train.

    What must not be parted - equal contents, near copies, and photos that their source says show one scene - goes by its smallest hash.
    """
    groups = _inseparable(photos, pairs)
    ordered = sorted(groups)
    where: dict[str, SplitName] = {}
    for content in ordered:
        part = int(content[:16], 16) / 2**64
        where[content] = "test" if part < data.split.test else "val" if part < data.split.test + data.split.val else "train"

    need = {split: max(data.required(split)) for split in SPLITS}
    side = {content: min(together[0].height, together[0].width) for content, together in groups.items()}
    spare = {split: -data.split.minimum.get(split, 0) for split in SPLITS}
    for content, split in where.items():
        spare[split] += len(groups[content]) if side[content] >= need[split] else 0
    for needy in SPLITS:
        if spare[needy] >= 0:
            continue
        ready = {
            split: deque(content for content in ordered if where[content] == split and side[content] >= need[needy]) for split in SPLITS
        }
        while spare[needy] < 0:
            donors: list[SplitName] = sorted((split for split in SPLITS if spare[split] > 0), key=lambda split: spare[split], reverse=True)
            for donor in donors:
                while ready[donor] and len(groups[ready[donor][0]]) > spare[donor]:
                    ready[donor].popleft()  # for good: what a donor can spare only falls
            giving = next((donor for donor in donors if ready[donor]), None)
            if giving is None:
                break  # refuse_too_few says so
            given = ready[giving].popleft()
            where[given] = needy
            spare[needy] += len(groups[given])
            spare[giving] -= len(groups[given]) if side[given] >= need[giving] else 0
    return {photo.key: where[content] for content, together in groups.items() for photo in together}


def _inseparable(photos: Sequence[Photo], pairs: Mapping[tuple[int, int], int]) -> dict[str, list[Photo]]:
    """Photos that share a content, a look or a ``group`` attribute, by the smallest content hash among them."""
    links = [(photo.content_hash, f"group {group_of(photo)}") for photo in photos if group_of(photo)]
    links += [(photo.content_hash, f"look {int(photo.near_hash, 16)}") for photo in photos if photo.near_hash]
    links += [(f"look {first}", f"look {second}") for first, second in pairs]
    representative = near.joined([*((photo.content_hash,) for photo in photos), *links])
    together: dict[str, list[Photo]] = {}
    for photo in photos:
        together.setdefault(representative[photo.content_hash], []).append(photo)
    return {min(photo.content_hash for photo in members): members for members in together.values()}


def _near(photos: Sequence[Photo], pairs: Mapping[tuple[int, int], int], splits: Mapping[str, SplitName]) -> tuple[Near, ...]:
    """Every photo that looks like one of another content, by group."""
    looks: dict[int, dict[str, Photo]] = {}  # hash -> content -> its first photo
    for photo in photos:
        looks.setdefault(int(photo.near_hash, 16), {}).setdefault(photo.content_hash, photo)
    group_of = near.joined([*((look,) for look in looks), *pairs])
    first: dict[int, str] = {}
    for look, contents in looks.items():
        keys = [photo.key for photo in contents.values()]
        first[group_of[look]] = min([*keys, first[group_of[look]]] if group_of[look] in first else keys)
    closest = near.nearest(pairs)
    found: list[Near] = []
    for look, contents in looks.items():
        for photo in contents.values():
            others = [other.key for other in contents.values() if other is not photo]
            if others:
                distance, nearest = 0, others[0]
            elif look in closest:
                distance, nearest = closest[look][0], next(iter(looks[closest[look][1]].values())).key
            else:
                continue
            found.append(Near(photo.key, photo.uri, splits.get(photo.key), first[group_of[look]], nearest, distance))
    return tuple(sorted(found, key=lambda item: (item.group, item.key)))


def _shards(accepted: Mapping[SplitName, Sequence[Photo]], data: Data) -> tuple[tuple[ShardPlan, ...], tuple[Renamed, ...]]:
    samples = {
        split: [
            Sample(safe_key(photo.key) + crop.suffix, photo, crop)
            for photo in photos
            for crop in crops(photo.height, photo.width, data)
            if crop.suffix not in photo.flat
        ]
        for split, photos in accepted.items()
    }
    counts = Counter(sample.key for some in samples.values() for sample in some)
    renamed: list[Renamed] = []
    shards: list[ShardPlan] = []
    for split in SPLITS:
        some = samples[split]
        own: list[Sample] = []
        for sample in some:
            key = sample.key
            if counts[key] > 1:  # two inputs became one name, or a photo is named as another's tile
                key = f"{key[:_SLUG_CHARACTERS]}-{_digest(sample.photo.key + chr(0) + sample.crop.suffix)}"
                if key in counts:
                    got = f"inputs that would become {sample.key!r}, {sample.photo.key!r} among them, and another {key!r}"
                    raise BadInput(got, "a key for each input", "rename one of them")
                counts[key] += 1
                renamed.append(Renamed(key, sample.key, sample.photo.uri))
            own.append(replace(sample, key=key))
        shards += [
            ShardPlan(f"{split}/{number:06d}.tar", split, tuple(own[start : start + data.shard_samples]))
            for number, start in enumerate(range(0, len(own), data.shard_samples))
        ]
    return tuple(shards), tuple(renamed)
