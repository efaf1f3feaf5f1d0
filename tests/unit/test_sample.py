"""Images from noise: a base alone, a cascade that starts with one, ``sr3 sample``, and what each of two commands says of the other's."""

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from pipeline import cli
from sr3_core import chain, config, images, plugins
from sr3_core.artifacts.bundle import ModelBundle
from sr3_core.cascade import Cascade, sample_seed
from sr3_core.errors import BadInput
from sr3_core.inference import Upscaler, load_model
from tests.conftest import RECIPES


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the bundles "base" (noise -> 16) and "x32" (16 -> 32) and the "cascade" of both; random weights."""
    return write(tmp_path_factory.mktemp("noise"))


def write(folder: Path, *changes: str) -> Path:
    """The bundles of the recipe "noise" with ``changes``, and their cascade."""
    bundles: list[ModelBundle] = []
    for stage in config.load(str(RECIPES / "noise.yaml"), changes).stages:
        network = plugins.load("objectives", stage.objective.name).Objective(stage, {"residual_scale": 0.3}).players()["denoiser"]
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        place, measured = str(folder / stage.name), {"residual_scale": 0.3}
        ModelBundle.save(place, stage=stage, network_state=network.state_dict(), measured=measured, degradation="bicubic", lineage={})
        bundles.append(ModelBundle.load(place))
    Cascade.save(str(folder / "cascade"), bundles, sampling=[bundle.sampling for bundle in bundles], metrics={}, card="", lineage={})
    return folder


@pytest.fixture(scope="module")
def cascade(models: Path) -> Upscaler:
    return load_model(str(models / "cascade"))


def test_a_model_that_starts_from_noise_has_the_size_of_its_last_stage(models: Path, cascade: Upscaler) -> None:
    assert (cascade.side, cascade.scale, cascade.channels) == (32, 2, 3)
    assert cascade.description == "base noise -> 16, x32 16 -> 32"
    assert (load_model(str(models / "base")).side, load_model(str(models / "x32")).side) == (16, None)
    made = cascade.sample()
    assert (made.shape, made.dtype) == ((32, 32, 3), np.uint8)


def test_the_chain_enlarges_what_the_base_makes(models: Path, cascade: Upscaler) -> None:
    """The base of the cascade draws what the base alone draws, and the projection binds the larger image to it."""
    base = load_model(str(models / "base")).sample(seed=4)
    assert np.array_equal(base, load_model(str(models / "cascade"), stage="base").sample(seed=4))
    near, far = (np.abs(images.resize(cascade.sample(seed=seed), (16, 16), "bicubic").astype(float) - base).mean() for seed in (4, 5))
    assert near < 8 and near < far / 4


def test_the_draw_depends_on_seed_and_sample_alone(cascade: Upscaler) -> None:
    drawn = {(seed, sample): cascade.sample(seed=seed, sample=sample).tobytes() for seed in (0, 1) for sample in (0, 1)}
    assert len(set(drawn.values())) == 4
    assert cascade.sample(seed=1, sample=1).tobytes() == drawn[1, 1]
    both = cascade.cascade.predict(None, seeds=[sample_seed(0, 1), sample_seed(1, 0)])
    for index, place in enumerate(((0, 1), (1, 0))):
        near = images.from_unit(both[index].numpy()).astype(int) - np.frombuffer(drawn[place], np.uint8).reshape(32, 32, 3)
        assert np.abs(near).max() <= 1, "a batch draws each image by its own seed"


def test_sampling_options_and_listeners_reach_both_stages(cascade: Upscaler) -> None:
    assert not np.array_equal(cascade.sample(), cascade.sample(steps=5))
    with pytest.raises(BadInput, match="stepz"):
        cascade.sample(stepz=5)
    heard: list[tuple[str, tuple[int, ...]]] = []
    ended: list[str] = []
    cascade.sample(on_stage=ended.append, on_prediction=lambda stage, gamma, noisy, clean: heard.append((stage, tuple(clean.shape))))
    assert ended == ["base", "x32"]
    assert heard == [("base", (1, 3, 16, 16))] * 3 + [("x32", (1, 3, 32, 32))] * 2


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As ``models``, but the base of "cascade" was trained with labels 0 .. 2, and that of "dropping/cascade" now and then without."""
    folder = tmp_path_factory.mktemp("labelled")
    base = "stages.base.model.options.labels=3"
    write(folder / "dropping", base, "stages.base.objective.options.label_dropout=0.1")
    return write(folder, base)


