"""The first day on a GPU: is it right, how fast, where does the time go. One command, within 8 minutes, CSV files and plots. Run by hand.

    python -m tests.benchmarks.gpu --out gpu-figures [--seconds 460] [--set stages.sr.training.KEY=VALUE]
    python -m tests.benchmarks.gpu --out gpu-figures --device cpu --dry-run      (all of it on tiny networks, in seconds: does it run?)

It measures this project's own training loop on its four paper recipes, with batches that lie ready in memory:

- correctness.csv: mean loss and gradient norm of a few steps in float32 and bfloat16, and in one and two micro-batches, at a quarter of the
  widths and without dropout, TF32 off; outside LIMITS the command ends with status 1;
- throughput.csv: images/s, model FLOP utilisation (FLOPs that ``sr3 show`` counts over the peak) and peak memory at several batch sizes;
- layout.csv: operations that change the memory layout of an image in one step, as ``sr3_core.training.layout`` counts them;
- kernels.csv: the kernels that take the most time of one step; sampling.csv: seconds of 20 steps for one image and for a batch, with a CUDA
  graph too, whose images correctness.csv holds against the plain ones.

The work is done by a child process that writes every figure as soon as it has it; the parent ends the child when the time is over and
makes the tables of what is there, naming what was running. The child itself starts nothing that would, by what the last took, not end in
time. The first batch size of every recipe comes before any second one. The peak for utilisation is 790 TFLOP/s for an H100 or H200 (what
they sustain in bfloat16 products); for another device it is what a large product reaches there, which is measured in any case.
"""

import argparse
import csv
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from sr3_core import config, summary
from sr3_core.config import DataParallel, Stage
from sr3_core.data import ahead
from sr3_core.objectives.diffusion import Objective
from sr3_core.training import loop
from sr3_core.training.layout import Change, LayoutChanges
from sr3_core.training.state import CheckpointStore
from sr3_core.training.worker import LocalWorker
from tests.benchmarks.train_step import FOREVER, Pairs

BATCHES = {"paper_16_128": (8, 16, 32, 48), "paper_64_256": (4, 8, 16), "paper_64_512": (2, 4, 8), "paper_256_1024": (2, 4, 8)}
GOALS = {"paper_16_128": 0.45, "paper_64_256": 0.45, "paper_64_512": 0.40, "paper_256_1024": 0.20}  # utilisation, on one H100
PEAKS = {"H100": 790e12, "H200": 790e12}  # bfloat16 FLOP/s
LIMITS = {"bfloat16 against float32": 5e-2, "2 micro-batches against 1": 1e-4}  # relative difference of a mean over CHECKED_STEPS
GRAPH_LIMITS = {"float32": 1e-4, "bfloat16": 2e-2}  # largest difference of a value in [-1, 1]
CHECKED_STEPS, CHECKED_BATCH, CHECKED_RATE = 8, 4, 2e-3  # a rate at which the loss falls within these steps
WARM_UP, TIMED_STEPS, TIMED_SECONDS = 3, 20, 4.0
SAMPLING_STEPS, SAMPLING_BATCHES = 20, (1, 8)
TOP = 25
TABLES = {
    "correctness": ("check", "figure", "value", "other", "difference", "limit", "passed"),
    "throughput": ("recipe", "batch", "images_per_second", "seconds_per_step", "utilisation", "goal", "peak_gigabytes", "steps", "note"),
    "layout": ("recipe", "operation", "given", "made", "count", "values"),
    "kernels": ("recipe", "kernel", "share", "milliseconds", "calls"),
    "sampling": ("recipe", "precision", "images", "steps", "cuda_graph", "seconds", "seconds_per_image"),
    "peak": ("device", "product_tflops", "taken_tflops"),
}
Record = Callable[..., None]


class Finished(Exception):
    """A measurement has what it wanted of the training loop."""


