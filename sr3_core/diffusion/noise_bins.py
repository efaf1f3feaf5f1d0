"""The loss by noise level: bins of half log-SNR that are the same in every run, so that runs with other levels can be compared."""

from itertools import pairwise

import numpy as np
from torch import Tensor

EDGES = (-4, -2, 0, 2, 4)  # of half log-SNR, 0.5 ln(gamma / (1 - gamma)): below lies hardly anything but noise, above hardly any
NAMES = (f"below {EDGES[0]}", *(f"{low} to {high}" for low, high in pairwise(EDGES)), f"above {EDGES[-1]}")
PREFIX = "loss_by_half_log_snr/"
_GAMMAS = 1.0 / (1.0 + np.exp(-2.0 * np.array(EDGES, dtype=np.float64)))


def by_level(losses: Tensor, gamma: Tensor) -> dict[str, tuple[float, float]]:
    """(sum of losses, samples) of each bin, of ``losses`` (N,) at ``gamma`` (N,) in [0, 1]; an edge belongs to the bin above it."""
    of = np.searchsorted(_GAMMAS, gamma.detach().cpu().numpy(), side="right")
    sums = np.bincount(of, weights=losses.detach().double().cpu().numpy(), minlength=len(NAMES))
    counts = np.bincount(of, minlength=len(NAMES))
    return {PREFIX + name: (float(total), float(count)) for name, total, count in zip(NAMES, sums, counts, strict=True)}
