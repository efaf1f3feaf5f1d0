"""EvalReport: written and read back, damage refused, the page in one file, the closing table."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from sr3_core.artifacts import report, report_figures, report_page
from sr3_core.artifacts.report import EvalReport, Measurement
from sr3_core.errors import BadInput

IMAGE = np.random.default_rng(0).integers(0, 255, (256, 256, 3), dtype=np.uint8)


def stated(mean: float, n: int = 3) -> dict[str, Any]:
    return {"mean": mean, "interval_low": mean - 0.1, "interval_high": mean + 0.1, "n": n, "photos": n}


def content(*, ours: float = 0.3, passed: bool = True) -> dict[str, Any]:
    """report.json of one stage, one metric, one baseline and a key that tries to be markup."""
    verdict = {"task": "x4", "metric": "lpips", "better": "lower", "than": "bicubic", "limit": None, "passed": passed, "gain": 0.4 - ours}
    candidates = [
        {"sampling": {"sampler": name, "steps": steps}, **stated(0.3 + steps / 100), "seconds": 1.0, "chosen": (name, steps) == ("ddim", 4)}
        for name in ("ddim", "2m")
        for steps in (4, 8)
    ]
    return {
        "title": "64 -> 256",
        "fingerprint": "f" * 16,
        "section": {},
        "split": "test",
        "degradation": "bicubic",
        "baselines": ["bicubic"],
        "variants": ["plain"],
        "shards": {"uri": "/s", "sha256": "a" * 64},
        "bundles": [{"stage": "x4", "uri": "/b", "sha256": "b" * 64}],
        "tasks": [
            {
                "name": "x4",
                "label": "x4 64 -> 256",
                "low": 64,
                "high": 256,
                "scale": 4,
                "n": 3,
                "left_out": 1,
                "note": "note",
                "seconds": {"ours": 1},
            }
        ],
        "generated": [],
        "metrics": [{"name": "lpips", "better": "lower", "unit": "", "colour": "RGB", "border": {"x4": 0}, "note": "AlexNet"}],
        "results": [
            {"task": "x4", "model": model, "metric": "lpips", **stated(mean), "worst_key": "<b>bad</b>", "worst": mean}
            for model, mean in (("ours", ours), ("plain", 0.35), ("bicubic", 0.4))
        ],
        "gains": [{"task": "x4", "metric": "lpips", "than": "bicubic", **stated(0.4 - ours)}],
        "gate": [{**verdict, **stated(ours)}],
        "search": {"x4": {"split": "val", "metric": "lpips", "better": "lower", "n": 3, "candidates": candidates}},
        "sampling": {"x4": {"sampler": "ddim", "steps": 4}},
        "notes": {"x4": ["waived as published: <T> of 1000"]},
    }


def page(of: dict[str, Any]) -> str:
    outputs = {"bicubic": IMAGE, "ours": IMAGE}
    figure = report_figures.figure(
        task="x4", key="<i>key</i>", low=IMAGE[::4, ::4], outputs=outputs, truth=IMAGE, notes={"ours": "lpips 0.3"}
    )
    return report_page.page(of, [figure])


def publish(folder: Path, **changes: Any) -> EvalReport:
    of = content(**changes)
    rows = [
        Measurement("test", "x4", "ours", "key", "photo", "lpips", 0.3, "{}", 1.5),
        Measurement("test", "x4", "bicubic", "key", "photo", "lpips", 0.4),
    ]
    return report.publish(str(folder), of, rows, page=page(of))


def test_what_is_published_is_read_back(tmp_path: Path) -> None:
    made = publish(tmp_path / "eval")
    found = EvalReport.open(str(tmp_path / "eval"))
    assert found.content == made.content
    assert found.manifest_sha256 == made.manifest_sha256
    assert found.passed
    assert found.sampling == {"x4": {"sampler": "ddim", "steps": 4}}
    assert found.notes() == ["x4: waived as published: <T> of 1000"]
    assert found.metrics() == {"x4/n": 3, "x4/lpips": 0.3, "x4/plain/lpips": 0.35, "x4/bicubic/lpips": 0.4}
    table = pyarrow.parquet.read_table(tmp_path / "eval" / report.TABLE).to_pylist()
    assert [row["value"] for row in table] == [0.3, 0.4]
    assert table[0]["photo"] == "photo"


@pytest.mark.parametrize("name", [report.PAGE, report.TABLE])
def test_a_changed_or_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    publish(tmp_path)
    (tmp_path / name).write_bytes(b"changed")
    with pytest.raises(BadInput, match="missing or changed"):
        EvalReport.open(str(tmp_path))
    (tmp_path / name).unlink()
    with pytest.raises(BadInput, match="missing or changed"):
        EvalReport.open(str(tmp_path))


def test_no_report_a_damaged_and_a_newer_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="run evaluate first"):
        EvalReport.open(str(tmp_path))
    publish(tmp_path)
    manifest = tmp_path / report.MANIFEST
    newer = {**json.loads(manifest.read_text()), "schema": report.SCHEMA_VERSION + 1}
    manifest.write_text(json.dumps(newer))
    with pytest.raises(BadInput, match="update sr3"):
        EvalReport.open(str(tmp_path))
    manifest.write_text(manifest.read_text()[:40])
    with pytest.raises(BadInput, match="damaged"):
        EvalReport.open(str(tmp_path))


def test_a_failed_gate_says_why(tmp_path: Path) -> None:
    found = publish(tmp_path, ours=0.5, passed=False)
    assert not found.passed
    assert found.failures() == ["x4 lpips: better than bicubic by -0.100 (0.400 .. 0.600): FAILS (n = 3)"]


def test_the_table_has_every_n() -> None:
    lines = report.summary_table(content()).splitlines()
    assert lines[0].split() == ["stage", "metric", "ours", "bicubic", "gain", "over", "bicubic", "(95", "%)", "n"]
    assert re.split(r"\s{2,}", lines[2]) == ["x4 64 -> 256", "lpips (lower)", "0.300", "0.400", "+0.100 (0.000 .. 0.200)", "3"]


class _References(HTMLParser):
    """Everything a browser would load, and the tags that are open at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.open: list[str] = []
        self.images = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in {"meta", "img"}:
            self.open.append(tag)
        self.images += tag == "img"
        self.loads += [value or "" for name, value in attrs if name in {"src", "href", "srcset", "data", "action"}]
        assert tag not in {"script", "link", "iframe", "object"}

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attrs if name in {"src", "href"}]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_one_file_that_loads_nothing() -> None:
    text = page(content())
    found = _References()
    found.feed(text)
    assert found.open == []
    assert found.images == 4 * (1 + report_figures.NUM_CROPS)
    assert all(load.startswith("data:image/") for load in found.loads)
    assert not re.search(r"@import|url\(|https?://", text)


