"""`sr3 upscale --chain`: the reverse process as an animation and as a grid, from real small models; refusals before any sampling."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image, ImageSequence

from pipeline import cli
from sr3_core import chain, config, images, plugins, upscale
from sr3_core.artifacts.bundle import ModelBundle
from sr3_core.cascade import Cascade
from sr3_core.errors import BadInput
from sr3_core.inference import load_model
from tests.conftest import RECIPES

IMAGE_TARGET = [  # x0: what a network of small weights makes is near the low image, and an animation is lossy in noise
    f"stages.{name}.objective.options={{prediction: x0, levels: {{name: log_snr, low: -5, high: 4}}}}" for name in ("x16", "x32")
]
SAMPLING = [
    f"stages.{name}.sampling={{sampler: ddim, steps: 6, grid: log_snr, start: -3, end: 3, projection: 2}}" for name in ("x16", "x32")
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A saved cascade 8 -> 16 -> 32 with random weights whose networks predict images: the first state is pure noise."""
    folder = tmp_path_factory.mktemp("chain")
    bundles: list[ModelBundle] = []
    for stage in config.load(str(RECIPES / "pair.yaml"), [*IMAGE_TARGET, *SAMPLING]).stages:
        network = plugins.load("objectives", stage.objective.name).Objective(stage, {}).players()["denoiser"]
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        place = str(folder / stage.name)
        ModelBundle.save(place, stage=stage, network_state=network.state_dict(), measured={}, degradation="bicubic", lineage={})
        bundles.append(ModelBundle.load(place))
    Cascade.save(str(folder / "cascade"), bundles, sampling=[bundle.sampling for bundle in bundles], metrics={}, card="", lineage={})
    return str(folder / "cascade")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    rows, columns = np.mgrid[0:11, 0:9]
    path.write_bytes(images.encode(np.stack([rows * 20, columns * 25, rows * 0 + 90], axis=2).astype(np.uint8)))
    return path


def run(photo: Path, model: str, target: str, **options: object) -> tuple[NDArray[np.uint8], bytes]:
    """The upscaled image and the bytes of the chain."""
    big, shown = photo.with_name("big.png"), photo.with_name(target)
    assert upscale.run([str(photo)], str(big), model=model, chain=str(shown), **options) == [str(big), str(shown)]  # type: ignore[arg-type]
    return images.decode(big.read_bytes()), shown.read_bytes()


def frames(data: bytes) -> tuple[list[NDArray[np.int16]], list[int]]:
    """The frames of an animation and how long each is shown, in milliseconds."""
    opened = Image.open(io.BytesIO(data))
    found, durations = [], []
    for frame in ImageSequence.Iterator(opened):
        found.append(np.asarray(frame.convert("RGB")).astype(np.int16))
        durations.append(int(frame.info["duration"]))
    return found, durations


def apart(picture: NDArray[Any], other: NDArray[Any]) -> float:
    """Mean difference in brightness: both formats are coarse in the colours of single pixels."""
    return float(np.abs((picture.astype(float) - other) @ [0.299, 0.587, 0.114]).mean())


def deviation(picture: NDArray[np.int16]) -> float:
    """Between neighbours: large for noise, small for a photo."""
    return float(np.abs(np.diff(picture, axis=1)).mean())


@pytest.mark.parametrize("target", ["chain.webp", "chain.gif", "CHAIN.WEBP"])
def test_an_animation_goes_from_noise_to_the_result(target: str, photo: Path, model: str) -> None:
    made, data = run(photo, model, target, stage="x16")
    shown, durations = frames(data)
    assert len(shown) == 6 + 1
    assert all(frame.shape == made.shape == (22, 18, 3) for frame in shown)
    assert deviation(shown[0]) > 60
    assert apart(shown[-1], made) < 4 and apart(shown[0], made) > 30
    assert durations == [chain.STEP_MILLISECONDS] * 6 + [chain.RESULT_MILLISECONDS]


def test_a_cascade_shows_its_stages_one_after_another_at_one_size(photo: Path, model: str) -> None:
    made, data = run(photo, model, "chain.webp")
    shown, _ = frames(data)
    assert len(shown) == 2 * (6 + 1)
    assert all(frame.shape == made.shape == (44, 36, 3) for frame in shown)
    first, _ = frames(run(photo, model, "first.webp", stage="x16", force=True)[1])
    for index in (0, 3, 6):
        assert apart(shown[index][::2, ::2], first[index]) < 8, "the first stage's frames are those of that stage alone, doubled"
    assert deviation(shown[7]) > 60, "the second stage starts from noise again"
    assert apart(shown[-1], made) < 4


