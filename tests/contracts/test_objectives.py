"""What every objective in objectives/ keeps: seeded draws by global index, learning, and a predictor with the one signature."""

from typing import Any

import numpy as np
import pytest
import torch

from sr3_core import config, plugins
from sr3_core.config import Stage
from sr3_core.data.loader import Batch
from sr3_core.errors import BadInput
from sr3_core.objectives.diffusion import Objective
from sr3_core.resample import resample

ZERO = {"name": "linear", "rescale_zero_terminal_snr": True}
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "diffusion": [
        {},
        {"prediction": "v", "target": "residual", "residual_scale": 0.3, "loss": "l2", "levels": {"name": "log_snr", "low": -4, "high": 4}},
        {"prediction": "x0", "loss": "l2", "loss_weight": "min_snr"},
        {"prediction": "edm", "loss": "l2", "levels": {"name": "log_normal", "stratified": True}},
        {"prediction": "edm", "sigma_data": 0.3, "target": "residual", "loss": "l2", "loss_weight": "min_snr", "min_snr": 2.0},
        {"loss": "huber", "huber_delta": 0.1, "levels": {"name": "piecewise_sqrt", "stratified": True}},
        {"loss": "l2", "loss_weight": "snr", "levels": {"name": "discrete", "schedule": {"start": 1e-4, "end": 2e-2}}},
        {"prediction": "v", "loss": "l2", "loss_weight": "snr", "levels": {"name": "discrete", "schedule": {"name": "jsd", "steps": 50}}},
        {"prediction": "v", "loss": "huber", "loss_weight": "min_snr", "levels": {"schedule": {"name": "sigmoid"}}},
        {"loss": "l2", "dream": 1.0},
        {"prediction": "x0", "dream": 2.0, "levels": {"schedule": {"name": "cosine", "steps": 200}}},
        {"prediction": "v", "loss": "l2", "dream": 1.0, "levels": {"schedule": ZERO}},
        {"prediction": "v", "low_augmentation": {"noise": [0.1, 0.4], "blur": [0.4, 0.6], "probability": 0.5}},
        {"prediction": "v", "target": "residual", "low_augmentation": {"blur": [0.0, 1.5], "probability": 1.0}},
    ],
}
CASES = [(name, options) for name in plugins.names("objectives") for options in OPTIONS.get(name, [{}])]


def stage(name: str, options: dict[str, Any], *, low: int | None = 4, **sampling: Any) -> Stage:
    network = {"channels": 16, "multipliers": [1, 2], "blocks": 1, "fed": "log_snr", "embedding_scale": 1.0}
    network["augmentation"] = "low_augmentation" in options
    values = {
        "name": "s", "low": low, "high": 16,
        "model": {"name": "unet", "options": network},
        "objective": {"name": name, "options": options},
        "training": {"images": 8, "global_batch": 8, "micro_batch": 8, "checkpoint_images": 8, "log_images": 8, "seed": 2},
        "sampling": {"steps": 3, "grid": "log_snr", **sampling},
    }  # fmt: skip
    return config.parse(Stage, values)


def objective(name: str, options: dict[str, Any], **kwargs: Any) -> Any:
    return plugins.load("objectives", name).Objective(stage(name, options, **kwargs), {"residual_scale": 0.5})


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
def test_every_gradient_is_finite_and_some_reach_every_player(name: str, options: dict[str, Any]) -> None:
    made = objective(name, options)
    players = made.players()
    for turn in made.turns:
        made.loss(turn, players, batch(0, 8))[0].backward()
        gradients = [parameter.grad for parameter in players[turn].parameters() if parameter.grad is not None]
        assert all(torch.isfinite(gradient).all() for gradient in gradients)
        assert any(gradient.abs().max() > 0 for gradient in gradients)


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


@pytest.mark.parametrize("options", OPTIONS["diffusion"][1:3])  # untrained, most others saturate, and a clipped picture cannot agree
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


def test_stratified_levels_are_one_in_each_part_of_every_global_batch() -> None:
    """Whatever the micro-batches: the levels of samples k B .. (k + 1) B - 1 fall into B different parts of the unit interval."""
    levels = objective("diffusion", {"levels": {"name": "log_snr", "low": -4, "high": 4, "stratified": True}}).options.levels
    whole = levels.uniform(np.arange(32), seed=5, global_batch=16)
    parts = np.concatenate([levels.uniform(np.arange(first, first + 4), seed=5, global_batch=16) for first in range(0, 32, 4)])
    np.testing.assert_array_equal(parts, whole)
    slots = np.floor(whole[:, 0] * 16).astype(int).reshape(2, 16)
    assert [sorted(batch) for batch in slots.tolist()] == [list(range(16))] * 2
    assert slots[0].tolist() != slots[1].tolist() != list(range(16)), "each batch has its own permutation"


def test_augmentation_is_for_training_alone() -> None:
    """A network that is told the level gets another level in training for some samples, and 0 at inference."""
    options = {"prediction": "v", "low_augmentation": {"noise": [0.2, 0.4], "probability": 0.5}}
    made = objective("diffusion", options)
    network = made.players()["denoiser"]
    told: list[torch.Tensor] = []
    network.register_forward_pre_hook(lambda module, args, kwargs: told.append(kwargs["augmentation"]), with_kwargs=True)
    made.loss("denoiser", {"denoiser": network}, batch(0, 8))
    made.predictor(network, degradation="bicubic").predict(batch(0, 2).low, seeds=[1, 2])
    training, *inference = told
    assert ((training == 0) | (training >= 0.2) & (training <= 0.4)).all()
    assert 0 < int((training > 0).sum()) < 8
    assert len(inference) == 3 and all((level == 0).all() for level in inference)
    with pytest.raises(BadInput, match="low_augmentation without a low image"):
        objective("diffusion", options, low=None)


