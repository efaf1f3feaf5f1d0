"""What SOURCE and --set of ``sr3 doctor`` stand for: a recipe, a source plug-in, a folder, a file of many images, a URI."""

import difflib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sr3_core import config, plugins, storage
from sr3_core.config import Data, recipe_file
from sr3_core.data import reading
from sr3_core.data.sources import _files
from sr3_core.errors import BadInput, nearest


@dataclass(frozen=True)
class Asked:
    """What SOURCE and --set stand for. ``is_judged``: the section is a recipe's (``recipe`` is its name) or its levels were given;
    else ``data`` says the source alone and a section is proposed."""

    data: Data
    is_judged: bool
    recipe: str = ""


def resolve(source: str, overrides: Sequence[str]) -> Asked:
    """The data section that ``source`` names: a recipe (name or YAML file), a source plug-in (name or dotted module), a folder or URI.

    A folder with the name of a recipe or plug-in is given as ``./name``. Overrides of a recipe are those of ``sr3 run``; else
    ``uri=...`` is an option of the source and ``data.levels=...`` a key of the section. Raises BadInput.
    """
    if source in config.recipe_names() or source.endswith((".yaml", ".yml")):
        recipe = config.load(source, overrides)
        return Asked(recipe.data, True, recipe.name)
    name, options = _named(source)
    values: dict[str, Any] = {"data": {"source": name, "levels": [1], "options": options}}
    fields = getattr(plugins.load("data.sources", name), "Options", Data).model_fields
    for item in overrides:
        key = re.split(r"[.=]", item)[0]
        if key in Data.model_fields and key not in fields:
            raise BadInput(f"--set {item}", f"an option of {name}, or a key of the section with data. before it", f"--set data.{item}")
    given = [item if item.startswith("data.") else f"data.options.{item}" for item in overrides]
    recipe_file.change(values, given)
    place = values["data"]["options"].get("uri")
    if isinstance(place, str) and place:
        values["data"]["options"]["uri"] = storage.absolute(place)  # the values that are proposed work from any folder
    asked = config.parse(Data, values["data"])
    try:
        reading.source_of(asked)
    except BadInput as error:
        lacking = error.got.removeprefix("no value for data.options.")
        raise error if lacking == error.got else BadInput(error.got, error.allowed, f"--set {lacking}=...") from None
    return Asked(asked, any(item.startswith("data.levels=") for item in given))


def _named(source: str) -> tuple[str, dict[str, Any]]:
    """(plug-in, options) that SOURCE stands for: a place is a folder, or a file of many images by its ending."""
    names = plugins.names("data.sources")
    container = _files.container_plugin(source)
    is_pattern = any(character in source for character in "*?[")
    is_there = source not in names and os.path.exists(source)
    if is_pattern or is_there or container or "://" in source or os.sep in source or source[:1] == "~":
        if container or not (storage.is_local(source) and os.path.isfile(os.path.expanduser(source))):
            return container or "folder", {"uri": source}
        if source.lower().endswith(".npy"):
            return "stack", {"uri": source}
        if source.endswith(".py"):
            do = "put it into sr3_core/data/sources and name it without .py, or give its dotted name with its folder on PYTHONPATH"
            raise BadInput(f"{source} is a file of Python", "a plug-in by its name", do)
        raise BadInput(f"{source} is a file", f"a folder, or a file that ends in {', '.join(_files.CONTAINERS)}", "give its folder")
    if source not in names and "." not in source:
        known = [*names, *difflib.get_close_matches(source, config.recipe_names(), n=1, cutoff=0.5)]
        do = "name one of these, or write your own: sr3 doctor --example prints one"
        raise BadInput(f"unknown source {source!r}", f"a recipe, ./FOLDER, a URI, or a plug-in: {nearest(source, known)}", do)
    return source, {}
