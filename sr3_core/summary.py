"""What a recipe's stages cost before anything runs: parameters, FLOPs, memory counted on meta tensors; times estimated on a named device.

FLOP here is 2 x multiply-add (convolutions, matrix products and attention; the rest is below a hundredth). Bytes are decimal: GB = 1e9.
"""

import re
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from sr3_core import config, plugins
from sr3_core.config import Recipe, Stage
from sr3_core.diffusion.guard import Ranges
from sr3_core.errors import BadInput

LINE_CHARACTERS = 130
STATE_BYTES = 20  # a parameter in training: float32 weight, gradient, two moments of Adam and the moving average
HALF = ("bfloat16", "float16")  # two bytes a stored number
FORWARD_PER_TRAINING = 3  # the backward pass costs two forwards; with checkpoints the forward runs once more
# Passes over the stored activations that memory traffic amounts to. These two reproduce the rooflines, taken layer by layer with every
# pointwise operation fused, of SR3's four networks within 10 % (training) and 20 % (sampling).
TRAINING_PASSES, SAMPLING_PASSES = 4, 1


@dataclass(frozen=True)
class Device:
    """One accelerator, or one core. FLOP/s are dense peaks, bytes/s that of its memory; ``share`` of this roofline is what is expected.

    ``bfloat16`` or ``tf32`` None: no units for it, float32's rate is taken.
    """

    bfloat16: float | None
    tf32: float | None
    float32: float
    bandwidth: float
    memory: float | None
    share: float
    source: str


_GPU = "share: the goal for channels-last code with fused pointwise operations, not a measurement"
_CPU = "share: measured .48 in training a network of 98 M parameters and .27 on the demo's; good to a factor of three"
DEVICES = {
    "h100": Device(989e12, 495e12, 67e12, 3.35e12, 80e9, 0.55, f"NVIDIA's data sheet of H100 SXM; {_GPU}"),
    "h200": Device(989e12, 495e12, 67e12, 4.8e12, 141e9, 0.55, f"NVIDIA's data sheet of H200 SXM; {_GPU}"),
    "a100": Device(312e12, 156e12, 19.5e12, 2.04e12, 80e9, 0.55, f"NVIDIA's data sheet of A100 SXM 80 GB; {_GPU}"),
    "l4": Device(121e12, 60e12, 30.3e12, 0.3e12, 24e9, 0.55, f"NVIDIA's data sheet of L4, without sparsity; {_GPU}"),
    "t4": Device(None, None, 8.1e12, 0.32e12, 16e9, 0.55, f"NVIDIA's data sheet of T4, which has neither bfloat16 nor TF32; {_GPU}"),
    "cpu": Device(None, None, 0.2e12, 10e9, None, 0.35, f"one core of 3.1 GHz with two AVX-512 units; {_CPU}"),
}  # fmt: skip

_OTHER_BOARDS = frozenset({"pcie", "nvl", "mig"})  # slower than the board of the same name above, or a part of it

COUNTED = (
    "Counted, per image. FLOP = 2 x multiply-add; training = 3 x forward, 4 x where the recipe checkpoints its blocks. Activations: what "
    "is stored for the backward pass (eager bfloat16 autocast keeps norms in float32: up to 1.7 x). Training state: "
    f"{STATE_BYTES} bytes a parameter."
)


@dataclass(frozen=True)
class Cost:
    """Counted, not estimated. ``training_*`` and activations are for one image of ``training_side`` pixels, the crop where there is one.

    ``activations``: bytes stored for the backward pass by precision, each storage once, parameters left out. bfloat16 means that all of
    it is stored so, as by fused norms; eager autocast keeps the norms' in float32, up to 1.7 x. ``checkpointed``: the same when each
    block is recomputed; None where the network has no ``checkpoint_blocks``.
    """

    stage: str
    parameters: int
    forward_flops: int
    training_side: int
    training_flops: int
    activations: dict[str, int]
    checkpointed: dict[str, int] | None
    state_bytes: int


