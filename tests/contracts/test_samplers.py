"""What every sampler keeps on every grid, alone and inside the predictor: a new one of either is tested by being named in its table."""

from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sr3_core import config
from sr3_core.artifacts.bundle import ModelBundle
from sr3_core.cascade import Cascade
from sr3_core.config import Stage
from sr3_core.diffusion import grids, process
from sr3_core.diffusion.predictor import Predictor, thresholded
from sr3_core.diffusion.samplers import SAMPLERS, network_calls
from sr3_core.diffusion.schedules import Levels
from sr3_core.errors import BadInput
from sr3_core.objectives.diffusion import Objective

STEPS = 5
GRIDS: dict[str, dict[str, Any]] = {
    "time": {},
    "log_snr": {"start": -3.5, "end": 3.0},
    "karras": {},
    "betas": {"betas": {"start": 1e-4, "end": 0.1, "steps": 100}},
    "given": {"gammas": [0.001, 0.01, 0.2, 0.9, 0.999]},
}
ALL = [(sampler, grid) for sampler in SAMPLERS for grid in GRIDS]
ZERO_TERMINAL = {"levels": {"schedule": {"rescale_zero_terminal_snr": True}}}


def test_every_name_of_the_options_is_covered() -> None:
    fields = grids.Sampling.model_fields
    assert set(get_args(fields["sampler"].annotation)) == set(SAMPLERS)
    assert set(get_args(fields["grid"].annotation)) == set(GRIDS)


def stage(*, high: int = 8, low: int | None = 4, objective: dict[str, Any] | None = None, name: str = "s", **sampling: Any) -> Stage:
    values = {
        "name": name, "low": low, "high": high,
        "model": {"name": "unet", "options": {"channels": 8, "multipliers": [1], "blocks": 1, "middle_attention": False}},
        "objective": {"name": "diffusion", "options": objective or {}},
        "training": {"images": 8, "global_batch": 8, "micro_batch": 8, "checkpoint_images": 8, "log_images": 8, "seed": 2},
        "sampling": {"steps": STEPS, **sampling},
    }  # fmt: skip
    return config.parse(Stage, values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("sampler", "grid"), ALL)
def test_a_sampler_as_a_function(sampler: str, grid: str, dtype: torch.dtype) -> None:
    """Calls counted, levels in order, the dtype kept, and the same noise gives the same sample, which is what the last call predicted."""
    made = stage(sampler=sampler, grid=grid, **GRIDS[grid])
    gammas = grids.sampling_grid(made, Levels(), grids.sampling_options(made, {}))
    random = torch.Generator().manual_seed(1)
    drawn = [torch.randn(2, 3, 4, 4, generator=random, dtype=dtype) for _ in range(STEPS + 1)]
    x0 = torch.rand(2, 3, 4, 4, generator=random, dtype=dtype) * 2 - 1
    seen: list[float] = []
    predicted: list[Tensor] = []

    def denoise(y: Tensor, gamma: float) -> Tensor:
        assert y.dtype == dtype and torch.isfinite(y).all()
        seen.append(gamma)
        predicted.append(x0 + 0.2 * torch.tanh(y))  # it depends on its input, so that another path is another sample
        return predicted[-1]

    first = SAMPLERS[sampler](denoise, drawn[-1], gammas, lambda step: drawn[step])
    assert len(seen) == network_calls(sampler, gammas)
    assert seen == sorted(seen) and set(seen) == set(gammas[:-1])
    assert torch.equal(first, predicted[-1]) and first.dtype == dtype
    assert torch.equal(first, SAMPLERS[sampler](denoise, drawn[-1], gammas, lambda step: drawn[step]))
    other = SAMPLERS[sampler](denoise, drawn[0], gammas, lambda step: drawn[step])
    assert not torch.equal(first, other)


@pytest.mark.parametrize("first", [0.0, 0.002])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_and_two_steps(sampler: str, first: float) -> None:
    x0 = torch.tensor([[0.25, -0.75]])
    for gammas in ([first, 1.0], [first, 0.5, 1.0]):
        calls: list[float] = []

        def denoise(y: Tensor, gamma: float, calls: list[float] = calls) -> Tensor:
            calls.append(gamma)
            return x0

        out = SAMPLERS[sampler](denoise, torch.ones(1, 2), gammas, lambda step: torch.ones(1, 2))
        assert torch.equal(out, x0)
        assert len(calls) == network_calls(sampler, gammas)


