"""Work done ahead of its reader by threads, within a bound of bytes, handed over in order. It knows no images and no shards."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

AHEAD_PER_THREAD = 2  # items that wait for the reader, for each thread that makes them: enough to level out what one item takes
THREAD_NAME = "sr3-prefetch"

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(
    items: Iterable[Item], make: Callable[[Item], Result], *, cost: Callable[[Item], int], max_bytes: int, threads: int
) -> Iterator[Result]:
    """``make(item)`` for each item, in the order of ``items``, made by ``threads`` threads before they are asked for.

    At most ``max_bytes`` are made or being made ahead, by ``cost(item)`` (one item always is, however large), and at most
    AHEAD_PER_THREAD items for each thread. What ``make`` or ``items`` raises is raised here, in its place in the order. Pillow, zlib
    and numpy let other threads run while they work. The threads end when the iterator is exhausted or closed, and with the program.
    """
    waiting: deque[tuple[Future[Result], int]] = deque()
    source, held, broken = iter(items), 0, False
    postponed: list[Item] = []
    pool = ThreadPoolExecutor(threads, thread_name_prefix=THREAD_NAME)
    try:
        while True:
            while not broken and len(waiting) < AHEAD_PER_THREAD * threads:
                try:
                    item = postponed.pop() if postponed else next(source)
                except StopIteration:
                    break
                except Exception as error:  # carried over and raised in its place
                    failed: Future[Result] = Future()
                    failed.set_exception(error)
                    waiting.append((failed, 0))
                    broken = True
                    break
                size = cost(item)
                if waiting and held + size > max_bytes:
                    postponed.append(item)
                    break
                held += size
                waiting.append((pool.submit(make, item), size))
            if not waiting:
                return
            future, size = waiting[0]
            result = future.result()
            waiting.popleft()
            held -= size
            yield result
            del result, future
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
