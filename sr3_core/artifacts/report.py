"""EvalReport: what evaluation leaves under root - file names, schema, write, verify, read, the closing table. No torch here.

    <folder>/report.json          the manifest, written last: every number with n, interval, colour space and border, gate, lineage
    <folder>/per_image.parquet    one row per split, task, model, image and metric; of an image from noise its seconds
    <folder>/report.html          the report for a browser, in one file           <folder>/pictures/<task>/<key>.<model>.png

A *task* is a stage judged by itself (its true low image in) or the whole cascade. A *model* is "ours", a variant of it or a baseline.
What an unconditional first stage and its cascade make from noise is no task: nothing of it is compared. It stands under "generated" of
report.json, a list of {name, label, high, n, seed, seconds (mean per image), note, pictures (files under pictures/)}; empty where the first
stage has a low image, absent from reports of older code.
"""

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from sr3_core import storage
from sr3_core.errors import BadInput

MANIFEST = "report.json"
TABLE = "per_image.parquet"
PAGE = "report.html"
PICTURES = "pictures"
SCHEMA_VERSION = 2
OURS = "ours"
CASCADE = "cascade"
NOISE, SECONDS = "noise", "seconds"  # the "split" and the only metric of images from noise


@dataclass(frozen=True)
class Measurement:
    """One metric of one image: a row of ``per_image.parquet``. ``photo`` names what the image was cut from, the unit of the bootstrap."""

    split: str
    task: str
    model: str
    key: str
    photo: str
    metric: str
    value: float
    sampling: str = ""  # JSON of the options that differ between candidates of a search; "" for a baseline
    seconds: float = 0.0


class EvalReport:
    """A finished report. ``content`` is report.json."""

    def __init__(self, uri: str, content: Mapping[str, Any], manifest_sha256: str) -> None:
        self.uri, self.content, self.manifest_sha256 = uri, dict(content), manifest_sha256

    @classmethod
    def open(cls, uri: str) -> "EvalReport":
        """Read and verify (every file by its sha256); BadInput when there is no report, it is newer than this code, or damaged."""
        uri = storage.absolute(uri)
        path = storage.join(uri, MANIFEST)
        if not storage.exists(path):
            raise BadInput(f"no {MANIFEST} in {uri}", "the folder of a finished evaluation", "run evaluate first")
        try:
            content = json.loads(storage.read_bytes(path))
            schema, files = content["schema"], content["files"]
        except (ValueError, KeyError, TypeError):
            raise BadInput(f"{path} is damaged", "what evaluate wrote", "remove its folder and run evaluate again") from None
        if schema > SCHEMA_VERSION:
            raise BadInput(f"{path} with schema {schema}", f"schema {SCHEMA_VERSION} or older", "update sr3")
        for name, expected in files.items():
            file = storage.join(uri, name)
            if not storage.exists(file) or storage.sha256(file) != expected:
                raise BadInput(f"{file} is missing or changed", "what evaluate wrote", "remove its folder and run evaluate again")
        return cls(uri, content, storage.sha256(path))

    @property
    def passed(self) -> bool:
        """Whether every rule of the gate holds (True for an empty gate)."""
        return all(verdict["passed"] for verdict in self.content["gate"])

    @property
    def sampling(self) -> dict[str, dict[str, Any]]:
        """The chosen sampling options by stage name."""
        return cast(dict[str, dict[str, Any]], self.content["sampling"])

    @property
    def page_uri(self) -> str:
        """Where report.html is."""
        return storage.join(self.uri, PAGE)

    def results(self, *, model: str) -> list[dict[str, Any]]:
        """The results of one model, in the order of tasks and metrics."""
        return [result for result in self.content["results"] if result["model"] == model]

    def failures(self) -> list[str]:
        """The gate's rules that do not hold, one line each."""
        return [describe(verdict) for verdict in self.content["gate"] if not verdict["passed"]]

    def notes(self) -> list[str]:
        """What is to be known of the stages beside their numbers, one line each: the schedule guard's warnings and waivers."""
        notes: Mapping[str, Sequence[str]] = self.content["notes"] if self.content["schema"] > 1 else {}  # schema 1 had none
        return [f"{stage}: {note}" for stage, lines in notes.items() for note in lines]

    def table(self) -> str:
        """``summary_table`` of this report."""
        return summary_table(self.content)

    def metrics(self) -> dict[str, float]:
        """``<task>/<metric>`` of ours, ``<task>/<model>/<metric>`` of the others and ``<task>/n``: for MLflow and KFP. Of what is made from
        noise ``<name>/seconds`` per image and its n."""
        flat: dict[str, float] = {f"{task['name']}/n": float(task["n"]) for task in [*self.content["tasks"], *generated(self.content)]}
        flat |= {f"{made['name']}/{SECONDS}": float(made["seconds"]) for made in generated(self.content)}
        for result in self.content["results"]:
            model = "" if result["model"] == OURS else f"{result['model']}/"
            flat[f"{result['task']}/{model}{result['metric']}"] = float(result["mean"])
        return flat


