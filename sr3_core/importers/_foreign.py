"""What the importers share: pickles of tensors read safely, names and shapes fitted, the bundle written; nothing is written on error."""

import hashlib
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from sr3_core import config, plugins, storage
from sr3_core.artifacts import bundle as bundles
from sr3_core.artifacts.bundle import ModelBundle
from sr3_core.config import Stage
from sr3_core.errors import BadInput

LISTED = 8  # names shown of a longer list


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
            f"{len(names)} {what} ({', '.join(names[:LISTED])}{', ...' if len(names) > LISTED else ''})"
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
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise BadInput(
            f"{path} cannot be read ({reason})", "a file of tensors that torch.save wrote", "check that it was downloaded whole"
        ) from None


def tensors(content: Any, path: str) -> dict[str, Tensor]:
    """``content`` as a mapping of names to tensors, without the prefix that data-parallel wrappers add."""
    if not isinstance(content, Mapping) or not content:
        raise BadInput(f"{path} with {type(content).__name__}", "a mapping of names to tensors", "pass the file with the network's weights")
    found = cast("Mapping[Any, Any]", content)
    odd = [str(name) for name, value in found.items() if not isinstance(value, Tensor)]
    if odd:
        raise BadInput(f"{path} with {', '.join(odd[:LISTED])}, not tensors", "tensors only", "pass the file with the network's weights")
    return {str(name).removeprefix("module."): cast(Tensor, value) for name, value in found.items()}


def fitted(stage: Stage, foreign: Mapping[str, Tensor], names: Callable[[str], str | None]) -> Fit:
    """``foreign`` under the names of ``stage``'s network; ``names`` gives our name for theirs, None for a name that is not the network's.

    A weight whose shape differs from ours by trailing ones alone (a linear map stored as a 1x1 convolution or back) is reshaped.
    """
    module = plugins.load("models", stage.model.name)
    with torch.device("meta"):
        network = module.build(config.options(module.Options, stage.model.options, stage.model.name), stage)
    expected: dict[str, Tensor] = network.state_dict()
    fit = Fit()
    for name, tensor in foreign.items():
        ours = names(name)
        if ours is None or ours not in expected:
            fit.extra.append(name)
            continue
        shape = expected[ours].shape
        if _pointwise(tensor.shape) != _pointwise(shape):
            fit.misshapen.append(f"{name} {list(tensor.shape)} instead of {list(shape)}")
        elif not bool(torch.isfinite(tensor).all()):
            raise BadInput(f"tensor {name} is not finite", "finite weights", "pass an earlier checkpoint")
        else:
            fit.state[ours] = tensor.float().reshape(shape)
    found = {names(name) for name in foreign}
    fit.missing = [name for name in expected if name not in found]
    return fit


def renamer(*rules: tuple[str, str]) -> Callable[[str], str | None]:
    """Names by the first rule (regular expression of the whole name, replacement) that fits; None where none does."""
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]

    def name(theirs: str) -> str | None:
        return next((pattern.sub(replacement, theirs) for pattern, replacement in compiled if pattern.fullmatch(theirs)), None)

    return name


def save(
    out: str, stage: Stage, fit: Fit, *, files: Mapping[str, str], source: str, images_seen: int | None, sampling: Mapping[str, Any]
) -> str:
    """Write the bundle into the empty folder ``out``; its lineage names ``source`` and the sha256 of each of ``files``. Returns its URI."""
    sha256s = {name: hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest() for name, path in files.items()}
    ModelBundle.save(
        out,
        stage=stage,
        network_state=fit.state,
        measured={},
        degradation="bicubic",
        lineage=bundles.lineage(shards_sha256=None, images_seen=images_seen, git_commit=None, imported={"from": source, "sha256": sha256s}),
        sampling=sampling,
    )
    return storage.absolute(out)


def refuse_existing(out: str) -> None:
    """BadInput when ``out`` already holds a bundle."""
    if storage.exists(storage.join(storage.absolute(out), bundles.MANIFEST)):
        raise BadInput(f"{out} holds a bundle already", "a folder without one", "choose another --out or remove that folder")


def staged(values: dict[str, Any], source: str) -> Stage:
    """``values`` as a Stage; the schedule guard is waived where it refuses what these weights were trained and sampled with."""
    made = config.parse(Stage, values)
    objective = plugins.load("objectives", made.objective.name)
    try:
        objective.Objective(made, {})
    except BadInput:
        waiver = {"schedule_guard": "published", "schedule_guard_reason": f"the weights of {source} were trained and are sampled so"}
        options = {**made.objective.options, **waiver}
        made = made.model_copy(update={"objective": made.objective.model_copy(update={"options": options})})
        objective.Objective(made, {})
    return made


def _pointwise(shape: torch.Size) -> tuple[int, ...]:
    return tuple(shape[:2]) if len(shape) == 4 and shape[2:] == (1, 1) else tuple(shape)
