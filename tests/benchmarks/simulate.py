"""Goodput of a group of workers under stragglers, preemption and restarts: our loop, gloo processes, fake compute, a throttled link.

    python -m tests.benchmarks.simulate [--workers 3] [--steps 60] [--scenarios steady killed ...] [--json simulate.json]

Every worker is a process that runs ``sr3_core.training.loop.train`` with DistributedDataParallel over gloo on this machine; checkpoints
and restarts are the loop's own. Only the work is fake: each layer sleeps in the forward pass, twice as long in the backward pass, and
the exchange of a bucket of gradients takes 2 (N - 1) / N x bytes / bandwidth more, one bucket at a time beside the backward pass.

Scenarios: ``steady``; ``stragglers``: one worker's micro-batch in ten takes five times as long; ``preempted``: halfway a worker gets
SIGTERM, all agree to stop after the step, write a checkpoint and start again; ``killed``: halfway a worker gets SIGKILL, the others are
ended, and all start again from the last checkpoint; ``elastic``: the same, but without the lost worker, which is back for the last
quarter (announced).

Goodput is the images of the run over its wall seconds, from the first step of its first group to the end, as a share of N workers that
compute without a link or any disturbance. Ending and starting a group (seconds of Python's imports here, minutes on a real cluster) is
given beside it, and goodput without it. "Steps lost" are those that were made twice.
"""

import argparse
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sr3_core import config
from sr3_core.config import DataParallel, Section, Stage
from sr3_core.data.loader import Batch
from sr3_core.seeds import generator
from sr3_core.training import loop
from sr3_core.training.state import CheckpointStore
from sr3_core.training.worker import GlooWorker, stop_on
from tests.benchmarks.train_step import Pairs

SCENARIOS = ("steady", "stragglers", "preempted", "killed", "elastic")
PER_WORKER = 2  # micro-batches of one image per step and worker of the full group
STRAGGLERS, TIMES = 0.1, 5.0
CHECKPOINT_STEPS = 8
GIVE_UP_SECONDS = 240.0
CHILD = "from tests.benchmarks import simulate; simulate.child()"  # as a module that the loop can import too


class Options(Section):
    """Fake work: ``seconds`` of compute a micro-batch in ``layers`` layers, ``megabytes`` of gradients in all; which micro-batches lag."""

    seconds: float = 0.05
    layers: int = 8
    megabytes: float = 8.0
    stragglers: float = 0.0


class _Busy(torch.autograd.Function):
    """The identity, which takes ``forward`` and ``backward`` seconds."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: float, backward: float) -> Tensor:
        time.sleep(forward)
        ctx.seconds = backward
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        time.sleep(ctx.seconds)
        return grads[0], None, None


class Net(nn.Module):
    """Layers of numbers that have gradients, and of time."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        size = int(options.megabytes * 1e6 / 4 / options.layers)
        self.layers = nn.ParameterList(nn.Parameter(torch.zeros(size)) for _ in range(options.layers))

    def forward(self, x: Tensor, seconds: float) -> Tensor:
        each = seconds / len(self.layers) / 3
        for layer in self.layers:
            x = _Busy.apply(x + layer.mean(), each, 2 * each)  # pyright: ignore[reportAssignmentType]
        return x


