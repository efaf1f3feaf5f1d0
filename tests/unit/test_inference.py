"""Any image size, any model this project writes; ``sr3 upscale`` settles its names before it works."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sr3_core import config, images, plugins, upscale
from sr3_core.artifacts.bundle import ModelBundle
from sr3_core.cascade import Cascade
from sr3_core.errors import BadInput
from sr3_core.inference import Upscaler, load_model, reflected
from sr3_core.inference import upscale as upscale_image
from sr3_core.tiling import TiledNetwork, ramp, spans
from tests.conftest import RECIPES


@pytest.fixture(scope="module")
def cascade(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved cascade 8 -> 16 -> 32 with random weights."""
    folder = tmp_path_factory.mktemp("models")
    bundles = []
    for stage in config.load(str(RECIPES / "pair.yaml")).stages:
        objective = plugins.load("objectives", stage.objective.name).Objective(stage, {"residual_scale": 0.3})
        network = objective.players()["denoiser"]
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        place = str(folder / stage.name)
        measured = {"residual_scale": 0.3}
        ModelBundle.save(place, stage=stage, network_state=network.state_dict(), measured=measured, degradation="bicubic", lineage={})
        bundles.append(ModelBundle.load(place))
    Cascade.save(str(folder / "cascade"), bundles, sampling=[bundle.sampling for bundle in bundles], metrics={}, card="card", lineage={})
    return folder / "cascade"


@pytest.fixture(scope="module")
def model(cascade: Path) -> Upscaler:
    return load_model(str(cascade))


