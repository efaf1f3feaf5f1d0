"""How training draws gamma: each distribution's moments against ones computed independently, and its stream of counters."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from sr3_core.diffusion.low_augmentation import LowAugmentation, blurred
from sr3_core.diffusion.schedules import Levels, Schedule, half_log_snr

N = 200_000
SCHEDULE = Schedule(steps=4, start=0.3, end=0.8)  # coarse, so that the kinds differ
TABLE = SCHEDULE.gammas()
LOW, HIGH = TABLE[1:], TABLE[:-1]


def drawn(*, stratified: bool = False, **values: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    levels = Levels(schedule=SCHEDULE, **values)
    uniform = np.random.default_rng(0).random((N, 2))
    if stratified:
        uniform[:, 0] = (np.arange(N) + uniform[:, 0]) / N
    return levels.draw(uniform)


def raw_moment(low: np.ndarray[Any, Any], high: np.ndarray[Any, Any], order: int) -> float:
    """E u^order for u uniform in [low, high], averaged over the intervals: (high^(k+1) - low^(k+1)) / ((k + 1) (high - low))."""
    return float(np.mean((high ** (order + 1) - low ** (order + 1)) / ((order + 1) * (high - low))))


# E gamma, E gamma^2, E gamma^3 from the table alone; for the square root the moments of even order
EXPECTED = {
    "piecewise": [raw_moment(LOW, HIGH, order) for order in (1, 2, 3)],
    "piecewise_sqrt": [raw_moment(np.sqrt(LOW), np.sqrt(HIGH), 2 * order) for order in (1, 2, 3)],
    "discrete": [float(np.mean(LOW**order)) for order in (1, 2, 3)],
}


@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize("name", EXPECTED)
def test_moments_of_the_levels_of_a_table(name: str, stratified: bool) -> None:
    gamma = drawn(name=name, stratified=stratified)
    for order, expected in enumerate(EXPECTED[name], start=1):
        error = (gamma**order).std() / math.sqrt(N)
        assert (gamma**order).mean() == pytest.approx(expected, abs=4 * error)


def test_the_three_kinds_differ() -> None:
    """Their means lie further apart than the tolerance above: a mix-up would be seen."""
    means = sorted(values[0] for values in EXPECTED.values())
    assert min(np.diff(means)) > 8 * drawn(name="piecewise").std() / math.sqrt(N)


def test_log_snr_levels_are_uniform() -> None:
    values = half_log_snr(drawn(name="log_snr", low=-3, high=2))
    assert values.min() >= -3.0001 and values.max() <= 2.0001
    assert values.mean() == pytest.approx(-0.5, abs=4 * 5 / math.sqrt(12 * N))
    assert values.std() == pytest.approx(5 / math.sqrt(12), rel=0.01)


def test_log_normal_levels_have_edm_s_sigma() -> None:
    """ln sigma ~ N(-1.2, 1.2^2), sigma^2 = (1 - gamma) / gamma; the first four moments, and the cut at sigma 80."""
    gamma = drawn(name="log_normal", mean=-1.2, deviation=1.2)
    log_sigma = 0.5 * np.log((1 - gamma) / gamma)
    standard = (log_sigma + 1.2) / 1.2
    for order, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert (standard**order).mean() == pytest.approx(expected, abs=4 * math.sqrt(variance / N))
    ends = Levels(name="log_normal").draw(np.array([[0.0, 0.5], [1 - 1e-16, 0.5]]))
    np.testing.assert_allclose(np.sqrt((1 - ends) / ends), [math.exp(-1.2 - 4.65 * 1.2), 80.0], rtol=3e-3)


def test_stratified_draws_narrow_the_mean_of_a_batch() -> None:
    """The mean level of a batch of 16 varies far less than that of independent draws, and its expectation stays."""
    plain, even = (Levels(name="log_snr", low=-4, high=4, stratified=stratified) for stratified in (False, True))
    index = np.arange(16 * 200)
    means = {
        levels.stratified: half_log_snr(levels.draw(levels.uniform(index, seed=3, global_batch=16))).reshape(200, 16).mean(axis=1)
        for levels in (plain, even)
    }
    assert means[True].std() < 0.15 * means[False].std()
    assert means[True].mean() == pytest.approx(0.0, abs=0.02)


def test_stratified_draws_are_uniform_for_every_place_in_the_batch() -> None:
    """No sample of a batch, thus no worker, always gets the same part: over many batches each place sees all of [0, 1)."""
    uniform = Levels(stratified=True).uniform(np.arange(8 * 2000), seed=1, global_batch=8)
    for place in range(8):
        counts = np.bincount(np.floor(uniform[place::8, 0] * 8).astype(int), minlength=8)
        assert ((counts - 250) ** 2 / 250).sum() < 30  # chi squared of 7 degrees: above 30 once in 10,000


def test_every_draw_is_a_function_of_its_global_index() -> None:
    for stratified in (False, True):
        levels = Levels(stratified=stratified)
        whole = levels.uniform(np.arange(48), seed=7, global_batch=16)
        backwards = levels.uniform(np.arange(48)[::-1], seed=7, global_batch=16)[::-1]
        np.testing.assert_array_equal(whole, backwards)
        assert not np.array_equal(whole, levels.uniform(np.arange(48), seed=8, global_batch=16))


def test_spans() -> None:
    assert Levels(name="log_snr", low=-3, high=2).span() == (-3, 2)
    low, high = Levels(name="log_normal", mean=-1.0, deviation=1.0).span()
    assert (low, high) == pytest.approx((1.0 - 4.65, 1.0 + 4.65))
    low, high = Levels(schedule=SCHEDULE).span()
    assert (low, high) == pytest.approx((float(half_log_snr(TABLE[-1])), float(half_log_snr(TABLE[1]))))
    without = Levels(schedule=Schedule(name="jsd", steps=20))
    assert without.terminal_gamma == 0.0
    assert without.span()[0] == pytest.approx(float(half_log_snr(1 / 20)))


def test_augmented_low_images_have_the_moments_of_their_level() -> None:
    """low' = sqrt(1 - a^2) low + a n: unit variance stays unit variance; a is uniform where the sample was chosen, 0 elsewhere."""
    options = LowAugmentation(noise=(0.2, 0.6), probability=0.5)
    index = np.arange(2000)
    low = torch.randn(2000, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    changed, level = options.apply(low, index, seed=4)
    chosen = level > 0
    assert float(chosen.double().mean()) == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(2000))
    assert float(level[chosen].mean()) == pytest.approx(0.4, abs=4 * 0.4 / math.sqrt(12 * 1000))
    assert torch.equal(changed[~chosen], low[~chosen])
    amount = level.float().view(-1, 1, 1, 1)
    noise = ((changed - (1 - amount**2).sqrt() * low) / amount)[chosen]
    assert float(noise.mean()) == pytest.approx(0, abs=0.02) and float(noise.std()) == pytest.approx(1, abs=0.02)
    again, _ = options.apply(low[500:510], index[500:510], seed=4)
    torch.testing.assert_close(again, changed[500:510])


