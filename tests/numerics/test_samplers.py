"""Every sampler against the exact answer of a Gaussian problem, where each one is an affine map and its error has no noise.

The problem: radial frequencies f = 1..128 with weights f / sum f and a spectrum f^-2 of weighted power 1/4. The low image fixes f <= 32
(mean = sqrt of the spectrum, variance 1e-5); above, mean 0 and the spectrum's variance. The best denoiser is linear and known.

Clip, dynamic threshold and projection are off: they would make the maps not affine and the answer not known. That each sampler keeps to
them is tests/contracts/test_samplers.py's (clip, threshold) and test_objectives.py's (projection) to show, without an exact answer.
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
FRESH = {  # schedules made for sampling alone, of two public codes
    "betas": schedules.Schedule(start=1e-4, end=0.1, steps=100),
    "alphas": schedules.Schedule(over="alpha", start=0.9999999, end=0.9, steps=100),
}

Sampler = Callable[..., torch.Tensor]


def grid(name: str, steps: int) -> list[float]:
    if name in FRESH:
        assert steps == FRESH[name].steps
        return grids.time_grid(steps, FRESH[name]).tolist()
    if name == "time":
        return grids.time_grid(steps, SCHEDULE).tolist()
    table = SCHEDULE.gammas()
    low, high = (float(schedules.half_log_snr(table[t])) for t in (-1, 1))
    return (grids.karras_grid(steps, low, high, 7.0) if name == "karras" else grids.log_snr_grid(steps, low, high)).tolist()


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
    "unipc 3": (partial(samplers.unipc, order=3), "log_snr", {20: 5.5e-6, 25: 1.7e-7, 50: 2.6e-8}),  # our own: there is no published one
    "sde_dpmpp_2m": (samplers.sde_dpmpp_2m, "log_snr", {20: 2.0e-3, 50: 9.0e-5, 100: 5.7e-6}),
    "heun": (samplers.heun, "log_snr", {49: 1.2e-3, 99: 6.2e-5, 199: 3.6e-6, 399: 2.4e-7}),
}
# no figures are published for these grids: what was measured here
OTHER_GRIDS: list[tuple[str, str, int, float]] = [
    ("ancestral", "betas", 100, 9.5e-4),
    ("ancestral", "alphas", 100, 1.8e-3),
    ("ddim", "karras", 50, 4.8e-3),
    ("dpmpp_2m", "karras", 20, 5.9e-3),
    ("dpmpp_2m", "karras", 50, 1.0e-4),
    ("dpmpp_2m", "karras", 100, 5.6e-6),
    ("sde_dpmpp_2m", "karras", 50, 7.3e-4),
    ("unipc", "karras", 50, 1.4e-5),
    ("unipc 3", "karras", 50, 1.5e-6),
]
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


@pytest.mark.parametrize("calls", [15, 20, 25, 30, 40, 50])
def test_third_order_unipc_is_better_than_second(calls: int) -> None:
    """Measured 1.1e-3 against 2.9e-4 at 15 calls, 2.7e-4 against 5.5e-6 at 20; from 30 on it stands on the problem's floor of 2.3e-8.

    Below 15 calls it is worse (5.7e-3 against 3.9e-3 at 10, 2.7e-1 against 9.6e-3 at 6): steps too large for a parabola.
    """
    gammas = grid("log_snr", calls)
    assert frechet(partial(samplers.unipc, order=3), gammas)[0] < frechet(samplers.unipc, gammas)[0] / 3


# order of convergence to the exact probability flow, where no floor hides it: UniPC-p has order p + 1
FLOW_ORDERS: dict[str, tuple[Sampler, float]] = {
    "ddim": (samplers.ddim, 1.0),
    "dpmpp_2m": (samplers.dpmpp_2m, 2.0),
    "heun": (samplers.heun, 2.0),
    "unipc 1": (partial(samplers.unipc, order=1), 2.0),
    "unipc 2": (samplers.unipc, 3.0),
    "unipc 3": (partial(samplers.unipc, order=3), 4.0),
}


@pytest.mark.parametrize("name", FLOW_ORDERS)
def test_order_of_convergence_to_the_exact_probability_flow(name: str) -> None:
    """One Gaussian pixel, half log-SNR -3 to 3: the flow keeps (y - sqrt(g) m) / sqrt(g v + 1 - g)."""
    sampler, order = FLOW_ORDERS[name]
    mean, variance = 0.3, 0.25
    start = torch.tensor([1.0, -0.5], dtype=torch.float64)

    def denoise(y: torch.Tensor, g: float) -> torch.Tensor:
        return mean + math.sqrt(g) * variance * (y - math.sqrt(g) * mean) / (g * variance + 1 - g)

    def error(steps: int) -> float:
        gammas = grids.log_snr_grid(steps + 1, -3.0, 3.0)[:-1].tolist()  # without the step to 1, which is of first order
        place, scale = zip(*((math.sqrt(g) * mean, math.sqrt(g * variance + 1 - g)) for g in (gammas[0], gammas[-1])), strict=True)
        exact = place[1] + (start - place[0]) * scale[1] / scale[0]
        return float((sampler(denoise, start, gammas, lambda step: torch.zeros(2)) - exact).abs().max())

    steps = [80, 160, 320]
    slope = -np.polyfit(np.log(steps), np.log([error(n) for n in steps]), 1)[0]
    assert abs(slope - order) <= 0.3


@pytest.mark.parametrize(("name", "grid_name", "steps", "known"), OTHER_GRIDS)
def test_error_on_the_other_grids(name: str, grid_name: str, steps: int, known: float) -> None:
    error, made = frechet(TABLE[name][0], grid(grid_name, steps))
    assert made == steps
    assert error <= 2 * known


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
