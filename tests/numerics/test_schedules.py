"""Each schedule against the formula of its source, computed here another way: products term by term, closed forms, known ends."""

import math

import numpy as np
import pytest

from sr3_core import config
from sr3_core.diffusion.schedules import READS, Schedule, gamma_of, half_log_snr, zero_terminal


def product(betas: list[float]) -> list[float]:
    """Cumulative products of 1 - beta, exactly summed logarithms instead of a running product."""
    return [1.0, *[math.exp(math.fsum(math.log1p(-beta) for beta in betas[: t + 1])) for t in range(len(betas))]]


T, FIRST, LAST = 40, 1e-3, 0.2
BETAS = {
    "linear": [FIRST + (LAST - FIRST) * t / (T - 1) for t in range(T)],
    "quadratic": [(FIRST**0.5 + (LAST**0.5 - FIRST**0.5) * t / (T - 1)) ** 2 for t in range(T)],
    "const": [LAST] * T,
    "warmup10": [FIRST + (LAST - FIRST) * min(1.0, t / (T // 10 - 1)) for t in range(T)],
    "warmup50": [FIRST + (LAST - FIRST) * min(1.0, t / (T // 2 - 1)) for t in range(T)],
    "cosine": [
        min(0.999, 1 - (math.cos((t / T + 0.008) / 1.008 * math.pi / 2) / math.cos(((t - 1) / T + 0.008) / 1.008 * math.pi / 2)) ** 2)
        for t in range(1, T + 1)
    ],
}


def made(name: str, *, over: str = "beta") -> Schedule:
    """That schedule with T steps between FIRST and LAST, as far as it reads them."""
    ends = {"start": FIRST, "end": LAST} if over == "beta" else {"start": 1 - FIRST, "end": 1 - LAST}
    read = {key: value for key, value in ends.items() if key in READS[name]}
    return config.parse(Schedule, {"name": name, "over": over, "steps": T, **read})


@pytest.mark.parametrize("name", BETAS)
def test_betas_of_the_source(name: str) -> None:
    table = made(name).gammas()
    np.testing.assert_allclose(table, product(BETAS[name]), rtol=1e-12)


def test_jsd_takes_an_equal_share_of_the_signal_at_every_step() -> None:
    """beta_t = 1 / (T - t + 1), hence gamma_t = 1 - t / T, and no signal at the end."""
    table = Schedule(name="jsd", steps=T).gammas()
    np.testing.assert_allclose(1 - table[1:] / table[:-1], [1 / (T - t + 1) for t in range(1, T + 1)], rtol=1e-9)
    assert table[-1] == 0.0


def test_sigmoid_is_the_logistic_function_between_its_ends() -> None:
    """Antisymmetric about the middle, with the slope of the logistic function there, clipped at 1e-9 (Chen 2023, algorithm 1)."""
    table = Schedule(name="sigmoid", steps=1000).gammas()
    np.testing.assert_allclose((table + table[::-1])[1:-1], 1.0, rtol=1e-12)
    slope = (table[501] - table[499]) / 0.002
    assert slope == pytest.approx(-6 * 0.25 / math.tanh(1.5), rel=1e-4)
    assert table[-1] == 1e-9
    steep = Schedule(name="sigmoid", steps=1000, temperature=0.5).gammas()
    assert (steep[501] - steep[499]) / 0.002 == pytest.approx(-12 * 0.25 / math.tanh(3.0), rel=1e-4)


def test_over_alpha_is_over_beta_with_the_ends_swapped_to_one_minus() -> None:
    """For what is linear in t, alpha = 1 - beta makes no difference; for the quadratic it does."""
    for name in ("linear", "const", "warmup10", "warmup50"):
        np.testing.assert_allclose(made(name, over="alpha").gammas(), made(name).gammas(), rtol=1e-12)
    roots = [math.sqrt(1 - FIRST) + (math.sqrt(1 - LAST) - math.sqrt(1 - FIRST)) * t / (T - 1) for t in range(T)]
    quadratic = Schedule(name="quadratic", over="alpha", start=1 - FIRST, end=1 - LAST, steps=T).gammas()
    np.testing.assert_allclose(quadratic, product([1 - root**2 for root in roots]), rtol=1e-12)


def test_published_terminal_gammas() -> None:
    """Linear 1e-6 -> 1e-2 leaves 4.4e-5 of the signal at T = 2000, .605 at T = 100; DDPM's 1e-4 -> 2e-2 leaves 1.6e-9; C's .0777."""
    for steps, terminal in ((2000, 4.4e-5), (1000, 0.0066), (500, 0.081), (250, 0.285), (100, 0.605)):
        assert Schedule(steps=steps).gammas()[-1] == pytest.approx(terminal, rel=0.01)
    assert Schedule(start=1e-4, end=2e-2).gammas()[-1] == pytest.approx(1.6e-9, rel=0.02)
    assert Schedule(start=1e-4, end=0.005, steps=1000).gammas()[-1] == pytest.approx(0.0777, abs=1e-4)
    assert Schedule(over="alpha").gammas()[-1] == pytest.approx(4.4e-5, rel=0.01)


def test_rescaling_keeps_the_first_level_and_ends_without_signal() -> None:
    """Lin et al. 2023, algorithm 1: sqrt(gamma) is an affine function of what it was, its first value kept, its last 0."""
    before = Schedule().gammas()
    after = zero_terminal(before)
    assert after[0] == 1.0 and after[-1] == 0.0
    assert after[1] == pytest.approx(before[1], rel=1e-12)
    slope = np.diff(np.sqrt(after[1:])) / np.diff(np.sqrt(before[1:]))
    np.testing.assert_allclose(slope, slope[0], rtol=1e-6)
    already = Schedule(name="jsd", steps=8).gammas()
    np.testing.assert_allclose(zero_terminal(already), already, rtol=1e-14)


def test_half_log_snr_and_gamma_are_inverse() -> None:
    values = np.linspace(-9, 9, 37)
    np.testing.assert_allclose(half_log_snr(gamma_of(values)), values, atol=1e-7)
    assert gamma_of(-0.5 * math.log(3.0)) == pytest.approx(0.25)  # a signal of a third of the noise's power
