"""Weights of Janspiry/Image-Super-Resolution-via-Iterative-Refinement: its ``*_gen.pth`` and the JSON config they were trained with."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import Tensor

from sr3_core import config
from sr3_core.config import Stage
from sr3_core.diffusion.schedules import Schedule
from sr3_core.errors import BadInput, nearest
from sr3_core.importers import _foreign

SOURCE = "Janspiry/Image-Super-Resolution-via-Iterative-Refinement"
SCHEDULES = {"quad": "quadratic", **{name: name for name in ("linear", "cosine", "const", "warmup10", "warmup50", "jsd")}}
TABLES = re.compile(
    r"betas|alphas_cumprod(_prev)?|sqrt_.*|log_one_minus_alphas_cumprod|posterior_.*|denoise_fn\.time_mlp\.0\.inv_freq"
)  # what its diffusion module stores beside the network; computed from the config
TABLE_TOLERANCE = 1e-6  # of the stored float32 betas
NAMES = _foreign.renamer(
    (r"denoise_fn\.(?:noise_level|time)_mlp\.1\.(\w+)", r"embedding.perceptron.0.\1"),
    (r"denoise_fn\.(?:noise_level|time)_mlp\.3\.(\w+)", r"embedding.perceptron.2.\1"),
    (r"denoise_fn\.downs\.0\.(\w+)", r"conv_in.\1"),
    (r"denoise_fn\.final_conv\.block\.0\.(\w+)", r"norm_out.\1"),
    (r"denoise_fn\.final_conv\.block\.3\.(\w+)", r"conv_out.\1"),
    *(
        (rf"denoise_fn\.{theirs}\.({index})\.{part}\.(\w+)", rf"{ours}.\1.{place}.\2")
        for theirs, ours, index in (("downs", "down", r"[1-9]\d*"), ("mid", "middle", r"\d+"), ("ups", "up", r"\d+"))
        for part, place in (
            (r"res_block\.block1\.block\.0", "block.norm_in"),
            (r"res_block\.block1\.block\.3", "block.conv_in"),
            (r"res_block\.(?:noise_func\.noise_func\.0|mlp\.1)", "block.condition.project"),
            (r"res_block\.block2\.block\.0", "block.condition.norm"),
            (r"res_block\.block2\.block\.3", "block.conv_out"),
            (r"res_block\.res_conv", "block.shortcut"),
            (r"attn\.norm", "attention.norm"),
            (r"attn\.qkv", "attention.query_key_value"),
            (r"attn\.out", "attention.out"),
            ("conv", "block.conv"),
        )
    ),
)


def import_weights(path: str, config_path: str, out: str) -> str:
    """Write a ModelBundle to the folder ``out`` from ``path`` (``I..._E..._gen.pth``) and its config; the bundle's URI.

    BadInput: a config without what is needed, tensors missing, extra or of another shape, noise tables of another config, numbers that
    are not finite, a bundle in ``out``. Nothing is written then.
    """
    _foreign.refuse_existing(out)
    values = read_config(config_path)
    foreign = _foreign.tensors(_foreign.read(path), path)
    foreign = {_named(name): tensor for name, tensor in foreign.items()}
    network = {name: tensor for name, tensor in foreign.items() if not TABLES.fullmatch(name)}
    made = stage(values, config_path)
    index = {name: str(int(name.split(".")[2])) for name in network if name.startswith("denoise_fn.downs.")}
    fit = _foreign.fitted(made, network, lambda name: _shifted(NAMES(name), index.get(name)))
    fit.refuse(path, f"pass the config these weights were trained with instead of {config_path}")
    _refuse_other_tables(foreign, values, path, config_path)
    files = {"weights": path, "config": config_path}
    return _foreign.save(out, made, fit, files=files, source=SOURCE, images_seen=None, sampling=made.sampling)


def read_config(path: str) -> dict[str, Any]:
    """The JSON config, whose ``//`` comments may stand anywhere outside a string."""
    place = Path(path).expanduser()
    if not place.is_file():
        raise BadInput(f"no config {path}", "the JSON config of these weights", "pass it as --config")
    text = re.sub(r'("(?:\\.|[^"\\])*")|//[^\n]*', lambda match: match.group(1) or "", place.read_text(encoding="utf-8"))
    try:
        values = json.loads(text)
    except ValueError as error:
        raise BadInput(f"config {path} that is not JSON ({error})", "JSON with // comments", "mend the file") from None
    if not isinstance(values, dict):
        raise BadInput(f"config {path} that is not an object", "one JSON object", "pass the config of these weights")
    return cast("dict[str, Any]", values)


