"""Progress lines of a room: whole lines ``sr3| <room> <stage> done/total rate left``, rare enough for a log and a server."""

import os
import sys
import time
from types import TracebackType

PREFIX = "sr3| "


def say(room: str, text: str) -> None:
    """One line for the person who watches; ``sr3 run`` shows these lines alone."""
    print(f"{PREFIX}{room} {text}", flush=True)


class Progress:
    """Counts ``unit`` and prints at most one line every ``SR3_PROGRESS_SECONDS`` (5), the first and last always.

    Use as ``with Progress("prepare", "shards", total=12, unit="shards") as progress: progress.advance(1)``.
    """

    def __init__(self, room: str, stage: str, *, total: int, unit: str, done: int = 0) -> None:
        self.room, self.stage, self.total, self.unit = room, stage, total, unit
        self.done = self._first = done
        self._every = float(os.environ.get("SR3_PROGRESS_SECONDS", "5"))
        self._start = time.monotonic()
        self._last = float("-inf")

    def __enter__(self) -> "Progress":
        self._show()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None and self.done < self.total:
            self._show()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count ``count`` more; ``note`` is appended (a loss, a name)."""
        self.done += count
        if self.done >= self.total or time.monotonic() - self._last >= self._every:
            self._show(note)

    def _show(self, note: str = "") -> None:
        self._last = time.monotonic()
        seconds = self._last - self._start
        made = self.done - self._first
        rate = made / seconds if made and seconds > 0 else 0.0
        left = _duration((self.total - self.done) / rate) if rate else "?"
        text = f"{self.stage} {self.done}/{self.total} {self.unit} {rate:.3g}/s left {left}"
        say(self.room, f"{text} {note}".rstrip())
        sys.stdout.flush()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
