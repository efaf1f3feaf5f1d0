"""What every objective in objectives/ keeps: seeded draws by global index, learning, and a predictor with the one signature."""

from typing import Any

import numpy as np
import pytest
import torch

from sr3_core import config, plugins
from sr3_core.config import Stage
from sr3_core.data.loader import Batch
from sr3_core.errors import BadInput
from sr3_core.resample import resample

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "diffusion": [
        {},
        {"prediction": "v", "target": "residual", "residual_scale": 0.3, "loss": "l2", "levels": {"name": "log_snr", "low": -4, "high": 4}},
        {"prediction": "x0", "loss": "l2", "min_snr": 5.0},
    ],
}
CASES = [(name, options) for name in plugins.names("objectives") for options in OPTIONS.get(name, [{}])]


def stage(name: str, options: dict[str, Any], *, low: int | None = 4, **sampling: Any) -> Stage:
    network = {"channels": 16, "multipliers": [1, 2], "blocks": 1, "fed": "log_snr", "embedding_scale": 1.0}
    values = {
        "name": "s", "low": low, "high": 16,
        "model": {"name": "unet", "options": network},
        "objective": {"name": name, "options": options},
        "training": {"images": 8, "global_batch": 8, "micro_batch": 8, "checkpoint_images": 8, "log_images": 8, "seed": 2},
        "sampling": {"steps": 3, **sampling},
    }  # fmt: skip
    return config.parse(Stage, values)


def objective(name: str, options: dict[str, Any], **kwargs: Any) -> Any:
    return plugins.load("objectives", name).Objective(stage(name, options, **kwargs), {})


def batch(first: int = 0, count: int = 8) -> Batch:
    """Smooth pictures, each by its global index, with the low images that bicubic shrinking makes."""
    grid = torch.linspace(-1, 1, 16)
    phases = torch.tensor([[(first + item) * 0.7 + channel for channel in range(3)] for item in range(count)])
    high = 0.8 * torch.sin(4 * grid[None, None, :, None] + 3 * grid[None, None, None, :] + phases[:, :, None, None])
    low = resample(high, (4, 4), "bicubic")
    return Batch(high=high, low=low, sample_index=np.arange(first, first + count), keys=("",) * count, labels=None)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_players_come_from_the_seed_alone(name: str, options: dict[str, Any]) -> None:
    torch.manual_seed(1)
    first = objective(name, options).players()
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    second = objective(name, options).players()
    assert torch.equal(before, torch.random.get_rng_state()), "the global generator is left as it was"
    for player, network in first.items():
        assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), second[player].state_dict().values(), strict=True))


@pytest.mark.parametrize(("name", "options"), CASES)
def test_the_loss_is_a_function_of_the_global_index(name: str, options: dict[str, Any]) -> None:
    """Two halves give the mean of the whole, in any order: draws depend on neither batch nor call."""
    made = objective(name, options)
    players = made.players()
    for turn in made.turns:
        whole = made.loss(turn, players, batch(0, 8))[0]
        second = made.loss(turn, players, batch(4, 4))[0]
        first = made.loss(turn, players, batch(0, 4))[0]
        torch.testing.assert_close((first + second) / 2, whole)
        assert torch.isfinite(whole) and whole.dim() == 0


@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_few_pictures_are_learnt(name: str, options: dict[str, Any]) -> None:
    """The mean loss over the same draws falls well below its start."""
    made = objective(name, options)
    players = made.players()
    optimizer = torch.optim.Adam([p for network in players.values() for p in network.parameters()], lr=3e-3)

    def value() -> float:
        with torch.no_grad():
            return float(sum(made.loss(turn, players, batch(100_000, 32))[0] for turn in made.turns))

    start = value()
    for step in range(60):
        for turn in made.turns:
            optimizer.zero_grad()
            made.loss(turn, players, batch(8 * step % 32, 8))[0].backward()
            optimizer.step()
    assert value() < 0.75 * start


@pytest.mark.parametrize(("name", "options"), CASES)
def test_predictions_depend_on_the_item_s_seed_alone(name: str, options: dict[str, Any]) -> None:
    made = objective(name, options)
    predictor = made.predictor(made.players()[made.exported], degradation="bicubic")
    low = batch(0, 3).low
    assert low is not None
    together = predictor.predict(low, seeds=np.array([5, 6, 7]))
    alone = predictor.predict(low[1:2], seeds=np.array([6]))
    assert together.shape == (3, 3, 16, 16) and together.dtype == torch.float32
    assert together.abs().max() <= 1
    torch.testing.assert_close(alone, together[1:2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_any_size_and_unknown_sampling_options(name: str, options: dict[str, Any]) -> None:
    made = objective(name, options)
    predictor = made.predictor(made.players()[made.exported], degradation="bicubic")
    assert predictor.predict(torch.zeros(1, 3, 5, 7), seeds=[1]).shape == (1, 3, 20, 28)
    with pytest.raises(BadInput, match="start below the end"):
        predictor.predict(torch.zeros(1, 3, 4, 4), seeds=[1], grid="log_snr", start=3.0, end=-3.0)
    with pytest.raises(BadInput, match="steps"):
        predictor.predict(torch.zeros(1, 3, 4, 4), seeds=[1], stpes=3)


@pytest.mark.parametrize("options", OPTIONS["diffusion"][1:])  # an untrained eps network saturates, and a clipped picture cannot agree
@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "dpmpp_2m", "sde_dpmpp_2m", "unipc", "heun"])
def test_projection_agrees_with_the_low_image(options: dict[str, Any], sampler: str) -> None:
    """Even an untrained network's output shrinks back to the low image once it is projected, whatever the sampler."""
    made = objective("diffusion", options, grid="log_snr", start=-3.0, end=3.0, sampler=sampler, clip=False)
    predictor = made.predictor(made.players()["denoiser"], degradation="bicubic")
    low = batch(0, 2).low
    assert low is not None

    def error(passes: int) -> float:
        out = predictor.predict(low, seeds=[1, 2], projection=passes)
        return float((resample(out, (4, 4), "bicubic") - low).square().mean().sqrt())

    assert error(3) < 0.2 * error(0)  # what is left sits at the borders of so small a picture


def test_an_unconditional_stage_samples_from_nothing() -> None:
    made = objective("diffusion", {}, low=None)
    predictor = made.predictor(made.players()["denoiser"], degradation="bicubic")
    assert predictor.predict(None, seeds=[1, 2]).shape == (2, 3, 16, 16)
    with pytest.raises(BadInput, match="residual"):
        objective("diffusion", {"target": "residual"}, low=None)
