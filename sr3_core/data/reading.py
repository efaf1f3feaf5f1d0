"""The bytes of one input, wherever its source keeps them: the one way in for whoever looks at inputs or writes them."""

from typing import Any

from sr3_core import config, plugins, storage
from sr3_core.config import Data, Section
from sr3_core.data.sources._base import Example, Reader, Source
from sr3_core.errors import BadInput


def source_of(data: Data) -> tuple[Source, Section]:
    """The plug-in that ``data.source`` names and its options. Raises BadInput for an unknown one, a wrong module or a wrong option."""
    module = _source(data.source)
    return module, config.options(module.Options, data.options, "data")


def read(data: Data, example: Example) -> bytes:
    """The bytes of ``example``: the source's own ``read`` where it has one, else the file at ``example.uri``.

    Raises what ``storage.read_bytes`` raises, and images.BadImage from a source's own ``read``.
    """
    module = _source(data.source)
    if not isinstance(module, Reader):
        return storage.read_bytes(example.uri)
    return module.read(config.options(module.Options, data.options, "data"), example)


def _source(name: str) -> Source:
    module: Any = plugins.load("data.sources", name)
    if not isinstance(module, Source):
        raise BadInput(f"plug-in {name}", "a module with Options, examples and listing", "see sr3_core/data/sources/_base.py")
    return module
