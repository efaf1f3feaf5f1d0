"""The folder is the registry: a plug-in is a file, its name the file's name. Loading is lazy; no plug-in is imported here.

Beside the folder stand installed packages with an entry point in the kind's group (``[project.entry-points."sr3.sources"]``), and any
importable module by its dotted name. The project's own names win over a package's.
"""

import importlib
import importlib.metadata
import pkgutil
import sys
import traceback
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Literal, cast

from sr3_core.config import nearest
from sr3_core.errors import BadInput

Kind = Literal["data.sources", "models", "objectives", "metrics"]
GROUPS: dict[Kind, str] = {"data.sources": "sr3.sources"}  # kinds that packages may add to
_HERE = Path(__file__).parent
EXAMPLE = _HERE / "data" / "sources" / "_example.py"  # a source to start one's own from: sr3 doctor --example


def names(kind: Kind) -> list[str]:
    """The plug-ins of ``kind``: the project's files (not those that start with ``_``) and the entry points of installed packages."""
    return sorted({*_own(kind), *(entry.name for entry in _installed(kind))})


def load(kind: Kind, name: str) -> ModuleType:
    """The plug-in's module: ``name`` is a file of the folder, an installed entry point, or a dotted path to a module outside the project.

    Raises BadInput for an unknown name (with the nearest one), for an outside module that does not import, and for an entry point that
    does not load or that two packages have, naming the packages.
    """
    if name in _own(kind):
        return importlib.import_module(f"sr3_core.{kind}.{name}")
    found = [entry for entry in _installed(kind) if entry.name == name]
    if found:
        return _load_entry(kind, found)
    if "." in name:
        try:
            return importlib.import_module(name)
        except Exception as error:
            got = f"plug-in {name} does not import ({_why(error)})"
            raise BadInput(got, f"an importable module for {kind}", "check the module, PYTHONPATH and the spelling") from None
    do = f"name one of these or a dotted module, or add sr3_core/{kind.replace('.', '/')}/{name}.py"
    do += " (sr3 doctor --example prints one)" if kind == "data.sources" else ""
    raise BadInput(f"unknown {kind} plug-in {name!r}", nearest(name, names(kind)), do)


def forget() -> None:
    """Look for installed packages again: for one that was installed while this process ran."""
    importlib.invalidate_caches()
    _entry_points.cache_clear()


def _own(kind: Kind) -> list[str]:
    folder = _HERE.joinpath(*kind.split("."))
    return [item.name for item in pkgutil.iter_modules([str(folder)]) if not item.name.startswith("_")]


def _installed(kind: Kind) -> tuple[importlib.metadata.EntryPoint, ...]:
    return _entry_points(GROUPS[kind], tuple(sys.path)) if kind in GROUPS else ()


@lru_cache(maxsize=8)
def _entry_points(group: str, path: tuple[str, ...]) -> tuple[importlib.metadata.EntryPoint, ...]:
    """Reading every package's metadata takes tens of milliseconds: once for each search path."""
    return tuple(importlib.metadata.entry_points(group=group))


def _why(error: Exception) -> str:
    """Outside code may fail with anything while it is imported: what it was, and where unless it is that there is no such module."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    is_ours = last.filename == __file__ or "importlib" in last.filename
    return f"{type(error).__name__}: {error}" + ("" if is_ours else f", {last.filename} line {last.lineno}")


def _load_entry(kind: Kind, found: list[importlib.metadata.EntryPoint]) -> ModuleType:
    packages = ", ".join(sorted(f"{entry.dist.name} {entry.dist.version}" if entry.dist else "a package" for entry in found))
    if len(found) > 1:
        raise BadInput(f"{kind} plug-in {found[0].name!r} in several packages: {packages}", "one", "uninstall the others")
    try:
        return cast(ModuleType, found[0].load())
    except Exception as error:
        got = f"{kind} plug-in {found[0].name!r} of {packages} does not load ({_why(error)})"
        raise BadInput(got, f"an importable {found[0].value}", "mend or uninstall the package") from None
