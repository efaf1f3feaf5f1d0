"""Imported weights against the networks they come from: the largest difference of the outputs, and how much worse a mistake would be.

    git clone https://github.com/Janspiry/Image-Super-Resolution-via-Iterative-Refinement janspiry
    git clone https://github.com/novwaul/SR3 novwaul
    python -m tests.benchmarks.foreign_networks --janspiry janspiry --novwaul novwaul

Every parameter of the original is drawn anew, N(0, 1 / fan_in), scales of norms U(.5, 1.5): fresh networks of these codes output zero or
nearly so, which hides every mistake. The state is saved as the original saves it, imported by ``sr3_core.importers``, and both networks
see one batch of three different gammas at two sizes. Then both make one image of the same small picture of 8 bits in eight steps, from the
same noise: the original by its own loop from the low image as its data preparation leaves it (torchvision, which that calls, is no
dependency here: Pillow's resize and torch's Upsample, which it calls, stand for it), the import by ``predict``. Differences are relative
to the largest output. Ends with status 1 when an import's output differs by more than 1e-5, its sample by more than 1e-4, or what would be
a mistake by less than 1e-2: in the output attention off, gamma shifted, a branch zeroed or the concatenation swapped, in the sample (where
1e-3 is enough) the low image enlarged as SR3's own recipes do it.
"""

import argparse
import copy
import importlib.util
import json
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from sr3_core import images, seeds
from sr3_core.artifacts.bundle import ModelBundle
from sr3_core.diffusion.predictor import unit_noise
from sr3_core.diffusion.schedules import Schedule
from sr3_core.importers import janspiry, novwaul

SAME, SAME_SAMPLE, DIFFERENT, DIFFERENT_SAMPLE = 1e-5, 1e-4, 1e-2, 1e-3
SIZES = ((64, 64), (96, 64))
STEPS = (150, 1000, 1850)  # of 2000: three levels of noise that every network has seen in training
GAMMAS = torch.tensor(Schedule().gammas()[list(STEPS)])

SAMPLING_STEPS, SEED = 8, 11
SIDE = 64  # of the sampled image
Picture = NDArray[np.uint8]


class Case(NamedTuple):
    """An original and its import: network(noisy, low, gamma), sample(low picture or None, noises) in [-1, 1], where to compare."""

    network: Callable[[Tensor, Tensor | None, Tensor], Tensor]
    sample: Callable[[Picture | None, Iterator[Tensor]], Tensor]
    bundle: ModelBundle
    gammas: Tensor
    sampling: dict[str, Any]


class Dealt:
    """torch for a module whose random numbers are dealt from ``noises``."""

    def __init__(self, noises: Iterator[Tensor]) -> None:
        self.noises = noises

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def randn(self, *_: Any, **__: Any) -> Tensor:
        return next(self.noises)

    randn_like = randn


