"""THE training loop, for every family: set up or resume, then step until all images are seen. It knows no launcher and no family.

Step k of the run sees the global sample indices [k B, (k + 1) B), B = global_batch. They are cut into micro-batches of the fixed
size m; rank r of W takes the B / (m W) micro-batches after the r B / (m W)-th. So the union, and each micro-batch, is the same for
any number of workers, and the position is one integer: images seen.
"""

import math
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sr3_core import plugins
from sr3_core.artifacts.bundle import ModelBundle
from sr3_core.artifacts.shardset import ShardSet
from sr3_core.config import Stage, Training
from sr3_core.data import ahead
from sr3_core.data.loader import Batch, MicroBatches
from sr3_core.errors import BadInput
from sr3_core.seeds import generator
from sr3_core.training import compiling, compression, fine_tune, window
from sr3_core.training.guard import Guard
from sr3_core.training.optimisation import learning_rate
from sr3_core.training.pace import Pace
from sr3_core.training.precision import Precision
from sr3_core.training.reduction import Float64Gradients
from sr3_core.training.saving import Saver
from sr3_core.training.state import CheckpointStore, TrainState, check_same_recipe
from sr3_core.training.watching import Watcher
from sr3_core.training.worker import Worker

Log = Callable[[int, dict[str, float]], None]


class Batches(Protocol):
    """What the loop needs of a loader; ``sr3_core.data.loader.MicroBatches`` is the one."""

    def batch(self, first_index: int, count: int) -> Batch: ...

    def prefetch(self, indices: Iterable[tuple[int, int]]) -> Iterator[Batch]: ...


