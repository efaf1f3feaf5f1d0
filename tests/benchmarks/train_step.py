"""Our training and sampling step beside Janspiry's and diffusers' at equal parameters: seconds and peak memory. Run by hand, on Linux.

    git clone https://github.com/Janspiry/Image-Super-Resolution-via-Iterative-Refinement janspiry
    pip install --target diffusers-site --no-deps diffusers ... (what it imports and this environment lacks)
    python -m tests.benchmarks.train_step --janspiry janspiry --diffusers diffusers-site --profile --json train_step.json

Each contestant lives in a process of its own with one thread; the parent lets one at a time make a step, in turn. Ours is the loop of
``sr3_core.training`` on the recipe janspiry_sr3_16_128, which is their network (97.8 M parameters), moving average and all; where the CPU
multiplies bfloat16 itself, a second one of ours trains so (its samples stay float32), which neither of the others offers. Theirs is the
step of their trainer class, its config unchanged but for the device. diffusers' is a UNet2DModel of the same widths, blocks and attention,
with an L1 loss of the noise and torch's Adam at its defaults. A sampling step is one of each code's ancestral sampler: ``predict``,
``p_sample``, and a call with ``DDPMScheduler.step``. Both steps are at 128 pixels, training on 2 images, sampling on 1.

Peak memory is the high-water mark of the resident set (VmHWM) after the training steps, Python and torch included, and beside it what was
resident before the network was built. Sampling comes after and does not count. Our average takes 4 bytes a parameter, and neither of the
others keeps one. Ratios are to Janspiry's, of the least CPU time (on a shared machine the steadier), of the least wall time beside it.
"""

import argparse
import importlib
import importlib.util
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from sr3_core import config
from sr3_core.config import DataParallel, Stage
from sr3_core.data.loader import Batch
from sr3_core.importers.janspiry import read_config
from sr3_core.objectives.diffusion import Objective
from sr3_core.training import loop
from sr3_core.training.state import CheckpointStore
from sr3_core.training.worker import LocalWorker

OURS = {"ours": "float32", "ours in bfloat16": "bfloat16"}  # by precision of training
RECIPE, CONFIG = "janspiry_sr3_16_128", "sr_sr3_16_128.json"
GOALS = {"train": 0.80, "sample": 0.85, "memory": 0.90}  # of Janspiry's
TRAIN_IMAGES, SAMPLE_IMAGES, SAMPLING_STEPS = 2, 1, 2
LEVEL = 1000  # the first of the steps (of 2000) that the other samplers take
FOREVER = 10**9
TOP = 8  # operations of a profile


class Contestant(NamedTuple):
    """``train`` makes one step on TRAIN_IMAGES, ``sample`` SAMPLING_STEPS on SAMPLE_IMAGES."""

    parameters: int
    train: Callable[[], object]
    sample: Callable[[], object]


class Finished(Exception):
    """The parent has had enough."""


class Turns:
    """The child's side: obeys the parent's lines (train, sample, profile, memory, end), and answers each with one line of JSON."""

    def __init__(self) -> None:
        self.answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what any of the codes prints does not get between the answers
        self.before = memory("VmRSS")
        self.running: tuple[float, float] | None = None
        self.profiler: profile | None = None

    def wait(self, contestant: Contestant) -> None:
        """Called between two training steps: ends the one that ran, does what else is asked, and returns when the next is to start."""
        if self.profiler is not None:
            self.profiler.__exit__(None, None, None)
            self.answer(top=operations(self.profiler))
            self.profiler = None
        elif self.running is not None:
            self.answer(wall=time.perf_counter() - self.running[0], cpu=time.process_time() - self.running[1])
        else:
            self.answer(parameters=contestant.parameters, threads=torch.get_num_threads())
        for line in sys.stdin:
            asked = line.strip()
            if asked == "sample":
                start, used = time.perf_counter(), time.process_time()
                contestant.sample()
                wall, cpu = time.perf_counter() - start, time.process_time() - used
                self.answer(wall=wall / SAMPLING_STEPS, cpu=cpu / SAMPLING_STEPS)
            elif asked == "memory":
                self.answer(peak=memory("VmHWM"), before=self.before)
            elif asked == "end":
                raise Finished
            else:
                if asked == "profile":
                    self.profiler = profile(activities=[ProfilerActivity.CPU])
                    self.profiler.__enter__()
                self.running = time.perf_counter(), time.process_time()
                return
        raise Finished

    def answer(self, **values: Any) -> None:
        print(json.dumps(values), file=self.answers, flush=True)


