"""Checkpoints in object stores, written beside the training: resumed from there, and nothing lost when the store fails in a save."""

from pathlib import Path
from typing import Any

import pytest

from sr3_core import storage
from sr3_core.errors import Failed
from sr3_core.training.loop import train
from sr3_core.training.state import CheckpointStore
from sr3_core.training.worker import LocalWorker
from tests.plugins.tiny_objective import Memory, stage
from tests.stores import Store


def run(uri: str, **training: Any) -> list[str]:
    """Train, and what was said meanwhile."""
    said: list[str] = []
    store = CheckpointStore(uri, keep=2, say=said.append)
    section = stage(options={"width": 8}, **training)
    train(section, None, worker=LocalWorker(), checkpoints=store, batches=Memory(), say=said.append, log=lambda *_: None)
    return said


def weights(uri: str, images_seen: int) -> list[str]:
    names = ("players", "optimizers", "ema")
    return [storage.sha256(f"{uri}/{images_seen:012d}/{name}.safetensors") for name in names]


def whole(uri: str) -> list[int]:
    places = [info.path_relative.split("/") for info in storage.list_files(uri)]
    return sorted(int(place[0]) for place in places if place[1:] == ["state.json"])


def test_what_is_saved_is_what_a_run_goes_on_from(object_store: Store, tmp_path: Path) -> None:
    run(object_store.uri)
    assert whole(object_store.uri) == [72, 96]
    storage.remove(f"{object_store.uri}/000000000096/state.json")  # as a kill in the middle of the last save leaves it
    assert run(object_store.uri)[0] == "resuming at 72 of 96 images"
    run(str(tmp_path))
    assert weights(object_store.uri, 96) == weights(str(tmp_path), 96)


def test_a_store_that_fails_in_the_middle_of_a_save_costs_nothing(object_store: Store, tmp_path: Path) -> None:
    object_store.fail(503, method="POST" if object_store.kind == "gs" else "PUT", where="000000000072/optimizers")
    with pytest.raises(Failed, match="000000000072"):
        run(object_store.uri)
    assert whole(object_store.uri) == [24, 48]
    assert object_store.proxy is not None
    object_store.proxy.faults.clear()
    assert run(object_store.uri)[0] == "resuming at 48 of 96 images"
    run(str(tmp_path))
    assert weights(object_store.uri, 96) == weights(str(tmp_path), 96)


def test_a_store_that_fails_now_and_then_is_asked_again(object_store: Store, tmp_path: Path) -> None:
    assert object_store.proxy is not None
    object_store.proxy.every = 7
    try:
        run(object_store.uri)
    finally:
        object_store.proxy.every = 0
    run(str(tmp_path))
    assert whole(object_store.uri) == [72, 96] and weights(object_store.uri, 96) == weights(str(tmp_path), 96)