def test_blur_is_a_gaussian_of_the_given_deviation() -> None:
    """An impulse becomes a Gaussian: its second moment is the deviation squared, its sum 1; deviation 0 leaves it alone."""
    impulse = torch.zeros(3, 2, 33, 33, dtype=torch.float64)
    impulse[:, :, 16, 16] = 1.0
    out = blurred(impulse, torch.tensor([0.0, 1.0, 2.0]), widest=2.0)
    torch.testing.assert_close(out[0], impulse[0])
    at = torch.arange(33, dtype=torch.float64) - 16
    torch.testing.assert_close(out.sum(dim=(2, 3)), torch.ones(3, 2, dtype=torch.float64))
    for item, deviation in ((1, 1.0), (2, 2.0)):
        assert float((out[item, 0].sum(dim=0) * at**2).sum()) == pytest.approx(deviation**2, rel=0.03)
        torch.testing.assert_close(out[item, 0], out[item, 0].T)


def test_blur_alone_tells_its_share_of_the_strongest() -> None:
    low = torch.rand(50, 3, 5, 4)
    changed, level = LowAugmentation(blur=(0.5, 2.0), probability=1.0).apply(low, np.arange(50), seed=1)
    assert changed.shape == low.shape and float(level.min()) >= 0.25 and float(level.max()) <= 1.0
    assert (changed.flatten(2).std(dim=2) < low.flatten(2).std(dim=2)).all()
