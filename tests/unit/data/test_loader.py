"""The loader's stream: a pure function of (seed, index, count), pairs that fit, every draw by sample index, a clean background thread."""

import itertools
import json
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sr3_core import images
from sr3_core.artifacts.shardset import ShardSet
from sr3_core.config import Data, Stage
from sr3_core.data.loader import Batch, MicroBatches
from sr3_core.data.shards import build
from sr3_core.data.sources import folder
from sr3_core.errors import BadInput

THREAD = "sr3-prefetch"


def stage(*, low: int | None = 16, high: int = 64, crop: int | None = 32, seed: int = 5, channels: int = 3, **augment: Any) -> Stage:
    return Stage.model_validate(
        {
            "name": "small",
            "low": low,
            "high": high,
            "channels": channels,
            "model": {"name": "unet"},
            "objective": {"name": "diffusion"},
            "training": {
                "images": 8,
                "global_batch": 8,
                "micro_batch": 4,
                "crop": crop,
                "augment": {"flip": False, **augment},
                "checkpoint_images": 8,
                "log_images": 8,
                "seed": seed,
            },
        }
    )


EVERYTHING = {"flip": True, "rotate90": True, "zoom": 3.0}
AUGMENTS: list[dict[str, Any]] = [{}, EVERYTHING]


def joined(batches: list[Batch]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any], tuple[str, ...]]:
    low = torch.cat([batch.low for batch in batches if batch.low is not None])
    keys = tuple(key for batch in batches for key in batch.keys)
    index = np.concatenate([batch.sample_index for batch in batches])
    return torch.cat([batch.high for batch in batches]).numpy(), low.numpy(), index, keys


def assert_same(left: list[Batch], right: list[Batch]) -> None:
    for one, other in zip(joined(left), joined(right), strict=True):
        np.testing.assert_array_equal(one, other)


def pixels(batch: Batch) -> list[np.ndarray[Any, Any]]:
    return [images.from_unit(high) for high in batch.high.numpy()]


def test_shapes_ranges_and_keys(shards: ShardSet) -> None:
    batch = MicroBatches(shards, stage(**EVERYTHING)).batch(3, 4)
    assert batch.low is not None
    assert batch.high.shape == (4, 3, 32, 32) and batch.low.shape == (4, 3, 8, 8)
    assert batch.high.dtype == batch.low.dtype == torch.float32
    assert batch.high.is_contiguous() and batch.low.is_contiguous()
    assert batch.high.min() >= -1 and batch.high.max() <= 1 and batch.high.std() > 0.05
    assert batch.sample_index.tolist() == [3, 4, 5, 6] and batch.sample_index.dtype == np.int64
    assert set(batch.keys) <= set(shards.keys("train")) and len(batch.keys) == 4
    assert batch.labels is None


@pytest.mark.parametrize("augment", AUGMENTS)
def test_a_batch_does_not_depend_on_what_was_read_before(shards: ShardSet, augment: dict[str, Any]) -> None:
    walked = MicroBatches(shards, stage(**augment))
    first_walk = [walked.batch(first, 4) for first in range(0, 24, 4)]
    assert_same(first_walk, [walked.batch(first, 4) for first in range(0, 24, 4)])
    assert_same(first_walk[4:], [MicroBatches(shards, stage(**augment)).batch(16, 8)])
    nothing_kept = MicroBatches(ShardSet.open(shards.uri, cache_bytes=0), stage(**augment))
    assert_same(first_walk, [nothing_kept.batch(index, 1) for index in range(24)])


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_stream_is_the_same_for_any_number_of_workers(shards: ShardSet, workers: int) -> None:
    """Each worker reads its own slices with its own loader; together they are the stream of one."""
    micro_batch, steps = 2, 6 // workers
    loaders = [MicroBatches(shards, stage(**EVERYTHING)) for _ in range(workers)]
    streams = [
        loader.prefetch([((step * workers + rank) * micro_batch, micro_batch) for step in range(steps)])
        for rank, loader in enumerate(loaders)
    ]
    together = [batch for step_batches in zip(*streams, strict=True) for batch in step_batches]
    assert_same(together, [MicroBatches(shards, stage(**EVERYTHING)).batch(0, 12)])


def test_every_photo_comes_once_an_epoch(shards: ShardSet) -> None:
    loader = MicroBatches(shards, stage())
    for epoch in range(3):
        keys = loader.batch(epoch * loader.num_samples, loader.num_samples).keys
        assert sorted(keys) == sorted(shards.keys("train"))


