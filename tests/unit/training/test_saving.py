"""Checkpoints are written beside the training: what is saved is the state of its moment, and no failure of the writer is lost."""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from sr3_core import storage
from sr3_core.errors import BadInput, Failed
from sr3_core.training.loop import train
from sr3_core.training.state import Checkpoint, CheckpointStore, Snapshot
from sr3_core.training.worker import LocalWorker
from tests.plugins.tiny_objective import Memory, stage


class Gated(CheckpointStore):
    """Writes only once ``gate`` is open; ``written`` is set after each save, whatever came of it."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri, keep=2, say=lambda text: None)
        self.gate, self.written = threading.Event(), threading.Event()

    def save(self, snapshot: Snapshot, facts: Mapping[str, Any]) -> Checkpoint:
        assert self.gate.wait(60)
        try:
            return super().save(snapshot, facts)
        finally:
            self.written.set()


def run(store: CheckpointStore, *, after_step: Callable[[int], bool], **training: Any) -> list[int]:
    """Train; the images seen after each step. ``after_step(images_seen)`` says whether to stop there."""
    seen: list[int] = []

    def stop() -> bool:
        seen.append(12 * (len(seen) + 1))
        return after_step(seen[-1])

    section = stage(options={"width": 8}, **training)
    train(section, None, worker=LocalWorker(stop=stop), checkpoints=store, batches=Memory(), say=lambda text: None, log=lambda *_: None)
    return seen


def state_of(folder: Path, images_seen: int) -> dict[str, str]:
    place = folder / f"{images_seen:012d}"
    return {path.name: storage.sha256(str(path)) for path in place.glob("*.safetensors")}


def test_training_goes_on_while_the_state_of_its_moment_is_written(tmp_path: Path) -> None:
    slow = Gated(str(tmp_path / "slow"))

    def open_late(images_seen: int) -> bool:
        if images_seen == 60:  # two steps after the checkpoint at 36 was begun
            assert not list(tmp_path.glob("slow/*"))
            slow.gate.set()
        return False

    run(slow, after_step=open_late, checkpoint_images=36, images=72)
    whole = CheckpointStore(str(tmp_path / "stopped"), keep=1, say=lambda text: None)
    run(whole, after_step=lambda seen: seen == 36, images=72)
    assert state_of(tmp_path / "slow", 36) == state_of(tmp_path / "stopped", 36) != {}


def test_what_goes_wrong_in_the_writer_ends_the_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(local: Path, uri: str) -> None:
        raise BadInput("no space left", "a disk with room", "make room")

    monkeypatch.setattr(storage, "publish_file", full)
    store = Gated(str(tmp_path))
    store.gate.set()
    seen: list[int] = []

    def after_step(images_seen: int) -> bool:
        seen.append(images_seen)
        return images_seen > 24 and not store.written.wait(60)

    with pytest.raises(BadInput, match="no space left"):
        run(store, after_step=after_step)
    assert seen == [12, 24, 36]


def test_the_error_of_a_step_is_told_before_the_writers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(local: Path, uri: str) -> None:
        raise BadInput("no space left", "a disk with room", "make room")

    monkeypatch.setattr(storage, "publish_file", full)
    store = Gated(str(tmp_path))

    def after_step(images_seen: int) -> bool:
        if images_seen == 36:
            store.gate.set()
            raise Failed("the step")
        return False

    with pytest.raises(Failed, match="the step") as raised:
        run(store, after_step=after_step)
    assert "no space left" in raised.value.__notes__[0]


def test_a_checkpoint_that_does_not_read_back_costs_no_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish = storage.publish_file

    def lossy(local: Path, uri: str) -> None:
        publish(local, uri)
        if "000000000048/ema" in uri:
            place = storage.local_path(uri)
            place.write_bytes(place.read_bytes()[:-1])

    monkeypatch.setattr(storage, "publish_file", lossy)
    store = CheckpointStore(str(tmp_path), keep=1, say=lambda text: None)
    with pytest.raises(Failed, match=r"does not read back as it was written \(ema.safetensors has .* bytes\); the one before is kept"):
        run(store, after_step=lambda seen: False)
    newest = store.latest()
    assert newest is not None and newest.images_seen == 24
