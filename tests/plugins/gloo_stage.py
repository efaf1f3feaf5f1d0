"""One plain gloo process that trains a stage without Ray: ``python -m tests.plugins.gloo_stage FOLDER RANK WORLD_SIZE STAGE SHARDS``."""

import os
import sys
from pathlib import Path

import torch

from sr3_core import config
from sr3_core.artifacts.shardset import ShardSet
from sr3_core.config import Stage
from sr3_core.training.loop import train
from sr3_core.training.state import CheckpointStore
from sr3_core.training.worker import GlooWorker


def main(folder: Path, rank: int, world_size: int, section: str, shards: str) -> None:
    torch.set_num_threads(1)
    worker = GlooWorker(folder / "meeting", rank=rank, world_size=world_size)
    store = CheckpointStore(str(folder / "checkpoints"), keep=1, say=print)
    stage = config.parse(Stage, section)
    train(stage, ShardSet.open(shards), worker=worker, checkpoints=store, log=lambda *_: None, say=print)
    worker.barrier()
    worker.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5])
    sys.stdout.flush()
    os._exit(0)
