"""Samplers: plain loops over one denoiser signature, side by side for comparison.

Every sampler takes
    denoise(y, gamma) -> x0   the clean image predicted from ``y`` at level ``gamma`` (a float), clipped or projected as the caller likes
    y                         the start: unit noise of the output's shape
    gammas                    ascending levels; the first is where ``y`` stands, the last is 1
    noise(step) -> tensor     unit noise for one step (only stochastic samplers call it)
and returns the sample; its keyword-only parameters are options of the same names in ``grids.Sampling``. eps is always formed from x0,
so that the pair stays consistent after clipping. The network is called once a step (Heun: twice, but for the last, and once from 0).
A last level of exactly 1 is a singular log-SNR: that step returns x0. A first level of 0 (zero terminal SNR) is left by
y' = sqrt(t) x0 + sqrt(1 - t) y. Symbols: s the current level, t the next, l(.) the half log-SNR.
"""

from collections.abc import Callable, Sequence
from inspect import signature
from itertools import pairwise
from math import exp, expm1, factorial, log, log1p, sqrt

import numpy as np
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


def unipc(denoise: Denoise, y: Tensor, gammas: Sequence[float], noise: Noise, *, order: int = 2) -> Tensor:
    """UniPC-``order`` (Zhao et al. 2023, algorithms 1 and 2), x0 form, B(h) = e^-h - 1: a multistep predictor, then a corrector that
    reuses the network call made at the predicted point; that output is kept for the next step, so one call a step. Fewer x0 behind it
    (the first steps) make a lower order."""
    x0 = denoise(y, gammas[0])
    behind: list[tuple[Tensor, float]] = []  # x0 and half log-SNR of the steps before, the latest first
    for s, t in pairwise(gammas):
        if t == 1.0:
            return x0
        if s == 0.0:
            y = _leave_zero(x0, y, t)
            x0 = denoise(y, t)
            continue
        here = _half_log_snr(s)
        h = _half_log_snr(t) - here
        phi = expm1(-h)
        base = sqrt((1.0 - t) / (1.0 - s)) * y - sqrt(t) * phi * x0
        ratios = [(where - here) / h for _, where in behind]
        slopes = [(x0_before - x0) / ratio for (x0_before, _), ratio in zip(behind, ratios, strict=True)]
        x0_next = denoise(base - sqrt(t) * phi * _weighted(slopes, _unipc_weights(h, ratios)), t)
        slopes.append(x0_next - x0)
        y = base - sqrt(t) * phi * _weighted(slopes, _unipc_weights(h, [*ratios, 1.0]))
        behind = [(x0, here), *behind][: order - 1]
        x0 = x0_next
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


SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "ancestral": ancestral,
    "ddim": ddim,
    "dpmpp_2m": dpmpp_2m,
    "sde_dpmpp_2m": sde_dpmpp_2m,
    "unipc": unipc,
    "heun": heun,
}


def reads(sampler: str) -> tuple[str, ...]:
    """The options of ``grids.Sampling`` that the sampler of that name reads: its keyword-only parameters."""
    return tuple(p.name for p in signature(SAMPLERS[sampler]).parameters.values() if p.kind is p.KEYWORD_ONLY)


def unread(sampler: str) -> tuple[str, ...]:
    """The options that other samplers read and this one leaves alone."""
    return tuple(sorted({name for other in SAMPLERS for name in reads(other)} - set(reads(sampler))))


def network_calls(sampler: str, gammas: Sequence[float]) -> int:
    """Calls of ``denoise`` for one sample over ``gammas``: one a step; Heun's are two, but for the last and for a first from gamma 0."""
    steps = len(gammas) - 1
    if sampler != "heun":
        return steps
    return 2 * steps - 1 - int(gammas[0] == 0.0 and steps > 1)


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


def _unipc_weights(h: float, ratios: Sequence[float]) -> list[float]:
    """Weights a of the slopes (x0_k - x0) / r_k at ``ratios`` r: sum_k r_k^(n-1) a_k B(h) = n! h^n phi_(n+1) / h^(n-1) for n = 1, 2, ...

    (Zhao et al. 2023, theorem 3.1, with -h for h.) A single slope takes 1/2, its weight's limit at h = 0, which keeps the order.
    """
    if len(ratios) < 2:
        return [0.5] * len(ratios)
    phi = expm1(-h)
    right: list[float] = []
    term = phi
    for n in range(1, len(ratios) + 1):
        term = term / -h - 1.0 / factorial(n)
        right.append(factorial(n) * term / phi)
    powers = np.vander(np.array(ratios), increasing=True).T
    return [float(weight) for weight in np.linalg.solve(powers, np.array(right))]


def _weighted(slopes: Sequence[Tensor], weights: Sequence[float]) -> Tensor | float:
    return sum((weight * slope for weight, slope in zip(weights, slopes, strict=True)), start=0.0)


def _eps(y: Tensor, x0: Tensor, s: float) -> Tensor:
    return (y - sqrt(s) * x0) / sqrt(1.0 - s)


def _leave_zero(x0: Tensor, y: Tensor, t: float) -> Tensor:
    return sqrt(t) * x0 + sqrt(1.0 - t) * y


def _half_log_snr(gamma: float) -> float:
    return 0.5 * (log(gamma) - log1p(-gamma))
