"""When a group of workers that may be larger should make room for a larger one. Knows no Ray: it is shown resources and the time."""

from collections.abc import Mapping

SETTLED_SECONDS = 25.0  # Ray Train looks for new nodes every 20 s: a group started before that would be as small as the last
LONGEST_SECONDS = 600.0  # doubled each time up to this: two trainings on one cluster, each of which leaves room while it starts anew


class Growth:
    """Watches for resources for one worker more than there are, up to ``most`` workers of ``each`` ({"CPU": 2, "GPU": 1}) resources."""

    def __init__(self, most: int, each: Mapping[str, float]) -> None:
        self._most, self._each = most, dict(each)
        self._settled = SETTLED_SECONDS
        self._since: float | None = None
        self._tried: tuple[int, Mapping[str, float]] | None = None

    def due(self, now: float, *, workers: int, free: Mapping[str, float], total: Mapping[str, float]) -> bool:
        """Whether ``workers`` are to stop for a larger group: at ``now`` (seconds) they have run beside room for ``SETTLED_SECONDS``,
        twice as long after each yes, at most ``LONGEST_SECONDS``.

        ``free`` and ``total`` are the cluster's resources by name. Yes once for each ``workers`` and ``total`` in a row: what is free may
        lie in pieces, each on another node and too small for a worker, and then the next group is no larger. A node that is lost after
        that, and another one in its place, are room again.
        """
        whole = {name: total.get(name, 0) for name in self._each}
        if (workers, whole) != self._tried:
            self._tried = None
        fits = workers < self._most and all(free.get(name, 0) >= amount for name, amount in self._each.items())
        running = all(whole[name] - free.get(name, 0) >= workers * amount for name, amount in self._each.items())
        if not fits or not running or self._tried is not None:
            self._since = None
            return False
        if self._since is None:
            self._since = now
        if now - self._since < self._settled:
            return False
        self._settled = min(2 * self._settled, LONGEST_SECONDS)
        self._since, self._tried = None, (workers, whole)
        return True
