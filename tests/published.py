"""Published schemas as they are meant: what a schema does not name is refused."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema


def kuberay(folder: Path, kind: str) -> Any:
    """A validator of KubeRay's ``kind`` (rayjobs, rayclusters, rayservices) by its published schema in ``folder``."""
    return jsonschema.Draft202012Validator(_strict(json.loads((folder / f"ray.io_{kind}.v1.json").read_text())))


def kfp(folder: Path, definition: str) -> Any:
    """A validator of a body of KFP's REST interface, as ``v2beta1Run``."""
    published = json.loads((folder / "kfp.v2beta1.swagger.json").read_text())
    whole = {"$ref": f"#/definitions/{definition}", "definitions": _strict(published["definitions"], names=True)}
    return jsonschema.Draft202012Validator(whole)


class KfpRequests:
    """Requests of KFP's REST interface by its published description in ``folder``: path, method, query and body."""

    def __init__(self, folder: Path) -> None:
        self._paths = json.loads((folder / "kfp.v2beta1.swagger.json").read_text())["paths"]
        self._folder = folder

    def faults(self, method: str, path: str, query: list[str], body: Any) -> list[str]:
        """What the interface does not know of the request; ``body`` is None where it is no JSON."""
        found = [methods for place, methods in self._paths.items() if re.fullmatch(re.sub(r"\{[^}]+\}", "[^/:]+", place), path)]
        methods = next((methods for methods in found if method in methods), None)
        if methods is None:
            return [f"no {method} {path}"]
        parameters = methods[method].get("parameters", [])
        known = {parameter["name"] for parameter in parameters if parameter["in"] == "query"}
        faults = [f"unknown query {name}" for name in query if name not in known]
        schema = next((parameter["schema"] for parameter in parameters if parameter["in"] == "body"), None)
        if schema is None:
            return [*faults, *([f"a body at {path}"] if body is not None else [])]
        return [*faults, *(error.message for error in kfp(self._folder, schema["$ref"].rpartition("/")[2]).iter_errors(body))]


def _strict(schema: Any, *, names: bool = False) -> Any:
    """``schema`` (with ``names``: a mapping of names to schemas) with unknown keys of objects refused, and Kubernetes' int-or-string said
    as JSON Schema says it."""
    if names:
        return {name: _strict(item) for name, item in schema.items()}
    if not isinstance(schema, dict):
        return [_strict(item) for item in schema] if isinstance(schema, list) else schema
    if schema.get("x-kubernetes-int-or-string") or schema.get("format") == "int64":  # protobuf's JSON takes both of an int64
        return {"type": ["integer", "string"]}
    made = {
        key: _strict(value, names=key == "properties") if key not in ("enum", "required", "pattern") else value
        for key, value in schema.items()
    }
    free = "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
    if "properties" in schema and not free:
        made["additionalProperties"] = False
    return made
