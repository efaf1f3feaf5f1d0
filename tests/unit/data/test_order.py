"""The sample order is a fresh permutation every epoch, the same from any entry point, and fair."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sr3_core.data.order import Order

sizes = st.integers(1, 300)
seeds = st.integers(0, 2**40)
epochs = st.integers(0, 2**40)


@settings(max_examples=60, deadline=None)
@given(size=sizes, seed=seeds, epoch=epochs)
def test_every_epoch_holds_every_sample_once(size: int, seed: int, epoch: int) -> None:
    order = Order(size, seed)
    assert sorted(order.sample(epoch * size + index) for index in range(size)) == list(range(size))


@settings(max_examples=60, deadline=None)
@given(size=sizes, seed=seeds, positions=st.lists(st.integers(0, 2**50), min_size=1, max_size=20))
def test_any_entry_point_gives_the_same(size: int, seed: int, positions: list[int]) -> None:
    walked = Order(size, seed)
    one_after_another = [walked.sample(position) for position in positions]
    assert one_after_another == [Order(size, seed).sample(position) for position in positions]
    assert one_after_another[::-1] == [walked.sample(position) for position in reversed(positions)]


@settings(max_examples=40, deadline=None)
@given(size=st.integers(30, 300), seed=seeds, epoch=epochs)
def test_epochs_and_seeds_differ(size: int, seed: int, epoch: int) -> None:
    def one_epoch(of_seed: int, number: int) -> list[int]:
        return [Order(size, of_seed).sample(number * size + index) for index in range(size)]

    assert one_epoch(seed, epoch) != one_epoch(seed, epoch + 1)
    assert one_epoch(seed, epoch) != one_epoch(seed + 1, epoch)
    assert one_epoch(seed, epoch) != list(range(size))


def test_a_large_set_is_entered_at_once() -> None:
    order = Order(10**12, seed=3)
    found = {order.sample(7 * 10**12 + index) for index in range(1000)}
    assert len(found) == 1000
    assert max(found) > 9 * 10**11 and min(found) < 10**11  # not an interval of neighbours


@pytest.mark.parametrize("size", [2, 3, 5, 18])
def test_every_sample_is_as_likely_in_every_place(size: int) -> None:
    order, num_epochs = Order(size, seed=0), 4000
    for place in {0, size // 2, size - 1}:
        counts = Counter(order.sample(epoch * size + place) for epoch in range(num_epochs))
        expected = num_epochs / size
        chi_squared = sum((counts[sample] - expected) ** 2 / expected for sample in range(size))
        assert chi_squared < size - 1 + 5 * (2 * (size - 1)) ** 0.5, (place, counts)  # mean + 5 deviations


def test_the_order_stays_the_same_between_releases() -> None:
    """A resumed run must go on in the order it began with."""
    assert [Order(10, seed=1).sample(position) for position in range(20)] == [9, 6, 1, 3, 7, 5, 8, 2, 4, 0, 2, 4, 5, 3, 6, 8, 9, 0, 1, 7]


def test_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Order(0, seed=0)
    with pytest.raises(ValueError, match="0 or more"):
        Order(3, seed=0).sample(-1)
