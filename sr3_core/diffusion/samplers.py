"""Samplers: plain loops over one denoiser signature, side by side for comparison.

Every sampler takes
    denoise(y, gamma) -> x0   the clean image predicted from ``y`` at level ``gamma`` (a float), clipped or projected as the caller likes
    y                         the start: unit noise of the output's shape
    gammas                    ascending levels; the first is where ``y`` stands, the last is 1
    noise(step) -> tensor     unit noise for one step (only stochastic samplers call it)
and returns the sample. eps is always formed from x0, so that the pair stays consistent after clipping. The network is called once a
step (Heun: twice, but for the last). A last level of exactly 1 is a singular log-SNR: that step returns x0. A first level of 0 (zero
terminal SNR) is left by y' = sqrt(t) x0 + sqrt(1 - t) y. Symbols: s the current level, t the next, l(.) the half log-SNR.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import exp, expm1, log, log1p, sqrt

from torch import Tensor

Denoise = Callable[[Tensor, float], Tensor]
Noise = Callable[[int], Tensor]


def ancestral(denoise: Denoise, y: Tensor, gammas: Sequence[float], noise: Noise, *, posterior_variance: bool = False) -> Tensor:
    """SR3, algorithm 2: the mean of q(y_next | y, x0) plus noise of variance beta (SR3) or of the posterior (DDPM, eq. 7)."""
    for step, (s, t) in enumerate(pairwise(gammas)):
        x0 = denoise(y, s)
        if t == 1.0:
            return x0
        if s == 0.0:
            y = _leave_zero(x0, y, t)
            continue
        a = s / t
        b = 1.0 - a
        variance = b * (1.0 - t) / (1.0 - s) if posterior_variance else b
        y = (y - b / sqrt(1.0 - s) * _eps(y, x0, s)) / sqrt(a) + sqrt(variance) * noise(step)
    return y


def ddim(denoise: Denoise, y: Tensor, gammas: Sequence[float], noise: Noise, *, eta: float = 0.0) -> Tensor:
    """DDIM (Song et al. 2021, eq. 12); eta = 0 draws no noise, eta = 1 is the ancestral sampler with the posterior's variance."""
    for step, (s, t) in enumerate(pairwise(gammas)):
        x0 = denoise(y, s)
        if t == 1.0:
            return x0
        if s == 0.0:
            y = _leave_zero(x0, y, t)
            continue
        eps = _eps(y, x0, s)
        sigma = eta * sqrt((1.0 - t) / (1.0 - s) * (1.0 - s / t))
        y = sqrt(t) * x0 + sqrt(max(0.0, 1.0 - t - sigma**2)) * eps
        if sigma:
            y = y + sigma * noise(step)
    return y


def dpmpp_2m(denoise: Denoise, y: Tensor, gammas: Sequence[float], noise: Noise, *, order: int = 2) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): second order from the previous x0; deterministic. ``order`` 1 is DDIM."""
    return _multistep(denoise, y, gammas, None, order=order)


def sde_dpmpp_2m(denoise: Denoise, y: Tensor, gammas: Sequence[float], noise: Noise, *, order: int = 2) -> Tensor:
    """SDE-DPM-Solver++ (Lu et al. 2022, eq. 18): noise is renewed at every step; ``order`` 1 or 2 (2M)."""
    return _multistep(denoise, y, gammas, noise, order=order)


def unipc(denoise: Denoise, y: Tensor, gammas: Sequence[float], noise: Noise) -> Tensor:
    """UniPC-2 (Zhao et al. 2023), x0 form, B(h) = e^-h - 1: a 2M-like predictor, then a corrector that reuses the network call
    made at the predicted point; that output is kept for the next step, so one call a step."""
    x0 = denoise(y, gammas[0])
    before: tuple[Tensor, float] | None = None  # x0 and half log-SNR of the step before
    for s, t in pairwise(gammas):
        if t == 1.0:
            return x0
        if s == 0.0:
            y = _leave_zero(x0, y, t)
            before, x0 = None, denoise(y, t)
            continue
        h = _half_log_snr(t) - _half_log_snr(s)
        phi = expm1(-h)
        base = sqrt((1.0 - t) / (1.0 - s)) * y - sqrt(t) * phi * x0
        if before is None:
            x0_next = denoise(base, t)
            correction = 0.5 * (x0_next - x0)
        else:
            r = (before[1] - _half_log_snr(s)) / h
            slope = (before[0] - x0) / r
            x0_next = denoise(base - sqrt(t) * phi * 0.5 * slope, t)
            weight_before, weight_next = _unic_weights(h, r)
            correction = weight_before * slope + weight_next * (x0_next - x0)
        y = base - sqrt(t) * phi * correction
        before, x0 = (x0, _half_log_snr(s)), x0_next
    return y


def heun(denoise: Denoise, y: Tensor, gammas: Sequence[float], noise: Noise) -> Tensor:
    """Heun's second-order step on the probability-flow ODE in half log-SNR (x0 form); two calls a step, one for the last."""
    for s, t in pairwise(gammas):
        x0 = denoise(y, s)
        if t == 1.0:
            return x0
        if s == 0.0:
            y = _leave_zero(x0, y, t)
            continue
        phi = expm1(-(_half_log_snr(t) - _half_log_snr(s)))
        scale = sqrt((1.0 - t) / (1.0 - s))
        x0_next = denoise(scale * y - sqrt(t) * phi * x0, t)
        y = scale * y - sqrt(t) * phi * 0.5 * (x0 + x0_next)
    return y


def _multistep(denoise: Denoise, y: Tensor, gammas: Sequence[float], noise: Noise | None, *, order: int) -> Tensor:
    before: tuple[Tensor, float] | None = None  # x0 of the step before, and its h
    for step, (s, t) in enumerate(pairwise(gammas)):
        x0 = denoise(y, s)
        if t == 1.0:
            return x0
        if s == 0.0:
            y, before = _leave_zero(x0, y, t), None
            continue
        h = _half_log_snr(t) - _half_log_snr(s)
        direction = x0
        if before is not None and order == 2:
            direction = x0 + (x0 - before[0]) * (0.5 * h / before[1])
        scale = sqrt((1.0 - t) / (1.0 - s))
        if noise is None:
            y = scale * y - sqrt(t) * expm1(-h) * direction
        else:
            grown = -expm1(-2.0 * h)
            y = scale * exp(-h) * y + sqrt(t) * grown * direction + sqrt((1.0 - t) * grown) * noise(step)
        before = x0, h
    return y


def _unic_weights(h: float, r: float) -> tuple[float, float]:
    """UniC-2's weights of the differences at r (before) and at 1 (next): [1 1; r 1] rho = (b1, b2), UniPC eq. 9 with B(h) = e^-h - 1."""
    phi = expm1(-h)
    phi_1 = phi / -h - 1.0
    b1 = phi_1 / phi
    b2 = (phi_1 / -h - 0.5) * 2.0 / phi
    weight_before = (b1 - b2) / (1.0 - r)
    return weight_before, b1 - weight_before


def _eps(y: Tensor, x0: Tensor, s: float) -> Tensor:
    return (y - sqrt(s) * x0) / sqrt(1.0 - s)


def _leave_zero(x0: Tensor, y: Tensor, t: float) -> Tensor:
    return sqrt(t) * x0 + sqrt(1.0 - t) * y


def _half_log_snr(gamma: float) -> float:
    return 0.5 * (log(gamma) - log1p(-gamma))