class Waiting(LocalWorker):
    """The only worker of our loop; it hands over the network and waits after every step."""

    network: nn.Module

    def wrap(self, module: nn.Module, options: DataParallel) -> nn.Module:
        self.network = module
        return module


class Pairs:
    """Batches of one pair of random images: reading has a benchmark of its own."""

    def __init__(self, high: int, low: int) -> None:
        self.high, self.low = (torch.rand(1, 3, side, side) * 2 - 1 for side in (high, low))

    def batch(self, first_index: int, count: int) -> Batch:
        index = np.arange(first_index, first_index + count, dtype=np.int64)
        high, low = (image.expand(count, -1, -1, -1).clone() for image in (self.high, self.low))
        return Batch(high=high, low=low, sample_index=index, keys=tuple(map(str, index)))

    def prefetch(self, indices: Iterable[tuple[int, int]]) -> Iterator[Batch]:
        for first, count in indices:
            yield self.batch(first, count)


def our_stage(side: int, shrink: int, precision: str) -> Stage:
    """The recipe's stage at ``side`` pixels with batches of TRAIN_IMAGES; ``shrink`` divides its widths."""
    values = config.load(RECIPE, []).stages[0].model_dump()
    values["training"] |= dict.fromkeys(("images", "checkpoint_images", "log_images"), FOREVER)
    values["training"] |= {"global_batch": TRAIN_IMAGES, "micro_batch": TRAIN_IMAGES, "precision": precision}
    values["model"]["options"] |= {"channels": 64 // shrink, "norm_groups": 32 // shrink}
    return config.parse(Stage, {**values, "high": side, "low": side // 8})


def serve_ours(side: int, shrink: int, precision: str) -> None:
    """Our loop goes on by itself; between two steps it asks whether to stop, and there it waits for its turn."""
    turns, pairs = Turns(), Pairs(side, side // 8)
    stage = our_stage(side, shrink, precision)
    objective = Objective(stage, {})

    def sample() -> None:
        predictor = objective.predictor(worker.network, degradation="bicubic")
        predictor.predict(pairs.low[:SAMPLE_IMAGES], seeds=np.arange(SAMPLE_IMAGES), steps=SAMPLING_STEPS)
        worker.network.train()

    def stop() -> bool:
        count = sum(parameter.numel() for parameter in worker.network.parameters())
        turns.wait(Contestant(count, lambda: None, sample))
        return False

    worker = Waiting(stop=stop)
    with tempfile.TemporaryDirectory() as folder:
        store = CheckpointStore(folder, keep=1, say=print)
        loop.train(stage, None, worker=worker, checkpoints=store, batches=pairs, say=print, log=lambda *_: None)


def of_janspiry(checkout: Path, side: int, shrink: int) -> Contestant:
    """Their trainer and their loop's calls of it."""
    options = read_config(str(checkout / "config" / CONFIG))
    unet = {**options["model"]["unet"], "inner_channel": 64 // shrink, "norm_groups": 32 // shrink, "attn_res": [side // 8]}
    options["model"] |= {"unet": unet, "diffusion": {**options["model"]["diffusion"], "image_size": side}}
    options |= {"gpu_ids": None, "distributed": False}
    sys.path.insert(0, str(checkout))
    if importlib.util.find_spec("tqdm") is None:  # it draws bars, but not of single steps
        bars = sys.modules["tqdm"] = ModuleType("tqdm")
        bars.tqdm = iter  # type: ignore[attr-defined]
        importlib.import_module("model.sr3_modules.diffusion")
        del sys.modules["tqdm"]
    trainer = importlib.import_module("model").create_model(options)
    pairs = Pairs(side, side // 8)
    high = pairs.high.expand(TRAIN_IMAGES, -1, -1, -1).clone()
    low = nn.functional.interpolate(pairs.low, size=(side, side), mode="bicubic")
    trained_low = low.expand(TRAIN_IMAGES, -1, -1, -1).clone()

    def train() -> None:
        trainer.feed_data({"HR": high, "SR": trained_low})
        trainer.optimize_parameters()

    def sample() -> None:
        trainer.netG.eval()
        noisy = torch.randn(SAMPLE_IMAGES, 3, side, side)
        for step in range(SAMPLING_STEPS):
            noisy = trainer.netG.p_sample(noisy, LEVEL - step, condition_x=low)
        trainer.netG.train()

    return Contestant(sum(parameter.numel() for parameter in trainer.netG.parameters()), train, sample)


def of_diffusers(site: Path, side: int, shrink: int) -> Contestant:
    """Their network and scheduler, in a training step as their examples have it, with this recipe's loss."""
    sys.path.append(str(site))
    diffusers = importlib.import_module("diffusers")
    print(f"diffusers {diffusers.__version__}")
    depths = ("", "", "", "Attn", "")
    network = diffusers.UNet2DModel(
        sample_size=side, in_channels=6, out_channels=3, layers_per_block=2, dropout=0.2, attention_head_dim=None,
        block_out_channels=tuple(64 // shrink * factor for factor in (1, 2, 4, 8, 8)), norm_num_groups=32 // shrink,
        down_block_types=tuple(f"{kind}DownBlock2D" for kind in depths),
        up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(depths)),
    ).train()  # fmt: skip
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=2000, beta_start=1e-6, beta_end=1e-2)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    high = torch.rand(TRAIN_IMAGES, 3, side, side) * 2 - 1
    low = torch.rand(TRAIN_IMAGES, 3, side, side) * 2 - 1

    def train() -> float:
        noise, t = torch.randn_like(high), torch.randint(0, 2000, (TRAIN_IMAGES,))
        output = network(torch.cat([low, scheduler.add_noise(high, noise, t)], dim=1), t).sample
        loss = nn.functional.l1_loss(output, noise)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    @torch.no_grad()
    def sample() -> None:
        network.eval()
        noisy = torch.randn(SAMPLE_IMAGES, 3, side, side)
        for t in range(LEVEL, LEVEL - SAMPLING_STEPS, -1):
            output = network(torch.cat([low[:SAMPLE_IMAGES], noisy], dim=1), t).sample
            noisy = scheduler.step(output, t, noisy).prev_sample
        network.train()

    return Contestant(sum(parameter.numel() for parameter in network.parameters()), train, sample)


def serve(name: str, place: Path, side: int, shrink: int) -> None:
    """One contestant, until the parent says end."""
    torch.set_num_threads(1)
    try:
        if name in OURS:
            serve_ours(side, shrink, OURS[name])
        turns = Turns()
        contestant = {"janspiry": of_janspiry, "diffusers": of_diffusers}[name](place, side, shrink)
        contestant.train()  # as our loop, which makes its first step before it asks
        while True:
            turns.wait(contestant)
            contestant.train()
    except Finished:
        return


def memory(field: str) -> int:
    """Bytes of this process by the kernel's ``field``."""
    found = re.search(rf"^{field}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


def half_units() -> bool:
    """Whether this CPU multiplies bfloat16 itself."""
    return any(f"{units}_bf16" in Path("/proc/cpuinfo").read_text() for units in ("avx512", "amx"))


def operations(done: profile) -> list[tuple[str, float, int]]:
    """Name, share of the time and calls of the operations that take the most time themselves."""
    events = sorted(done.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    return [(event.key, event.self_cpu_time_total / total, event.count) for event in events[:TOP]]


class Child:
    """The parent's side of one contestant's process."""

    def __init__(self, name: str, place: Path, side: int, shrink: int) -> None:
        command = [sys.executable, "-m", "tests.benchmarks.train_step", "--serve", name, str(place), str(side), str(shrink)]
        single = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=single)
        self.name = name
        self.told = self.read()

    def ask(self, line: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        print(line, file=self.process.stdin, flush=True)
        return self.read()

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} ended with status {self.process.wait()}; what it said stands above")
        return json.loads(line)

    def end(self) -> None:
        self.process.communicate("end\n")


def compare(children: list[Child], rounds: int, steps: int, *, profiled: bool) -> dict[str, Any]:
    """Figures of every contestant, measured in turn."""
    figures: dict[str, Any] = {child.name: {**child.told, "train": [], "sample": []} for child in children}
    for child in children:
        child.ask("train")  # allocators and kernels settle
    for kind in ("train", "sample"):
        for _ in range(rounds):
            for child in children:
                figures[child.name][kind] += [child.ask(kind) for _ in range(steps)]
        if kind == "train":
            for child in children:
                figures[child.name]["memory"] = child.ask("memory")
    if profiled:
        for child in children:
            figures[child.name]["profile"] = child.ask("profile")["top"]
    return figures


def least(row: dict[str, Any], kind: str, clock: str) -> float:
    return float(row["memory"]["peak"]) if kind == "memory" else min(time[clock] for time in row[kind])


def report(figures: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Print the raw figures; ratios of every contestant to Janspiry's, by kind and clock."""
    for name, row in figures.items():
        print(f"{name}: {row['parameters'] / 1e6:.2f} M parameters")
        for kind in ("train", "sample"):
            for clock in ("cpu", "wall"):
                values = [time[clock] for time in row[kind]]
                each = " ".join(f"{value:.3f}" for value in values)
                middle = statistics.median(values)
                print(f"  {kind:6} {clock:4} s a step: min {min(values):.3f} median {middle:.3f} (n = {len(values)}: {each})")
        peak, before = row["memory"]["peak"], row["memory"]["before"]
        print(f"  memory: peak {peak / 1e6:.0f} MB, {before / 1e6:.0f} MB of it before the network")
        for operation, share, calls in row.get("profile", []):
            print(f"  {share:5.1%} {operation} x {calls}")
    if "janspiry" not in figures:
        return {}
    ratios: dict[str, dict[str, float]] = {}
    for name, row in figures.items():
        kinds = (("train", "cpu"), ("train", "wall"), ("sample", "cpu"), ("sample", "wall"), ("memory", "peak"))
        ratios[name] = {f"{kind} {clock}": least(row, kind, clock) / least(figures["janspiry"], kind, clock) for kind, clock in kinds}
        print(f"{name} / janspiry: " + ", ".join(f"{kind} {ratio:.3f}" for kind, ratio in ratios[name].items()))
    for kind, goal in GOALS.items():
        for name in OURS.keys() & ratios.keys():
            got = ratios[name][f"{kind} {'peak' if kind == 'memory' else 'cpu'}"]
            print(f"goal {kind} <= {goal:.2f}: {name} {got:.3f}, {'reached' if got <= goal else 'missed'}")
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description="our training and sampling step beside others'")
    parser.add_argument("--janspiry", type=Path, help="a checkout of Janspiry/Image-Super-Resolution-via-Iterative-Refinement")
    parser.add_argument("--diffusers", type=Path, help="a folder from which diffusers can be imported")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="steps of one contestant before the next has its turn")
    parser.add_argument("--profile", action="store_true", help="also the operations that take the most time")
    parser.add_argument("--tiny", action="store_true", help="a network of an eighth of the width at 32 pixels: does it all run?")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--serve", nargs=4, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.serve:
        name, place, side, shrink = chosen.serve
        serve(name, Path(place), int(side), int(shrink))
        return
    side, shrink = (32, 8) if chosen.tiny else (128, 1)
    print(f"torch {torch.__version__}, {platform.machine()}, one thread each, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    ours = {name: Path() for name, precision in OURS.items() if precision == "float32" or half_units()}
    places = {**ours, "janspiry": chosen.janspiry, "diffusers": chosen.diffusers}
    children = [Child(name, place.absolute(), side, shrink) for name, place in places.items() if place is not None]
    try:
        figures = compare(children, chosen.rounds, chosen.steps, profiled=chosen.profile)
    finally:
        for child in children:
            child.end()
    ratios = report(figures)
    if chosen.json:
        written = {"torch": torch.__version__, "machine": platform.machine(), "figures": figures, "ratios": ratios, "goals": GOALS}
        chosen.json.write_text(json.dumps(written, indent=1))


if __name__ == "__main__":
    main()
