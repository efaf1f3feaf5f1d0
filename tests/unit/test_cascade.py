"""Cascade and baselines: one prediction signature, rounding between the stages, saved and loaded as one folder."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sr3_core import baselines, storage
from sr3_core.artifacts.bundle import ModelBundle
from sr3_core.cascade import MANIFEST, Cascade, is_cascade
from sr3_core.errors import BadInput
from sr3_core.resample import resample
from tests.components import evaluation

LOW = torch.rand((2, 3, 16, 16), generator=torch.Generator().manual_seed(0)) * 2 - 1
SEEDS = np.array([7, 8])


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[ModelBundle]:
    folder = tmp_path_factory.mktemp("bundles")
    pairs = ((16, 32), (32, 64))
    return [ModelBundle.load(evaluation.bundle(folder / f"x{high}", low, high, "0" * 64)[0]) for low, high in pairs]


def save(folder: Path, bundles: list[ModelBundle]) -> str:
    return Cascade.save(
        str(folder), bundles, sampling=[{"steps": 1}, {"steps": 0}], metrics={"psnr": 1.0}, card="# card", lineage={"by": "test"}
    )


def test_predicts_stage_after_stage_with_rounding_between(bundles: list[ModelBundle]) -> None:
    cascade = Cascade(bundles)
    assert cascade.scale == 4
    first, second = cascade.outputs(LOW, seeds=SEEDS)
    assert first.shape == (2, 3, 32, 32)
    levels = (first + 1) * 127.5
    assert torch.allclose(levels, levels.round(), atol=1e-3)
    assert torch.equal(second, cascade.predict(LOW, seeds=SEEDS))
    assert torch.equal(second, next(cascade.outputs(first, seeds=SEEDS, first=1)))
    assert not torch.equal(second, cascade.predict(LOW, seeds=SEEDS, steps=0))


def test_noise_depends_on_the_seed_and_the_stage_alone(bundles: list[ModelBundle]) -> None:
    cascade = Cascade(bundles)
    both = cascade.predict(LOW, seeds=SEEDS, noise=0.2)
    alone = cascade.predict(LOW[1:], seeds=SEEDS[1:], noise=0.2)
    assert torch.equal(both[1:], alone)
    assert not torch.equal(alone, cascade.predict(LOW[1:], seeds=np.array([9]), noise=0.2))
    flat = torch.zeros((1, 3, 32, 32))
    twice = [
        next(Cascade([*bundles]).outputs(flat, seeds=[7], first=1, sampling=[{"noise": 0.2}] * 2)),
        bundles[1].predict(flat, seeds=SEEDS[:1], noise=0.2),
    ]
    assert not torch.allclose(twice[0], twice[1], atol=0.05)  # the stage's own numbers, not those of the seed itself


def test_any_size_passes_through(bundles: list[ModelBundle]) -> None:
    low = torch.rand((1, 3, 11, 20))
    assert Cascade(bundles).predict(low, seeds=[1]).shape == (1, 3, 44, 80)
    assert Cascade(bundles).predict(low, seeds=[1], size=(43, 79)).shape == (1, 3, 43, 79)


def test_saved_and_loaded_with_the_chosen_sampling(tmp_path: Path, bundles: list[ModelBundle]) -> None:
    sha256 = save(tmp_path / "cascade", bundles)
    assert is_cascade(str(tmp_path / "cascade"))
    assert sha256 == storage.sha256(str(tmp_path / "cascade" / MANIFEST))
    loaded = Cascade.load(str(tmp_path / "cascade"))
    expected = list(Cascade(bundles).outputs(LOW, seeds=SEEDS, sampling=[{"steps": 1}, {"steps": 0}]))[-1]
    assert torch.equal(loaded.predict(LOW, seeds=SEEDS), expected)
    assert loaded.bundles[0].sampling == {"steps": 1}
    assert loaded.manifest["lineage"] == {"by": "test"}
    assert save(tmp_path / "again", bundles) == sha256


def test_what_is_no_cascade_is_refused(tmp_path: Path, bundles: list[ModelBundle]) -> None:
    with pytest.raises(BadInput, match=MANIFEST):
        Cascade.load(str(tmp_path))
    with pytest.raises(BadInput, match="chain"):
        Cascade([bundles[1], bundles[0]])
    with pytest.raises(BadInput, match="no stages"):
        Cascade([])
    save(tmp_path, bundles)
    manifest = tmp_path / MANIFEST
    manifest.write_text(manifest.read_text().replace('"schema": 1', '"schema": 99'))
    with pytest.raises(BadInput, match="schema 99"):
        Cascade.load(str(tmp_path))
    manifest.write_text("{")
    with pytest.raises(BadInput, match="damaged"):
        Cascade.load(str(tmp_path))


def test_a_stage_that_was_exchanged_is_refused(tmp_path: Path, bundles: list[ModelBundle]) -> None:
    save(tmp_path, bundles)
    evaluation.bundle(tmp_path / "stages" / "x64", 32, 64, "0" * 64, amount=0.9)
    with pytest.raises(BadInput, match="differs"):
        Cascade.load(str(tmp_path))


@pytest.mark.parametrize("name", baselines.NAMES)
def test_baselines_have_the_prediction_signature(name: str) -> None:
    model = baselines.Baseline(name)
    output = model.predict(LOW, seeds=SEEDS, size=(40, 48))
    assert torch.equal(output, resample(LOW, (40, 48), name).clamp(-1, 1))
    with pytest.raises(BadInput, match="steps"):
        model.predict(LOW, seeds=SEEDS, size=(40, 48), steps=3)
    with pytest.raises(BadInput, match="size"):
        model.predict(LOW, seeds=SEEDS)


def test_an_unknown_baseline_names_the_nearest() -> None:
    with pytest.raises(BadInput, match="bicubic"):
        baselines.Baseline("bicubik")