def module(path: Path) -> ModuleType:
    """The Python file at ``path``, imported by itself; a progress bar that it wants and that is not installed is left out."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"no Python file {path}")
    loaded = importlib.util.module_from_spec(spec)
    bars = ModuleType("tqdm")
    bars.tqdm = lambda items, **_: items  # type: ignore[attr-defined]
    missing = "tqdm" not in sys.modules and importlib.util.find_spec("tqdm") is None
    if missing:
        sys.modules["tqdm"] = bars
    spec.loader.exec_module(loaded)
    if missing:
        del sys.modules["tqdm"]
    return loaded


def redraw(network: nn.Module) -> None:
    """Weights N(0, 1 / fan_in), norm scales U(.5, 1.5), biases N(0, .01)."""
    generator = torch.Generator().manual_seed(0)
    norms = {f"{name}.weight" for name, part in network.named_modules() if isinstance(part, nn.GroupNorm)}
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name in norms:
                parameter.uniform_(0.5, 1.5, generator=generator)
            elif parameter.dim() == 1:
                parameter.normal_(0.0, 0.1, generator=generator)
            else:
                parameter.normal_(0.0, parameter[0].numel() ** -0.5, generator=generator)


def of_janspiry(checkout: Path, name: str, folder: Path) -> Case:
    """The network of the config ``name``."""
    values = janspiry.read_config(str(checkout / "config" / f"{name}.json"))
    model, kind = values["model"], values["model"]["which_model_G"]
    unet = module(checkout / "model" / f"{kind}_modules" / "unet.py")
    diffusion = module(checkout / "model" / f"{kind}_modules" / "diffusion.py")
    settings = {**model["unet"], "norm_groups": model["unet"].get("norm_groups") or 32, "image_size": model["diffusion"]["image_size"]}
    settings["channel_mults"] = settings.pop("channel_multiplier")
    network = unet.UNet(**settings)
    redraw(network)
    whole = diffusion.GaussianDiffusion(network, **model["diffusion"], schedule_opt=None)
    whole.set_new_noise_schedule(model["beta_schedule"]["train"], "cpu")
    torch.save(whole.state_dict(), folder / "gen.pth")
    out = janspiry.import_weights(str(folder / "gen.pth"), str(checkout / "config" / f"{name}.json"), str(folder / "bundle")).uri
    network.eval()
    table = torch.cumprod(1 - whole.betas.double(), dim=0)
    gammas = GAMMAS if kind == "sr3" else table[list(STEPS)]

    def original(noisy: Tensor, low: Tensor | None, gamma: Tensor) -> Tensor:
        x = noisy if low is None else torch.cat([low, noisy], dim=1)
        if kind == "sr3":
            return network(x, gamma.sqrt().float()[:, None])
        t = torch.stack([(table - value).abs().argmin() for value in gamma])
        return network(x, t)

    betas = {"schedule": "linear", "n_timestep": SAMPLING_STEPS, "linear_start": 1e-3, "linear_end": 0.6}

    def sample(low: Picture | None, noises: Iterator[Tensor]) -> Tensor:
        whole.set_new_noise_schedule(betas, "cpu")
        diffusion.torch = Dealt(noises)
        if kind == "ddpm":  # its t is that of the training table, which a shorter table of its own would miss
            whole.denoise_fn = _FedLevel(network, table, torch.cumprod(1 - whole.betas.double(), dim=0))
        if low is None:
            return whole.p_sample_loop((1, 3, SIDE, SIDE))
        enlarged = np.asarray(Image.fromarray(low).resize((SIDE, SIDE), Image.Resampling.BICUBIC))  # prepare_data.py stores it so
        return whole.p_sample_loop(unit(enlarged) * 2 - 1)

    sampling = {"grid": "betas", "steps": SAMPLING_STEPS, "betas": {"start": 1e-3, "end": 0.6, "steps": SAMPLING_STEPS}}
    return Case(original, sample, ModelBundle.load(out), gammas, sampling)


class _FedLevel(nn.Module):
    """A network fed t of ``table``, called with t of another table ``own``: by level, between two entries in proportion."""

    def __init__(self, network: nn.Module, table: Tensor, own: Tensor) -> None:
        super().__init__()
        self.network, self.levels = network, -table.log().numpy()
        self.t = torch.tensor(np.interp(-own.log().numpy(), self.levels, np.arange(len(self.levels))))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = self.network(x, self.t[t].float())
        return out


def of_novwaul(checkout: Path, channels: int, sizes: tuple[int, int], folder: Path) -> Case:
    """A network of ``channels``; the weights of its exponential moving average are to be found, not the last ones."""
    network = module(checkout / "UNet" / "model.py").UNet(channels, steps=100)
    redraw(network)
    diffusion = module(checkout / "diffusion.py")
    whole = diffusion.GaussianDiffusion(network, 1000, SAMPLING_STEPS)
    last = copy.deepcopy(whole)
    redraw(last.model.mid)
    torch.save({"net": last.state_dict(), "ema_net": whole.state_dict(), "epoch": 3}, folder / "last.pt")
    out = novwaul.import_weights(str(folder / "last.pt"), str(folder / "bundle"), low=sizes[0], high=sizes[1]).uri
    network.eval()

    def original(noisy: Tensor, low: Tensor | None, gamma: Tensor) -> Tensor:
        assert low is not None
        return network(torch.cat([noisy, low], dim=1), gamma.sqrt().float()[:, None, None, None])

    def sample(low: Picture | None, noises: Iterator[Tensor]) -> Tensor:
        assert low is not None
        enlarged = nn.Upsample(scale_factor=4.0, mode="bicubic")(unit(low)).clip(0.0, 1.0)  # as train.py does for every batch
        diffusion.torch = Dealt(noises)
        return 2 * whole.sample(next(noises), enlarged) - 1

    return Case(original, sample, ModelBundle.load(out), GAMMAS, {})


def unit(picture: Picture) -> Tensor:
    """As torchvision's ToTensor: (1, C, H, W) in [0, 1]."""
    return torch.tensor(picture).permute(2, 0, 1)[None].float() / 255


