"""Weights of Janspiry/Image-Super-Resolution-via-Iterative-Refinement: its ``*_gen.pth`` and the JSON config they were trained with."""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import Tensor

from sr3_core import config
from sr3_core.config import Stage
from sr3_core.diffusion.schedules import READS, Schedule
from sr3_core.errors import BadInput, nearest
from sr3_core.importers import _foreign
from sr3_core.importers._foreign import Imported

SOURCE = "Janspiry/Image-Super-Resolution-via-Iterative-Refinement"
SCHEDULES = {"quad": "quadratic", **{name: name for name in ("linear", "cosine", "const", "warmup10", "warmup50", "jsd")}}
KINDS = ("sr3", "ddpm")
# what its diffusion module stores beside the network; computed from the config
TABLES = r"betas|alphas_cumprod(_prev)?|sqrt_.*|log_one_minus_alphas_cumprod|posterior_.*"
TABLES_OF = {"sr3": re.compile(TABLES), "ddpm": re.compile(rf"{TABLES}|denoise_fn\.time_mlp\.0\.inv_freq")}
TABLE_TOLERANCE = 1e-6  # of the stored float32 betas
ATTENTION_SIDE = 64  # the network's own default
MOST = 10**12  # of any whole number in a config
MOST_CHANNELS, MOST_BLOCKS, MOST_DEPTHS, MOST_STEPS, MOST_SIDE = 4096, 64, 16, 10**6, 2**16


