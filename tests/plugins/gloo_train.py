"""One plain gloo process: ``python -m tests.plugins.gloo_train FOLDER RANK WORLD_SIZE`` trains once undisturbed and once with breaks.

Rank 0 leaves ``<name>.json`` (the log) and ``<name>/`` (the checkpoints) for the runs "whole" and "broken"; the broken one ends
without warning at each of BREAKS and goes on from its newest checkpoint, with everything built anew.
"""

import json
import os
import sys
from pathlib import Path

import torch

from sr3_core.training.loop import train
from sr3_core.training.state import CheckpointStore
from sr3_core.training.worker import GlooWorker
from tests.plugins.tiny_objective import Memory, stage

BREAKS = (36, 72)
BUCKET_MEGABYTES = 0.2


class Broken(Exception):
    """Stands for the loss of a worker."""


class Mortal(GlooWorker):
    """Every rank of the group breaks off after the step at ``end`` images, before anything more is written."""

    steps = 0
    end: int | None = None

    def should_stop(self) -> bool:
        self.steps += 1
        if self.end is not None and self.start + self.steps * 12 == self.end:
            raise Broken
        return False


def main(folder: Path, rank: int, world_size: int) -> None:
    torch.set_num_threads(1)
    worker = Mortal(folder / "meeting", rank=rank, world_size=world_size, bucket_megabytes=BUCKET_MEGABYTES)
    for name, ends in (("whole", (None,)), ("broken", (*BREAKS, None))):
        lines: list[tuple[int, dict[str, float]]] = []
        store = CheckpointStore(str(folder / name), keep=2, say=lambda text: None)
        for end in ends:
            latest = worker.broadcast(store.latest() if rank == 0 else None)
            worker.start, worker.steps, worker.end = latest.images_seen if latest else 0, 0, end
            try:
                train(
                    stage(),
                    None,
                    worker=worker,
                    checkpoints=store,
                    batches=Memory(),
                    say=print,
                    log=lambda at, line, lines=lines: lines.append((at, line)),
                )
            except Broken:
                continue
        if rank == 0:
            (folder / f"{name}.json").write_text(json.dumps(lines))
    worker.barrier()
    worker.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    sys.stdout.flush()
    os._exit(0)
