"""report.html: one file that opens without a network - verdict, numbers, pictures, quality against steps, definitions, lineage."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from sr3_core.artifacts.report import OURS, describe, generated, number, span
from sr3_core.artifacts.report_figures import Figure, option_text, search_charts

STYLE = Path(__file__).with_name("report.css")


def page(content: Mapping[str, Any], figures: Sequence[Figure]) -> str:
    """The whole page for report.json's ``content`` and the pictures."""
    title = f"Evaluation of {content['title']}"
    compared = [figure for figure in figures if figure.task in {task["name"] for task in content["tasks"]}]
    body = [
        f"<h1>{_arrows(title)}</h1>",
        f'<div class="soft">{_judged_on(content)}</div>',
        _gate(content["gate"]),
        _notes(content["notes"]),
        "<h2>Numbers</h2>"
        "<p>Means over images with 95 % intervals (bootstrap over photos). The gain is the mean paired difference per photo "
        "in favour of ours. Bold is the best of a row.</p>"
        if content["tasks"]
        else "",
        *[_task_table(content, task) for task in content["tasks"]],
        "<h2>Pictures</h2>" if compared else "",
        "<p>The crops lie where the truth has most detail; no result was looked at to choose them. Below each picture: its own numbers.</p>"
        if compared
        else "",
        *[_task_pictures(task, figures) for task in content["tasks"]],
        _generated(content, figures),
        _search(content),
        _definitions(content) if content["tasks"] else "",
        _lineage(content),
    ]
    style = STYLE.read_text(encoding="utf-8")
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
    page_body = f"<main>{''.join(body)}</main>"
    return f'<!doctype html>\n<html lang="en"><head>{head}<style>\n{style}</style></head>\n<body>{page_body}</body></html>\n'


def _arrows(text: str) -> str:
    return escape(text.replace("->", "\N{RIGHTWARDS ARROW}"))


def _judged_on(content: Mapping[str, Any]) -> str:
    counts = [f"{_arrows(task['label'])}: n = {task['n']}" for task in content["tasks"]]
    judged = [f"Held-out images of the split {escape(content['split'])}", *counts] if counts else ["No image was compared with another"]
    return " &middot; ".join([*judged, *[f"{_arrows(made['label'])}: {made['n']} images" for made in generated(content)]])


def _gate(gate: Sequence[Mapping[str, Any]]) -> str:
    if not gate:
        return '<div class="verdict holds">No gate was asked for</div>'
    failed = sum(not verdict["passed"] for verdict in gate)
    badge = f"Gate: all {len(gate)} rules hold" if not failed else f"Gate: {failed} of {len(gate)} rules fail"
    items = [f'<li><b class="{_outcome(verdict)}">{_outcome(verdict)}</b>{escape(_rule(verdict))}</li>' for verdict in gate]
    verdict = f'<div class="verdict {"fails" if failed else "holds"}">{badge}</div>'
    return f'{verdict}<details{" open" if failed else ""}><summary>the rules</summary><ul class="rules">{"".join(items)}</ul></details>'


def _notes(notes: Mapping[str, Sequence[str]]) -> str:
    """Warnings and waivers by stage; nothing when there are none."""
    items = [f"<li><b>{escape(stage)}</b>{escape(note)}</li>" for stage, lines in notes.items() for note in lines]
    return f'<ul class="rules">{"".join(items)}</ul>' if items else ""


def _outcome(verdict: Mapping[str, Any]) -> str:
    return "holds" if verdict["passed"] else "fails"


def _rule(verdict: Mapping[str, Any]) -> str:
    return describe(verdict).replace(": holds", "").replace(": FAILS", "")