def mutants(network: Any) -> Iterator[tuple[str, Callable[..., Tensor]]]:
    """What the import would be with one mistake."""
    for name, parts in (("attention off", ("attention.out",)), ("a branch zeroed", ("down.0.block.conv_out",))):
        changed = copy.deepcopy(network)
        for part, weight in changed.named_parameters():
            if any(place in part for place in parts):
                weight.data.zero_()
        yield name, changed
    yield "gamma shifted", lambda noisy, low, gamma: network(noisy, low, gamma.roll(1))
    if network.conditional:
        yield "concatenation swapped", lambda noisy, low, gamma: network(low, noisy, gamma)


@torch.inference_mode()
def compare(case: Case) -> tuple[float, float, dict[str, float]]:
    """The largest relative difference of the import's output, that of its sample, and the smallest output difference of each mutant."""
    imported: Any = case.bundle.network
    worst, least = 0.0, dict[str, float]()
    for size in SIZES:
        generator = torch.Generator().manual_seed(1)
        noisy = torch.randn(len(case.gammas), 3, *size, generator=generator)
        low = torch.randn(len(case.gammas), 3, *size, generator=generator).clamp(-1, 1) if imported.conditional else None
        expected = case.network(noisy, low, case.gammas)
        worst = max(worst, relative(imported(noisy, low, case.gammas), expected))
        for name, mutant in mutants(imported):
            least[name] = min(least.get(name, float("inf")), relative(mutant(noisy, low, case.gammas), expected))
    picture = None
    if imported.conditional:
        side = SIDE // case.bundle.stage.scale
        picture = np.random.default_rng(2).integers(0, 256, (side, side, 3), dtype=np.uint8)
    low = None if picture is None else torch.from_numpy(images.to_unit(picture))[None]
    like = torch.empty(1, 3, SIDE, SIDE)
    noises = (unit_noise([seeds.generator(SEED, "sampling", step)], like) for step in range(SAMPLING_STEPS + 1))
    chosen = {"seeds": torch.tensor([SEED]), "size": (SIDE, SIDE), **case.sampling}
    got = case.bundle.predict(low, **chosen)
    expected = case.sample(picture, noises).reshape(got.shape)
    sampled = relative(got, expected)
    if imported.conditional:
        case.bundle.predictor.upsampling = "bicubic"
        least["enlarged otherwise"] = relative(case.bundle.predict(low, **chosen), expected)
    return worst, sampled, least


def relative(got: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest value."""
    return float((got - expected).abs().max() / expected.abs().max())


def main() -> int:
    parser = argparse.ArgumentParser(description="Imported weights against the networks they come from.")
    parser.add_argument("--janspiry", type=Path, help="a checkout of Janspiry/Image-Super-Resolution-via-Iterative-Refinement")
    parser.add_argument("--novwaul", type=Path, help="a checkout of novwaul/SR3")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    chosen = parser.parse_args()
    cases: list[tuple[str, Callable[[Path], Case]]] = []
    if chosen.janspiry:
        names = ("sr_sr3_16_128", "sr_sr3_64_512", "sr_ddpm_16_128", "sample_sr3_128", "sample_ddpm_128")
        cases += [(f"janspiry {name}", lambda at, name=name: of_janspiry(chosen.janspiry, name, at)) for name in names]
    if chosen.novwaul:
        for channels, sizes in ((56, (64, 256)), (64, (32, 128))):
            name = f"novwaul {channels} channels"
            cases.append((name, lambda at, c=channels, s=sizes: of_novwaul(chosen.novwaul, c, s, at)))
    if not cases:
        parser.error("give --janspiry, --novwaul or both")
    print(f"torch {torch.__version__}, {platform.machine()}, sizes {SIZES}, three gammas in one batch")
    figures: dict[str, Any] = {}
    for name, make in cases:
        with tempfile.TemporaryDirectory() as folder:
            worst, sampled, least = compare(make(Path(folder)))
        figures[name] = {"import": worst, "sample": sampled, "mutants": least}
        print(
            f"{name:<26} import {worst:.1e}   sample {sampled:.1e}   "
            + "   ".join(f"{mutant} {value:.2g}" for mutant, value in least.items()),
            flush=True,
        )
    if chosen.json:
        chosen.json.write_text(json.dumps(figures, indent=1))
    wrong = [
        name
        for name, row in figures.items()
        if row["import"] > SAME
        or row["sample"] > SAME_SAMPLE
        or any(value < (DIFFERENT_SAMPLE if mistake == "enlarged otherwise" else DIFFERENT) for mistake, value in row["mutants"].items())
    ]
    print("all equal, all mutants differ" if not wrong else f"wrong: {', '.join(wrong)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
