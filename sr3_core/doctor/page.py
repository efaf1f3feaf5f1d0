"""How the doctor's answer looks: lines for a terminal, and doctor.html, one file that opens without a network."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from sr3_core import images
from sr3_core.artifacts.report_figures import data_uri
from sr3_core.artifacts.report_page import STYLE
from sr3_core.config import Data
from sr3_core.doctor.checks import detailed_places, luminance

Pictures = Callable[[str], "images.Array | None"]  # key -> (H, W, 1 or 3) uint8; None when it cannot be read any more
Content = Mapping[str, Any]

SHOWN = 12  # pictures of one kind
ROWS = 1000  # of a list on the page; doctor.json names all
THUMBNAIL_PIXELS = 240
LISTED = 5  # names in a line of the terminal without --verbose
_EXTRA_STYLE = """
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: 16px; }
.sheet figure { margin: 0; padding: 10px; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
.sheet .pair { display: grid; grid-template-columns: 1fr 1fr; gap: 6px; align-items: start; }
.sheet img { width: 100%; height: auto; display: block; border-radius: 4px; }
.sheet .close { image-rendering: pixelated; }
.sheet figcaption { font-size: 13px; overflow-wrap: anywhere; margin-top: 6px; }
.sheet.wide { grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); }
"""


def text(content: Content, *, verbose: bool) -> str:
    """The answer for a terminal; ``verbose`` names every input that something is said of."""
    inputs, verdict = content["inputs"], content["verdict"]
    lines = [f"{_what(content)}: {_counts(content)}"]
    if content["not_looked_at"]:
        lines.append(f"not looked at: {_names(content['not_looked_at'], verbose=verbose)}")
    if content["other_files"]:
        lines.append(f"other files, which are no inputs: {_counted(content['other_files'])}")
    if inputs["usable"]:
        lines += ["", *_table(content), "", *_kinds(content)]
        lines += ["", *_levels(content)]
    found = list(_found(content, verbose=verbose))
    lines += ["", *found] if found else []
    if content["estimate"]:
        lines += ["", _cost(content["estimate"])]
    lines.append("")
    lines += [f"problem: {line}" for line in verdict["problems"]]
    lines += [f"warning: {line}" for line in verdict["warnings"]]
    lines.append(_verdict(content))
    lines += [f"  {line}" for line in settings(content)]
    return "\n".join(lines)


def settings(content: Content) -> list[str]:
    """The proposed values as lines of a recipe (YAML), defaults left out; none where a section was asked about, or nothing fits."""
    data = content["verdict"]["data"]
    if data is None or content["judged"]:
        return []
    usual = Data(source="", levels=(1,)).model_dump(mode="json")
    values = {name: value for name, value in data.items() if value != usual.get(name) or name == "fit"}
    if "split" in values:
        values["split"] = {name: value for name, value in values["split"].items() if value != usual["split"][name]}
    stages = ", ".join(f"{{low: {stage['low']}, high: {stage['high']}}}" for stage in content["verdict"]["stages"])
    return ["data:", *[f"  {name}: {_flow(value)}" for name, value in values.items()], f"stages: [{stages}]"]


def page(content: Content, pictures: Pictures) -> str:
    """The whole page. ``pictures`` is asked for at most ``SHOWN`` inputs of each kind."""
    verdict = content["verdict"]
    title = f"Doctor: {_what(content)}"
    items = [f'<li><b class="fails">problem</b>{escape(line)}</li>' for line in verdict["problems"]]
    items += [f"<li><b>warning</b>{escape(line)}</li>" for line in verdict["warnings"]]
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<div class="soft">{escape(_counts(content))}</div>',
        f'<div class="verdict {"holds" if verdict["usable"] else "fails"}">{escape(_verdict(content))}</div>',
        f'<ul class="rules">{"".join(items)}</ul>' if items else "",
        _code(settings(content)),
        f"<p>{escape(_cost(content['estimate']))}</p>" if content["estimate"] else "",
        "<h2>Sizes and kinds</h2>" + _code([*_table(content), "", *_kinds(content)]) if content["inputs"]["usable"] else "",
        _level_table(content),
        _enlarged(content, pictures),
        _flat(content, pictures),
        _pairs("Leaks between splits", "The left one is of the first split.", _leaks(content), pictures),
        _pairs("Near-duplicates", "Pairs that a perceptual hash cannot tell apart, closest first.", _near(content), pictures),
        _pairs("Exact copies", "Equal bytes.", _exact(content), pictures),
        _low_quality(content, pictures),
        _list("Refused inputs", [(item["key"], item["reason"], item["detail"]) for item in content["refused"]["inputs"]]),
        _list("Not looked at", [(key, "", "") for key in content["not_looked_at"]]),
        _list("Endings of other files, which are no inputs", [(name, str(count), "") for name, count in content["other_files"].items()]),
    ]
    style = STYLE.read_text(encoding="utf-8") + _EXTRA_STYLE
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
    inner = f"<main>{''.join(body)}</main>"
    return f'<!doctype html>\n<html lang="en"><head>{head}<style>\n{style}</style></head>\n<body>{inner}</body></html>\n'


def size(count: float) -> str:
    """Bytes in the largest unit that leaves a number of 1 or more."""
    if count < 1024:
        return f"{count:.0f} B"
    power = min(4, int(math.log(count, 1024)))
    return f"{count / 1024**power:.3g} {('KiB', 'MiB', 'GiB', 'TiB')[power - 1]}"


def duration(seconds: float) -> str:
    """Seconds, minutes, hours or days, to two or three digits."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"


