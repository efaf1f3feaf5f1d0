"""Signal levels: training tables and how training draws them. Float64 throughout; sampling grids are in grids.py.

``gamma`` in [0, 1] is the cumulative signal level of the SR3 paper (arXiv 2104.07636, section 2; alpha-bar elsewhere):
``noisy = sqrt(gamma) y0 + sqrt(1 - gamma) eps``; alpha_t = gamma_t / gamma_{t-1} and beta_t = 1 - alpha_t. ``half log-SNR`` is
``lambda = 0.5 ln(gamma / (1 - gamma))``, and sigma = sqrt((1 - gamma) / gamma) = e^-lambda is the noise level of Karras et al. 2022.
"""

from collections.abc import Callable
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from sr3_core.config import Section
from sr3_core.config.unread import refuse_unread
from sr3_core.data.order import Order
from sr3_core.seeds import from_key, generator

Array = NDArray[np.float64]
ScheduleName = Literal["linear", "quadratic", "cosine", "const", "warmup10", "warmup50", "jsd", "sigmoid"]
BETWEEN = ("linear", "quadratic", "const", "warmup10", "warmup50")  # run from ``start`` to ``end``, over beta or over alpha

# which of a schedule's and of the levels' options each name reads; ``over`` has a refusal of its own
READS: dict[str, tuple[str, ...]] = {
    "linear": ("start", "end"),
    "quadratic": ("start", "end"),
    "const": ("end",),
    "warmup10": ("start", "end"),
    "warmup50": ("start", "end"),
    "jsd": (),
    "cosine": ("offset",),
    "sigmoid": ("logits", "temperature"),
}
_LEVELS_READ: dict[str, tuple[str, ...]] = {
    "piecewise": (),
    "piecewise_sqrt": (),
    "discrete": (),
    "log_snr": ("low", "high"),
    "log_normal": ("mean", "deviation"),
}

ALPHA_ENDS = {"start": 0.999999, "end": 0.99}  # of the public code that runs over alpha
MAX_BETA = 0.999  # the cosine schedule's clip (Nichol & Dhariwal 2021, section 3.2)
MIN_GAMMA = 1e-9  # the sigmoid schedule's clip (Chen 2023, algorithm 1)
REACH = 4.65  # deviations of a log-normal sigma that are drawn: EDM samples from sigma 80, 4.65 above its mean


class Schedule(Section):
    """A training table of T = ``steps`` levels. SR3's public codes: linear over beta, 1e-6 -> 1e-2, T = 2000.

    ``linear``, ``quadratic`` (linear in the square root), ``const``, ``warmup10`` and ``warmup50`` (linear over the first 10 or 50 % of
    the steps, then ``end``) run from ``start`` to ``end`` ``over`` beta or over alpha = 1 - beta; ``start`` and ``end`` are values of
    that quantity (default: 1e-6 -> 1e-2, or .999999 -> .99) and const reads ``end`` alone. ``jsd`` is beta_t = 1 / (T - t + 1), that
    is gamma_t = 1 - t / T: its last level has no signal (Sohl-Dickstein et al. 2015, section 2.4.1). ``cosine`` (Nichol & Dhariwal
    2021, eq. 17) reads ``offset``; ``sigmoid`` (Jabri et al. 2022; Chen 2023, algorithm 1) reads ``logits`` and ``temperature``.
    ``rescale_zero_terminal_snr`` moves the last level to gamma 0 (Lin et al. 2023, algorithm 1). A last level of 0 needs v, x0 or edm
    prediction.
    """

    name: ScheduleName = "linear"
    over: Literal["beta", "alpha"] = "beta"
    start: float = Field(default=1e-6, gt=0, lt=1)
    end: float = Field(default=1e-2, gt=0, lt=1)
    steps: int = Field(default=2000, ge=2)
    offset: float = Field(default=0.008, gt=0, lt=1)
    logits: tuple[float, float] = (-3.0, 3.0)
    temperature: float = Field(default=1.0, gt=0)
    rescale_zero_terminal_snr: bool = False

    @model_validator(mode="before")
    @classmethod
    def _ends(cls, values: Any) -> Any:
        """Over alpha, ``start`` and ``end`` that were left out take the values usual there."""
        return {**ALPHA_ENDS, **values} if isinstance(values, dict) and values.get("over") == "alpha" else values

    @model_validator(mode="after")
    def _agrees(self) -> "Schedule":
        if self.over == "alpha" and self.name not in BETWEEN:
            raise ValueError(f"schedule {self.name} does not run over alpha (jsd's 1 / T there would end the signal at its first step)")
        noise_grows = self.start <= self.end if self.over == "beta" else self.start >= self.end
        if self.name in BETWEEN and self.name != "const" and not noise_grows:
            order = "below" if self.over == "beta" else "above"
            raise ValueError(f"over {self.over} a schedule's start {self.start:g} must be {order} its end {self.end:g}: noise grows with t")
        if self.logits[0] >= self.logits[1]:
            raise ValueError(f"logits {list(self.logits)} must ascend")
        refuse_unread(self, "name", READS, defaults=ALPHA_ENDS if self.over == "alpha" else None)
        with np.errstate(all="ignore"):
            table = self.gammas()
        if not (np.isfinite(table).all() and (np.diff(table) <= 0.0).all() and table[-1] >= 0.0):
            raise ValueError(f"the {self.name} schedule of these values has no levels that descend from 1 (float64): use usual values")
        return self

    def gammas(self) -> Array:
        """(T + 1,) descending from 1, entry t the level after t steps; the last one is 0 for jsd and after rescaling."""
        table = _TABLES[self.name](self)
        return zero_terminal(table) if self.rescale_zero_terminal_snr else table


