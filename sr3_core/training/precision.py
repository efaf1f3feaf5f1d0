"""The precision of a training step: which a device can do, under what it computes, and float16's loss scale. Weights stay float32.

float32 is float32 everywhere: on a GPU, too, matrix products and convolutions are not rounded to TensorFloat32 unless ``tf32`` asks for it.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from sr3_core.errors import BadInput
from sr3_core.training.optimisation import Carried

GROWTH_STEPS = 2000  # taken steps in a row after which float16's scale is doubled, as in torch.amp.GradScaler
_HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}
_TF32_SINCE, _BFLOAT16_SINCE, _FLOAT16_SINCE = (8, 0), (8, 0), (7, 0)  # compute capabilities


@dataclass(frozen=True)
class Capability:
    """What a device has units for, beside float32."""

    device: str
    tf32: bool
    bfloat16: bool
    float16: bool


def capability(device: torch.device) -> Capability:
    """Of ``device``, which is there."""
    if device.type == "cuda":
        has = torch.cuda.get_device_capability(device)
        name = f"{torch.cuda.get_device_name(device)} (compute capability {has[0]}.{has[1]})"
        return Capability(name, tf32=has >= _TF32_SINCE, bfloat16=has >= _BFLOAT16_SINCE, float16=has >= _FLOAT16_SINCE)
    if device.type != "cpu":
        return Capability(f"a device of type {device.type}", tf32=False, bfloat16=False, float16=False)
    level = torch.backends.cpu.get_cpu_capability()
    onednn = torch.ops.mkldnn  # answers for AVX512 without bfloat16 instructions too, which it then only imitates
    if level.startswith("AVX"):
        half = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()  # pyright: ignore[reportPrivateUsage]
    else:
        half = bool(onednn._is_mkldnn_bf16_supported())
    return Capability(f"a CPU with {level}", tf32=False, bfloat16=half, float16=bool(onednn._is_mkldnn_fp16_supported()))


def check(precision: str, have: Capability) -> None:
    """BadInput for a precision that ``have`` has no units for: it would be slower than float32 there, or impossible."""
    able = [name for name in ("tf32", "bfloat16", "float16") if getattr(have, name)]
    if precision != "float32" and precision not in able:
        got = f"training.precision {precision} on {have.device}, which has no units for it: slower than float32, or impossible"
        raise BadInput(got, ", ".join(["float32", *able]), "set training.precision to one of these, or train on another device")


class Precision:
    """Of the steps on ``device``. Raises BadInput as ``check``; sets, for the process, whether float32 may be rounded to TensorFloat32."""

    def __init__(self, precision: str, device: torch.device) -> None:
        check(precision, capability(device))
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
        self._half, self._device = _HALF.get(precision), device.type
        self.scaled = precision == "float16"

    def forward(self) -> AbstractContextManager[object]:
        """The context of a forward pass."""
        return nullcontext() if self._half is None else torch.autocast(self._device, dtype=self._half)

    def scale(self, carried: Carried) -> float:
        """By what the loss is multiplied before the backward pass: 1 but for float16, whose small gradients would vanish."""
        return carried.loss_scale if self.scaled else 1.0

    def unscale(self, player: nn.Module, carried: Carried) -> None:
        """Divide the gradients of ``player`` by the scale, a power of two: nothing is rounded."""
        if self.scaled:
            gradients = [parameter.grad for parameter in player.parameters() if parameter.grad is not None]
            torch._foreach_mul_(gradients, 1.0 / carried.loss_scale)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]

    def overflowed(self, carried: Carried) -> bool:
        """Whether gradients that are not finite, of a finite loss, are the scale's doing; halves it then."""
        if not self.scaled or carried.loss_scale <= 1.0:
            return False
        carried.loss_scale, carried.steady_steps = carried.loss_scale / 2.0, 0
        return True

    def stayed(self, carried: Carried) -> None:
        """After a step that was taken: the scale is doubled after ``GROWTH_STEPS`` of them in a row."""
        if not self.scaled:
            return
        carried.steady_steps += 1
        if carried.steady_steps == GROWTH_STEPS:
            carried.loss_scale, carried.steady_steps = 2.0 * carried.loss_scale, 0
