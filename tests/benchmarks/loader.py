"""Loader against a plain webdataset decode of the same shards: samples a second, in turn, one thread. Run by hand.

    python -m tests.benchmarks.loader [--rounds 5] [--codec webp]

Each delivers pairs of a 256-px image and its 64-px low image as batches of floats. webdataset decodes both as whole images, whatever is
wanted of them; so does the loader for whole images. For crops of 64 px it is measured with nothing kept, as for a set far larger than
memory, and as the demo runs (decoded images kept), with and without zoom, and with a second decoding thread. Wall and CPU time are both
printed: on a shared machine the second is the steadier.
"""

import argparse
import itertools
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
from sr3_core.config import Codec, Data, Stage
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
    stream = (
        webdataset.WebDataset(tars, shardshuffle=False, empty_check=False)
        .repeat()
        .decode("torchrgb")
        .to_tuple("256.png;256.webp", "64.png;64.webp")
    )
    place = random.Random(0)

    def cut(pair: Any) -> Any:
        row, column = (4 * place.randrange((256 - crop) // 4 + 1) for _ in range(2))
        high, low = pair
        top, left, side = row // 4, column // 4, crop // 4
        return high[:, row : row + crop, column : column + crop], low[:, top : top + side, left : left + side]

    pairs = iter(stream.map(cut))  # its own batches would leave an epoch's rest out, or be smaller
    for _ in range(NUM_BATCHES):
        for images in zip(*itertools.islice(pairs, BATCH), strict=True):
            assert torch.stack(images).shape[0] == BATCH


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
        each = " ".join(f"{1e3 * seconds:.1f}" for seconds in cpu[name])
        print(f"{name:34s} {times} ({each}), {1e3 * BATCH / least_cpu:5.0f} samples a CPU second")
    print(f"n = {NUM_BATCHES} batches of {BATCH} x {rounds} rounds")


def main() -> None:
    parser = argparse.ArgumentParser(description="loader against webdataset, both raw times")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--codec", choices=("png", "webp"), default="png")
    given = parser.parse_args()
    rounds = given.rounds
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = DATA.model_copy(update={"codec": Codec(format=given.codec)})
        writer.build(folder, data, sample_photos.examples(sample_photos.Options()), fingerprint="benchmark")
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