def test_a_label_reaches_the_networks_that_are_told_labels_and_no_other(labelled: Path) -> None:
    strict, dropping = (load_model(str(labelled / name)) for name in ("cascade", "dropping/cascade"))
    made = {label: strict.sample(seed=2, label=label).tobytes() for label in range(3)}
    assert len(set(made.values())) == 3
    assert made == {label: dropping.sample(seed=2, label=label).tobytes() for label in range(3)}
    assert dropping.sample(seed=2).tobytes() not in made.values()
    photo = np.full((9, 7, 3), 99, np.uint8)
    assert load_model(str(labelled / "cascade"), stage="x32").upscale(photo).shape == (18, 14, 3)  # this stage is told none
    with pytest.raises(BadInput, match=r"no label for the model \(base noise -> 16, x32 16 -> 32\), trained with a label on every image"):
        strict.sample(seed=2)


def sr3(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def test_one_image_is_a_file_and_several_are_files_of_a_folder(models: Path, cascade: Upscaler, tmp_path: Path) -> None:
    done = sr3("sample", "-o", tmp_path / "one.png", "--model", models / "cascade", "--seed", "3")
    assert done.exit_code == 0, done.output
    assert f"wrote {tmp_path}/one.png (32 x 32 from noise, seed 3)" in done.output and "base noise -> 16, x32 16 -> 32" in done.output
    assert np.array_equal(images.decode((tmp_path / "one.png").read_bytes()), cascade.sample(seed=3))
    done = sr3("sample", "-o", f"{tmp_path}/some/", "-n", "3", "--model", models / "cascade", "--seed", "3", "--steps", "1")
    assert done.exit_code == 0, done.output
    made = sorted((tmp_path / "some").iterdir())
    assert [path.name for path in made] == ["sample-1.png", "sample-2.png", "sample-3.png"]
    for number, path in enumerate(made):
        assert np.array_equal(images.decode(path.read_bytes()), cascade.sample(seed=3, sample=number, steps=1))


def test_a_stage_by_itself_with_its_chain(models: Path, tmp_path: Path) -> None:
    given = ("--model", models / "cascade", "--chain", tmp_path / "chain.png")
    done = sr3("sample", "-o", tmp_path / "small.png", "--stage", "base", *given)
    assert done.exit_code == 0, done.output
    made, grid = (images.decode((tmp_path / name).read_bytes()) for name in ("small.png", "chain.png"))
    cell = 16 + chain.GAP
    assert made.shape == (16, 16, 3) and grid.shape == (2 * cell + chain.GAP, 5 * cell + chain.GAP, 3)
    assert (grid[: chain.GAP + 16, : chain.GAP + 16] == chain.BACKGROUND).all(), "there is no low image to show"
    assert np.array_equal(grid[-chain.GAP - 16 : -chain.GAP, -chain.GAP - 16 : -chain.GAP], made)


def test_each_command_names_the_other_in_one_line(models: Path, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes(images.encode(np.full((9, 7, 3), 99, np.uint8)))
    cases = {
        ("upscale", photo, "--model", models / "cascade"): ("base noise -> 16", "sr3 sample", "--stage x32"),
        ("upscale", photo, "--model", models / "base"): ("base noise -> 16", "sr3 sample", "another model"),
        ("upscale", photo, "--model", models / "cascade", "--stage", "base"): ("sr3 sample",),
        ("sample", "--model", models / "x32"): ("x32 16 -> 32", "sr3 upscale"),
        ("sample", "--model", models / "cascade", "--stage", "x32"): ("sr3 upscale",),
        ("sample", "--model", models / "cascade", "--stage", "x64"): ("base, x32",),
    }
    for arguments, says in cases.items():
        done = sr3(*arguments, "-o", tmp_path / "made.png")
        assert done.exit_code == 2 and done.stderr.count("\n") == 1, done.output
        assert all(text in done.stderr for text in says), done.stderr
    assert sr3("upscale", photo, "-o", tmp_path / "made.png", "--model", models / "cascade", "--stage", "x32").exit_code == 0


def test_what_cannot_be_written_is_refused_before_the_model_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.png").write_bytes(b"old")
    cases = {
        ("-o", "there.png"): "there.png exists",
        ("-o", "made.tiff"): "ends in .png",
        ("-o", ".", "-n", "2", "--chain", "chain.webp"): "chain.webp for 2 results",
        ("-o", "made.png"): "no model (--mlflow-uri: not set; MLFLOW_TRACKING_URI: not set; the default root",
        ("-o", "made.png", "--model", "nowhere"): "no model at",
    }
    for arguments, says in cases.items():
        done = sr3("sample", *arguments)
        assert done.exit_code == 2 and done.stderr.count("\n") == 1 and says in done.stderr, done.output
    assert (tmp_path / "there.png").read_bytes() == b"old" and sorted(path.name for path in tmp_path.iterdir()) == ["there.png"]


def test_the_label_of_the_command(labelled: Path, tmp_path: Path) -> None:
    given = ("--model", labelled / "cascade", "--seed", "4", "--label", "1")
    done = sr3("sample", "-o", f"{tmp_path}/some/", "--samples", "2", *given)
    assert done.exit_code == 0, done.output
    assert f"wrote {tmp_path}/some/sample-2.png (32 x 32 from noise, seed 4, label 1)" in done.output
    model = load_model(str(labelled / "cascade"))
    for number in range(2):
        found = images.decode((tmp_path / "some" / f"sample-{number + 1}.png").read_bytes())
        assert np.array_equal(found, model.sample(seed=4, sample=number, label=1))


def test_labels_that_a_model_cannot_be_told_are_refused_in_one_line(models: Path, labelled: Path, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes(images.encode(np.full((9, 7, 3), 99, np.uint8)))
    cases = {
        ("sample", "--model", labelled / "cascade"): ("trained with a label on every image", "0 .. 2", "--label"),
        ("sample", "--model", labelled / "cascade", "--label", "3"): ("label 3 for the model (base noise -> 16", "0 .. 2;"),
        ("sample", "--model", labelled / "dropping/cascade", "--label", "3"): ("label 3", "0 .. 2, or none"),
        ("sample", "--model", models / "cascade", "--label", "0"): ("label 0 for the model", "trained without labels"),
        ("upscale", photo, "--model", labelled / "x32", "--label", "0"): ("label 0 for the model (x32 16 -> 32), trained without labels",),
    }
    for arguments, says in cases.items():
        done = sr3(*arguments, "-o", tmp_path / "made.png")
        assert done.exit_code == 2 and done.stderr.count("\n") == 1, done.output
        assert all(text in done.stderr for text in says), done.stderr
    assert not (tmp_path / "made.png").exists()


WRONG = [
    (("--seed", "-1"), "-1 is not in the range x>=0"),
    (("-n", "0"), "0 is not in the range x>=1"),
    (("--label", "one"), "'one' is not a valid integer"),
    (("--steps", "0"), "0 is not in the range x>=1"),
    (("--sampler", "eulr"), "sampler='eulr'"),
    (("--stage", "x33"), "x32"),
    (("--chain", "chain.jpg"), ".webp, .gif, .png"),
]


@pytest.mark.parametrize(("given", "says"), WRONG)
def test_wrong_options_of_sample_end_with_code_2_and_write_nothing(given: tuple[str, ...], says: str, models: Path, tmp_path: Path) -> None:
    done = sr3("sample", "-o", tmp_path / "made.png", "--model", models / "cascade", *given)
    assert done.exit_code == 2 and says in done.stderr, done.output
    assert "Traceback" not in done.output and not list(tmp_path.iterdir())


def test_the_help_of_sample_has_an_example_and_every_option() -> None:
    done = sr3("sample", "--help")
    assert done.exit_code == 0 and "sr3 sample -o face.png --model" in done.output
    for option in ("--output", "--samples", "--seed", "--label", "--sampler", "--steps", "--stage", "--chain", "--model", "--mlflow-uri"):
        assert option in done.output
