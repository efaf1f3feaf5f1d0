"""Functions that Ray tasks of the tests run: a worker process imports them by name."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sr3_core.data import shards
from sr3_core.errors import BadInput


def square(number: int) -> int:
    return number * number


def dies_once(marker: str) -> str:
    """Ends its process the first time."""
    if not Path(marker).exists():
        Path(marker).touch()
        os._exit(3)
    return "alive"


def raises_once(marker: str) -> str:
    """A store that does not answer the first time."""
    if not Path(marker).exists():
        Path(marker).touch()
        raise ConnectionResetError("the store hung up")
    return "answered"


@dataclass(frozen=True)
class Troubled:
    """A shard to be made by a worker that is killed (or a store that fails) the first time, half-way through."""

    marker: str
    how: str
    task: shards.ShardTask


def make_shard_on_second_try(item: Troubled) -> tuple[dict[str, Any], bool]:
    marker = Path(item.marker)
    if not marker.exists():
        marker.touch()
        if item.how == "raised":
            raise ConnectionResetError("the store hung up")
        place = Path(item.task.uri, item.task.shard.name)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"half a shard")
        os.kill(os.getpid(), signal.SIGKILL)
    return shards.make_shard(item.task)


def fails(number: int) -> int:
    if number == 2:
        raise ValueError("two is not allowed")
    return number


def refuses(text: str) -> str:
    """Leaves a file per attempt and refuses its input."""
    with Path(text).open("a") as stream:
        stream.write("x")
    raise BadInput("a photo", "another one", "take it")
