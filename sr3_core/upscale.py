"""``sr3 upscale``: image files in, larger image files out; ``sr3 sample``: image files from noise. Finds the model; every output name is
settled before any work is done."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sr3_core import chain as chains
from sr3_core import images, storage, tracking
from sr3_core.errors import BadInput
from sr3_core.inference import REGISTERED, Upscaler, load_model, read_image
from sr3_core.progress import Progress, say
from sr3_core.tracking import DEFAULT_ROOT

ALIAS = "champion"
_FORMATS: dict[str, images.Format] = {".png": "png", ".webp": "webp", ".jpg": "jpeg", ".jpeg": "jpeg", ".npy": "npy"}
_NOT_THERE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # MLflow's codes for a name or version, and for an alias


def run(
    inputs: Sequence[str] | None,
    out: str,
    *,
    model: str = "",
    mlflow_uri: str = "",
    root: str = "",
    stage: str = "",
    steps: int | None = None,
    sampler: str = "",
    seed: int = 0,
    samples: int = 1,
    label: int | None = None,
    force: bool = False,
    chain: str = "",
) -> list[str]:
    """Upscale every input, or make images from noise (``inputs`` None); returns what was written. Raises BadInput.

    ``samples`` K > 1 writes name-1 .. name-K; the name of an image from noise in a folder is "sample". ``label`` is the class of them all.
    ``chain`` names a file for the pictures of one image's reverse process: .webp or .gif an animation, .png a grid.
    """
    if samples < 1 or seed < 0 or (steps is not None and steps < 1):
        raise BadInput(f"--samples {samples} --seed {seed} --steps {steps}", "samples >= 1, seed >= 0, steps >= 1", "change the value")
    room = "sample" if inputs is None else "upscale"
    files = ["sample.png"] if inputs is None else input_names(inputs)
    targets = named(files, out, samples=samples, force=force)
    chain = chains.check(chain, outputs=[name for names in targets for name in names], force=force) if chain else ""
    upscaler = find_model(model, mlflow_uri=mlflow_uri, root=root, stage=stage, room=room)
    if inputs is None:
        upscaler.check_samples()
    else:
        upscaler.check_upscales()
    upscaler.check_label(label)
    refuse_formats([name for names in targets for name in names], upscaler)
    upscaler.to_accelerator()
    say(room, f"model: {upscaler.description}" + (f" (x{upscaler.scale})" if inputs is not None else ""))
    sampling: dict[str, Any] = {**({"steps": steps} if steps is not None else {}), **({"sampler": sampler} if sampler else {})}
    for note in upscaler.sampling_notes(**sampling):
        say(room, note)
    written: list[str] = []
    stages = len(upscaler.cascade.bundles)
    by = f"seed {seed}" + (f", label {label}" if label is not None else "")

    def advance(stage: str) -> None:
        progress.advance(1, stage)

    with Progress(room, "all", total=len(targets) * samples * stages, unit="stages") as progress:
        for uri, names in zip(inputs or ["noise"], targets, strict=True):
            array = None if inputs is None else read_image(uri, channels=upscaler.channels, bits=upscaler.bits)
            origin = "noise" if array is None else f"{array.shape[1]} x {array.shape[0]}"
            for sample, name in enumerate(names):
                kept = chains.Chain(stages=stages)
                heard: dict[str, Any] = {"on_stage": advance, "on_prediction": kept.add if chain else None}
                given: dict[str, Any] = {"seed": seed, "sample": sample, "label": label, **heard, **sampling}
                made = upscaler.sample(**given) if array is None else upscaler.upscale(array, **given)
                storage.write_bytes(name, images.encode(made, _FORMATS[_suffix(name)]))
                say(room, f"wrote {name} ({made.shape[1]} x {made.shape[0]} from {origin}, {by})")
                written.append(name)
                if chain:
                    storage.write_bytes(chain, chains.picture(kept, chain, low=array, result=made))
                    say(room, f"wrote {chain}")
                    written.append(chain)
    return written


def input_names(inputs: Sequence[str]) -> list[str]:
    """What the result of each input is called in a folder: PNG, or numpy's format of such an input. BadInput for what is missing."""
    if not inputs:
        raise BadInput("no image", "one image or more", "name the images")
    for uri in inputs:
        if not storage.exists(uri):
            raise BadInput(f"no image at {uri}", "a file that is there", "check the path")
    names = [Path(uri.rstrip("/")) for uri in inputs]
    return [f"{name.stem}{'.npy' if name.suffix.lower() == '.npy' else '.png'}" for name in names]


