"""Several ShardSets as one stream: the share of each, its own order within, the same from any entry point and for any workers."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sr3_core import config, images
from sr3_core.artifacts.shardset import ShardSet
from sr3_core.config import Data, Scaling
from sr3_core.data.loader import MicroBatches, opened
from sr3_core.data.order import MAX_BLOCK, Mixture, Order
from sr3_core.data.shards import build
from sr3_core.data.sources._base import Example
from sr3_core.errors import BadInput
from tests.unit.data.conftest import Write, noise_photo
from tests.unit.data.test_loader import EVERYTHING, assert_same, stage

seeds = st.integers(0, 2**40)
sets = st.lists(st.tuples(st.integers(1, 50), st.integers(1, 9)), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(sets=sets, seed=seeds, block=st.integers(0, 2**40))
def test_every_block_holds_each_set_as_often_as_its_weight(sets: list[tuple[int, int]], seed: int, block: int) -> None:
    sizes, weights = zip(*sets, strict=True)
    mixture = Mixture(sizes, weights, seed)
    period = sum(mixture.weights)
    counts = Counter(mixture.place(block * period + slot)[0] for slot in range(period))
    assert counts == dict(enumerate(mixture.weights))
    ratios = {weight / reduced for weight, reduced in zip(weights, mixture.weights, strict=True)}
    assert len(ratios) == 1  # reduced, not changed


@settings(max_examples=40, deadline=None)
@given(sets=sets, seed=seeds)
def test_each_set_comes_in_its_own_order_without_a_gap(sets: list[tuple[int, int]], seed: int) -> None:
    """Within a set every epoch of its own holds each of its samples once, however the sets take turns."""
    sizes, weights = zip(*sets, strict=True)
    mixture = Mixture(sizes, weights, seed)
    came: dict[int, list[int]] = {part: [] for part in range(len(sizes))}
    for position in range(4 * sum(sizes) * sum(weights) // min(weights)):
        part, sample = mixture.place(position)
        came[part].append(sample)
        if min(map(len, came.values())) > 2 * max(sizes):
            break
    for part, size in enumerate(sizes):
        for epoch in range(len(came[part]) // size):
            assert sorted(came[part][epoch * size : (epoch + 1) * size]) == list(range(size))


@settings(max_examples=40, deadline=None)
@given(sets=sets, seed=seeds, positions=st.lists(st.integers(0, 2**50), min_size=1, max_size=20))
def test_any_entry_point_gives_the_same(sets: list[tuple[int, int]], seed: int, positions: list[int]) -> None:
    sizes, weights = zip(*sets, strict=True)
    walked = Mixture(sizes, weights, seed)
    assert [walked.place(position) for position in positions] == [Mixture(sizes, weights, seed).place(position) for position in positions]


@settings(max_examples=20, deadline=None)
@given(size=st.integers(1, 100), seed=seeds, weight=st.integers(1, 10), position=st.integers(0, 2**50))
def test_one_set_is_its_order(size: int, seed: int, weight: int, position: int) -> None:
    assert Mixture([size], [weight], seed).place(position) == (0, Order(size, seed).sample(position))


def test_equal_sets_do_not_walk_in_step() -> None:
    places = [Mixture([30, 30], [1, 1], seed=0).place(position) for position in range(60)]
    first, second = ([sample for part, sample in places if part == which] for which in (0, 1))
    assert first != second


@pytest.mark.parametrize("weights", [[], [1], [0, 1], [1, -1], [1, MAX_BLOCK]])
def test_weights_that_are_refused(weights: list[int]) -> None:
    with pytest.raises(ValueError, match="allowed"):
        Mixture([5, 5], weights, seed=0)


@pytest.fixture(scope="session")
def other_shards(write_shards: Write) -> ShardSet:
    return write_shards({f"face-{index}": noise_photo(128, 100 + index) for index in range(3)}, (16, 64, 128))


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_mixed_stream_is_the_same_for_any_workers_and_threads(shards: ShardSet, other_shards: ShardSet, workers: int) -> None:
    mixed = [(shards, 3), (other_shards, 1)]
    loaders = [MicroBatches(mixed, stage(**EVERYTHING), threads=1 + rank) for rank in range(workers)]
    streams = [loader.prefetch([((step * workers + rank) * 2, 2) for step in range(12 // workers)]) for rank, loader in enumerate(loaders)]
    together = [batch for step_batches in zip(*streams, strict=True) for batch in step_batches]
    alone = MicroBatches(mixed, stage(**EVERYTHING))
    assert_same(together, [alone.batch(0, 24)])
    for first in range(0, 24, 4):
        keys = alone.batch(first, 4).keys
        assert sum(key.startswith("face") for key in keys) == 1
    assert alone.num_samples == 8


def test_crops_and_turns_go_by_the_global_index_whatever_the_mixture(shards: ShardSet) -> None:
    """Two copies of one set in turn: the draws of an index are those it has without the mixture, only the photo differs."""
    mixed, plain = MicroBatches([(shards, 1), (shards, 1)], stage()), MicroBatches(shards, stage())
    where = {key: index for index, key in enumerate(plain.batch(0, plain.num_samples).keys)}
    assert len(where) == 5
    same = [index for index in range(40) if mixed.batch(index, 1).keys == plain.batch(index, 1).keys]
    assert same
    for index in same:
        assert torch.equal(mixed.batch(index, 1).high, plain.batch(index, 1).high)


def test_sets_that_do_not_go_together(shards: ShardSet, labelled_shards: ShardSet, write_shards: Write) -> None:
    with pytest.raises(BadInput, match="5 of 8 train samples"):
        MicroBatches([(shards, 1), (labelled_shards, 1)], stage())
    with pytest.raises(BadInput, match="stage small: weights"):
        MicroBatches([(shards, 1), (shards, MAX_BLOCK)], stage())
    with pytest.raises(BadInput, match="no train sample with levels"):
        MicroBatches([(shards, 1), (labelled_shards, 1)], stage(low=64, high=128, crop=64))


def test_what_the_recipe_holds_out_is_not_trained_on_by_way_of_another_set(shards: ShardSet, tmp_path: Path) -> None:
    """The recipe's own set tests on photo 1, which the other set trains on under another name."""
    examples = []
    for index in range(2):
        (tmp_path / f"{index}.png").write_bytes(images.encode(noise_photo(128, index)))
        examples.append(Example(key=f"own-{index}", uri=str(tmp_path / f"{index}.png"), split="test" if index else "train"))
    values = {"source": "folder", "split": {"by": "published", "minimum": {"train": 1}}, "levels": (16, 64, 128)}
    own = build(str(tmp_path / "out"), Data.model_validate(values), examples, fingerprint="test")
    with pytest.raises(BadInput, match=r"1 training samples of .*, photo-1 first, held out for test by"):
        MicroBatches([(own, 1), (shards, 1)], stage())
    assert MicroBatches([(shards, 1), (own, 1)], stage()).num_samples == 6  # judged by the other set, which holds out nothing


def test_a_recipe_names_the_others(shards: ShardSet, other_shards: ShardSet) -> None:
    plain = stage(**EVERYTHING)
    values = plain.model_dump(mode="json")
    assert "mix" not in values["training"]  # what was trained before keeps its fingerprint
    values["training"]["mix"] = {"weight": 3, "others": [{"shards": other_shards.uri}]}
    asked = config.parse(config.Stage, values)
    assert config.parse(config.Stage, asked.canonical_json()) == asked
    scaling = Scaling(loader_threads=3, prefetch_bytes=10**6)
    assert_same([opened(shards.uri, asked, scaling).batch(0, 8)], [MicroBatches([(shards, 3), (other_shards, 1)], plain).batch(0, 8)])
    assert np.array_equal(opened(shards.uri, plain, scaling).batch(0, 4).high, MicroBatches(shards, plain).batch(0, 4).high)
    values["training"]["mix"]["others"][0]["shards"] = "runs/shards/1"
    with pytest.raises(BadInput, match="must be an absolute path or a URI"):
        config.parse(config.Stage, values)
