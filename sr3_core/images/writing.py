"""Arrays to the bytes of a picture file, without loss where the format holds them; frames to an animation."""

import io
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sr3_core.images import npy
from sr3_core.images.arrays import Array, bits_of, psnr
from sr3_core.images.reading import decode

Format = Literal["png", "webp", "jpeg", "npy"]
AnimationFormat = Literal["webp", "gif"]
ANIMATION_QUALITY = 85
PNG_LEVEL = 1  # zlib level: 1.5 times faster in all than level 6 and a tenth larger
WEBP_SIDE = 16383  # pixels: the format's bound
WEBP_EFFORT = 0  # lossless: 0 (fast) .. 100 (small)
EXTENSIONS: dict[Format, str] = {"png": "png", "webp": "webp", "jpeg": "jpg", "npy": "npy"}
PICTURED = (1, 3)  # what a screen shows
_HELD: dict[Format, frozenset[tuple[int, int]]] = {  # (channels, bits) without loss; numpy's format takes all
    "png": frozenset({(1, 8), (3, 8), (4, 8), (1, 16)}),
    "webp": frozenset({(1, 8), (3, 8), (4, 8)}),
    "jpeg": frozenset({(1, 8), (3, 8)}),  # though never without loss
}


def holds(format: Format, *, channels: int, bits: int) -> bool:
    """Whether ``format`` has room for such images: all but JPEG without loss."""
    return format == "npy" or (channels, bits) in _HELD[format]


def lossless(channels: int, bits: int) -> Format:
    """PNG, or numpy's format for what PNG cannot hold."""
    return "png" if holds("png", channels=channels, bits=bits) else "npy"


def encode(array: Array, format: Format = "png", quality: int = 95) -> bytes:
    """Encode (H, W, C) uint8 or uint16; raises ValueError for what ``format`` does not hold.

    ``quality`` (1..100, full chroma) is for JPEG alone; every other format is exact. The bytes hold no time and no metadata.
    """
    known = array.dtype.name in ("uint8", "uint16") and array.ndim == 3
    if not known or not holds(format, channels=array.shape[2], bits=bits_of(array)):
        raise ValueError(f"cannot encode {array.dtype} of shape {array.shape} as {format}")
    if format == "npy":
        return npy.encode(array)
    image = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
    buffer = io.BytesIO()
    if format == "png":
        image.save(buffer, "PNG", compress_level=PNG_LEVEL)
    elif format == "webp":
        image.save(buffer, "WEBP", lossless=True, exact=True, quality=WEBP_EFFORT, method=0)  # exact: colours below alpha 0 too
    else:
        image.save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def encode_above(array: Array, *, quality: int, min_psnr: float) -> tuple[Format, bytes]:
    """(H, W, 1 or 3) uint8 as JPEG of the least quality from ``quality`` on, found by bisection, that decodes to ``min_psnr`` dB or more.

    PNG where quality 100 does not reach it.
    """

    def made(quality: int) -> tuple[bytes, bool]:
        data = encode(array, "jpeg", quality)
        return data, psnr(decode(data, channels=array.shape[2]), array) >= min_psnr

    data, is_enough = made(quality)
    if is_enough:
        return "jpeg", data
    below, above = quality, 101
    best: bytes | None = None
    while above - below > 1:
        middle = (below + above) // 2
        data, is_enough = made(middle)
        if is_enough:
            above, best = middle, data
        else:
            below = middle
    return ("png", encode(array)) if best is None else ("jpeg", best)


def encode_animation(frames: Sequence[NDArray[np.uint8]], format: AnimationFormat, *, milliseconds: Sequence[int]) -> bytes:
    """Encode (H, W, 1 or 3) uint8 frames of one size, each shown for its ``milliseconds``, in an endless loop.

    WebP is lossy at quality ANIMATION_QUALITY: noise does not compress. GIF has 256 colours a frame and counts in 10 ms. Neighbours that
    look the same may become one frame, shown for as long as both.
    """
    if not frames or len(frames) != len(milliseconds):
        raise ValueError(f"{len(frames)} frames, {len(milliseconds)} durations; allowed: as many durations as frames, at least one")
    shape = frames[0].shape
    if any(frame.dtype != np.uint8 or frame.shape != shape or len(shape) != 3 or shape[2] not in PICTURED for frame in frames):
        raise ValueError(
            f"cannot animate frames of shapes {sorted({frame.shape for frame in frames})}; allowed: uint8 (H, W, 1 or 3), all equal"
        )
    first, *rest = (Image.fromarray(frame[:, :, 0] if frame.shape[2] == 1 else frame) for frame in frames)
    buffer = io.BytesIO()
    shared: dict[str, Any] = {"save_all": True, "append_images": rest, "duration": list(milliseconds), "loop": 0}
    if format == "webp":
        first.save(buffer, "WEBP", quality=ANIMATION_QUALITY, **shared)
    else:
        first.save(buffer, "GIF", **shared)
    return buffer.getvalue()