def train(
    stage: Stage,
    shards: ShardSet | None,
    *,
    worker: Worker,
    checkpoints: CheckpointStore,
    log: Log,
    say: Callable[[str], None],
    batches: Batches | None = None,
    watcher: Watcher | None = None,
) -> TrainState:
    """Train ``stage`` on ``shards`` (or on ``batches``) until ``training.images`` are seen, from the newest checkpoint if there is one.

    Without one it starts from the bundle of ``training.init``, or from scratch; which of the three is said.

    Every rank returns the final state. On rank 0 ``log(images_seen, metrics)`` is called once before the first step (no metrics: where
    the run stands) and every ``log_images``, and ``say(text)`` for what a person should know; ``watcher``, which it alone needs, looks at
    held-out images where ``training.watch`` says so. Raises BadInput for a batch that the
    workers cannot divide and for a checkpoint of another recipe, Failed when the loss is not finite (see ``guard.Guard``).
    """
    training = stage.training
    if training.watch is not None and watcher is None and worker.rank == 0:
        raise TypeError("training.watch needs a watcher on rank 0")
    accumulation = micro_batches_per_step(training, worker.world_size)
    _set_determinism(training)
    precision = Precision(training.precision, worker.device)
    if batches is None:
        if shards is None:
            raise TypeError("train needs shards or batches")
        batches = MicroBatches(shards, stage)
    tell = say if worker.rank == 0 else _silent
    state, objective, wrapped = _start(stage, batches, precision, worker=worker, checkpoints=checkpoints, say=tell)
    facts = {"stage": stage.model_dump(mode="json"), "environment": environment(worker)}
    per_rank = accumulation * training.micro_batch
    guard = Guard(stage, precision, worker=worker, checkpoints=checkpoints, say=tell)

    def from_here() -> Iterator[Batch]:
        mine = (
            (first + worker.rank * per_rank + slot * training.micro_batch, training.micro_batch)
            for first in range(state.images_seen, training.images, training.global_batch)
            for slot in range(accumulation)
        )
        return ahead.on_device(iter(batches.prefetch(mine)), worker.device)

    clock, waited = time.monotonic(), 0.0
    logged_at, pace = state.images_seen, Pace(stage, objective.turns, worker=worker, say=tell)
    if worker.rank == 0:
        log(state.images_seen, {})
    stream = from_here()
    try:
        with Saver(checkpoints, facts) as saver:
            if watcher is not None and watcher.owes_rating(state, checkpoints):  # a run that ended between a checkpoint and the look at it
                clock += _look(watcher, state, objective, saver=saver, checkpoints=checkpoints)
            while state.images_seen < training.images:
                saver.check()
                turn = objective.turns[state.images_seen // training.global_batch % len(objective.turns)]
                micro_batches: list[Batch] = []
                for _ in range(accumulation):
                    before = time.monotonic()
                    micro_batches.append(next(stream))
                    waited += time.monotonic() - before
                metrics = _step(
                    stage, state, objective, wrapped, precision, turn=turn, micro_batches=micro_batches, worker=worker, guard=guard
                )
                if guard.rolls_back(state, wait=saver.wait):
                    _close(stream)
                    stream = from_here()
                    clock, waited, logged_at = time.monotonic(), 0.0, state.images_seen
                    continue
                window.add(state.window, metrics)
                stop = worker.should_stop()
                if state.images_seen % training.log_images == 0 or state.images_seen == training.images:
                    seconds = time.monotonic() - clock
                    line = {**window.means(state.window), **guard.metrics(state)}
                    state.window, state.logged = {}, dict(line)
                    state.carried.observe(training, state.images_seen, line, exported=state.exported)
                    line |= pace.line(images=state.images_seen - logged_at, seconds=seconds, waited=waited)
                    if worker.rank == 0:
                        log(state.images_seen, line)
                    clock, waited, logged_at = time.monotonic(), 0.0, state.images_seen
                if stop or state.images_seen % training.checkpoint_images == 0 or state.images_seen == training.images:
                    if worker.rank == 0:
                        saver.save(state)
                        if stop or state.images_seen == training.images:
                            saver.wait()
                    worker.report(metrics, checkpoint=True)
                if stop:
                    break
                if watcher is not None:  # the state is saved by now: a look that fails costs no step
                    clock += _look(watcher, state, objective, saver=saver, checkpoints=checkpoints)
    finally:
        _close(stream)
    return state


def _look(watcher: Watcher, state: TrainState, objective: Any, *, saver: Saver, checkpoints: CheckpointStore) -> float:
    """Look, if it is time to, and rate the checkpoint of this moment; the seconds of the look, which are not training's time."""
    seconds = watcher.look(state, objective)
    if watcher.rated is not None and watcher.rated[0] == state.images_seen:
        saver.wait()
        checkpoints.rate(*watcher.rated)
    return seconds


def environment(worker: Worker) -> dict[str, Any]:
    """What a bit-equal resume needs to find unchanged."""
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "world_size": worker.world_size,
        "device": worker.device.type,
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def micro_batches_per_step(training: Training, world_size: int) -> int:
    """Micro-batches per rank and step."""
    if training.global_batch % (training.micro_batch * world_size):
        got = f"global_batch {training.global_batch} with micro_batch {training.micro_batch} on {world_size} workers"
        raise BadInput(got, "global_batch = micro_batch x workers x a whole number", "change training.global_batch or scaling.workers")
    return training.global_batch // (training.micro_batch * world_size)


def _start(
    stage: Stage, batches: Batches, precision: Precision, *, worker: Worker, checkpoints: CheckpointStore, say: Callable[[str], None]
) -> tuple[TrainState, Any, dict[str, nn.Module]]:
    """State (fresh or resumed), objective, and the players of all turns as the worker wraps them.

    Restart order: the newest checkpoint, else the bundle of ``training.init``, else scratch.
    """
    module = plugins.load("objectives", stage.objective.name)
    checkpoint = worker.broadcast(checkpoints.latest() if worker.rank == 0 else None)
    init = None if checkpoint is not None or stage.training.init is None else ModelBundle.load(stage.training.init)
    if checkpoint is not None:
        check_same_recipe(checkpoint, stage)
        measured = dict(checkpoint.manifest["measured"])
    else:
        measured = worker.broadcast(module.Objective.measure(stage, batches) if worker.rank == 0 else None)
        measured = measured if init is None else fine_tune.measured_with(init, measured)
    objective = module.Objective(stage, measured)
    players: dict[str, nn.Module] = {name: player.to(worker.device).train() for name, player in objective.players().items()}
    if init is not None:
        fine_tune.start_from(init, players[objective.exported])
    for player in players.values() if stage.training.compile else ():
        compiling.compile_regions(player, worker.device)
    state = TrainState.fresh(players, exported=objective.exported, measured=measured, stage=stage)
    own_sums = stage.training.reduce_dtype == "float64"
    ddp = stage.training.ddp
    wrapped = {turn: players[turn] if own_sums else worker.wrap(players[turn], ddp) for turn in dict.fromkeys(objective.turns)}
    for player in wrapped.values():
        compression.compress(player, stage.training.gradient_compression)
    before = [(buffer, buffer.clone()) for player in players.values() for buffer in player.buffers()]  # running statistics, of critics too
    # DistributedDataParallel orders its buckets anew after its first backward; without this one the first step after a
    # resume would add gradients up in another order than the uninterrupted run did. With a static graph its first backward must be one
    # that all workers average, which the first micro-batch of several is not
    for turn in wrapped if not own_sums and (checkpoint is not None or ddp.static_graph) else ():
        batch = batches.batch(worker.rank * stage.training.micro_batch, stage.training.micro_batch)
        _backward(stage, state, objective, wrapped, precision, turn=turn, batch=batch, share=1.0, worker=worker)
        players[turn].zero_grad(set_to_none=True)
    for buffer, value in before:
        buffer.copy_(value)
    if checkpoint is None:
        say("starting from scratch" if init is None else fine_tune.told(init, stage))
        state.init_sha256 = None if init is None else init.manifest_sha256
        return state, objective, wrapped
    checkpoints.load(checkpoint, state)
    say(f"resuming at {state.images_seen} of {stage.training.images} images")
    then, now = checkpoint.manifest["environment"], environment(worker)
    differing = [f"{key} {then.get(key)} -> {now[key]}" for key in now if then.get(key) != now[key]]
    if differing:
        say(f"the checkpoint was written with another environment ({', '.join(differing)}): the result will be equal only up to rounding")
    return state, objective, wrapped


def _step(
    stage: Stage,
    state: TrainState,
    objective: Any,
    wrapped: Mapping[str, nn.Module],
    precision: Precision,
    *,
    turn: str,
    micro_batches: list[Batch],
    worker: Worker,
    guard: Guard,
) -> dict[str, float]:
    """One optimizer step of ``turn``'s player; advances ``images_seen``. Returns the metrics' means over the global batch.

    A step that the guard leaves out has no metrics.
    """
    training = stage.training
    player, optimizer = state.players[turn], state.optimizers[turn]
    rate = learning_rate(training, state.images_seen, reductions=state.carried.reductions)
    for group in optimizer.param_groups:
        group["lr"] = rate
    totals: dict[str, float] = {}
    share = 1.0 / len(micro_batches)
    sums = Float64Gradients(player) if training.reduce_dtype == "float64" else None
    for position, batch in enumerate(micro_batches):
        last = position == len(micro_batches) - 1
        weight = share if sums is None else 1.0
        metrics = _backward(stage, state, objective, wrapped, precision, turn=turn, batch=batch, share=weight, worker=worker, sync=last)
        if sums is not None:
            sums.add()
        for name, value in metrics.items():
            totals[name] = totals.get(name, 0.0) + value * share
    if sums is not None:
        sums.finish(worker, micro_batches=len(micro_batches))
    precision.unscale(player, state.carried)
    norm = torch.nn.utils.clip_grad_norm_(player.parameters(), training.clip_norm or math.inf)
    means = _mean_over_workers(totals, worker)
    gradient_norm = float(norm)
    taken = guard.passes(state, loss=means["loss"], gradient_norm=gradient_norm, turn=turn)
    if taken:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    state.images_seen += training.global_batch
    if not taken:
        return {}
    if turn == state.exported:
        state.update_ema(stage)
    prefix = "" if len(wrapped) == 1 else f"{turn}."
    return {f"{prefix}{name}": value for name, value in {**means, "gradient_norm": gradient_norm, "learning_rate": rate}.items()}


def _backward(
    stage: Stage,
    state: TrainState,
    objective: Any,
    wrapped: Mapping[str, nn.Module],
    precision: Precision,
    *,
    turn: str,
    batch: Batch,
    share: float,
    worker: Worker,
    sync: bool = True,
) -> dict[str, float]:
    """Add ``share`` of the gradient of ``turn``'s loss on one micro-batch; the turn's own player alone learns."""
    for name, player in state.players.items():
        player.requires_grad_(name == turn)
    players = {**state.players, turn: wrapped[turn]}
    first = int(batch.sample_index[0])
    # dropout is the one draw that is not keyed by sample: its generator starts anew for each micro-batch
    torch.manual_seed(int(generator(stage.training.seed, "dropout", first).integers(2**63)))
    batch = batch.to(worker.device)
    with nullcontext() if sync else worker.no_sync(wrapped[turn]):
        with precision.forward():
            loss, metrics = objective.loss(turn, players, batch)
        (loss * (share * precision.scale(state.carried))).backward()
    return {**window.flat(metrics), "loss": float(loss.detach())}


def _mean_over_workers(values: Mapping[str, float], worker: Worker) -> dict[str, float]:
    """Means over ranks in float64; an objective gives the same names on every call."""
    names = sorted(values)
    stacked: Tensor = worker.all_reduce_mean(torch.tensor([values[name] for name in names], dtype=torch.float64, device=worker.device))
    return dict(zip(names, stacked.tolist(), strict=True))


def _set_determinism(training: Training) -> None:
    torch.use_deterministic_algorithms(training.deterministic)
    torch.backends.cudnn.benchmark = not training.deterministic


def _close(stream: Iterator[Batch]) -> None:
    close = getattr(stream, "close", None)
    if close is not None:
        close()


def _silent(text: str) -> None:
    return None
