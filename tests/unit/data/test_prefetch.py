"""Work ahead of its reader: in order, within its bound of bytes, errors in their place, no thread left."""

import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sr3_core.data.prefetch import AHEAD_PER_THREAD, THREAD_NAME, ahead


def left() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(THREAD_NAME)]


@settings(max_examples=40, deadline=None)
@given(costs=st.lists(st.integers(0, 50), max_size=30), bound=st.integers(1, 60), threads=st.integers(1, 4))
def test_order_and_bound(costs: list[int], bound: int, threads: int) -> None:
    """What is made and not yet taken never passes the bound, unless one item alone does."""
    held, most, lock = 0, 0, threading.Lock()

    def make(item: tuple[int, int]) -> int:
        nonlocal held, most
        with lock:
            held += item[1]
            most = max(most, held)
        return item[0]

    came: list[int] = []
    for number in ahead(list(enumerate(costs)), make, cost=lambda item: item[1], max_bytes=bound, threads=threads):
        came.append(number)
        with lock:
            held -= costs[number]
    assert came == list(range(len(costs)))
    # the item in the reader's hands is no longer the prefetcher's, but still counted here until the reader lets go of it
    assert most <= max([bound, *costs]) + max(costs, default=0)
    assert left() == []


def test_threads_work_at_the_same_time_and_the_results_keep_their_order() -> None:
    together = threading.Barrier(3, timeout=30)

    def make(item: int) -> int:
        if item < 3:
            together.wait()  # breaks unless three are made at once
        time.sleep(0.02 * (5 - item % 5))
        return item

    assert list(ahead(range(12), make, cost=lambda _: 1, max_bytes=100, threads=3)) == list(range(12))


def test_no_more_than_so_many_items_are_asked_for_ahead() -> None:
    asked: list[int] = []

    def endless() -> Iterator[int]:
        while True:
            asked.append(len(asked))
            yield asked[-1]

    stream = ahead(endless(), lambda item: item, cost=lambda _: 1, max_bytes=10**9, threads=2)
    assert next(stream) == 0
    assert len(asked) == 2 * AHEAD_PER_THREAD
    stream.close()  # type: ignore[attr-defined]
    assert left() == []


@pytest.mark.parametrize("where", ["make", "items"])
def test_an_error_comes_in_its_place(where: str) -> None:
    def items() -> Iterator[int]:
        yield from range(3)
        if where == "items":
            raise KeyError("three")
        yield from range(3, 9)

    def make(item: int) -> int:
        if item == 3:
            raise KeyError("three")
        return item

    stream, came = ahead(items(), make, cost=lambda _: 1, max_bytes=100, threads=2), list[int]()
    with pytest.raises(KeyError, match="three"):
        for item in stream:
            came.append(item)
    assert came == [0, 1, 2]
    assert left() == []
