"""Groups of plain gloo processes that train the tiny objective: ``python -m tests.plugins.gloo_train FOLDER PLANS``.

PLANS (JSON) are lists of groups by name, each of which works in the folder of that name below FOLDER. Groups run one after another,
forked from this process, which imports torch and its compiler once. A group is {"run": name of its folder of checkpoints, "workers": how
many, "training": changes of the stage, "kill": {rank: step}, "kill_all": step, "term": {rank: step}, "from": [run, images]}: at the end of
its step-th step a rank sends itself KILL or TERM; with "kill_all" every rank does. "from" begins with a copy of that checkpoint. What rank
0 logs is added to ``<run>.jsonl``, what it says to ``<run>.said``, and how each group ended to ``ended.json``.
"""

import json
import os
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # torch's optimizers import it: here once for all lives, a second and a half each

from sr3_core.training.loop import train
from sr3_core.training.state import CheckpointStore
from sr3_core.training.worker import GlooWorker, stop_on
from tests.plugins.tiny_objective import Memory, stage

BUCKET_MEGABYTES = 0.1  # of 0.45 MB of gradients: five buckets


def work(folder: Path, group: dict[str, Any], *, rank: int, meeting: Path) -> None:
    """One worker's life."""
    kill = group.get("kill", {}).get(str(rank), group.get("kill_all"))
    term = group.get("term", {}).get(str(rank))
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1
        if steps == kill:
            os.kill(os.getpid(), signal.SIGKILL)
        if steps == term:
            os.kill(os.getpid(), signal.SIGTERM)

    def write(name: str, text: str) -> None:
        with (folder / name).open("a") as stream:
            stream.write(text + "\n")

    with stop_on(signal.SIGTERM) as stop:

        def after_step() -> bool:
            count()
            return stop()

        worker = GlooWorker(meeting, rank=rank, world_size=group["workers"], bucket_megabytes=BUCKET_MEGABYTES, stop=after_step)
        train(
            stage(options={"width": 32}, **group.get("training", {})),
            None,
            worker=worker,
            checkpoints=CheckpointStore(str(folder / group["run"]), keep=99, say=lambda text: write(f"{group['run']}.said", text)),
            batches=Memory(),
            say=lambda text: write(f"{group['run']}.said", text),
            log=lambda at, line: write(f"{group['run']}.jsonl", json.dumps([at, line])),
        )
        worker.barrier()
        worker.close()


def main(folder: Path, plans: dict[str, list[dict[str, Any]]]) -> None:
    torch.set_num_threads(1)
    for name, groups in plans.items():
        lived = [life_of(folder / name, group, meeting=folder / f"{name}.meeting{number}") for number, group in enumerate(groups)]
        (folder / name / "ended.json").write_text(json.dumps(lived))


def life_of(folder: Path, group: dict[str, Any], *, meeting: Path) -> list[int]:
    """Run one group to its end; by rank the exit code, or minus the signal. Those who wait for a dead one are killed."""
    if "from" in group:
        run, images = group["from"]
        shutil.copytree(folder / run / f"{images:012d}", folder / group["run"] / f"{images:012d}")
    pids: list[int] = []
    for rank in range(group["workers"]):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                work(folder, group, rank=rank, meeting=meeting)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        pids.append(pid)
    codes: dict[int, int] = {}
    deadline = 0.0
    while len(codes) < len(pids):
        for pid in set(pids) - codes.keys():
            gone, status = os.waitpid(pid, os.WNOHANG)
            if gone:
                codes[pid] = os.waitstatus_to_exitcode(status)
                deadline = deadline or time.monotonic() + 10
            elif any(codes.values()) and time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return [codes[pid] for pid in pids]


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
