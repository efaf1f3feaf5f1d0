"""The model card: what the model is, what it was made from, what was measured and where it ends. Text only."""

from collections.abc import Mapping, Sequence
from typing import Any

from sr3_core import labels
from sr3_core.artifacts.report import EvalReport, describe
from sr3_core.config import Export, Stage, sizes

SAMPLE_PHOTOS_LICENCE = (
    "The photos come with sr3 and are CC0, CC-BY-4.0, MIT or public domain; author, title, source and licence of each stand in "
    "sr3_core/data/sample_photos/ATTRIBUTION.md."
)
OTHER_LICENCE = "The licence of the photos is that of their source; sr3 does not know it."


def write(
    *,
    section: Export,
    report: EvalReport,
    stages: Sequence[Stage],
    manifests: Sequence[Mapping[str, Any]],
    data: Mapping[str, Any],
    mlflow_uri: str,
) -> str:
    """Markdown. ``manifests`` are the bundles' in the order of ``stages``; ``data`` is {"source": name, "counts": {split: {level: n}}}."""
    first, last, bits = stages[0], stages[-1], int(manifests[0].get("bits", 8))  # not recorded by older bundles
    side = f"{last.high} x {last.high} pixels"
    what = f"Images of {side} from noise" if first.low is None else f"Super-resolution x{last.high // first.low}"
    known = labels.of(*stages)
    judged, degradation = bool(report.content["tasks"]), report.content["degradation"]
    lines = [
        f"# {section.model}",
        "",
        f"{what} ({sizes(stages)} pixels) in {len(stages)} {'stage' if len(stages) == 1 else 'stages'}, "
        "by sr3: iterative refinement after SR3 (arXiv 2104.07636).",
        "",
        "## Stages",
        "",
        "| stage | pixels | network | parameters | images seen | chosen sampling |",
        "|---|---|---|---|---|---|",
        *[_stage_row(stage, manifest, report) for stage, manifest in zip(stages, manifests, strict=True)],
        "",
        "## Data",
        "",
        f"- source: {data.get('source', 'not known')}; images per split and level: {_counts(data)}",
        *(
            [f"- low images: each level is the next larger one resized by {degradation}; another low image is another task"]
            if judged
            else []
        ),
        f"- shards: manifest sha256 {report.content['shards']['sha256']}",
        f"- {SAMPLE_PHOTOS_LICENCE if data.get('source') == 'sample_photos' else OTHER_LICENCE}",
        "",
        f"## Measured on the held-out split {report.content['split']}" if judged else "## Not measured",
        "",
        "```",
        report.table(),
        "```",
        "",
        *([*(f"- gate: {describe(verdict)}" for verdict in report.content["gate"]), ""] if report.content["gate"] else []),
        f"Definitions, intervals, pictures: {report.page_uri}",
        "",
        "## Limits",
        "",
        "- The images are invented: they show nothing that exists, and may resemble photos of the training set."
        if first.low is None
        else "- Detail is invented: it is likely, not true. Do not read number plates, faces or text from it.",
        *(["- Numbers above hold for photos like the held-out ones and for the n they are printed with."] if judged else []),
        *[f"- {note}" for note in report.notes()],
        f"- Output: images of {side} alone."
        if first.low is None
        else f"- Input: {bits}-bit images of any size; above twice the area of training a network sees overlapping tiles.",
        *([f"- Label: the class of the images, {known.allowed}, as the data counts them."] if known.count else []),
        "",
        "## Use",
        "",
        "```",
        *[
            f"sr3 {command} --model models:/{section.model}@{section.alias} --mlflow-uri '{mlflow_uri}'"
            for command in _commands(stages, bits)
        ],
        "```",
        "```python",
        "import mlflow",
        *(["import numpy as np"] if first.low is None else []),
        f'mlflow.set_tracking_uri("{mlflow_uri}")',
        f'model = mlflow.pyfunc.load_model("models:/{section.model}@{section.alias}")',
        _call(stages, bits),
        "```",
        "",
    ]
    return "\n".join(lines)


def _commands(stages: Sequence[Stage], bits: int) -> list[str]:
    files = "photo.jpg -o big.png" if bits == 8 and stages[0].channels in (1, 3) else "photo.npy -o big.npy"
    if stages[0].low is not None:
        return [f"upscale {files}{labels.of(*stages).option}"]
    sample = f"sample -o samples/ -n 4{labels.of(*stages).option}"
    return [sample, *[f"upscale {files} --stage {stage.name}{labels.of(stage).option}" for stage in stages[1:2]]]


def _call(stages: Sequence[Stage], bits: int) -> str:
    """The line of Python that makes images."""
    params = ['"seed": 0'] * (stages[0].low is not None) + ['"label": 0'] * bool(labels.of(*stages).count)
    given = f", params={{{', '.join(params)}}}" if params else ""
    if stages[0].low is None:
        side = stages[-1].high
        return f"made = model.predict(np.arange(4){given})  # seeds, int64 (N,) -> uint{bits} (N, {side}, {side}, C)"
    return f"large = model.predict(images{given})  # uint{bits} (N, H, W, C) -> uint{bits} (N, scale x H, scale x W, C)"


def _stage_row(stage: Stage, manifest: Mapping[str, Any], report: EvalReport) -> str:
    sampling = ", ".join(f"{key} {value}" for key, value in {**stage.sampling, **report.sampling.get(stage.name, {})}.items())
    seen = manifest["lineage"].get("images_seen", "?")
    return f"| {stage.name} | {stage.sizes} | {stage.model.name} | {manifest['parameters']:,} | {seen} | {sampling} |"


def _counts(data: Mapping[str, Any]) -> str:
    counts: Mapping[str, Mapping[str, int]] = data.get("counts", {})
    parts = [f"{split} " + ", ".join(f"{level}: {n}" for level, n in levels.items()) for split, levels in counts.items()]
    return "; ".join(parts) or "not known"
