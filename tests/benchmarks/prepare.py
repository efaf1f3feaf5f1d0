"""prepare against a naive Pillow pipeline and img2dataset's resizer, Ray against in-process, a shard against ShardWriter. Run by hand.

    python -m tests.benchmarks.prepare [--photos 24] [--rounds 5] [--ray] [--img2dataset PYTHON]

Every one makes 256-px and 64-px images of the same 1024 x 1024 JPEG files, in turn, in one thread on one core (Ray with all its
processes, too); ``--img2dataset`` names the interpreter of an environment that has img2dataset, whose resizer makes 256 px alone, or 64 px
from those as well. Minimum and median of wall and CPU time and every round's CPU time are printed: on a shared machine they are the
steadier; Ray's is that of its driver alone, so its wall time counts.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from PIL import Image

from sr3_core import images, storage
from sr3_core.config import Data
from sr3_core.data import shards
from sr3_core.data.sources import folder, sample_photos

SIDE, LEVELS = 1024, (64, 256)

# Run by the other interpreter: answers each line with the wall and CPU seconds of one pass over the files.
RESIZER = """
import io, json, sys, time
import cv2
from img2dataset.resizer import Resizer
cv2.setNumThreads(1)
files = sys.argv[2:]
high, low = (Resizer(int(size), "center_crop", False, encode_format="png", encode_quality=1) for size in sys.argv[1].split(","))
for line in sys.stdin:
    wall, cpu = time.perf_counter(), time.process_time()
    for name in files:
        made, *_, error = high(io.BytesIO(open(name, "rb").read()))
        assert error is None
        if line.strip() == "both":
            assert low(io.BytesIO(made))[-1] is None
    print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu]), flush=True)
"""


def write_photos(root: Path, count: int) -> None:
    """The bundled photos' centre squares at 1024 x 1024, again and again with a little noise, as JPEG of quality 90."""
    examples = list(sample_photos.examples(sample_photos.Options()))
    for index in range(count):
        square = images.centre_square(images.decode(storage.read_bytes(examples[index % len(examples)].uri)))
        large = images.resize(square, (SIDE, SIDE), "bicubic").astype(np.float32)
        noisy = large + np.random.default_rng(index).normal(0, 2, large.shape)
        (root / f"{index:03d}.jpg").write_bytes(images.encode(noisy.clip(0, 255).astype(np.uint8), "jpeg", 90))


def naive(files: list[Path]) -> None:
    """Full decode, box to 256, bicubic to 64, PNG as Pillow writes it."""
    for path in files:
        high = Image.open(path).convert("RGB").resize((LEVELS[1], LEVELS[1]), Image.Resampling.BOX)
        for image in (high, high.resize((LEVELS[0], LEVELS[0]), Image.Resampling.BICUBIC)):
            image.save(io.BytesIO(), "PNG")


def section(root: Path, **changes: Any) -> Data:
    values = {"source": "folder", "options": {"uri": str(root)}, "levels": LEVELS, "split": {"val": 0, "test": 0}, **changes}
    values["split"]["minimum"] = {"train": 1, "val": 0, "test": 0}
    return Data.model_validate(values)


def prepared(root: Path, data: Data, mapper: shards.Mapper) -> None:
    with tempfile.TemporaryDirectory() as target:
        shards.build(target, data, list(folder.examples(folder.Options(uri=str(root)))), fingerprint="benchmark", mapper=mapper)


def measure(runs: dict[str, Callable[[], tuple[float, float] | None]], rounds: int, count: int) -> dict[str, tuple[float, float]]:
    """Each run once a round, in turn; prints both times of each and gives the least wall and the least CPU seconds."""
    wall: dict[str, list[float]] = {name: [] for name in runs}
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start, used = time.perf_counter(), time.process_time()
            told = run()
            taken = (time.perf_counter() - start, time.process_time() - used) if told is None else told
            wall[name].append(taken[0])
            cpu[name].append(taken[1])
    for name in runs:
        least, middle = (1e3 * of(wall[name]) / count for of in (min, statistics.median))
        least_cpu, middle_cpu = (1e3 * of(cpu[name]) / count for of in (min, statistics.median))
        each = " ".join(f"{1e3 * seconds / count:.1f}" for seconds in cpu[name])
        print(
            f"{name:32s} wall min {least:6.2f} median {middle:6.2f}, cpu min {least_cpu:6.2f} median {middle_cpu:6.2f} ms an item ({each})"
        )
    return {name: (min(wall[name]), min(cpu[name])) for name in runs}