def test_the_page_states_numbers_and_escapes_names() -> None:
    text = page(content())
    assert "&lt;b&gt;bad&lt;/b&gt;" in text
    assert "<b>bad</b>" not in text
    assert "<i>key</i>" not in text
    assert "n = 3" in text
    assert text.count("<svg") == 1
    assert "<b>x4</b>waived as published: &lt;T&gt; of 1000" in text
    assert "<ul" not in page({**content(), "notes": {"x4": []}, "gate": []})
    assert "Gate: all 1 rules hold" in text
    assert "Gate: 1 of 1 rules fail" in page(content(passed=False))


GENERATED = {
    "name": "base", "label": "base noise -> 64", "high": 64, "n": 2, "seed": 0, "seconds": 0.5, "note": "Nothing is compared: <no> truth.",
    "pictures": ["base/sample-1.ours.png", "base/sample-2.ours.png"],
}  # fmt: skip


def test_what_is_made_from_noise_is_shown_and_has_no_table() -> None:
    of = {**content(), "generated": [GENERATED]}
    pictures = {f"sample-{number}": IMAGE for number in (1, 2)}
    gallery = report_figures.gallery(task="base", key="base noise -> 64, seed 0", pictures=pictures, notes={"sample-1": "0.500 s"})
    text = report_page.page(of, [gallery])
    found = _References()
    found.feed(text)
    assert found.open == [] and found.images == 2 and all(load.startswith("data:image/") for load in found.loads)
    assert "Nothing is compared: &lt;no&gt; truth." in text and "<h2>Numbers</h2>" in text and "<h2>Pictures</h2>" not in text
    assert report.summary_table(of).splitlines()[-1] == "base noise -> 64: Nothing is compared: <no> truth."
    nothing = {"tasks": [], "metrics": [], "results": [], "gains": [], "gate": [], "search": {}}
    alone = {**of, **nothing}
    assert report.summary_table(alone) == "base noise -> 64: Nothing is compared: <no> truth."
    text = report_page.page(alone, [gallery])
    assert "No image was compared" in text and "<h2>Numbers</h2>" not in text and "How it was measured" not in text


def test_a_report_of_code_that_knew_nothing_of_noise_is_read(tmp_path: Path) -> None:
    old = {name: value for name, value in content().items() if name != "generated"}
    made = report.publish(str(tmp_path), old, [], page="")
    assert EvalReport.open(made.uri).metrics()["x4/n"] == 3 and len(made.table().splitlines()) == 3
    both = report.publish(str(tmp_path / "new"), {**old, "generated": [GENERATED]}, [], page="")
    assert {name: both.metrics()[name] for name in ("base/n", "base/seconds")} == {"base/n": 2, "base/seconds": 0.5}


def test_crops_lie_where_the_truth_has_detail_on_low_image_pixels() -> None:
    truth = np.full((256, 256, 3), 100, np.uint8)
    truth[128:192, 64:128] = IMAGE[:64, :64]
    first, second = report_figures.detailed_crops(truth, 4)
    assert (first.top, first.left, first.side) == (128, 64, 64)
    assert max(abs(first.top - second.top), abs(first.left - second.left)) >= 128
    assert all(value % 4 == 0 for crop in (first, second) for value in (crop.top, crop.left, crop.side))


def test_picture_names_are_legal_and_different() -> None:
    names = {report.picture_name("x4", key, "no projection") for key in ("a b", "a_b", "a/b", "ä", "a.b")}
    assert len(names) == 5
    assert all(re.fullmatch(r"x4/[A-Za-z0-9_~-]+\.[A-Za-z0-9_~-]+\.png", name) for name in names)


def test_a_search_without_steps_is_drawn_against_seconds() -> None:
    candidates = [{"sampling": {"strength": value}, **stated(value), "seconds": value, "chosen": value == 1} for value in (1, 2)]
    search = {"split": "val", "metric": "psnr_y", "better": "higher", "n": 3, "candidates": candidates}
    text = report_figures.search_charts(search, "x4")
    assert "seconds a photo" in text
    assert "strength 1" in text
