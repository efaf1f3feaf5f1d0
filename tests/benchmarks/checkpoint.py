"""How long a checkpoint holds the training up, beside a plain torch.save of the same state: ``python -m tests.benchmarks.checkpoint``.

Both are given the state of a recipe's first stage after one step of its optimizer, in turns, in one process; medians of ``--rounds``. Ours
holds the step up while the state is copied; what the thread does after that (write, read back, verify) is measured too, with what it
takes from steps that run meanwhile. Prints one line of JSON. The state
is 16 bytes a parameter (weights, two moments, average), and the copy as much again.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from sr3_core import config, plugins
from sr3_core.training.saving import Saver
from sr3_core.training.state import CheckpointStore, TrainState


def state_of(recipe: str, overrides: list[str]) -> tuple[TrainState, Any]:
    """The state of the first stage after an optimizer step with drawn gradients, and that stage."""
    stage = config.load(recipe, overrides).stages[0]
    objective = plugins.load("objectives", stage.objective.name).Objective(stage, {"sigma_data": 0.5})
    state = TrainState.fresh(objective.players(), exported=objective.exported, measured={}, stage=stage)
    for name, player in state.players.items():
        for parameter in player.parameters():
            parameter.grad = torch.randn_like(parameter)
        state.optimizers[name].step()
        state.optimizers[name].zero_grad(set_to_none=True)
    state.images_seen = stage.training.global_batch
    return state, stage


def plain(state: TrainState, path: Path) -> None:
    players = {name: player.state_dict() for name, player in state.players.items()}
    optimizers = {name: optimizer.state_dict() for name, optimizer in state.optimizers.items()}
    torch.save({"players": players, "optimizers": optimizers, "ema": state.ema, "images_seen": state.images_seen}, path)


def work(seconds: float) -> float:
    """Steps per second of a stand-in for training (convolutions forward and backward) over ``seconds``."""
    layer, x = torch.nn.Conv2d(64, 64, 3, padding=1), torch.randn(4, 64, 32, 32)
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        layer(x).square().mean().backward()
        done += 1
    return done / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="As in sr3 run: a wider network has a larger state.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", default=None, help="Where both write; by default a temporary folder.")
    given = parser.parse_args()
    torch.set_num_threads(1)
    state, stage = state_of(given.recipe, given.overrides)
    times: dict[str, list[float]] = {"plain": [], "blocking": [], "written": [], "first": []}
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        facts = {"stage": stage.model_dump(mode="json"), "environment": {}}
        saver = Saver(CheckpointStore(f"{folder}/ours", keep=1, say=print), facts)
        for _ in range(given.rounds + 1):
            start = time.perf_counter()
            plain(state, Path(folder, "plain.pt"))
            times["plain"].append(time.perf_counter() - start)
            state.images_seen += stage.training.global_batch
            start = time.perf_counter()
            saver.save(state)
            times["blocking" if times["first"] else "first"].append(time.perf_counter() - start)
            saver.wait()
            times["written"].append(time.perf_counter() - start)
        alone = work(3.0)
        state.images_seen += stage.training.global_batch
        saver.save(state)
        beside = work(min(3.0, 0.8 * statistics.median(times["written"])))
        saver.wait()
        size = sum(path.stat().st_size for path in Path(folder).glob("ours/*/*.safetensors"))
    medians = {name: statistics.median(values) for name, values in times.items()}
    result = {
        "recipe": [given.recipe, *given.overrides],
        "stage": stage.name,
        "state_megabytes": round(size / 1e6, 1),
        "plain_seconds": round(medians["plain"], 3),
        "first_blocking_seconds": round(medians["first"], 3),
        "blocking_seconds": round(medians["blocking"], 3),
        "blocking_of_plain": round(medians["blocking"] / medians["plain"], 3),
        "until_verified_seconds": round(medians["written"], 3),
        "steps_beside_writing_of_alone": round(beside / alone, 2),
        "rounds": given.rounds,
        "load_average": os.getloadavg()[0],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
