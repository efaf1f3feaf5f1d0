"""Perceptual hashes: how alike two photos look."""

import numpy as np
from PIL import Image

from sr3_core.errors import BadInput
from sr3_core.images.arrays import Array


def check_perceptual_hash() -> None:
    """BadInput when the package of ``perceptual_hash`` is not installed here: it is needed by data.near_duplicates alone."""
    try:
        import imagehash  # noqa: F401  # pyright: ignore[reportMissingImports, reportMissingTypeStubs, reportUnusedImport]
    except ImportError:
        raise BadInput("data.near_duplicates without the package imagehash", "null, or the package", "pip install imagehash") from None


def perceptual_hash(array: Array) -> str:
    """64 bits of what (H, W, C) uint8 or uint16 looks like, as 16 hex digits: pHash, the signs of its low frequencies about their median.

    Of the grey picture, or the mean of the first three channels. It survives scaling, JPEG and small changes of colour; not cropping,
    turning or mirroring. https://www.phash.org, by the package imagehash.
    """
    import imagehash  # pyright: ignore[reportMissingImports, reportMissingTypeStubs]

    if array.dtype == np.uint8 and array.shape[2] in (1, 3):
        picture = Image.fromarray(np.ascontiguousarray(array[:, :, 0] if array.shape[2] == 1 else array))
    else:
        grey = array[:, :, :3].mean(axis=2, dtype=np.float32) * np.float32(255 / np.iinfo(array.dtype).max)
        picture = Image.fromarray(np.rint(grey).astype(np.uint8))
    return str(imagehash.phash(picture))
