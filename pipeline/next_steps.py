"""What a finished run tells its user to type next: commands that the user's own shell finds, in the folder it is in."""

import math
import shlex
import shutil
import sys
from pathlib import Path

from sr3_core import config, storage, tracking

_DEMO_MODEL = "models:/sr3-demo@champion"  # alone in its MLflow as a rule, so `sr3 upscale` finds it unnamed
_CURRENT = "current"  # the link that `make setup` keeps to the environment of the current locks


def executable(name: str, *, folder: Path, path: str) -> str:
    """How a shell in ``folder`` with this PATH starts ``name`` of this environment: by its name alone, else by its path, quoted.

    The path is relative when it lies below ``folder``, and goes by ``current`` where this link leads to this environment.
    """
    environment = Path(sys.executable).parent.parent
    own = environment.parent.resolve() / environment.name / "bin" / name
    found = shutil.which(name, path=path)
    if not own.exists() or (found and own.samefile(found)):
        return name
    link = own.parents[2] / _CURRENT / "bin" / name
    if link.exists() and link.samefile(own):
        own = link
    here = folder.resolve()
    return shlex.quote(
        f"./{own.relative_to(here)}" if own.parent == here else str(own.relative_to(here) if own.is_relative_to(here) else own)
    )


def ui_command(mlflow_uri: str, *, folder: Path, path: str) -> str:
    """The command that shows the runs of ``mlflow_uri`` in a browser, or the address of a server."""
    first, space, rest = tracking.ui_command(mlflow_uri).partition(" ")
    return f"{executable(first, folder=folder, path=path)} {rest}" if space else first


def commands(recipe: config.Recipe, *, root: str, mlflow_uri: str, default_root: str, folder: Path, path: str) -> list[tuple[str, str]]:
    """(what for, command) of what to try after a finished run in ``folder``, with no more options than it needs there.

    The first one is for an ordinary photo: a cascade's first stage, then all its stages for a small picture. A model that starts from
    noise makes its own images; its first stage with a low image enlarges a photo.
    """
    from sr3_core import labels

    sr3 = executable("sr3", folder=folder, path=path)
    model = f"models:/{recipe.export.model}@{recipe.export.alias}"
    own_mlflow = storage.is_local(root) and mlflow_uri == tracking.default_uri(root)
    mlflow = "" if own_mlflow else f" --mlflow-uri {shlex.quote(mlflow_uri)}"
    at_root = "" if root == default_root else f" --root {shlex.quote(root)}"
    named = "" if model == _DEMO_MODEL else f" --model {model}"
    first, *more = recipe.stages
    place = f"{named}{mlflow or at_root}"
    upscale = f"{sr3} upscale PHOTO.jpg -o BIG.png{place}"
    scale = math.prod(stage.scale for stage in recipe.stages)
    if first.low is None:
        lines = [("images from noise", f"{sr3} sample -o SAMPLES/ -n 4{place}{labels.of(*recipe.stages).option}")]
        lines += [(_larger("a photo", stage.scale), f"{upscale} --stage {stage.name}{labels.of(stage).option}") for stage in more[:1]]
    elif more:
        lines = [(_larger("a photo", first.scale), f"{upscale} --stage {first.name}{labels.of(first).option}")]
        lines += [(_larger("a small picture", scale), f"{upscale}{labels.of(*recipe.stages).option}")]
    else:
        lines = [(_larger("a photo", scale), f"{upscale}{labels.of(first).option}")]
    return [
        *lines,
        ("your own photos", f"{sr3} run demo --set data.source=folder --set data.options.uri=YOUR_PHOTOS{mlflow}{at_root}"),
        ("every setting", f"{sr3} show {recipe.name if recipe.name in config.recipe_names() else 'demo'}"),
    ]


def _larger(what: str, scale: int) -> str:
    from sr3_core.inference import MAX_OUTPUT_PIXELS

    most = math.isqrt(MAX_OUTPUT_PIXELS // scale**2)
    return f"{what} of up to {most} x {most} pixels, {scale} times larger"
