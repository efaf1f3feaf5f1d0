"""When a group of workers makes room for a larger one: only for room that lasts, beside a group that runs, once for each cluster."""

from components.train.growth import LONGEST_SECONDS, SETTLED_SECONDS, Growth

EACH = {"CPU": 2.0}
LATER = SETTLED_SECONDS + 1


def due(growth: Growth, now: float, *, workers: int = 1, free: float = 2, total: float = 4) -> bool:
    return growth.due(now, workers=workers, free={"CPU": free, "memory": 1e9}, total={"CPU": total, "memory": 2e9})


def test_room_that_lasts_is_used_once() -> None:
    growth = Growth(3, EACH)
    assert [due(growth, now) for now in (0, SETTLED_SECONDS - 1, SETTLED_SECONDS, SETTLED_SECONDS + 1, 10 * LATER)] == [
        False, False, True, False, False,
    ]  # fmt: skip
    assert not due(growth, 11 * LATER, workers=2, free=2, total=6) and due(growth, 13 * LATER, workers=2, free=2, total=6)  # another node


def test_a_node_in_the_place_of_a_lost_one_is_room_again() -> None:
    """A group that has grown, has lost a worker and is offered as much as before."""
    growth = Growth(2, EACH)
    assert not due(growth, 0) and due(growth, LATER)
    assert not due(growth, 2 * LATER, workers=2, free=0)  # it has grown
    assert not due(growth, 3 * LATER) and due(growth, 5 * LATER)


def test_room_in_pieces_is_tried_again_once_the_cluster_was_another() -> None:
    growth = Growth(2, EACH)
    assert not due(growth, 0) and due(growth, LATER)
    assert not due(growth, 2 * LATER) and not due(growth, 4 * LATER)  # the next group was no larger
    assert not due(growth, 5 * LATER, free=0, total=2)
    assert not due(growth, 6 * LATER) and due(growth, 8 * LATER)


def test_it_waits_longer_each_time() -> None:
    """Two groups that make room for each other do not do so without end."""
    growth = Growth(9, EACH)
    now, waited = 0.0, list[float]()
    for workers in range(1, 8):
        begun = now
        while not due(growth, now, workers=workers, free=2, total=2 * workers + 2):
            now += 1
        waited.append(now - begun)
    assert waited == [25, 50, 100, 200, 400, LONGEST_SECONDS, LONGEST_SECONDS]


def test_room_that_goes_away_again_counts_from_its_return() -> None:
    growth = Growth(2, EACH)
    assert not due(growth, 0) and not due(growth, 10, free=1) and not due(growth, 20)
    assert not due(growth, SETTLED_SECONDS + 10) and due(growth, 20 + SETTLED_SECONDS)


def test_no_room_no_need_and_no_running_group_are_not_due() -> None:
    for changes in ({"free": 1.0}, {"workers": 3}, {"free": 4.0}, {"total": 2.0, "free": 2.0}):
        growth = Growth(3, EACH)
        assert not due(growth, 0, **changes) and not due(growth, LATER, **changes), changes


def test_every_resource_of_a_worker_must_be_free() -> None:
    growth = Growth(2, {"CPU": 1, "GPU": 1})
    total = {"CPU": 8.0, "GPU": 2.0}
    assert not any(growth.due(now, workers=1, free={"CPU": 7.0}, total=total) for now in (0, LATER))
    assert [growth.due(now, workers=1, free={"CPU": 7.0, "GPU": 1.0}, total=total) for now in (2 * LATER, 3 * LATER)] == [False, True]