def named(files: Sequence[str], out: str, *, samples: int, force: bool) -> list[list[str]]:
    """The output names, one per sample: ``out`` itself for one file, or ``files`` below the folder ``out``.

    Raises BadInput for names that are no images', that collide, that are there already (without ``force``) or cannot be written.
    """
    is_folder = out.endswith("/") or (storage.is_local(out) and storage.local_path(out).is_dir())
    if len(files) > 1 and not is_folder and _suffix(out) in _FORMATS:
        raise BadInput(
            f"{len(files)} images and OUT {out}", "a folder for several images", f"give a folder, as -o {out.rpartition('.')[0]}/"
        )
    if len(files) == 1 and not is_folder:
        if _suffix(out) not in _FORMATS:
            raise BadInput(f"OUT {out}", f"a name that ends in {', '.join(_FORMATS)}, or a folder with / at its end", "change OUT")
        base = [storage.absolute(out)]
    else:
        base = [storage.join(storage.absolute(out), file) for file in files]
    targets = [[_numbered(name, sample) for sample in range(samples)] if samples > 1 else [name] for name in base]
    names = [name for group in targets for name in group]
    for name in names:
        if names.count(name) > 1:
            raise BadInput(f"two images would be written to {name}", "inputs with different names", "upscale them one by one")
        if storage.exists(name) and not force:
            raise BadInput(f"{name} exists", "an OUT that is not there yet", "choose another OUT or add --force")
    for folder in {name.rpartition("/")[0] for name in names}:
        storage.check_writable(folder)
    return targets


def refuse_formats(names: Sequence[str], upscaler: Upscaler) -> None:
    """BadInput for a name whose format does not hold what the model makes."""
    channels, bits = upscaler.channels, upscaler.bits
    allowed = [suffix for suffix, format in _FORMATS.items() if images.holds(format, channels=channels, bits=bits)]
    for name in names:
        if _suffix(name) not in allowed:
            got = f"{name} for an image of {channels} channels of {bits} bits"
            raise BadInput(got, f"a name that ends in {', '.join(allowed)}", "name the file with -o")


def find_model(model: str, *, mlflow_uri: str = "", root: str = "", stage: str = "", room: str = "upscale") -> Upscaler:
    """``model`` (a folder or models:/...); without it the champion. ``room`` is the command that says where it was found.

    MLflow is ``mlflow_uri``, MLFLOW_TRACKING_URI or that of ``root`` (./sr3-runs), whichever of them, in this order, has the model.
    Raises BadInput that names the model and all three.
    """
    if model and not model.startswith(REGISTERED):
        return load_model(model, stage=stage)
    environment = os.environ.get("MLFLOW_TRACKING_URI", "")
    default = tracking.default_uri(storage.absolute(root or DEFAULT_ROOT))
    looked: list[str] = []
    for name, given in (("--mlflow-uri", mlflow_uri), ("MLFLOW_TRACKING_URI", environment), ("the default root", default)):
        if not given:
            looked.append(f"{name}: not set")
            continue
        uri = tracking.absolute(given)
        found = _named(uri, model) if model else _champion(uri)
        if found:
            say(room, f"{found} of {uri}")
            return load_model(found, mlflow_uri=uri, stage=stage)
        looked.append(f"{name}: {'not' if model else f'no model with alias {ALIAS}'} at {uri}")
    places = "; ".join(looked)
    if model:
        allowed = f"{REGISTERED}name@alias or {REGISTERED}name/version of a registered model"
        raise BadInput(f"no {model} ({places})", allowed, "check its name, or give --mlflow-uri of the MLflow that has it")
    raise BadInput(f"no model ({places})", f"a model folder or a registered {ALIAS}", "give --model or --mlflow-uri, or run: sr3 run demo")


def _named(uri: str, model: str) -> str:
    """``model`` when the MLflow at ``uri`` has it, else ""; BadInput when that MLflow is down."""
    if not _exists(uri):
        return ""
    client = tracking.client(uri)
    name, _, which = model.removeprefix(REGISTERED).replace("@", "/@", 1).partition("/")
    try:
        _ = client.get_model_version_by_alias(name, which[1:]) if which.startswith("@") else client.get_model_version(name, which)
    except Exception as error:  # whatever else goes wrong is said when the model is loaded
        return "" if getattr(error, "error_code", "") in _NOT_THERE else model
    return model


def _champion(uri: str) -> str:
    """``models:/name@champion`` of the one registered model that has this alias, "" when none; BadInput for several."""
    if not _exists(uri):
        return ""
    registered = tracking.client(uri).search_registered_models()
    names = [found.name for found in registered if ALIAS in found.aliases]
    if len(names) > 1:
        listed = ", ".join(f"{REGISTERED}{name}@{ALIAS}" for name in sorted(names))
        raise BadInput(f"{len(names)} models with alias {ALIAS} at {uri}", listed, "choose one with --model")
    return f"{REGISTERED}{names[0]}@{ALIAS}" if names else ""


def _exists(uri: str) -> bool:
    """False for a sqlite database that is not there: looking for a model makes none."""
    return not uri.startswith("sqlite:") or Path(uri.removeprefix("sqlite:///")).exists()


def _numbered(name: str, sample: int) -> str:
    stem, dot, suffix = name.rpartition(".")
    return f"{stem}-{sample + 1}{dot}{suffix}"


def _suffix(name: str) -> str:
    return Path(name).suffix.lower()
