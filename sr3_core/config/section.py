"""What every section of a recipe is: frozen, strict, one canonical JSON string; how it is read and how it refuses. No torch here."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, ValidationError, model_serializer

from sr3_core.config.recipe_file import refuse_secrets
from sr3_core.errors import BadInput, nearest

MAX_SECTION_BYTES = 64 * 1024  # a section travels as one pipeline parameter
SPLITS = ("train", "val", "test")
SplitName = Literal["train", "val", "test"]
NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"


class Section(BaseModel):
    """Base of every section: frozen, unknown keys and numbers that are no numbers refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # Fields added after ShardSets had been made: left out of the JSON while they have their defaults, so that those keep name and bytes.
    LATER: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        if not self.LATER:
            return values
        return {
            name: value
            for name, value in values.items()
            if name not in self.LATER or getattr(self, name) != type(self).model_fields[name].get_default()
        }

    def canonical_json(self) -> str:
        """The section as one JSON string with sorted keys: what travels to a room and what a fingerprint hashes."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), allow_nan=False)
        if len(text.encode()) > MAX_SECTION_BYTES:
            raise BadInput(f"a {type(self).__name__} section of {len(text.encode())} bytes", f"at most {MAX_SECTION_BYTES}", "shorten it")
        return text


SectionT = TypeVar("SectionT", bound=Section)


class Plugin(Section):
    """A plug-in by the name of its file (``unet``) or by a dotted module path, with its own options."""

    name: str
    options: dict[str, Any] = Field(default={})


def fingerprint(*parts: str) -> str:
    """16 hex digits over ``parts`` (section JSON, upstream manifest hashes, schema versions), in order."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def parse(section: type[SectionT], values: Any) -> SectionT:
    """Validate ``values`` (a mapping, or canonical JSON as text) as ``section``; BadInput names key, got and allowed."""
    if isinstance(values, str):
        try:
            values = json.loads(values)
        except json.JSONDecodeError as error:
            raise BadInput(
                f"a {section.__name__} section that is not JSON ({error})", "one JSON object", "pass the section as JSON"
            ) from None
    refuse_secrets(values)
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise _as_bad_input(section, error) from None


def options(section: type[SectionT], values: Mapping[str, Any], owner: str) -> SectionT:
    """A plug-in's own options, validated; ``owner`` names the plug-in in the message."""
    try:
        return section.model_validate(dict(values))
    except ValidationError as error:
        raise _as_bad_input(section, error, prefix=f"{owner}.options.") from None


def _as_bad_input(section: type[Section], error: ValidationError, prefix: str = "") -> BadInput:
    every = error.errors(include_url=False)
    first = next((found for found in every if found["type"] == "extra_forbidden"), every[0])  # a key spelt wrongly is missed as well
    place = (prefix + ".".join(str(part) for part in first["loc"])).removesuffix(".")
    if first["type"] == "extra_forbidden":
        allowed = _keys_at(section, first["loc"][:-1])
        return BadInput(f"unknown key {place}", nearest(str(first["loc"][-1]), allowed), "mend the key")
    if first["type"] == "missing":
        return BadInput(f"no value for {place}", "a value: the key is required", "add it")
    got = repr(first["input"])
    got = got if len(got) <= 80 else got[:77] + "..."
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return BadInput(f"{place or section.__name__}: {message}", "values that agree", "change one of them")
    if first["type"] == "tuple_type":
        return BadInput(f"{place}={got}", "a list, as [1, 2]", "change the value")
    return BadInput(f"{place}={got}", message[0].lower() + message[1:], "change the value")


def _keys_at(section: type[Section], loc: Sequence[Any]) -> list[str]:
    """Field names of the section that ``loc`` leads to from ``section``."""
    current: Any = section
    for part in loc:
        if isinstance(part, int):
            continue
        field = current.model_fields.get(part) if isinstance(current, type) and issubclass(current, Section) else None
        if field is None:
            break
        current = _section_of(field.annotation) or current
    return list(current.model_fields)


def _section_of(annotation: Any) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    for part in getattr(annotation, "__args__", ()):
        found = _section_of(part)
        if found:
            return found
    return None