def test_seeds_and_indices_give_other_crops(shards: ShardSet) -> None:
    one_photo = MicroBatches(shards, stage(seed=1))
    high = joined([one_photo.batch(0, 64)])[0]
    assert len({crop.tobytes() for crop in high}) > 48
    assert not np.array_equal(high, joined([MicroBatches(shards, stage(seed=2)).batch(0, 64)])[0])


def test_without_zoom_a_pair_is_the_same_place_of_two_stored_levels(shards: ShardSet) -> None:
    batch = MicroBatches(shards, stage(high=64, low=16, crop=32)).batch(0, 120)
    assert batch.low is not None
    places = set()
    for key, high, low in zip(batch.keys, pixels(batch), batch.low.numpy(), strict=True):
        index = shards.keys("train").index(key)
        stored_high, stored_low = shards.image("train", index, 64), shards.image("train", index, 16)
        found = [
            (row, column)
            for row, column in itertools.product(range(0, 33, 4), range(0, 33, 4))
            if np.array_equal(stored_high[row : row + 32, column : column + 32], high)
            and np.array_equal(stored_low[row // 4 : row // 4 + 8, column // 4 : column // 4 + 8], images.from_unit(low))
        ]
        assert len(found) == 1
        places |= set(found)
    assert {row for row, _ in places} == {column for _, column in places} == set(range(0, 33, 4))  # both borders are reached


def test_with_zoom_low_is_the_degraded_high(shards: ShardSet) -> None:
    batch = MicroBatches(shards, stage(**EVERYTHING)).batch(0, 12)
    assert batch.low is not None
    for high, low in zip(pixels(batch), batch.low.numpy(), strict=True):
        expected = images.resize(high, (8, 8), shards.data.degradation).astype(int)
        assert np.abs(images.from_unit(low).astype(int) - expected).max() <= 1  # turned before or after: the same up to a rounding


def test_zoom_reaches_from_the_crop_to_the_largest_level(gradient_shards: ShardSet) -> None:
    """On a horizontal ramp the step between columns tells the side of the square that was cut, and its level where."""
    loader = MicroBatches(gradient_shards, stage(crop=32, zoom=8.0))
    sides = []
    for high in pixels(loader.batch(0, 200)):
        rise = high[:, -1].astype(float).mean() - high[:, 0].astype(float).mean()
        sides.append(rise / 31 * 32)  # the ramp rises by 1 a pixel of the 128-px level
    assert min(sides) < 36 and max(sides) > 120 and max(sides) < 130
    logs = np.log(np.clip(sides, 32, 128) / 32) / np.log(4)
    counts, _ = np.histogram(logs, bins=4, range=(0, 1))
    assert counts.min() > 30, counts  # log-uniform: 50 each


@pytest.mark.parametrize(
    ("augment", "kinds"), [({}, 1), ({"flip": True}, 2), ({"flip": True, "rotate90": True}, 8), ({"rotate90": True}, 4)]
)
def test_flips_and_turns(shards: ShardSet, augment: dict[str, Any], kinds: int) -> None:
    """Whole images, so that only the turn differs: every one allowed occurs, no other, and ``low`` turns along."""
    batch = MicroBatches(shards, stage(crop=None, **augment)).batch(0, 300)
    assert batch.low is not None
    seen = set()
    for key, high, low in zip(batch.keys, pixels(batch), batch.low.numpy(), strict=True):
        index = shards.keys("train").index(key)
        for turns, flips in itertools.product(range(4), (False, True)):
            turned = [np.rot90(shards.image("train", index, level), turns) for level in (64, 16)]
            turned = [image[:, ::-1] if flips else image for image in turned]
            if np.array_equal(turned[0], high):
                assert np.array_equal(turned[1], images.from_unit(low))
                seen.add((turns, flips))
                break
        else:
            pytest.fail(f"{key} is no turn of the stored image")
    assert len(seen) == kinds


def test_turning_one_option_on_leaves_the_other_draws(shards: ShardSet) -> None:
    plain, flipped = (MicroBatches(shards, stage(flip=flip)).batch(0, 8) for flip in (False, True))
    for one, other in zip(plain.high, flipped.high, strict=True):
        assert torch.equal(one, other) or torch.equal(one.flip(-1), other)


def test_an_unconditional_stage_has_no_low(shards: ShardSet) -> None:
    for augment in AUGMENTS:
        assert MicroBatches(shards, stage(low=None, high=16, crop=None, **augment)).batch(0, 2).low is None


def test_a_sample_without_the_level_is_left_out(uneven_shards: ShardSet) -> None:
    """One photo of this set has no 128-px level: it serves the lower stage alone."""
    upper = MicroBatches(uneven_shards, stage(low=64, high=128, crop=64))
    lower = MicroBatches(uneven_shards, stage(low=16, high=64, zoom=4.0))
    assert lower.num_samples == upper.num_samples + 1 == len(uneven_shards.keys("train"))
    assert "small" not in upper.batch(0, 40).keys
    assert "small" in lower.batch(0, lower.num_samples).keys


def test_labels(labelled_shards: ShardSet) -> None:
    batch = MicroBatches(labelled_shards, stage()).batch(0, 6)
    assert batch.labels is not None and batch.labels.dtype == torch.int64
    by_key = {labelled_shards.sample("train", index).key: labelled_shards.sample("train", index).label for index in range(3)}
    assert batch.labels.tolist() == [by_key[key] for key in batch.keys]


def test_labels_on_a_part_of_the_samples_are_refused(half_labelled_shards: ShardSet) -> None:
    with pytest.raises(BadInput, match="1 of 2 train samples have no label"):
        MicroBatches(half_labelled_shards, stage())


def test_to_a_device_moves_every_tensor(labelled_shards: ShardSet) -> None:
    moved = MicroBatches(labelled_shards, stage()).batch(0, 2).to("meta")
    assert moved.low is not None and moved.labels is not None
    assert {moved.high.device.type, moved.low.device.type, moved.labels.device.type} == {"meta"}


def test_stages_that_the_set_cannot_serve(shards: ShardSet) -> None:
    with pytest.raises(BadInput, match="levels 128 and 256"):
        MicroBatches(shards, stage(low=128, high=256, crop=64))
    with pytest.raises(BadInput, match="1 channels"):
        MicroBatches(shards, stage(channels=1))
    with pytest.raises(ValueError, match="count=0"):
        MicroBatches(shards, stage()).batch(0, 0)


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(THREAD)]


def test_prefetch_gives_the_same_batches_and_ends(shards: ShardSet) -> None:
    loader = MicroBatches(shards, stage(**EVERYTHING))
    slices = [(first, 3) for first in range(0, 30, 3)]
    assert_same(list(loader.prefetch(slices)), [loader.batch(0, 30)])
    assert threads() == []


def test_prefetch_is_bounded_and_stops_when_closed(shards: ShardSet) -> None:
    asked: list[int] = []

    def endless() -> Iterator[tuple[int, int]]:
        for first in itertools.count():
            asked.append(first)
            yield first, 1

    batches = MicroBatches(shards, stage()).prefetch(endless())
    assert next(batches).sample_index.tolist() == [0]
    time.sleep(0.3)
    assert len(asked) <= 5 and 1 <= len(threads()) <= 2
    batches.close()  # type: ignore[attr-defined]
    assert threads() == []


@pytest.mark.parametrize(("low", "crop"), [(16, 32), (None, None)])
def test_prefetch_holds_no_more_than_its_bytes(
    shards: ShardSet, low: int | None, crop: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted by the tensors themselves, of batches that were begun and not yet taken: four threads would like eight of them."""
    loader = MicroBatches(shards, stage(low=low, crop=crop), threads=4)
    one = loader.batch(0, 3)
    size = sum(value.nbytes for value in (one.high, one.low) if value is not None)
    loader.prefetch_bytes = 3 * size + size // 2
    begun, taken, lock, most = 0, 0, threading.Lock(), 0
    made = loader.batch

    def counted(first: int, count: int) -> Batch:
        nonlocal begun, most
        with lock:
            begun += 1
            most = max(most, begun - taken)
        return made(first, count)

    monkeypatch.setattr(loader, "batch", counted)
    for _ in loader.prefetch([(first, 3) for first in range(0, 60, 3)]):
        time.sleep(0.01)  # the threads run ahead as far as they may
        with lock:
            taken += 1
    assert begun == 20
    assert 2 <= most <= 3


def test_prefetch_raises_an_error_in_its_place(shards: ShardSet) -> None:
    batches = MicroBatches(shards, stage()).prefetch([(0, 2), (2, 0), (2, 2)])
    assert next(batches).sample_index.tolist() == [0, 1]
    with pytest.raises(ValueError, match="count=0"):
        next(batches)
    assert threads() == []


CORRUPTION = {"blur": {"sigma": [0.5, 2.0]}, "noise": {"level": [2, 12]}, "jpeg": {"quality": [40, 90]}}


def whole_photos(root: Path, **changes: Any) -> ShardSet:
    """A set of 72 x 90 photos; its val and test photos too."""
    for index in range(8):
        (root / f"{index}.png").write_bytes(images.encode(np.random.default_rng(index).integers(0, 256, (72, 90, 3), dtype=np.uint8)))
    values = {"source": "folder", "options": {"uri": str(root)}, "levels": (16, 64), "split": {"val": 0.2, "test": 0.3}, **changes}
    return build(str(root.parent / "shards"), Data.model_validate(values), folder.examples(folder.Options(uri=str(root))), fingerprint="f")


@pytest.mark.parametrize("augment", AUGMENTS)
def test_corrupted_low_images_are_drawn_anew_for_each_index(tmp_path: Path, augment: dict[str, Any]) -> None:
    (tmp_path / "photos").mkdir()
    shards = whole_photos(tmp_path / "photos", corruption=CORRUPTION)
    loader = MicroBatches(shards, stage(**augment))
    first, second = loader.batch(0, 4), loader.batch(0, 8)
    assert first.low is not None and second.low is not None
    np.testing.assert_array_equal(first.low, second.low[:4])
    for index in range(4):
        plain = images.to_unit(images.resize(images.from_unit(first.high[index].numpy()), (8, 8), "bicubic"))
        assert np.abs(first.low[index].numpy() - plain).mean() > 0.01
    seen: dict[bytes, set[bytes]] = {}
    batch = MicroBatches(shards, stage(crop=64, flip=False)).batch(0, 4 * shards.count("train"))
    assert batch.low is not None
    for high, low in zip(batch.high.numpy(), batch.low.numpy(), strict=True):
        seen.setdefault(high.tobytes(), set()).add(low.tobytes())
    assert all(len(lows) == 4 for lows in seen.values()), "an image seen in four epochs has four low images"


def test_held_out_low_images_are_stored_corrupted_and_training_ones_plain(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    shards = whole_photos(tmp_path / "photos", corruption=CORRUPTION)
    for split in ("train", "val", "test"):
        for index in range(shards.count(split)):
            plain = images.resize(shards.image(split, index, 64), (16, 16), "bicubic")
            assert np.array_equal(shards.image(split, index, 16), plain) == (split == "train")
            record = shards.sample(split, index)
            with tarfile.open(f"{shards.uri}/{record.shard}") as tar:
                stream = tar.extractfile(f"{record.key}.json")
                assert stream is not None
                drawn = json.load(stream).get("corruption", {})
            assert set(drawn) == (set() if split == "train" else {"blur_sigma", "noise_level", "jpeg_quality"})


def test_photos_of_their_own_size_are_cropped_anywhere(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    shards = whole_photos(tmp_path / "photos", fit="keep")
    assert shards.image("train", 0, 64).shape == (72, 88, 3) and shards.image("train", 0, 16).shape == (18, 22, 3)
    batch = MicroBatches(shards, stage(crop=32)).batch(0, 200)
    assert batch.low is not None
    places: set[tuple[int, int]] = set()
    for key, high, low in zip(batch.keys, pixels(batch), batch.low.numpy(), strict=True):
        index = shards.keys("train").index(key)
        stored_high, stored_low = shards.image("train", index, 64), shards.image("train", index, 16)
        (place,) = [
            (row, column)
            for row, column in itertools.product(range(0, 41, 4), range(0, 57, 4))
            if np.array_equal(stored_high[row : row + 32, column : column + 32], high)
        ]
        row, column = place[0] // 4, place[1] // 4
        assert np.array_equal(stored_low[row : row + 8, column : column + 8], images.from_unit(low))
        places.add(place)
    assert {row for row, _ in places} == set(range(0, 41, 4)) and {column for _, column in places} == set(range(0, 57, 4))
    assert MicroBatches(shards, stage(**EVERYTHING)).batch(0, 8).high.shape == (8, 3, 32, 32)