def test_dream_s_first_pass_leaves_the_gradient_of_the_second_in_half_precision() -> None:
    """Autocast keeps weights it has cast; those of a pass without gradient must not serve the pass with one."""
    made = objective("diffusion", {"loss": "l2", "dream": 1.0})
    players = made.players()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = made.loss("denoiser", players, batch(0, 4))
    loss.backward()
    last = players["denoiser"].get_submodule("conv_out").weight.grad  # all that learns in the first step: it starts at zero
    assert last is not None and torch.isfinite(last).all() and last.abs().max() > 0


def test_dream_trains_on_the_network_s_own_error() -> None:
    """The corrected sample and target, written out: with p = 1 the noise becomes eps + sqrt(1 - gamma) (eps - its estimate)."""
    made = objective("diffusion", {"loss": "l2", "dream": 1.0})
    calls: list[torch.Tensor] = []

    def network(noisy: torch.Tensor, low: torch.Tensor, gamma: torch.Tensor, **_: Any) -> torch.Tensor:
        calls.append(noisy)
        assert torch.is_grad_enabled() == (len(calls) == 2)
        return torch.zeros_like(noisy)

    loss, _ = made.loss("denoiser", {"denoiser": network}, batch(0, 4))
    plain: list[torch.Tensor] = []
    objective("diffusion", {"loss": "l2"}).loss(
        "denoiser", {"denoiser": lambda noisy, *_, **__: plain.append(noisy) or torch.zeros_like(noisy)}, batch(0, 4)
    )
    torch.testing.assert_close(calls[0], plain[0])
    levels = made.options.levels
    gamma = torch.from_numpy(levels.draw(levels.uniform(np.arange(4), seed=2, global_batch=8)))[:, None, None, None]
    eps = (plain[0].double() - gamma.sqrt() * batch(0, 4).high) / (1 - gamma).sqrt()
    corrected = eps * (1 + (1 - gamma).sqrt())
    torch.testing.assert_close(calls[1].double(), gamma.sqrt() * batch(0, 4).high + (1 - gamma).sqrt() * corrected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss.double(), corrected.square().mean(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": {"schedule": ZERO}}, "gamma 0"),
        ({"levels": {"schedule": {"name": "jsd"}}}, "gamma 0"),
        ({"schedule_guard": "published"}, "go together"),
        ({"schedule_guard": "published", "schedule_guard_reason": "  "}, "go together"),
        ({"schedule_guard_reason": "as published"}, "go together"),
        ({"low_augmentation": {}}, "changes nothing"),
        ({"huber_delta": 0.5}, "huber_delta is set, but loss l1 does not read it: take it out, or set loss to huber"),
        ({"min_snr": 3.0, "loss": "l2", "loss_weight": "snr"}, "min_snr is set, but loss_weight snr does not read it"),
        ({"sigma_data": 0.4}, "sigma_data is set, but prediction eps does not read it: take it out, or set prediction to edm"),
        ({"residual_scale": 0.2}, "residual_scale is set, but target image does not read it"),
        ({"loss_weight": "snr"}, "loss_weight snr weighs a squared error, loss l1 is none"),
        ({"loss": "l1", "loss_weight": "min_snr"}, "loss_weight min_snr weighs a squared error"),
        ({"levels": {"name": "log_snr", "schedule": {"steps": 50}}}, "neither levels log_snr nor sampling.grid log_snr reads it"),
        ({"low_augmentation": {"noise": [0.5, 1.5]}}, "ascend"),
        ({"low_augmentation": {"blur": [0.6, 0.4]}}, "ascend"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        objective("diffusion", options)


def test_what_does_not_go_with_the_network_is_refused() -> None:
    """A level that is never told but 0, and a t that is counted in another table than training's; SR3's blur is told to no network."""
    told = stage("diffusion", {})
    options = {**told.model.options, "augmentation": True}
    with pytest.raises(BadInput, match="stage s: a network that is told a level of low_augmentation, and none in training"):
        Objective(told.model_copy(update={"model": config.Plugin(name="unet", options=options)}), {})
    blurred = stage("diffusion", {"low_augmentation": {"blur": [0.4, 0.6]}})
    untold = {**blurred.model.options, "augmentation": False}
    Objective(blurred.model_copy(update={"model": config.Plugin(name="unet", options=untold)}), {})
    for steps, refused in ((2000, False), (1900, True)):
        counting = {**told.model.options, "fed": "t", "table": {"name": "linear", "steps": steps}}
        made = told.model_copy(update={"model": config.Plugin(name="unet", options=counting)})
        if refused:
            with pytest.raises(BadInput, match="counts t in another table"):
                Objective(made, {})
        else:
            Objective(made, {})


def test_a_projection_needs_a_low_image() -> None:
    with pytest.raises(BadInput, match="stage s: projection 1 without a low image; allowed: projection 0"):
        objective("diffusion", {}, low=None, projection=1)
    made = objective("diffusion", {}, low=None)
    with pytest.raises(BadInput, match="without a low image"):
        made.predictor(made.players()["denoiser"], degradation="bicubic").predict(None, seeds=[1], projection=2)


def test_a_residual_s_scale_is_measured_or_given() -> None:
    """Players are made before it is known; a loss and a prediction without it are refused."""
    made = Objective(stage("diffusion", {"target": "residual", "prediction": "v"}), {})
    players = made.players()
    for use in (lambda: made.loss("denoiser", players, batch(0, 2)), lambda: made.predictor(players["denoiser"], degradation="bicubic")):
        with pytest.raises(BadInput, match="stage s: target residual, whose scale was not measured"):
            use()
