"""What the report shows beside numbers: side-by-side pictures with zoomed crops at the same place, and quality against sampling steps.

Pictures become bytes of the page itself; nothing is fetched when it is opened. No torch here.
"""

import base64
import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from sr3_core import images
from sr3_core.artifacts.report import number, span

Image = NDArray[np.uint8]  # (H, W, C)
OVERVIEW_PIXELS = 384
OVERVIEW_QUALITY = 90
NUM_CROPS = 2
SMALLEST_CROP = 64
CROPS_PER_SIDE = 8
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 460, 280, 58, 18, 16, 46  # of a chart, in its own units
NUM_SERIES_COLOURS = 6


@dataclass(frozen=True)
class Crop:
    """A square of the high image in pixels, aligned to low-image pixels; ``side`` is its length."""

    top: int
    left: int
    side: int


@dataclass(frozen=True)
class Panel:
    """One picture of a figure: whole, smaller (data URI), and its crops at full resolution (data URIs)."""

    label: str
    overview: str
    crops: tuple[str, ...]
    note: str = ""
    pixelated: bool = False


@dataclass(frozen=True)
class Figure:
    """One held-out image: low, baseline, ours, truth; or images from noise. ``boxes``: (left, top, width, height) of the crops in percent
    of the image."""

    task: str
    key: str
    panels: tuple[Panel, ...]
    boxes: tuple[tuple[float, float, float, float], ...]