class Objective:
    """What the loop asks of an objective."""

    notes: tuple[str, ...] = ()
    turns = ("net",)
    exported = "net"

    def __init__(self, stage: Stage, measured: Mapping[str, float]) -> None:
        self.stage, self.options = stage, config.options(Options, stage.objective.options, "objective")

    @staticmethod
    def measure(stage: Stage, batches: Any) -> dict[str, float]:
        return {}

    def players(self) -> dict[str, nn.Module]:
        return {"net": Net(self.options)}

    def loss(self, turn: str, players: Mapping[str, Callable[..., Tensor]], batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        drawn = generator(self.stage.training.seed, "straggler", int(batch.sample_index[0])).random()
        lag = TIMES if drawn < self.options.stragglers else 1.0
        return players[turn](batch.high, self.options.seconds * lag).square().mean(), {}


class Link:
    """One worker's share of a network of ``bandwidth`` bytes/s: all-reduces take their time one after another, beside the compute."""

    def __init__(self, bandwidth: float, workers: int) -> None:
        self.seconds_per_byte = 2 * (workers - 1) / workers / bandwidth
        self.free, self.lock = 0.0, threading.Lock()

    def exchange(self, _: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        """A communication hook of DistributedDataParallel: the mean over the workers."""
        gradients = bucket.buffer().div_(dist.get_world_size())
        with self.lock:
            begun = self.free = max(self.free, time.monotonic()) + gradients.nbytes * self.seconds_per_byte
        done: torch.futures.Future[Any] = dist.all_reduce(gradients, async_op=True).get_future()

        def arrived(future: torch.futures.Future[Any]) -> Tensor:
            time.sleep(max(0.0, begun - time.monotonic()))
            return future.value()[0]

        return done.then(arrived)


class Member(GlooWorker):
    """A worker with a throttled link; rank 0 writes down when each step was done."""

    def __init__(self, folder: Path, group: int, *, rank: int, world_size: int, bandwidth: float, stop: Callable[[], bool]) -> None:
        meeting = folder / f"meeting-{group}"
        super().__init__(meeting, rank=rank, world_size=world_size, bucket_megabytes=1.0, timeout_seconds=GIVE_UP_SECONDS, stop=stop)
        self.link, self.steps, self.group = Link(bandwidth, world_size), folder / "steps", group

    def wrap(self, module: nn.Module, options: DataParallel) -> nn.Module:
        wrapped = super().wrap(module, options)
        if isinstance(wrapped, DistributedDataParallel):
            wrapped.register_comm_hook(None, self.link.exchange)
        return wrapped

    def should_stop(self) -> bool:
        if self.rank == 0:
            with self.steps.open("a") as stream:
                print(time.time(), self.group, file=stream)
        return super().should_stop()


def child() -> None:
    """One worker: ``FOLDER GROUP RANK WORLD_SIZE BANDWIDTH STAGE``."""
    folder, group, rank, world_size, bandwidth, section = sys.argv[1:]
    torch.set_num_threads(1)
    place = Path(folder)
    with stop_on(signal.SIGTERM) as stop:
        worker = Member(place, int(group), rank=int(rank), world_size=int(world_size), bandwidth=float(bandwidth), stop=stop)
        store = CheckpointStore(str(place / "checkpoints"), keep=2, say=print)
        stage = config.parse(Stage, section)
        state = loop.train(stage, None, worker=worker, checkpoints=store, batches=Pairs(8, 4), log=lambda *_: None, say=print)
    worker.barrier()  # rank 0 has written by now
    if worker.rank == 0:
        (place / "seen").write_text(str(state.images_seen))
    sys.stdout.flush()
    os._exit(0)


class Step(NamedTuple):
    """One that was made: when, and by which group."""

    at: float
    group: int


class Run:
    """One scenario: starts groups of workers on one folder, disturbs them and starts them again until all images are seen."""

    def __init__(self, folder: Path, stage: Stage, bandwidth: float) -> None:
        self.folder, self.stage, self.bandwidth = folder, stage, bandwidth
        self.groups = 0
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, workers: int) -> None:
        """A new group, once the last one is gone."""
        self.groups += 1
        section = self.stage.model_dump_json()
        self.processes = []
        for rank in range(workers):
            values = (self.folder, self.groups, rank, workers, self.bandwidth, section)
            command = [sys.executable, "-c", CHILD, *map(str, values)]
            with (self.folder / f"{self.groups}-{rank}.log").open("wb") as log:
                self.processes.append(subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}))

    def steps(self) -> list[Step]:
        path = self.folder / "steps"
        lines = path.read_text().splitlines() if path.exists() else []
        return [Step(float(at), int(group)) for at, group in (line.split() for line in lines)]

    def wait_steps(self, count: int) -> None:
        """Until so many steps were made, the lost ones counted too."""
        end = time.monotonic() + GIVE_UP_SECONDS
        while len(self.steps()) < count:
            failed = [rank for rank, process in enumerate(self.processes) if process.poll()]
            if failed or time.monotonic() > end:
                self.fail(f"worker {failed[0]} ended by itself" if failed else "no step for too long")
            time.sleep(0.02)

    def finish(self) -> None:
        """Until the group ends by itself, as it should."""
        for process in self.processes:
            if process.wait(GIVE_UP_SECONDS):
                self.fail("a worker failed")

    def kill(self, rank: int) -> None:
        """One worker without warning; then the others, as a launcher does that sees it gone."""
        for process in (self.processes[rank], *self.processes):
            process.kill()
            process.wait()

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def fail(self, why: str) -> None:
        said = "\n".join(path.read_text()[-2000:] for path in sorted(self.folder.glob(f"{self.groups}-*.log")))
        raise RuntimeError(f"{why}:\n{said}")


