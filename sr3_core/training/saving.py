"""Checkpoints beside the training: a step waits for a copy in memory, a thread writes, verifies and drops. No format here."""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from sr3_core.training.state import Checkpoint, CheckpointStore, Snapshot, TrainState


class Saver:
    """Saves states into ``store``, one at a time; ``facts`` (stage, environment) become part of each manifest.

    Use it as a context: its end waits for the checkpoint that is being written. An error of the writer is raised by the next ``check``,
    ``save`` or ``wait``, once. Costs host memory for one copy of the state.
    """

    def __init__(self, store: CheckpointStore, facts: Mapping[str, Any]) -> None:
        self._store, self._facts = store, facts
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sr3-checkpoint")
        self._writing: Future[Checkpoint] | None = None
        self._copy: Snapshot | None = None

    def save(self, state: TrainState) -> None:
        """Copy ``state`` and return; waits for the checkpoint before first, whose memory is used again."""
        self.wait()
        self._copy = state.snapshot(self._copy)
        self._writing = self._writer.submit(self._store.save, self._copy, self._facts)

    def check(self) -> None:
        """Raise what the writer raised; returns at once."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Return when the last checkpoint is written and verified; raises what the writer raised."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        try:
            self.wait()
        except Exception as own:
            if error is None:
                raise
            error.add_note(f"the checkpoint that was being written failed too: {own}")  # the first error is the one to act on
        finally:
            self._writer.shutdown()
