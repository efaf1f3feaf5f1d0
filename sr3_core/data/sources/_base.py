"""What a dataset plug-in is: a module with ``Options``, ``examples(options)`` and ``listing(options)``. It decodes nothing.

To add a dataset, put one file beside this one (its name is the name in the recipe) that defines

- ``class Options(Section)``: the plug-in's own options, unknown keys refused;
- ``examples(options) -> Iterable[Example]``: every input once, in an order that does not depend on the machine;
- ``listing(options) -> str``: one line per input file (path, size, stamp). Its hash is part of prepare's fingerprint, so a
  changed photo makes a new ShardSet. It must not change when nothing changed, and reads no file's content over a network.

Both raise BadInput for a source that is missing, unreadable or empty. An option named ``uri`` is where the source lies: prepare
refuses a root equal to it or inside it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from sr3_core.config import Section, SplitName


@dataclass(frozen=True)
class Example:
    """One input photo, not yet read.

    ``key`` names it within the source and is unique there (a path relative to the source, without its extension; any characters).
    ``uri`` is where its bytes are (an absolute path or fsspec URI). ``split`` is the published split, None where the source has none.
    ``label`` is the class of a class-conditional set. ``attributes`` are JSON values kept with the sample: author, title, licence, ...
    """

    key: str
    uri: str
    split: SplitName | None = None
    label: int | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict[str, Any])


@runtime_checkable
class Source(Protocol):
    """The module of a dataset plug-in, as ``plugins.load("data.sources", name)`` returns it."""

    Options: type[Section]

    def examples(self, options: Any) -> Iterable[Example]: ...

    def listing(self, options: Any) -> str: ...
