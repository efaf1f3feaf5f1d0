"""Pictures of the reverse process: from noise to the result, as an animation or as a grid. Encoding is in images/.

Frames are uint8 H x W x C. Only a bounded number of them is kept, however many steps are taken and however large the image is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sr3_core import images, storage
from sr3_core.errors import BadInput

ANIMATED: dict[str, images.AnimationFormat] = {".webp": "webp", ".gif": "gif"}
FORMATS = (*ANIMATED, ".png")
FRAMES = 24  # kept at most, shared by the stages
SIDE, CELL = 512, 256  # longest side of an animation's frame, and of a picture in the grid
STEPS = 10  # shown in a row of the grid
GAP, BACKGROUND = 4, 255
STEP_MILLISECONDS, RESULT_MILLISECONDS = 120, 2000

Picture = NDArray[np.uint8]


@dataclass
class Track:
    """One stage's chain: every ``stride``-th call of the network as (noisy state, predicted clean image), and the last one."""

    calls: int = 0
    stride: int = 1
    kept: list[tuple[Picture, Picture]] = field(default_factory=list[tuple[Picture, Picture]])
    last: tuple[Tensor, Tensor] | None = None


class Chain:
    """Hears every prediction of a sampling run of one image (``add``) and keeps evenly spaced ones of each of ``stages`` stages."""

    def __init__(self, *, stages: int) -> None:
        self.tracks: dict[str, Track] = {}
        self._limit = max(2, FRAMES // stages)

    def add(self, stage: str, gamma: float, noisy: Tensor, predicted: Tensor) -> None:
        """The state (1, C, H, W) before a step at level ``gamma`` and the clean image predicted from it, in [-1, 1] or a little outside."""
        track = self.tracks.setdefault(stage, Track())
        if track.calls % track.stride == 0:
            track.kept.append(_moment(noisy, predicted))
        track.last = noisy, predicted
        track.calls += 1
        if len(track.kept) > self._limit:  # the number of calls is not known before: thin out as it grows
            track.kept, track.stride = track.kept[::2], 2 * track.stride

    def moments(self) -> dict[str, list[tuple[Picture, Picture]]]:
        """What is kept of each stage in order: the first call, evenly spaced ones, the last call."""
        found: dict[str, list[tuple[Picture, Picture]]] = {}
        for stage, track in self.tracks.items():
            assert track.last is not None
            is_kept = (track.calls - 1) % track.stride == 0
            found[stage] = track.kept if is_kept else [*track.kept, _moment(*track.last)]
        return found


def check(target: str, *, outputs: Sequence[str], force: bool) -> str:
    """The absolute name of the file for the chain of the one image of ``outputs``. Raises BadInput for what cannot be written."""
    if Path(target).suffix.lower() not in FORMATS:
        raise BadInput(f"--chain {target}", f"a name that ends in {', '.join(FORMATS)} (.png is a grid)", "change its ending")
    if len(outputs) != 1:
        raise BadInput(f"--chain {target} for {len(outputs)} results", "one image and one sample", "make them one by one")
    name = storage.absolute(target)
    if name == outputs[0]:
        raise BadInput(f"--chain and -o are both {name}", "two names", "choose another name for the chain")
    if storage.exists(name) and not force:
        raise BadInput(f"{name} exists", "a --chain file that is not there yet", "choose another name or add --force")
    storage.check_writable(name.rpartition("/")[0])
    return name


def picture(chain: Chain, target: str, *, low: images.Array | None, result: images.Array) -> bytes:
    """The file's bytes, by the ending of ``target``. ``low`` (None: there was none) and ``result`` are the first stage's input and the
    last one's output, of any depth and number of channels."""
    suffix = Path(target).suffix.lower()
    low, result = None if low is None else images.preview(low), images.preview(result)
    if suffix not in ANIMATED:
        return images.encode(grid(chain, low=low, result=result))
    frames = animation(chain, result=result)
    return images.encode_animation(frames, ANIMATED[suffix], milliseconds=[STEP_MILLISECONDS] * (len(frames) - 1) + [RESULT_MILLISECONDS])


def animation(chain: Chain, *, result: Picture) -> list[Picture]:
    """Frames of one size, that of ``result`` or smaller: each stage's noisy states, then what it made, then the next stage's."""
    size = _bounded(result, SIDE)
    stages = list(chain.moments().values())
    frames: list[Picture] = []
    for number, moments in enumerate(stages, start=1):
        frames += [images.resize(noisy, size, "nearest") for noisy, _ in moments]
        frames.append(_scaled(result if number == len(stages) else moments[-1][1], size))
    return frames


def grid(chain: Chain, *, low: Picture | None, result: Picture) -> Picture:
    """Two rows a stage: the low image (where there is one) and the noisy states under way; below, the clean image predicted from each,
    and the result."""
    height, width = _bounded(result, CELL)
    stages = [[moments[index] for index in _evenly(len(moments))] for moments in chain.moments().values()]
    columns = max(len(moments) for moments in stages) + 2
    shape = (2 * len(stages) * (height + GAP) + GAP, columns * (width + GAP) + GAP, result.shape[2])
    canvas = np.full(shape, BACKGROUND, np.uint8)

    def put(row: int, column: int, shown: Picture) -> None:
        top, left = GAP + row * (height + GAP), GAP + column * (width + GAP)
        canvas[top : top + height, left : left + width] = shown

    for number, moments in enumerate(stages):
        given = low if number == 0 else stages[number - 1][-1][1]
        made = result if number == len(stages) - 1 else moments[-1][1]
        if given is not None:
            put(2 * number, 0, _scaled(given, (height, width)))
        for column, (noisy, predicted) in enumerate(moments, start=1):
            put(2 * number, column, images.resize(noisy, (height, width), "nearest"))
            put(2 * number + 1, column, _scaled(predicted, (height, width)))
        put(2 * number + 1, len(moments) + 1, _scaled(made, (height, width)))
    return canvas


def _moment(noisy: Tensor, predicted: Tensor) -> tuple[Picture, Picture]:
    """uint8 of at most SIDE pixels: the noise sampled, since averaging would hide it, and the prediction averaged."""
    state, clean = (images.preview(images.from_unit(tensor[0].float().cpu().numpy())) for tensor in (noisy, predicted))
    size = _bounded(state, SIDE)
    return images.resize(state, size, "nearest"), images.resize(clean, size, "box")


def _bounded(shown: Picture, side: int) -> tuple[int, int]:
    height, width = shown.shape[:2]
    factor = min(1.0, side / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def _scaled(shown: Picture, size: tuple[int, int]) -> Picture:
    """At ``size``: averaged when it is larger, its pixels repeated when it is smaller."""
    return images.resize(shown, size, "nearest" if shown.shape[0] < size[0] else "box")


def _evenly(count: int) -> list[int]:
    """At most STEPS places of ``count``, the first and the last among them."""
    return [round(float(place)) for place in np.linspace(0, count - 1, min(STEPS, count))]
