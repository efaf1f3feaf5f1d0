"""The grids of signal levels that sampling walks: ascending gammas ending at 1, float64. See schedules.py for gamma."""

import numpy as np

from sr3_core.diffusion.schedules import Array, Schedule, gamma_of


def log_snr_grid(steps: int, low: float, high: float) -> Array:
    """(steps + 1,) ascending gammas: ``steps`` points uniform in half log-SNR from ``low`` to ``high``, then 1."""
    return np.append(gamma_of(np.linspace(low, high, steps)), 1.0)


def time_grid(steps: int, schedule: Schedule) -> Array:
    """(steps + 1,) ascending gammas: linear in the table's t from T to 0, log gamma interpolated, ending at 1."""
    table = np.log(schedule.gammas())
    t = np.linspace(schedule.steps, 0, steps + 1)
    return np.exp(np.interp(t, np.arange(schedule.steps + 1), table))
