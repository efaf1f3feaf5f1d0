"""A local folder that keeps, in order, what could not be sent yet. Knows nothing of where it is sent."""

import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any

_ENTRIES, _FILES = "entries.jsonl", "files"


class Journal:
    """Entries (JSON objects) in the order they were appended; they outlive the process. One writer: the folder is locked.

    An entry's ``path`` names a local file that may be gone later: it is copied into the journal. Raises BlockingIOError when
    another process holds the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock: int | None = None
        if folder.is_dir():
            self._hold()
        self._count = len(self.entries())

    def __len__(self) -> int:
        return self._count

    def entries(self) -> list[dict[str, Any]]:
        """All entries; a last line cut off by a kill is left out."""
        path = self.folder / _ENTRIES
        if not path.is_file():
            return []
        lines = path.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines[:-1]]

    def append(self, entry: dict[str, Any]) -> None:
        """Keep ``entry``; it is on disk when this returns."""
        if self._lock is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._hold()
        if "path" in entry:
            entry = {**entry, "path": str(self._copy(Path(entry["path"])))}
        path = self.folder / _ENTRIES
        if path.is_file() and not path.read_bytes().endswith(b"\n"):
            self._rewrite(self.entries())
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._count += 1

    def drop(self, count: int) -> None:
        """Forget the first ``count`` entries; the folder goes with the last one."""
        kept = self.entries()[count:]
        if not kept:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.release()
        elif count:
            self._rewrite(kept)
        self._count = len(kept)

    def release(self) -> None:
        """Let another process take the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _hold(self) -> None:
        lock = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise
        self._lock = lock

    def _rewrite(self, entries: list[dict[str, Any]]) -> None:
        path = self.folder / _ENTRIES
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
        os.replace(temporary, path)

    def _copy(self, path: Path) -> Path:
        files = self.folder / _FILES
        number = len(list(files.iterdir())) if files.is_dir() else 0
        target = files / f"{number:06d}" / path.name  # its own folder: an artifact keeps its file name
        target.parent.mkdir(parents=True)
        return Path(shutil.copyfile(path, target))
