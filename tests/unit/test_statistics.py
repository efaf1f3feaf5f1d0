"""Intervals resample photos: images of one photo add nothing."""

import numpy as np
import pytest

from sr3_core.statistics import estimate


def test_mean_and_interval_of_a_known_sample() -> None:
    values = np.random.default_rng(0).normal(5, 2, 400).tolist()
    found = estimate(values, [str(index) for index in range(400)], seed=0)
    assert found.n == found.clusters == 400
    assert found.mean == pytest.approx(np.mean(values))
    half = 1.96 * np.std(values) / 20
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half), abs=0.06)


def test_repeating_every_image_of_a_photo_narrows_nothing() -> None:
    values, photos = [1.0, 2.0, 4.0, 8.0], ["a", "b", "c", "d"]
    once = estimate(values, photos, seed=3)
    repeated = estimate(values * 10, photos * 10, seed=3)
    assert (repeated.low, repeated.high) == pytest.approx((once.low, once.high))
    assert (once.n, repeated.n, repeated.clusters) == (4, 40, 4)


def test_one_photo_has_no_interval() -> None:
    found = estimate([1.0, 2.0], ["a", "a"], seed=0)
    assert (found.mean, found.low, found.high, found.n, found.clusters) == (1.5, None, None, 2, 1)


def test_the_draw_depends_on_the_seed_alone() -> None:
    values, photos = [1.0, 2.0, 4.0], ["a", "b", "c"]
    assert estimate(values, photos, seed=1) == estimate(values[::-1], photos[::-1], seed=1)


def test_no_values_are_refused() -> None:
    with pytest.raises(ValueError, match="0 values"):
        estimate([], [], seed=0)
