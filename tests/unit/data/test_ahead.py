"""One batch ahead on its way to a device: in order, never two, errors in their place, the source closed; on the CPU nothing at all."""

from collections.abc import Iterator

import pytest
import torch

from sr3_core.data import ahead
from sr3_core.data.loader import Batch
from tests.plugins.tiny_objective import Memory


def counting(count: int, told: list[str], *, broken_at: int | None = None) -> Iterator[int]:
    try:
        for number in range(count):
            if number == broken_at:
                raise OSError(f"item {number}")
            yield number
    finally:
        told.append("closed")


def watched(count: int, told: list[str], *, broken_at: int | None = None) -> Iterator[int]:
    def begin(number: int) -> int:
        told.append(f"begin {number}")
        return number

    def finish(number: int) -> int:
        told.append(f"finish {number}")
        return 10 * number

    return ahead.one_ahead(counting(count, told, broken_at=broken_at), begin, finish)


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_everything_comes_in_order(count: int) -> None:
    told: list[str] = []
    assert list(watched(count, told)) == [10 * number for number in range(count)]
    assert told.count("closed") == 1


def test_the_next_one_is_begun_before_one_is_given_and_no_other() -> None:
    told: list[str] = []
    stream = watched(4, told)
    assert next(stream) == 0 and told == ["begin 0", "begin 1", "finish 0"]
    assert next(stream) == 10 and told[3:] == ["begin 2", "finish 1"]


def test_an_error_waits_for_its_place() -> None:
    told: list[str] = []
    stream = watched(4, told, broken_at=2)
    assert (next(stream), next(stream)) == (0, 10)
    with pytest.raises(OSError, match="item 2"):
        next(stream)
    assert told.count("closed") == 1
    with pytest.raises(OSError, match="item 0"):
        list(watched(4, [], broken_at=0))


def test_closing_closes_the_source() -> None:
    told: list[str] = []
    stream = ahead.one_ahead(counting(4, told), lambda number: number, lambda number: number)
    next(stream)
    stream.close()
    assert told == ["closed"]


def test_on_the_cpu_it_is_the_source_itself() -> None:
    source: Iterator[Batch] = Memory().prefetch([(0, 2), (2, 2)])
    assert ahead.on_device(source, torch.device("cpu")) is source


def test_a_batch_with_all_its_tensors_moves() -> None:
    """To the meta device, which every machine has."""
    batch = Memory().batch(4, 2)
    labelled = Batch(batch.high, None, batch.sample_index, batch.keys, torch.tensor([1, 2]))
    for given, count in ((batch, 2), (labelled, 2)):
        moved = given.to("meta", non_blocking=True)
        assert len(moved.tensors()) == count and all(tensor.is_meta for tensor in moved.tensors())
        assert moved.keys == given.keys and (moved.sample_index == given.sample_index).all()
        assert [tensor.shape for tensor in moved.tensors()] == [tensor.shape for tensor in given.tensors()]
