"""Identities of the forward process and of each prediction, the posterior against Gaussian conditioning, the losses' weights."""

import math
from typing import get_args

import numpy as np
import pytest
import torch

from sr3_core.diffusion import process
from sr3_core.diffusion.process import Parameterisation, Prediction

GAMMAS = torch.tensor([0.01, 0.3, 0.7, 0.999], dtype=torch.float64)
PREDICTIONS = get_args(Prediction)
SIGMA_DATA = 0.5
ENDS = torch.tensor([1e-9, 1e-5, 1 - 1e-6, 1 - 1e-12], dtype=torch.float64)


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(4, 3, 5, 6, generator=generator, dtype=torch.float64) for _ in range(2))  # type: ignore[return-value]


def column(values: torch.Tensor) -> torch.Tensor:
    return values.view(-1, 1, 1, 1)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_perfect_prediction_gives_back_x0_and_eps(prediction: Prediction) -> None:
    x0, eps = pair()
    read = Parameterisation(prediction, SIGMA_DATA)
    noisy = process.diffuse(x0, eps, GAMMAS)
    output = read.target(x0, eps, GAMMAS)
    torch.testing.assert_close(read.to_x0(output, noisy, GAMMAS), x0)
    torch.testing.assert_close(read.to_eps(output, noisy, GAMMAS), eps)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_any_output_means_one_pair_of_x0_and_eps(prediction: Prediction) -> None:
    """Whatever the network says, x0 and eps read from it make up the noisy image again."""
    noisy, output = pair()
    read = Parameterisation(prediction, SIGMA_DATA)
    again = process.diffuse(read.to_x0(output, noisy, GAMMAS), read.to_eps(output, noisy, GAMMAS), GAMMAS)
    torch.testing.assert_close(again, noisy)


def test_edm_is_table_1_of_its_paper() -> None:
    """D(x) = c_skip x + c_out F(c_in x) in sigma, as Karras et al. write it, with x = noisy / sqrt(gamma)."""
    noisy, output = pair()
    sigma = column(((1 - GAMMAS) / GAMMAS).sqrt())
    x = noisy / column(GAMMAS.sqrt())
    skip = SIGMA_DATA**2 / (sigma**2 + SIGMA_DATA**2)
    out = sigma * SIGMA_DATA / (sigma**2 + SIGMA_DATA**2).sqrt()
    given = x / (sigma**2 + SIGMA_DATA**2).sqrt()
    read = Parameterisation("edm", SIGMA_DATA)
    torch.testing.assert_close(read.given(noisy, GAMMAS), given)
    torch.testing.assert_close(read.to_x0(output, noisy, GAMMAS), skip * x + out * output)
    weight = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2  # their loss on D is 1 on F
    per_x0 = read.loss_weight("none", GAMMAS, min_snr=5.0) / out.flatten() ** 2
    torch.testing.assert_close(per_x0, weight.flatten())


def test_edm_gives_and_wants_unit_variance() -> None:
    """For data of the deviation sigma_data, the network's input and target have variance 1 at every level."""
    generator = torch.Generator().manual_seed(1)
    x0 = SIGMA_DATA * torch.randn(4, 1, 500, 500, generator=generator, dtype=torch.float64)
    eps = torch.randn(4, 1, 500, 500, generator=generator, dtype=torch.float64)
    read = Parameterisation("edm", SIGMA_DATA)
    for values in (read.given(process.diffuse(x0, eps, GAMMAS), GAMMAS), read.target(x0, eps, GAMMAS)):
        torch.testing.assert_close(values.flatten(1).var(dim=1), torch.ones(4, dtype=torch.float64), rtol=0.02, atol=0)


def test_edm_of_unit_data_is_v_with_the_other_sign() -> None:
    x0, eps = pair()
    edm, v = Parameterisation("edm", 1.0), Parameterisation("v", 1.0)
    torch.testing.assert_close(edm.target(x0, eps, GAMMAS), -v.target(x0, eps, GAMMAS))
    torch.testing.assert_close(edm.given(x0, GAMMAS), x0)


@pytest.mark.parametrize("prediction", ["x0", "v", "edm"])
def test_without_signal_only_eps_is_lost(prediction: Prediction) -> None:
    """At gamma = 0 the others still say what x0 is."""
    x0, eps = pair()
    nothing = torch.zeros(4, dtype=torch.float64)
    read = Parameterisation(prediction, SIGMA_DATA)
    noisy = process.diffuse(x0, eps, nothing)
    torch.testing.assert_close(noisy, eps)
    torch.testing.assert_close(read.to_x0(read.target(x0, eps, nothing), noisy, nothing), x0)
    assert torch.isfinite(read.given(noisy, nothing)).all()


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


