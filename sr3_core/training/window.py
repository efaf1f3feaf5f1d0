"""Metrics on their way from a micro-batch to a log line: what has a value in every sample, and what only some samples have.

An objective gives a number for the former and a pair (sum, samples) for the latter, under the same names on every call. A pair travels as
two numbers, since the means of sums and of counts over micro-batches, workers and steps are exact where a mean of means is not.
"""

from collections.abc import Mapping

Value = float | tuple[float, float]  # a mean over the micro-batch, or (sum, how many samples)
Window = dict[str, tuple[float, float]]  # (sum, weight) by name since the last log line

_SAMPLES = "#"  # behind a name: how many samples its sum is of


def flat(metrics: Mapping[str, Value]) -> dict[str, float]:
    """One number a name: a pair becomes its sum and, under a name of its own, its count. Means of these may be taken in any order."""
    found: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, tuple):
            found[name], found[name + _SAMPLES] = value
        else:
            found[name] = value
    return found


def add(window: Window, metrics: Mapping[str, float]) -> None:
    """Add one step's ``flat`` metrics, means over its samples, to ``window``."""
    for name, value in metrics.items():
        if not name.endswith(_SAMPLES):
            total, weight = window.get(name, (0.0, 0))
            window[name] = (total + value, weight + metrics.get(name + _SAMPLES, 1))


def means(window: Window) -> dict[str, float]:
    """Mean by name; a name that no sample had is left out."""
    return {name: total / weight for name, (total, weight) in window.items() if weight}
