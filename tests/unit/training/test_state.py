"""Checkpoints: verified before an older one is dropped, a damaged one falls back aloud, another recipe is refused by its keys."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sr3_core import storage
from sr3_core.errors import BadInput
from sr3_core.training.loop import train
from sr3_core.training.state import CheckpointStore
from sr3_core.training.worker import LocalWorker
from tests.plugins.tiny_objective import Memory, stage


def run(uri: str, *, keep: int = 2, **training: Any) -> list[str]:
    """Train, and what was said meanwhile."""
    said: list[str] = []
    store = CheckpointStore(uri, keep=keep, say=said.append)
    section = stage(**training)
    train(section, None, worker=LocalWorker(), checkpoints=store, batches=Memory(), say=said.append, log=lambda *_: None)
    return said


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two checkpoints of a run that has ended; for copying."""
    folder = tmp_path_factory.mktemp("ended")
    run(str(folder))
    return folder


@pytest.fixture
def done(ended: Path, tmp_path: Path) -> Path:
    """A folder with the checkpoints of a run that has ended."""
    return Path(shutil.copytree(ended, tmp_path / "done"))


def places(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir())


def newest_file(folder: Path, name: str) -> Path:
    return sorted(folder.iterdir())[-1] / name


@pytest.mark.parametrize("keep", [1, 3])
def test_the_newest_are_kept(tmp_path: Path, keep: int) -> None:
    run(str(tmp_path), keep=keep)
    assert places(tmp_path) == [24, 48, 72, 96][-keep:]
    assert not list(tmp_path.rglob("*.pt")) and not list(tmp_path.rglob("*.pkl"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("name", ["players.safetensors", "optimizers.safetensors", "ema.safetensors", "state.json"])
@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
def test_a_damaged_checkpoint_falls_back_aloud_and_the_result_is_the_same(done: Path, name: str, damage: Any) -> None:
    whole = storage.sha256(str(newest_file(done, "optimizers.safetensors")))
    damage(newest_file(done, name))
    said = run(str(done))
    if (damage, name) != (Path.unlink, "state.json"):  # without a manifest it was never a checkpoint
        assert any("checkpoint at 96 images is damaged" in line and "falling back to the one before" in line for line in said)
    assert "resuming at 72 of 96 images" in said
    assert storage.sha256(str(newest_file(done, "optimizers.safetensors"))) == whole


def test_only_damaged_ones_are_not_taken_for_none(done: Path) -> None:
    for place in done.iterdir():
        cut(place / "ema.safetensors")
    with pytest.raises(BadInput, match="only damaged checkpoints"):
        run(str(done))


def test_a_damaged_one_takes_no_place_of_those_written_before_it(done: Path) -> None:
    """Fallen back to the one before, then ended in order between the two: what was written there is what the next run goes on from."""
    whole = storage.sha256(str(newest_file(done, "optimizers.safetensors")))
    cut(newest_file(done, "ema.safetensors"))
    said: list[str] = []
    store = CheckpointStore(str(done), keep=1, say=said.append)
    for stop in (True, False):
        worker = LocalWorker(stop=lambda stop=stop: stop)
        train(stage(), None, worker=worker, checkpoints=store, batches=Memory(), say=said.append, log=lambda *_: None)
        if stop:
            assert places(done) == [84, 96]
    assert [line for line in said if "resuming" in line] == ["resuming at 72 of 96 images", "resuming at 84 of 96 images"]
    assert places(done) == [96] and storage.sha256(str(newest_file(done, "optimizers.safetensors"))) == whole


def test_another_recipe_is_refused_by_its_keys(done: Path) -> None:
    with pytest.raises(BadInput) as refused:
        run(str(done), seed=1, optimizer={"learning_rate": 2e-3})
    assert "training.optimizer.learning_rate (0.001 there, 0.002 here), training.seed (0 there, 1 here);" in str(refused.value)


def test_a_newer_schema_is_refused(done: Path) -> None:
    place = newest_file(done, "state.json")
    place.write_text(json.dumps({**json.loads(place.read_text()), "schema": 2}))
    with pytest.raises(BadInput, match="schema 2; allowed: schema 1 or older"):
        run(str(done))


def test_another_number_of_threads_is_said(done: Path) -> None:
    torch.set_num_threads(2)
    try:
        said = run(str(done))
    finally:
        torch.set_num_threads(1)
    assert any("another environment (threads 1 -> 2)" in line for line in said)


def test_a_remote_store(tmp_path: Path) -> None:
    """Any fsspec URI: the same bytes, and a resume from there."""
    uri = f"memory://{tmp_path.name}/checkpoints"
    run(uri, images=48)
    run(str(tmp_path), images=48)
    assert storage.sha256(f"{uri}/000000000048/optimizers.safetensors") == storage.sha256(
        str(newest_file(tmp_path, "optimizers.safetensors"))
    )
    assert run(uri, images=48) == ["resuming at 48 of 48 images"]


def test_a_full_disk_in_the_middle_of_a_save_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish = storage.publish_file

    def full(local: Path, uri: str) -> None:
        if "000000000072" in uri and local.name != "ema.safetensors":
            raise BadInput("no space left", "a disk with room", "make room")
        publish(local, uri)

    with monkeypatch.context() as patched:
        patched.setattr(storage, "publish_file", full)
        with pytest.raises(BadInput, match="no space left"):
            run(str(tmp_path))
    assert places(tmp_path) == [24, 48, 72]  # the last without its manifest
    assert run(str(tmp_path))[0] == "resuming at 48 of 96 images"
    assert places(tmp_path) == [72, 96]