def shard_writing(rounds: int) -> None:
    """The same 400 pairs as a tar by our writer's tar and by webdataset's."""
    rng = np.random.default_rng(0)
    pairs = [(rng.bytes(100_000), rng.bytes(8_000)) for _ in range(400)]
    sizes: dict[str, int] = {}

    def ours() -> None:
        import tarfile

        with tempfile.TemporaryDirectory() as target:
            path = Path(target) / "a.tar"
            with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
                for index, (high, low) in enumerate(pairs):
                    for name, content in ((f"{index:06d}.256.png", high), (f"{index:06d}.64.png", low)):
                        shards._add(tar, name, content)  # pyright: ignore[reportPrivateUsage]
            sizes["ours"] = path.stat().st_size

    def theirs() -> None:
        with tempfile.TemporaryDirectory() as target:
            with webdataset.ShardWriter(f"{target}/%06d.tar", maxcount=10**6, verbose=0) as writer:
                for index, (high, low) in enumerate(pairs):
                    writer.write({"__key__": f"{index:06d}", "256.png": high, "64.png": low})
            sizes["ShardWriter"] = sum(path.stat().st_size for path in Path(target).iterdir())

    measure({"tar as prepare writes it": ours, "webdataset.ShardWriter": theirs}, rounds, len(pairs))
    print(f"bytes: {sizes}")


def main() -> None:
    parser = argparse.ArgumentParser(description="prepare against others, both raw times")
    parser.add_argument("--photos", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ray", action="store_true", help="also over Ray tasks on one core")
    parser.add_argument("--img2dataset", metavar="PYTHON")
    given = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        write_photos(root, given.photos)
        files = sorted(root.glob("*.jpg"))

        def ours(**changes: Any) -> Callable[[], None]:
            return lambda: prepared(root, section(root, **changes), shards.in_process)

        runs: dict[str, Callable[[], tuple[float, float] | None]] = {
            "naive Pillow": lambda: naive(files),
            "prepare, PNG": ours(),
            "prepare, WebP": ours(codec={"format": "webp"}),
            "prepare, WebP, fast": ours(codec={"format": "webp"}, decoding="fast"),
            "prepare, JPEG-95 high": ours(codec={"format": "jpeg"}),
            "prepare, JPEG-95 high, fast": ours(codec={"format": "jpeg"}, decoding="fast"),
        }
        with contextlib.ExitStack() as stack:
            if given.img2dataset:
                command = [given.img2dataset, "-c", RESIZER, f"{LEVELS[1]},{LEVELS[0]}", *map(str, files)]
                other = stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
                stack.callback(other.communicate)

                def resizer(what: str) -> tuple[float, float]:
                    assert other.stdin is not None and other.stdout is not None
                    other.stdin.write(f"{what}\n")
                    other.stdin.flush()
                    wall, cpu = json.loads(other.stdout.readline())
                    return wall, cpu

                runs["img2dataset's resizer, 256 px"] = lambda: resizer("one")
                runs["img2dataset's resizer, both"] = lambda: resizer("both")
            if given.ray:
                from components import cluster
                from components.prepare.main import _over_ray  # pyright: ignore[reportPrivateUsage]

                stack.enter_context(cluster.connect("", workers=1, cpus_per_worker=1, room="prepare"))
                runs["prepare, PNG, over Ray"] = lambda: prepared(root, section(root), _over_ray)
            least = measure(runs, given.rounds, len(files))
        naive_wall, naive_cpu = least["naive Pillow"]
        for name, (wall, cpu) in least.items():
            print(
                f"{name:32s} {naive_wall / wall:5.2f} x naive by wall, {naive_cpu / cpu:5.2f} by CPU time, {len(files) / cpu:6.1f} images/s"
            )
        print(f"n = {len(files)} photos x {given.rounds} rounds; files of {sum(path.stat().st_size for path in files) // len(files)} bytes")
    shard_writing(given.rounds)


if __name__ == "__main__":
    main()
