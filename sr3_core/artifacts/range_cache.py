"""A folder on this machine that keeps byte ranges of shards, so that a remote store is asked once for each. It knows no images."""

import os
import threading
from contextlib import suppress
from pathlib import Path

from sr3_core import storage
from sr3_core.errors import BadInput
from sr3_core.progress import say

_KEEP = 0.9  # of the bound: eviction goes on to there, so that it does not come with every file


class RangeCache:
    """Ranges under ``folder``, at most ``max_bytes`` in all; those not read for longest go first.

    Several threads and processes may share the folder: a file appears whole, under the name of its shard's sha256 and its range, and
    one that another process has deleted is read from the store again. Each counts what it wrote since it last looked at the folder, so
    n processes may pass the bound by what n - 1 of them wrote in between, a tenth of the bound each at most. What cannot be written (a full
    disk) is not kept, which is said once.
    """

    def __init__(self, folder: str, max_bytes: int) -> None:
        """Makes ``folder``. Raises BadInput for one that is not on this machine or cannot be written."""
        self.folder, self.max_bytes = storage.local_path(folder), max_bytes
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(f"shard cache {folder} cannot be made ({error.strerror})", "a folder you may write", "choose another") from None
        storage.check_writable(str(self.folder))
        self._lock, self._told = threading.Lock(), False
        self._bytes, self._written = sum(size for _, size, _ in self._files()), 0
        self._evict()

    def read(self, shard_uri: str, shard_sha256: str, start: int, length: int) -> bytes:
        """``storage.read_range(shard_uri, start, length)``, from the folder where it is there. Raises what that raises."""
        path = self.folder / shard_sha256[:2] / f"{shard_sha256}-{start}-{length}"
        with suppress(OSError):  # not there, or another user's: then it is read from the store
            data = path.read_bytes()
            if len(data) == length:
                with suppress(OSError):
                    os.utime(path)
                return data
        data = storage.read_range(shard_uri, start, length)
        if length > self.max_bytes or len(data) != length:  # a shard cut short is for the reader to find out
            return data
        try:
            storage.write_bytes(str(path), data)
        except FileNotFoundError:  # taken by another's eviction before it had its name: then it is not kept
            pass
        except (OSError, BadInput) as error:  # a full disk: the cache is a short cut, and training goes on without it
            if not self._told:
                say("cache", f"a range of {shard_uri} is not kept, and more may not be ({error})")
            self._told = True
            return data
        with self._lock:
            self._bytes += length
            self._written += length
            if self._bytes > self.max_bytes or self._written > (1 - _KEEP) * self.max_bytes:
                self._evict()
        return data

    def _evict(self) -> None:
        files = sorted(self._files())
        self._bytes, self._written = sum(size for _, size, _ in files), 0
        if self._bytes <= self.max_bytes:
            return
        for _, size, path in files:
            if self._bytes <= _KEEP * self.max_bytes:
                return
            path.unlink(missing_ok=True)
            self._bytes -= size

    def _files(self) -> list[tuple[int, int, Path]]:
        """(time of the last read, bytes, path) of each range that is kept."""
        found: list[tuple[int, int, Path]] = []
        for path in self.folder.glob("*/*-*-*"):
            with suppress(FileNotFoundError):  # another process may evict too
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_size, path))
        return found
