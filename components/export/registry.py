"""The MLflow registry's side of export: log the bundle as a model, register it, try it in a fresh process, move the alias."""

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import sr3_core
from sr3_core import tracking
from sr3_core.errors import Failed
from sr3_core.labels import NONE as NO_LABEL
from sr3_core.progress import say

HERE = Path(__file__).parent
FINGERPRINT, VERIFIED, ALIAS_SET = "sr3.fingerprint", "sr3.verified", "sr3.alias_set"
LOAD_SECONDS = 600
EXAMPLE_SIDE = 8
# What the model's code imports outside the standard library; the versions are those it was tried with.
REQUIREMENTS = ("mlflow", "torch", "numpy", "pillow", "pydantic", "pyyaml", "fsspec", "safetensors")


@dataclass(frozen=True)
class Interface:
    """What goes into the registered model and what comes out of it.

    (N, H, W, ``channels``) of uint8, or of uint16 for 16 ``bits``, becomes images ``scale`` times larger; a model that starts from noise
    (``side`` is not None) makes (N, side, side, ``channels``) of int64 seeds (N,). ``labels`` classes may be asked for (0: none).
    ``trial_steps`` are those of the call that tries the model (0: the chosen number).
    """

    channels: int
    scale: int
    side: int | None
    labels: int = 0
    trial_steps: int = 0
    bits: int = 8

    @property
    def dtype(self) -> str:
        """Of images in and out."""
        return f"uint{self.bits}"

    @property
    def example(self) -> dict[str, Any]:
        """Shape and dtype of a batch of one and the params of the call that tries it, for ``load_check``."""
        params = {"steps": self.trial_steps, **({"label": 0} if self.labels else {})}
        if self.side is not None:
            return {"shape": [1], "dtype": "int64", "params": params}
        return {"shape": [1, EXAMPLE_SIDE, EXAMPLE_SIDE, self.channels], "dtype": self.dtype, "params": params}

    @property
    def made(self) -> list[int]:
        """Shape of what the model makes of the example."""
        side = EXAMPLE_SIDE * self.scale if self.side is None else self.side
        return [1, side, side, self.channels]


def find(client: Any, name: str, fingerprint: str) -> Any | None:
    """The version of the registered model ``name`` that this fingerprint made, if there is one."""
    found = client.search_model_versions(f"name = '{name}'")
    return next((version for version in found if version.tags.get(FINGERPRINT) == fingerprint and version.status == "READY"), None)


def register(uri: str, *, run_id: str, name: str, bundle: Path, interface: Interface, description: str, tags: Mapping[str, str]) -> str:
    """Log ``bundle`` as a model of the run and make it a new version of ``name``; returns the version."""
    client = tracking.client(uri)
    with (
        tempfile.TemporaryDirectory(prefix="sr3-code-") as folder,
        tracking.patience(retries=2, seconds=120),
        tracking.current(uri),
    ):
        import mlflow.pyfunc

        logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)
        code = _code_tree(Path(folder))
        with mlflow.start_run(run_id=run_id):
            logged = mlflow.pyfunc.log_model(
                name=name,
                python_model=str(HERE / "model_code.py"),
                artifacts={"bundle": str(bundle)},
                code_paths=[str(code)],
                pip_requirements=_requirements(),
                signature=_signature(interface),
                input_example=_example(interface),
                metadata={name: getattr(interface, name) for name in ("scale", "channels", "bits", "side", "labels")},
            )
        _create_registered_model(client, name)
        version = client.create_model_version(
            name, source=logged.model_uri, run_id=run_id, tags=dict(tags), description=description, model_id=logged.model_id
        )
    say("export", f"registered {name} version {version.version}")
    return str(version.version)


def verify(uri: str, name: str, version: str, *, interface: Interface) -> None:
    """Load the version in a fresh process that sees nothing of the repository; Failed unless an image of the right size comes back."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    model_uri = f"models:/{name}/{version}"
    command = [sys.executable, "-P", str(HERE / "load_check.py"), model_uri, uri, json.dumps(interface.example)]
    with tempfile.TemporaryDirectory(prefix="sr3-load-") as folder:
        try:
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LOAD_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise Failed(f"{model_uri} did not load within {LOAD_SECONDS} s in a fresh process; its alias was not moved") from None
    try:
        result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise Failed(f"{model_uri} does not load in a fresh process ({reason}); its alias was not moved") from None
    expected = interface.made
    own = Path(sr3_core.__file__).resolve()
    if result["shape"] != expected or result["dtype"] != interface.dtype or Path(result["sr3_core"]).resolve() == own:
        raise Failed(f"{model_uri} gave {result}, expected {interface.dtype} {expected} by its own code; its alias was not moved")
    tracking.client(uri).set_model_version_tag(name, version, VERIFIED, "true")
    given = f"{EXAMPLE_SIDE} x {EXAMPLE_SIDE}" if interface.side is None else "noise"
    say("export", f"{model_uri} loaded in a fresh process and made {expected[2]} x {expected[1]} pixels of {given}")


def move_alias(uri: str, name: str, alias: str, version: str) -> None:
    """Point ``alias`` at ``version``, once: an alias that somebody moved elsewhere afterwards (a rollback) stays there, aloud."""
    client = tracking.client(uri)
    now = client.get_registered_model(name).aliases.get(alias)
    moved_before = client.get_model_version(name, version).tags.get(ALIAS_SET) == alias
    if now is not None and str(now) == version:
        say("export", f"models:/{name}@{alias} is version {version}")
    elif now is not None and moved_before:
        say("export", f"models:/{name}@{alias} was moved to version {now} since; left there")
        return
    else:
        client.set_registered_model_alias(name, alias, version)
        say("export", f"models:/{name}@{alias} is now version {version}" + (f", it was {now}" if now is not None else ""))
    client.set_model_version_tag(name, version, ALIAS_SET, alias)


def _create_registered_model(client: Any, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _code_tree(folder: Path) -> Path:
    """A copy of sr3_core's modules alone: its photos and recipes are no part of a model."""
    source = Path(sr3_core.__file__).parent
    for path in sorted(source.rglob("*.py")):
        target = folder / "sr3_core" / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return folder / "sr3_core"


def _requirements() -> list[str]:
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in REQUIREMENTS]


def _example(interface: Interface) -> Any:
    import numpy as np

    return np.zeros(interface.example["shape"], interface.example["dtype"])


def _signature(interface: Interface) -> Any:
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types.schema import DataType, ParamSchema, ParamSpec, Schema, TensorSpec

    images = Schema([TensorSpec(np.dtype(interface.dtype), (-1, -1, -1, interface.channels))])
    sampling = [ParamSpec("steps", DataType.long, 0), ParamSpec("sampler", DataType.string, "")]
    sampling += [ParamSpec("label", DataType.long, NO_LABEL)] if interface.labels else []
    if interface.side is None:
        return ModelSignature(inputs=images, outputs=images, params=ParamSchema([ParamSpec("seed", DataType.long, 0), *sampling]))
    made = Schema([TensorSpec(np.dtype(interface.dtype), (-1, interface.side, interface.side, interface.channels))])
    return ModelSignature(inputs=Schema([TensorSpec(np.dtype(np.int64), (-1,))]), outputs=made, params=ParamSchema(sampling))