@dataclass(frozen=True)
class Estimate:
    """Estimated for a stage on ``count`` devices; seconds. ``network_calls``: of one sample, by the recipe's sampling options."""

    stage: str
    device: str
    count: int
    precision: str
    micro_batch: int
    memory_bytes: float
    memory_of_device: float | None
    training_images_per_second: float
    training_seconds: float
    network_calls: int
    sampling_seconds: float


def summary(recipe: Recipe, device: str = "") -> dict[str, Any]:
    """Costs and estimates of every stage as plain values. ``device`` defaults to h100 or cpu, as ``scaling.accelerator`` says.

    Raises BadInput for an unknown device and for what the plug-ins and the schedule guard refuse.
    """
    device = device or {"gpu": "h100", "cpu": "cpu"}[recipe.scaling.accelerator]
    if device not in DEVICES:
        raise BadInput(f"--device {device!r}", config.nearest(device, list(DEVICES)), "name one of these")
    costs = [cost(stage) for stage in recipe.stages]
    count = recipe.scaling.workers * ((recipe.scaling.cpus_per_worker or 1) if device == "cpu" else 1)
    estimates = [estimate(stage, found, device, count=count) for stage, found in zip(recipe.stages, costs, strict=True)]
    return {
        "device": {"name": device, **asdict(DEVICES[device])},
        "costs": [asdict(item) for item in costs],
        "estimates": [asdict(item) for item in estimates],
        "schedules": [{"stage": stage.name, **asdict(found)} for stage in recipe.stages if (found := ranges(stage)) is not None],
        "assumptions": assumptions(device),
    }


def cost(stage: Stage) -> Cost:
    """Count one stage on meta tensors: nothing is computed and no weight is made. Raises BadInput for options the network refuses."""
    network = build(stage)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    side = stage.training.crop or stage.high
    forward = forward_flops(network, stage, stage.high)
    trained = forward if side == stage.high else forward_flops(network, stage, side)
    checkpoints = "checkpoint_blocks" in _options(stage).model_fields
    stored = activation_bytes(build(stage, checkpoint_blocks=False) if checkpoints else network, stage, side)
    return Cost(
        stage=stage.name,
        parameters=parameters,
        forward_flops=forward,
        training_side=side,
        training_flops=trained * (FORWARD_PER_TRAINING + _recomputes(stage)),
        activations=stored,
        checkpointed=activation_bytes(build(stage, checkpoint_blocks=True), stage, side) if checkpoints else None,
        state_bytes=STATE_BYTES * parameters,
    )


def model_flops(stage: Stage) -> int:
    """FLOPs of training on one image of the stage's crop, without what checkpointed blocks compute again."""
    return FORWARD_PER_TRAINING * forward_flops(build(stage), stage, stage.training.crop or stage.high)


def peak_of(device: str, precision: str) -> float | None:
    """Dense peak in FLOP/s of the GPU that its driver calls ``device``; None for one that is not in ``DEVICES``, or is a part of it.

    float32 means float32 throughout, ``tf32`` its rounded products and convolutions.
    """
    words = re.split(r"[^a-z0-9]+", device.lower())
    known = [name for name in words if name in DEVICES]
    if len(known) != 1 or not _OTHER_BOARDS.isdisjoint(words):
        return None
    return _rate_of(DEVICES[known[0]], precision)


def build(stage: Stage, **changed: Any) -> nn.Module:
    """The stage's network on the meta device, its options ``changed``."""
    module = plugins.load("models", stage.model.name)
    options = config.options(module.Options, {**stage.model.options, **changed}, f"stages.{stage.name}.model")
    with torch.device("meta"):
        return module.build(options, stage).to("meta")  # a buffer made from an array stands elsewhere


