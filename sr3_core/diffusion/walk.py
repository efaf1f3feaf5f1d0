"""What a stage's sampling options come to: the levels walked, the network calls made, what is refused and what is to be said."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sr3_core.config import Stage
from sr3_core.diffusion import guard, samplers
from sr3_core.diffusion.grids import Sampling, sampling_grid, sampling_options
from sr3_core.diffusion.process import Prediction
from sr3_core.diffusion.schedules import Levels
from sr3_core.errors import BadInput


@dataclass(frozen=True)
class Walk:
    """``gammas``: (steps + 1,) ascending, the last 1; ``notes``: warnings and waivers of the schedule guard, and options that the sampler
    does not read, a line each."""

    chosen: Sampling
    gammas: tuple[float, ...]
    notes: tuple[str, ...]

    @property
    def network_calls(self) -> int:
        """Of one sample."""
        return samplers.network_calls(self.chosen.sampler, self.gammas)


def walk(stage: Stage, levels: Levels, prediction: Prediction, changes: Mapping[str, Any], *, reason: str) -> Walk:
    """The stage's sampling options with ``changes`` on top, for a network trained on ``levels``.

    ``reason`` waives what the guard refuses of the stage's own grid, see ``guard.check_other``. Raises BadInput.
    """
    chosen = sampling_options(stage, changes)
    gammas = sampling_grid(stage, levels, chosen)
    own = sampling_grid(stage, levels, sampling_options(stage, {}))
    notes = guard.check_other(stage.name, levels, gammas, own=own, reason=reason)
    if gammas[0] == 0.0 and prediction == "eps":
        got = f"stage {stage.name}: sampling from gamma 0 with eps prediction, which says nothing of the image there"
        raise BadInput(got, "a start above gamma 0, or v, x0 or edm prediction", "change the sampling grid")
    return Walk(chosen, tuple(gammas), notes + _unread(chosen))


def _unread(chosen: Sampling) -> tuple[str, ...]:
    fields = Sampling.model_fields
    return tuple(
        f"sampling.{name}={getattr(chosen, name)} is set, but sampler {chosen.sampler} does not read it"
        for name in samplers.unread(chosen.sampler)
        if getattr(chosen, name) != fields[name].get_default()
    )
