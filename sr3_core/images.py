"""The only importer of PIL: bytes <-> arrays, resizing, uint8 HWC <-> float32 CHW in [-1, 1]. No torch, no files, no URIs.

Arrays are H x W x C. ``height, width`` is the order of every size here.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from PIL import (
    Image,
    ImageOps,
    TiffImagePlugin,  # noqa: F401  # pyright: ignore[reportUnusedImport]  - Image.open knows a named format only once imported
    WebPImagePlugin,  # noqa: F401  # pyright: ignore[reportUnusedImport]
)

from sr3_core.errors import BadInput

Filter = Literal["bicubic", "box", "lanczos", "nearest"]
Format = Literal["png", "jpeg"]
AnimationFormat = Literal["webp", "gif"]
Array = NDArray[Any]

MAX_PIXELS = 89_478_485  # Pillow's own bound for a decompression bomb: 256 MiB at 3 bytes a pixel
ANIMATION_QUALITY = 85
PNG_LEVEL = 1  # zlib level: 1.5 times faster in all than level 6 and a tenth larger
EXTENSIONS: dict[Format, str] = {"png": "png", "jpeg": "jpg"}
CHANNELS = (1, 3)  # what ``decode`` can give

# Formats whose decoders are plain C or Python over memory: EPS (runs Ghostscript) and the exotic ones stay out.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF")
_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA"})
_FILTERS: dict[str, Image.Resampling] = {
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}
_EXIF_ORIENTATION = 0x0112


class BadImage(Exception):
    """Bytes that are no usable image. ``reason`` is one of few short texts, to be counted; ``detail`` says more."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, " ".join(detail.split())

    def __str__(self) -> str:
        return f"{self.reason} ({self.detail})" if self.detail else self.reason


@dataclass(frozen=True)
class Header:
    """What a file says of itself before its pixels are decoded. ``height`` and ``width`` are after the EXIF orientation."""

    format: str  # Pillow's name: "JPEG", "PNG", ...
    mode: str
    height: int
    width: int
    upright: bool  # True when the stored pixels need no EXIF rotation
    frames: int


def header(data: bytes) -> Header:
    """Read the header alone. Raises BadImage."""
    return _read(data)[0]


def decode(data: bytes, *, channels: int = 3) -> NDArray[np.uint8]:
    """Decode ``data`` to (H, W, channels) uint8 with the EXIF orientation applied; grey and colour are converted into each other.

    Raises BadImage for damage, for more than ``MAX_PIXELS`` pixels, for transparency and for depths other than 8 bits.
    """
    if channels not in CHANNELS:
        raise ValueError(f"channels={channels}; allowed: {CHANNELS}")
    image = _read(data)[1]
    if image.mode not in _MODES:
        raise BadImage("unsupported mode", f"{image.mode}; allowed: 8-bit grey or colour")
    try:
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode in ("PA", "LA", "RGBA") or "transparency" in image.info:  # a PNG of any mode may name a transparent colour
            image = image.convert("RGBA")
            if image.getchannel("A").getextrema()[0] != 255:
                raise BadImage("transparency", "some pixels are not opaque")
        array = np.asarray(image.convert("L" if channels == 1 else "RGB"), dtype=np.uint8)
    except BadImage:
        raise
    except Exception as error:  # a decoder that meets hostile bytes raises anything, SyntaxError and struct.error among them
        raise _damage(error) from None
    return np.ascontiguousarray(array.reshape(*array.shape[:2], channels))


def encode(array: NDArray[np.uint8], format: Format = "png", quality: int = 95) -> bytes:
    """Encode (H, W, 1 or 3) uint8; ``quality`` (1..100, full chroma) is for JPEG alone. The bytes hold no time and no metadata."""
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in CHANNELS:
        raise ValueError(f"cannot encode {array.dtype} of shape {array.shape}; allowed: uint8 (H, W, 1 or 3)")
    image = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
    buffer = io.BytesIO()
    if format == "png":
        image.save(buffer, "PNG", compress_level=PNG_LEVEL)
    else:
        image.save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def encode_animation(frames: Sequence[NDArray[np.uint8]], format: AnimationFormat, *, milliseconds: Sequence[int]) -> bytes:
    """Encode (H, W, 1 or 3) uint8 frames of one size, each shown for its ``milliseconds``, in an endless loop.

    WebP is lossy at quality ANIMATION_QUALITY: noise does not compress. GIF has 256 colours a frame and counts in 10 ms. Neighbours that
    look the same may become one frame, shown for as long as both.
    """
    if not frames or len(frames) != len(milliseconds):
        raise ValueError(f"{len(frames)} frames, {len(milliseconds)} durations; allowed: as many durations as frames, at least one")
    shape = frames[0].shape
    if any(frame.dtype != np.uint8 or frame.shape != shape or len(shape) != 3 or shape[2] not in CHANNELS for frame in frames):
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


