"""Models chained: each stage's output, rounded as it would be stored, is the next stage's low image. One folder holds them all.

<folder>/stages/<name>/...    one ModelBundle a stage, its chosen sampling inside
<folder>/metrics.json         what evaluation measured        <folder>/card.md     what a reader should know
<folder>/cascade.json         the manifest, written last
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from torch import Tensor

from sr3_core import seeds as counters
from sr3_core import storage
from sr3_core.artifacts.bundle import ModelBundle
from sr3_core.errors import BadInput
from sr3_core.metrics._base import quantised, signed

MANIFEST = "cascade.json"
SCHEMA_VERSION = 1


class Cascade:
    """Bundles in order, each starting at the size where the one before it ends; it has the prediction signature of a single model.
    The first stage may be unconditional: it makes its image from noise, and ``low`` is None."""

    def __init__(self, bundles: Sequence[ModelBundle], *, uri: str = "", manifest: Mapping[str, Any] | None = None) -> None:
        for before, after in pairwise(bundles):
            if after.stage.low != before.stage.high:
                got = f"stage {after.stage.name} starts at {after.stage.low}, stage {before.stage.name} ends at {before.stage.high}"
                raise BadInput(got, "stages that chain", "pass the bundles in the order of the cascade")
        if not bundles:
            raise BadInput("a cascade of no stages", "one bundle or more", "pass the bundles of the trained stages")
        if len({bundle.bits for bundle in bundles}) > 1:
            depths = ", ".join(f"{bundle.stage.name} {bundle.bits}" for bundle in bundles)
            raise BadInput(f"stages of different bits ({depths})", "stages of one depth", "train them on one ShardSet")
        self.bundles, self.uri, self.manifest = tuple(bundles), uri, dict(manifest or {})

    @property
    def bits(self) -> int:
        """8 or 16: of the images between the stages and of the output."""
        return self.bundles[0].bits

    @property
    def scale(self) -> int:
        """How many times larger the output is than the low image, or than the first stage's image from noise."""
        return int(np.prod([bundle.stage.scale for bundle in self.bundles]))

    def outputs(
        self,
        low: Tensor | None,
        *,
        seeds: Sequence[int] | np.ndarray[Any, Any] | Tensor,
        first: int = 0,
        stop: int | None = None,
        size: tuple[int, int] | None = None,
        labels: Tensor | None = None,
        sampling: Sequence[Mapping[str, Any]] | None = None,
    ) -> Iterator[Tensor]:
        """Outputs of stages ``first`` .. ``stop`` - 1, each (N, C, H, W) in [-1, 1] and rounded; ``low`` is the input of ``first``.

        ``size`` is that of the last one (None: scale x its input). ``sampling`` has one mapping for every stage of the cascade.
        """
        stop = len(self.bundles) if stop is None else stop
        for index in range(first, stop):
            chosen = sampling[index] if sampling is not None else {}
            at = size if index == stop - 1 else None
            prediction = self.bundles[index].predict(low, seeds=stage_seeds(seeds, index), size=at, labels=labels, **chosen)
            low = signed(quantised(prediction, self.bits))
            yield low

    def predict(
        self,
        low: Tensor | None,
        *,
        seeds: Sequence[int] | np.ndarray[Any, Any] | Tensor,
        size: tuple[int, int] | None = None,
        labels: Tensor | None = None,
        **sampling: Any,
    ) -> Tensor:
        """The last stage's output for ``low`` (N, C, h, w) in [-1, 1]; ``sampling`` options go to every stage."""
        *_, last = self.outputs(low, seeds=seeds, size=size, labels=labels, sampling=[sampling] * len(self.bundles))
        return last

    @classmethod
    def save(
        cls,
        folder_uri: str,
        bundles: Sequence[ModelBundle],
        *,
        sampling: Sequence[Mapping[str, Any]],
        metrics: Mapping[str, Any],
        card: str,
        lineage: Mapping[str, Any],
    ) -> str:
        """Write the bundles with their chosen ``sampling`` into one folder, the manifest last; returns the manifest's sha256."""
        bits = cls(bundles).bits
        stages: list[dict[str, Any]] = []
        for bundle, chosen in zip(bundles, sampling, strict=True):
            folder = f"stages/{bundle.stage.name}"
            sha256 = ModelBundle.save(
                storage.join(folder_uri, folder),
                stage=bundle.stage,
                network_state=bundle.network.state_dict(),
                measured=bundle.manifest["measured"],
                degradation=bundle.manifest["degradation"],
                lineage={**bundle.manifest["lineage"], "trained_bundle_sha256": bundle.manifest_sha256},
                metrics=dict(metrics),
                card=card,
                sampling=dict(chosen),
                bits=bits,
            )
            stages.append({"name": bundle.stage.name, "folder": folder, "sha256": sha256, "sampling": dict(chosen)})
        storage.write_bytes(storage.join(folder_uri, "card.md"), card.encode())
        files = {
            "metrics.json": storage.write_json(storage.join(folder_uri, "metrics.json"), metrics),
            "card.md": storage.sha256(storage.join(folder_uri, "card.md")),
        }
        manifest = {"schema": SCHEMA_VERSION, "bits": bits, "stages": stages, "files": files, "lineage": dict(lineage)}
        return storage.write_json(storage.join(folder_uri, MANIFEST), manifest)

    @classmethod
    def load(cls, folder_uri: str) -> "Cascade":
        """Open a saved cascade; BadInput when it is not one, is newer than this code, or a bundle differs from the manifest."""
        path = storage.join(storage.absolute(folder_uri), MANIFEST)
        if not storage.exists(path):
            raise BadInput(f"no {MANIFEST} in {folder_uri}", "the folder of an exported cascade", "check the URI, or run export again")
        manifest = _manifest(path)
        bundles: list[ModelBundle] = []
        for entry in manifest["stages"]:
            bundle = ModelBundle.load(storage.join(storage.absolute(folder_uri), entry["folder"]))
            if bundle.manifest_sha256 != entry["sha256"]:
                raise BadInput(
                    f"stage {entry['name']} of {folder_uri} differs from {MANIFEST}", "the bundle it was exported with", "run export again"
                )
            bundles.append(bundle)
        return cls(bundles, uri=storage.absolute(folder_uri), manifest=manifest)


def is_cascade(folder_uri: str) -> bool:
    """Whether the folder holds a saved cascade (else it may hold a single bundle)."""
    return storage.exists(storage.join(storage.absolute(folder_uri), MANIFEST))


def sample_seed(seed: int, sample: int) -> int:
    """The seed of the ``sample``-th image that ``seed`` draws from noise, for ``Cascade``: the same in a report, a file and a server."""
    return counters.from_key(f"sample {sample}", seed)


def stage_seeds(seeds: Sequence[int] | np.ndarray[Any, Any] | Tensor, index: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The seeds (N,) that stage ``index`` uses: derived, so that no two stages draw the same numbers."""
    return np.array([counters.from_key(f"stage {index}", int(seed)) for seed in seeds], dtype=np.int64)


def _manifest(path: str) -> dict[str, Any]:
    try:
        manifest = json.loads(storage.read_bytes(path))
        schema, stages = manifest["schema"], manifest["stages"]
    except (ValueError, KeyError, TypeError):
        raise BadInput(f"{path} is damaged", "the manifest that export wrote", "run export again") from None
    if schema > SCHEMA_VERSION or not isinstance(stages, list):
        raise BadInput(f"{path} with schema {schema}", f"schema {SCHEMA_VERSION} or older", "update sr3")
    return dict(manifest)
