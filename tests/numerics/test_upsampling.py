"""How low images reach the high grid: equal to the libraries by which other codes do it, and one meaning from training to prediction."""

from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from sr3_core import config, images
from sr3_core.artifacts.bundle import ModelBundle
from sr3_core.config import Stage
from sr3_core.data.loader import Batch
from sr3_core.diffusion.upsampling import Upsampling, upsampled
from sr3_core.errors import BadInput
from sr3_core.objectives.diffusion import Objective
from sr3_core.resample import resample

EVERY: tuple[Upsampling, ...] = get_args(Upsampling)
SIZES = [((16, 16), (128, 128)), ((5, 7), (20, 28)), ((13, 9), (39, 27)), ((1, 3), (4, 12)), ((8, 8), (8, 8))]


def pictures(height: int, width: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Three (3, height, width, 3) uint8: smooth, noise, and black and white alone, which rings most."""
    random = np.random.default_rng(height * width)
    smooth = np.linspace(0, 255, height * width * 3).reshape(height, width, 3)
    return np.stack([smooth, random.integers(0, 256, smooth.shape), random.choice([0, 255], smooth.shape)]).astype(np.uint8)


def batch_of(levels: np.ndarray[Any, np.dtype[np.uint8]]) -> Tensor:
    return torch.from_numpy(np.stack([images.to_unit(one) for one in levels]))


@pytest.mark.parametrize(("before", "after"), SIZES)
def test_8_bits_are_pillow_s_to_the_last(before: tuple[int, int], after: tuple[int, int]) -> None:
    given = pictures(*before)
    got = upsampled(batch_of(given), torch.empty(3, 3, *after), "bicubic_8bit")
    expected = np.stack([np.asarray(Image.fromarray(one).resize((after[1], after[0]), Image.Resampling.BICUBIC)) for one in given])
    np.testing.assert_array_equal(np.stack([images.from_unit(one.numpy()) for one in got]), expected)
    assert torch.equal(got, batch_of(expected)), "a level has the value that it has in every other picture"


@pytest.mark.parametrize(("before", "after"), SIZES)
def test_sharp_and_clipped_is_torch_s_upsample_and_a_clip(before: tuple[int, int], after: tuple[int, int]) -> None:
    """As novwaul/SR3 writes it, for images in [0, 1]."""
    given = batch_of(pictures(*before))
    scale = after[0] / before[0]
    expected = torch.clip(torch.nn.Upsample(scale_factor=scale, mode="bicubic")((given + 1) / 2), 0.0, 1.0) * 2 - 1
    torch.testing.assert_close(upsampled(given, expected, "bicubic_sharp_clipped"), expected, rtol=0, atol=1e-6)


def test_they_differ_where_there_are_edges() -> None:
    low = batch_of(pictures(8, 8))[1:]
    made = {how: upsampled(low, torch.empty(2, 3, 32, 32), how) for how in EVERY}
    assert torch.equal(made["bicubic"], resample(low, (32, 32), "bicubic")) and made["bicubic"].abs().max() > 1.05
    for how in EVERY[1:]:
        assert made[how].abs().max() == 1.0
        assert (made[how] - made["bicubic"].clamp(-1, 1)).abs().max() > (0.003 if how == "bicubic_8bit" else 0.05)


@pytest.mark.parametrize("how", EVERY)
def test_an_item_is_upsampled_by_itself_whatever_surrounds_it(how: Upsampling) -> None:
    low = batch_of(pictures(6, 10))
    like = torch.empty(3, 3, 24, 40)
    whole = upsampled(low, like, how)
    assert whole.dtype == torch.float32 and whole.shape == like.shape
    for item in range(3):
        assert torch.equal(upsampled(low[item : item + 1], like, how), whole[item : item + 1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(upsampled(low, like, how), whole), "half precision is for networks"
    with pytest.raises(BadInput, match="no low image"):
        upsampled(None, like, how)


def stage(how: str | None, *, low: int | None = 4, **options: Any) -> Stage:
    values = {
        "name": "s", "low": low, "high": 16,
        "model": {"name": "unet", "options": {"channels": 8, "multipliers": [1], "blocks": 1, "middle_attention": False}},
        "objective": {"name": "diffusion", "options": {"prediction": "v", **options, **({"upsampling": how} if how else {})}},
        "training": {"images": 8, "global_batch": 8, "micro_batch": 8, "checkpoint_images": 8, "log_images": 8},
        "sampling": {"steps": 2},
    }  # fmt: skip
    return config.parse(Stage, values)


class Heard:
    """Batches of one picture in two halves, black and white, and what a network that answers 0 was given for them."""

    def __init__(self) -> None:
        high = torch.ones(2, 3, 16, 16)
        high[..., :7] = -1.0
        self.batch_ = Batch(high=high, low=resample(high, (4, 4), "box"), sample_index=np.arange(2), keys=("",) * 2, labels=None)
        self.low: list[Tensor | None] = []
        self.noisy: list[Tensor] = []

    def batch(self, first: int, count: int) -> Batch:
        return self.batch_

    def network(self, noisy: Tensor, low: Tensor | None, gamma: Tensor, **_: Any) -> Tensor:
        self.low.append(low)
        self.noisy.append(noisy)
        return torch.zeros_like(noisy)


def no_residual(network: nn.Module, noisy: Tensor, up: Tensor | None, gamma: Tensor, labels: Tensor | None) -> Tensor:
    return torch.zeros_like(noisy)


@pytest.mark.parametrize("how", [None, *EVERY])
def test_training_measure_and_prediction_mean_the_same_image(how: Upsampling | None, tmp_path: Any) -> None:
    """What the network sees, what the residual is taken against and what it is added to are the one upsampled image; a bundle keeps it."""
    heard = Heard()
    low = heard.batch_.low
    assert low is not None
    up = upsampled(low, heard.batch_.high, how or "bicubic")
    made = stage(how, target="residual")
    measured = Objective.measure(made, heard)  # pyright: ignore[reportArgumentType] - all that measuring reads of the loader
    residual = heard.batch_.high - up
    assert measured["residual_scale"] == pytest.approx(2 * float(residual.double().square().mean().sqrt()))
    objective = Objective(made, measured)
    objective.loss("denoiser", {"denoiser": heard.network}, heard.batch_)
    assert heard.low[0] is not None and torch.equal(heard.low[0], up)
    other = Objective(stage(how, target="residual", residual_scale=2 * measured["residual_scale"]), {})
    other.loss("denoiser", {"denoiser": heard.network}, heard.batch_)
    levels = objective.options.levels
    gamma = torch.from_numpy(levels.draw(levels.uniform(np.arange(2), seed=0, global_batch=8))).float().sqrt().view(2, 1, 1, 1)
    half = gamma * residual / (2 * measured["residual_scale"])  # what the two scales change in the noisy state
    torch.testing.assert_close(heard.noisy[0] - heard.noisy[1], half, rtol=1e-4, atol=1e-5)
    ModelBundle.save(
        str(tmp_path / "b"), stage=made, network_state=objective.players()["denoiser"].state_dict(), measured=measured,
        degradation="bicubic", lineage={},
    )  # fmt: skip
    loaded = ModelBundle.load(str(tmp_path / "b"))
    told: list[Tensor] = []
    loaded.network.register_forward_pre_hook(lambda module, args: told.append(args[1]))
    out = loaded.predict(low, seeds=np.array([1, 2]))
    assert all(torch.equal(each, up) for each in told) and len(told) == 2
    answer_0 = objective.predictor(objective.players()["denoiser"], degradation="bicubic")
    answer_0.estimate = no_residual
    assert torch.equal(answer_0.predict(low, seeds=np.array([1, 2])), up.clamp(-1, 1)) and out.shape == up.shape


@pytest.mark.parametrize("how", EVERY)
def test_projection_agrees_with_the_low_image_whatever_the_upsampling(how: Upsampling) -> None:
    """Its correction is a difference of both signs, smaller than 8 bits can say: neither rounded nor clipped."""
    made = Objective(stage(how), {})
    predictor = made.predictor(made.players()["denoiser"], degradation="bicubic")
    low = batch_of(pictures(4, 4))[:1] * 0.4

    def error(passes: int) -> float:
        out = predictor.predict(low, seeds=np.array([1]), projection=passes)
        return float((resample(out, (4, 4), "bicubic") - low).abs().max())

    assert error(30) < 1e-3 < error(0)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"how": "bicubic", "low": None}, "upsampling without a low image"),
        ({"how": "bicubic_8bit", "low": None}, "upsampling without a low image"),
        ({"how": "bilinear"}, "upsampling='bilinear'"),
        ({"how": "bicubic_8bit", "low_augmentation": {"noise": [0.1, 0.2]}}, "cuts off what low_augmentation.noise adds"),
    ],
)
def test_values_that_make_no_sense_are_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        Objective(stage(**values), {})
