"""Identities of the forward process, the posterior against Bayes' rule, and the moments of the training levels."""

import math

import numpy as np
import pytest
import torch

from sr3_core.diffusion import grids, process, schedules

GAMMAS = torch.tensor([0.01, 0.3, 0.7, 0.999], dtype=torch.float64)


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(4, 3, 5, 6, generator=generator, dtype=torch.float64) for _ in range(2))  # type: ignore[return-value]


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_a_perfect_prediction_gives_back_x0(prediction: process.Prediction) -> None:
    x0, eps = pair()
    noisy = process.diffuse(x0, eps, GAMMAS)
    output = process.target(prediction, x0, eps, GAMMAS)
    torch.testing.assert_close(process.to_x0(prediction, output, noisy, GAMMAS), x0)


def test_posterior_is_bayes_rule() -> None:
    """q(less noisy | noisy, x0) is proportional to q(noisy | less noisy) q(less noisy | x0): precisions and weighted means add."""
    x0, noisy = (torch.tensor([[[[value]]]], dtype=torch.float64) for value in (0.4, -0.7))
    gamma, gamma_next = torch.tensor([0.2], dtype=torch.float64), torch.tensor([0.55], dtype=torch.float64)
    alpha = 0.2 / 0.55
    precision_step, precision_prior = alpha / (1 - alpha), 1 / (1 - 0.55)
    mean = (math.sqrt(alpha) / (1 - alpha) * -0.7 + precision_prior * math.sqrt(0.55) * 0.4) / (precision_step + precision_prior)
    got_mean, got_variance = process.posterior(x0, noisy, gamma, gamma_next)
    assert got_mean.item() == pytest.approx(mean, rel=1e-12)
    assert got_variance.item() == pytest.approx(1 / (precision_step + precision_prior), rel=1e-12)


def test_two_small_steps_are_one_large_step() -> None:
    """Diffusing to gamma_1, then by alpha to gamma_1 * alpha has the moments of diffusing there at once."""
    first, alpha = 0.8, 0.6
    signal = math.sqrt(alpha) * math.sqrt(first)
    variance = alpha * (1 - first) + (1 - alpha)
    one_signal, one_noise = process.coefficients(torch.tensor([first * alpha]), torch.zeros(1, 1, 1, 1, dtype=torch.float64))
    assert one_signal.item() == pytest.approx(signal, rel=1e-7)
    assert one_noise.item() ** 2 == pytest.approx(variance, rel=1e-7)


def test_coefficients_are_formed_in_float64() -> None:
    """1 - gamma of a gamma next to 1 vanishes in float32; the noise coefficient must not."""
    gamma = torch.tensor([1 - 1e-10], dtype=torch.float64)
    _, noise = process.coefficients(gamma, torch.zeros(1, 1, 1, 1))
    assert noise.item() == pytest.approx(1e-5, rel=1e-4)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_min_snr_weights_are_one_weight_on_x0(prediction: process.Prediction) -> None:
    """Whatever is predicted, the weight on the squared error of x0 is min(SNR, 5)."""
    per_x0 = {"eps": process.snr(GAMMAS), "x0": torch.ones(4), "v": process.snr(GAMMAS) + 1}[prediction]
    torch.testing.assert_close(process.loss_weight(prediction, GAMMAS, 5.0) * per_x0, process.snr(GAMMAS).clamp(max=5.0))


def test_terminal_gamma_of_the_published_schedule() -> None:
    """Linear 1e-6 -> 1e-2 leaves 4.4e-5 of the signal at T = 2000 and .605 at T = 100 (why fewer training steps give garbage)."""
    assert schedules.Schedule().gammas()[-1] == pytest.approx(4.4e-5, rel=0.02)
    assert schedules.Schedule(steps=100).gammas()[-1] == pytest.approx(0.605, rel=0.002)


def test_half_log_snr_and_gamma_are_inverse() -> None:
    values = np.linspace(-9, 9, 37)
    np.testing.assert_allclose(schedules.half_log_snr(schedules.gamma_of(values)), values, atol=1e-7)


def test_piecewise_levels_have_the_moments_of_the_paper() -> None:
    """t uniform, then gamma uniform between the table's neighbours: mean and second moment follow from the table alone."""
    schedule = schedules.Schedule(steps=20, end=0.2)
    table = schedule.gammas()
    uniform = np.random.default_rng(0).random((200_000, 2))
    drawn = schedules.Levels(name="piecewise", schedule=schedule).draw(uniform)
    low, high = table[1:], table[:-1]
    mean = np.mean((low + high) / 2)
    second = np.mean((low**2 + low * high + high**2) / 3)
    assert drawn.min() >= table[-1] and drawn.max() <= 1.0
    assert drawn.mean() == pytest.approx(mean, abs=4 * math.sqrt((second - mean**2) / 200_000))
    assert (drawn**2).mean() == pytest.approx(second, rel=0.01)


def test_log_snr_levels_are_uniform() -> None:
    uniform = np.random.default_rng(1).random((50_000, 2))
    drawn = schedules.half_log_snr(schedules.Levels(name="log_snr", low=-3, high=2).draw(uniform))
    assert drawn.min() >= -3.0001 and drawn.max() <= 2.0001
    assert drawn.mean() == pytest.approx(-0.5, abs=0.03)
    assert drawn.std() == pytest.approx(5 / math.sqrt(12), rel=0.02)


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_grids_ascend_and_end_at_one(steps: int) -> None:
    for grid in (grids.time_grid(steps, schedules.Schedule()), grids.log_snr_grid(steps, -4.0, 4.5)):
        assert len(grid) == steps + 1
        assert grid[-1] == 1.0
        assert (np.diff(grid) > 0).all()
    assert grids.time_grid(steps, schedules.Schedule())[0] == pytest.approx(schedules.Schedule().gammas()[-1])
