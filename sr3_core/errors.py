"""The errors a user can cause and mend. Exit codes and their meaning stand here; printing them is the entry's work."""

import difflib
from collections.abc import Sequence

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_BAD_INPUT = 2


class BadInput(Exception):
    """Input that cannot be used: says in one line what was got, what is allowed and what to do.

    Every entry point prints ``str(error)`` without a traceback and exits with ``EXIT_BAD_INPUT``.
    """

    def __init__(self, got: str, allowed: str, do: str) -> None:
        super().__init__(got, allowed, do)
        self.got, self.allowed, self.do = (_one_line(text) for text in (got, allowed, do))

    def __str__(self) -> str:
        return f"bad input: {self.got}; allowed: {self.allowed}; do: {self.do}"


class Failed(Exception):
    """A run that cannot go on although its input was good (a gate not passed, a server gone): one line, exit 1."""


class BadImage(Exception):
    """Bytes that are no usable image. ``reason`` is one of few short texts, to be counted; ``detail`` says more."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, _one_line(detail)

    def __str__(self) -> str:
        return f"{self.reason} ({self.detail})" if self.detail else self.reason


def nearest(got: str, allowed: Sequence[str]) -> str:
    """The allowed values as text, the nearest to ``got`` first when there is one."""
    close = difflib.get_close_matches(got, allowed, n=1, cutoff=0.5)
    listed = ", ".join(allowed)
    return f"{close[0]} (nearest) of {listed}" if close else listed


def _one_line(text: str) -> str:
    return " ".join(str(text).split())
