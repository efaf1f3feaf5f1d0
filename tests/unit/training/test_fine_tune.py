"""A run from a bundle's weights: they are taken over whole or not at all, a checkpoint comes before them, and what was read is recorded."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sr3_core import storage
from sr3_core.artifacts.bundle import ModelBundle, lineage
from sr3_core.errors import BadInput
from tests.plugins.broken_off import assert_broken_off_is_whole, newest, run
from tests.plugins.tiny_objective import Objective, stage


def bundle(folder: Path, **training: Any) -> tuple[str, dict[str, torch.Tensor]]:
    """A bundle of the tiny stage with weights of another seed: its sha256 and those."""
    of = stage(seed=5, **training)
    weights = Objective(of, {"mean": 0.25}).players()["net"].state_dict()
    made = lineage(shards_sha256=None, images_seen=0, git_commit=None)
    sha256 = ModelBundle.save(str(folder), stage=of, network_state=weights, measured={"mean": 0.25}, degradation="bicubic", lineage=made)
    return sha256, weights


def test_weights_average_and_scale_of_the_targets_start_as_the_bundles(tmp_path: Path) -> None:
    sha256, weights = bundle(tmp_path / "bundle", options={"width": 8})
    still = {"optimizer": {"learning_rate": 1e-30}, "learning_rate": {}, "options": {"width": 8}}
    state, _, said = run(tmp_path / "run", init=str(tmp_path / "bundle"), **still)
    assert said == [f"starting from the weights of {tmp_path}/bundle (manifest sha256 {sha256[:12]}...)"]
    for name, tensor in state.players["net"].state_dict().items():
        torch.testing.assert_close(tensor, weights[name], rtol=0, atol=1e-25)
        torch.testing.assert_close(state.ema[name], weights[name])
    assert state.measured == {"mean": 0.25}
    manifest = json.loads((max((tmp_path / "run").iterdir()) / "state.json").read_text())
    assert manifest["init_sha256"] == state.init_sha256 == sha256


def test_a_checkpoint_comes_before_the_bundle_and_goes_on_bit_equal(tmp_path: Path) -> None:
    """The bundle is not even read again: it may be gone."""
    bundle(tmp_path / "bundle", options={"width": 8})
    training = {"init": str(tmp_path / "bundle"), "options": {"width": 8}}
    assert_broken_off_is_whole(tmp_path, [3], **training)
    done = newest(tmp_path / "broken")
    storage.remove(str(tmp_path / "bundle"), recursive=True)
    storage.remove(str(max((tmp_path / "broken").iterdir())), recursive=True)
    _, _, said = run(tmp_path / "broken", **training)
    assert said == ["resuming at 72 of 96 images"] and newest(tmp_path / "broken") == done


def test_what_does_not_fit_is_listed_in_one_line(tmp_path: Path) -> None:
    bundle(tmp_path / "bundle", options={"width": 4})
    with pytest.raises(BadInput) as refused:
        run(tmp_path / "run", init=str(tmp_path / "bundle"), options={"width": 8})
    text = str(refused.value)
    assert "27 of 28 tensors do not fit: first.bias (4,) there, (8,) here; first.weight (4, 3, 3, 3) there, (8, 3, 3, 3) here;" in text
    assert "and 19 more" in text and "\n" not in text and not (tmp_path / "run").exists()


def test_a_bundle_that_was_trained_otherwise_is_said(tmp_path: Path) -> None:
    bundle(tmp_path / "bundle", options={"width": 8, "dropout": 0.0})
    _, _, said = run(tmp_path / "run", init=str(tmp_path / "bundle"), options={"width": 8}, images=12, checkpoint_images=12)
    assert said[0].endswith("it was trained otherwise: objective.options.dropout (0.0 there, None here)")


def test_a_damaged_or_missing_bundle_and_a_relative_place_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no bundle\.json in"):
        run(tmp_path / "run", init=str(tmp_path / "nothing"))
    bundle(tmp_path / "bundle")
    (tmp_path / "bundle" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(BadInput, match=r"model\.safetensors in .* has sha256"):
        run(tmp_path / "run", init=str(tmp_path / "bundle"))
    with pytest.raises(BadInput, match="bundle must be an absolute path or a URI"):
        stage(init="bundle")
