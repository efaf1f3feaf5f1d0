"""Artifacts on every kind of storage: a lease, a bucket of photos made into a ShardSet, two writers of one folder."""

from pathlib import Path

import numpy as np
import pytest

from sr3_core import images, remote, storage
from sr3_core.artifacts.lease import LEASE, lease
from sr3_core.artifacts.shardset import MANIFEST, ShardSet
from sr3_core.config import Data, Stage
from sr3_core.data import shards
from sr3_core.data.loader import MicroBatches
from sr3_core.data.sources import folder
from sr3_core.errors import BadInput, Failed
from tests.stores import Store

DATA = Data.model_validate({"source": "folder", "levels": (8, 16)})


def put_photos(uri: str) -> None:
    for index in range(5):
        pixels = np.random.default_rng(index).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        storage.write_bytes(f"{uri}/photo {index}.png", images.encode(pixels))


def build(source: str, target: str) -> ShardSet:
    return shards.build(target, DATA, list(folder.examples(folder.Options(uri=source))), fingerprint="f")


def test_a_lease_is_held_and_released(store: Store) -> None:
    with lease(store.uri, task="me") as held:
        with pytest.raises(BadInput, match="in use by"), lease(store.uri, task="you", wait_seconds=0):
            pass
        assert storage.exists(storage.join(store.uri, LEASE))
        held.check()
    assert not storage.exists(storage.join(store.uri, LEASE))


def test_a_lease_taken_by_another_is_noticed_before_publishing(store: Store) -> None:
    put_photos(f"{store.uri}/in")
    target = f"{store.uri}/out"
    with lease(target, task="me") as held:
        mine = storage.read_json(storage.join(target, LEASE))
        storage.write_json(storage.join(target, LEASE), {**mine, "token": "another"})
        with pytest.raises(Failed, match="lost its lease"):
            shards.build(target, DATA, list(folder.examples(folder.Options(uri=f"{store.uri}/in"))), fingerprint="f", held=held)
    assert not storage.exists(storage.join(target, MANIFEST))


def test_a_bucket_of_photos_becomes_a_shard_set_in_the_bucket(store: Store, tmp_path: Path) -> None:
    put_photos(f"{store.uri}/in")
    made = build(f"{store.uri}/in", f"{store.uri}/out")
    made.verify()
    assert made.image("train", 0, 16).shape == (16, 16, 3)
    storage.download_folder(f"{store.uri}/in", tmp_path / "in")
    assert build(str(tmp_path / "in"), str(tmp_path / "out")).manifest_sha256 == made.manifest_sha256
    storage.remove(f"{store.uri}/out", recursive=True)
    assert storage.list_files(f"{store.uri}/out") == []


def test_a_shard_set_that_changed_or_went_is_named(store: Store) -> None:
    put_photos(f"{store.uri}/in")
    made = build(f"{store.uri}/in", f"{store.uri}/out")
    shard = storage.join(made.uri, made.sample("train", 0).shard)
    content = storage.read_bytes(shard)
    storage.write_bytes(shard, content + b"x")
    with pytest.raises(BadInput, match=f"shard {shard} changed"):
        made.verify()
    storage.remove(shard)
    with pytest.raises(BadInput, match=f"shard {shard} is missing"):
        made.verify()
    with pytest.raises(BadInput, match=f"shard {shard} is missing"):
        made.image("train", 0, 16)
    storage.remove(storage.join(made.uri, MANIFEST))
    with pytest.raises(BadInput, match=r"no manifest\.json in"):
        ShardSet.open(made.uri)


def test_a_shard_set_is_made_through_a_store_that_throttles_and_breaks_connections(object_store: Store, tmp_path: Path) -> None:
    """Every fifth request goes wrong, in turn by 503, 429 and a reset; the bytes are those of a calm day."""
    put_photos(f"{object_store.uri}/in")
    storage.download_folder(f"{object_store.uri}/in", tmp_path / "in")
    proxy = object_store.proxy
    assert proxy is not None
    proxy.every, met = 5, len(proxy.requests)
    try:
        made = build(f"{object_store.uri}/in", f"{object_store.uri}/out")
        made.verify()
    finally:
        proxy.every = 0
    assert len(proxy.requests) - met > 30
    assert made.manifest_sha256 == build(str(tmp_path / "in"), str(tmp_path / "out")).manifest_sha256
    written = {info.path_relative for info in storage.list_files(made.uri)}
    assert written == {info.path_relative for info in storage.list_files(str(tmp_path / "out"))}


def test_a_store_that_goes_away_while_training_data_is_read_names_the_shard(object_store: Store) -> None:
    put_photos(f"{object_store.uri}/in")
    made = build(f"{object_store.uri}/in", f"{object_store.uri}/out")
    shard = storage.join(made.uri, made.sample("train", 0).shard)
    object_store.fail(503, where="000000.tar")
    with pytest.raises(Failed, match=rf"{shard}: [^\n]*\(attempt 3 of 3\)"):
        made.image("train", 0, 16)
    object_store.fail(403, where="000000.tar")
    assert object_store.proxy is not None
    object_store.proxy.faults.pop(0)
    with pytest.raises(BadInput, match=f"shard {shard} may not be read"):
        made.image("train", 0, 16)


def test_a_loader_outlives_a_passing_fault_and_names_the_shard_that_stays_away(
    object_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its threads read through a store of which every third request fails; then through one that does not answer."""
    put_photos(f"{object_store.uri}/in")
    made = build(f"{object_store.uri}/in", f"{object_store.uri}/out")
    counts = {"images": 8, "global_batch": 2, "micro_batch": 2, "checkpoint_images": 8, "log_images": 8}
    plugins = {"model": {"name": "unet"}, "objective": {"name": "diffusion"}}
    stage = Stage.model_validate({"name": "x2", "low": 8, "high": 16, **plugins, "training": {**counts, "crop": 8}})
    calm = [batch.high.numpy() for batch in MicroBatches(made, stage).prefetch((first, 2) for first in range(0, 12, 2))]
    proxy = object_store.proxy
    assert proxy is not None
    monkeypatch.setattr(remote, "ATTEMPTS", 6)  # several threads share the faults: one of them may meet some in a row
    proxy.every, met = 3, len(proxy.requests)
    try:
        cold = MicroBatches(ShardSet.open(made.uri, cache_bytes=0), stage)
        rough = [batch.high.numpy() for batch in cold.prefetch((first, 2) for first in range(0, 12, 2))]
    finally:
        proxy.every = 0
    assert len(proxy.requests) - met > 12
    assert all(np.array_equal(one, other) for one, other in zip(calm, rough, strict=True))
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    object_store.fail(503, where="000000.tar")
    with pytest.raises(Failed, match=rf"{made.uri}/train/000000\.tar: [^\n]*\(attempt 2 of 2\)"):
        list(cold.prefetch([(0, 2)]))