def test_a_grid_has_two_rows_a_stage(photo: Path, model: str) -> None:
    made, data = run(photo, model, "chain.png")
    grid = images.decode(data)
    cell_height, cell_width, gap = 44, 36, chain.GAP
    assert grid.shape == (4 * (cell_height + gap) + gap, 8 * (cell_width + gap) + gap, 3)

    def cell(row: int, column: int) -> NDArray[np.uint8]:
        top, left = gap + row * (cell_height + gap), gap + column * (cell_width + gap)
        return grid[top : top + cell_height, left : left + cell_width]

    assert np.array_equal(cell(3, 7), made), "the last row ends with the result"
    low = images.decode(photo.read_bytes())
    assert np.array_equal(cell(0, 0)[::4, ::4], low), "the first row begins with the low image"
    assert deviation(cell(0, 1).astype(np.int16)) > deviation(cell(1, 6).astype(np.int16))
    assert (cell(1, 0) == chain.BACKGROUND).all() and (cell(0, 7) == chain.BACKGROUND).all()


def test_many_steps_are_thinned_out_evenly_and_large_images_made_small(photo: Path, model: str) -> None:
    _, data = run(photo, model, "chain.webp", stage="x16", steps=100)
    shown, _ = frames(data)
    assert 12 <= len(shown) <= chain.FRAMES + 2
    kept = chain.Chain(stages=1)
    for call in range(101):
        tensor = torch.full((1, 1, 4, 1100), call / 50.0 - 1.0)
        kept.add("s", 0.5, tensor, tensor)
    (moments,) = kept.moments().values()
    levels = [int(noisy[0, 0, 0]) for noisy, _ in moments]
    assert levels[0] == 0 and levels[-1] == 255
    assert max(np.diff(levels)) - min(np.diff(levels)[:-1]) <= 2
    assert len(moments) <= chain.FRAMES + 1 and all(max(noisy.shape) == chain.SIDE for noisy, _ in moments)


def test_the_chain_changes_no_result(photo: Path, model: str) -> None:
    made, _ = run(photo, model, "chain.webp", seed=3)
    assert np.array_equal(made, load_model(model).upscale(images.decode(photo.read_bytes()), seed=3))


def test_tiles_show_the_whole_image(tmp_path: Path, model: str) -> None:
    """A low image of 40 x 24 is far over the 16 pixels of the first stage's training: its network works in tiles."""
    large = tmp_path / "large.png"
    large.write_bytes(images.encode(np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)))
    made, data = run(large, model, "chain.gif", stage="x16")
    shown, _ = frames(data)
    assert made.shape == (48, 80, 3) and len(shown) == 7 and all(frame.shape == made.shape for frame in shown)


REFUSED = [
    ({"chain": "chain.mp4"}, ".webp, .gif, .png"),
    ({"chain": "chain"}, ".webp, .gif, .png"),
    ({"chain": "big.png"}, "two names"),
    ({"chain": "old.webp"}, "--force"),
    ({"chain": "chain.webp", "samples": 2}, "one image and one sample"),
    ({"chain": "photo.png/chain.webp"}, "cannot be written"),
]


@pytest.mark.parametrize(("options", "says"), REFUSED)
def test_what_cannot_be_shown_is_refused_before_any_model_is_looked_for(
    options: dict[str, object], says: str, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photo.parent)
    Path("old.webp").write_bytes(b"old")
    before = sorted(Path().iterdir())
    with pytest.raises(BadInput, match=says):
        upscale.run([str(photo)], "big.png", model="no model is here", **options)  # type: ignore[arg-type]
    assert sorted(Path().iterdir()) == before and Path("old.webp").read_bytes() == b"old"


def test_several_images_and_one_chain_file(photo: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.png"
    other.write_bytes(photo.read_bytes())
    arguments = ["upscale", str(photo), str(other), "-o", f"{tmp_path}/out/", "--chain", f"{tmp_path}/chain.webp", "--model", "nowhere"]
    done = CliRunner().invoke(cli.main, arguments)
    assert done.exit_code == 2 and done.stderr.count("\n") == 1
    assert "chain.webp for 2 results" in done.stderr


def test_the_command_writes_both_files(photo: Path, model: str) -> None:
    big, shown = photo.with_name("big.png"), photo.with_name("chain.webp")
    arguments = ["upscale", str(photo), "-o", str(big), "--chain", str(shown), "--model", model, "--steps", "2"]
    done = CliRunner().invoke(cli.main, arguments)
    assert done.exit_code == 0, done.output
    assert f"wrote {shown}" in done.output and len(frames(shown.read_bytes())[0]) == 6