@pytest.mark.parametrize(("gamma", "gamma_next"), [(1e-9, 1e-8), (4.4e-5, 0.01), (0.2, 0.55), (0.5, 0.500001), (0.9, 0.999999)])
def test_posterior_is_the_conditional_of_the_joint_gaussian(gamma: float, gamma_next: float) -> None:
    """Given x0, (less noisy, noisy) is jointly Gaussian: means sqrt(gamma) x0, covariance from noisy = sqrt(alpha) less noisy + noise.

    Its conditional is m1 + C12 / C22 (noisy - m2), with variance C11 - C12^2 / C22 (SR3, eq. 5).
    """
    x0, noisy = 0.37, -1.2
    alpha = gamma / gamma_next
    own, shared, other = 1 - gamma_next, math.sqrt(alpha) * (1 - gamma_next), alpha * (1 - gamma_next) + (1 - alpha)
    mean = math.sqrt(gamma_next) * x0 + shared / other * (noisy - math.sqrt(gamma) * x0)
    variance = own - shared**2 / other
    levels = (torch.tensor([value], dtype=torch.float64) for value in (gamma, gamma_next))
    images = (torch.full((1, 1, 2, 2), value, dtype=torch.float64) for value in (x0, noisy))
    got_mean, got_variance = process.posterior(*images, *levels)
    np.testing.assert_allclose(got_mean.numpy(), mean, rtol=1e-8)
    np.testing.assert_allclose(got_variance.item(), variance, rtol=1e-5)  # a difference of nearly equal numbers here


def test_posterior_steps_lead_from_noise_to_the_forward_marginal() -> None:
    """Taking a posterior step from q(noisy | x0) gives q(less noisy | x0): mean and variance of the marginal follow exactly."""
    gamma, gamma_next, x0 = torch.tensor([0.2], dtype=torch.float64), torch.tensor([0.55], dtype=torch.float64), 0.4
    one, zero = torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    at_mean, variance = process.posterior(x0 * one, math.sqrt(0.2) * x0 * one, gamma, gamma_next)
    weight_noisy = process.posterior(zero, one, gamma, gamma_next)[0].item()
    assert at_mean.item() == pytest.approx(math.sqrt(0.55) * x0, rel=1e-12)
    assert weight_noisy**2 * (1 - 0.2) + variance.item() == pytest.approx(1 - 0.55, rel=1e-12)


def test_the_posterior_s_last_step_is_x0() -> None:
    x0, noisy = pair()
    mean, variance = process.posterior(x0, noisy, GAMMAS, torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(mean, x0)
    assert (variance == 0).all()


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


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("name", "on_x0"), [("snr", lambda snr: snr), ("min_snr", lambda snr: snr.clamp(max=5.0))])
def test_weights_are_one_weight_on_x0_whatever_is_predicted(prediction: Prediction, name: process.LossWeight, on_x0: object) -> None:
    """The squared error of x0 that an error in the output makes, times the weight on x0, is the weight on the output's squared error."""
    read = Parameterisation(prediction, SIGMA_DATA)
    one, zero = torch.ones(4, 1, 1, 1, dtype=torch.float64), torch.zeros(4, 1, 1, 1, dtype=torch.float64)
    error_of_x0 = (read.to_x0(one, zero, GAMMAS) - read.to_x0(zero, zero, GAMMAS)).flatten()
    expected = on_x0(process.snr(GAMMAS)) * error_of_x0**2  # type: ignore[operator]
    torch.testing.assert_close(read.loss_weight(name, GAMMAS, min_snr=5.0), expected)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", get_args(process.LossWeight))
def test_weights_and_targets_are_finite_at_both_ends(prediction: Prediction, name: process.LossWeight) -> None:
    read = Parameterisation(prediction, SIGMA_DATA)
    levels = ENDS if prediction == "eps" else torch.cat([torch.zeros(1, dtype=torch.float64), ENDS[1:]])
    x0, eps = (values.float() for values in pair())
    assert torch.isfinite(read.loss_weight(name, levels, min_snr=5.0)).all()
    output = torch.zeros_like(x0, requires_grad=True)
    noisy = process.diffuse(x0, eps, levels)
    error = (output - read.target(x0, eps, levels)).square().mean(dim=(1, 2, 3))
    (error * read.loss_weight(name, levels, min_snr=5.0)).sum().backward()
    assert output.grad is not None and torch.isfinite(output.grad).all()
    for values in (read.given(noisy, levels), read.to_x0(output, noisy, levels), read.to_eps(output, noisy, levels)):
        assert torch.isfinite(values).all()


def test_dream_moves_the_noise_away_from_what_is_known() -> None:
    """A network that is right changes nothing; at full noise the whole error is added, near the clean image none (Zhou et al. 2024)."""
    eps, predicted = pair()
    torch.testing.assert_close(process.rectified(eps, eps, GAMMAS, power=1.0), eps)
    levels = torch.tensor([0.0, 0.75, 0.75, 1 - 1e-12], dtype=torch.float64)
    moved = (process.rectified(eps, predicted, levels, power=2.0) - eps) / (eps - predicted)
    torch.testing.assert_close(moved[:, 0, 0, 0], torch.tensor([1.0, 0.25, 0.25, 1e-12], dtype=torch.float64), rtol=1e-3, atol=1e-9)