def resize(array: Array, size: tuple[int, int], filter: Filter) -> Array:
    """Resize (H, W, C) uint8, uint16 or float32 to ``size`` = (height, width), antialiased; same dtype and C.

    Computed per channel in float32 (Pillow's mode "F"); integers are rounded and clipped to their range once, at the end.
    """
    if array.ndim != 3 or array.dtype.name not in ("uint8", "uint16", "float32"):
        raise ValueError(f"cannot resize {array.dtype} of shape {array.shape}; allowed: uint8, uint16 or float32 (H, W, C)")
    if array.shape[:2] == size:
        return array.copy()
    height, width = size
    result = np.empty((height, width, array.shape[2]), np.float32)
    for channel in range(array.shape[2]):
        plane = Image.fromarray(np.ascontiguousarray(array[:, :, channel], dtype=np.float32))
        result[:, :, channel] = np.asarray(plane.resize((width, height), _FILTERS[filter]))
    if array.dtype == np.float32:
        return result
    return np.clip(np.rint(result), 0, np.iinfo(array.dtype).max).astype(array.dtype)


@lru_cache(maxsize=64)
def resize_matrix(size_in: int, size_out: int, filter: Filter) -> NDArray[np.float64]:
    """The operator of ``resize`` along one axis as a (size_out, size_in) float64 matrix, read-only: ``M @ column``.

    The identity pushed through Pillow's mode "F" (float32 weights), so that it is the same operator and not a second one.
    """
    identity = Image.fromarray(np.eye(size_in, dtype=np.float32))
    matrix = np.asarray(identity.resize((size_in, size_out), _FILTERS[filter])).astype(np.float64)
    matrix.setflags(write=False)
    return matrix


def check_perceptual_hash() -> None:
    """BadInput when the package of ``perceptual_hash`` is not installed here: it is needed by data.near_duplicates alone."""
    try:
        import imagehash  # noqa: F401  # pyright: ignore[reportMissingTypeStubs, reportUnusedImport]
    except ImportError:
        raise BadInput("data.near_duplicates without the package imagehash", "null, or the package", "pip install imagehash") from None


def perceptual_hash(array: Array) -> str:
    """64 bits of what (H, W, C) uint8 or uint16 looks like, as 16 hex digits: pHash, the signs of its low frequencies about their median.

    Of the grey picture, or the mean of the first three channels. It survives scaling, JPEG and small changes of colour; not cropping,
    turning or mirroring. https://www.phash.org, by the package imagehash.
    """
    import imagehash  # pyright: ignore[reportMissingTypeStubs]

    if array.dtype == np.uint8 and array.shape[2] in (1, 3):
        picture = Image.fromarray(np.ascontiguousarray(array[:, :, 0] if array.shape[2] == 1 else array))
    else:
        grey = array[:, :, :3].mean(axis=2, dtype=np.float32) * np.float32(255 / np.iinfo(array.dtype).max)
        picture = Image.fromarray(np.rint(grey).astype(np.uint8))
    return str(imagehash.phash(picture))


def centre_square(array: Array) -> Array:
    """The largest centred square of (H, W, C), a view; of an odd rest the larger half is cut at the bottom or right."""
    side = min(array.shape[:2])
    top, left = (array.shape[0] - side) // 2, (array.shape[1] - side) // 2
    return array[top : top + side, left : left + side]


def to_unit(array: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(H, W, C) uint8 in 0..255 -> (C, H, W) float32 in [-1, 1]: x / 127.5 - 1."""
    if array.dtype != np.uint8:
        raise ValueError(f"got {array.dtype}; allowed: uint8")
    return np.ascontiguousarray(array.transpose(2, 0, 1), dtype=np.float32) / np.float32(127.5) - np.float32(1)


def from_unit(array: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(C, H, W) float32 -> (H, W, C) uint8, rounded and clipped; the inverse of ``to_unit``. Raises ValueError for NaN or infinity."""
    if not np.isfinite(array).all():
        raise ValueError("the image holds NaN or infinity")
    return np.ascontiguousarray(np.clip(np.rint((array + 1) * 127.5), 0, 255).astype(np.uint8).transpose(1, 2, 0))


def _read(data: bytes) -> tuple[Header, Image.Image]:
    """Open without decoding; refuse too many pixels before any memory is spent on them."""
    if not data:
        raise BadImage("empty file")
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        width, height = image.size
        turned = image.getexif().get(_EXIF_ORIENTATION, 1)
        frames = cast(int, getattr(image, "n_frames", 1))
    except Image.UnidentifiedImageError:
        raise BadImage("not an image", f"none of {', '.join(_FORMATS)}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage("too many pixels", str(error)) from None
    except Exception as error:  # as in decode
        raise _damage(error) from None
    if width * height > MAX_PIXELS:
        raise BadImage("too many pixels", f"{width} x {height}; allowed: {MAX_PIXELS}")
    if turned in (5, 6, 7, 8):
        width, height = height, width
    return Header(image.format or "", image.mode, height, width, turned in (0, 1), frames), image


def _damage(error: Exception) -> BadImage:
    text = f"{type(error).__name__}: {error}"
    return BadImage("truncated" if "truncated" in text.lower() else "corrupt", text)
