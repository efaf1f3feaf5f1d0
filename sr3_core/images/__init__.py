"""The only importer of PIL: bytes <-> arrays, resizing, uint8 or uint16 HWC <-> float32 CHW in [-1, 1]. No torch, no files, no URIs.

Arrays are H x W x C, of 8 bits (uint8) or 16 (uint16). ``height, width`` is the order of every size here. What no picture format holds
without loss (16 bits of several channels; 2 channels, or more than 4) is in numpy's format, ``npy.py``.
"""

from sr3_core.errors import BadImage
from sr3_core.images.arrays import Array, Bits, batch_to_unit, bits_of, centre_square, from_unit, peak, preview, psnr, to_unit
from sr3_core.images.likeness import check_perceptual_hash, perceptual_hash
from sr3_core.images.reading import CHANNELS, MAX_PIXELS, NPY, Header, Profile, decode, first_rows, header
from sr3_core.images.resizing import TAP_BITS, Filter, resize, resize_matrix
from sr3_core.images.writing import (
    EXTENSIONS,
    PICTURED,
    WEBP_SIDE,
    AnimationFormat,
    Format,
    encode,
    encode_above,
    encode_animation,
    holds,
    lossless,
)  # fmt: skip

__all__ = [
    "CHANNELS", "EXTENSIONS", "MAX_PIXELS", "NPY", "PICTURED", "TAP_BITS", "WEBP_SIDE", "AnimationFormat", "Array", "BadImage", "Bits",
    "Filter", "Format", "Header", "Profile", "batch_to_unit", "bits_of", "centre_square", "check_perceptual_hash", "decode", "encode",
    "encode_above", "encode_animation", "first_rows", "from_unit", "header", "holds", "lossless", "peak", "perceptual_hash", "preview",
    "psnr", "resize", "resize_matrix", "to_unit",
]  # fmt: skip