def _linear(s: Schedule) -> Array:
    return _cumulative(s, np.linspace(s.start, s.end, s.steps))


def _quadratic(s: Schedule) -> Array:
    return _cumulative(s, np.linspace(s.start**0.5, s.end**0.5, s.steps) ** 2)


def _const(s: Schedule) -> Array:
    return _cumulative(s, np.full(s.steps, s.end))


def _warmup10(s: Schedule) -> Array:
    return _warmup(s, s.steps // 10)


def _warmup50(s: Schedule) -> Array:
    return _warmup(s, s.steps // 2)


def _warmup(s: Schedule, rising: int) -> Array:
    return _cumulative(s, np.append(np.linspace(s.start, s.end, rising), np.full(s.steps - rising, s.end)))


def _jsd(s: Schedule) -> Array:
    return 1.0 - np.arange(s.steps + 1) / s.steps


def _cosine(s: Schedule) -> Array:
    level = np.cos((np.linspace(0.0, 1.0, s.steps + 1) + s.offset) / (1.0 + s.offset) * np.pi / 2.0) ** 2
    return _cumulative(s, np.minimum(1.0 - level[1:] / level[:-1], MAX_BETA))


def _sigmoid(s: Schedule) -> Array:
    level = 1.0 / (1.0 + np.exp(np.linspace(*s.logits, s.steps + 1) / s.temperature))
    return np.maximum((level - level[-1]) / (level[0] - level[-1]), MIN_GAMMA)


def _cumulative(s: Schedule, values: Array) -> Array:
    """1 followed by the cumulative products of alpha, for ``values`` of what the schedule runs over."""
    return np.append(1.0, np.cumprod(1.0 - values if s.over == "beta" else values))


_TABLES: dict[str, Callable[[Schedule], Array]] = {
    "linear": _linear,
    "quadratic": _quadratic,
    "cosine": _cosine,
    "const": _const,
    "warmup10": _warmup10,
    "warmup50": _warmup50,
    "jsd": _jsd,
    "sigmoid": _sigmoid,
}


def zero_terminal(table: Array) -> Array:
    """``table`` (T + 1,) with sqrt(gamma) shifted and scaled so that gamma_1 stays and gamma_T is 0 (Lin et al. 2023, algorithm 1)."""
    root = np.sqrt(table)
    root[1:] = (root[1:] - root[-1]) * (root[1] / (root[1] - root[-1]))
    return root**2


class Levels(Section):
    """How training draws gamma for each sample.

    From ``schedule``, t uniform on 1..T: ``piecewise``, gamma uniform between the levels of t - 1 and t (SR3, section 2.4);
    ``piecewise_sqrt``, sqrt(gamma) uniform between theirs (the best-known public code); ``discrete``, the level of t (DDPM).
    Without a table: ``log_snr``, half log-SNR uniform in [``low``, ``high``]; ``log_normal``, ln sigma normal with ``mean`` and
    ``deviation`` (Karras et al. 2022, table 1), cut off at 4.65 deviations. ``stratified``: the draws of one global batch are spread
    evenly, one in each of its equal parts of [0, 1).
    """

    name: Literal["piecewise", "piecewise_sqrt", "discrete", "log_snr", "log_normal"] = "piecewise"
    schedule: Schedule = Schedule()
    low: float = -4.0
    high: float = 4.5
    mean: float = -1.2
    deviation: float = Field(default=1.2, gt=0)
    stratified: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> "Levels":
        if self.low >= self.high:
            raise ValueError(f"low {self.low} must be below high {self.high}")
        refuse_unread(self, "name", _LEVELS_READ)
        return self

    @property
    def tabled(self) -> bool:
        """Whether levels come from ``schedule``."""
        return self.name in ("piecewise", "piecewise_sqrt", "discrete")

    def uniform(self, sample_index: NDArray[np.int64], *, seed: int, global_batch: int) -> Array:
        """Numbers (N, 2) uniform in [0, 1) for ``draw``, each row a function of (seed, its global sample index) alone.

        Stratified, the first number of sample i is (slot + u) / B: B is the global batch and slot the place of i in a permutation of
        its batch, which is keyed by the batch's number i // B.
        """
        drawn = np.stack([generator(seed, "gamma", int(index)).random(2) for index in sample_index])
        if self.stratified:
            order = Order(global_batch, from_key("gamma strata", seed))
            drawn[:, 0] = (np.array([order.sample(int(index)) for index in sample_index]) + drawn[:, 0]) / global_batch
        return drawn

    def draw(self, uniform: Array) -> Array:
        """gamma (N,) from numbers (N, 2) uniform in [0, 1)."""
        first, second = uniform[:, 0], uniform[:, 1]
        if self.name == "log_snr":
            return gamma_of(self.low + (self.high - self.low) * first)
        if self.name == "log_normal":
            normal = NormalDist()
            tail = normal.cdf(-REACH)
            deviates = np.array([normal.inv_cdf(tail + (1.0 - 2.0 * tail) * float(u)) for u in first])
            return gamma_of(-(self.mean + self.deviation * deviates))
        table = self.schedule.gammas()
        t = 1 + np.floor(first * self.schedule.steps).astype(np.int64)
        if self.name == "discrete":
            return table[t]
        power = 2 if self.name == "piecewise_sqrt" else 1
        table = table ** (1.0 / power)
        return (table[t] + (table[t - 1] - table[t]) * second) ** power

    @property
    def terminal_gamma(self) -> float:
        """The noisiest level of training; 0 where its table ends without signal."""
        return float(self.schedule.gammas()[-1]) if self.tabled else float(gamma_of(self.span()[0]))

    def span(self) -> tuple[float, float]:
        """Half log-SNR of the noisiest level of training that has signal and of the cleanest; a table's t = 1 stands for its clean end."""
        if self.name == "log_snr":
            return self.low, self.high
        if self.name == "log_normal":
            return -self.mean - REACH * self.deviation, -self.mean + REACH * self.deviation
        table = self.schedule.gammas()
        return float(half_log_snr(table[table > 0.0][-1])), float(half_log_snr(table[1]))


def half_log_snr(gamma: Array | float) -> Array:
    """lambda = 0.5 ln(gamma / (1 - gamma)) for gamma in (0, 1)."""
    gamma = np.asarray(gamma, dtype=np.float64)
    return 0.5 * (np.log(gamma) - np.log1p(-gamma))


def gamma_of(half_log_snr: Array | float) -> Array:
    """The inverse of ``half_log_snr``."""
    return 1.0 / (1.0 + np.exp(-2.0 * np.asarray(half_log_snr, dtype=np.float64)))
