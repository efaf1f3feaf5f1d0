"""Loader against a plain webdataset decode of the same shards: samples a second, interleaved, one thread. Run by hand.

    python -m tests.benchmarks.loader [--rounds 5]

Both read whole 256-px images with their 64-px low image, the loader with nothing cached, so that each sample is decoded by both.
The last lines are the loader as a run uses it (decoded images kept): crops of 64 px without and with zoom.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable

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


def through_loader(loader: MicroBatches) -> None:
    for index in range(NUM_BATCHES):
        loader.batch(index * BATCH, BATCH)


def through_webdataset(tars: list[str]) -> None:
    stream = webdataset.WebDataset(tars, shardshuffle=False, empty_check=False).repeat().decode("torchrgb").to_tuple("256.png", "64.png")
    batches = iter(stream.batched(BATCH))
    for _ in range(NUM_BATCHES):
        next(batches)


def measure(runs: dict[str, Callable[[], None]], rounds: int) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append((time.perf_counter() - start) / NUM_BATCHES)
    for name, values in seconds.items():
        low, middle = min(values), statistics.median(values)
        times = f"min {low * 1e3:6.1f} median {middle * 1e3:6.1f} ms a batch of {BATCH}"
        print(f"{name:28s} {times}, {BATCH / low:5.0f} samples/s, n={rounds}")


def main() -> None:
    parser = argparse.ArgumentParser(description="loader against webdataset, both raw times")
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        writer.build(folder, DATA, sample_photos.examples(sample_photos.Options()), fingerprint="benchmark")
        cold, warm = ShardSet.open(folder, cache_bytes=0), ShardSet.open(folder)
        tars = [storage.join(folder, shard["name"]) for shard in warm.manifest["shards"] if shard["split"] == "train"]
        whole, kept = MicroBatches(cold, stage(256, 1)), {zoom: MicroBatches(warm, stage(64, zoom)) for zoom in (1.0, 4.0)}
        measure(
            {
                "webdataset, decoded": lambda: through_webdataset(tars),
                "loader, nothing kept": lambda: through_loader(whole),
                "loader, crops of 64": lambda: through_loader(kept[1.0]),
                "loader, crops of 64, zoom 4": lambda: through_loader(kept[4.0]),
            },
            rounds,
        )


if __name__ == "__main__":
    main()
