"""How training scales over devices, on paper: reproduces MosaicML's published table and predicts our recipes. Nothing is run.

    python -m tests.benchmarks.scale_model [--bandwidth 50 100 200 400] [--images-per-device 8] [--json scale_model.json]

The model (data parallel, gradients exchanged while the backward pass runs, ring all-reduce):

    t_step(N) = max(t_forward + max(t_backward, t_exchange) + t_tail + t_optimizer / shards, batch / R_data)
    t_exchange = 2 (N - 1) / N S / B

S gradient bytes, B bus bandwidth in bytes/s, t_backward twice t_forward, t_tail the exchange of the last bucket, which nothing hides,
shards 1 as in this project (each device steps all weights). Efficiency is images/s on N devices over N / 8 x those on 8. It knows no
stragglers, no congestion and no small-batch loss within a device, so it is an upper bound; only S / B enters, so a bandwidth fitted
with float32 gradients is half of it with bfloat16 ones.

Sources: MosaicML's table is in the README of github.com/mosaicml/diffusion (Stable Diffusion 2's U-Net on A100s at 256 and 512 px,
images/s; global batch 2,048 in its configs; 866 M parameters by Stability AI's model card). Our rates are goals, not measurements: the
share of 790 TFLOP/s given beside each recipe, of the FLOPs that ``sr3 show`` counts.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sr3_core import config, summary
from sr3_core.training.worker import BUCKET_MEGABYTES

FLOAT32 = 4  # bytes of a gradient
BACKWARD_SHARE = 2 / 3  # of forward and backward: two products for one
REFERENCE = 8  # devices that efficiency is relative to: one node

MOSAIC_BATCH, MOSAIC_PARAMETERS, MOSAIC_BANDWIDTH = 2048, 866e6, 50e9
MOSAIC = {  # pixels: {devices: images/s}
    256: {8: 1100, 16: 2180, 32: 4080, 64: 8530, 128: 11600},
    512: {8: 290, 16: 585, 32: 1195, 64: 2340, 128: 4590},
}

PEAK, MEMORY_BANDWIDTH = 790e12, 3.35e12  # bfloat16 FLOP/s that an H100-class device sustains in matrix products, its memory's bytes/s
GOALS = {"paper_16_128": 0.45, "paper_64_256": 0.45, "paper_64_512": 0.40, "paper_256_1024": 0.20}  # model FLOP utilisation
STEP_BYTES = (
    40  # a parameter: Adam reads gradient and reads and writes weight and two moments; the average is read and written, weight read
)
DEVICES = (8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Work:
    """One device's work. ``rate``: images/s of forward and backward alone; ``optimizer_seconds``: one step of all weights."""

    rate: float
    gradient_bytes: float
    optimizer_seconds: float = 0.0
    tail_bytes: float = BUCKET_MEGABYTES * 1e6


@dataclass(frozen=True)
class Step:
    """Seconds of one step on ``devices``; ``bound``: what sets the pace (compute, exchange or data)."""

    devices: int
    seconds: float
    images_per_second: float
    bound: str


def step(work: Work, devices: int, batch: int, bandwidth: float, *, shards: int = 1, data_rate: float | None = None) -> Step:
    """One step of ``batch`` images over ``devices``; ``bandwidth`` in bytes/s, ``data_rate`` in images/s of all loaders or None."""
    compute = batch / devices / work.rate
    backward = BACKWARD_SHARE * compute
    passes = 2 * (devices - 1) / devices
    exchange, tail = (passes * size / bandwidth for size in (work.gradient_bytes, work.tail_bytes))
    seconds = compute - backward + max(backward, exchange) + tail + work.optimizer_seconds / shards
    bound = "compute" if backward >= exchange else "exchange"
    if data_rate is not None and batch / data_rate > seconds:
        seconds, bound = batch / data_rate, "data"
    return Step(devices, seconds, batch / seconds, bound)


def efficiency(found: Step, reference: Step) -> float:
    """Images/s a device over that of ``reference``."""
    return found.images_per_second / found.devices / (reference.images_per_second / reference.devices)