class Scripted(LocalWorker):
    """The only worker. Between two steps of the loop ``script`` goes on to its next yield; where it ends, so does the loop."""

    network: nn.Module

    def __init__(self, device: str, script: Callable[["Scripted"], Iterator[None]]) -> None:
        super().__init__(device)
        self.script = script(self)

    def wrap(self, module: nn.Module, options: DataParallel) -> nn.Module:
        self.network = module
        return module

    def should_stop(self) -> bool:
        try:
            next(self.script)
        except StopIteration:
            raise Finished from None
        return False


class Clock:
    """What is left of the time, and whether something fits into it."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return self.end - time.monotonic()


def recipe_stage(name: str, batch: int, overrides: Sequence[str], *, tiny: bool, **training: Any) -> Stage:
    """The recipe's stage with steps of ``batch`` images that never end; ``tiny``: 32 pixels and a few channels."""
    stage = config.load(name, list(overrides)).stages[0]
    values = stage.model_dump()
    values["training"] |= dict.fromkeys(("images", "checkpoint_images", "log_images"), FOREVER - FOREVER % batch)
    values["training"] |= {"global_batch": batch, "micro_batch": batch, **training}
    if tiny:
        values |= {"high": 32, "low": 32 // stage.scale}
        values["model"]["options"] |= {"channels": 4, "blocks": 1}
    return config.parse(Stage, values)


def run_loop(stage: Stage, device: str, script: Callable[[Scripted], Iterator[None]]) -> None:
    """Train until ``script`` ends."""
    with tempfile.TemporaryDirectory() as folder:
        store = CheckpointStore(folder, keep=1, say=print)
        batches = Pairs(stage.high, stage.high // stage.scale)
        try:
            loop.train(stage, None, worker=Scripted(device, script), checkpoints=store, batches=batches, say=print, log=lambda *_: None)
        except Finished:
            return


def synchronized(device: str) -> float:
    """Seconds, once the device has done all it was given."""
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def peak(device: str, *, tiny: bool, record: Record) -> float:
    """FLOP/s that utilisation is counted against; a product of two bfloat16 matrices is timed in any case."""
    side, rounds = (256, 2) if tiny else (8192, 20)
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    torch.mm(left, right)
    start = synchronized(device)
    for _ in range(rounds):
        torch.mm(left, right)
    reached = 2 * side**3 * rounds / (synchronized(device) - start)
    name = "cpu" if device == "cpu" else torch.cuda.get_device_name()
    taken = next((flops for part, flops in PEAKS.items() if part in name), reached)
    record("peak", device=name, product_tflops=reached / 1e12, taken_tflops=taken / 1e12)
    return taken


def correctness(device: str, overrides: Sequence[str], *, tiny: bool, record: Record) -> None:
    """The same few steps in two ways each."""

    def means(**training: Any) -> dict[str, float]:
        stage = recipe_stage("paper_16_128", CHECKED_BATCH, overrides, tiny=tiny)
        values = stage.model_dump()
        images = CHECKED_STEPS * CHECKED_BATCH
        values["training"] |= {"images": images, "checkpoint_images": images, "log_images": images, "precision": "float32", **training}
        values["training"]["learning_rate"]["warmup_images"] = 0
        values["training"]["optimizer"]["learning_rate"] = CHECKED_RATE
        values["model"]["options"] |= {"channels": values["model"]["options"]["channels"] if tiny else 32, "dropout": 0.0}
        stage = config.parse(Stage, values)
        with tempfile.TemporaryDirectory() as folder:
            store = CheckpointStore(folder, keep=1, say=print)
            torch.manual_seed(0)  # of the images
            batches = Pairs(stage.high, stage.high // stage.scale)
            worker = LocalWorker(device)
            done = loop.train(stage, None, worker=worker, checkpoints=store, batches=batches, say=print, log=lambda *_: None)
        return done.logged

    kept = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    first = means()
    others = {"bfloat16 against float32": {"precision": "bfloat16"}, "2 micro-batches against 1": {"micro_batch": CHECKED_BATCH // 2}}
    for check, changed in others.items():
        second = means(**changed)
        for figure in ("loss", "gradient_norm"):
            value, other, limit = first[figure], second[figure], LIMITS[check]
            difference = abs(other - value) / value
            both = {"value": value, "other": other, "difference": difference, "limit": limit}
            record("correctness", check=check, figure=figure, **both, passed=difference <= limit)
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = kept


def copies(device: str, *, side: int = 4096, record: Record) -> None:
    """Batches that were copied to the GPU ahead of use, while it worked, against those that lie on the host."""
    torch.manual_seed(0)
    busy = torch.randn(side, side, device=device)
    found = [replace(Pairs(256, 64).batch(8 * number, 8), high=torch.rand(8, 3, 256, 256)) for number in range(16)]  # no two alike
    difference = 0.0
    for expected, batch in zip(found, ahead.on_device(iter(found), torch.device(device)), strict=True):
        taken = [tensor + 0 for tensor in batch.tensors()]  # read at once, on the stream that works
        for _ in range(4):
            torch.mm(busy, busy)
        here = zip(taken, expected.tensors(), strict=True)
        difference = max(difference, *(float((there.cpu() - tensor).abs().max()) for there, tensor in here))
    both = {"value": float(len(found)), "other": float(len(found)), "difference": difference, "limit": 0.0}
    record("correctness", check="copied ahead against in place", figure="batches", **both, passed=difference == 0.0)


def measured(name: str, stage: Stage, device: str, flops: float, *, everything: bool, tiny: bool, record: Record) -> None:
    """Throughput at the stage's batch; with ``everything`` also layouts, kernels and sampling."""
    batch, cuda = stage.training.global_batch, device != "cpu"
    most = 2 if tiny else TIMED_STEPS
    each = summary.FORWARD_PER_TRAINING * summary.forward_flops(summary.build(stage), stage, stage.training.crop or stage.high)

    def script(worker: Scripted) -> Iterator[None]:
        for _ in range(WARM_UP):
            yield
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        start, steps = synchronized(device), 0
        while steps < most and (steps < 3 or synchronized(device) - start < TIMED_SECONDS):
            yield
            steps += 1
        seconds = (synchronized(device) - start) / steps
        memory = torch.cuda.max_memory_allocated() / 1e9 if cuda else None
        rates = {"images_per_second": batch / seconds, "seconds_per_step": seconds, "utilisation": each * batch / seconds / flops}
        record("throughput", recipe=name, batch=batch, **rates, goal=GOALS[name], peak_gigabytes=memory, steps=steps, note="")
        if not everything:
            return
        with LayoutChanges() as layouts:
            yield
        for (operation, given, made), found in itertools.groupby(sorted(layouts.found, key=_kind), key=_kind):
            values = [math.prod(change.shape) for change in found]
            row = {"operation": operation, "given": given, "made": made, "count": len(values), "values": sum(values)}
            record("layout", recipe=name, **row)
        with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as profiler:
            yield
            synchronized(device)
        kernels(name, profiler, cuda=cuda, record=record)
        sampling(name, stage, worker.network, device, tiny=tiny, record=record)

    run_loop(stage, device, script)


def _kind(change: Change) -> tuple[str, str, str]:
    return change.operation, change.given, change.made


def kernels(name: str, profiler: profile, *, cuda: bool, record: Record) -> None:
    """The TOP by their own time."""
    events: list[Any] = list(profiler.key_averages())
    if cuda:
        events = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
    spent = {event.key: float(event.self_device_time_total if cuda else event.self_cpu_time_total) for event in events}
    calls, total = {event.key: event.count for event in events}, sum(spent.values())
    for key in sorted(spent, key=lambda key: -spent[key])[:TOP]:
        record("kernels", recipe=name, kernel=key, share=spent[key] / total, milliseconds=spent[key] / 1e3, calls=calls[key])


def sampling(name: str, stage: Stage, network: nn.Module, device: str, *, tiny: bool, record: Record) -> None:
    """Seconds of one call of predict, in float32 and under bfloat16 autocast; on a GPU also with a CUDA graph, which must agree."""
    predictor = Objective(stage, {}).predictor(network, degradation="bicubic")
    steps = 2 if tiny else SAMPLING_STEPS
    for images in SAMPLING_BATCHES:
        low = torch.zeros(images, stage.channels, stage.high // stage.scale, stage.high // stage.scale)
        for precision, dtype in (("float32", None), ("bfloat16", torch.bfloat16)):
            made: list[torch.Tensor] = []
            for graph in (False, True) if device != "cpu" else (False,):
                with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
                    predictor.predict(low, seeds=np.arange(images), steps=2, cuda_graph=graph)
                    start = synchronized(device)
                    made.append(predictor.predict(low, seeds=np.arange(images), steps=steps, cuda_graph=graph).double())
                    seconds = synchronized(device) - start
                shared = {"recipe": name, "precision": precision, "images": images, "steps": steps, "cuda_graph": graph}
                record("sampling", **shared, seconds=seconds, seconds_per_image=seconds / images)
            if len(made) == 2:
                plain, graphed = made
                difference, limit = float((graphed - plain).abs().max()), GRAPH_LIMITS[precision]
                both = {"value": float(plain.abs().mean()), "other": float(graphed.abs().mean()), "difference": difference, "limit": limit}
                figure = f"{name}, {images} images, {precision}"
                record("correctness", check="sampling by a CUDA graph", figure=figure, **both, passed=difference <= limit)
    network.train()


def everything(device: str, overrides: Sequence[str], clock: Clock, *, recipes: Sequence[str], tiny: bool, record: Record) -> None:
    """All measurements in the order of their worth; ``record(table, **row)`` is called for every figure as soon as it is known."""
    record("running", what="the peak")
    flops = peak(device, tiny=tiny, record=record)
    record("running", what="correctness")
    correctness(device, overrides, tiny=tiny, record=record)
    if device != "cpu":
        copies(device, record=record)
    batches = {name: ((1, 2) if name == recipes[0] else (1,)) if tiny else BATCHES[name] for name in recipes}
    longest, full = 0.0, set[str]()
    for turn in range(max(map(len, batches.values()))):
        for name, sizes in batches.items():
            if turn >= len(sizes) or name in full:
                continue
            row = {"recipe": name, "batch": sizes[turn], "goal": GOALS[name]}
            if longest and clock.left < 1.5 * longest:
                record("throughput", **row, note="left out: no time")
                continue
            start = time.monotonic()
            record("running", what=f"{name} at batch {sizes[turn]}")
            try:
                stage = recipe_stage(name, sizes[turn], overrides, tiny=tiny)
                measured(name, stage, device, flops, everything=turn == 0, tiny=tiny, record=record)
            except torch.OutOfMemoryError:
                record("throughput", **row, note="out of memory")
                full.add(name)
            if device != "cpu":
                torch.cuda.empty_cache()
            longest = max(longest if turn else 0.0, time.monotonic() - start)
    record("running", what="")


def write_tables(rows: list[dict[str, Any]], out: Path) -> None:
    """One CSV for each of TABLES, with a header even where nothing was measured, and throughput.svg and sampling.svg."""
    for table, columns in TABLES.items():
        with (out / f"{table}.csv").open("w", newline="") as stream:
            writer = csv.DictWriter(stream, columns, restval="", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(row for row in rows if row["table"] == table)
    plot([row for row in rows if row["table"] == "throughput" and not row["note"]], out / "throughput.svg", "batch", "utilisation")
    sampled = [row for row in rows if row["table"] == "sampling" and row["precision"] == "bfloat16" and not row["cuda_graph"]]
    plot(sampled, out / "sampling.svg", "images", "seconds_per_image")


def plot(rows: list[dict[str, Any]], path: Path, x: str, y: str) -> None:
    """``y`` over ``x``, a line for each recipe."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for name in dict.fromkeys(row["recipe"] for row in rows):
        points = sorted((row[x], row[y]) for row in rows if row["recipe"] == name)
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.set(xlabel=x, ylabel=y.replace("_", " "), ylim=(0, None))
    if rows:
        axes.legend()
    figure.savefig(path)
    pyplot.close(figure)


def verdict(rows: list[dict[str, Any]], *, ended: bool) -> int:
    """Print what matters; 0 when all checks passed and nothing was cut off."""
    for row in rows:
        if row["table"] == "correctness":
            values = f"{row['value']:.6f} and {row['other']:.6f}, {row['difference']:.1e} (limit {row['limit']:.0e})"
            print(f"{row['check']}: {row['figure']} {values}")
        if row["table"] == "throughput":
            at = f"{row['recipe']} batch {row['batch']}: "
            found = row["note"] or f"{row['images_per_second']:.3g} images/s, {row['utilisation']:.1%} of the peak (goal {row['goal']:.0%})"
            print(at + found)
        if row["table"] == "sampling":
            at = f"{row['recipe']} {row['images']} images, {row['precision']}{', CUDA graph' if row['cuda_graph'] else ''}: "
            print(f"{at}{1e3 * row['seconds_per_image']:.3g} ms an image, {row['steps']} steps")
    changed = Counter[str]()
    for row in rows:
        if row["table"] == "layout":
            changed[row["recipe"]] += row["count"]
    print("changes of layout in one training step: " + (", ".join(f"{name} {count}" for name, count in changed.items()) or "none"))
    if not any(row["table"] == "sampling" and row["cuda_graph"] for row in rows):
        print("CUDA graphs and copies ahead of use were not tried, or not to the end: no sampling on a GPU was measured")
    running = next((row["what"] for row in reversed(rows) if row["table"] == "running"), "the start")
    if not ended:
        print(f"the time was over, or the child ended, during {running}")
    checks = [row["passed"] for row in rows if row["table"] == "correctness"]
    return 0 if ended and len(checks) >= 2 * len(LIMITS) and all(checks) else 1


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="what there is to know of a GPU on its first day")
    parser.add_argument("--out", type=Path, required=True, help="folder for the tables and plots")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--seconds", type=float, default=460.0, help="after so long the child is ended; tables and plots take a few more")
    parser.add_argument("--recipes", nargs="+", choices=list(BATCHES), default=list(BATCHES))
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="key=value for every recipe")
    parser.add_argument("--dry-run", action="store_true", help="tiny networks")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    chosen.out.mkdir(parents=True, exist_ok=True)
    lines = chosen.out / "figures.jsonl"
    if chosen.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no GPU here: run it where there is one, or with --device cpu --dry-run")
    if chosen.child:
        with lines.open("a") as stream:

            def record(table: str, **row: Any) -> None:
                print(json.dumps({"table": table, **row}), file=stream, flush=True)

            everything(chosen.device, chosen.overrides, Clock(chosen.seconds), recipes=chosen.recipes, tiny=chosen.dry_run, record=record)
        return 0
    lines.unlink(missing_ok=True)
    begun = time.monotonic()
    command = [sys.executable, "-m", "tests.benchmarks.gpu", "--child", *(sys.argv[1:] if arguments is None else arguments)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        ended = child.wait(timeout=chosen.seconds) == 0
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
        ended = False
    rows = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    write_tables(rows, chosen.out)
    status = verdict(rows, ended=ended)
    print(f"{time.monotonic() - begun:.0f} s; torch {torch.__version__}, load {os.getloadavg()[0]:.1f}; tables and plots in {chosen.out}")
    return status


if __name__ == "__main__":
    sys.exit(main())
