"""ModelBundle: a trained stage as a folder at any URI - weights, what made them, how they are sampled. Written whole or not at all."""

import importlib.metadata
import json
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save_file
from torch import Tensor, nn

from sr3_core import config, plugins, storage
from sr3_core.config import Stage
from sr3_core.errors import BadInput, Failed

SCHEMA_VERSION = 2  # 2: the U-Net's normalisations take the noise embedding; weights of schema 1 have other names
MANIFEST, WEIGHTS, METRICS, CARD = "bundle.json", "model.safetensors", "metrics.json", "card.md"
NORMALISATION = {8: "[-1, 1] from uint8", 16: "[-1, 1] from uint16"}
_PACKAGES = ("torch", "numpy", "safetensors", "pillow", "ray", "kfp", "webdataset")


def handed_on(bundles: str) -> list[tuple[str, str]]:
    """(absolute URI, sha256) of each bundle in ``bundles``, the JSON list of {"uri", "sha256"} that rooms hand on; BadInput for others."""
    try:
        return [(storage.absolute(str(entry["uri"])), str(entry["sha256"])) for entry in json.loads(bundles)]
    except (ValueError, KeyError, TypeError):
        raise BadInput(
            f"bundles {bundles[:80]!r}", 'a JSON list of {"uri": ..., "sha256": ...}', "pass the bundles of the train room"
        ) from None


def handed_on_json(bundles: Sequence[tuple[str, str]]) -> str:
    """The text that ``handed_on`` reads."""
    return json.dumps([{"uri": uri, "sha256": sha256} for uri, sha256 in bundles])


class ModelBundle:
    """A verified bundle. ``network`` and ``predictor`` are built at first use."""

    def __init__(self, uri: str, manifest: Mapping[str, Any], manifest_sha256: str, weights: Mapping[str, Tensor]) -> None:
        self.uri, self.manifest, self.manifest_sha256 = uri, manifest, manifest_sha256
        self.stage = config.parse(Stage, dict(manifest["stage"]))
        self._weights = weights

    @staticmethod
    def save(
        folder_uri: str,
        *,
        stage: Stage,
        network_state: Mapping[str, Tensor],
        measured: Mapping[str, float],
        degradation: str,
        lineage: Mapping[str, Any],
        metrics: Mapping[str, Any] | None = None,
        card: str | None = None,
        sampling: Mapping[str, Any] | None = None,
        bits: int = 8,
        notes: Sequence[str] = (),
    ) -> str:
        """Write the bundle, ``bundle.json`` last, and return that file's sha256.

        ``network_state`` are the weights to use (the averaged ones) by their names in the network; ``sampling`` is what ``predict``
        uses by default (None: the stage's); ``bits`` is the depth of the images it was trained on; ``notes`` are lines for the card on
        its schedule. The same arguments give the same bytes. Raises Failed when a weight is not finite.
        """
        bad = _not_finite(network_state)
        if bad:
            raise Failed(f"stage {stage.name}: weight {bad} is not finite; no bundle is written")
        parameters = sum(tensor.numel() for tensor in network_state.values())
        with tempfile.TemporaryDirectory(prefix="sr3-bundle-") as scratch:
            folder = Path(scratch)
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in network_state.items()}, folder / WEIGHTS)
            (folder / METRICS).write_bytes(storage.json_bytes(dict(metrics or {})))
            (folder / CARD).write_text(card or _card(stage, parameters, lineage, notes), encoding="utf-8")
            manifest = {
                "schema": SCHEMA_VERSION,
                "stage": stage.model_dump(mode="json"),
                "sampling": dict(stage.sampling if sampling is None else sampling),
                "measured": dict(measured),
                "degradation": degradation,
                "normalisation": NORMALISATION[bits],
                "bits": bits,
                "parameters": parameters,
                "files": {name: storage.sha256(str(folder / name)) for name in (WEIGHTS, METRICS, CARD)},
                "lineage": dict(lineage),
            }
            sha256 = storage.write_json(str(folder / MANIFEST), manifest)
            uri = storage.absolute(folder_uri)
            storage.remove(storage.join(uri, MANIFEST))  # an older bundle there must not pass for whole while it is overwritten
            storage.upload_folder(folder, uri, last=MANIFEST)
        return sha256

    @staticmethod
    def verify(uri: str) -> str:
        """sha256 of the manifest of the bundle at ``uri`` after every file was checked against it. Raises BadInput."""
        _manifest(storage.absolute(uri))
        return storage.sha256(storage.join(storage.absolute(uri), MANIFEST))

    @classmethod
    def load(cls, uri: str) -> "ModelBundle":
        """Read and verify the bundle at ``uri``. BadInput: no manifest, newer schema, a missing or changed file, a weight not finite."""
        uri = storage.absolute(uri)
        manifest = _manifest(uri)
        try:
            weights = load_tensors(storage.read_bytes(storage.join(uri, WEIGHTS)))
        except SafetensorError as error:
            raise BadInput(f"{uri}/{WEIGHTS} cannot be read ({error})", "safetensors", "train or copy the bundle again") from None
        bad = _not_finite(weights)
        if bad:
            raise BadInput(f"{uri}: weight {bad} is not finite", "finite weights", "train this stage again with a lower learning rate")
        return cls(uri, manifest, storage.sha256(storage.join(uri, MANIFEST)), weights)

    @property
    def bits(self) -> int:
        """8 or 16: of the images it was trained on, to which outputs are rounded. Bundles from before it was recorded are of 8."""
        return int(self.manifest.get("bits", 8))

    @property
    def sampling(self) -> dict[str, Any]:
        """The sampling options that ``predict`` uses unless it is told otherwise."""
        return dict(self.manifest["sampling"])

    @cached_property
    def network(self) -> nn.Module:
        """The exported network with its weights, in evaluation mode, on the CPU; ``.to(device)`` moves it for ``predict`` too."""
        network = self._objective.players()[self._objective.exported]
        try:
            network.load_state_dict(dict(self._weights), strict=True)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise BadInput(
                f"{self.uri}: the weights do not fit its stage ({reason})",
                "weights of the same network",
                "use the code version named in its lineage",
            ) from None
        return network.eval().requires_grad_(False)

    @cached_property
    def predictor(self) -> Any:
        """The objective's predictor around ``network``."""
        return self._objective.predictor(self.network, degradation=str(self.manifest["degradation"]))

    def predict(
        self,
        low: Tensor | None,
        *,
        seeds: NDArray[np.int64] | Tensor,
        size: tuple[int, int] | None = None,
        labels: Tensor | None = None,
        **sampling: Any,
    ) -> Tensor:
        """High images (N, C, H, W) float32 in [-1, 1] for ``low`` (N, C, h, w) in [-1, 1] or None; the noise is that of ``seeds`` (N,)."""
        return cast(Tensor, self.predictor.predict(low, seeds=seeds, size=size, labels=labels, **{**self.sampling, **sampling}))

    def sampling_notes(self, sampling: Mapping[str, Any]) -> tuple[str, ...]:
        """What the objective has to say of ``predict`` with these options, a line each; BadInput for what it refuses."""
        return tuple(self._objective.sampling_notes({**self.sampling, **sampling}))

    @cached_property
    def _objective(self) -> Any:
        module = plugins.load("objectives", self.stage.objective.name)
        return module.Objective(self.stage, dict(self.manifest["measured"]))


