"""Recipe files as plain values: strict YAML, ``extends``, ``--set a.b=c``, and no credentials. What they mean is in config/."""

import datetime
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sr3_core.errors import BadInput, nearest

RECIPES = Path(__file__).parents[1] / "recipes"


def recipe_names() -> list[str]:
    """Names of the recipes that come with the project."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def read(name_or_path: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The values of a recipe by name or path (beside the file that extends it first), overrides applied, credentials refused."""
    values = _read_extending(name_or_path, Path(), seen=())
    change(values, overrides)
    return values


def change(values: dict[str, Any], overrides: Sequence[str]) -> None:
    """Apply ``a.b=c`` to ``values`` one after the other. Raises BadInput for a key that cannot be there, and for credentials."""
    for override in overrides:
        _apply(values, override)
    refuse_secrets(values)


_SECRET_KEY = re.compile(r"token|secret|password|access_key|credential", re.IGNORECASE)
_SECRET_URI = re.compile(r"://[^/\s]*@|[?&][^=\s]*(signature|token|credential|sig)=", re.IGNORECASE)


def refuse_secrets(values: Any, where: str = "") -> None:
    """Raise BadInput for keys and URIs that carry credentials: every value of a recipe is printed and stored. Values are not echoed."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            if _SECRET_KEY.search(str(key)):
                raise _secret(f"key {where}{key}")
            refuse_secrets(value, f"{where}{key}.")
    elif isinstance(values, (list, tuple)):
        for index, value in enumerate(values):
            refuse_secrets(value, f"{where}{index}.")
    elif isinstance(values, str) and _SECRET_URI.search(values):
        raise _secret(f"the value of {where.rstrip('.') or 'a parameter'}")


def _secret(what: str) -> BadInput:
    return BadInput(
        f"{what} carries a credential (not shown)",
        "recipes and parameters without credentials",
        "pass credentials by the environment or workload identity",
    )


class _StrictLoader(yaml.SafeLoader):
    """YAML that refuses a key given twice."""


def _mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    written = [key.value for key, _ in node.value]
    twice = {str(key) for key in written if written.count(key) > 1}
    if twice:
        raise yaml.constructor.ConstructorError(None, None, f"key given twice: {', '.join(sorted(twice))}", node.start_mark)
    loader.flatten_mapping(node)  # '<<: *anchor' first, so that what is written wins
    return {loader.construct_object(key, deep=True): loader.construct_object(value, deep=True) for key, value in node.value}  # type: ignore[no-untyped-call]


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _parse_yaml(text: str, origin: str) -> Any:
    try:
        return _apart(yaml.load(text, _StrictLoader))  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, TypeError, ValueError) as error:  # a list as a key is a TypeError, the 99th month a ValueError
        raise BadInput(f"{origin}: {error}", "YAML with each key once", "mend that line") from None


def _apart(value: Any) -> Any:
    """``value`` with every mapping and list its own: a change of one stage must not change another that was written as its alias."""
    if isinstance(value, dict):
        return {key: _apart(item) for key, item in value.items()}
    return [_apart(item) for item in value] if isinstance(value, list) else value


def _read_extending(name_or_path: str, beside: Path, seen: tuple[str, ...]) -> dict[str, Any]:
    path = RECIPES / f"{name_or_path}.yaml"
    if not path.is_file():
        path = beside / name_or_path if (beside / name_or_path).is_file() else Path(name_or_path)
    if not path.is_file():
        raise BadInput(
            f"unknown recipe {name_or_path!r}", nearest(name_or_path, recipe_names()), "name one of these or give the path of a YAML file"
        )
    if str(path) in seen:
        raise BadInput(f"recipe {path} extends itself", "a chain without a circle", "mend its 'extends'")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read ({error})", "a YAML file in UTF-8", "check the file") from None
    values = _parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise BadInput(f"{path} holds {type(values).__name__}", "a mapping of sections", "see sr3_core/recipes/demo.yaml")
    base = values.pop("extends", None)
    if base is None:
        return values
    return _merged(_read_extending(str(base), path.parent, (*seen, str(path))), values)


def _merged(base: Any, change: Any) -> Any:
    if isinstance(base, dict) and isinstance(change, dict):
        return {**base, **{key: _merged(base.get(key), value) for key, value in change.items()}}
    if isinstance(base, list) and isinstance(change, list):
        named = {item["name"]: item for item in base if isinstance(item, dict) and "name" in item}
        return [_merged(named.get(item.get("name")), item) if isinstance(item, dict) else item for item in change]
    return change


def _apply(values: dict[str, Any], override: str) -> None:
    """Set one ``a.b=c``; list items by index or by their ``name`` (``stages.sr256.training.images=64``)."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise BadInput(f"--set {override!r}", "KEY=VALUE, as data.source=folder", "write the key, '=' and the value")
    if _SECRET_KEY.search(key) or _SECRET_URI.search(text):
        raise _secret(f"--set {key}")
    target: Any = values
    *parents, last = key.split(".")
    for part in parents:
        target = _child(target, part, override)
    value = text if last == "uri" else _value(text, f"--set {key}")  # a folder may be named 2024
    if isinstance(target, list):
        target[_index(target, last, override)] = value
    elif isinstance(target, dict):
        target[last] = _merged(target.get(last), value) if isinstance(value, list) else value
    else:
        raise BadInput(f"--set {override!r}: {'.'.join(parents)} is a single value", "a key of a section", "shorten the key")


def _value(text: str, origin: str) -> Any:
    """YAML for what looks like it; any other text stands for itself, so that a path may hold '#', '%' or ': '."""
    if text.lstrip()[:1] in ("[", "{", '"', "'"):
        return _parse_yaml(text, origin)
    try:
        value = yaml.load(text, _StrictLoader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, TypeError, ValueError):
        return text
    return text if isinstance(value, (str, dict, list, datetime.date)) or " #" in text else value


def _child(target: Any, part: str, override: str) -> Any:
    if isinstance(target, list):
        return target[_index(target, part, override)]
    if isinstance(target, dict):
        if target.get(part) is None:
            target[part] = {}
        return target[part]
    raise BadInput(f"--set {override!r}: {part!r} is below a single value", "a key of a section", "shorten the key")


def _index(target: list[Any], part: str, override: str) -> int:
    names = [item.get("name") if isinstance(item, dict) else None for item in target]
    if part in names:
        return names.index(part)
    if part.isdigit() and int(part) < len(target):
        return int(part)
    allowed = [str(name) for name in names if name] + [str(index) for index in range(len(target))]
    raise BadInput(f"--set {override!r}: no item {part!r}", nearest(part, allowed), "name an item or its index")
