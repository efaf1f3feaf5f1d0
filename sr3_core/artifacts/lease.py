"""One writer a folder: a lease file with a heartbeat. A second writer is refused; a stale lease is taken over, aloud."""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sr3_core import progress, storage
from sr3_core.errors import BadInput, Failed

LEASE = "lease.json"
HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 60.0
IN_USE = " is in use by "  # in the line of InUse, by which another process knows it
WAIT_SECONDS = 5.0  # a predecessor on this machine that was just told to stop may need that long
_SETTLE_SECONDS = 0.2  # two that take over at once: the later one's lease is in place by then


class InUse(BadInput):
    """Another process writes to the folder, or died without a word: unlike other bad input it may be mended by waiting."""


class Lease:
    """A lease that is held: ``check`` before what must not be done by two."""

    def __init__(self, uri: str, task: str) -> None:
        now = time.time()
        self.uri, self.task = uri, task
        self._content: dict[str, Any] = {**_self(), "task": task, "since": now, "heartbeat": now, "token": uuid.uuid4().hex}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"lease {task}", daemon=True)

    def check(self) -> None:
        """Raise Failed when somebody else holds the lease by now (this process was suspended for longer than it is valid)."""
        holder = _read(self.uri)
        if holder is None or holder.get("token") != self._content["token"]:
            raise Failed(
                f"{self.task}: lost its lease {self.uri} to {_name(holder)}; nothing was published, run it again when that is done"
            )

    def take(self, wait_seconds: float) -> None:
        """Create the lease file, or take over a stale one. Raises InUse when somebody else has it."""
        until = time.monotonic() + wait_seconds
        while not storage.create_exclusive(self.uri, self._bytes()):
            holder = _read(self.uri)
            why = _stale(holder)
            if why is not None:
                progress.say(self.task, f"takes over the lease of {_name(holder)} ({why})")
                storage.write_bytes(self.uri, self._bytes())
                time.sleep(_SETTLE_SECONDS)
                current = _read(self.uri)
                if current is not None and current.get("token") == self._content["token"]:
                    break
            elif holder is not None and (time.monotonic() >= until or holder.get("host") != self._content["host"]):
                since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(holder["since"])))
                got = f"{self.uri.rpartition('/')[0]}{IN_USE}{_name(holder)}, since {since}"
                raise InUse(got, "one writer at a time", "wait for it or end it; a lease without a heartbeat for 60 s is taken over")
            time.sleep(_SETTLE_SECONDS)
        self._thread.start()

    def release(self) -> None:
        """End the heartbeat and delete the lease file, unless somebody else took it over."""
        self._stop.set()
        self._thread.join()
        holder = _read(self.uri)
        if holder is not None and holder.get("token") == self._content["token"]:
            storage.remove(self.uri)

    def _bytes(self) -> bytes:
        return storage.json_bytes(self._content)

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                holder = _read(self.uri)
                if holder is None or holder.get("token") != self._content["token"]:
                    progress.say(self.task, f"lost its lease {self.uri} to {_name(holder)}; it stops before it publishes")
                    return
                self._content["heartbeat"] = time.time()
                storage.write_bytes(self.uri, self._bytes())
            except (OSError, BadInput, Failed) as error:  # the next beat tries again; the work itself meets a store that stays away
                progress.say(self.task, f"no heartbeat written to {self.uri} ({error})")


@contextmanager
def lease(folder_uri: str, *, task: str, wait_seconds: float = WAIT_SECONDS) -> Generator[Lease, None, None]:
    """Hold the folder's lease while the block runs, for instance ``with lease(uri, task="train sr256") as held:``.

    Raises InUse "in use by host:pid, since ..." when another process holds it; one on this machine is waited for
    ``wait_seconds``. A lease is stale when its heartbeat is 60 s old or its process on this machine is gone.
    """
    held = Lease(storage.join(storage.absolute(folder_uri), LEASE), task)
    held.take(wait_seconds)
    try:
        yield held
    finally:
        held.release()


def _self() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "process": _process(os.getpid()), "namespace": _namespace()}


def _process(pid: int) -> str | None:
    """The start time of a process, which tells it from a later one with its pid; None when it is gone (or a zombie)."""
    status = Path(f"/proc/{pid}/stat")
    if not status.parent.parent.joinpath("self").exists():
        return _process_without_proc(pid)
    try:
        fields = status.read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields[19]


def _process_without_proc(pid: int) -> str | None:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return "alive"
    return "alive"


def _namespace() -> str:
    """Pids can be compared within one pid namespace alone: two containers may share a host name."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _stale(holder: dict[str, Any] | None) -> str | None:
    """Why the lease of ``holder`` no longer counts; None when it does (or was released just now)."""
    if holder is None:
        return None
    times = (holder.get("since"), holder.get("heartbeat"))
    if not {"host", "pid", "token"} <= holder.keys() or not all(isinstance(value, int | float) for value in times):
        return "its file is damaged"
    here = _self()
    if (holder["host"], holder.get("namespace")) == (here["host"], here["namespace"]) and _process(holder["pid"]) != holder.get("process"):
        return "that process is gone"
    age = time.time() - float(holder["heartbeat"])
    return f"no heartbeat for {age:.0f} s" if age > STALE_SECONDS else None


def _name(holder: dict[str, Any] | None) -> str:
    return "nobody" if holder is None else f"{holder.get('host', '?')}:{holder.get('pid', '?')} ({holder.get('task', '?')})"


def _read(uri: str) -> dict[str, Any] | None:
    """The lease file's content; None when there is none, an empty one when it is damaged."""
    try:
        value = json.loads(storage.read_bytes(uri))
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