def picture(height: int, width: int, channels: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.mark.parametrize("size", [(8, 8), (13, 9), (1, 1), (3, 40), (33, 21)])
def test_any_size_comes_out_at_scale_times_it(model: Upscaler, size: tuple[int, int]) -> None:
    made = model.upscale(picture(*size))
    assert made.shape == (size[0] * 4, size[1] * 4, 3)
    assert made.dtype == np.uint8


def test_the_output_is_the_input_enlarged(model: Upscaler) -> None:
    """The projection binds the result to its low image: resized down, it is the input again to a few levels."""
    low = images.resize(picture(3, 4), (24, 32), "bicubic")
    back = images.resize(model.upscale(low), (24, 32), "bicubic")
    assert np.abs(back.astype(float) - low).mean() < 12


def test_the_draw_depends_on_seed_and_sample_alone(model: Upscaler) -> None:
    low = picture(8, 8)
    first = model.upscale(low, seed=1)
    assert np.array_equal(first, model.upscale(low, seed=1))
    assert not np.array_equal(first, model.upscale(low, seed=2))
    assert not np.array_equal(first, model.upscale(low, seed=1, sample=1))


def test_sampling_options_reach_every_stage(model: Upscaler) -> None:
    low = picture(8, 8)
    assert not np.array_equal(model.upscale(low), model.upscale(low, steps=5))
    with pytest.raises(BadInput, match="stepz"):
        model.upscale(low, stepz=5)
    with pytest.raises(BadInput, match="sampler"):
        model.upscale(low, sampler="none of them")


def test_one_stage_and_a_single_bundle_load(cascade: Path, model: Upscaler) -> None:
    assert (model.scale, model.channels) == (4, 3)
    one = load_model(str(cascade), stage="x32")
    assert one.scale == 2
    assert np.array_equal(one.upscale(picture(9, 9)), load_model(str(cascade / "stages" / "x32")).upscale(picture(9, 9)))
    with pytest.raises(BadInput, match="x16, x32"):
        load_model(str(cascade), stage="x64")


@pytest.mark.parametrize("wrong", [picture(8, 8, 1), picture(8, 8).astype(np.float32), picture(8, 8)[..., 0], picture(0, 8)])
def test_what_is_no_image_for_the_model_is_bad_input(model: Upscaler, wrong: NDArray[np.uint8]) -> None:
    with pytest.raises(BadInput):
        model.upscale(wrong)


def test_an_output_beyond_memory_is_refused_before_any_work(model: Upscaler) -> None:
    with pytest.raises(BadInput, match="megapixels"):
        model.upscale(np.zeros((4000, 4000, 3), np.uint8))


def test_files_are_read(model: Upscaler, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(images.encode(picture(8, 8)))
    assert np.array_equal(upscale_image(tmp_path / "a.png", model=model), model.upscale(picture(8, 8)))
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    for name in ("b.png", "c.png", "."):
        with pytest.raises(BadInput):
            upscale_image(tmp_path / name, model=model)


def test_a_folder_without_a_model_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"cascade\.json or bundle\.json"):
        load_model(str(tmp_path))


def test_reflection_continues_the_image() -> None:
    image = picture(3, 5)
    made = reflected(image, 4)
    assert made.shape == (4, 8, 3)
    assert np.array_equal(made[:3, :5], image)
    assert np.array_equal(made[3, :5], image[2])


@pytest.mark.parametrize(("length", "side"), [(100, 16), (17, 16), (16, 16), (5, 16), (1000, 32)])
def test_tiles_cover_everything_with_overlap(length: int, side: int) -> None:
    found = spans(length, side)
    assert found[0][0] == 0
    assert found[-1][1] == length
    assert all(before[1] - after[0] >= side // 8 for before, after in pairwise(found))
    assert all(end - start == min(side, length) for start, end in found)
    assert bool((ramp(side, side) > 0).all())


class Pointwise(nn.Module):
    """A denoiser without a neighbourhood: tiles must give what the whole image gives."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7))

    def forward(
        self, noisy: Tensor, low: Tensor, gamma: Tensor, *, label: Tensor | None = None, augmentation: Tensor | None = None
    ) -> Tensor:
        assert noisy.shape[-1] * noisy.shape[-2] <= 2 * 16**2
        return self.weight * noisy - low * gamma[:, None, None, None].to(noisy)


def test_blended_tiles_are_seamless() -> None:
    noisy, low = torch.randn(2, 3, 50, 70), torch.randn(2, 3, 50, 70)
    gamma = torch.tensor([0.3, 0.6], dtype=torch.float64)
    network = Pointwise()
    with torch.no_grad():
        expected = network.weight * noisy - low * gamma[:, None, None, None].to(noisy)
        assert torch.allclose(TiledNetwork(network, side=16)(noisy, low, gamma), expected, atol=1e-5)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "photo é.png"
    path.parent.mkdir()
    path.write_bytes(images.encode(picture(10, 7)))
    return path


def test_upscale_writes_what_it_says(cascade: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "big.jpg"
    assert upscale.run([str(photo)], str(out), model=str(cascade)) == [str(out)]
    assert images.decode(out.read_bytes()).shape == (40, 28, 3)
    assert "28 x 40 from 7 x 10" in capsys.readouterr().out
    with pytest.raises(BadInput, match="--force"):
        upscale.run([str(photo)], str(out), model=str(cascade))
    upscale.run([str(photo)], str(out), model=str(cascade), force=True, stage="x16")
    assert images.decode(out.read_bytes()).shape == (20, 14, 3)


def test_upscale_of_several_and_of_samples(cascade: Path, photo: Path, tmp_path: Path) -> None:
    other = photo.with_name("other.png")
    other.write_bytes(images.encode(picture(4, 4)))
    written = upscale.run([str(photo), str(other)], f"{tmp_path}/out/", model=str(cascade), samples=2, steps=1)
    assert [Path(name).name for name in written] == ["photo é-1.png", "photo é-2.png", "other-1.png", "other-2.png"]
    assert Path(written[0]).read_bytes() != Path(written[1]).read_bytes()


def test_upscale_says_what_there_is_to_know_of_its_sampling(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Warnings of the schedule guard and options that are left unread: a line each, and nothing where nothing is to be said."""
    stage = config.load(str(RECIPES / "pair.yaml")).stages[0]
    state = plugins.load("objectives", stage.objective.name).Objective(stage, {}).players()["denoiser"].state_dict()
    sampling = {**stage.sampling, "eta": 0.5, "start": -1.0}
    place = str(tmp_path / "model")
    ModelBundle.save(place, stage=stage, network_state=state, measured={}, degradation="bicubic", lineage={}, sampling=sampling)
    upscale.run([str(photo)], str(tmp_path / "a.png"), model=place)
    (said,) = [line for line in capsys.readouterr().out.splitlines() if "x16: " in line]
    assert "x16: warning: sampling starts from pure noise at gamma 0.119" in said
    upscale.run([str(photo)], str(tmp_path / "b.png"), model=place, sampler="heun")
    assert "x16: sampling.eta=0.5 is set, but sampler heun does not read it" in capsys.readouterr().out
    plain = load_model(place)
    assert plain.sampling_notes(eta=0.0, start=-3.5) == []
    with pytest.raises(BadInput, match="sampling starts at gamma"):
        plain.sampling_notes(start=-5.0)


def test_upscale_refuses_before_it_works(photo: Path, tmp_path: Path) -> None:
    twin = tmp_path / "twin" / photo.name
    twin.parent.mkdir()
    twin.write_bytes(photo.read_bytes())
    cases = {
        "no image": ([], "x.png"),
        "a file that is there": ([str(tmp_path / "gone.png")], str(tmp_path / "x.png")),
        "folder for several": ([str(photo), str(photo)], str(tmp_path / "x.png")),
        "two images": ([str(photo), str(twin)], f"{tmp_path}/out/"),
        r"ends in \.png": ([str(photo)], str(tmp_path / "x.tiff")),
    }
    for message, (inputs, out) in cases.items():
        with pytest.raises(BadInput, match=message):
            upscale.run(inputs, out, model="never looked at")
    assert not (tmp_path / "out").exists()


def test_no_model_anywhere_names_all_three_places(photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    with pytest.raises(BadInput) as refused:
        upscale.run([str(photo)], str(tmp_path / "x.png"))
    line = str(refused.value)
    assert all(place in line for place in ("--mlflow-uri", "MLFLOW_TRACKING_URI", f"{tmp_path}/sr3-runs/mlflow.db"))
    assert not (tmp_path / "sr3-runs").exists()
    assert not (tmp_path / "other.db").exists()