class KnowsTheAnswer(nn.Module):
    """A network with no error: it knows ``x0`` (N, C, H, W) and outputs what the objective asks for; it remembers what it was given."""

    def __init__(self, x0: Tensor, read: process.Parameterisation) -> None:
        super().__init__()
        self.x0, self.read = nn.Parameter(x0), read
        self.calls: list[tuple[float, Tensor]] = []

    def forward(self, noisy: Tensor, low: Tensor | None, gamma: Tensor, **extra: Any) -> Tensor:
        if self.read.prediction == "edm":
            noisy = noisy / self.read.given(torch.ones_like(noisy), gamma)
        self.calls.append((float(gamma[0]), noisy))
        signal, noise = process.coefficients(gamma, noisy)
        return self.read.target(self.x0, (noisy - signal * self.x0) / noise, gamma)


class Wrong(nn.Module):
    """A network of elementwise operations with an error that depends on all it is given; items do not meet, to the last bit."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7))

    def forward(self, noisy: Tensor, low: Tensor | None, gamma: Tensor, **extra: Any) -> Tensor:
        return torch.tanh(self.weight * noisy + 0.3 * (0.0 if low is None else low) + gamma.to(noisy.dtype).view(-1, 1, 1, 1))


def knowing(made: Stage) -> tuple[Predictor, KnowsTheAnswer]:
    """The objective's own predictor around such a network, with images of two items."""
    objective = Objective(made, {})
    x0 = torch.rand(2, 3, made.high, made.high, generator=torch.Generator().manual_seed(3)) * 1.8 - 0.9
    network = KnowsTheAnswer(x0, objective.options.parameterisation)
    return objective.predictor(network, degradation="bicubic"), network


def test_a_cuda_graph_is_refused_where_there_is_no_cuda() -> None:
    """What it does where there is one, tests/benchmarks/gpu.py holds against the plain calls."""
    predictor, network = knowing(stage(low=None, cuda_graph=True))
    with pytest.raises(BadInput) as refused:
        predictor.predict(None, seeds=np.arange(2))
    assert str(refused.value) == (
        "bad input: sampling.cuda_graph for a network on cpu; allowed: a network on a CUDA GPU; "
        "do: set sampling.cuda_graph=false, or sample on a GPU"
    )
    assert network.calls == []
    assert predictor.predict(None, seeds=np.arange(2), cuda_graph=False).shape[0] == 2


@pytest.mark.parametrize("prediction", ["eps", "v", "edm"])
@pytest.mark.parametrize(("sampler", "grid"), ALL)
def test_the_callback_hears_of_every_network_call(sampler: str, grid: str, prediction: str) -> None:
    made = stage(low=None, objective={"prediction": prediction}, sampler=sampler, grid=grid, **GRIDS[grid])
    predictor, network = knowing(made)
    heard: list[tuple[float, Tensor, Tensor]] = []
    out = predictor.predict(None, seeds=[1, 2], on_prediction=lambda gamma, noisy, clean: heard.append((gamma, noisy, clean)))
    gammas = grids.sampling_grid(made, Levels(), grids.sampling_options(made, {}))
    assert len(heard) == len(network.calls) == network_calls(sampler, gammas)
    levels = [gamma for gamma, _, _ in heard]
    assert levels == sorted(levels) and set(levels) == set(gammas[:-1])
    for (gamma, noisy, clean), (given_gamma, given) in zip(heard, network.calls, strict=True):
        assert gamma == given_gamma
        torch.testing.assert_close(noisy, given, rtol=1e-5, atol=1e-5)
        assert clean.shape == (2, 3, 8, 8) and clean.abs().max() <= 1
    assert torch.equal(out, heard[-1][2])
    torch.testing.assert_close(out, network.x0.detach(), rtol=1e-3, atol=1e-3)
    assert torch.equal(out, predictor.predict(None, seeds=[1, 2])), "hearing changes nothing, and a seed gives one sample"


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_callback_of_a_residual_target_hears_images(sampler: str) -> None:
    """up + c y for the noisy state, which is up itself plus c times unit noise at first."""
    made = stage(objective={"target": "residual", "residual_scale": 0.2, "prediction": "v"}, sampler=sampler)
    predictor = Objective(made, {}).predictor(Wrong(), degradation="bicubic")
    low = torch.full((2, 3, 4, 4), 0.5)
    heard: list[tuple[float, Tensor, Tensor]] = []
    out = predictor.predict(low, seeds=[1, 2], projection=2, on_prediction=lambda *told: heard.append(told))
    deviation = (heard[0][1] - 0.5) / 0.2
    assert deviation.mean().abs() < 0.15 and deviation.std() == pytest.approx(1.0, abs=0.15)
    assert torch.equal(out, predictor.predict(low, seeds=[1, 2], projection=2))
    torch.testing.assert_close(out, heard[-1][2])


