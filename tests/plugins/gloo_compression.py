"""Two plain gloo processes: ``python -m tests.plugins.gloo_compression FOLDER``.

Trains with gradients sent as they are, in bfloat16, in bfloat16 broken off after three steps, and in float16; rank 0 keeps the checkpoints
in folders of these names.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

from sr3_core.training.loop import train
from sr3_core.training.state import CheckpointStore
from sr3_core.training.worker import GlooWorker
from tests.plugins import forked
from tests.plugins.tiny_objective import Memory, stage


class Stopping(GlooWorker):
    """Stops in order after ``steps`` more steps."""

    steps = -1

    def should_stop(self) -> bool:
        self.steps -= 1
        return self.steps == 0


def main(folder: Path, rank: int) -> None:
    worker = Stopping(folder / "meeting", rank=rank, world_size=2, bucket_megabytes=0.02)
    for name, kind, stops in (
        ("plain", None, (-1,)), ("bfloat16", "bfloat16", (-1,)), ("broken", "bfloat16", (3, -1)), ("float16", "float16", (-1,))
    ):  # fmt: skip
        training: dict[str, Any] = {} if kind is None else {"gradient_compression": kind}
        store = CheckpointStore(str(folder / name), keep=1, say=print)
        for worker.steps in stops:
            section = stage(options={"width": 16}, **training)
            train(section, None, worker=worker, checkpoints=store, batches=Memory(), say=print, log=lambda *_: None)
    worker.barrier()
    worker.close()


if __name__ == "__main__":
    forked.run(partial(main, Path(sys.argv[1])), 2)
