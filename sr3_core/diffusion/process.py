"""The forward process and what a network's output means in it. ``gamma`` broadcasts over (N, C, H, W) as float64 (N,).

noisy = sqrt(gamma) x0 + sqrt(1 - gamma) eps (SR3, eq. 4); v = sqrt(gamma) eps - sqrt(1 - gamma) x0 (Salimans & Ho 2022).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Prediction = Literal["eps", "x0", "v", "edm"]
LossWeight = Literal["none", "snr", "min_snr"]


@dataclass(frozen=True)
class Parameterisation:
    """What a network is given and what its output means: eps, x0, v, or the F of EDM's preconditioning (Karras et al. 2022, table 1).

    EDM's D(x) = c_skip x + c_out F(c_in x), x = noisy / sqrt(gamma) and sigma^2 = (1 - gamma) / gamma, with ``sigma_data`` the standard
    deviation of x0; put in gamma, with s = sigma_data and d^2 = 1 - gamma + gamma s^2:
        c_in x = noisy / d        c_skip x = sqrt(gamma) s^2 noisy / d^2        c_out = sqrt(1 - gamma) s / d
    which holds at gamma = 0 too. At s = 1 F is -v. c_noise = ln(sigma) / 4 is the log-SNR times -1/8: a network fed log-SNR with an
    embedding scale of 1/8 has it up to its sign, within the [-10, 10] that it clamps the log-SNR to: sigma from .0067 to 148, where EDM
    samples from .002 to 80. EDM's loss (l2, unweighted on F) and levels (log_normal) are the objective's to choose. eps needs gamma > 0.
    """

    prediction: Prediction
    sigma_data: float

    def given(self, noisy: Tensor, gamma: Tensor) -> Tensor:
        """What the network gets for ``noisy`` (N, C, H, W): the same, scaled to unit variance for EDM."""
        return noisy / self._deviation(gamma, noisy) if self.prediction == "edm" else noisy

    def target(self, x0: Tensor, eps: Tensor, gamma: Tensor) -> Tensor:
        """What the network should output, (N, C, H, W)."""
        if self.prediction == "eps":
            return eps
        if self.prediction == "x0":
            return x0
        signal, noise = coefficients(gamma, x0)
        if self.prediction == "v":
            return signal * eps - noise * x0
        # (x0 - c_skip x) / c_out, written without the division by sqrt(1 - gamma), which vanishes at gamma = 1
        return (noise * x0 - signal * self.sigma_data**2 * eps) / (self.sigma_data * self._deviation(gamma, x0))

    def to_x0(self, output: Tensor, noisy: Tensor, gamma: Tensor) -> Tensor:
        """x0 (N, C, H, W) from the network's ``output`` for ``noisy``."""
        if self.prediction == "x0":
            return output
        signal, noise = coefficients(gamma, noisy)
        if self.prediction == "eps":
            return (noisy - noise * output) / signal
        if self.prediction == "v":
            return signal * noisy - noise * output
        deviation = self._deviation(gamma, noisy)
        return (signal * self.sigma_data**2 / deviation * noisy + noise * self.sigma_data * output) / deviation

    def to_eps(self, output: Tensor, noisy: Tensor, gamma: Tensor) -> Tensor:
        """The noise that ``output`` means, (N, C, H, W); gamma < 1."""
        if self.prediction == "eps":
            return output
        signal, noise = coefficients(gamma, noisy)
        if self.prediction == "v":
            return signal * output + noise * noisy
        return (noisy - signal * self.to_x0(output, noisy, gamma)) / noise

    def loss_weight(self, name: LossWeight, gamma: Tensor, *, min_snr: float) -> Tensor:
        """Weight (N,) float64 on the error of the output; as a weight on the squared error of x0 it is

        ``snr``: the SNR, that is 1 on eps; ``min_snr``: min(SNR, ``min_snr``) (Hang et al. 2023, eq. 6); ``none``: 1 on the output
        itself, which for edm is Karras et al.'s (their eq. 144: 1 / c_out^2 on x0).
        """
        gamma = gamma.double()
        if name == "none":
            return torch.ones_like(gamma)
        if self.prediction == "eps":  # (1 - gamma) / gamma times the weight on x0, in a form that is finite at both ends
            return torch.ones_like(gamma) if name == "snr" else (min_snr * (1.0 - gamma) / gamma).clamp(max=1.0)
        weight = gamma / (1.0 - gamma)
        weight = weight if name == "snr" else weight.clamp(max=min_snr)
        if self.prediction == "v":
            weight = weight * (1.0 - gamma)
        if self.prediction == "edm":
            variance = 1.0 - gamma + gamma * self.sigma_data**2
            weight = weight * (1.0 - gamma) * self.sigma_data**2 / variance
        return weight

    def _deviation(self, gamma: Tensor, like: Tensor) -> Tensor:
        """The standard deviation of the noisy image, formed in float64, shaped (N, 1, 1, 1)."""
        gamma = gamma.double()
        return _shaped((1.0 - gamma + gamma * self.sigma_data**2).sqrt(), like)


def coefficients(gamma: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt(gamma) and sqrt(1 - gamma), formed in float64, then cast to ``like`` and shaped (N, 1, 1, 1)."""
    gamma = gamma.double()
    return _shaped(gamma.sqrt(), like), _shaped((1.0 - gamma).sqrt(), like)


def diffuse(x0: Tensor, eps: Tensor, gamma: Tensor) -> Tensor:
    """A sample of q(noisy | x0) with the given unit noise."""
    signal, noise = coefficients(gamma, x0)
    return signal * x0 + noise * eps


def rectified(eps: Tensor, predicted: Tensor, gamma: Tensor, *, power: float) -> Tensor:
    """The noise that DREAM trains on: eps + lambda (eps - predicted), lambda = sqrt(1 - gamma)^power (Zhou et al. 2024, section 4).

    ``predicted`` is the network's own estimate of ``eps`` at the same sample and level, without gradient.
    """
    _, noise = coefficients(gamma, eps)
    return eps + noise**power * (eps - predicted)


def posterior(x0: Tensor, noisy: Tensor, gamma: Tensor, gamma_next: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (N, C, H, W) and variance (N, 1, 1, 1) of q(less noisy | noisy, x0) from level gamma to gamma_next > gamma (SR3, eq. 5)."""
    gamma, gamma_next = gamma.double(), gamma_next.double()
    alpha = gamma / gamma_next
    weight_x0 = gamma_next.sqrt() * (1.0 - alpha) / (1.0 - gamma)
    weight_noisy = alpha.sqrt() * (1.0 - gamma_next) / (1.0 - gamma)
    variance = (1.0 - gamma_next) * (1.0 - alpha) / (1.0 - gamma)
    weight_x0, weight_noisy, variance = (_shaped(value, noisy) for value in (weight_x0, weight_noisy, variance))
    return weight_x0 * x0 + weight_noisy * noisy, variance


def snr(gamma: Tensor) -> Tensor:
    """gamma / (1 - gamma), float64."""
    gamma = gamma.double()
    return gamma / (1.0 - gamma)


def _shaped(value: Tensor, like: Tensor) -> Tensor:
    return value.to(like.dtype).view((-1,) + (1,) * (like.dim() - 1))
