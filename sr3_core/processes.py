"""This machine's processes as /proc shows them: descendants, their memory, their end. Linux only; nothing here knows what they do."""

import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

_PROC = Path("/proc")


def identity(pid: int) -> str:
    """``pid:start time``: names one process for good, a re-used pid has another start time. Empty when there is no such process."""
    fields = _stat(pid)
    return f"{pid}:{fields[19]}" if fields and fields[0] != "Z" else ""


def is_alive(who: str) -> bool:
    """Whether the process that ``identity`` named still runs (a zombie does not)."""
    pid = who.partition(":")[0]
    return bool(who) and pid.isdigit() and identity(int(pid)) == who


def descendants(pid: int) -> list[int]:
    """All processes below ``pid``, parents before children."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))) and fields[0] != "Z":
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found: list[int] = []
    waiting = [pid]
    while waiting:
        below = children.get(waiting.pop(0), [])
        found += below
        waiting += below
    return found


def depth_below(pid: int, ancestor: int) -> int:
    """How many parents stand from ``pid`` up to ``ancestor`` (1 for its child); 0 when it is not below it."""
    depth = 0
    while pid > 1 and (fields := _stat(pid)):
        depth += 1
        pid = int(fields[1])
        if pid == ancestor:
            return depth
    return 0


def memory_bytes(pids: Iterable[int]) -> int:
    """Memory of the processes: proportional set size, so that a shared page counts once; resident size where that is not readable."""
    total = 0
    for pid in pids:
        try:
            rollup = (_PROC / str(pid) / "smaps_rollup").read_text()
            total += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) * 1024
        except (OSError, StopIteration):
            try:
                total += int((_PROC / str(pid) / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            except OSError:
                continue  # it ended between the listing and the look
    return total


def end(pids: Iterable[int], *, patience_seconds: float = 5.0) -> None:
    """TERM, then KILL after ``patience_seconds``; returns when all are gone or were sent KILL."""
    known = {pid: identity(pid) for pid in pids}
    _send(known, signal.SIGTERM)
    deadline = time.monotonic() + patience_seconds
    while any(is_alive(who) for who in known.values()) and time.monotonic() < deadline:
        time.sleep(0.05)
    _send(known, signal.SIGKILL)


def _send(known: dict[int, str], number: signal.Signals) -> None:
    for pid, who in known.items():
        if is_alive(who):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue


def _stat(pid: int) -> list[str]:
    """Fields of /proc/<pid>/stat from the state on (0 state, 1 parent, 19 start time); empty when the process is gone."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return []
    return text.rpartition(")")[2].split()
