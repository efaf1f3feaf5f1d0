"""Means with their uncertainty: bootstrap intervals that resample photos, not images, and paired differences. No torch here."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sr3_core.seeds import generator

RESAMPLES = 2000
COVERAGE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over ``n`` images of ``clusters`` photos; ``low`` and ``high`` are its 95 % bounds (None with fewer than two photos)."""

    mean: float
    low: float | None
    high: float | None
    n: int
    clusters: int


def estimate(values: Sequence[float], clusters: Sequence[str], *, seed: int) -> Estimate:
    """Mean of ``values`` (at least one) with a percentile bootstrap over ``clusters``, which names the photo of each value.

    Images of one photo are not independent, so whole photos are drawn (Field and Welsh 2007, "Bootstrapping clustered data"). The draw
    is keyed by ``seed`` alone: two models judged on the same photos get the same resamples.
    """
    if not values or len(values) != len(clusters):
        raise ValueError(f"{len(values)} values and {len(clusters)} cluster names")
    names = sorted(set(clusters))
    position = {name: index for index, name in enumerate(names)}
    sums, counts = np.zeros(len(names)), np.zeros(len(names))
    for value, name in zip(values, clusters, strict=True):
        sums[position[name]] += value
        counts[position[name]] += 1
    mean = float(sums.sum() / counts.sum())
    if len(names) < 2:
        return Estimate(mean, None, None, len(values), len(names))
    drawn = generator(seed, "bootstrap", 0).integers(len(names), size=(RESAMPLES, len(names)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return Estimate(mean, float(low), float(high), len(values), len(names))
