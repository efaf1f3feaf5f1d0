"""Functions that Ray tasks of the tests run: a worker process imports them by name."""

import os
from pathlib import Path

from sr3_core.errors import BadInput


def square(number: int) -> int:
    return number * number


def dies_once(marker: str) -> str:
    """Ends its process the first time."""
    if not Path(marker).exists():
        Path(marker).touch()
        os._exit(3)
    return "alive"


def fails(number: int) -> int:
    if number == 2:
        raise ValueError("two is not allowed")
    return number


def refuses(text: str) -> str:
    """Leaves a file per attempt and refuses its input."""
    with Path(text).open("a") as stream:
        stream.write("x")
    raise BadInput("a photo", "another one", "take it")