@pytest.mark.parametrize(("sampler", "grid"), ALL)
def test_an_item_s_sample_depends_on_its_seed_alone(sampler: str, grid: str) -> None:
    made = stage(objective={"prediction": "v"}, sampler=sampler, grid=grid, **GRIDS[grid])
    predictor = Objective(made, {}).predictor(Wrong(), degradation="bicubic")
    low = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(4)) * 2 - 1
    together = predictor.predict(low, seeds=np.array([5, 6, 7]))
    assert torch.isfinite(together).all()
    for item, seed in enumerate((5, 6, 7)):
        assert torch.equal(predictor.predict(low[item : item + 1], seeds=[seed]), together[item : item + 1])
    assert not torch.equal(predictor.predict(low, seeds=np.array([5, 6, 8]))[2], together[2])


def test_every_step_draws_its_own_unit_noise() -> None:
    """Read off the ancestral chain, y' = (y - b / sqrt(1 - s) eps) / sqrt(a) + sqrt(b) z: start and each z are unit and uncorrelated."""
    predictor, network = knowing(stage(low=None, high=32, objective={"prediction": "v"}))
    predictor.predict(None, seeds=[1, 2])
    x0 = network.x0.detach().double()
    drawn = [network.calls[0][1].double()]
    for (s, y), (t, after) in pairwise(network.calls):
        a, eps = s / t, (y.double() - s**0.5 * x0) / (1 - s) ** 0.5
        drawn.append((after.double() - (y.double() - (1 - a) / (1 - s) ** 0.5 * eps) / a**0.5) / (1 - a) ** 0.5)
    correlation = np.corrcoef(np.stack([noise.flatten().numpy() for noise in drawn]))
    assert np.abs(correlation - np.eye(STEPS)).max() < 0.06  # 6,144 numbers: 4.7 standard deviations
    assert [float(noise.std()) for noise in drawn] == pytest.approx([1.0] * STEPS, abs=0.05)


@pytest.mark.parametrize("first", [0.0, 0.002])
def test_ddim_of_eta_1_is_the_ancestral_sampler_with_the_posterior_s_variance(first: float) -> None:
    """Step for step, on the same noise: Song et al. 2021, section 4.1. With SR3's variance, or another eta, it is not."""
    random = torch.Generator().manual_seed(5)
    gammas = [first, *grids.log_snr_grid(9, -2.5, 4.0).tolist()]
    drawn = [torch.randn(2, 3, 4, 4, generator=random, dtype=torch.float64) for _ in range(len(gammas))]

    def sample(sampler: str, **options: Any) -> Tensor:
        return SAMPLERS[sampler](lambda y, gamma: torch.tanh(y + gamma), drawn[-1], gammas, lambda step: drawn[step], **options)

    expected = sample("ancestral", posterior_variance=True)
    torch.testing.assert_close(sample("ddim", eta=1.0), expected, rtol=1e-11, atol=1e-12)
    assert min(float((other - expected).abs().max()) for other in (sample("ddim", eta=0.9), sample("ancestral"))) > 1e-3


def test_options_that_the_sampler_does_not_read_are_said() -> None:
    """A sampler is exchanged by its name: what the one before it read is left alone, and said."""
    made = Objective(stage(sampler="ddim", eta=0.5), {})
    assert made.notes == () == made.sampling_notes({"sampler": "heun", "eta": 0.0})
    assert made.sampling_notes({"sampler": "heun"}) == ("sampling.eta=0.5 is set, but sampler heun does not read it",)
    both = made.sampling_notes({"sampler": "dpmpp_2m", "order": 1, "posterior_variance": True})
    assert [note.split("=")[0] for note in both] == ["sampling.eta", "sampling.posterior_variance"]
    assert Objective(stage(sampler="ancestral", order=3), {}).notes == ("sampling.order=3 is set, but sampler ancestral does not read it",)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("levels", [{}, ZERO_TERMINAL["levels"]])
def test_the_objective_counts_the_calls_that_are_made(sampler: str, levels: dict[str, Any]) -> None:
    made = stage(low=None, objective={"prediction": "v", "levels": levels}, sampler=sampler)
    predictor, network = knowing(made)
    for changes in ({}, {"steps": 1}, {"grid": "given", "gammas": [0.001, 0.2, 0.9], "steps": 3}, {"grid": "karras", "steps": 2}):
        network.calls.clear()
        predictor.predict(None, seeds=[1, 2], **changes)
        assert Objective(made, {}).network_calls(changes) == len(network.calls)


