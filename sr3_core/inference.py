"""One image in, one larger image out, or one from noise alone, by any model this project wrote: a bundle, a cascade, or a registered
version in MLflow."""

import math
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sr3_core import images, labels, seeds, storage, tracking
from sr3_core.artifacts import bundle as bundles
from sr3_core.artifacts.bundle import ModelBundle
from sr3_core.cascade import Cascade, is_cascade, sample_seed
from sr3_core.errors import BadInput
from sr3_core.labels import Labels
from sr3_core.tiling import TiledNetwork

REGISTERED = "models:/"
BUNDLE = "artifacts/bundle"  # where the bundle is inside a registered model: artifacts={"bundle": .../bundle}
OnPrediction = Callable[[str, float, torch.Tensor, torch.Tensor], None]
MAX_OUTPUT_PIXELS = 64 * 1024 * 1024  # the sampler holds about ten float32 images of this size: 8 GB


class Upscaler:
    """A loaded model for images of any size; ``sample`` in place of ``upscale`` where its first stage is unconditional. ``cascade`` has
    one stage or more."""

    def __init__(self, cascade: Cascade) -> None:
        for bundle in cascade.bundles:
            network = getattr(bundle.predictor, "network", None)
            if isinstance(network, nn.Module) and not isinstance(network, TiledNetwork):
                multiple = _multiple(network)
                bundle.predictor.network = TiledNetwork(network, side=math.ceil(bundle.stage.high / multiple) * multiple)
        self.cascade = cascade

    @property
    def scale(self) -> int:
        """How many times larger the output is than the input, or than the first stage's image from noise."""
        return self.cascade.scale

    @property
    def side(self) -> int | None:
        """Pixels of the output's side where the model starts from noise; None where the size is that of the low image."""
        return None if self.cascade.bundles[0].stage.low is not None else self.cascade.bundles[-1].stage.high

    @property
    def channels(self) -> int:
        """Channels of input and output."""
        return self.cascade.bundles[0].stage.channels

    @property
    def bits(self) -> int:
        """Bits of a channel of input and output, 8 or 16."""
        return self.cascade.bits

    @property
    def labels(self) -> Labels:
        """The class labels that the model may be told."""
        return labels.of(*(bundle.stage for bundle in self.cascade.bundles))

    @property
    def description(self) -> str:
        """The stages in order: ``base noise -> 64, sr256 64 -> 256``."""
        return ", ".join(f"{bundle.stage.name} {bundle.stage.sizes}" for bundle in self.cascade.bundles)

    def sampling_notes(self, **sampling: Any) -> list[str]:
        """What is to be said of sampling with these options on top, a line each: the schedule guard's warnings and waivers, and what a
        sampler does not read. BadInput for options that are refused."""
        return [f"{bundle.stage.name}: {note}" for bundle in self.cascade.bundles for note in bundle.sampling_notes(sampling)]

    def check_upscales(self) -> None:
        """BadInput when the model starts from noise."""
        if self.side is not None:
            later = [bundle.stage.name for bundle in self.cascade.bundles[1:]]
            other = f"--stage {' or '.join(later)}" if later else "another model"
            got = f"a model that starts from noise ({self.description})"
            raise BadInput(got, "a model with a low image", f"make images with sr3 sample, or take {other}")

    def check_samples(self) -> None:
        """BadInput when the model starts from a low image."""
        if self.side is None:
            got = f"a model that starts from a low image ({self.description})"
            raise BadInput(got, "a model that starts from noise", "make an image larger with sr3 upscale, or take another model")

    def check_label(self, label: int | None) -> None:
        """BadInput for a label (None: none) that the model was not trained with."""
        self.labels.check(label, f"the model ({self.description})")

    def upscale(
        self,
        image: images.Array,
        *,
        seed: int = 0,
        sample: int = 0,
        label: int | None = None,
        on_stage: Callable[[str], None] | None = None,
        on_prediction: OnPrediction | None = None,
        **sampling: Any,
    ) -> images.Array:
        """(H, W, C) uint8, or uint16 for a model of 16 bits -> (scale x H, scale x W, C) alike. ``sample`` numbers draws of ``seed``;
        ``label`` is the image's class, for a model that is told labels.

        ``sampling`` overrides the chosen options of every stage. ``on_stage`` hears the name of each finished stage, ``on_prediction``
        after every call of a network the stage's name, gamma, the noisy state and the predicted clean image, both (1, C, H, W). Raises
        BadInput for another depth or number of channels, an output above MAX_OUTPUT_PIXELS, a label that the model was not trained with,
        unknown sampling options and a model that starts from noise.
        """
        self.check_upscales()
        self.check_label(label)
        if image.dtype.name != f"uint{self.bits}" or image.ndim != 3 or image.shape[2] != self.channels or not image.size:
            allowed = f"uint{self.bits} (height, width, {self.channels})"
            raise BadInput(f"an image of {image.dtype} {image.shape}", allowed, "convert it")
        height, width = image.shape[:2]
        if height * width * self.scale**2 > MAX_OUTPUT_PIXELS:
            got = f"an output of {width * self.scale} x {height * self.scale} pixels ({width} x {height}, x{self.scale})"
            allowed = f"at most {MAX_OUTPUT_PIXELS // 1024**2} megapixels"
            raise BadInput(got, allowed, self._smaller(height, width))
        padded = reflected(image, self._multiple())
        low = torch.from_numpy(images.to_unit(padded))[None]
        chosen = self._heard(sampling, on_prediction, height, width)
        made = self._last(low, seeds.from_key(f"upscale {sample}", seed), label, chosen, on_stage)
        return made[: height * self.scale, : width * self.scale]

    def sample(
        self,
        *,
        seed: int = 0,
        sample: int = 0,
        label: int | None = None,
        on_stage: Callable[[str], None] | None = None,
        on_prediction: OnPrediction | None = None,
        **sampling: Any,
    ) -> images.Array:
        """An image from noise, (side, side, C) uint8 or uint16; the arguments are those of ``upscale``.

        Raises BadInput for a label that the model was not trained with, unknown sampling options and a model that starts from a low image.
        """
        self.check_samples()
        self.check_label(label)
        first = self.cascade.bundles[0].stage.high
        return self._last(None, sample_seed(seed, sample), label, self._heard(sampling, on_prediction, first, first), on_stage)

    def _last(
        self,
        low: torch.Tensor | None,
        drawn: int,
        label: int | None,
        sampling: list[dict[str, Any]],
        on_stage: Callable[[str], None] | None,
    ) -> images.Array:
        """The last stage's image (H, W, C) of class ``label`` for ``low`` (1, C, h, w) or from noise, by the seed ``drawn``."""
        made: list[torch.Tensor] = []
        outputs = self.cascade.outputs(low, seeds=[drawn], labels=labels.tensor(label), sampling=sampling)
        for bundle, output in zip(self.cascade.bundles, outputs, strict=True):
            made = [output]
            if on_stage is not None:
                on_stage(bundle.stage.name)
        return images.from_unit(made[0][0].cpu().numpy(), bits=self.bits)

    def _heard(self, sampling: Mapping[str, Any], on_prediction: OnPrediction | None, height: int, width: int) -> list[dict[str, Any]]:
        """The sampling options of each stage, its predictions told to ``on_prediction`` without what the padding added."""
        if on_prediction is None:
            return [dict(sampling)] * len(self.cascade.bundles)
        found: list[dict[str, Any]] = []
        scale = 1
        for bundle in self.cascade.bundles:
            scale *= bundle.stage.scale
            found.append(
                {**sampling, "on_prediction": partial(_without_padding, on_prediction, bundle.stage.name, height * scale, width * scale)}
            )
        return found

    def _smaller(self, height: int, width: int) -> str:
        """What to do with an image that is too large for all stages together."""
        first = self.cascade.bundles[0].stage
        if len(self.cascade.bundles) > 1 and height * width * first.scale**2 <= MAX_OUTPUT_PIXELS:
            return f"take the first stage alone (--stage {first.name}, x{first.scale}), or an image of at most {self._most(self.scale)}"
        return f"take an image of at most {self._most(first.scale)} for x{first.scale} (--stage {first.name})"

    @staticmethod
    def _most(scale: int) -> str:
        side = math.isqrt(MAX_OUTPUT_PIXELS // scale**2)
        return f"{side} x {side} pixels"

    def to_accelerator(self) -> "Upscaler":
        """Move every network to the GPU when there is one."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        for bundle in self.cascade.bundles:
            bundle.predictor.network.to(device)
        return self

    def _multiple(self) -> int:
        """Low sides that are multiples of this give every stage a high side its network takes without padding."""
        scale, multiple = 1, 1
        for bundle in self.cascade.bundles:
            scale *= bundle.stage.scale
            needed = _multiple(bundle.predictor.network)
            multiple = math.lcm(multiple, needed // math.gcd(needed, scale))
        return multiple


def load_model(uri: str, *, mlflow_uri: str = "", stage: str = "") -> Upscaler:
    """Load a bundle folder, a cascade folder or ``models:/name@alias`` (``models:/name/version``) of ``mlflow_uri``.

    ``stage`` picks one stage of a cascade. Raises BadInput for what is no model, for an unknown name, alias, version or stage.
    """
    if uri.startswith(REGISTERED):
        with tempfile.TemporaryDirectory(prefix="sr3-model-") as folder:
            return _load_folder(str(registered_bundle(uri, mlflow_uri, Path(folder))), stage)
    return _load_folder(uri, stage)


def upscale(
    image: images.Array | str | Path, *, model: Upscaler, seed: int = 0, sample: int = 0, label: int | None = None, **sampling: Any
) -> images.Array:
    """``model.upscale`` of an (H, W, C) array or of an image file (any URI)."""
    array = image if isinstance(image, np.ndarray) else read_image(str(image), channels=model.channels, bits=model.bits)
    return model.upscale(array, seed=seed, sample=sample, label=label, **sampling)


def read_image(uri: str, *, channels: int, bits: int) -> images.Array:
    """Decode the image at ``uri``; BadInput when it is missing, unreadable or no usable image."""
    if not storage.exists(uri):
        raise BadInput(f"no image at {uri}", "a file that is there", "check the path")
    storage.check_readable(uri)
    try:
        return images.decode(storage.read_bytes(uri), channels=channels, bits=bits)
    except IsADirectoryError:
        raise BadInput(f"{uri} is a folder", "an image file", "name the images in it") from None
    except images.BadImage as error:
        what = "an alpha" if channels == 4 else "no transparency" if channels in images.PICTURED else ".npy"
        allowed = f"a sound image of {channels} channels of {bits} bits ({what})"
        raise BadInput(f"{uri}: {error}", allowed, "convert or replace it") from None


def registered_bundle(uri: str, mlflow_uri: str, folder: Path) -> Path:
    """Download the model ``models:/...`` under ``folder``; the path of the bundle in it."""
    client = tracking.client(mlflow_uri)
    name, _, which = uri.removeprefix(REGISTERED).replace("@", "/@", 1).partition("/")
    try:
        found = client.get_model_version_by_alias(name, which[1:]) if which.startswith("@") else client.get_model_version(name, which)
    except Exception as error:
        allowed = "models:/name@alias or models:/name/version of a registered model"
        reason = " ".join(str(error).split())[:160]
        raise BadInput(
            f"{uri} at {mlflow_uri} ({reason})", allowed, f"look at the registered models: {tracking.ui_command(mlflow_uri)}"
        ) from None
    path = tracking.download(mlflow_uri, f"{REGISTERED}{name}/{found.version}", folder) / BUNDLE
    if not path.is_dir():
        raise BadInput(f"{uri} holds no {BUNDLE}", "a model that sr3 export registered", "choose another model")
    return path


def reflected(image: images.Array, multiple: int) -> images.Array:
    """``image`` (H, W, C) continued by reflection at the bottom and right until both sides are multiples of ``multiple``."""
    height, width = image.shape[:2]
    return np.pad(image, ((0, -height % multiple), (0, -width % multiple), (0, 0)), mode="symmetric")


def _without_padding(
    on_prediction: OnPrediction, stage: str, height: int, width: int, gamma: float, noisy: torch.Tensor, predicted: torch.Tensor
) -> None:
    on_prediction(stage, gamma, noisy[..., :height, :width], predicted[..., :height, :width])


def _load_folder(uri: str, stage: str) -> Upscaler:
    uri = storage.absolute(uri)
    if is_cascade(uri):
        cascade = Cascade.load(uri)
    elif storage.exists(storage.join(uri, bundles.MANIFEST)):
        cascade = Cascade([ModelBundle.load(uri)])
    else:
        raise BadInput(f"no model at {uri}", f"a folder with cascade.json or {bundles.MANIFEST}, or models:/name@alias", "check the URI")
    if stage:
        names = [bundle.stage.name for bundle in cascade.bundles]
        if stage not in names:
            raise BadInput(f"no stage {stage!r} in {uri}", ", ".join(names), "name one of these")
        cascade = Cascade([cascade.bundles[names.index(stage)]])
    return Upscaler(cascade)


def _multiple(network: nn.Module) -> int:
    inner = network.network if isinstance(network, TiledNetwork) else network
    return int(getattr(inner, "multiple", 1))
