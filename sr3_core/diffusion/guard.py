"""The schedule guard: is training's noisiest level noise enough, and does sampling walk where training was? Numbers only, no torch.

A schedule that ends with signal left (most often: a published one with fewer steps) and a grid that starts below the noisiest level of
training give washed-out or garbage images without any error; both are known from the recipe alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sr3_core.diffusion.schedules import BETWEEN, REACH, Levels, Schedule, gamma_of, half_log_snr
from sr3_core.errors import BadInput

WARN_GAMMA, REFUSE_GAMMA = 1e-3, 1e-2  # of signal left at the noisiest level of training
START_SHARE = 0.9  # of the noisiest trained gamma: how far below it a grid may start
PUBLISHED_GAMMA = float(Schedule().gammas()[-1])  # 4.4e-5, linear betas 1e-6 -> 1e-2 over 2000 steps
LARGEST_BETA = 0.5  # of a schedule worth training on: above it a last step leaves less than half of what signal there is
USUAL_START = -4.0  # half log-SNR from which few steps still sample well


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong; what is not ``refused`` is a warning."""

    got: str
    allowed: str
    do: str
    refused: bool


@dataclass(frozen=True)
class Ranges:
    """``terminal_gamma``: the noisiest level of training; ``trained``: half log-SNR of its noisiest (with signal) and cleanest level;
    ``sampled``: gamma of the first and of the last network call, None without a grid; ``notes``: warnings and waivers, a line each."""

    terminal_gamma: float
    trained: tuple[float, float]
    sampled: tuple[float, float] | None
    notes: tuple[str, ...]


def check(stage: str, levels: Levels, grid: Sequence[float] | None, *, reason: str = "") -> Ranges:
    """The ranges of training and of the stage's own sampling ``grid`` (ascending gammas ending at 1), and what is to be said of them.

    ``reason``: why a published schedule is kept although the guard refuses it; what it refuses is then waived, in a note. BadInput with
    the value that would be right for what is refused without a ``reason``, and for a ``reason`` where nothing is refused.
    """
    found = findings(levels, grid)
    refused = [finding for finding in found if finding.refused]
    if refused and not reason:
        raise _refusal(stage, refused[0], f", or {_WAIVER}")
    if reason and not refused:
        do = "take schedule_guard and schedule_guard_reason out of objective.options"
        raise BadInput(f"stage {stage}: schedule_guard published, but the guard refuses nothing", "schedule_guard enforced", do)
    sampled = None if grid is None else (float(grid[0]), float(grid[-2]))
    return Ranges(levels.terminal_gamma, levels.span(), sampled, tuple(_note(finding, reason) for finding in found))


def check_other(stage: str, levels: Levels, grid: Sequence[float], *, own: Sequence[float] | None, reason: str = "") -> tuple[str, ...]:
    """What is to be said of another ``grid`` than the stage's ``own``, which ``check`` let pass with that ``reason``.

    A reason waives what is refused of the own grid (a start at that level, say) and nothing else. Raises BadInput.
    """
    waived = {finding.got for finding in findings(levels, own)} if reason else set[str]()
    found = findings(levels, grid)
    for finding in found:
        if finding.refused and finding.got not in waived:
            raise _refusal(stage, finding, "")
    return tuple(_note(finding, reason) for finding in found)


_WAIVER = "objective.options.schedule_guard=published with a schedule_guard_reason to keep a published schedule"


def findings(levels: Levels, grid: Sequence[float] | None) -> list[Finding]:
    """Everything the guard has to say, training first."""
    found = _of_training(levels)
    return found if grid is None else [*found, *_of_sampling(levels, grid)]


def right_end(schedule: Schedule, gamma: float) -> float:
    """The ``end`` that gives a schedule of BETWEEN the terminal ``gamma``, all else equal; found by bisection.

    It lies between the schedule's start and where no signal is left, or anywhere in (0, 1) for const, which has no start.
    """
    start = schedule.start if schedule.name != "const" else float(schedule.over == "alpha")
    low, high = (start, 1.0) if schedule.over == "beta" else (0.0, start)  # an end nearer to low, or to high, ...
    for _ in range(60):
        middle = 0.5 * (low + high)
        has_more = schedule.model_copy(update={"end": middle, "rescale_zero_terminal_snr": False}).gammas()[-1] > gamma
        if has_more == (schedule.over == "beta"):  # ... leaves more signal over beta, less over alpha
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


