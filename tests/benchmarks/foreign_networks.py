"""Imported weights against the networks they come from: the largest difference of the outputs, and how much worse a mistake would be.

    git clone https://github.com/Janspiry/Image-Super-Resolution-via-Iterative-Refinement janspiry
    git clone https://github.com/novwaul/SR3 novwaul
    python -m tests.benchmarks.foreign_networks --janspiry janspiry --novwaul novwaul

Every parameter of the original is drawn anew, N(0, 1 / fan_in), scales of norms U(.5, 1.5): fresh networks of these codes output zero or
nearly so, which hides every mistake. The state is saved as the original saves it, imported by ``sr3_core.importers``, and both networks
see one batch of three different gammas at two sizes. Differences are relative to the largest output. Ends with status 1 when an import
differs by more than 1e-5, or a mutant of it (attention off, gamma shifted, a branch zeroed, the concatenation swapped) by less than 1e-2.
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
from typing import Any

import torch
from torch import Tensor, nn

from sr3_core.artifacts.bundle import ModelBundle
from sr3_core.diffusion.schedules import Schedule
from sr3_core.importers import janspiry, novwaul

SAME, DIFFERENT = 1e-5, 1e-2
SIZES = ((64, 64), (96, 64))
STEPS = (150, 1000, 1850)  # of 2000: three levels of noise that every network has seen in training
GAMMAS = torch.tensor(Schedule().gammas()[list(STEPS)])

Original = Callable[[Tensor, Tensor | None, Tensor], Tensor]


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


def of_janspiry(checkout: Path, name: str, folder: Path) -> tuple[Original, str, nn.Module, Tensor]:
    """The original of the config ``name``, the folder of its import, the imported network and the gammas to compare at."""
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
    out = janspiry.import_weights(str(folder / "gen.pth"), str(checkout / "config" / f"{name}.json"), str(folder / "bundle"))
    network.eval()
    table = torch.cumprod(1 - whole.betas.double(), dim=0)
    gammas = GAMMAS if kind == "sr3" else table[list(STEPS)]

    def original(noisy: Tensor, low: Tensor | None, gamma: Tensor) -> Tensor:
        x = noisy if low is None else torch.cat([low, noisy], dim=1)
        if kind == "sr3":
            return network(x, gamma.sqrt().float()[:, None])
        t = torch.stack([(table - value).abs().argmin() for value in gamma])
        return network(x, t)

    return original, out, ModelBundle.load(out).network, gammas


def of_novwaul(checkout: Path, channels: int, sizes: tuple[int, int], folder: Path) -> tuple[Original, str, nn.Module, Tensor]:
    """As ``of_janspiry``, for a network of ``channels``."""
    network = module(checkout / "UNet" / "model.py").UNet(channels, steps=100)
    redraw(network)
    whole = module(checkout / "diffusion.py").GaussianDiffusion(network, 1000, 100)
    last = copy.deepcopy(whole)
    redraw(last.model.mid)
    torch.save({"net": last.state_dict(), "ema_net": whole.state_dict(), "epoch": 3}, folder / "last.pt")
    out = novwaul.import_weights(str(folder / "last.pt"), str(folder / "bundle"), low=sizes[0], high=sizes[1])
    network.eval()

    def original(noisy: Tensor, low: Tensor | None, gamma: Tensor) -> Tensor:
        assert low is not None
        return network(torch.cat([noisy, low], dim=1), gamma.sqrt().float()[:, None, None, None])

    return original, out, ModelBundle.load(out).network, GAMMAS


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
def compare(original: Original, imported: nn.Module, gammas: Tensor) -> tuple[float, dict[str, float]]:
    """The largest relative difference of the import, and the smallest of each mutant."""
    worst, least = 0.0, dict[str, float]()
    for size in SIZES:
        generator = torch.Generator().manual_seed(1)
        noisy = torch.randn(len(gammas), 3, *size, generator=generator)
        low = torch.randn(len(gammas), 3, *size, generator=generator).clamp(-1, 1) if imported.conditional else None
        expected = original(noisy, low, gammas)

        def difference(network: Callable[..., Tensor]) -> float:
            return float((network(noisy, low, gammas) - expected).abs().max() / expected.abs().max())  # noqa: B023

        worst = max(worst, difference(imported))
        for name, mutant in mutants(imported):
            least[name] = min(least.get(name, float("inf")), difference(mutant))
    return worst, least


def main() -> int:
    parser = argparse.ArgumentParser(description="Imported weights against the networks they come from.")
    parser.add_argument("--janspiry", type=Path, help="a checkout of Janspiry/Image-Super-Resolution-via-Iterative-Refinement")
    parser.add_argument("--novwaul", type=Path, help="a checkout of novwaul/SR3")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    chosen = parser.parse_args()
    cases: list[tuple[str, Callable[[Path], tuple[Original, str, nn.Module, Tensor]]]] = []
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
            original, _, imported, gammas = make(Path(folder))
            worst, least = compare(original, imported, gammas)
        figures[name] = {"import": worst, "mutants": least}
        print(f"{name:<26} import {worst:.1e}   " + "   ".join(f"{mutant} {value:.2g}" for mutant, value in least.items()), flush=True)
    if chosen.json:
        chosen.json.write_text(json.dumps(figures, indent=1))
    wrong = [name for name, row in figures.items() if row["import"] > SAME or min(row["mutants"].values()) < DIFFERENT]
    print("all equal, all mutants differ" if not wrong else f"wrong: {', '.join(wrong)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
