"""Class labels in every network and objective that is told them: who is told what in training and prediction, and what is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sr3_core import config, labels, plugins
from sr3_core.config import Stage
from sr3_core.data.loader import Batch
from sr3_core.errors import BadInput

SMALL: dict[str, dict[str, Any]] = {
    "unet": {"channels": 8, "multipliers": [1], "blocks": 1, "middle_attention": False, "fed": "log_snr", "embedding_scale": 1.0}
}
MODELS = [name for name in plugins.names("models") if "labels" in plugins.load("models", name).Options.model_fields]
OBJECTIVES = [name for name in plugins.names("objectives") if "label_dropout" in plugins.load("objectives", name).Options.model_fields]
GAMMA = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)


def stage(
    name: str = "unet", objective: str = "diffusion", *, count: int = 3, low: int | None = None, seed: int = 2, **options: Any
) -> Stage:
    """8 x 8 pixels by network ``name`` of ``count`` classes; ``options`` of the objective."""
    training = {"images": 8, "global_batch": 8, "micro_batch": 8, "checkpoint_images": 8, "log_images": 8, "seed": seed}
    values = {
        "name": "s", "low": low, "high": 8, "training": training,
        "model": {"name": name, "options": {**SMALL.get(name, {}), "labels": count}},
        "objective": {"name": objective, "options": options},
        "sampling": {"steps": 4, "sampler": "ddim", "grid": "log_snr", "start": -3.5, "end": 3.5},
    }  # fmt: skip
    return config.parse(Stage, values)


def objective(made: Stage) -> Any:
    return plugins.load("objectives", made.objective.name).Objective(made, {})


def batch(first: int, count: int, classes: int = 3) -> Batch:
    """Flat pictures, dark to bright by their class, which is the global index modulo ``classes``."""
    index = np.arange(first, first + count)
    label = torch.from_numpy(index % classes)
    high = (1.2 * label / (classes - 1) - 0.6).float()[:, None, None, None].expand(-1, 3, 8, 8).contiguous()
    return Batch(high=high, low=None, sample_index=index, keys=("",) * count, labels=label)


class Listening(nn.Module):
    """Passes everything on and keeps the labels of each call."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.heard = network, list[list[int]]()

    def forward(self, noisy: Tensor, low: Tensor | None, gamma: Tensor, *, label: Tensor | None, augmentation: Any = None) -> Tensor:
        assert label is not None
        self.heard.append(label.tolist())
        return self.network(noisy, low, gamma, label=label, augmentation=augmentation)


def told(made: Stage, first: int, count: int) -> list[list[int]]:
    """The labels of every network call of one loss."""
    trained = objective(made)
    (turn,) = trained.turns
    network = Listening(trained.players()[turn])
    trained.loss(turn, {turn: network}, batch(first, count))
    return network.heard


@pytest.mark.parametrize("name", MODELS)
def test_a_sample_without_a_label_is_one_of_a_batch_without_labels(name: str) -> None:
    network = objective(stage(name)).players()["denoiser"].eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / max(1.0, parameter[0].numel() ** 0.5)
    noisy = torch.randn(3, 3, 8, 8, generator=generator)
    none = network(noisy, None, GAMMA)
    some = network(noisy, None, GAMMA, label=torch.tensor([2, labels.NONE, 0]))
    torch.testing.assert_close(some[1], none[1], rtol=1e-4, atol=1e-4)
    assert ((some - none).abs().amax(dim=(1, 2, 3)) > 1e-2).tolist() == [True, False, True]
    torch.testing.assert_close(network(noisy, None, GAMMA, label=torch.full((3,), labels.NONE)), none)


def test_no_label_is_embedded_as_nothing_until_it_is_trained() -> None:
    """The classes' rows are drawn, the last one is 0; a network without labels is what it was, parameter by parameter."""
    made = objective(stage()).players()["denoiser"]
    assert made.label.weight.shape[0] == 4 and not made.label.weight[-1].any() and made.label.weight[:-1].any(dim=1).all()
    assert made.label.weight.requires_grad
    assert "label.weight" not in objective(stage(count=0)).players()["denoiser"].state_dict()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_dropout_is_a_function_of_seed_and_global_index(name: str) -> None:
    """The same samples lose their labels whatever the micro-batch; what stays is the sample's own; another seed chooses others."""
    made = stage(objective=name, label_dropout=0.4)
    (whole,) = told(made, 0, 64)
    assert [*told(made, 0, 24)[0], *told(made, 24, 40)[0]] == whole
    assert {label for index, label in enumerate(whole) if label != index % 3} == {labels.NONE}
    assert 12 <= whole.count(labels.NONE) <= 40
    assert told(stage(objective=name, label_dropout=0.4, seed=3), 0, 64)[0] != whole
    assert told(stage(objective=name), 0, 9) == [[0, 1, 2] * 3]


