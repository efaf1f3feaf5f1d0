"""Loader against a plain webdataset decode of the same shards: samples a second, in turn, one thread. Run by hand.

    python -m tests.benchmarks.loader [--rounds 5]

Each delivers pairs of a 256-px image and its 64-px low image as batches of floats. webdataset decodes both as whole images, whatever is
wanted of them; so does the loader for whole images. For crops of 64 px it is measured with nothing kept, as for a set far larger than
memory, and as the demo runs (decoded images kept), with and without zoom, and with a second decoding thread. Wall and CPU time are both
printed: on a shared machine the second is the steadier.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import webdataset

from sr3_core import storage
from sr3_core.artifacts.shardset import ShardSet
from sr3_core.config import Data, Stage
from sr3_core.data import shards as writer
from sr3_core.data.loader import MicroBatches
from sr3_core.data.sources import sample_photos

BATCH = 16
NUM_BATCHES = 8
DATA = Data.model_validate(
    {
        "source": "sample_photos",
        "split": {"by": "published"},
        "levels": [64, 256],
        "required_levels": {split: [64, 256] for split in ("train", "val", "test")},
    }
)


def stage(crop: int, zoom: float) -> Stage:
    """64 -> 256, batches of 16."""
    counts = {"images": BATCH, "global_batch": BATCH, "micro_batch": BATCH, "checkpoint_images": BATCH, "log_images": BATCH}
    training = {**counts, "crop": crop, "augment": {"zoom": zoom}}
    return Stage.model_validate(
        {"name": "sr256", "low": 64, "high": 256, "model": {"name": "unet"}, "objective": {"name": "diffusion"}, "training": training}
    )


def through_loader(loader: MicroBatches, *, threads: int = 0) -> None:
    """``threads`` 0: made as they are asked for."""
    indices = [(index * BATCH, BATCH) for index in range(NUM_BATCHES)]
    if not threads:
        for first, count in indices:
            loader.batch(first, count)
        return
    loader.threads = threads
    for _ in loader.prefetch(indices):
        pass


def through_webdataset(tars: list[str], crop: int) -> None:
    """Each pair's aligned crop at a place of its own, as a training loop would cut it."""
    stream = webdataset.WebDataset(tars, shardshuffle=False, empty_check=False).repeat().decode("torchrgb").to_tuple("256.png", "64.png")
    place = random.Random(0)

    def cut(pair: Any) -> Any:
        row, column = (4 * place.randrange((256 - crop) // 4 + 1) for _ in range(2))
        high, low = pair
        top, left, side = row // 4, column // 4, crop // 4
        return high[:, row : row + crop, column : column + crop], low[:, top : top + side, left : left + side]

    batches = iter(stream.map(cut).batched(BATCH))
    for _ in range(NUM_BATCHES):
        next(batches)


def measure(runs: dict[str, Callable[[], None]], rounds: int) -> None:
    wall: dict[str, list[float]] = {name: [] for name in runs}
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start, used = time.perf_counter(), time.process_time()
            run()
            wall[name].append((time.perf_counter() - start) / NUM_BATCHES)
            cpu[name].append((time.process_time() - used) / NUM_BATCHES)
    for name in runs:
        least, middle, least_cpu, middle_cpu = (1e3 * of(times[name]) for times in (wall, cpu) for of in (min, statistics.median))
        times = f"wall min {least:6.1f} median {middle:6.1f}, cpu min {least_cpu:6.1f} median {middle_cpu:6.1f} ms a batch of {BATCH}"
        print(f"{name:36s} {times}, {1e3 * BATCH / least:5.0f} samples/s, n={rounds}")


def main() -> None:
    parser = argparse.ArgumentParser(description="loader against webdataset, both raw times")
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        writer.build(folder, DATA, sample_photos.examples(sample_photos.Options()), fingerprint="benchmark")
        cold, warm = ShardSet.open(folder, cache_bytes=0), ShardSet.open(folder)
        tars = [storage.join(folder, shard["name"]) for shard in warm.manifest["shards"] if shard["split"] == "train"]
        whole, crops = MicroBatches(cold, stage(256, 1)), MicroBatches(cold, stage(64, 1))
        kept = {zoom: MicroBatches(warm, stage(64, zoom)) for zoom in (1.0, 4.0)}
        measure(
            {
                "webdataset, whole images": lambda: through_webdataset(tars, 256),
                "loader, whole images": lambda: through_loader(whole),
                "webdataset, crops of 64": lambda: through_webdataset(tars, 64),
                "loader, crops of 64": lambda: through_loader(crops),
                "loader, crops of 64, 2 threads": lambda: through_loader(crops, threads=2),
                "loader, crops of 64, kept": lambda: through_loader(kept[1.0]),
                "loader, crops of 64, kept, zoom 4": lambda: through_loader(kept[4.0]),
            },
            rounds,
        )


if __name__ == "__main__":
    main()
