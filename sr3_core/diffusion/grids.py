"""The levels that sampling walks: ascending gammas ending at 1, float64, one network call at each but the last. Numbers only, no torch.

See schedules.py for gamma, the half log-SNR and sigma.
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from sr3_core import config
from sr3_core.config import Section, Stage
from sr3_core.config.unread import refuse_unread
from sr3_core.diffusion.schedules import Array, Levels, Schedule, gamma_of
from sr3_core.errors import BadInput

# which of the options below each grid reads
_READS: dict[str, tuple[str, ...]] = {
    "time": (),
    "log_snr": ("start", "end"),
    "karras": ("start", "end", "rho"),
    "betas": ("betas",),
    "given": ("gammas",),
}


class Sampling(Section):
    """How a sample is drawn: by which ``sampler``, in how many ``steps``, over which ``grid`` of levels, under which constraints.

    ``grid``: ``time``, the schedule of training re-spaced in t; ``log_snr``, uniform in half log-SNR from ``start`` to ``end`` (null:
    the span of training); ``karras``, from and to the same in sigma, with ``rho`` (Karras et al. 2022, eq. 5); ``betas``, a schedule
    made for sampling alone, walked in its own number of steps or in fewer; ``given``, the ascending ``gammas`` in [0, 1), to which 1 is
    added, one step each.

    ``eta`` is read by ddim, ``order`` by the multistep samplers (3: unipc alone) and ``posterior_variance`` by ancestral; the others
    leave them alone, so that a sampler can be exchanged by its name, and the objective's notes say so.

    Each step's x0 as an image is held to [-1, 1] by ``clip``; before that, ``dynamic_threshold`` p divides it by the p-quantile of its
    absolute values where that exceeds 1 (Saharia et al. 2022, section 2.3; theirs is .995). ``projection``: passes of
    x0 += up(low - down(x0)) on each step's x0, the last of which is the sample; 0 for none.

    ``cuda_graph``: the network's call is recorded once and replayed at every step: the same numbers, faster where the host is what holds
    the GPU up (small batches). Refused where the network is not on a CUDA GPU.
    """

    sampler: Literal["ancestral", "ddim", "dpmpp_2m", "sde_dpmpp_2m", "unipc", "heun"] = "ancestral"
    steps: int = Field(default=100, ge=1)
    grid: Literal["time", "log_snr", "karras", "betas", "given"] = "time"
    start: float | None = Field(default=None, allow_inf_nan=False)
    end: float | None = Field(default=None, allow_inf_nan=False)
    rho: float = Field(default=7.0, gt=0, allow_inf_nan=False)
    betas: Schedule | None = None
    gammas: tuple[float, ...] | None = None
    order: Literal[1, 2, 3] = 2
    eta: float = Field(default=0.0, ge=0, le=1)
    posterior_variance: bool = False
    projection: int = Field(default=0, ge=0)
    clip: bool = True
    dynamic_threshold: float | None = Field(default=None, gt=0, le=1)
    cuda_graph: bool = False

    @model_validator(mode="before")
    @classmethod
    def _steps_of_gammas(cls, values: Any) -> Any:
        """``steps`` that were left out are the number of the given gammas."""
        gammas = values.get("gammas") if isinstance(values, dict) else None
        return {"steps": len(gammas), **values} if isinstance(gammas, list | tuple) and gammas else values

    @model_validator(mode="after")
    def _agrees(self) -> "Sampling":
        refuse_unread(self, "grid", _READS)
        for name in ("betas", "gammas"):
            if name in _READS[self.grid] and getattr(self, name) is None:
                raise ValueError(f"grid {self.grid} needs {name}")
        if self.betas is not None and self.steps > self.betas.steps:
            raise ValueError(
                f"betas of {self.betas.steps} steps cannot be walked in {self.steps}: set steps to {self.betas.steps} or fewer"
            )
        if self.gammas is not None:
            levels = np.array(self.gammas)
            if not (len(levels) and (np.diff(levels) > 0).all() and levels[0] >= 0.0 and levels[-1] < 1.0):
                raise ValueError("gammas must ascend within [0, 1), noise first; the last 1 is added")
            if self.steps != len(levels):
                raise ValueError(f"{len(levels)} gammas are {len(levels)} steps, not {self.steps}: set steps to {len(levels)}")
        if self.order == 3 and self.sampler in ("dpmpp_2m", "sde_dpmpp_2m"):
            raise ValueError(f"{self.sampler} has order 1 or 2; order 3 is unipc's")
        return self


def sampling_options(stage: Stage, overrides: Mapping[str, Any]) -> Sampling:
    """The stage's sampling options with ``overrides`` on top, validated; BadInput for a projection where there is no low image."""
    chosen = config.options(Sampling, {**stage.sampling, **overrides}, f"stage {stage.name}: sampling")
    if stage.low is None and chosen.projection:
        raise BadInput(f"stage {stage.name}: projection {chosen.projection} without a low image", "projection 0", "take it out of sampling")
    return chosen


def sampling_grid(stage: Stage, levels: Levels, chosen: Sampling) -> list[float]:
    """(steps + 1,) ascending gammas, the last 1, that ``chosen`` walks for a stage trained on ``levels``; BadInput when they do not ascend.

    A grid over the span of a training that ends without signal begins at gamma 0.
    """
    if chosen.gammas is not None:
        return [*chosen.gammas, 1.0]
    if chosen.betas is not None or chosen.grid == "time":
        return time_grid(chosen.steps, chosen.betas or levels.schedule).tolist()
    first, last = levels.span()
    first = first if chosen.start is None else chosen.start
    last = last if chosen.end is None else chosen.end
    if chosen.steps > 1 and first >= last:
        got = f"stage {stage.name}: sampling from start {first:g} to end {last:g}"
        raise BadInput(got, "a start below the end (half log-SNR, noise first)", "change sampling.start or sampling.end")
    from_zero = chosen.start is None and levels.terminal_gamma == 0.0
    steps = chosen.steps - int(from_zero)
    grid = log_snr_grid(steps, first, last) if chosen.grid == "log_snr" else karras_grid(steps, first, last, chosen.rho)
    return [0.0] * from_zero + grid.tolist()


def time_grid(steps: int, schedule: Schedule) -> Array:
    """(steps + 1,) ascending gammas: linear in the table's t from T to 0, log gamma interpolated; ``steps`` = T is the table itself."""
    table = schedule.gammas()
    t = np.linspace(schedule.steps, 0, steps + 1)
    before, after = np.floor(t).astype(np.int64), np.ceil(t).astype(np.int64)
    share = t - before
    linear = table[before] * (1.0 - share)  # towards a last level of 0, whose log there is not
    return np.where(table[after] > 0.0, table[before] ** (1.0 - share) * table[after] ** share, linear)


def log_snr_grid(steps: int, low: float, high: float) -> Array:
    """(steps + 1,) ascending gammas: ``steps`` points uniform in half log-SNR from ``low`` to ``high``, then 1."""
    return np.append(gamma_of(np.linspace(low, high, steps)), 1.0)


def karras_grid(steps: int, low: float, high: float, rho: float) -> Array:
    """(steps + 1,) ascending gammas: ``steps`` points uniform in sigma^(1 / rho) between the half log-SNR ``low`` and ``high``, then 1.

    Karras et al. 2022, eq. 5, where sigma = sqrt((1 - gamma) / gamma) and 1 stands for their sigma_N = 0.
    """
    sigma = np.linspace(np.exp(-low / rho), np.exp(-high / rho), steps) ** rho
    return np.append(1.0 / (1.0 + sigma**2), 1.0)
