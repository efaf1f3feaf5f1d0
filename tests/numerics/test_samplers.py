"""Every sampler against the exact answer of a Gaussian problem, where each one is an affine map and its error has no noise.

The problem: radial frequencies f = 1..128 with weights f / sum f and a spectrum f^-2 of weighted power 1/4. The low image fixes f <= 32
(mean = sqrt of the spectrum, variance 1e-5); above, mean 0 and the spectrum's variance. The best denoiser is linear and known.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from sr3_core.diffusion import grids, process, samplers, schedules

FREQUENCY = torch.arange(1, 129, dtype=torch.float64)
WEIGHT = FREQUENCY / FREQUENCY.sum()
SPECTRUM = FREQUENCY**-2 * 0.25 / (WEIGHT * FREQUENCY**-2).sum()
KNOWN = FREQUENCY <= 32
MEAN = torch.where(KNOWN, SPECTRUM.sqrt(), torch.zeros_like(SPECTRUM))
VARIANCE = torch.where(KNOWN, torch.full_like(SPECTRUM, 1e-5), SPECTRUM)
SCHEDULE = schedules.Schedule(start=1e-6, end=1e-2, steps=2000)

Sampler = Callable[..., torch.Tensor]


def grid(name: str, steps: int) -> list[float]:
    if name == "time":
        return grids.time_grid(steps, SCHEDULE).tolist()
    table = SCHEDULE.gammas()
    low, high = (float(schedules.half_log_snr(table[t])) for t in (-1, 1))
    return grids.log_snr_grid(steps, low, high).tolist()


def frechet(sampler: Sampler, gammas: list[float]) -> tuple[float, int]:
    """Squared Fréchet distance of the sampler's output to the truth, relative to the unknown power; and the network calls made.

    The batch is linear-system identification: item 0 has no noise (the mean), item 1 unit start noise, item k + 2 unit noise at step k.
    """
    calls = 0

    def denoise(y: torch.Tensor, gamma: float) -> torch.Tensor:
        nonlocal calls
        calls += 1
        eps = math.sqrt(1 - gamma) * (y - math.sqrt(gamma) * MEAN) / (gamma * VARIANCE + 1 - gamma)
        return (y - math.sqrt(1 - gamma) * eps) / math.sqrt(gamma)

    def noise(step: int) -> torch.Tensor:
        drawn = torch.zeros(len(gammas) + 2, 128, dtype=torch.float64)
        drawn[step + 2] = 1.0
        return drawn

    start = torch.zeros(len(gammas) + 2, 128, dtype=torch.float64)
    start[1] = 1.0
    out = sampler(denoise, start, gammas, noise)
    deviation = (out[1:] - out[0]).square().sum(dim=0).sqrt()
    error = WEIGHT * ((out[0] - MEAN).square() + (deviation - VARIANCE.sqrt()).square())
    return float(error.sum() / (WEIGHT * VARIANCE).sum()), calls


# (sampler, grid, {network calls: published error of this problem})
TABLE: dict[str, tuple[Sampler, str, dict[int, float]]] = {
    "ancestral": (samplers.ancestral, "time", {20: 3.5e-3, 50: 3.5e-3, 100: 1.3e-3, 500: 7.1e-5, 2000: 5.0e-6}),
    "ancestral posterior": (
        partial(samplers.ancestral, posterior_variance=True),
        "time",
        {20: 8.5e-2, 50: 2.7e-2, 100: 9.9e-3, 500: 6.5e-4, 2000: 4.9e-5},
    ),
    "ddim": (samplers.ddim, "log_snr", {20: 2.1e-2, 50: 3.5e-3, 100: 8.8e-4, 500: 3.5e-5, 2000: 2e-6}),
    "dpmpp_2m": (samplers.dpmpp_2m, "log_snr", {20: 4.4e-4, 50: 1.3e-5, 100: 8.6e-7}),
    "unipc": (samplers.unipc, "log_snr", {20: 2.7e-4, 50: 1.4e-6}),
    "sde_dpmpp_2m": (samplers.sde_dpmpp_2m, "log_snr", {20: 2.0e-3, 50: 9.0e-5, 100: 5.7e-6}),
    "heun": (samplers.heun, "log_snr", {49: 1.2e-3, 99: 6.2e-5, 199: 3.6e-6, 399: 2.4e-7}),
}
ORDERS = {
    "ancestral": (0.9, 100, 800),
    "ddim": (1.0, 100, 800),
    "dpmpp_2m": (1.9, 20, 160),
    "unipc": (2.9, 20, 50),
    "sde_dpmpp_2m": (1.9, 20, 160),
}


def steps_for(name: str, calls: int) -> int:
    return (calls + 1) // 2 if name == "heun" else calls


@pytest.mark.parametrize(("name", "calls"), [(name, calls) for name, row in TABLE.items() for calls in row[2]])
def test_error_is_at_most_twice_the_known_one(name: str, calls: int) -> None:
    sampler, grid_name, known = TABLE[name]
    error, made = frechet(sampler, grid(grid_name, steps_for(name, calls)))
    assert made == calls
    assert error <= 2 * known[calls]


@pytest.mark.parametrize("name", ORDERS)
def test_order_of_convergence(name: str) -> None:
    sampler, grid_name, _ = TABLE[name]
    order, first, last = ORDERS[name]
    steps = np.unique(np.geomspace(first, last, 5).round().astype(int))
    errors = [math.sqrt(frechet(sampler, grid(grid_name, int(n)))[0]) for n in steps]
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert abs(slope - order) <= 0.3


@pytest.mark.parametrize("name", TABLE)
def test_starts_from_zero_terminal_signal(name: str) -> None:
    sampler = TABLE[name][0]
    x0 = torch.linspace(-1, 1, 7)
    gammas = [0.0, *grids.log_snr_grid(12, -3.0, 4.0).tolist()]
    out = sampler(lambda y, gamma: x0.expand_as(y), torch.randn(2, 7), gammas, lambda step: torch.zeros(2, 7))
    torch.testing.assert_close(out, x0.expand(2, 7))


def test_first_order_multistep_is_ddim() -> None:
    gammas = grid("log_snr", 12)
    first: Any = partial(samplers.dpmpp_2m, order=1)
    assert frechet(first, gammas) == pytest.approx(frechet(samplers.ddim, gammas), rel=1e-9)


def test_an_ancestral_step_has_the_posterior_s_moments() -> None:
    """One step from s to t: its mean and its variance are those of q(y_t | y_s, x0)."""
    x0, y = torch.tensor([[[[0.3]]]], dtype=torch.float64), torch.tensor([[[[-0.9]]]], dtype=torch.float64)
    s, t = 0.3, 0.6

    def step(z: float) -> float:
        seen: list[torch.Tensor] = []

        def denoise(current: torch.Tensor, gamma: float) -> torch.Tensor:
            seen.append(current)
            return x0

        samplers.ancestral(denoise, y, [s, t, 1.0], lambda _: torch.full_like(y, z), posterior_variance=True)
        return seen[1].item()

    mean, variance = process.posterior(x0, y, *(torch.tensor([value], dtype=torch.float64) for value in (s, t)))
    assert step(0.0) == pytest.approx(mean.item(), rel=1e-12)
    assert step(1.0) - step(0.0) == pytest.approx(math.sqrt(variance.item()), rel=1e-12)


def test_first_order_sde_differs_from_second() -> None:
    gammas = grid("log_snr", 20)
    first: Any = partial(samplers.sde_dpmpp_2m, order=1)
    assert frechet(first, gammas)[0] > 2 * frechet(samplers.sde_dpmpp_2m, gammas)[0]