def _names(kind: str) -> Callable[[str], str | None]:
    """Our name for each name of a network of ``kind``, None for a name it does not have."""
    level, project = {"sr3": ("noise_level_mlp", r"res_block\.noise_func\.noise_func\.0"), "ddpm": ("time_mlp", r"res_block\.mlp\.1")}[kind]
    rename = _foreign.renamer(
        (rf"denoise_fn\.{level}\.1\.(\w+)", r"embedding.perceptron.0.\1"),
        (rf"denoise_fn\.{level}\.3\.(\w+)", r"embedding.perceptron.2.\1"),
        (r"denoise_fn\.downs\.0\.(\w+)", r"conv_in.\1"),
        (r"denoise_fn\.final_conv\.block\.0\.(\w+)", r"norm_out.\1"),
        (r"denoise_fn\.final_conv\.block\.3\.(\w+)", r"conv_out.\1"),
        *(
            (rf"denoise_fn\.{theirs}\.({index})\.{part}\.(\w+)", rf"{ours}.\1.{place}.\2")
            for theirs, ours, index in (("downs", "down", "[1-9][0-9]*"), ("mid", "middle", "[0-9]+"), ("ups", "up", "[0-9]+"))
            for part, place in (
                (r"res_block\.block1\.block\.0", "block.norm_in"),
                (r"res_block\.block1\.block\.3", "block.conv_in"),
                (project, "block.condition.project"),
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

    def name(theirs: str) -> str | None:
        """Their first convolution counts as downs.0, ours has a name of its own: every later index is one less."""
        ours = rename(theirs)
        return None if ours is None else re.sub(r"^down\.([0-9]+)", lambda match: f"down.{int(match[1]) - 1}", ours)

    return name


NAMES = {kind: _names(kind) for kind in KINDS}


def import_weights(path: str, config_path: str, out: str) -> Imported:
    """Write a ModelBundle to the folder ``out`` from ``path`` (``I..._E..._gen.pth``) and its config.

    BadInput: a config without what is needed or with values of another kind, tensors missing, extra, twice or of another shape, noise
    tables of another config, numbers that are not finite, a bundle in ``out``. Nothing is written then.
    """
    _foreign.refuse_existing(out)
    values = read_config(config_path)
    foreign = _foreign.unique(_foreign.tensors(_foreign.read(path), path), _named, path)
    made = stage(values, config_path)
    kind = _Look(values, config_path).one_of("model.which_model_G", KINDS)
    network = {name: tensor for name, tensor in foreign.items() if not TABLES_OF[kind].fullmatch(name)}
    with _foreign.said_of(config_path):
        fit = _foreign.fitted(made, network, NAMES[kind])
    fit.refuse(path, f"pass the config these weights were trained with instead of {config_path}")
    _refuse_other_tables(foreign, values, path, config_path)
    return _foreign.save(out, made, fit, files={"weights": path, "config": config_path}, source=SOURCE)


def read_config(path: str) -> dict[str, Any]:
    """The JSON config, whose ``//`` comments may stand anywhere outside a string."""
    place = Path(path).expanduser()
    if not place.is_file():
        raise BadInput(f"no config {path}", "the JSON config of these weights", "pass it as --config")
    try:
        text = re.sub(r'("(?:\\.|[^"\\])*")|//[^\n]*', lambda match: match.group(1) or "", place.read_text(encoding="utf-8"))
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"config {path} that is not JSON ({error})", "JSON with // comments", "mend the file") from None
    if not isinstance(values, dict):
        raise BadInput(f"config {path} that is not an object", "one JSON object", "pass the config of these weights")
    return cast("dict[str, Any]", values)


def stage(values: Mapping[str, Any], path: str) -> Stage:
    """The stage that the config describes. Its training section says how those weights were made, as far as the config knows."""
    look = _Look(values, path)
    kind = look.one_of("model.which_model_G", KINDS)
    conditional = look.flag("model.diffusion.conditional")
    side = look.whole("model.diffusion.image_size", most=MOST_SIDE)
    channels, entering = look.whole("model.unet.out_channel"), look.whole("model.unet.in_channel")
    if entering != channels * (2 if conditional else 1):
        allowed = f"{channels * (2 if conditional else 1)}: out_channel, twice where conditional"
        raise BadInput(f"{path}: model.unet.in_channel {entering}", allowed, "mend the config")
    multipliers = look.wholes("model.unet.channel_multiplier", most=MOST_CHANNELS)
    if not 0 < len(multipliers) <= MOST_DEPTHS:
        raise BadInput(f"{path}: {len(multipliers)} values of model.unet.channel_multiplier", f"1 to {MOST_DEPTHS}", "mend the config")
    sides = {side // 2**depth: 2**depth for depth in range(len(multipliers))}
    attended = [at for at in look.wholes("model.unet.attn_res") if at in sides]  # that code passes over the others, and so must we
    groups = look.whole("model.unet.norm_groups") if look.given("model.unet.norm_groups") else 32  # its own default
    train = schedule(look, "train")
    network: dict[str, Any] = {
        "channels": look.whole("model.unet.inner_channel", most=MOST_CHANNELS),
        "multipliers": multipliers,
        "blocks": look.whole("model.unet.res_blocks", most=MOST_BLOCKS),
        "dropout": look.number("model.unet.dropout"),
        "norm_groups": groups,
        "attention_factors": [sides[at] for at in attended],
        "block_style": "ddpm", "skip_scale": 1.0, "embedding_scale": 1.0, "embedding_width": 1,
        "embedding_activation": kind == "ddpm", "logit_scale": "channels", "qkv_bias": False, "qkv_layout": "heads",
        **({"fed": "sqrt_gamma"} if kind == "sr3" else {"fed": "t", "table": train}),
    }  # fmt: skip
    widest = max([math.ceil(side / 2 ** (len(multipliers) - 1)), *attended])
    if widest > ATTENTION_SIDE:
        network["attention_max_side"] = widest  # the config is the opt-in
    val = schedule(look, "val")
    sampling = {"sampler": "ancestral", "posterior_variance": True, "steps": val["steps"]}
    sampling |= {"grid": "time"} if val == train else {"grid": "betas", "betas": val}
    levels = {"name": "piecewise_sqrt" if kind == "sr3" else "discrete", "schedule": train}
    upsampling = {"upsampling": "bicubic_8bit"} if conditional else {}  # its preparation stores the upsampled low image
    batch = look.whole("datasets.train.batch_size")
    described = {
        "name": f"sr{side}" if conditional else f"base{side}",
        "low": look.whole("datasets.train.l_resolution") if conditional else None,
        "high": side,
        "channels": channels,
        "model": {"name": "unet", "options": network},
        "objective": {"name": "diffusion", "options": {"levels": levels, "loss": "l1", **upsampling}},
        "training": {
            "images": look.whole("train.n_iter") * batch,
            "global_batch": batch, "micro_batch": batch, "checkpoint_images": batch, "log_images": batch,
            "optimizer": {"learning_rate": look.number("train.optimizer.lr")},
        },
        "sampling": sampling,
    }  # fmt: skip
    with _foreign.said_of(path):
        return _foreign.staged(described, SOURCE)


def schedule(look: "_Look", phase: str) -> dict[str, Any]:
    """The table of betas of ``phase`` (train or val) as options of ``Schedule``."""
    at = f"model.beta_schedule.{phase}"
    name = look.one_of(f"{at}.schedule", tuple(SCHEDULES))
    if name == "jsd":
        got = f"{look.path}: {at}.schedule jsd, whose last step leaves no signal: that code divides by zero there when it samples"
        do = f"give {at} the schedule that the weights were really {'trained' if phase == 'train' else 'sampled'} with"
        raise BadInput(got, ", ".join(other for other in SCHEDULES if other != "jsd"), do)
    ends = {key: look.number(f"{at}.linear_{key}") for key in ("start", "end") if key in READS[SCHEDULES[name]]}
    made = {"name": SCHEDULES[name], "steps": look.whole(f"{at}.n_timestep", most=MOST_STEPS), **ends}
    with _foreign.said_of(f"{look.path}: {at}"):
        return config.parse(Schedule, made).model_dump(mode="json")


class _Look:
    """Values of the config by their dotted path; BadInput for one that is not there or of another kind."""

    def __init__(self, content: Mapping[str, Any], path: str) -> None:
        self.content, self.path = content, path

    def value(self, dotted: str) -> Any:
        current: Any = self.content
        for part in dotted.split("."):
            if not isinstance(current, Mapping) or part not in current:
                raise BadInput(f"{self.path} without {dotted}", "the complete config of these weights", "add the value")
            current = cast("Mapping[str, Any]", current)[part]
        return current

    def given(self, dotted: str) -> bool:
        """Whether the last part stands in its section and is not null; that code takes both for not given."""
        section, _, key = dotted.rpartition(".")
        content = self.value(section)
        return isinstance(content, Mapping) and cast("Mapping[str, Any]", content).get(key) is not None

    def number(self, dotted: str) -> float:
        value = self.value(dotted)
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= MOST:
            raise self._refused(dotted, value, "a number")
        return float(value)

    def whole(self, dotted: str, *, most: int = MOST) -> int:
        return self._whole(dotted, self.value(dotted), most)

    def wholes(self, dotted: str, *, most: int = MOST) -> list[int]:
        values = self.value(dotted)
        if not isinstance(values, list):
            raise self._refused(dotted, values, "a list of whole numbers")
        return [self._whole(dotted, value, most) for value in cast("list[Any]", values)]

    def flag(self, dotted: str) -> bool:
        value = self.value(dotted)
        if not isinstance(value, bool):
            raise self._refused(dotted, value, "true or false")
        return value

    def one_of(self, dotted: str, allowed: tuple[str, ...]) -> str:
        value = str(self.value(dotted))
        if value not in allowed:
            raise self._refused(dotted, value, nearest(value, list(allowed)))
        return value

    def _whole(self, dotted: str, value: Any, most: int) -> int:
        if not isinstance(value, int | float) or isinstance(value, bool) or not 1 <= value <= most or value != int(value):
            raise self._refused(dotted, value, f"a whole number from 1 to {most}")  # 1e6 is one
        return int(value)

    def _refused(self, dotted: str, value: Any, allowed: str) -> BadInput:
        return BadInput(f"{self.path}: {dotted} {str(value)[:60]!r}", allowed, "mend the config")


def _named(name: str) -> str:
    """Their name with the prefix of the diffusion module, which a state dict of the bare U-Net lacks."""
    bare = name.split(".", maxsplit=1)[0] in ("downs", "mid", "ups", "final_conv", "noise_level_mlp", "time_mlp")
    return f"denoise_fn.{name}" if bare else name


def _refuse_other_tables(foreign: Mapping[str, Tensor], values: Mapping[str, Any], path: str, config_path: str) -> None:
    """The stored betas are those of the config's train or val schedule, if any are stored."""
    if "betas" not in foreign:
        return
    stored = foreign["betas"].double().numpy()
    if stored.ndim != 1 or len(stored) < 2:
        raise BadInput(f"{path} with betas of shape {list(stored.shape)}", "a row of betas", "pass the file with the network's weights")
    look = _Look(values, config_path)
    for phase in ("train", "val"):
        gammas = config.parse(Schedule, schedule(look, phase)).gammas()
        betas = 1.0 - gammas[1:] / gammas[:-1]
        if betas.shape == stored.shape and float(np.abs(betas - stored).max()) < TABLE_TOLERANCE:
            return
    got = f"{path} with {len(stored)} betas from {stored[0]:.3g} to {stored[-1]:.3g}"
    raise BadInput(got, f"a beta_schedule of {config_path}", "pass the config these weights were trained with")
