"""Whether training fits: the memory that a recipe's stages need against the memory there is, a line for each stage that does not fit.

Bytes are decimal. What is needed is counted on meta tensors (``summary``), not measured: see ``Need``.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from sr3_core import plugins, summary
from sr3_core.config import Recipe, Stage

WORKER_BYTES = 0.41e9  # resident set of a worker that has imported Ray Train, torch and this project, and has not begun: measured
COPY_BYTES = 16  # a parameter: weights, two moments and the average, copied by the first worker for a checkpoint
AVERAGE_BYTES, SUM_BYTES = 4, 8  # a parameter: each average of ema.also, and the sums of reduce_dtype float64
_CGROUPS = Path("/sys/fs/cgroup")
_LIMITS = ("memory.max", "memory.limit_in_bytes")  # of cgroup v2 and v1


@dataclass(frozen=True)
class Memory:
    """``total`` bytes of ``name``: of a machine whose processes share them (``shared``), else of each worker's own GPU.

    ``half``: whether it computes in bfloat16 with units of its own.
    """

    name: str
    total: float
    shared: bool
    half: bool


def present(recipe: Recipe, device: str = "") -> Memory:
    """The memory that training will have: that of ``device`` by its data sheet (cpu: this machine's); of the smallest GPU here where
    ``scaling.accelerator`` asks for one and ``device`` does not say which; of an h100 where there is none."""
    if (device or recipe.scaling.accelerator) == "cpu":
        return host()
    if not device and torch.cuda.is_available():
        least = min(range(torch.cuda.device_count()), key=lambda index: int(torch.cuda.get_device_properties(index).total_memory))
        on = torch.cuda.get_device_properties(least)
        return Memory(f"the GPU here ({on.name})", float(on.total_memory), shared=False, half=on.major >= 8)
    name = device or "h100"
    sheet = summary.DEVICES[name]
    assert sheet.memory is not None  # the CPU alone has none of its own
    return Memory(name, sheet.memory, shared=False, half=sheet.bfloat16 is not None)


def host() -> Memory:
    """This machine's memory, or what its control group leaves of it."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    own = Path("/proc/self/cgroup")
    limit = group_limit(own.read_text(encoding="utf-8"), _CGROUPS) if own.is_file() else None
    half = bool(torch.cpu._is_avx512_bf16_supported())  # pyright: ignore[reportPrivateUsage]
    if limit is not None and limit < total:
        return Memory("this machine by its cgroup's limit", float(limit), shared=True, half=half)
    return Memory("this machine", float(total), shared=True, half=half)


def group_limit(own: str, root: Path) -> int | None:
    """The smallest limit in bytes of the control groups in ``own`` (the text of /proc/self/cgroup) and of those around them, below
    ``root``, by cgroups(7) of either version; None where none is set or to be seen."""
    return min(_limits(own, root), default=None)


def _limits(own: str, root: Path) -> Iterator[int]:
    for line in own.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "memory" if controllers else root
        folder = top / path.lstrip("/")
        for place in (folder, *(parent for parent in folder.parents if parent == top or top in parent.parents)):
            for name in _LIMITS:
                text = (place / name).read_text(encoding="ascii").strip() if (place / name).is_file() else ""
                if text.isdigit():  # else "max"
                    yield int(text)


@dataclass(frozen=True)
class Need:
    """What training ``stage`` needs, counted once; ``recomputed`` is the same with checkpointed blocks, None where there is no choice.

    Not counted: workspaces of single operations, loaded images, and the norms that eager bfloat16 keeps in float32.
    """

    stage: Stage
    workers: int
    parameters: int
    activations: Mapping[str, int]  # bytes an image by precision, as in summary.Cost
    recomputed: "Need | None"

    def of(self, memory: Memory, *, micro_batch: int | None = None, precision: str | None = None) -> float:
        """Bytes to be held against ``memory.total``, with another ``micro_batch`` or ``precision`` than the stage's where one is given.

        Of a worker: weights, gradients, two moments, every average, and the activations of one micro-batch. Where workers share a
        machine: of all of them, their processes too, and the first one's copy of the state for checkpoints.
        """
        training = self.stage.training
        also = AVERAGE_BYTES * len(training.ema.also)
        state = summary.STATE_BYTES + also + (SUM_BYTES if training.reduce_dtype == "float64" else 0)
        stored = self.activations["bfloat16" if (precision or training.precision) in summary.HALF else "float32"]
        worker = state * self.parameters + (micro_batch or training.micro_batch) * stored
        if not memory.shared:
            return float(worker)
        return self.workers * (worker + WORKER_BYTES) + (COPY_BYTES + also) * self.parameters


def need(stage: Stage, workers: int) -> Need:
    """Count what training needs. Raises BadInput for options that the network refuses."""

    def counted(recomputed: Need | None, **changed: bool) -> Need:
        network = summary.build(stage, **changed)
        parameters = sum(parameter.numel() for parameter in network.parameters())
        activations = summary.activation_bytes(network, stage, stage.training.crop or stage.high)
        return Need(stage, workers, parameters, activations, recomputed)

    options = plugins.load("models", stage.model.name).Options.model_fields
    choice = "checkpoint_blocks" in options and not stage.model.options.get("checkpoint_blocks")
    return counted(counted(None, checkpoint_blocks=True) if choice else None)


def shortages(recipe: Recipe, memory: Memory) -> list[str]:
    """One line for each stage whose training does not fit into ``memory``: what it needs, what there is, what would fit.

    Stages whose networks are not one model file's (the objective makes them) are not counted. Raises BadInput as ``need``.
    """
    counted = [stage for stage in recipe.stages if hasattr(plugins.load("models", stage.model.name), "build")]
    return [line for stage in counted if (line := _shortage(need(stage, recipe.scaling.workers), memory))]


def _shortage(need: Need, memory: Memory) -> str:
    needed = need.of(memory)
    if needed <= memory.total:
        return ""
    name, training = need.stage.name, need.stage.training
    who = f"{need.workers} workers" if memory.shared and need.workers > 1 else "a worker"
    batch = f"{training.micro_batch} image{'s' if training.micro_batch > 1 else ''} at once in {training.precision}"
    found = _remedies(need, memory)
    do = f"set {', or '.join(found)}" if found else _last_resort(memory, need.workers)
    got = f"stage {name} does not fit: its training needs about {summary.bytes_text(needed)} ({who}, {batch})"
    return f"{got}, {memory.name} has {summary.bytes_text(memory.total)}: {do}"


def _remedies(need: Need, memory: Memory) -> list[str]:
    """Changes of the recipe that would fit, with what is needed then; two at once where no single one does."""
    stage, again = need.stage, need.recomputed
    precision, prefix = stage.training.precision, f"stages.{stage.name}"
    blocks = f"{prefix}.model.options.checkpoint_blocks=true"
    found = _smaller(need, memory, "")
    if again is not None and again.of(memory) <= memory.total:
        found.append(f"{blocks} ({summary.bytes_text(again.of(memory))})")
    half = need.of(memory, precision="bfloat16")
    if memory.half and precision not in summary.HALF and half <= memory.total:
        found.append(f"{prefix}.training.precision=bfloat16 ({summary.bytes_text(half)})")
    return found or ([] if again is None else _smaller(again, memory, f" and {blocks}"))


def _smaller(need: Need, memory: Memory, also: str) -> list[str]:
    """The largest smaller micro-batch that fits and that the workers can divide a step by; none where there is none."""
    training = need.stage.training
    for size in range(training.micro_batch - 1, 0, -1):
        if training.global_batch % (size * need.workers) == 0 and need.of(memory, micro_batch=size) <= memory.total:
            needed = summary.bytes_text(need.of(memory, micro_batch=size))
            return [f"stages.{need.stage.name}.training.micro_batch={size}{also} ({needed})"]
    return []


def _last_resort(memory: Memory, workers: int) -> str:
    fewer = "fewer scaling.workers, " if memory.shared and workers > 1 else ""
    return f"no smaller micro-batch and no recomputed blocks would do: take {fewer}a smaller network or crop, or a device with more memory"
