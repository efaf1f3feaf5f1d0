"""Steps whose loss or gradient is not finite: left out and counted; too many in a row send the run back to its checkpoint, then end it."""

import math
from collections.abc import Callable

import torch

from sr3_core.config import Stage
from sr3_core.errors import Failed
from sr3_core.training.precision import Precision
from sr3_core.training.state import CheckpointStore, TrainState
from sr3_core.training.worker import Worker


class Guard:
    """Decides of every step whether its gradient may move the weights; every rank decides alike.

    A step that may not leaves weights, moments and averages as they are, and the run goes on with the next images. After
    ``training.max_skipped`` such steps in a row the run goes back to its last checkpoint, and it ends with Failed when it has such a row
    again before it is past those images. With ``max_skipped`` 0 the first such step ends the run. A gradient that float16's loss scale
    drove over its range is none of these: that step is left out and counted, and the scale halved. ``say``: what rank 0 tells the user.
    """

    def __init__(
        self, stage: Stage, precision: Precision, *, worker: Worker, checkpoints: CheckpointStore, say: Callable[[str], None]
    ) -> None:
        self._stage, self._worker, self._checkpoints, self._say = stage, worker, checkpoints, say
        self._precision = precision
        self._max_skipped = stage.training.max_skipped
        self._gave_up_at = -1

    def passes(self, state: TrainState, *, loss: float, gradient_norm: float, turn: str) -> bool:
        """Whether the step at ``state.images_seen`` may be taken; ``loss``: mean over the ranks. Counts it otherwise. Raises Failed."""
        training, carried = self._stage.training, state.carried
        finite = math.isfinite(loss) and math.isfinite(gradient_norm)
        if self._counts:
            finite = self._on_all_ranks(finite)
        if finite:
            carried.skipped_in_row = 0
            self._precision.stayed(carried)
            return True
        if math.isfinite(loss) and self._precision.overflowed(carried):
            carried.skipped += 1
            return False
        place = f"images {state.images_seen} to {state.images_seen + training.global_batch}, turn {turn}"
        what = f"{place}: loss {loss}, gradient norm {gradient_norm}: not finite"
        if not self._max_skipped:
            raise Failed(f"stage {self._stage.name}, {what}; lower the learning rate or the precision's range")
        carried.skipped += 1
        carried.skipped_in_row += 1
        self._say(f"{what}; step left out, {carried.skipped_in_row} in a row of at most {self._max_skipped}, {carried.skipped} in all")
        return False

    def rolls_back(self, state: TrainState, *, wait: Callable[[], None]) -> bool:
        """Go back to the last checkpoint when too many steps in a row were left out; whether it did. ``wait``: for one being written.

        Raises Failed when there is no checkpoint, and when a row ends again where one ended before, or earlier.
        """
        if not self._max_skipped or state.carried.skipped_in_row < self._max_skipped:
            return False
        row = f"{self._max_skipped} steps in a row up to {state.images_seen} images were not finite"
        again = f"stage {self._stage.name}: {row}"
        do = "lower the learning rate, raise training.optimizer.epsilon or use training.precision=float32"
        if state.images_seen <= self._gave_up_at:
            raise Failed(f"{again}, again after going back to a checkpoint; {do}")
        self._gave_up_at = state.images_seen
        wait()
        checkpoint = self._worker.broadcast(self._checkpoints.latest() if self._worker.rank == 0 else None)
        if checkpoint is None:
            raise Failed(f"{again}, and there is no checkpoint to go back to; {do}")
        self._checkpoints.load(checkpoint, state)
        self._say(f"WARNING: {row}: going back to the checkpoint at {state.images_seen} images; if it happens there again, the run fails")
        return True

    def metrics(self, state: TrainState) -> dict[str, float]:
        """What a log line says of it: the steps left out since the start, float16's scale; nothing when the first one ends the run."""
        scale = {"loss_scale": state.carried.loss_scale} if self._precision.scaled else {}
        return {"skipped_steps": float(state.carried.skipped), **scale} if self._counts else {}

    @property
    def _counts(self) -> bool:
        return self._max_skipped > 0 or self._precision.scaled

    def _on_all_ranks(self, finite: bool) -> bool:
        """A rank that alone sees trouble must not step, or wait, alone."""
        flag = torch.tensor([float(finite)], dtype=torch.float64, device=self._worker.device)
        return float(self._worker.all_reduce_mean(flag)) == 1.0