def _what(content: Content) -> str:
    place = content["source"]["options"].get("uri", content["source"]["name"])
    return f"{place} (recipe {content['recipe']})" if content["recipe"] else str(place)


def _counts(content: Content) -> str:
    inputs = content["inputs"]
    some = f", {inputs['looked_at']} of them looked at" if inputs["not_looked_at"] else ""
    splits = [f"{name} {count}" for name, count in content["splits"].items() if name != "none"]
    labels = f"; {_number(content['labels'], 'label')}" if content["labels"] else ""
    published = f"; published splits: {', '.join(splits)}" if splits else ""
    usable = f"; {inputs['usable']} usable, {inputs['refused']} refused"
    return f"{_number(inputs['listed'], 'input')}{some}, {size(inputs['bytes'])}{usable}{published}{labels}"


def _table(content: Content) -> list[str]:
    rows = [f"{'pixels':<12}{'min':>8}{'median':>8}{'max':>8}"]
    return rows + [
        f"{name.replace('_', ' '):<12}{row['min']:>8}{row['median']:>8g}{row['max']:>8}" for name, row in content["sizes"].items() if row
    ]


def _kinds(content: Content) -> list[str]:
    lines = [f"{name}: {_counted(content[name])}" for name in ("formats", "modes", "depths", "channels")]
    quality = content["jpeg"]["quality"]
    return lines + ([f"JPEG quality: {quality['min']} .. {quality['max']}, median {quality['median']:g}"] if quality else [])


def _levels(content: Content) -> list[str]:
    rows = [f"{'level':<8}{'photos':>8}{'sharp':>8}   (short side reaches it; without enlarged ones)"]
    return rows + [f"{row['level']:<8}{row['photos']:>8}{row['sharp']:>8}" for row in content["levels"]]


