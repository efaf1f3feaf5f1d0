"""What the importers share: pickles of tensors read safely, names and shapes fitted, the bundle written; nothing is written on error."""

import re
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from sr3_core import config, plugins, storage
from sr3_core.artifacts import bundle as bundles
from sr3_core.artifacts.bundle import ModelBundle
from sr3_core.config import Stage
from sr3_core.errors import BadInput

LISTED = 8  # names shown of a longer list


class Imported(NamedTuple):
    """A bundle that was written, and what people should know of its schedule: the guard's warnings and waivers, a line each."""

    uri: str
    notes: tuple[str, ...]


@dataclass
class Fit:
    """How a foreign network's tensors found their places in ours."""

    state: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    missing: list[str] = field(default_factory=list[str])
    extra: list[str] = field(default_factory=list[str])
    misshapen: list[str] = field(default_factory=list[str])

    def refuse(self, path: str, do: str) -> None:
        """BadInput with what is missing, extra and of another shape, unless everything fits."""
        parts = [
            f"{len(names)} {what} ({_listed(names)})"
            for what, names in (("missing", self.missing), ("extra", self.extra), ("of another shape", self.misshapen))
            if names
        ]
        if parts:
            raise BadInput(f"{path} does not fit the network: {'; '.join(parts)}", "every tensor of the network and no other", do)


def read(path: str) -> Any:
    """The content of a torch pickle that holds tensors and plain values only (``weights_only``); BadInput for any other file."""
    place = Path(path).expanduser()
    if not place.is_file():
        raise BadInput(f"no file {path}", "a file that torch.save wrote", "check the path")
    try:
        return torch.load(place, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle fails with anything in its reader
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise BadInput(
            f"{path} cannot be read ({reason})", "a file of tensors that torch.save wrote", "check that it was downloaded whole"
        ) from None


def tensors(content: Any, path: str) -> dict[str, Tensor]:
    """``content`` as a mapping of names to dense real tensors, without the prefix that data-parallel wrappers add; BadInput for others."""
    do = "pass the file with the network's weights"
    if not isinstance(content, Mapping) or not content:
        raise BadInput(f"{path} with {'nothing' if content in ({}, None) else type(content).__name__}", "a mapping of names to tensors", do)
    found = cast("Mapping[Any, Any]", content)
    odd = [str(name) for name, value in found.items() if not (isinstance(name, str) and isinstance(value, Tensor) and _plain(value))]
    if odd:
        raise BadInput(f"{path} with {_listed(odd)}, not tensors", "dense tensors of real numbers by their names", do)
    return unique(
        {str(name): cast(Tensor, value).detach() for name, value in found.items()}, lambda name: name.removeprefix("module."), path
    )


def unique(foreign: Mapping[str, Tensor], name: Callable[[str], str], path: str) -> dict[str, Tensor]:
    """``foreign`` under the names that ``name`` makes of its own; BadInput where two become one."""
    made = {name(theirs): tensor for theirs, tensor in foreign.items()}
    if len(made) < len(foreign):
        names = [name(theirs) for theirs in foreign]
        twice = sorted(ours for ours in made if names.count(ours) > 1)
        raise BadInput(f"{path} with {_listed(twice)} twice, with and without a prefix", "each tensor once", "take one of the two out")
    return made


def fitted(stage: Stage, foreign: Mapping[str, Tensor], names: Callable[[str], str | None]) -> Fit:
    """``foreign`` under the names of ``stage``'s network; ``names`` gives our name for theirs, None for a name that is not the network's.

    A second tensor of the same place is extra.
    A weight whose shape differs from ours by trailing ones alone (a linear map stored as a 1x1 convolution or back) is reshaped.
    """
    module = plugins.load("models", stage.model.name)
    with torch.device("meta"):
        network = module.build(config.options(module.Options, stage.model.options, stage.model.name), stage)
    expected: dict[str, Tensor] = network.state_dict()
    fit = Fit()
    found: set[str] = set()
    for name, tensor in foreign.items():
        ours = names(name)
        if ours is None or ours not in expected or ours in found:
            fit.extra.append(name)
            continue
        found.add(ours)
        shape = expected[ours].shape
        if _pointwise(tensor.shape) != _pointwise(shape):
            fit.misshapen.append(f"{name} {list(tensor.shape)} instead of {list(shape)}")
            continue
        if not tensor.is_floating_point():
            raise BadInput(
                f"tensor {name} of {str(tensor.dtype).removeprefix('torch.')}", "floating-point weights", "pass the trained weights"
            )
        weight = tensor.to(torch.float32, copy=True).reshape(shape)  # a copy: tensors that share memory cannot be stored
        if not bool(torch.isfinite(weight).all()):
            raise BadInput(f"tensor {name} is not finite in float32", "finite weights", "pass an earlier checkpoint")
        fit.state[ours] = weight
    fit.missing = [name for name in expected if name not in found]
    return fit


def renamer(*rules: tuple[str, str]) -> Callable[[str], str | None]:
    """Names by the first rule (regular expression of the whole name, replacement) that fits; None where none does."""
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]

    def name(theirs: str) -> str | None:
        return next((pattern.sub(replacement, theirs) for pattern, replacement in compiled if pattern.fullmatch(theirs)), None)

    return name


