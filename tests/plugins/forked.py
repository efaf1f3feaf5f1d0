"""Several ranks forked from one process that has imported torch once: what a gloo test's program starts its workers with."""

import os
import sys
import traceback
from collections.abc import Callable

import torch
import torch._dynamo  # torch's optimizers import it: here once for all ranks, a second and a half each


def run(work: Callable[[int], None], ranks: int) -> None:
    """``work(rank)`` in a process of its own for each rank, with one thread; ends this process with 1 when one of them failed, else 0."""
    torch.set_num_threads(1)
    pids: list[int] = []
    for rank in range(ranks):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                work(rank)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(code)
        pids.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    sys.exit(int(codes != [0] * ranks))