def forward_flops(network: nn.Module, stage: Stage, side: int) -> int:
    """FLOPs of one call for one image of ``side`` x ``side`` pixels."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(*_inputs(stage, side))
    return int(counter.get_total_flops())


def activation_bytes(network: nn.Module, stage: Stage, side: int) -> dict[str, int]:
    """Bytes that autograd stores for the backward pass of one image of ``side`` x ``side`` pixels in training, by precision."""
    found: dict[str, int] = {}
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        network.to(dtype).train()
        own = {tensor.untyped_storage()._cdata for tensor in (*network.parameters(), *network.buffers())}  # pyright: ignore[reportPrivateUsage]
        kept: dict[int, torch.UntypedStorage] = {}  # holding a storage keeps its identity from being used again

        def keep(tensor: Tensor, own: set[int] = own, kept: dict[int, torch.UntypedStorage] = kept) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in own:  # pyright: ignore[reportPrivateUsage]
                kept[storage._cdata] = storage  # pyright: ignore[reportPrivateUsage]
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            output = network(*_inputs(stage, side, dtype))
        found[name] = sum(storage.nbytes() for storage in kept.values())
        del output
    return found


def estimate(stage: Stage, cost: Cost, device: str, *, count: int) -> Estimate:
    """Times of one stage on ``count`` x ``device``: the roofline of ``assumptions``, for batches that fill the device."""
    on = DEVICES[device]
    training = stage.training
    precision = training.precision
    kept = cost.checkpointed if cost.checkpointed is not None and _recomputes(stage) else cost.activations
    per_step = training.global_batch / count  # images that share one optimizer step on a device
    stored = "bfloat16" if precision in HALF else "float32"
    traffic = TRAINING_PASSES * cost.activations[stored] + 2 * cost.state_bytes / per_step
    rate = _rate_of(on, precision)
    each = (cost.training_flops / rate + traffic / on.bandwidth) / on.share
    grown = (stage.high / cost.training_side) ** 2
    once = cost.forward_flops / _rate_of(on, "tf32") + SAMPLING_PASSES * grown * cost.activations["float32"] / on.bandwidth
    calls = network_calls(stage)
    return Estimate(
        stage=stage.name,
        device=device,
        count=count,
        precision=precision,
        micro_batch=training.micro_batch,
        memory_bytes=cost.state_bytes + training.micro_batch * kept[stored],
        memory_of_device=on.memory,
        training_images_per_second=count / each,
        training_seconds=training.images * each / count,
        network_calls=calls,
        sampling_seconds=calls * once / on.share,
    )


def ranges(stage: Stage) -> Ranges | None:
    """What the schedule guard says of the stage, None for an objective without noise levels. Raises BadInput where the guard refuses."""
    found: Ranges | None = getattr(_objective(stage), "ranges", None)
    return found


def network_calls(stage: Stage) -> int:
    """Calls of the network for one sample, as the objective counts them."""
    return int(_objective(stage).network_calls({}))


def assumptions(device: str) -> str:
    """What the estimates rest on, in one paragraph."""
    on = DEVICES[device]
    half = f"{_flops(on.bfloat16)}/s in bfloat16, " if on.bfloat16 is not None else "no bfloat16, "
    half += f"{_flops(on.tf32)}/s in TF32, " if on.tf32 is not None else "no TF32, "
    return (
        f"Estimates, not measurements: seconds = (FLOP / peak + bytes / bandwidth) / share. {device}: {half}{_flops(on.float32)}/s in "
        f"float32, {bytes_text(on.bandwidth)}/s, share {on.share:g} ({on.source}). Bytes: {TRAINING_PASSES} passes over the activations in "
        f"training, {SAMPLING_PASSES} in sampling, and the weights' state twice a step. Sampling in TF32 where there is, as torch's "
        "default, in batches that fill the device. Loading, checkpoints, evaluation and the exchange of gradients between workers are not "
        "counted."
    )


def text(recipe: Recipe, found: dict[str, Any]) -> str:
    """The summary as aligned lines for a reader."""
    counted = [("stage", "pixels", "parameters", "forward", "training", "activations bf16 / fp32", "with checkpoints", "training state")]
    expected = [("estimated", "devices", "memory of one", "training", "all images", "a sample")]
    for stage, cost, guess in zip(recipe.stages, found["costs"], found["estimates"], strict=True):
        crop = f", crops of {stage.training.crop}" if stage.training.crop else ""
        counted.append(
            (
                stage.name,
                f"{stage.low or 'none'} -> {stage.high}{crop}",
                f"{cost['parameters'] / 1e6:.4g} M",
                _flops(cost["forward_flops"]),
                _flops(cost["training_flops"]),
                _both(cost["activations"]),
                _both(cost["checkpointed"]) if cost["checkpointed"] else "-",
                bytes_text(cost["state_bytes"]),
            )
        )
        have = f" of {bytes_text(guess['memory_of_device'])}" if guess["memory_of_device"] else ""
        expected.append(
            (
                stage.name,
                f"{guess['count']} x {guess['device']}{' core' if guess['device'] == 'cpu' else ''}",
                f"{bytes_text(guess['memory_bytes'])}{have} ({guess['micro_batch']} images, {guess['precision']})",
                f"{_rate(guess['training_images_per_second'])} images/s",
                f"{_time(guess['training_seconds'])} for {stage.training.images:,}",
                f"{_time(guess['sampling_seconds'])} ({guess['network_calls']} network calls)",
            )
        )
    lines = [*_aligned(counted), *_wrapped(COUNTED), ""]
    lines += [*_aligned(expected), *_wrapped(found["assumptions"])]
    if found["schedules"]:
        levels = [("schedule", "noisiest level trained", "half log-SNR trained", "network called at gamma", "guard")]
        for item in found["schedules"]:
            (low, high), sampled = item["trained"], item["sampled"]
            called = f"{sampled[0]:.2g} to {sampled[1]:.6g}" if sampled else "-"
            verdict = f"{len(item['notes'])} to say" if item["notes"] else "nothing to say"
            levels.append((item["stage"], f"gamma {item['terminal_gamma']:.2g}", f"{low:.2f} to {high:.2f}", called, verdict))
        lines += ["", *_aligned(levels)]
        lines += [line for item in found["schedules"] for note in item["notes"] for line in _wrapped(f"{item['stage']}: {note}")]
    return "\n".join(lines)


def _rate_of(device: Device, precision: str) -> float:
    rounded = device.bfloat16 if precision in HALF else device.tf32 if precision == "tf32" else None
    return device.float32 if rounded is None else rounded


def _objective(stage: Stage) -> Any:
    return plugins.load("objectives", stage.objective.name).Objective(stage, {})


def _options(stage: Stage) -> Any:
    return plugins.load("models", stage.model.name).Options


def _recomputes(stage: Stage) -> bool:
    return bool(stage.model.options.get("checkpoint_blocks"))


def _inputs(stage: Stage, side: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor | None, Tensor]:
    """One image's arguments of the denoiser signature on the meta device."""
    image = torch.empty((1, stage.channels, side, side), device="meta", dtype=dtype)
    gamma = torch.empty(1, device="meta", dtype=torch.float64)
    return image, None if stage.low is None else image.clone(), gamma


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _wrapped(paragraph: str) -> list[str]:
    return textwrap.wrap(paragraph, LINE_CHARACTERS)


def _both(bytes_by_precision: dict[str, int]) -> str:
    return f"{bytes_text(bytes_by_precision['bfloat16'])} / {bytes_text(bytes_by_precision['float32'])}"


def _flops(count: float) -> str:
    return _scaled(count, ("", "k", "M", "G", "T", "P"), "FLOP")


def bytes_text(count: float) -> str:
    return _scaled(count, ("", "k", "M", "G", "T"), "B")


def _rate(value: float) -> str:
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:.3g}"


def _scaled(value: float, prefixes: Sequence[str], unit: str) -> str:
    for prefix in prefixes[:-1]:
        if value < 999.5:
            return f"{value:.3g} {prefix}{unit}"
        value /= 1000.0
    return f"{value:.3g} {prefixes[-1]}{unit}"


def _time(seconds: float) -> str:
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.2g} {name}" if seconds / unit < 99.5 else f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86_400:.3g} days"