def publish(uri: str, content: Mapping[str, Any], measurements: Sequence[Measurement], *, page: str) -> EvalReport:
    """Write table and page, then the manifest; ``content`` is report.json without ``schema`` and ``files``."""
    storage.write_bytes(storage.join(uri, TABLE), parquet(measurements))
    storage.write_bytes(storage.join(uri, PAGE), page.encode())
    files = {name: storage.sha256(storage.join(uri, name)) for name in (TABLE, PAGE)}
    full = {**content, "schema": SCHEMA_VERSION, "files": files}
    sha256 = storage.write_json(storage.join(uri, MANIFEST), full)
    return EvalReport(uri, full, sha256)


def parquet(measurements: Sequence[Measurement]) -> bytes:
    """The measurements as one parquet file."""
    import pyarrow as arrow
    import pyarrow.parquet as tables

    columns = list(Measurement.__dataclass_fields__)
    rows = [asdict(measurement) for measurement in measurements]
    buffer = io.BytesIO()
    tables.write_table(arrow.table({name: [row[name] for row in rows] for name in columns}), buffer)
    return buffer.getvalue()


def generated(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What report.json says of images from noise; nothing in reports of code that could not make them."""
    return list(content["generated"]) if "generated" in content else []


def picture_name(task: str, key: str, model: str) -> str:
    """File name under ``PICTURES``, legal in any file system and URL; different for different keys."""
    return f"{task}/{_plain(key)}.{_plain(model)}.png"


def number(value: float | None) -> str:
    """Three significant digits or so, without exponents, for tables."""
    if value is None:
        return "-"
    size = abs(value)
    return f"{value:.1f}" if size >= 100 else f"{value:.2f}" if size >= 10 else f"{value:.3f}"


def span(low: float | None, high: float | None) -> str:
    """An interval as text; says so when there were too few photos for one."""
    return "one photo" if low is None or high is None else f"{number(low)} .. {number(high)}"


def describe(verdict: Mapping[str, Any]) -> str:
    """One rule of the gate and how it ended."""
    outcome = "holds" if verdict["passed"] else "FAILS"
    place = f"{verdict['task']} {verdict['metric']}"
    if verdict["n"] == 0:
        return f"{place}: {outcome}, no image was judged"
    if verdict["than"] is None:
        bound = "at most" if verdict["better"] == "lower" else "at least"
        return f"{place}: {number(verdict['mean'])}, {bound} {number(verdict['limit'])} is asked: {outcome} (n = {verdict['n']})"
    interval = f"{span(verdict['interval_low'], verdict['interval_high'])}"
    return f"{place}: better than {verdict['than']} by {number(verdict['gain'])} ({interval}): {outcome} (n = {verdict['n']})"


def summary_table(content: Mapping[str, Any]) -> str:
    """Stage x metric x ours / every baseline, with n and the paired gain over the first baseline, as aligned text lines.

    What was made from noise has a line each below; a report of nothing else has no table.
    """
    baselines = list(content["baselines"])
    by_place = {(result["task"], result["model"], result["metric"]): result for result in content["results"]}
    gains = {(gain["task"], gain["metric"], gain["than"]): gain for gain in content["gains"]}
    header = ["stage", "metric", OURS, *baselines, *([f"gain over {baselines[0]} (95 %)"] if baselines else []), "n"]
    rows: list[list[str]] = []
    for task in content["tasks"]:
        for metric in content["metrics"]:
            ours = by_place.get((task["name"], OURS, metric["name"]))
            if ours is None:
                continue
            arrow = "lower" if metric["better"] == "lower" else "higher"
            row = [task["label"], f"{metric['name']} ({arrow})", number(ours["mean"])]
            for baseline in baselines:
                other = by_place.get((task["name"], baseline, metric["name"]))
                row.append(number(other["mean"]) if other else "-")
            if baselines:
                gain = gains.get((task["name"], metric["name"], baselines[0]))
                row.append(f"{gain['mean']:+.3f} ({span(gain['interval_low'], gain['interval_high'])})" if gain else "-")
            rows.append([*row, str(ours["n"])])
    made = [f"{made['label']}: {made['note']}" for made in generated(content)]
    return "\n".join([*([_aligned([header, *rows])] if content["tasks"] else []), *made])


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _plain(text: str) -> str:
    return "".join(_plain_characters(text))


def _plain_characters(text: str) -> Iterable[str]:
    for character in text:
        if character.isascii() and (character.isalnum() or character in "-_"):
            yield character
        else:
            yield "~" + character.encode().hex()
