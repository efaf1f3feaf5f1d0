"""Resizing of batches, with the operator that prepare uses on files (``images.resize``), so that a consistency is exact."""

import torch
from torch import Tensor
from torch.nn import functional

from sr3_core.images import resize_matrix


def resample(image: Tensor, size: tuple[int, int], filter: str) -> Tensor:
    """Resize ``image`` (N, C, H, W) to ``size`` (height, width) with "bicubic", "box", "lanczos" or "nearest"; differentiable.

    Filters are antialiased when they shrink, bicubic with a = -1/2. Values may leave the input's range by ringing; nothing is clipped.
    """
    if tuple(image.shape[-2:]) == size:
        return image
    if filter == "bicubic":  # the library's kernel equals the matrix to rounding and is ten times faster
        return functional.interpolate(image, size=size, mode="bicubic", antialias=True, align_corners=False)
    height, width = (_matrix(*pair, filter, image) for pair in zip(image.shape[-2:], size, strict=True))
    return torch.einsum("ph,nchw,qw->ncpq", height, image, width)


def _matrix(size_in: int, size_out: int, filter: str, like: Tensor) -> Tensor:
    return torch.tensor(resize_matrix(size_in, size_out, filter), device=like.device, dtype=like.dtype)
