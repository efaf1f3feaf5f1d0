"""The folder is the registry: a plug-in is a file, its name the file's name. Loading is lazy; no plug-in is imported here."""

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import Literal

from sr3_core.config import nearest
from sr3_core.errors import BadInput

Kind = Literal["data.sources", "models", "objectives", "metrics"]
_HERE = Path(__file__).parent


def names(kind: Kind) -> list[str]:
    """Names of the plug-ins of ``kind`` that come with the project; files that start with ``_`` are not plug-ins."""
    folder = _HERE.joinpath(*kind.split("."))
    return sorted(item.name for item in pkgutil.iter_modules([str(folder)]) if not item.name.startswith("_"))


def load(kind: Kind, name: str) -> ModuleType:
    """The plug-in's module: ``name`` is a file of the folder, or a dotted path to a module outside the project.

    Raises BadInput for an unknown name (with the nearest one) and for an outside module that does not import.
    """
    if name in names(kind):
        return importlib.import_module(f"sr3_core.{kind}.{name}")
    if "." in name:
        try:
            return importlib.import_module(name)
        except ImportError as error:
            got = f"plug-in {name} does not import ({error})"
            raise BadInput(got, f"an importable module for {kind}", "check PYTHONPATH and the spelling") from None
    file = f"sr3_core/{kind.replace('.', '/')}/{name}.py"
    raise BadInput(f"unknown {kind} plug-in {name!r}", nearest(name, names(kind)), f"name one of these or a dotted module, or add {file}")