def _found(content: Content, *, verbose: bool) -> Iterable[str]:
    """A line for each kind of finding that there is, with names."""
    refused = content["refused"]
    for reason, count in refused["reasons"].items():
        own = [item for item in refused["inputs"] if item["reason"] == reason]
        (detail, *others) = dict.fromkeys(item["detail"] for item in own)
        names = [_with(item["key"], item["detail"] if others else "") for item in own]
        yield f"refused, {_with(reason, '' if others else detail)}, {count}: {_names(names, verbose=verbose)}"
    kinds: list[tuple[str, Sequence[str]]] = [
        (
            "leaks between splits",
            [f"{_pair(item['keys'])} ({item['kind']}, {' and '.join(item['splits'])})" for item in content["leakage"]],
        ),
        ("exact copies", [" = ".join(group["keys"]) for group in content["duplicates"]["groups"]]),
        ("near-duplicates", [f"{_pair(item['keys'])} ({item['bits']} bits)" for item in content["near_duplicates"]["pairs"]]),
        ("enlarged or soft", [f"{item['key']} ({_enlargement(item)})" for item in content["enlarged"]["inputs"]]),
        ("flat", [f"{item['key']} ({item['detail']:.2g})" for item in content["flat"]["inputs"]]),
        ("low JPEG quality", [f"{item['key']} ({item['quality']})" for item in content["jpeg"]["low"]]),
    ]
    for name, found in kinds:
        if found:
            yield f"{name} ({len(found)}): {_names(found, verbose=verbose)}"
    if not content["near_duplicates"]["looked_for"]:
        yield "near-duplicates were not looked for: pip install imagehash"


def _enlargement(item: Mapping[str, Any]) -> str:
    how = "each pixel repeated" if item["kind"] == "repeated" else "detail ends at 1/"
    return f"{how} x{item['scale']:g}" if item["kind"] == "repeated" else f"{how}{item['scale']:g} of its size"


def _cost(estimate: Mapping[str, Any]) -> str:
    made = ", ".join([_number(estimate["samples"], "sample") + f" in {_number(estimate['shards'], 'shard')}", size(estimate["bytes"])])
    cost = f"{duration(estimate['seconds_per_core'])} of one core (measured on {estimate['measured_on']})"
    return f"prepare: about {_number(estimate['photos'], 'photo')} -> {made}, {cost}"


def _verdict(content: Content) -> str:
    verdict = content["verdict"]
    if not verdict["usable"]:
        return "verdict: not usable as it is"
    end = f", with {_number(len(verdict['warnings']), 'warning')}" if verdict["warnings"] else ""
    return f"verdict: prepare takes it{end}" if content["judged"] else f"verdict: usable{end}; a recipe with these values works"


