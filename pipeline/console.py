"""What `sr3 run` shows and keeps: every line goes to run.log, the rooms' `sr3|` lines alone to the console (a bar on a terminal)."""

import io
import re
import sys
from collections import deque
from pathlib import Path
from typing import TextIO

from sr3_core.progress import PREFIX

TAIL_LINES = 20
_BAR = 24  # characters
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_COUNT = re.compile(r"^(?P<what>.*?) (?P<done>\d+)/(?P<total>\d+) (?P<rest>.*)$")
_FINISHED = re.compile(r"^(?P<task>\S+) finished in (?P<seconds>\d+) s$")
_TASK_FAILED = re.compile(r"Task '.*' finished with status FAILURE")
_TASK_STARTS = re.compile(r"Executing task '")
_ENGINE = re.compile(r"^\[KFP Executor |^\d\d:\d\d:\d\d\.\d+ - |^-{20,}$")  # what the engine says about itself
_ENGINE_BLOCK = ("Got executor_input:", "    }")  # its first and last line


class Console(io.TextIOBase):
    """A text stream that stands in for stdout while the pipeline runs. ``seconds`` collects the time of each finished task."""

    def __init__(self, log: Path, *, terminal: TextIO, verbose: bool) -> None:
        self.seconds: dict[str, int] = {}
        self._log = log.open("a", encoding="utf-8", errors="replace")
        self._terminal: TextIO | None = terminal
        self._bars = terminal.isatty() and not verbose
        self._verbose = verbose
        self._part = ""
        self._recent: deque[str] = deque(maxlen=TAIL_LINES)
        self._failure: list[str] = []
        self._bar_open = False
        self._in_block = False

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._part = (self._part + text).split("\n")
        for line in lines:
            self._line(_COLOUR.sub("", line.rstrip("\r")))
        return len(text)

    def flush(self) -> None:
        if not self._log.closed:
            self._log.flush()

    def say(self, text: str) -> None:
        """A line of the run itself: to the log and the console."""
        self._keep(text)
        self._show(text)

    def tail(self) -> list[str]:
        """The last lines before the first task that failed, else the last lines."""
        return self._failure or list(self._recent)

    def close(self) -> None:
        self._end_bar()
        self._log.close()
        super().close()

    def _line(self, line: str) -> None:
        self._keep(line)
        text = line.strip()
        if _TASK_FAILED.search(text) and not self._failure:
            self._failure = list(self._recent)
        if _TASK_STARTS.search(text):
            self._recent.clear()
        if text.startswith(PREFIX):
            said = text.removeprefix(PREFIX)
            if found := _FINISHED.match(said):
                self.seconds[found["task"]] = int(found["seconds"])
            if " failed: " not in said:  # the run says it again, once, at its end
                self._show(said)
        elif self._verbose and line:
            self._show(line)

    def _keep(self, line: str) -> None:
        self._log.write(line + "\n")
        self._log.flush()
        if _ENGINE_BLOCK[0] in line:
            self._in_block = True
        elif self._in_block:
            self._in_block = line != _ENGINE_BLOCK[1]
        elif line.strip() and not _ENGINE.search(line.strip()):
            self._recent.append(line.strip())

    def _show(self, text: str) -> None:
        if self._bars and (found := _COUNT.match(text)):
            share = int(found["done"]) / max(1, int(found["total"]))
            bar = "#" * round(_BAR * share)
            self._print(f"\r\x1b[K{found['what']} [{bar:<{_BAR}}] {found['done']}/{found['total']} {found['rest']}")
            self._bar_open = True
            if share >= 1:
                self._end_bar()
            return
        self._end_bar()
        self._print(text + "\n")

    def _end_bar(self) -> None:
        if self._bar_open:
            self._bar_open = False
            self._print("\n")

    def _print(self, text: str) -> None:
        if self._terminal is None:
            return
        try:
            self._terminal.write(text)
            self._terminal.flush()
        except (OSError, ValueError):
            self._terminal = None  # the terminal is gone (a closed window, a closed pipe): the log goes on


def error(text: str) -> None:
    """One line for what went wrong, on stderr."""
    print(f"sr3: {_COLOUR.sub('', text)}", file=sys.__stderr__, flush=True)
