"""Two plain gloo processes: ``python -m tests.plugins.gloo_guard FOLDER``. Only rank 1 ever makes a loss not finite.

Once at the step from 24 images on, and at the two from 48 on, which make a row: the group goes back to 48 images. Then rank 1 says that it
waited twice as long for data as rank 0.
"""

import hashlib
import json
import sys
from functools import partial
from pathlib import Path

from sr3_core.training.loop import train
from sr3_core.training.pace import Pace
from sr3_core.training.state import CheckpointStore
from sr3_core.training.worker import GlooWorker
from tests.plugins import faulty_objective, forked, tiny_objective

NAME = "tests.plugins.faulty_objective"


def main(folder: Path, rank: int) -> None:
    worker = GlooWorker(folder / "meeting", rank=rank, world_size=2, bucket_megabytes=0.02)
    stage = tiny_objective.stage(options={"width": 16}, max_skipped=2)
    stage = stage.model_copy(update={"objective": stage.objective.model_copy(update={"name": NAME})})
    if rank == 1:
        faulty_objective.FAULTS.update({34: 1, 54: 1, 66: 1})
    said: list[str] = []
    store = CheckpointStore(str(folder / "checkpoints"), keep=2, say=said.append)
    state = train(stage, None, worker=worker, checkpoints=store, batches=tiny_objective.Memory(), say=said.append, log=lambda *_: None)
    weights = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in state.players["net"].state_dict().values())).hexdigest()
    pace = Pace(stage, ("net",), worker=worker, say=said.append)
    line = pace.line(images=12, seconds=2.0, waited=0.5 * (1 + rank))
    result = {"weights": weights, "carried": state.carried.to_json(), "said": said, "pace": line}
    (folder / f"{rank}.json").write_text(json.dumps(result))
    worker.barrier()
    worker.close()


if __name__ == "__main__":
    forked.run(partial(main, Path(sys.argv[1])), 2)