def figure(*, task: str, key: str, low: Image, outputs: Mapping[str, Image], truth: Image, notes: Mapping[str, str]) -> Figure:
    """``outputs`` by model and ``truth`` are equal in size and ``low`` divides it; ``notes`` go below a panel, by its label."""
    scale = truth.shape[0] // low.shape[0]
    crops = detailed_crops(truth, scale)
    height, width = truth.shape[:2]
    in_low = [Crop(crop.top // scale, crop.left // scale, crop.side // scale) for crop in crops]
    panels = [_panel("low", low, in_low, notes, pixelated=True)]
    panels += [_panel(label, image, crops, notes) for label, image in (*outputs.items(), ("truth", truth))]
    boxes = tuple((100 * crop.left / width, 100 * crop.top / height, 100 * crop.side / width, 100 * crop.side / height) for crop in crops)
    return Figure(task, key, tuple(panels), boxes)


def gallery(*, task: str, key: str, pictures: Mapping[str, Image], notes: Mapping[str, str]) -> Figure:
    """``pictures`` by label, whole and side by side, with nothing beside them to compare with."""
    return Figure(task, key, tuple(_panel(label, image, (), notes) for label, image in pictures.items()), ())


def detailed_crops(truth: Image, scale: int) -> list[Crop]:
    """Up to ``NUM_CROPS`` squares, apart from each other, where the truth has most detail: chosen without looking at any result."""
    side = _aligned(min(*truth.shape[:2], max(SMALLEST_CROP, truth.shape[0] // CROPS_PER_SIDE)), scale)
    grey = truth.astype(np.float32).mean(axis=2)
    energy = np.zeros_like(grey)
    energy[:, 1:] += np.abs(np.diff(grey, axis=1))
    energy[1:, :] += np.abs(np.diff(grey, axis=0))
    total = np.pad(energy.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    stride = max(scale, _aligned(side // 2, scale))
    candidates: list[tuple[float, Crop]] = []
    for top in range(0, truth.shape[0] - side + 1, stride):
        for left in range(0, truth.shape[1] - side + 1, stride):
            inside = total[top + side, left + side] - total[top, left + side] - total[top + side, left] + total[top, left]
            candidates.append((float(inside), Crop(top, left, side)))
    chosen: list[Crop] = []
    for _, crop in sorted(candidates, key=lambda item: (-item[0], item[1].top, item[1].left)):
        if all(max(abs(crop.top - other.top), abs(crop.left - other.left)) >= 2 * side for other in chosen):
            chosen.append(crop)
        if len(chosen) == NUM_CROPS:
            break
    return chosen


def search_charts(search: Mapping[str, Any], stage: str) -> str:
    """Inline SVG of one stage's search: the metric's mean over sampling steps (or seconds), one line per sampler, the choice marked."""
    candidates = list(search["candidates"])
    by_steps = all("steps" in candidate["sampling"] for candidate in candidates)
    axis = "steps" if by_steps else "seconds a photo"
    series: dict[str, list[tuple[float, Mapping[str, Any]]]] = {}
    for candidate in candidates:
        name = _label(candidate["sampling"], candidates, leave_out="steps" if by_steps else None)
        x = float(candidate["sampling"]["steps"]) if by_steps else float(candidate["seconds"])
        series.setdefault(name, []).append((x, candidate))
    xs = [x for points in series.values() for x, _ in points]
    ys = [float(candidate["mean"]) for candidate in candidates]
    x_at, y_at = _scale(min(xs), max(xs), LEFT + 14, WIDTH - RIGHT - 14), _scale(min(ys), max(ys), HEIGHT - BOTTOM - 8, TOP + 8)
    parts = _axes(xs, ys, x_at, y_at, axis=axis, metric=search["metric"])
    for index, (name, points) in enumerate(series.items()):
        colour = f"var(--series-{index % NUM_SERIES_COLOURS})"
        points.sort(key=lambda point: point[0])
        line = " ".join(f"{x_at(x):.1f},{y_at(candidate['mean']):.1f}" for x, candidate in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for x, candidate in points:
            parts.append(_point(x_at(x), y_at(candidate["mean"]), candidate, colour, f"{name}, {axis} {x:g}"))
    swatches = [
        f'<span class="key"><i style="background:var(--series-{index % NUM_SERIES_COLOURS})"></i>{html.escape(name)}</span>'
        for index, name in enumerate(series)
    ]
    arrow = "lower is better" if search["better"] == "lower" else "higher is better"
    title = f"{html.escape(stage)}: {html.escape(search['metric'])} ({arrow}), n = {search['n']} on {html.escape(search['split'])}"
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">{"".join(parts)}</svg>'
    return f'<figure class="chart"><figcaption>{title}</figcaption>{svg}<div class="keys">{"".join(swatches)}</div></figure>'


def data_uri(data: bytes, kind: str) -> str:
    """Bytes of an image as a URI that needs no file; ``kind`` is png or jpeg."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def option_text(sampling: Mapping[str, Any]) -> str:
    """Sampling options as short text."""
    return ", ".join(f"{key} {value}" for key, value in sorted(sampling.items())) or "the stage's own"


def _panel(label: str, image: Image, crops: Sequence[Crop], notes: Mapping[str, str], *, pixelated: bool = False) -> Panel:
    longest = max(image.shape[:2])
    if longest > OVERVIEW_PIXELS:
        size = (max(1, image.shape[0] * OVERVIEW_PIXELS // longest), max(1, image.shape[1] * OVERVIEW_PIXELS // longest))
        overview = data_uri(images.encode(cast(Image, images.resize(image, size, "box")), "jpeg", OVERVIEW_QUALITY), "jpeg")
    else:
        overview = data_uri(images.encode(image), "png")
    cut = tuple(data_uri(images.encode(_cut(image, crop)), "png") for crop in crops)
    return Panel(label, overview, cut, notes.get(label, ""), pixelated)


def _cut(image: Image, crop: Crop) -> Image:
    return np.ascontiguousarray(image[crop.top : crop.top + crop.side, crop.left : crop.left + crop.side])


def _aligned(pixels: int, scale: int) -> int:
    return max(scale, pixels // scale * scale)


def _label(sampling: Mapping[str, Any], candidates: Sequence[Mapping[str, Any]], *, leave_out: str | None) -> str:
    """What tells this candidate from the others: the sampler's name, then the options that vary."""
    every = [candidate["sampling"] for candidate in candidates]
    names = sorted({name for options in every for name in options} - {leave_out})
    varying = [name for name in names if len({repr(options.get(name)) for options in every}) > 1]
    texts = [str(sampling[name]) if name == "sampler" else f"{name} {sampling[name]}" for name in varying if name in sampling]
    return ", ".join(texts) or "all"


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """The linear map of [low, high] onto [start, end]; the middle where there is nothing to spread."""

    def place(value: float) -> float:
        return start + (value - low) / (high - low) * (end - start) if high > low else (start + end) / 2

    return place


def _axes(
    xs: Sequence[float], ys: Sequence[float], x_at: Callable[[float], float], y_at: Callable[[float], float], *, axis: str, metric: str
) -> list[str]:
    floor = HEIGHT - BOTTOM
    parts: list[str] = []
    for tick in _ticks(min(ys), max(ys)):
        y = y_at(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{number(tick)}</text>')
    shown = sorted(set(xs)) if len(set(xs)) <= 6 else _ticks(min(xs), max(xs))
    for tick in shown:
        parts.append(f'<text x="{x_at(tick):.1f}" y="{floor + 18}" text-anchor="middle">{tick:.3g}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{floor}" y2="{floor}"/>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{html.escape(axis)}</text>')
    return parts


def _point(x: float, y: float, candidate: Mapping[str, Any], colour: str, name: str) -> str:
    interval = span(candidate["interval_low"], candidate["interval_high"])
    title = f"<title>{html.escape(name)}: {number(candidate['mean'])} (95 %: {interval})</title>"
    ring = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="9" fill="none" stroke="{colour}" stroke-width="2"/>' if candidate["chosen"] else ""
    return f'{ring}<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{colour}">{title}</circle>'


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers within [low, high], about five."""
    if high <= low:
        return [low]
    raw = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= raw)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]