@pytest.mark.parametrize("prediction", ["v", "x0", "edm"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_zero_terminal_snr(sampler: str, prediction: str) -> None:
    """A training that ends without signal is sampled from gamma 0, by every sampler and every prediction but eps."""
    for grid in ("time", "log_snr", "karras"):
        made = stage(low=None, objective={"prediction": prediction, **ZERO_TERMINAL}, sampler=sampler, grid=grid)
        predictor, network = knowing(made)
        out = predictor.predict(None, seeds=[1, 2])
        assert network.calls[0][0] == 0.0 and len(network.calls) == network_calls(sampler, [0.0] * STEPS + [1.0])
        torch.testing.assert_close(out, network.x0.detach(), rtol=1e-3, atol=1e-3)


def test_eps_prediction_cannot_start_at_gamma_0() -> None:
    with pytest.raises(BadInput, match="prediction to v"):
        Objective(stage(objective={"prediction": "eps", **ZERO_TERMINAL}), {})
    waived = {"prediction": "eps", "schedule_guard": "published", "schedule_guard_reason": "a test of what the guard lets through"}
    made = stage(objective=waived, grid="given", gammas=[0.0, 0.1, 0.5, 0.8, 0.9])
    with pytest.raises(BadInput, match="gamma 0 with eps prediction"):
        Objective(made, {})


def by_numpy(image: np.ndarray[Any, Any], p: float) -> np.ndarray[Any, Any]:
    """Imagen's formula, image by image."""
    out: list[np.ndarray[Any, Any]] = []
    for one in image:
        s = max(1.0, float(np.quantile(np.abs(one), p)))
        out.append(np.clip(one, -s, s) / s)
    return np.stack(out)


@pytest.mark.parametrize("p", [0.5, 0.9, 0.995, 1.0])
def test_dynamic_thresholding_is_imagen_s(p: float) -> None:
    random = np.random.default_rng(0)
    image = random.normal(size=(3, 3, 9, 7)) * np.array([0.1, 1.5, 40.0]).reshape(3, 1, 1, 1)
    out = thresholded(torch.from_numpy(image), p).numpy()
    assert out == pytest.approx(by_numpy(image, p), rel=1e-12)
    assert np.array_equal(out[0], image[0]), "an image within [-1, 1] stays as it is"
    assert np.abs(out).max() <= 1.0


@pytest.mark.parametrize("target", [{}, {"target": "residual", "residual_scale": 3.0}])
def test_dynamic_thresholding_acts_on_the_image(target: dict[str, Any]) -> None:
    """For a residual target too it is the image that is scaled, not the residual."""
    made = stage(objective={"prediction": "eps", **target}, clip=False, steps=1, grid="log_snr", start=-2.0)
    predictor = Objective(made, {}).predictor(Wrong(), degradation="bicubic")
    low = torch.linspace(-1, 1, 2 * 3 * 16).view(2, 3, 4, 4)
    heard: list[Tensor] = []
    for options in ({}, {"dynamic_threshold": 0.9}):
        out = predictor.predict(low, seeds=[1, 2], on_prediction=lambda *told: heard.append(told[2]), **options)
    free, held = (tensor.numpy() for tensor in heard)
    assert np.abs(free).max() > 1.2
    assert held == pytest.approx(by_numpy(free, 0.9), abs=1e-5)
    assert out.numpy() == pytest.approx(held, abs=1e-5)


def test_bundles_and_cascades_pass_the_callback_on(tmp_path: Path) -> None:
    """It is no sampling option: each stage's network calls are heard in turn, and the samples are those without it."""
    bundles: list[ModelBundle] = []
    for made in (stage(name="a", low=4, high=8), stage(name="b", low=8, high=16, sampler="heun")):
        network = Objective(made, {}).players()["denoiser"]
        uri = str(tmp_path / made.name)
        ModelBundle.save(uri, stage=made, network_state=network.state_dict(), measured={}, degradation="bicubic", lineage={})
        bundles.append(ModelBundle.load(uri))
    low = torch.zeros(1, 3, 4, 4)
    heard: list[tuple[float, Tensor, Tensor]] = []
    cascade = Cascade(bundles)
    out = cascade.predict(low, seeds=[7], on_prediction=lambda *told: heard.append(told))
    assert [told[2].shape[-1] for told in heard] == [8] * STEPS + [16] * (2 * STEPS - 1)
    assert torch.equal(out, cascade.predict(low, seeds=[7]))
    single: list[float] = []
    bundles[0].predict(low, seeds=np.array([7]), steps=3, on_prediction=lambda gamma, noisy, clean: single.append(gamma))
    assert len(single) == 3
    with pytest.raises(BadInput, match=r"unknown key.*on_predicton"):
        bundles[0].predict(low, seeds=np.array([7]), on_predicton=print)
