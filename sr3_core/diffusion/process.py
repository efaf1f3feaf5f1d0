"""The forward process and the identities between eps, x0 and v. ``gamma`` broadcasts over (N, C, H, W) as float64 (N,).

noisy = sqrt(gamma) x0 + sqrt(1 - gamma) eps (SR3, eq. 4); v = sqrt(gamma) eps - sqrt(1 - gamma) x0 (Salimans & Ho 2022).
"""

from typing import Literal

import torch
from torch import Tensor

Prediction = Literal["eps", "x0", "v"]


def coefficients(gamma: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt(gamma) and sqrt(1 - gamma), formed in float64, then cast to ``like`` and shaped (N, 1, 1, 1)."""
    gamma = gamma.double()
    shape = (-1,) + (1,) * (like.dim() - 1)
    return gamma.sqrt().to(like.dtype).view(shape), (1.0 - gamma).sqrt().to(like.dtype).view(shape)


def diffuse(x0: Tensor, eps: Tensor, gamma: Tensor) -> Tensor:
    """A sample of q(noisy | x0) with the given unit noise."""
    signal, noise = coefficients(gamma, x0)
    return signal * x0 + noise * eps


def target(prediction: Prediction, x0: Tensor, eps: Tensor, gamma: Tensor) -> Tensor:
    """What a network of this prediction should output."""
    if prediction == "eps":
        return eps
    if prediction == "x0":
        return x0
    signal, noise = coefficients(gamma, x0)
    return signal * eps - noise * x0


def to_x0(prediction: Prediction, output: Tensor, noisy: Tensor, gamma: Tensor) -> Tensor:
    """x0 from a network's output; eps prediction needs gamma > 0."""
    if prediction == "x0":
        return output
    signal, noise = coefficients(gamma, noisy)
    if prediction == "eps":
        return (noisy - noise * output) / signal
    return signal * noisy - noise * output


def posterior(x0: Tensor, noisy: Tensor, gamma: Tensor, gamma_next: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (N, C, H, W) and variance (N, 1, 1, 1) of q(less noisy | noisy, x0) from level gamma to gamma_next > gamma (SR3, eq. 5)."""
    gamma, gamma_next = gamma.double(), gamma_next.double()
    alpha = gamma / gamma_next
    weight_x0 = gamma_next.sqrt() * (1.0 - alpha) / (1.0 - gamma)
    weight_noisy = alpha.sqrt() * (1.0 - gamma_next) / (1.0 - gamma)
    variance = (1.0 - gamma_next) * (1.0 - alpha) / (1.0 - gamma)
    shape = (-1,) + (1,) * (noisy.dim() - 1)
    weight_x0, weight_noisy, variance = (value.to(noisy.dtype).view(shape) for value in (weight_x0, weight_noisy, variance))
    return weight_x0 * x0 + weight_noisy * noisy, variance


def snr(gamma: Tensor) -> Tensor:
    """gamma / (1 - gamma), float64."""
    gamma = gamma.double()
    return gamma / (1.0 - gamma)


def loss_weight(prediction: Prediction, gamma: Tensor, min_snr: float | None) -> Tensor:
    """Weight (N,) float64 on the squared or absolute error of the predicted quantity; min-SNR (Hang et al. 2023), or 1 when None."""
    if min_snr is None:
        return torch.ones_like(gamma, dtype=torch.float64)
    ratio = snr(gamma)
    on_x0 = ratio.clamp(max=min_snr)
    return {"x0": on_x0, "eps": on_x0 / ratio, "v": on_x0 / (ratio + 1.0)}[prediction]
