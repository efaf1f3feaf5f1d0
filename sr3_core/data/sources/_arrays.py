"""numpy files as inputs: the header without the data, one slice as the bytes of an .npy file of (H, W, C). Never a pickle."""

import io
import zlib
from dataclasses import dataclass
from tokenize import TokenError
from typing import Any, BinaryIO, Literal
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from sr3_core import storage
from sr3_core.errors import BadImage
from sr3_core.images import npy

Axes = Literal["HW", "HWC", "CHW", "NHW", "NHWC", "NCHW"]
DEFAULT_AXES: dict[int, Axes] = {2: "HW", 3: "NHW", 4: "NHWC"}
MAX_ARRAY_BYTES = 4 * 2**30  # of an array that must be read as a whole: a compressed one, or one in Fortran's order
# What numpy's parser raises for a text that is no header, and a zip for a member that is damaged; a store's errors are none of these.
_HOSTILE = (ValueError, KeyError, TypeError, SyntaxError, RecursionError, MemoryError, EOFError, TokenError, zlib.error, BadZipFile)
_DEPTHS = ("uint8", "uint16")


@dataclass(frozen=True)
class Header:
    """What an .npy file says of its data, which begins at ``start``. ``reason`` says why it holds no images."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    start: int
    axes: Axes | None
    reason: str = ""
    detail: str = ""

    @property
    def slices(self) -> int:
        return self.shape[0] if self.axes and self.axes[0] == "N" else 1

    @property
    def slice_bytes(self) -> int:
        return self.data_bytes // max(1, self.slices)

    @property
    def data_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def header(stream: BinaryIO, axes: Axes | None) -> Header:
    """The header of the .npy file that ``stream`` stands at the beginning of; ``axes`` None: by the number of dimensions."""
    nothing = np.dtype("V1")
    try:
        version = np.lib.format.read_magic(stream)
        reads = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran, dtype = reads[version](stream)
    except _HOSTILE as error:
        return Header((), False, nothing, 0, None, "corrupt", f"no .npy header: {type(error).__name__}: {error}")
    start = stream.tell()
    named = axes or DEFAULT_AXES.get(len(shape))
    if dtype.hasobject:
        return Header((), False, nothing, start, None, "pickled objects", "an array of Python objects is never loaded")
    if dtype.newbyteorder("=").name not in _DEPTHS:
        return Header(shape, fortran, dtype, start, None, "unsupported mode", f"{dtype}; allowed: uint8 or uint16")
    if named is None or len(named) != len(shape) or min(shape, default=0) < 1:
        return Header(shape, fortran, dtype, start, None, "unsupported shape", f"{shape}; axes {named or 'unknown: set data.options.axes'}")
    return Header(shape, fortran, dtype, start, named)


def slice_bytes(uri: str, about: Header, index: int) -> bytes:
    """Slice ``index`` of the .npy file at ``uri`` as an .npy file of (H, W, C), read by its range alone where it lies in one piece."""
    if about.reason:
        raise BadImage(about.reason, about.detail)
    assert about.axes is not None
    if about.fortran:
        whole = _array(storage.read_range(uri, about.start, bounded(about.data_bytes)), about, about.shape)
        return as_npy(whole[index] if about.axes[0] == "N" else whole, about.axes)
    data = storage.read_range(uri, about.start + index * about.slice_bytes, about.slice_bytes)
    return as_npy(_array(data, about, about.shape[1:] if about.axes[0] == "N" else about.shape), about.axes)


def bounded(size: int) -> int:
    """``size``; BadImage when an array of so many bytes is not to be read as a whole."""
    if size > MAX_ARRAY_BYTES:
        raise BadImage("too large", f"an array of {size} bytes that must be read as a whole; allowed: {MAX_ARRAY_BYTES}")
    return size


def whole(data: bytes, axes: Axes) -> bytes:
    """An .npy file that is one image, or a batch of one, as an .npy file of (H, W, C)."""
    about = header(io.BytesIO(data), axes)
    if about.reason:
        raise BadImage(about.reason, about.detail)
    if about.slices != 1:
        raise BadImage("unsupported shape", f"{about.shape}; allowed: one image")
    array = _array(data[about.start : about.start + about.data_bytes], about, about.shape)
    return as_npy(array[0] if axes[0] == "N" else array, axes)


def as_npy(array: NDArray[Any], axes: str) -> bytes:
    """(H, W), (H, W, C) or (C, H, W), as ``axes`` without N say, as the bytes of an .npy file of (H, W, C)."""
    names = axes.removeprefix("N")
    if names == "HW":
        array = array[:, :, None]
    elif names == "CHW":
        array = array.transpose(1, 2, 0)
    return npy.encode(array.astype(array.dtype.newbyteorder("="), copy=False))


def _array(data: bytes, about: Header, shape: tuple[int, ...]) -> NDArray[Any]:
    count = int(np.prod(shape, dtype=np.int64))
    if len(data) != count * about.dtype.itemsize:
        raise BadImage("truncated", f"{len(data)} bytes of {count * about.dtype.itemsize}")
    return np.frombuffer(data, about.dtype).reshape(shape, order="F" if about.fortran else "C")