def _names(names: Sequence[str], *, verbose: bool) -> str:
    if verbose:
        return "".join(f"\n  {name}" for name in names)
    more = f" and {len(names) - LISTED} more (--verbose names all)" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _number(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


def _with(name: str, detail: str) -> str:
    return f"{name} ({detail})" if detail else name


def _pair(keys: Sequence[str]) -> str:
    return f"{keys[0]} ~ {keys[1]}"


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _flow(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _code(lines: Sequence[str]) -> str:
    return f"<pre><code>{escape(chr(10).join(lines))}</code></pre>" if lines else ""


def _level_table(content: Content) -> str:
    rows = "".join(f"<tr><td>{row['level']}</td><td>{row['photos']}</td><td>{row['sharp']}</td></tr>" for row in content["levels"])
    head = "<tr><th>level</th><th>photos that reach it</th><th>with their detail</th></tr>"
    return f'<h2>Levels</h2><div class="scroll"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>'


def _enlarged(content: Content, pictures: Pictures) -> str:
    intro = "Their power spectrum ends below Nyquist's frequency, or pixels repeat. Right: the most detailed square, four times larger."
    cells: list[str] = []
    for item in content["enlarged"]["inputs"][:SHOWN]:
        array = pictures(item["key"])
        shown = "" if array is None else f'<div class="pair">{_thumbnail(array, item["key"])}{_close(array, item["key"])}</div>'
        cells.append(_cell(shown, f"{item['key']}: {_enlargement(item)}"))
    return _sheet("Enlarged or soft", intro, len(content["enlarged"]["inputs"]), cells, wide=True)


def _flat(content: Content, pictures: Pictures) -> str:
    flat = content["flat"]["inputs"]
    cells = [_cell(_thumbnail(pictures(item["key"]), item["key"]), f"{item['key']}: {item['detail']:.2g}") for item in flat[:SHOWN]]
    return _sheet("Flat", f"Differences between neighbouring pixels below {content['flat']['limit']:g} of 255.", len(flat), cells)


def _low_quality(content: Content, pictures: Pictures) -> str:
    low = content["jpeg"]["low"]
    cells = [_cell(_close(pictures(item["key"]), item["key"]), f"{item['key']}: about {item['quality']}") for item in low[:SHOWN]]
    return _sheet("Low JPEG quality", "The most detailed square of each, four times larger.", len(low), cells)


def _leaks(content: Content) -> list[tuple[Sequence[str], str]]:
    return [(item["keys"], f"{item['kind']}: {' and '.join(item['splits'])}") for item in content["leakage"]]


def _near(content: Content) -> list[tuple[Sequence[str], str]]:
    return [(item["keys"], f"{item['bits']} bits differ") for item in content["near_duplicates"]["pairs"]]


def _exact(content: Content) -> list[tuple[Sequence[str], str]]:
    return [(group["keys"][:2], f"{len(group['keys'])} files") for group in content["duplicates"]["groups"]]


def _pairs(title: str, intro: str, found: Sequence[tuple[Sequence[str], str]], pictures: Pictures) -> str:
    cells: list[str] = []
    for keys, note in found[:SHOWN]:
        shown = "".join(_thumbnail(pictures(key), key) for key in keys)
        cells.append(_cell(f'<div class="pair">{shown}</div>', f"{' ~ '.join(keys)}: {note}"))
    return _sheet(title, intro, len(found), cells, wide=True)


def _sheet(title: str, intro: str, count: int, cells: Sequence[str], *, wide: bool = False) -> str:
    if not cells:
        return ""
    shown = f" Shown: {len(cells)} of {count}." if count > len(cells) else ""
    return f"<h2>{title} ({count})</h2><p>{escape(intro)}{shown}</p><div class='sheet{' wide' if wide else ''}'>{''.join(cells)}</div>"


def _cell(shown: str, caption: str) -> str:
    return f"<figure>{shown}<figcaption>{escape(caption)}</figcaption></figure>"


def _thumbnail(array: "images.Array | None", name: str) -> str:
    if array is None:
        return ""
    scale = min(1.0, THUMBNAIL_PIXELS / max(array.shape[:2]))
    small = images.resize(array, (max(1, round(array.shape[0] * scale)), max(1, round(array.shape[1] * scale))), "box")
    return _image(small, name, "jpeg")


def _close(array: "images.Array | None", name: str) -> str:
    """The middle of the most detailed tile at four times its size, by nearest pixel."""
    if array is None:
        return ""
    side = max(1, min(THUMBNAIL_PIXELS // 4, *array.shape[:2]))
    light = luminance(array)
    top, left, around = detailed_places(light)[0]
    inset = max(0, around - side) // 2
    cut = np.ascontiguousarray(array[top + inset :][:side, left + inset :][:, :side])
    return _image(cut, name, "png", kind="close")


def _image(array: images.Array, name: str, format: images.Format, *, kind: str = "whole") -> str:
    return f'<img class="{kind}" src="{data_uri(images.encode(array, format, 85), format)}" alt="{escape(name, quote=True)}">'


def _list(title: str, rows: Sequence[tuple[str, str, str]]) -> str:
    if not rows:
        return ""
    cells = "".join("<tr>" + "".join(f"<td class='text'>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows[:ROWS])
    shown = f"<p>Shown: {ROWS} of {len(rows)}; doctor.json names all.</p>" if len(rows) > ROWS else ""
    return f'<h2>{title} ({len(rows)})</h2>{shown}<div class="scroll"><table><tbody>{cells}</tbody></table></div>'
