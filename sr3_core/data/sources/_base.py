"""What a dataset plug-in is: a module with ``Options``, ``examples(options)`` and ``listing(options)``. It decodes nothing.

To add a dataset, put one file beside this one (its name is the name in the recipe), or name a module of your own by its dotted path,
or install a package with an entry point in the group ``sr3.sources``. It defines

- ``class Options(Section)``: the plug-in's own options, unknown keys refused;
- ``examples(options) -> Iterable[Example]``: every input once, in an order that does not depend on the machine;
- ``listing(options) -> str``: one line per input (its key or path, size, stamp). Its hash is part of prepare's fingerprint, so a
  changed photo makes a new ShardSet. It must not change when nothing changed, and reads no photo over a network: what it takes from
  a container is the table of contents;
- ``read(options, example) -> bytes``, only where an input is not simply the file at its ``uri``: the bytes of one encoded image, or
  of one ``.npy`` file of (H, W, C) uint8 or uint16. It runs in worker processes, for any example in any order, and has nothing but
  its two arguments. What is wrong with the input is an ``images.BadImage`` or FileNotFoundError; it becomes the reason of a rejection.

All raise BadInput for a source that is missing, unreadable or empty. An option named ``uri`` is where the source lies: prepare
refuses a root equal to it or inside it. What the layout promises and does not hold is an example all the same: one whose file is
not there, or one with a ``reason``. Then it is counted and listed with the rejected inputs.

A whole plug-in stands in _example.py; ``sr3 doctor --example`` prints it.
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
    Inputs with one ``group`` attribute show one scene or person and are never parted by a split.

    An input inside a container has ``uri`` = ``<container>#<member>`` and the ``member`` again by itself; ``place`` is what the plug-in's
    own ``read`` needs to find it without another look at the contents (an offset, the container's stamp). ``reason`` (with ``detail``)
    says why the source itself knows that the input cannot be used: then it is rejected unread.
    """

    key: str
    uri: str
    split: SplitName | None = None
    label: int | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    member: str = ""
    place: str = ""
    reason: str = ""
    detail: str = ""

    @property
    def container(self) -> str:
        """Where the container of a member lies; ``uri`` itself for an input that is a file."""
        return self.uri.removesuffix(f"#{self.member}") if self.member else self.uri


@runtime_checkable
class Reader(Protocol):
    """A source whose inputs are not simply files."""

    def read(self, options: Any, example: Example) -> bytes: ...


@runtime_checkable
class Source(Protocol):
    """The module of a dataset plug-in, as ``plugins.load("data.sources", name)`` returns it."""

    Options: type[Section]

    def examples(self, options: Any) -> Iterable[Example]: ...

    def listing(self, options: Any) -> str: ...
