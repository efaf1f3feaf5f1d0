"""Bytes of a picture file to arrays: what it says of itself, its pixels turned upright and in sRGB, and what is refused."""

import io
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, cast

import numpy as np
from PIL import (
    Image,
    ImageCms,
    ImageOps,
    TiffImagePlugin,  # noqa: F401  # pyright: ignore[reportUnusedImport]  - Image.open knows a named format only once imported
    WebPImagePlugin,  # noqa: F401  # pyright: ignore[reportUnusedImport]
)

from sr3_core.errors import BadImage
from sr3_core.images import npy
from sr3_core.images.arrays import Array, peak

Profile = Literal["none", "sRGB", "other", "broken"]
MAX_PIXELS = 89_478_485  # Pillow's own bound for a decompression bomb: 256 MiB at 3 bytes a pixel
SRGB_TOLERANCE = 2  # levels by which a file's sRGB may differ from ours: its matrix is rounded, its curve a table
CHANNELS = range(1, 65)  # what ``decode`` can give
NPY = "NPY"  # ``Header.format`` of numpy's format
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF")
_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK"})
_DEEP_MODES = frozenset({"I;16", "I;16B", "I;16L", "I"})
_PROFILED = frozenset({"RGB", "RGBA", "CMYK"})  # modes whose colour profile is followed
_EXIF_ORIENTATION = 0x0112
_PNG_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"  # then width, height, 4 bytes, interlace at 28, the checksum at 29
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_SAMPLES = 258, 262, 277


@dataclass(frozen=True)
class Header:
    """What a file says of itself before its pixels are decoded. ``height`` and ``width`` are after the EXIF orientation."""

    format: str  # Pillow's name: "JPEG", "PNG", ...; or NPY
    mode: str  # Pillow's name: "L", "RGB", "I;16", ...; empty for NPY
    height: int
    width: int
    upright: bool  # True when the stored pixels need no EXIF rotation
    frames: int
    bits: int  # of a channel as stored; fewer than 8 count as 8, since they are widened exactly
    channels: int
    profile: Profile  # of colour; ``decode`` brings "other" to sRGB and leaves the pixels of a "broken" one as they are

    def is_stored_as(self, *, channels: int, bits: int) -> bool:
        """Whether the file's pixels are those that ``decode`` gives: nothing is turned, converted or dropped."""
        modes = {(1, 8): "L", (3, 8): "RGB", (4, 8): "RGBA", (1, 16): "I;16"}
        same = self.channels == channels if self.format == NPY else self.mode == modes.get((channels, bits))
        return same and self.bits == bits and self.upright and self.frames == 1 and self.profile != "other"


def header(data: bytes) -> Header:
    """Read the header alone. Raises BadImage."""
    return _read(data)[0]