def stage(values: Mapping[str, Any], path: str) -> Stage:
    """The stage that the config describes. Its training section says how those weights were made, as far as the config knows."""
    look = _Look(values, path)
    kind = look.one_of("model.which_model_G", ("sr3", "ddpm"))
    conditional = bool(look.value("model.diffusion.conditional"))
    side, channels = int(look.value("model.diffusion.image_size")), int(look.value("model.unet.out_channel"))
    entering = int(look.value("model.unet.in_channel"))
    if entering != channels * (2 if conditional else 1):
        raise BadInput(f"{path}: model.unet.in_channel {entering}", f"{channels * (2 if conditional else 1)} here", "mend the config")
    multipliers = [int(multiplier) for multiplier in look.value("model.unet.channel_multiplier")]
    sides = {side // 2**depth: 2**depth for depth in range(len(multipliers))}
    train = schedule(look, "train")
    network: dict[str, Any] = {
        "channels": int(look.value("model.unet.inner_channel")),
        "multipliers": multipliers,
        "blocks": int(look.value("model.unet.res_blocks")),
        "dropout": float(look.value("model.unet.dropout")),
        "norm_groups": int(look.values("model.unet").get("norm_groups") or 32),
        "attention_factors": [sides[int(at)] for at in look.value("model.unet.attn_res") if int(at) in sides],
        "block_style": "ddpm", "skip_scale": 1.0, "embedding_scale": 1.0, "embedding_width": 1,
        "embedding_activation": kind == "ddpm", "logit_scale": "channels", "qkv_bias": False, "qkv_layout": "heads",
        **({"fed": "sqrt_gamma"} if kind == "sr3" else {"fed": "t", "table": train}),
    }  # fmt: skip
    val = schedule(look, "val")
    sampling = {"sampler": "ancestral", "posterior_variance": True, "steps": val["steps"]}
    sampling |= {"grid": "time"} if val == train else {"grid": "betas", "betas": val}
    levels = {"name": "piecewise_sqrt" if kind == "sr3" else "discrete", "schedule": train}
    batch = int(look.value("datasets.train.batch_size"))
    return _foreign.staged(
        {
            "name": f"sr{side}" if conditional else f"base{side}",
            "low": int(look.value("datasets.train.l_resolution")) if conditional else None,
            "high": side,
            "channels": channels,
            "model": {"name": "unet", "options": network},
            "objective": {"name": "diffusion", "options": {"levels": levels, "loss": "l1"}},
            "training": {
                "images": int(float(look.value("train.n_iter"))) * batch,
                "global_batch": batch, "micro_batch": batch, "checkpoint_images": batch, "log_images": batch,
                "optimizer": {"learning_rate": float(look.value("train.optimizer.lr"))},
            },
            "sampling": sampling,
        },
        SOURCE,
    )  # fmt: skip


def schedule(look: "_Look", phase: str) -> dict[str, Any]:
    """The table of betas of ``phase`` (train or val) as options of ``Schedule``."""
    at = f"model.beta_schedule.{phase}"
    name = look.one_of(f"{at}.schedule", tuple(SCHEDULES))
    ends = {key: float(look.value(f"{at}.linear_{key}")) for key in ("start", "end")}
    made = {"name": SCHEDULES[name], "steps": int(look.value(f"{at}.n_timestep")), **ends}
    return config.parse(Schedule, made).model_dump(mode="json")


class _Look:
    """Values of the config by their dotted path; BadInput for one that is not there."""

    def __init__(self, content: Mapping[str, Any], path: str) -> None:
        self.content, self.path = content, path

    def value(self, dotted: str) -> Any:
        current: Any = self.content
        for part in dotted.split("."):
            if not isinstance(current, Mapping) or part not in current:
                raise BadInput(f"{self.path} without {dotted}", "the complete config of these weights", "add the value")
            current = cast("Mapping[str, Any]", current)[part]
        return current

    def values(self, dotted: str) -> Mapping[str, Any]:
        return cast("Mapping[str, Any]", self.value(dotted))

    def one_of(self, dotted: str, allowed: tuple[str, ...]) -> str:
        value = str(self.value(dotted))
        if value not in allowed:
            raise BadInput(f"{self.path}: {dotted} {value!r}", nearest(value, list(allowed)), "mend the config")
        return value


def _named(name: str) -> str:
    """Their name with the prefix of the diffusion module, which a state dict of the bare U-Net lacks."""
    bare = name.split(".", maxsplit=1)[0] in ("downs", "mid", "ups", "final_conv", "noise_level_mlp", "time_mlp")
    return f"denoise_fn.{name}" if bare else name


def _shifted(ours: str | None, index: str | None) -> str | None:
    """Their first convolution counts as downs.0, ours has a name of its own: every later index is one less."""
    if ours is None or index is None or not ours.startswith("down."):
        return ours
    return ours.replace(f"down.{index}.", f"down.{int(index) - 1}.", 1)


def _refuse_other_tables(foreign: Mapping[str, Tensor], values: Mapping[str, Any], path: str, config_path: str) -> None:
    """The stored betas are those of the config's train or val schedule, if any are stored."""
    if "betas" not in foreign:
        return
    stored = foreign["betas"].double().numpy()
    look = _Look(values, config_path)
    for phase in ("train", "val"):
        gammas = config.parse(Schedule, schedule(look, phase)).gammas()
        betas = 1.0 - gammas[1:] / gammas[:-1]
        if betas.shape == stored.shape and float(np.abs(betas - stored).max()) < TABLE_TOLERANCE:
            return
    got = f"{path} with {len(stored)} betas from {stored[0]:.3g} to {stored[-1]:.3g}"
    raise BadInput(got, f"a beta_schedule of {config_path}", "pass the config these weights were trained with")
