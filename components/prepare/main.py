"""The prepare room's work: source -> ShardSet under ``<root>/shards/<fingerprint>``, its shards mapped over Ray. No torch."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from components import cluster, provenance
from components.jobs import run_elsewhere
from sr3_core import config, storage, tracking
from sr3_core.artifacts.lease import lease
from sr3_core.artifacts.shardset import MANIFEST, NEAR_DUPLICATES, REJECTED, SCHEMA_VERSION, ShardSet
from sr3_core.config import Data, Scaling
from sr3_core.data import reading, shards
from sr3_core.errors import BadInput
from sr3_core.progress import say

ROOM = "prepare"

Item = TypeVar("Item")
Result = TypeVar("Result")


class PrepareResult(NamedTuple):
    shards_uri: str
    shards_sha256: str  # of the manifest
    mlflow_run_id: str  # of the parent run


def run(
    *, section: str, scaling: str, root: str, mlflow_uri: str, run_key: str, ray_address: str = "", recipe_name: str = "prepare"
) -> PrepareResult:
    """Make the ShardSet of ``section`` (config.Data as JSON), or find it up to date. Opens the MLflow parent run of ``run_key``.

    Raises BadInput for a source, a section, a root or an MLflow server that cannot be used, and for what ``data.shards.build`` refuses.
    """
    data = config.parse(Data, section)
    scale = config.parse(Scaling, scaling)
    root = storage.absolute(root)
    source, options = reading.source_of(data)
    refuse_root_inside(root, getattr(options, "uri", None))
    mark = fingerprint(data, source.listing(options))
    storage.check_writable(root)
    uri = storage.join(root, "shards", mark)
    parent = tracking.open_parent(mlflow_uri, run_key, recipe_name)
    address = cluster.resolve(ray_address)
    if cluster.is_job_address(address) and not storage.exists(storage.join(uri, MANIFEST)):
        place = {"root": root, "mlflow_uri": mlflow_uri, "run_key": run_key, "recipe_name": recipe_name}
        arguments = {"section": data.canonical_json(), "scaling": scale.canonical_json(), **place}
        given = [text for name, value in arguments.items() for text in (f"--{name.replace('_', '-')}", value)]
        run_elsewhere(address, "components.prepare", given, fingerprint=mark, scaling=scale)
        made = ShardSet.open(uri)
        return PrepareResult(made.uri, made.manifest_sha256, parent)
    with tracking.child(mlflow_uri, parent, ROOM, mark) as tracker:
        tracker.set_tags(provenance.tags())
        tracker.log_params({"data": data.model_dump(mode="json"), "scaling": scale.model_dump(mode="json")})
        made = _finished(uri)
        if made is None:
            with lease(uri, task=ROOM) as held:
                made = _finished(uri, held=True)  # another run may have made it while this one waited
                if made is None:
                    with cluster.connect(address, workers=1, cpus_per_worker=1, room=ROOM):
                        examples = source.examples(options)
                        made = shards.build(uri, data, examples, fingerprint=mark, held=held, mapper=_over_ray)
                    say(ROOM, f"{_counts(made)} -> {uri}")
        tracker.log_metrics(_numbers(made))
        tracker.set_tags({"sr3.shards_uri": made.uri, "sr3.shards_sha256": made.manifest_sha256})
    return PrepareResult(made.uri, made.manifest_sha256, parent)


def fingerprint(data: Data, listing: str) -> str:
    """Of the section, the source's listing and the schema version: the name of the ShardSet's folder."""
    digest = hashlib.sha256(listing.encode("utf-8", "surrogateescape")).hexdigest()
    return config.fingerprint(data.canonical_json(), digest, f"shards {SCHEMA_VERSION}")


def refuse_root_inside(root: str, source_uri: str | None) -> None:
    """BadInput when ``root`` is the source or lies inside it: the next run would take our images for new photos."""
    if source_uri is None:
        return
    source = storage.absolute(source_uri)
    if storage.is_local(root) != storage.is_local(source):
        return
    inner, outer = (str(Path(uri).resolve()) if storage.is_local(uri) else uri for uri in (root, source))
    if inner == outer or inner.startswith(outer.rstrip("/") + "/"):
        raise BadInput(f"root {root} inside the source {source}", "a root outside of it", "choose another --root")


def _finished(uri: str, *, held: bool = False) -> ShardSet | None:
    """The finished ShardSet at ``uri``; None when there is none, or a damaged one: who holds the lease says so and drops its manifest."""
    if not storage.exists(storage.join(uri, MANIFEST)):
        return None
    try:
        made = ShardSet.open(uri)
        made.verify()
    except BadInput as error:
        if held:
            say(ROOM, f"{error.got}: made anew")
            storage.remove(storage.join(uri, MANIFEST))
        return None
    say(ROOM, f"up to date: {_counts(made)} in {uri}")
    return made


def _over_ray(function: Callable[[Item], Result], items: Sequence[Item], on_done: Callable[[Item, Result], None]) -> list[Result]:
    return cluster.map_tasks(function, items, on_done=on_done, name=_name)


def _name(item: object) -> str:
    if isinstance(item, shards.ShardTask):
        return f"shard {item.shard.name}"
    if isinstance(item, shards.InspectTask):
        return f"inputs {item.examples[0].uri} .. {item.examples[-1].uri}"
    return repr(item)


def _counts(made: ShardSet) -> str:
    parts: list[str] = []
    for split in config.SPLITS:
        levels = made.manifest["counts"][split]
        levels_text = ", ".join(f"{count} at {level}" for level, count in levels.items())
        parts.append(f"{split} {made.count(split)} ({levels_text})")
    rejected: dict[str, int] = made.manifest["rejected"]
    tiles: dict[str, int] = made.manifest.get("refused_tiles", {})
    if any(tiles.values()):
        parts.append(f"left out {sum(tiles.values())} tiles ({', '.join(f'{reason} {count}' for reason, count in tiles.items())})")
    near: dict[str, int] = made.manifest.get("near_duplicates", {})
    if near.get("photos"):
        parts.append(f"{near['photos']} photos in {near['groups']} groups of near-duplicates (see {NEAR_DUPLICATES})")
    profiles: dict[str, int] = made.manifest.get("profiles", {})
    told = {"other": "converted to sRGB", "broken": "broken, their pixels as they are"}
    parts += [f"colour profiles of {count} photos {told[profile]}" for profile, count in profiles.items()]
    if frames := made.manifest.get("first_frames"):
        parts.append(f"{frames} photos are the first of several pages or frames in their file; the others are left out")
    if rejected:
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(rejected.items()))
        parts.append(f"rejected {sum(rejected.values())} ({reasons}; see {REJECTED})")
    return ", ".join(parts)


def _numbers(made: ShardSet) -> dict[str, float]:
    numbers = {f"samples/{split}/{level}": count for split, levels in made.manifest["counts"].items() for level, count in levels.items()}
    rejected = {f"rejected/{reason}": count for reason, count in made.manifest["rejected"].items()}
    size = sum(shard["bytes"] for shard in made.manifest["shards"])
    optional = {kind: made.manifest.get(kind, {}) for kind in ("refused_tiles", "near_duplicates")}
    found = {f"{kind}/{name}": count for kind, counts in optional.items() for name, count in counts.items()}
    return {**numbers, **rejected, **found, "accepted": made.manifest["accepted"], "shards": len(made.manifest["shards"]), "bytes": size}