def decode(data: bytes, *, channels: int = 3, bits: int = 8, shrink: int = 1) -> Array:
    """Decode ``data`` to (H, W, channels), uint8 for 8 ``bits`` and uint16 for 16, with the EXIF orientation applied.

    Grey and colour are converted into each other; with 4 channels the alpha is data, with 1 or 3 it must be opaque and is dropped. Other
    counts are numpy's format alone, whose channels are never converted. Colour with a profile other than sRGB is brought to sRGB
    (relative colorimetric, 8 bits). ``shrink`` 2, 4 or 8, for a JPEG alone: at that part of its size, rounded up, by the decoder's own
    smaller transform, which is faster. Raises BadImage for damage, for more than ``MAX_PIXELS`` pixels, for transparency, for other bits,
    and for what its decoder would cut to 8 bits or to fewer channels in silence.
    """
    if channels not in CHANNELS or bits not in (8, 16):
        raise ValueError(f"channels={channels}, bits={bits}; allowed: 1..{CHANNELS[-1]}, 8 or 16")
    found, image = _read(data)
    if shrink not in (1, 2, 4, 8) or (shrink > 1 and found.format != "JPEG"):
        raise ValueError(f"shrink={shrink} of {found.format}; allowed: 1, for a JPEG 2, 4 and 8 too")
    _refuse_depth(found, bits)
    if image is None:
        if found.channels != channels:
            raise BadImage("other channels", f"an array of {found.channels}; data.channels is {channels}")
        return npy.decode(data)
    if channels not in (1, 3, 4):
        raise BadImage("other channels", f"a picture of mode {image.mode}; {channels} channels are numpy's format (.npy)")
    if image.mode not in (_MODES if bits == 8 else _DEEP_MODES):
        raise BadImage("unsupported mode", f"{image.mode}; allowed: grey or colour of 8 bits, grey of 16 bits, .npy")
    try:
        if shrink > 1:
            image.draft(None, (image.width // shrink, image.height // shrink))
        image.load()
        if not found.upright:
            ImageOps.exif_transpose(image, in_place=True)
        array = _deep(image, channels) if bits == 16 else _colours(image, channels)
    except BadImage:
        raise
    except Exception as error:  # a decoder that meets hostile bytes raises anything, SyntaxError and struct.error among them
        raise _damage(error) from None
    return np.ascontiguousarray(array.reshape(*array.shape[:2], channels))


def first_rows(data: bytes, rows: int) -> bytes:
    """A PNG cut to its first ``rows`` rows without decoding it: its header says so many, and what follows them is never inflated.

    Anything else (another format, an interlaced PNG, one of no more rows) is returned as it is.
    """
    if data[:16] != _PNG_START or data[28:29] != b"\0" or rows >= int.from_bytes(data[20:24], "big"):
        return data
    header = data[12:20] + rows.to_bytes(4, "big") + data[24:29]
    return data[:12] + header + zlib.crc32(header).to_bytes(4, "big") + data[33:]


def _read(data: bytes) -> tuple[Header, Image.Image | None]:
    """Open without decoding; refuse too many pixels before any memory is spent on them. No image for numpy's format."""
    if not data:
        raise BadImage("empty file")
    if npy.is_npy(data):
        stored = npy.read_header(data)
        height, width, channels = stored.shape
        _refuse_size(height, width)
        return Header(NPY, "", height, width, True, 1, 8 * stored.dtype.itemsize, channels, "none"), None
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        width, height = image.size
        plain = image.format == "PNG" and not _png_has_text(data)  # asking a PNG for its EXIF decodes it
        turned = 1 if plain else image.getexif().get(_EXIF_ORIENTATION, 1)
        frames = cast(int, getattr(image, "n_frames", 1))
        bits, channels = _depth(image, data)
        profile = _profile(image)
    except BadImage:
        raise
    except Image.UnidentifiedImageError:
        raise BadImage("not an image", f"none of {', '.join(_FORMATS)}, .npy") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage("too many pixels", str(error)) from None
    except Exception as error:  # as in decode
        raise _damage(error) from None
    _refuse_size(height, width)
    if turned in (5, 6, 7, 8):
        width, height = height, width
    return Header(image.format or "", image.mode, height, width, turned in (0, 1), frames, bits, channels, profile), image


def _depth(image: Image.Image, data: bytes) -> tuple[int, int]:
    """(bits of a channel, channels) as the file stores them, read from its own header: Pillow cuts 16-bit colour to 8 bits in silence."""
    channels = len(image.getbands())
    if image.format == "PNG":
        if data[12:16] != b"IHDR":
            raise BadImage("corrupt", "its first chunk is not IHDR")
        return max(8, data[24]), channels
    if image.format == "TIFF":
        tags = cast(Any, image).tag_v2
        return max(8, *tags.get(_TIFF_BITS, (1,))), int(tags.get(_TIFF_SAMPLES, 1))
    if image.format == "PPM" and image.mode != "1":
        decoding = cast(Any, image).tile[0].args  # ("RGB", 65535): the largest value, where it is not 255; "I;16B" for grey of 65535
        largest = peak(16) if decoding == "I;16B" else decoding[-1] if isinstance(decoding, tuple) else peak(8)
        return (16 if largest == peak(16) else max(8, int(largest).bit_length())), channels
    return 8, channels


def _refuse_size(height: int, width: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadImage("too many pixels", f"{width} x {height}; allowed: {MAX_PIXELS}")


def _refuse_depth(found: Header, bits: int) -> None:
    """BadImage where the file's depth or channels would not arrive as they are."""
    if found.bits not in (8, 16):
        raise BadImage("unsupported depth", f"{found.bits} bits a channel; allowed: 8 and 16")
    if found.format == "TIFF" and found.channels > Image.getmodebands(found.mode):
        raise BadImage("extra channels", f"{found.channels} channels, read as {found.mode}; convert it to .npy")
    if found.bits == 16 and found.format != NPY and found.channels > 1:
        raise BadImage("16-bit colour", f"{found.format} of {found.channels} channels would be cut to 8 bits; convert it to .npy")
    if found.bits != bits:
        reason, do = ("16-bit", "set data.bits=16") if bits == 8 else ("8-bit in a 16-bit set", "set data.bits=8")
        raise BadImage(reason, f"{found.bits} bits a channel; {do}, or leave it out")


def _deep(image: Image.Image, channels: int) -> Array:
    """Grey of 16 bits as (H, W) or (H, W, 3) uint16."""
    if channels == 4:
        raise BadImage("no alpha channel", "grey; data.channels is 4")
    values = np.asarray(image)
    if values.min() < 0 or values.max() > peak(16):  # mode "I" is of 32 bits, with a sign
        raise BadImage("unsupported mode", f"{image.mode} with values {values.min()} .. {values.max()}")
    values = values.astype(np.uint16)
    if image.info.get("transparency") is not None and (values == image.info["transparency"]).any():
        raise BadImage("transparency", "some pixels are not opaque")
    if image.format == "TIFF" and cast(Any, image).tag_v2.get(_TIFF_PHOTOMETRIC) == 0:
        values = peak(16) - values  # white is zero: Pillow inverts 8 bits alone
    return values if channels == 1 else np.repeat(values[:, :, None], channels, axis=2)


def _colours(image: Image.Image, channels: int) -> Array:
    """8 bits as (H, W), (H, W, 3) or (H, W, 4) uint8, in sRGB."""
    profile = cast("bytes | None", image.info.get("icc_profile"))
    has_alpha = image.mode in ("PA", "LA", "RGBA") or "transparency" in image.info  # a PNG of any mode may name a transparent colour
    if channels == 4 and not has_alpha:
        raise BadImage("no alpha channel", f"mode {image.mode}; data.channels is 4")
    if image.mode in ("P", "PA") or has_alpha:
        image = image.convert("RGBA" if has_alpha else "RGB")
    if has_alpha and channels != 4 and image.getchannel("A").getextrema()[0] != 255:
        raise BadImage("transparency", "some pixels are not opaque")
    transform = _to_srgb(profile, image.mode)[1] if profile and image.mode in _PROFILED else None
    if transform is not None:
        image = cast(Image.Image, ImageCms.applyTransform(image, transform))
    elif image.mode == "CMYK":
        raise BadImage("CMYK without a profile", "its colours are not defined; convert it to RGB")
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    return np.asarray(image if image.mode == mode else image.convert(mode), dtype=np.uint8)


def _profile(image: Image.Image) -> Profile:
    data = cast("bytes | None", image.info.get("icc_profile"))
    if not data:
        return "none"
    mode = {"P": "RGB", "PA": "RGBA"}.get(image.mode, image.mode)
    return _to_srgb(data, mode)[0] if mode in _PROFILED else "none"  # grey and 16 bits are taken as they are


@lru_cache(maxsize=16)
def _to_srgb(profile: bytes, mode: str) -> tuple[Profile, Any]:
    """What an embedded profile is, and the transform of 8-bit ``mode`` to sRGB where it changes anything.

    sRGB comes in many files (versions, vendors, sizes): it is known by what it does to a lattice of colours, not by its name.
    """
    made = "RGB" if mode == "CMYK" else mode
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"), mode, made,
            ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )  # fmt: skip
    except Exception:  # lcms and Pillow's reader raise OSError, PyCMSError, ValueError, ... for hostile bytes
        return "broken", None
    if mode == "CMYK":
        return "other", transform
    steps = np.linspace(0, 255, 9).round().astype(np.uint8)
    lattice = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(27, 27, 3)
    probe = Image.fromarray(lattice).convert(mode)
    moved = np.asarray(cast(Image.Image, ImageCms.applyTransform(probe, transform)).convert("RGB"), dtype=np.int16)
    return ("sRGB", None) if np.abs(moved - lattice).max() <= SRGB_TOLERANCE else ("other", transform)


def _png_has_text(data: bytes) -> bool:
    """Whether a PNG has a chunk that may hold EXIF or XMP, or is damaged; its pixels are stepped over."""
    place = 8
    while (kind := data[place + 4 : place + 8]) != b"IEND":
        if not kind or kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
            return True
        place += 12 + int.from_bytes(data[place : place + 4], "big")
    return False


def _damage(error: Exception) -> BadImage:
    text = f"{type(error).__name__}: {error}"
    return BadImage("truncated" if "truncated" in text.lower() else "corrupt", text)
