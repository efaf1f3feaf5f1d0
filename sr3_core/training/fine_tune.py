"""Starting a run from the weights of a finished ModelBundle (``training.init``) instead of from scratch."""

from collections.abc import Mapping

from torch import nn

from sr3_core.artifacts.bundle import ModelBundle
from sr3_core.config import Stage
from sr3_core.errors import BadInput
from sr3_core.training.state import differing_keys

_LISTED = 8


def start_from(bundle: ModelBundle, player: nn.Module) -> None:
    """Give ``player`` the weights of ``bundle``; BadInput names the tensors that do not fit, and then nothing is taken over."""
    theirs, mine = bundle.network.state_dict(), player.state_dict()
    bad = [f"{name} {tuple(mine[name].shape)} not in the bundle" for name in mine.keys() - theirs.keys()]
    bad += [f"{name} {tuple(theirs[name].shape)} not in the network" for name in theirs.keys() - mine.keys()]
    bad += [
        f"{name} {tuple(theirs[name].shape)} there, {tuple(tensor.shape)} here"
        for name, tensor in mine.items()
        if name in theirs and theirs[name].shape != tensor.shape
    ]
    if bad:
        listed = "; ".join(sorted(bad)[:_LISTED]) + (f"; and {len(bad) - _LISTED} more" if len(bad) > _LISTED else "")
        raise BadInput(
            f"training.init {bundle.uri}: {len(bad)} of {len(mine | theirs)} tensors do not fit: {listed}",
            "a bundle of the same network",
            f"set model as in the bundle's {bundle.uri}/bundle.json, or take training.init out",
        )
    player.load_state_dict(theirs)


def measured_with(bundle: ModelBundle, measured: Mapping[str, float]) -> dict[str, float]:
    """``measured`` on this run's data, but by the bundle's values where it has them: its weights learnt targets in that scale."""
    theirs: Mapping[str, float] = bundle.manifest["measured"]
    return {name: theirs.get(name, value) for name, value in measured.items()}


def told(bundle: ModelBundle, stage: Stage) -> str:
    """The line that says where the weights come from, and in what the bundle's stage is another than ``stage``."""
    there, here = (of.model_dump(mode="json", include={"channels", "model", "objective"}) for of in (bundle.stage, stage))
    differing = differing_keys(there, here)
    changed = f"; it was trained otherwise: {', '.join(differing)}" if differing else ""
    return f"starting from the weights of {bundle.uri} (manifest sha256 {bundle.manifest_sha256[:12]}...){changed}"
