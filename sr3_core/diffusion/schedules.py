"""Signal levels: training tables and how training draws them. Float64 throughout; sampling grids are in grids.py.

``gamma`` in (0, 1] is the cumulative signal level of the SR3 paper (arXiv 2104.07636, section 2; alpha-bar elsewhere):
``noisy = sqrt(gamma) y0 + sqrt(1 - gamma) eps``. ``half log-SNR`` is ``lambda = 0.5 ln(gamma / (1 - gamma))``.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from sr3_core.config import Section

Array = NDArray[np.float64]


class Schedule(Section):
    """A training table of T betas; ``linear`` from ``start`` to ``end`` (SR3 in its public codes: 1e-6 -> 1e-2, T = 2000)."""

    name: Literal["linear"] = "linear"
    start: float = Field(default=1e-6, gt=0, lt=1)
    end: float = Field(default=1e-2, gt=0, lt=1)
    steps: int = Field(default=2000, ge=2)

    def gammas(self) -> Array:
        """(T + 1,) descending: 1 followed by the cumulative products of 1 - beta."""
        betas = np.linspace(self.start, self.end, self.steps)
        return np.concatenate([[1.0], np.cumprod(1.0 - betas)])


class Levels(Section):
    """How training draws gamma for each sample.

    ``piecewise``: t uniform on 1..T, gamma uniform between its neighbours in ``schedule`` (SR3, section 2.4).
    ``log_snr``: half log-SNR uniform in [``low``, ``high``], independent of any table.
    """

    name: Literal["piecewise", "log_snr"] = "piecewise"
    schedule: Schedule = Schedule()
    low: float = -4.0
    high: float = 4.5

    @model_validator(mode="after")
    def _ordered(self) -> "Levels":
        if self.low >= self.high:
            raise ValueError(f"low {self.low} must be below high {self.high}")
        return self

    def draw(self, uniform: Array) -> Array:
        """gamma (N,) from numbers (N, 2) uniform in [0, 1)."""
        if self.name == "log_snr":
            return gamma_of(self.low + (self.high - self.low) * uniform[:, 0])
        table = self.schedule.gammas()
        t = 1 + np.floor(uniform[:, 0] * self.schedule.steps).astype(np.int64)
        return table[t] + (table[t - 1] - table[t]) * uniform[:, 1]

    def span(self) -> tuple[float, float]:
        """Half log-SNR of the noisiest and of the cleanest level of training; a table's t = 1 stands for its clean end."""
        if self.name == "log_snr":
            return self.low, self.high
        table = self.schedule.gammas()
        return float(half_log_snr(table[-1])), float(half_log_snr(table[1]))


def half_log_snr(gamma: Array | float) -> Array:
    """lambda = 0.5 ln(gamma / (1 - gamma)) for gamma in (0, 1)."""
    gamma = np.asarray(gamma, dtype=np.float64)
    return 0.5 * (np.log(gamma) - np.log1p(-gamma))


def gamma_of(half_log_snr: Array | float) -> Array:
    """The inverse of ``half_log_snr``."""
    return 1.0 / (1.0 + np.exp(-2.0 * np.asarray(half_log_snr, dtype=np.float64)))
