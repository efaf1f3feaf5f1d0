"""The bytes of one input, wherever its source keeps them: the one way in for whoever looks at inputs or writes them."""

import os
import stat
from pathlib import Path
from typing import Any

from sr3_core import config, images, plugins, storage
from sr3_core.config import Data, Section
from sr3_core.data.sources._base import Example, Reader, Source
from sr3_core.errors import BadInput

MAX_FILE_BYTES = 1024**3  # a file is read whole: its memory is bounded before that


def source_of(data: Data) -> tuple[Source, Section]:
    """The plug-in that ``data.source`` names and its options. Raises BadInput for an unknown one, a wrong module or a wrong option."""
    module = _source(data.source)
    return module, config.options(module.Options, data.options, "data")


def read(data: Data, example: Example) -> bytes:
    """The bytes of ``example``: the source's own ``read`` where it has one, else the file at ``example.uri``.

    Raises what ``storage.read_bytes`` raises, images.BadImage from a source's own ``read``, and for a file that must not be read: a
    link that leads out of the source (it may lead to anything), what is no file (a pipe would never end), more than MAX_FILE_BYTES.
    """
    module = _source(data.source)
    if isinstance(module, Reader):
        return module.read(config.options(module.Options, data.options, "data"), example)
    if storage.is_local(example.uri):
        size = _local_size(storage.local_path(example.uri), str(data.options.get("uri", "")))
    else:
        size = storage.size(example.uri)
    if size > MAX_FILE_BYTES:
        raise images.BadImage("too large a file", f"{size} bytes; at most {MAX_FILE_BYTES}")
    return storage.read_bytes(example.uri)


def _local_size(path: Path, source_uri: str) -> int:
    if path.is_symlink() and not os.path.exists(path):
        raise images.BadImage("broken link", f"leads to {os.readlink(path)}")
    real = Path(os.path.realpath(path))
    if source_uri and storage.is_local(source_uri):
        root = storage.local_path(source_uri)
        while not root.is_dir():  # the source may be a file or a pattern in a folder
            root = root.parent
        if not real.is_relative_to(os.path.realpath(root)):
            raise images.BadImage("link leads outside", f"to {real}, which is not in {root}; copy it there")
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise images.BadImage("not a file", "")
    return 0 if stat.S_ISDIR(status.st_mode) else status.st_size


def _source(name: str) -> Source:
    module: Any = plugins.load("data.sources", name)
    if not isinstance(module, Source):
        raise BadInput(f"plug-in {name}", "a module with Options, examples and listing", "see sr3_core/data/sources/_base.py")
    return module