def _of_training(levels: Levels) -> list[Finding]:
    terminal = levels.terminal_gamma
    if terminal <= WARN_GAMMA:  # false for what is no number
        return []
    got = f"{_named(levels)} end at gamma {terminal:.3g}: training never sees noise without signal, where sampling starts"
    allowed = f"a terminal gamma of at most {REFUSE_GAMMA:g} (over {WARN_GAMMA:g} is warned of)"
    return [Finding(got, allowed, _rescaled(levels), refused=not terminal <= REFUSE_GAMMA)]


def _named(levels: Levels) -> str:
    if levels.name == "log_snr":
        return f"levels log_snr from {levels.low:g}"
    if levels.name == "log_normal":
        return f"levels log_normal of mean {levels.mean:g} and deviation {levels.deviation:g}"
    schedule = levels.schedule
    ends = f" {schedule.start:g} -> {schedule.end:g} over {schedule.over}" if schedule.name in BETWEEN else ""
    return f"the schedule's {schedule.steps} steps ({schedule.name}{ends})"


def _rescaled(levels: Levels) -> str:
    """The value that would be right, as an instruction."""
    if levels.name == "log_snr":
        return f"set levels.low={USUAL_START:g} (gamma {gamma_of(USUAL_START):.2g})"
    if levels.name == "log_normal":
        return f"set levels.mean={-USUAL_START - REACH * levels.deviation:.3g} (gamma {gamma_of(USUAL_START):.2g})"
    schedule = levels.schedule  # one of BETWEEN: every other ends below WARN_GAMMA, whatever its options
    end = right_end(schedule, PUBLISHED_GAMMA)
    if (end if schedule.over == "beta" else 1.0 - end) > LARGEST_BETA:
        return f"take more steps: {schedule.steps} would need an end of {_within(end, schedule)}"
    right = f"terminal gamma {PUBLISHED_GAMMA:.2g}, that of linear betas 1e-6 -> 1e-2 over 2000 steps"
    return f"set levels.schedule.end={_within(end, schedule)} ({right})"


def _within(end: float, schedule: Schedule) -> str:
    """``end`` in as few digits, four at least, as leave it in (0, 1) and on its side of the start."""
    for digits in range(4, 18):
        text = f"{end:.{digits}g}"
        noisier = schedule.name == "const" or (float(text) >= schedule.start if schedule.over == "beta" else float(text) <= schedule.start)
        if 0.0 < float(text) < 1.0 and noisier:
            return text
    return repr(end)


def _of_sampling(levels: Levels, grid: Sequence[float]) -> list[Finding]:
    first, last = float(grid[0]), float(grid[-2])
    noisiest, cleanest = levels.terminal_gamma, float(gamma_of(levels.span()[1]))
    usual = _start_at(max(noisiest, float(gamma_of(USUAL_START))))
    found: list[Finding] = []
    if first < START_SHARE * noisiest:
        got = f"sampling starts at gamma {first:.3g}, but the noisiest level of training is {noisiest:.3g}"
        found.append(Finding(got, f"a start of at least {START_SHARE:g} x that", _start_at(noisiest), refused=True))
    elif first > cleanest:
        got = f"sampling starts at gamma {first:.6g}, but the cleanest level of training is {cleanest:.6g}"
        found.append(Finding(got, "a start among the levels of training", usual, refused=True))
    elif first > max(REFUSE_GAMMA, noisiest / START_SHARE):  # at the noisiest level itself it is training that is at fault, and said
        got = f"sampling starts from pure noise at gamma {first:.3g}, where {first**0.5:.2g} of the image's amplitude should be left"
        found.append(Finding(got, f"a start of at most {REFUSE_GAMMA:g}", usual, refused=False))
    reaches_1 = levels.name in ("piecewise", "piecewise_sqrt")
    if not reaches_1 and 1.0 - last < START_SHARE * (1.0 - cleanest):
        got = (
            f"sampling's last network call is at 1 - gamma = {1.0 - last:.3g}, but the cleanest level of training has {1.0 - cleanest:.3g}"
        )
        found.append(Finding(got, "levels of training", "end the grid earlier or train cleaner levels", refused=False))
    return found


def _start_at(gamma: float) -> str:
    return f"start at gamma {gamma:.4g} (half log-SNR {float(half_log_snr(gamma)):.3f}; sampling.grid=log_snr without a start does so)"


def _refusal(stage: str, finding: Finding, other: str) -> BadInput:
    return BadInput(f"stage {stage}: {finding.got}", finding.allowed, finding.do + other)


def _note(finding: Finding, reason: str) -> str:
    return f"waived as published: {finding.got} ({reason})" if finding.refused else f"warning: {finding.got}; {finding.do}"