def lineage(
    *,
    shards_sha256: str | None,
    images_seen: int | None,
    git_commit: str | None,
    imported: Mapping[str, Any] | None = None,
    init: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Where a bundle comes from; nothing in it depends on when or where it was made. None: not known (``imported`` weights).

    ``init``: URI and manifest sha256 of the bundle that training started from.
    """
    versions: dict[str, str] = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    made: dict[str, Any] = {"shards_sha256": shards_sha256, "git_commit": git_commit, "packages": versions, "images_seen": images_seen}
    known = {"imported": imported, "init": init}
    return {**made, **{name: dict(value) for name, value in known.items() if value is not None}}


def _manifest(uri: str) -> dict[str, Any]:
    """The manifest, after the sha256 of every file it names was checked."""
    place = storage.join(uri, MANIFEST)
    if not storage.exists(place):
        raise BadInput(
            f"no {MANIFEST} in {uri}", "the folder of a finished ModelBundle", "check the path, or run the train room to its end"
        )
    manifest = storage.read_json(place)
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if schema != SCHEMA_VERSION:
        raise BadInput(
            f"{place} of schema {schema}", f"schema {SCHEMA_VERSION}", "use the version of the project that wrote it, or train again"
        )
    files = manifest.get("files")
    if not isinstance(files, dict) or not files:
        raise BadInput(f"{place} that names no files", "the manifest of a finished ModelBundle", "copy the whole folder or train again")
    for name, expected in cast("dict[str, str]", files).items():
        try:
            found = storage.sha256(storage.join(uri, name))
        except FileNotFoundError:
            raise BadInput(f"{name} is missing in {uri}", "every file the manifest names", "copy the whole folder or train again") from None
        if found != expected:
            raise BadInput(
                f"{name} in {uri} has sha256 {found[:12]}...",
                f"{expected[:12]}... as the manifest says",
                "copy the folder again or train again",
            )
    return cast("dict[str, Any]", manifest)


def _not_finite(tensors: Mapping[str, Tensor]) -> str:
    return next((name for name, tensor in tensors.items() if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())), "")


def _card(stage: Stage, parameters: int, lineage: Mapping[str, Any], notes: Sequence[str]) -> str:
    low = "no low image" if stage.low is None else f"{stage.low} px"
    imported, init = lineage.get("imported"), lineage.get("init")
    fine_tuned = [f"- started from the weights of {init['uri']} (manifest sha256 {init['sha256']})"] if init else []
    origin = (
        [f"- weights imported from {imported['from']}, sha256 {imported['sha256']['weights']}", "", "Not evaluated by this project.", ""]
        if imported
        else [
            f"- images seen in training: {lineage.get('images_seen')}",
            f"- training data (manifest sha256): {lineage.get('shards_sha256')}",
            f"- code: {lineage.get('git_commit') or 'unknown commit'}",
            *fine_tuned,
            "",
            "Weights are the exponential moving average. The evaluation stands in the report of the run that made this bundle.",
            "",
        ]
    )
    lines = [
        f"# {stage.name}",
        "",
        f"{low} -> {stage.high} px, {stage.channels} channels; network `{stage.model.name}`, {parameters:,} parameters; "
        f"objective `{stage.objective.name}`.",
        "",
        *origin,
        *(["Of its schedule:", "", *(f"- {note}" for note in notes), ""] if notes else []),
    ]
    return "\n".join(lines)
