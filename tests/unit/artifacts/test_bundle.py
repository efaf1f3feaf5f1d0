"""ModelBundle: the same arguments give the same bytes, what is loaded is what was saved, and every damage is one clear line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sr3_core import storage
from sr3_core.artifacts.bundle import ModelBundle, lineage
from sr3_core.errors import BadInput, Failed
from tests.plugins.tiny_objective import Objective, stage


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    return Objective(stage(seed=seed), {"mean": 0.0}).players()["net"].state_dict()


def save(uri: str, **changes: Any) -> str:
    made = lineage(shards_sha256="a" * 64, images_seen=96, git_commit=None)
    given = {"stage": stage(), "network_state": weights(), "measured": {"mean": 0.0}, "degradation": "bicubic", "lineage": made}
    return ModelBundle.save(uri, **{**given, **changes})


@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_what_is_loaded_is_what_was_saved(tmp_path: Path, scheme: str) -> None:
    uri = f"{scheme}{tmp_path}/bundle"
    sha256 = save(uri, metrics={"training": {"loss": 0.5}}, sampling={"gain": 2.0})
    bundle = ModelBundle.load(uri)
    assert bundle.manifest_sha256 == sha256 == ModelBundle.verify(uri) == storage.sha256(storage.join(uri, "bundle.json"))
    assert bundle.stage == stage() and bundle.sampling == {"gain": 2.0}
    assert bundle.manifest["parameters"] == sum(tensor.numel() for tensor in weights().values())
    assert bundle.manifest["lineage"]["packages"]["torch"] == torch.__version__
    for name, tensor in bundle.network.state_dict().items():
        assert torch.equal(tensor, weights()[name])
    assert storage.read_json(storage.join(uri, "metrics.json")) == {"training": {"loss": 0.5}}
    assert "exponential moving average" in storage.read_bytes(storage.join(uri, "card.md")).decode()


def test_predict_uses_the_bundles_sampling_unless_told_otherwise(tmp_path: Path) -> None:
    save(str(tmp_path), sampling={"gain": 2.0})
    bundle, low, seeds = ModelBundle.load(str(tmp_path)), torch.rand(2, 3, 4, 4), np.arange(2)
    assert bundle.predict(low, seeds=seeds).shape == (2, 3, 8, 8)
    torch.testing.assert_close(bundle.predict(low, seeds=seeds), 2 * bundle.predict(low, seeds=seeds, gain=1.0))


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    assert save(str(tmp_path / "one")) == save(str(tmp_path / "two"))
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["bundle.json", "card.md", "metrics.json", "model.safetensors"]


def change_manifest(folder: Path, **values: Any) -> None:
    place = folder / "bundle.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), **values}))


def append(folder: Path) -> None:
    with (folder / "model.safetensors").open("ab") as stream:
        stream.write(b"x")


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda folder: (folder / "bundle.json").unlink(), "no bundle.json in"),
        (lambda folder: (folder / "bundle.json").write_text("{"), "is not JSON"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing in"),
        (append, "has sha256"),
        (lambda folder: change_manifest(folder, schema=3), "schema 3; allowed: schema 2"),
        (lambda folder: change_manifest(folder, schema="new"), "of schema new"),
        (lambda folder: change_manifest(folder, files=None), "names no files"),
        (lambda folder: change_manifest(folder, stage={"name": "tiny"}), "no value for"),
    ],
)
def test_damage_is_one_clear_line(tmp_path: Path, damage: Callable[[Path], object], line: str) -> None:
    save(str(tmp_path))
    damage(tmp_path)
    with pytest.raises(BadInput) as refused:
        ModelBundle.load(str(tmp_path))
    assert line in str(refused.value)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save(str(tmp_path), stage=stage(options={"width": 32}))
    with pytest.raises(BadInput, match="the weights do not fit its stage"):
        _ = ModelBundle.load(str(tmp_path)).network


def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(tmp_path: Path) -> None:
    bad = weights()
    bad["last.bias"] = torch.tensor([0.0, float("nan"), 0.0])
    with pytest.raises(Failed, match=r"weight last\.bias is not finite"):
        save(str(tmp_path), network_state=bad)
    assert not (tmp_path / "bundle.json").exists()
    from safetensors.torch import save_file

    save(str(tmp_path))
    save_file(bad, tmp_path / "model.safetensors")
    manifest = json.loads((tmp_path / "bundle.json").read_text())
    change_manifest(tmp_path, files={**manifest["files"], "model.safetensors": storage.sha256(str(tmp_path / "model.safetensors"))})
    with pytest.raises(BadInput, match=r"weight last\.bias is not finite"):
        ModelBundle.load(str(tmp_path))