def play(run: Run, scenario: str, workers: int, steps: int) -> None:
    """Disturb ``run`` as the scenario says and bring it to its end."""
    run.start(workers)
    if scenario == "preempted":
        run.wait_steps(steps // 2)
        run.processes[-1].send_signal(signal.SIGTERM)
        run.finish()
        run.start(workers)
    elif scenario in ("killed", "elastic"):
        run.wait_steps(steps // 2 + CHECKPOINT_STEPS // 2)
        run.kill(workers - 1)
        run.start(workers if scenario == "killed" else workers - 1)
        if scenario == "elastic":
            run.wait_steps(len(run.steps()) + steps // 4)
            run.processes[-1].send_signal(signal.SIGTERM)
            run.finish()
            run.start(workers)
    run.finish()


def simulate(scenario: str, workers: int, steps: int, *, seconds: float, megabytes: float, bandwidth: float) -> dict[str, Any]:
    """Figures of one scenario; ``seconds`` of compute a micro-batch, ``megabytes`` of gradients, ``bandwidth`` in bytes/s."""
    batch = workers * PER_WORKER * max(1, workers - 1)  # also cut evenly by one worker less
    options = {"seconds": seconds, "megabytes": megabytes, "stragglers": STRAGGLERS if scenario == "stragglers" else 0.0}
    named = {"name": "tests.benchmarks.simulate", "options": options}
    lengths = {"images": steps * batch, "global_batch": batch, "micro_batch": 1, "checkpoint_images": CHECKPOINT_STEPS * batch}
    training = {**lengths, "log_images": batch, "ema": {"warmup": False}}
    stage = config.parse(
        Stage, {"name": "fake", "low": 4, "high": 8, "model": {"name": named["name"]}, "objective": named, "training": training}
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), stage, bandwidth)
        try:
            play(run, scenario, workers, steps)
            made = run.steps()
            seen = int((Path(folder) / "seen").read_text())
        finally:
            run.close()
    return figures(made, steps, seconds * batch / workers) | {"images_seen": seen, "images": steps * batch}


def figures(made: Sequence[Step], steps: int, ideal_step: float) -> dict[str, Any]:
    """Of the steps that were made, where ``steps`` were needed and one takes ``ideal_step`` seconds at best.

    The run begins one usual step before the first one ended; what a group's first step takes more than that is its start.
    """
    gaps = [(after.at - before.at, after.group != before.group) for before, after in itertools.pairwise(made)]
    usual = statistics.median(gap for gap, new in gaps if not new)
    between = sum(gap - usual for gap, new in gaps if new)
    wall = made[-1].at - made[0].at + usual
    return {
        "wall_seconds": wall,
        "seconds_per_step": usual,
        "restart_seconds": between,
        "groups": made[-1].group,
        "steps_lost": len(made) - steps,
        "goodput": steps * ideal_step / wall,
        "goodput_without_restarts": steps * ideal_step / (wall - between),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="goodput under stragglers, preemption and restarts")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=0.05, help="of compute a micro-batch")
    parser.add_argument("--megabytes", type=float, default=8.0, help="of gradients")
    parser.add_argument("--bandwidth", type=float, default=100.0, help="of each worker's link, in MB/s")
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--json", type=Path, help="also write the figures here")
    chosen = parser.parse_args(arguments)
    if chosen.workers < 2 or chosen.steps < 4 * CHECKPOINT_STEPS:
        parser.error(f"at least 2 workers and {4 * CHECKPOINT_STEPS} steps")
    asked = {"seconds": chosen.seconds, "megabytes": chosen.megabytes, "bandwidth": 1e6 * chosen.bandwidth}
    found: dict[str, Any] = {}
    print(f"{chosen.workers} workers, {chosen.steps} steps, a checkpoint every {CHECKPOINT_STEPS}, load {os.getloadavg()[0]:.1f}")
    for scenario in chosen.scenarios:
        row = found[scenario] = simulate(scenario, chosen.workers, chosen.steps, **asked)
        goodput = f"goodput {row['goodput']:.1%}, {row['goodput_without_restarts']:.1%} without {row['restart_seconds']:.1f} s of restarts"
        print(f"{scenario:10} {goodput}; {row['seconds_per_step']:.3f} s a step, {row['steps_lost']} steps lost", flush=True)
    if chosen.json:
        chosen.json.write_text(json.dumps({"asked": {**asked, "workers": chosen.workers, "steps": chosen.steps}, "found": found}, indent=1))


if __name__ == "__main__":
    main()