def save(out: str, stage: Stage, fit: Fit, *, files: Mapping[str, str], source: str) -> Imported:
    """Write the bundle into the empty folder ``out``; its lineage names ``source`` and the sha256 of each of ``files``."""
    notes = _objective(stage).notes
    sha256s = {name: storage.sha256(str(Path(path).expanduser().absolute())) for name, path in files.items()}
    ModelBundle.save(
        out,
        stage=stage,
        network_state=fit.state,
        measured={},
        degradation="bicubic",
        lineage=bundles.lineage(shards_sha256=None, images_seen=None, git_commit=None, imported={"from": source, "sha256": sha256s}),
        sampling=stage.sampling,
        notes=notes,
    )
    return Imported(storage.absolute(out), tuple(notes))


def refuse_existing(out: str) -> None:
    """BadInput when ``out`` already holds a bundle."""
    if storage.exists(storage.join(storage.absolute(out), bundles.MANIFEST)):
        raise BadInput(f"{out} holds a bundle already", "a folder without one", "choose another --out or remove that folder")


def staged(values: dict[str, Any], source: str) -> Stage:
    """``values`` as a Stage; the schedule guard is waived where it refuses what these weights were trained and sampled with."""
    made = config.parse(Stage, values)
    try:
        _objective(made)
    except BadInput:
        waiver = {"schedule_guard": "published", "schedule_guard_reason": f"the weights of {source} were trained and are sampled so"}
        options = {**made.objective.options, **waiver}
        made = made.model_copy(update={"objective": made.objective.model_copy(update={"options": options})})
        _objective(made)
    return made


@contextmanager
def said_of(place: str) -> Generator[None]:
    """A BadInput from inside names ``place`` first."""
    try:
        yield
    except BadInput as error:
        raise BadInput(f"{place}: {error.got}", error.allowed, error.do) from None


def _objective(stage: Stage) -> Any:
    return plugins.load("objectives", stage.objective.name).Objective(stage, {})


def _plain(tensor: Tensor) -> bool:
    """Dense, of real numbers, each value at hand and stored by itself (a small file may claim a vast shape)."""
    dense = tensor.layout is torch.strided and not tensor.is_nested and not tensor.is_quantized and tensor.device.type == "cpu"
    return dense and not tensor.is_complex() and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _listed(names: list[str]) -> str:
    return f"{', '.join(names[:LISTED])}{', ...' if len(names) > LISTED else ''}"


def _pointwise(shape: torch.Size) -> tuple[int, ...]:
    return tuple(shape[:2]) if len(shape) == 4 and shape[2:] == (1, 1) else tuple(shape)