def test_the_share_of_dropped_labels_is_the_probability() -> None:
    drawn = labels.dropped(torch.zeros(20_000, dtype=torch.int64), np.arange(20_000), probability=0.15, seed=1)
    assert float((drawn == labels.NONE).float().mean()) == pytest.approx(0.15, abs=4 * (0.15 * 0.85 / 20_000) ** 0.5)


def test_both_calls_of_dream_are_told_the_same() -> None:
    first, second = told(stage(label_dropout=0.5, dream=1.0), 0, 32)
    assert first == second and labels.NONE in first


def test_each_class_and_no_class_is_learnt() -> None:
    """Flat pictures of three greys: what is drawn with a label has the grey of its class, without one that of all of them."""
    made = stage(label_dropout=0.2, prediction="v", loss="l2", levels={"name": "log_snr", "low": -4, "high": 4})
    trained = objective(made)
    players = trained.players()
    optimizer = torch.optim.Adam(players["denoiser"].parameters(), lr=2e-2)
    for step in range(120):
        optimizer.zero_grad()
        trained.loss("denoiser", players, batch(16 * step, 16))[0].backward()
        optimizer.step()
    predictor = trained.predictor(players["denoiser"], degradation="bicubic")
    seeds = np.arange(8)
    means = [float(predictor.predict(None, seeds=seeds, labels=torch.full((8,), label)).mean()) for label in range(3)]
    assert means == pytest.approx([-0.6, 0.0, 0.6], abs=0.25)
    of_any = predictor.predict(None, seeds=seeds).mean(dim=(1, 2, 3))
    assert float(of_any.mean()) == pytest.approx(0.0, abs=0.3)
    torch.testing.assert_close(predictor.predict(None, seeds=seeds, labels=torch.full((8,), labels.NONE)).mean(dim=(1, 2, 3)), of_any)


def test_what_a_network_cannot_be_told_is_refused_in_prediction() -> None:
    def predict(made: Stage, given: Tensor | None) -> Tensor:
        trained = objective(made)
        found: Tensor = trained.predictor(trained.players()["denoiser"], degradation="bicubic").predict(None, seeds=[1, 2], labels=given)
        return found

    trained, dropping, plain = stage(), stage(label_dropout=0.1), stage(count=0)
    for made in (trained, dropping):
        assert predict(made, torch.tensor([0, 2])).shape == (2, 3, 8, 8)
    for given in (None, torch.tensor([labels.NONE, 1])):
        assert predict(dropping, given).shape == (2, 3, 8, 8)
        with pytest.raises(BadInput, match=r"no label for stage s, trained with a label on every image; allowed: 0 \.\. 2;"):
            predict(trained, given)
    for wrong in (3, -2):
        with pytest.raises(BadInput, match=rf"label {wrong} for stage s; allowed: 0 \.\. 2, or none"):
            predict(dropping, torch.tensor([0, wrong]))
    with pytest.raises(BadInput, match=r"labels of torch\.int64 \(1,\) for stage s; allowed: int64 \(2,\)"):
        predict(trained, torch.tensor([1]))
    torch.testing.assert_close(predict(plain, torch.tensor([0, 99])), predict(plain, None))  # left alone
    with pytest.raises(BadInput, match=r"label_dropout 0\.1 for a network without labels"):
        objective(stage(count=0, label_dropout=0.1))
    with pytest.raises(BadInput, match="label_dropout"):
        objective(stage(label_dropout=1.0))


def test_what_stages_know_in_common() -> None:
    assert labels.of(stage(), stage(count=0, low=4)) == labels.Labels(3, optional=False)
    assert labels.of(stage(label_dropout=0.1), stage(count=2, low=4, label_dropout=0.5)) == labels.Labels(2, optional=True)
    assert labels.of(stage(label_dropout=0.1), stage(low=4)) == labels.Labels(3, optional=False)
    assert labels.of(stage(count=0)).count == 0