def _task_table(content: Mapping[str, Any], task: Mapping[str, Any]) -> str:
    results = {(result["model"], result["metric"]): result for result in content["results"] if result["task"] == task["name"]}
    models = [model for model in (OURS, *content["variants"], *content["baselines"]) if any(key[0] == model for key in results)]
    first = next(iter(content["baselines"]), None)
    gains = {gain["metric"]: gain for gain in content["gains"] if gain["task"] == task["name"] and gain["than"] == first}
    head = "".join(f"<th{_mine(model)}>{escape(model)}</th>" for model in models)
    gain_head = f"<th>gain over {escape(first)}</th>" if first else ""
    rows: list[str] = []
    for metric in content["metrics"]:
        cells = [results.get((model, metric["name"])) for model in models]
        if all(cell is None for cell in cells):
            continue
        arrow = "&darr;" if metric["better"] == "lower" else "&uarr;"
        name = f"<td>{escape(metric['name'])} {arrow}<small>{escape(metric['unit'])}</small></td>"
        best = _best(cells, metric["better"])
        columns = "".join(_cell(cell, model, best=best) for cell, model in zip(cells, models, strict=True))
        ours = results.get((OURS, metric["name"]))
        worst = f"{escape(ours['worst_key'])}<small>{number(ours['worst'])}</small>" if ours else ""
        ends = f"<td>{ours['n'] if ours else 0}</td><td>{worst}</td>"
        rows.append(f"<tr>{name}{columns}{_gain(gains.get(metric['name'])) if first else ''}{ends}</tr>")
    seconds = ", ".join(f"{escape(model)} {number(value)} s" for model, value in task["seconds"].items())
    heading = f"<h3>{_arrows(task['label'])}</h3><p class='soft'>{escape(task['note'])} Time per image: {seconds}.</p>"
    return (
        f'{heading}<div class="scroll"><table><thead><tr><th>metric</th>{head}{gain_head}<th>n</th><th>worst image (ours)</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _best(cells: Sequence[Mapping[str, Any] | None], better: str) -> float | None:
    means = [float(cell["mean"]) for cell in cells if cell is not None]
    return None if len(means) < 2 else min(means) if better == "lower" else max(means)


def _cell(cell: Mapping[str, Any] | None, model: str, *, best: float | None) -> str:
    if cell is None:
        return f"<td{_mine(model)}>-</td>"
    classes = " ".join(name for name, on in (("mine", model == OURS), ("best", cell["mean"] == best)) if on)
    return f'<td class="{classes}">{number(cell["mean"])}<small>{span(cell["interval_low"], cell["interval_high"])}</small></td>'


def _gain(gain: Mapping[str, Any] | None) -> str:
    if gain is None:
        return "<td>-</td>"
    kind = "ahead" if gain["mean"] > 0 else "behind"
    sign = "+" if gain["mean"] > 0 else ""
    return f'<td class="{kind}">{sign}{number(gain["mean"])}<small>{span(gain["interval_low"], gain["interval_high"])}</small></td>'


def _mine(model: str) -> str:
    return ' class="mine"' if model == OURS else ""


def _task_pictures(task: Mapping[str, Any], figures: Sequence[Figure]) -> str:
    own = [figure for figure in figures if figure.task == task["name"]]
    return "".join([f"<h3>{_arrows(task['label'])}</h3>", *[_sample(figure) for figure in own]]) if own else ""


def _generated(content: Mapping[str, Any], figures: Sequence[Figure]) -> str:
    """What was made from noise, with the sentence that says so; nothing where every stage has a low image."""
    parts: list[str] = []
    for made in generated(content):
        parts.append(f"<h3>{_arrows(made['label'])}</h3><p class='soft'>{escape(made['note'])}</p>")
        parts += [_sample(figure) for figure in figures if figure.task == made["name"]]
    return f"<h2>From noise</h2>{''.join(parts)}" if parts else ""


def _sample(figure: Figure) -> str:
    panels: list[str] = []
    for panel in figure.panels:
        marks = "".join(
            f'<i class="box-{index}" style="left:{x:.2f}%;top:{y:.2f}%;width:{w:.2f}%;height:{h:.2f}%"></i>'
            for index, (x, y, w, h) in enumerate(figure.boxes)
        )
        kind = ' class="pixelated"' if panel.pixelated else ""
        alternative = escape(f"{figure.key}: {panel.label}", quote=True)
        whole = f'<div class="whole"><img{kind} src="{panel.overview}" alt="{alternative}">{marks}</div>'
        crops = "".join(
            f'<div class="crop box-{index}"><img src="{crop}" alt="{alternative}, crop {index + 1}"></div>'
            for index, crop in enumerate(panel.crops)
        )
        name = f'<div class="name{" mine" if panel.label == OURS else ""}">{escape(panel.label)}</div>'
        note = f'<div class="note">{escape(panel.note)}</div>' if panel.note else ""
        panels.append(f'<div class="panel">{name}{whole}{crops}{note}</div>')
    return f'<figure class="sample"><figcaption>{escape(figure.key)}</figcaption><div class="panels">{"".join(panels)}</div></figure>'


def _search(content: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{escape(stage)}</td><td class='text'>{escape(option_text(sampling))}</td></tr>"
        for stage, sampling in content["sampling"].items()
    )
    head = '<tr><th>stage</th><th class="text">chosen sampling</th></tr>'
    table = f'<div class="scroll"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>'
    searched = {stage: search for stage, search in content["search"].items() if search["candidates"]}
    if not searched:
        return f"<h2>Sampling</h2><p>No search was made.</p>{table}"
    charts = "".join(search_charts(search, stage) for stage, search in searched.items())
    text = "<p>Chosen on held-out photos, none of them judged above. A ring marks the choice: the best mean over the same photos.</p>"
    return f'<h2>Quality against steps</h2>{text}<div class="charts">{charts}</div><h3>Chosen</h3>{table}'


def _definitions(content: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{escape(metric['name'])}</td><td class='text'>{escape(metric['colour'])}</td>"
        f"<td class='text'>{escape(_borders(metric))}</td><td class='text'>{escape(metric['note'])}</td></tr>"
        for metric in content["metrics"]
    )
    columns = "".join(f"<th class='text'>{name}</th>" for name in ("colour space", "border cut, pixels", "definition"))
    head = f"<tr><th>metric</th>{columns}</tr>"
    intro = f"<p>Outputs are rounded to 8 bits before every metric. Low images were made by {escape(content['degradation'])}.</p>"
    return f'<h2>How it was measured</h2>{intro}<div class="scroll"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>'


def _borders(metric: Mapping[str, Any]) -> str:
    values = set(metric["border"].values())
    if len(values) == 1:
        return str(next(iter(values)))
    return ", ".join(f"{task} {border}" for task, border in metric["border"].items())


def _lineage(content: Mapping[str, Any]) -> str:
    lines = [("evaluation", content["fingerprint"]), ("photos", content["shards"]["sha256"])]
    lines += [(f"bundle {bundle['stage']}", bundle["sha256"]) for bundle in content["bundles"]]
    rows = "".join(f"<tr><td>{escape(name)}</td><td class='text'><code>{escape(value)}</code></td></tr>" for name, value in lines)
    text = "<p>Full-size pictures and the numbers of every image stand beside this page: pictures/ and per_image.parquet.</p>"
    return f'<h2>Where it comes from</h2>{text}<div class="scroll"><table><tbody>{rows}</tbody></table></div>'
