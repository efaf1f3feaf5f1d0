"""`sr3 upscale`: images in, larger images out, by the registered champion or by any bundle folder."""

import os
from pathlib import Path
from typing import Any

from pipeline import DEFAULT_ROOT
from sr3_core import images, inference, progress, storage, tracking_uri
from sr3_core.errors import BadInput

FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg"}
JPEG_QUALITY = 95


def run(
    inputs: list[str],
    *,
    output: str,
    model: str,
    mlflow_uri: str,
    root: str,
    seed: int,
    samples: int,
    stage: str,
    overwrite: bool,
    sampling: dict[str, Any],
) -> list[str]:
    """Upscale ``inputs``; the paths written. ``output`` is a file for one picture and a folder for several."""
    targets = _targets(inputs, output, samples, overwrite)
    for uri in inputs:
        if not storage.exists(storage.absolute(uri)):
            raise BadInput(f"no image at {uri}", "a file that is there", "check the path")
    upscaler = find_model(model, mlflow_uri=mlflow_uri, root=root, stage=stage)
    progress.say("upscale", f"{model}: {upscaler.description}")
    written: list[str] = []
    stages = len(upscaler.cascade.bundles)
    with progress.Progress(
        "upscale", Path(inputs[0]).name if len(inputs) == 1 else "images", total=stages * len(targets), unit="stages"
    ) as bar:
        for (uri, sample), target in targets.items():
            image = inference.read_image(storage.absolute(uri), upscaler.channels)
            big = upscaler.upscale(image, seed=seed, sample=sample, on_stage=lambda _name: bar.advance(1), **sampling)
            target.parent.mkdir(parents=True, exist_ok=True)
            storage.write_bytes(str(target), images.encode(big, format=FORMATS[target.suffix.lower()], quality=JPEG_QUALITY))
            written.append(str(target))
    return written


def find_model(model: str, *, mlflow_uri: str, root: str, stage: str) -> inference.Upscaler:
    """A folder is loaded as it is; ``models:/...`` is looked for at mlflow_uri, then MLFLOW_TRACKING_URI, then the default root."""
    if not model.startswith(inference.REGISTERED):
        return inference.load_model(model, stage=stage)
    default = tracking_uri.default_uri(storage.absolute(root or DEFAULT_ROOT))
    places = {"--mlflow-uri": mlflow_uri, "MLFLOW_TRACKING_URI": os.environ.get("MLFLOW_TRACKING_URI", ""), "the default root": default}
    missed: list[str] = []
    for name, given in places.items():
        if not given:
            missed.append(f"{name} (not set)")
            continue
        uri = tracking_uri.absolute(given)
        if uri.startswith(tracking_uri.SQLITE) and not Path(uri.removeprefix(tracking_uri.SQLITE)).exists():
            missed.append(f"{name} {uri} (no such file)")  # mlflow would make an empty one
            continue
        try:
            return inference.load_model(model, mlflow_uri=uri, stage=stage)
        except BadInput as error:
            missed.append(f"{name} {uri} ({error.got})")
    raise BadInput(
        f"no {model} at {', '.join(missed)}",
        "a registered model at one of these",
        "run sr3 run demo, or name --mlflow-uri or --model FOLDER",
    )


def _targets(inputs: list[str], output: str, samples: int, overwrite: bool) -> dict[tuple[str, int], Path]:
    """Where each (input, sample) goes. BadInput for a name without a picture's ending, two inputs of one name, or a file that exists."""
    out = Path(storage.absolute(output))
    pairs = [(uri, sample) for uri in inputs for sample in range(samples)]
    if len(pairs) == 1 and out.suffix.lower() in FORMATS:
        targets = {pairs[0]: out}
    elif out.suffix:
        allowed = f"one of {', '.join(FORMATS)} for one picture, a folder for several"
        raise BadInput(f"output {output} for {len(pairs)} pictures", allowed, "choose another -o")
    else:
        targets = {(uri, sample): out / (Path(uri).stem + (f"-{sample}" if samples > 1 else "") + ".png") for uri, sample in pairs}
    if len(set(targets.values())) < len(pairs):
        raise BadInput("two inputs with one name", "names that differ", "rename one or upscale them apart")
    for path in targets.values():
        if path.exists() and not overwrite:
            raise BadInput(f"{path} exists", "a name that is free", "choose another -o or give --overwrite")
    return targets