def mosaic(bandwidth: float = MOSAIC_BANDWIDTH) -> list[dict[str, float]]:
    """Published and predicted efficiency of every row of the table; the rate of one device is the published one on 8."""
    rows: list[dict[str, float]] = []
    for pixels, published in MOSAIC.items():
        work = Work(published[REFERENCE] / REFERENCE, FLOAT32 * MOSAIC_PARAMETERS, tail_bytes=0.0)
        reference = Step(REFERENCE, MOSAIC_BATCH / published[REFERENCE], published[REFERENCE], "compute")
        for devices, rate in published.items():
            there = efficiency(Step(devices, MOSAIC_BATCH / rate, rate, ""), reference)
            here = efficiency(step(work, devices, MOSAIC_BATCH, bandwidth), reference)
            rows.append({"pixels": pixels, "devices": devices, "published": there, "predicted": here})
    return rows


def recipe_work(name: str) -> Work:
    """Of a paper recipe at its goal."""
    stage = config.load(name, []).stages[0]
    network = summary.build(stage)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    flops = summary.FORWARD_PER_TRAINING * summary.forward_flops(network, stage, stage.high)
    return Work(GOALS[name] * PEAK / flops, FLOAT32 * parameters, STEP_BYTES * parameters / MEMORY_BANDWIDTH)


def hidden_from(work: Work, devices: int) -> float:
    """Bandwidth x images per device from which the exchange hides behind the backward pass, in bytes/s for one image each."""
    return 2 * (devices - 1) / devices * work.gradient_bytes * work.rate / BACKWARD_SHARE


def predictions(work: Work, bandwidth: float, *, batch: int | None, images_per_device: int) -> list[dict[str, Any]]:
    """Efficiency over DEVICES at a fixed global ``batch``, or at ``images_per_device`` when None."""

    def at(devices: int) -> Step:
        return step(work, devices, batch or images_per_device * devices, bandwidth)

    return [{**asdict(at(devices)), "efficiency": efficiency(at(devices), at(REFERENCE))} for devices in DEVICES]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="how training scales, on paper")
    parser.add_argument("--bandwidth", type=float, nargs="+", default=[50, 100, 200, 400], help="bus bandwidths to predict for, in GB/s")
    parser.add_argument("--images-per-device", type=int, default=8)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    chosen = parser.parse_args(arguments)
    rows = mosaic()
    print(f"MosaicML, batch {MOSAIC_BATCH}, B = {MOSAIC_BANDWIDTH / 1e9:.0f} GB/s: efficiency published / predicted")
    for pixels in MOSAIC:
        cells = (f"{row['devices']}: {row['published']:.1%} / {row['predicted']:.1%}" for row in rows if row["pixels"] == pixels)
        print(f"  {pixels} px  " + "   ".join(cells))
    figures: dict[str, Any] = {"mosaic": rows, "recipes": {}}
    for name, goal in GOALS.items():
        work = recipe_work(name)
        exchanged, stepped = work.gradient_bytes / 1e9, 1e3 * work.optimizer_seconds
        print(f"{name}: {work.rate:.0f} images/s a device at {goal:.0%}, {exchanged:.2f} GB of gradients, optimizer {stepped:.1f} ms")
        least = ", ".join(f"{hidden_from(work, 64) / images / 1e9:.0f} GB/s with {images} images each" for images in (4, 8, 32))
        print(f"  on 64 devices the exchange hides from {least}")
        figures["recipes"][name] = {"work": asdict(work), "predictions": {}}
        for label, batch in (("batch 256", 256), ("batch 2048", 2048), (f"{chosen.images_per_device} images each", None)):
            for bandwidth in chosen.bandwidth:
                found = predictions(work, 1e9 * bandwidth, batch=batch, images_per_device=chosen.images_per_device)
                figures["recipes"][name]["predictions"][f"{label}, {bandwidth:g} GB/s"] = found
                cells = (f"{row['devices']}: {row['efficiency']:4.0%}{'*' if row['bound'] == 'exchange' else ' '}" for row in found)
                print(f"  {label:15} {bandwidth:4g} GB/s  " + " ".join(cells))
    print("* the exchange of gradients takes longer than the backward pass")
    if chosen.json:
        chosen.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
