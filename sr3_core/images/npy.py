"""numpy's own file format for images that no picture format holds: any number of channels, 8 or 16 bits. No PIL, no files, no URIs."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from sr3_core.errors import BadImage

MAGIC = b"\x93NUMPY"
_DO = "save it as numpy.save(file, array) of uint8 or uint16, (height, width) or (height, width, channels)"


@dataclass(frozen=True)
class Stored:
    """What the header says: (height, width, channels), the type, and where the values start."""

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    by_columns: bool  # Fortran order
    offset: int


def is_npy(data: bytes) -> bool:
    """Whether ``data`` starts as numpy's format does."""
    return data.startswith(MAGIC)


def read_header(data: bytes) -> Stored:
    """Read the header alone. Raises BadImage for anything but a uint8 or uint16 array of two or three axes, each 1 or longer."""
    stream = io.BytesIO(data)
    try:
        version = npy.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise BadImage("corrupt", f"npy format {version[0]}.{version[1]}; allowed: 1.0 and 2.0")
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, by_columns, dtype = read(stream)  # a literal of at most 10,000 characters, evaluated as a literal
    except BadImage:
        raise
    except Exception as error:  # hostile text raises what the parser happens to raise: ValueError, TypeError, RecursionError, ...
        raise BadImage("corrupt", f"{type(error).__name__}: {error}") from None
    if dtype.hasobject or dtype.kind != "u" or dtype.itemsize > 2 or dtype.subdtype is not None:
        raise BadImage("unsupported type", f"an array of {dtype}; allowed: uint8 and uint16; {_DO}")
    if len(shape) not in (2, 3) or not all(type(side) is int and side > 0 for side in shape):
        raise BadImage("unsupported shape", f"an array of shape {shape}; {_DO}")
    height, width, channels = (*shape, 1) if len(shape) == 2 else shape
    return Stored((height, width, channels), dtype, bool(by_columns), stream.tell())


def decode(data: bytes) -> NDArray[Any]:
    """(H, W, C) uint8 or uint16 in this machine's byte order; (H, W) becomes (H, W, 1). Nothing is unpickled.

    No more memory is taken than ``data`` has: BadImage when it does not hold exactly what its header says.
    """
    stored = read_header(data)
    expected = int(np.prod(stored.shape, dtype=object)) * stored.dtype.itemsize
    found = len(data) - stored.offset
    if found != expected:
        raise BadImage("truncated" if found < expected else "corrupt", f"{found} bytes of values; the header says {expected}")
    values = np.frombuffer(data, stored.dtype, offset=stored.offset).reshape(stored.shape, order="F" if stored.by_columns else "C")
    return np.ascontiguousarray(values.astype(stored.dtype.newbyteorder("="), copy=True))


def encode(array: NDArray[Any]) -> bytes:
    """(H, W, C) uint8 or uint16 as bytes that depend on the values alone: format 1.0, little-endian, by rows."""
    if array.dtype.name not in ("uint8", "uint16") or array.ndim != 3:
        raise ValueError(f"cannot encode {array.dtype} of shape {array.shape}; allowed: uint8 or uint16 (H, W, C)")
    stream = io.BytesIO()
    npy.write_array(stream, np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")), version=(1, 0), allow_pickle=False)
    return stream.getvalue()
