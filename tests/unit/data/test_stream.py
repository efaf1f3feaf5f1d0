"""The stream as several workers read it: one global sequence from any entry point, and nothing read but the samples' own bytes."""

import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sr3_core import images, storage
from sr3_core.artifacts.range_cache import RangeCache
from sr3_core.artifacts.shardset import ShardSet
from sr3_core.config import Augment
from sr3_core.data import augment
from sr3_core.data.loader import MicroBatches
from sr3_core.data.order import Order
from sr3_core.errors import BadInput
from tests.unit.data.conftest import Write, noise_photo
from tests.unit.data.test_loader import EVERYTHING, assert_same, pixels, stage

POSITIONS = st.lists(st.integers(0, 10**12), min_size=50, max_size=50)


@settings(max_examples=10, deadline=None)
@given(size=st.integers(1, 10**7), seed=st.integers(0, 2**40), micro_batch=st.integers(1, 4), positions=POSITIONS)
def test_workers_entered_anywhere_see_the_same_global_sequence(size: int, seed: int, micro_batch: int, positions: list[int]) -> None:
    """1, 2, 3 and 8 workers, each with its own order, take their slices of 24 micro-batches from each of 50 positions on."""
    for position in positions:
        sequences = set[tuple[int, ...]]()
        for workers in (1, 2, 3, 8):
            seen: dict[int, int] = {}
            for rank in range(workers):
                order = Order(size, seed)
                for step in range(24 // workers):
                    first = position + (step * workers + rank) * micro_batch
                    seen |= {index: order.sample(index) for index in range(first, first + micro_batch)}
            assert sorted(seen) == list(range(position, position + 24 * micro_batch))
            sequences.add(tuple(seen[index] for index in sorted(seen)))
        assert len(sequences) == 1


@settings(max_examples=3, deadline=None)
@given(positions=st.lists(st.integers(0, 10**9), min_size=50, max_size=50), threads=st.integers(1, 4))
def test_workers_entered_anywhere_read_the_same_pixels(shards: ShardSet, positions: list[int], threads: int) -> None:
    """The same of the loader itself: 1, 2, 3 and 8 workers, 24 pairs from each of 50 positions on, compared by pixels and keys."""
    for workers in (1, 2, 3, 8):
        loaders = [MicroBatches(shards, stage(crop=16, **EVERYTHING), threads=threads) for _ in range(workers)]
        slices = [[position + step * workers + rank for position in positions for step in range(24 // workers)] for rank in range(workers)]
        if workers == 1:
            alone = MicroBatches(shards, stage(crop=16, **EVERYTHING))
            expected = {first: alone.batch(first, 1) for first in slices[0]}
            continue
        for loader, mine in zip(loaders, slices, strict=True):
            sample = mine[:: max(1, len(mine) // 20)]
            for first, batch in zip(sample, loader.prefetch((first, 1) for first in sample), strict=True):
                assert_same([batch], [expected[first]])


def counted_ranges(patch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """Every ranged read that reaches storage from here on, as it is made."""
    made: list[tuple[str, int, int]] = []
    read = storage.read_range

    def counted(uri: str, start: int, length: int) -> bytes:
        made.append((uri, start, length))
        return read(uri, start, length)

    patch.setattr(storage, "read_range", counted)
    return made


def refuse_other_reads(patch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise AssertionError("read otherwise than by a range")

    for name in ("read_bytes", "open_read", "read_blocks", "list_files", "size", "exists"):
        patch.setattr(storage, name, refused)


@settings(max_examples=20, deadline=None)
@given(position=st.integers(0, 10**12), count=st.integers(1, 5))
def test_a_stream_entered_anywhere_reads_the_ranges_of_its_samples_alone(shards: ShardSet, position: int, count: int) -> None:
    """No tar header, no scan, nothing of the samples before: for each sample one range, that of its two images."""
    opened = ShardSet.open(shards.uri, cache_bytes=0)
    with pytest.MonkeyPatch.context() as patch:
        made = counted_ranges(patch)
        refuse_other_reads(patch)
        batch = MicroBatches(opened, stage()).batch(position, count)
    by_key = {opened.sample("train", index).key: opened.sample("train", index) for index in range(opened.count("train"))}
    expected: list[tuple[str, int, int]] = []
    for key in batch.keys:
        (low, _, _), (high, size, _) = (by_key[key].members[level] for level in (16, 64))
        expected.append((storage.join(opened.uri, by_key[key].shard), low, high + size - low))
    assert made == expected


def test_what_was_brought_along_is_given_to_who_asked_for_it(shards: ShardSet) -> None:
    """The next reader may want another level, another sample, or be another thread."""
    opened = ShardSet.open(shards.uri, cache_bytes=0)
    for sample, level in ((0, 16), (0, 128), (1, 16), (0, 64)):
        assert np.array_equal(opened.rows("train", 0, 64, 0, 64, then=16), shards.image("train", 0, 64))
        assert np.array_equal(opened.rows("train", sample, level, 0, level), shards.image("train", sample, level))
    with pytest.MonkeyPatch.context() as patch:
        made = counted_ranges(patch)
        opened.rows("train", 0, 64, 0, 64, then=16)
        other = threading.Thread(target=opened.rows, args=("train", 0, 16, 0, 16))
        other.start()
        other.join()
        assert len(made) == 2
        opened.rows("train", 0, 16, 0, 16)
        assert len(made) == 2


def test_rows_that_are_not_shown_are_not_decoded(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where not all images can be kept; where they can, they are decoded once and kept."""
    decoded: list[int] = []
    decode = images.decode
    monkeypatch.setattr(images, "decode", lambda data, **given: (decoded.append(images.header(data).height), decode(data, **given))[1])
    whole = shards.image("train", 0, 128)
    few = ShardSet.open(shards.uri, cache_bytes=0)
    decoded.clear()
    for top, bottom in ((0, 1), (5, 40), (100, 128), (0, 128)):
        assert np.array_equal(few.rows("train", 0, 128, top, bottom), whole[top:bottom])
    assert decoded == [1, 40, 128, 128]
    many = ShardSet.open(shards.uri)
    decoded.clear()
    for top, bottom in ((0, 1), (5, 40)):
        assert np.array_equal(many.rows("train", 0, 128, top, bottom), whole[top:bottom])
    assert decoded == [128]


@pytest.mark.parametrize("channels", [1, 3])
def test_the_first_rows_of_a_png(channels: int) -> None:
    photo = noise_photo(64, 1)[:, :48, :channels]
    data = images.encode(photo)
    for rows in (1, 2, 31, 63, 64, 65):
        assert np.array_equal(images.decode(images.first_rows(data, rows), channels=channels), photo[:rows])
    jpeg = images.encode(photo, "jpeg")
    assert images.first_rows(jpeg, 3) == jpeg


JITTER = {"brightness": 0.4, "contrast": 0.3, "saturation": 0.8}


@pytest.mark.parametrize("zoom", [1.0, 3.0])
@pytest.mark.parametrize("crop", [32, None])
def test_colour_changes_leave_low_the_degradation_of_high(shards: ShardSet, zoom: float, crop: int | None) -> None:
    batch = MicroBatches(shards, stage(crop=crop, zoom=zoom, **JITTER)).batch(0, 40)
    plain = MicroBatches(shards, stage(crop=crop, zoom=zoom)).batch(0, 40)
    assert batch.low is not None and plain.low is not None
    changed = clipped = 0
    for high, low, before in zip(pixels(batch), batch.low.numpy(), pixels(plain), strict=True):
        side = low.shape[1]
        expected = images.resize(high, (side, side), shards.data.degradation).astype(int)
        inner = (slice(None),) * 2 if crop is None or zoom > 1 else (slice(2, -2),) * 2  # a stored low image saw beyond the crop's edge
        assert np.abs(images.from_unit(low).astype(int) - expected)[inner].max() <= 2  # high and low are rounded on their own
        changed += not np.array_equal(high, before)
        clipped += bool(((high == 255) | (high == 0)).mean() > 0.01)
    assert changed == 40
    assert clipped > 5  # what is clipped was among them


def test_colour_changes_move_nothing_else_and_are_drawn_by_index(shards: ShardSet) -> None:
    """A brightness of next to nothing changes no pixel: the crop, the turn and the zoom are those without it."""
    plain, faint = (MicroBatches(shards, stage(**EVERYTHING, brightness=value)).batch(0, 12) for value in (0.0, 1e-9))
    assert_same([plain], [faint])
    loader = MicroBatches(shards, stage(**JITTER))
    assert_same([loader.batch(0, 12)], [MicroBatches(shards, stage(**JITTER)).batch(index, 1) for index in range(12)])


@pytest.mark.parametrize("option", JITTER)
def test_each_colour_change_is_what_it_is_called(option: str) -> None:
    photo = noise_photo(64, 3)
    draws, full = [0.9, 0.9, 0.9], 255.0
    amount = 1 + 0.5 * (2 * 0.9 - 1)
    high, _ = augment.coloured(photo, None, Augment.model_validate({option: 0.5}), draws, filter="bicubic")
    luma = (photo @ np.array([0.299, 0.587, 0.114]))[..., None]
    centre = {"brightness": 0.0, "contrast": full / 2, "saturation": luma}[option]
    expected = np.clip(np.rint(centre + amount * (photo - centre)), 0, 255)
    assert np.abs(high - expected).max() <= 1
    assert not np.array_equal(high, photo)


def test_deep_images_change_alike() -> None:
    deep = noise_photo(64, 3).astype(np.uint16) * 257
    options = Augment.model_validate(JITTER)
    high, _ = augment.coloured(deep, None, options, [0.2, 0.8, 0.7], filter="box")
    shallow, _ = augment.coloured(noise_photo(64, 3), None, options, [0.2, 0.8, 0.7], filter="box")
    assert high.dtype == np.uint16
    assert np.abs(high / 257 - shallow).max() <= 0.51


def test_saturation_needs_colours(write_shards: Write) -> None:
    shards = write_shards({"a": noise_photo(64, 0)}, (16, 64))
    with pytest.raises(BadInput, match="1 channels"):
        MicroBatches(shards, stage(channels=1, saturation=0.5))


@pytest.fixture
def cached(shards: ShardSet) -> Iterator[Callable[[int], tuple[ShardSet, Path]]]:
    with tempfile.TemporaryDirectory() as folder:

        def make(max_bytes: int) -> tuple[ShardSet, Path]:
            return ShardSet.open(shards.uri, cache_bytes=0, ranges=RangeCache(folder, max_bytes)), Path(folder)

        yield make


def kept(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_what_was_read_once_comes_from_the_folder(
    shards: ShardSet, cached: Callable[[int], tuple[ShardSet, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, folder = cached(10**8)
    first = MicroBatches(opened, stage()).batch(0, 10)
    with monkeypatch.context() as patch:
        made = counted_ranges(patch)
        assert_same([MicroBatches(opened, stage()).batch(0, 10)], [first])
        again = ShardSet.open(shards.uri, cache_bytes=0, ranges=RangeCache(str(folder), 10**8))  # another process, a later day
        assert_same([MicroBatches(again, stage()).batch(0, 10)], [first])
        assert made == []
        for path in kept(folder):
            path.unlink()
        assert_same([MicroBatches(opened, stage()).batch(0, 10)], [first])  # who deletes the folder's files costs time alone
        assert made


def test_the_folder_stays_within_its_bound(shards: ShardSet, cached: Callable[[int], tuple[ShardSet, Path]]) -> None:
    sizes = [length for index in range(5) for _, length, _ in shards.sample("train", index).members.values()]
    bound = sum(sizes) // 3
    opened, folder = cached(bound)
    for _ in range(3):
        for index in range(5):
            for level in (16, 64, 128):
                assert np.array_equal(opened.image("train", index, level), shards.image("train", index, level))
                assert sum(path.stat().st_size for path in kept(folder)) <= bound
    assert kept(folder)
    with pytest.raises(BadInput, match="not on this machine"):
        RangeCache("gs://bucket/x", 1)


def test_a_bound_of_hardly_more_than_one_range_stops_no_thread(tmp_path: Path) -> None:
    """Each eviction may meet the file that another thread is writing just now."""
    blob = np.random.default_rng(0).bytes(2**17)
    (tmp_path / "shard").write_bytes(blob)
    cache = RangeCache(str(tmp_path / "cache"), 5000)

    def read(number: int) -> bool:
        start, length = 977 * number % 2**16, 4000 + number % 900
        return cache.read(str(tmp_path / "shard"), "ab" * 32, start, length) == blob[start : start + length]

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(200)))


def test_a_full_disk_of_the_cache_ends_no_training(
    shards: ShardSet, cached: Callable[[int], tuple[ShardSet, Path]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened, folder = cached(10**8)

    def full(*_: object) -> None:
        raise BadInput("no space left while writing", "a root with free space", "free some")

    monkeypatch.setattr(storage, "write_bytes", full)
    assert_same([MicroBatches(opened, stage()).batch(0, 10)], [MicroBatches(shards, stage()).batch(0, 10)])
    assert not kept(folder) and capsys.readouterr().out.count("is not kept") == 1
