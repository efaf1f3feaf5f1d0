"""What training carries from step to step, and its checkpoints: safetensors and JSON, manifest last, verified, never a pickle."""

import hashlib
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sr3_core import storage
from sr3_core.config import Stage
from sr3_core.errors import BadInput, Failed
from sr3_core.training import ema
from sr3_core.training.optimisation import Carried, make_optimizer
from sr3_core.training.window import Window

SCHEMA_VERSION = 1
MANIFEST = "state.json"
SCORES = "scores.json"  # beside the checkpoints: images seen -> what its averaged weights are worth
_EMA = "ema.safetensors"
_FILES = ("players.safetensors", "optimizers.safetensors", _EMA)
_ALSO = "also/"  # before the names of the averages that are not exported; no tensor's name has a slash
_DIGITS = 12  # a checkpoint's folder is its images seen, so that names sort


@dataclass
class TrainState:
    """Networks, optimizers (one per player), the averaged weights of the exported player, and the one position: images seen.

    ``averages`` are those of ``ema.also``, by name; ``carried`` is what the optimisation remembers beside tensors; ``init_sha256`` is that
    of the bundle the run started from, None from scratch.
    ``window`` holds (sum, weight) of each metric since the last log line, so that a resumed run logs what an uninterrupted one logs;
    ``logged`` is that last line without what depends on the clock.
    """

    players: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    exported: str
    measured: dict[str, float]
    ema: dict[str, Tensor]
    averages: dict[str, dict[str, Tensor]] = field(default_factory=dict[str, dict[str, Tensor]])
    carried: Carried = field(default_factory=Carried)
    init_sha256: str | None = None
    images_seen: int = 0
    window: Window = field(default_factory=dict[str, tuple[float, float]])
    logged: dict[str, float] = field(default_factory=dict[str, float])

    @classmethod
    def fresh(cls, players: dict[str, nn.Module], *, exported: str, measured: Mapping[str, float], stage: Stage) -> "TrainState":
        """State before the first step; the averages start at the initial weights."""
        optimizers = {name: make_optimizer(player, stage.training.optimizer) for name, player in players.items()}
        state = cls(players=players, optimizers=optimizers, exported=exported, measured=dict(measured), ema={})
        state.start_averages(stage)
        return state

    def start_averages(self, stage: Stage) -> None:
        """Let every average start at the exported player's weights as they are."""

        def copied() -> dict[str, Tensor]:
            return {name: tensor.detach().clone() for name, tensor in self.players[self.exported].state_dict().items()}

        self.ema, self.averages = copied(), {name: copied() for name in stage.training.ema.also}

    def update_ema(self, stage: Stage) -> None:
        """After an optimizer step: move every average towards the weights."""
        options = stage.training.ema
        steps = self.images_seen // stage.training.global_batch
        current = self.players[self.exported].state_dict()
        ema.update(self.ema, current, ema.decay(options, steps))
        for name, average in self.averages.items():
            ema.update(average, current, ema.decay(options.also[name], steps))

    def _averaged(self) -> dict[str, Tensor]:
        """Every average by its name in the file: the exported one's tensors have their own names."""
        also = {f"{_ALSO}{name}/{key}": tensor for name, average in self.averages.items() for key, tensor in average.items()}
        return {**self.ema, **also}

    def snapshot(self, into: "Snapshot | None" = None) -> "Snapshot":
        """A copy in host memory that later steps leave alone; ``into``, one that is needed no more, gives its memory."""
        players = {f"{player}/{name}": tensor for player, module in self.players.items() for name, tensor in module.state_dict().items()}
        live = dict(zip(_FILES, (players, dict(self._optimizer_tensors()), self._averaged()), strict=True))
        before = into.tensors if into is not None else {}
        copies = {file: {name: _host_copy(tensor, before.get(file, {}).get(name)) for name, tensor in live[file].items()} for file in live}
        if any(tensor.is_cuda for tensors in live.values() for tensor in tensors.values()):
            torch.cuda.synchronize()
        facts = {
            "images_seen": self.images_seen,
            "measured": self.measured,
            "window": dict(self.window),
            "logged": dict(self.logged),
            "carried": self.carried.to_json(),
            "init_sha256": self.init_sha256,
        }
        return Snapshot(copies, facts)

    def load(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        """Take over the state saved in the local ``folder``, in place: wrapped players and their gradients stay what they are."""
        players, optimizers, averaged = (load_file(folder / name) for name in _FILES)
        for player, module in self.players.items():
            prefix = f"{player}/"
            module.load_state_dict({key.removeprefix(prefix): tensor for key, tensor in players.items() if key.startswith(prefix)})
            self._load_optimizer(player, {key.removeprefix(prefix): tensor for key, tensor in optimizers.items() if key.startswith(prefix)})
        for name, tensor in self._averaged().items():
            tensor.copy_(averaged[name])
        self.carried = Carried.from_json(manifest.get("carried", {}))  # a checkpoint from before there was anything to carry has none
        self.init_sha256 = manifest.get("init_sha256")  # nor did older ones start from a bundle
        self.images_seen = int(manifest["images_seen"])
        self.logged = dict(manifest["logged"])
        self.window = {name: (float(total), float(weight)) for name, (total, weight) in manifest["window"].items()}

    def _optimizer_tensors(self) -> Iterator[tuple[str, Tensor]]:
        for player, optimizer in self.optimizers.items():
            for name, parameter in self.players[player].named_parameters():
                for key, value in optimizer.state.get(parameter, {}).items():
                    if not isinstance(value, Tensor):
                        raise Failed(f"optimizer state {key} of {player}/{name} is {type(value).__name__}, only tensors can be saved")
                    yield f"{player}/{name}/{key}", value

    def _load_optimizer(self, player: str, tensors: Mapping[str, Tensor]) -> None:
        optimizer = self.optimizers[player]
        parameters = dict(self.players[player].named_parameters())
        optimizer.state.clear()
        for key, loaded in tensors.items():
            name, _, entry = key.rpartition("/")
            parameter = parameters[name]
            # a moment has its parameter's memory layout: fused kernels walk both by address
            value = (
                torch.empty_like(parameter)
                if loaded.shape == parameter.shape and parameter.dim()
                else torch.empty_like(loaded, device=parameter.device)
            )
            optimizer.state[parameter][entry] = value.copy_(loaded)


@dataclass(frozen=True)
class Snapshot:
    """A TrainState at one moment: its tensors in host memory by file and name, and what else its manifest holds."""

    tensors: Mapping[str, Mapping[str, Tensor]]
    facts: Mapping[str, Any]

    @property
    def images_seen(self) -> int:
        return int(self.facts["images_seen"])

    def write(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """Write it into the local ``folder``, the manifest last; ``facts`` (stage, environment) become part of the manifest."""
        for name, tensors in self.tensors.items():
            save_file(dict(tensors), folder / name)
        files = {name: {"sha256": _sha256(folder / name), "bytes": (folder / name).stat().st_size} for name in self.tensors}
        storage.write_json(str(folder / MANIFEST), {**facts, **self.facts, "schema": SCHEMA_VERSION, "files": files})


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found whole: its place and its manifest."""

    uri: str
    manifest: Mapping[str, Any]

    @property
    def images_seen(self) -> int:
        return int(self.manifest["images_seen"])


class CheckpointStore:
    """Checkpoints of one run below ``uri`` (any storage): the newest ``keep`` and, of those that were rated, the ``best``.

    ``say`` tells the user what is unusual.
    """

    def __init__(self, uri: str, *, keep: int, say: Callable[[str], None], best: int = 0) -> None:
        self.uri, self.keep, self.best, self._say = storage.absolute(uri), keep, best, say

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint whose files all have their sha256, or None. A damaged one is named and the one before is taken.

        Raises BadInput for a checkpoint of a newer schema, and when there are checkpoints but none is whole.
        """
        numbers = self._numbers()
        for number in reversed(numbers):
            checkpoint, damage = self._verified(number)
            if checkpoint is not None:
                return checkpoint
            self._say(f"checkpoint at {number} images is damaged ({damage}); falling back to the one before")
        if numbers:
            raise BadInput(
                f"only damaged checkpoints in {self.uri}", "one whole checkpoint, or none", "delete that folder to train from the start"
            )
        return None

    def load(self, checkpoint: Checkpoint, state: TrainState) -> None:
        """Fill ``state`` from ``checkpoint``; a remote one is copied to local scratch first."""
        if storage.is_local(checkpoint.uri):
            state.load(storage.local_path(checkpoint.uri), checkpoint.manifest)
            return
        with tempfile.TemporaryDirectory(prefix="sr3-checkpoint-") as scratch:
            storage.download_folder(checkpoint.uri, Path(scratch))
            for name, entry in checkpoint.manifest["files"].items():
                if _sha256(Path(scratch, name)) != entry["sha256"]:
                    raise Failed(f"{checkpoint.uri}/{name} changed while it was read")
            state.load(Path(scratch), checkpoint.manifest)

    def averaged_weights(self, checkpoint: Checkpoint, *, also: str | None = None) -> dict[str, Tensor]:
        """The exported player's averaged weights, by their names in the network; ``also`` names another of its averages."""
        tensors = load_tensors(storage.read_bytes(storage.join(checkpoint.uri, _EMA)))
        if also is None:
            return {name: tensor for name, tensor in tensors.items() if not name.startswith(_ALSO)}
        prefix = f"{_ALSO}{also}/"
        found = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        if not found:
            names = sorted({name.split("/")[1] for name in tensors if name.startswith(_ALSO)})
            raise BadInput(f"average {also}", f"those of training.ema.also: {', '.join(names) or 'none'}", "name one of them")
        return found

    def save(self, snapshot: Snapshot, facts: Mapping[str, Any]) -> Checkpoint:
        """Write, read back and verify a checkpoint, then drop what is older than the newest ``keep``.

        Raises Failed when it does not read back as written; older checkpoints are then still there.
        """
        number = snapshot.images_seen
        uri = self._place(number)
        storage.remove(storage.join(uri, MANIFEST))  # a replayed or damaged one must not pass for whole while it is overwritten
        with tempfile.TemporaryDirectory(prefix="sr3-checkpoint-") as scratch:
            snapshot.write(Path(scratch), facts)
            storage.upload_folder(Path(scratch), uri, last=MANIFEST)
        checkpoint, damage = self._verified(number)
        if checkpoint is None:
            raise Failed(f"checkpoint {uri} does not read back as it was written ({damage}); the one before is kept")
        self._drop(number)
        return checkpoint

    def rate(self, number: int, score: float) -> None:
        """Remember that the checkpoint at ``number`` images is worth ``score`` (higher is better; one that is not finite is not rated).

        Not while one is being saved. Drops what neither is among the newest nor, by now, among the best.
        """
        if not math.isfinite(score):
            return
        there = self._numbers()
        known = {at: value for at, value in self.scores().items() if at in there}
        storage.write_json(storage.join(self.uri, SCORES), {str(at): value for at, value in sorted({**known, number: score}.items())})
        self._drop(number)

    def scores(self) -> dict[int, float]:
        """What was rated, by images seen; of checkpoints that are gone too."""
        place = storage.join(self.uri, SCORES)
        return {int(at): float(value) for at, value in storage.read_json(place).items()} if storage.exists(place) else {}

    def _drop(self, number: int) -> None:
        """Drop the checkpoints that are neither among the newest nor among the best; of two that are equally good the older one goes.

        The newest is the one at ``number`` images: those after it were damaged, or the run would have gone on from there. They stay
        until they are written anew, and take no whole one's place.
        """
        numbers = [at for at in self._numbers() if at <= number]
        scores = self.scores() if self.best else {}
        rated = sorted((number for number in numbers if number in scores), key=lambda number: (scores[number], number))
        for old in sorted(set(numbers[: -self.keep]) - set(rated[-self.best :] if self.best else ())):
            storage.remove(storage.join(self._place(old), MANIFEST))
            storage.remove(self._place(old), recursive=True)

    def _place(self, number: int) -> str:
        return storage.join(self.uri, f"{number:0{_DIGITS}d}")

    def _numbers(self) -> list[int]:
        """Images seen of every checkpoint that has a manifest, ascending."""
        found = [info.path_relative.split("/") for info in storage.list_files(self.uri, suffixes=(".json",))]
        return sorted(int(parts[0]) for parts in found if len(parts) == 2 and parts[1] == MANIFEST and parts[0].isdigit())

    def _verified(self, number: int) -> tuple[Checkpoint | None, str]:
        uri = self._place(number)
        try:
            manifest = cast("dict[str, Any]", storage.read_json(storage.join(uri, MANIFEST)))
            schema = manifest["schema"]
            if schema > SCHEMA_VERSION:
                raise _NewerSchema(schema)
            for name, entry in manifest["files"].items():
                size = storage.size(storage.join(uri, name))
                if size != entry["bytes"]:
                    return None, f"{name} has {size} of {entry['bytes']} bytes"
                if storage.sha256(storage.join(uri, name)) != entry["sha256"]:
                    return None, f"{name} has another sha256"
        except _NewerSchema as error:
            got = f"checkpoint {uri} of schema {error}"
            raise BadInput(got, f"schema {SCHEMA_VERSION} or older", "use the version of the project that wrote it") from None
        except (BadInput, FileNotFoundError, KeyError, TypeError, AttributeError) as error:
            return None, f"{type(error).__name__}: {error}"
        return Checkpoint(uri, manifest), ""


class _NewerSchema(Exception):
    pass


def check_same_recipe(checkpoint: Checkpoint, stage: Stage) -> None:
    """Raise BadInput that names the keys in which the checkpoint's stage section differs from ``stage``."""
    differing = differing_keys(checkpoint.manifest["stage"], stage.model_dump(mode="json"))
    if differing:
        raise BadInput(
            f"checkpoint {checkpoint.uri} of another recipe: {', '.join(differing)}",
            "the recipe it was written with",
            "restore the recipe or delete the folder",
        )


def differing_keys(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """``key (1 there, 2 here)`` for each dotted key in which two sections differ."""
    ours, theirs = dict(_flat(here)), dict(_flat(there))
    keys = [key for key in sorted(theirs.keys() | ours.keys()) if theirs.get(key) != ours.get(key)]
    return [f"{key} ({theirs.get(key)!r} there, {ours.get(key)!r} here)" for key in keys]


def _flat(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(values, Mapping):
        for key, value in cast("Mapping[str, Any]", values).items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, values


def _host_copy(tensor: Tensor, into: Tensor | None) -> Tensor:
    """``tensor`` in host memory, contiguous: in that of ``into`` where it fits. A copy from a GPU has ended after a synchronisation."""
    if into is None or into.shape != tensor.shape or into.dtype != tensor.dtype:
        into = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return into.copy_(tensor.detach(), non_blocking=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
