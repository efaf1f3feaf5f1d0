"""The loop's rules: what it refuses, what it logs, how the learning rate and the average move."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sr3_core.config import DataParallel
from sr3_core.errors import BadInput, Failed
from sr3_core.training import pace
from sr3_core.training.loop import learning_rate, micro_batches_per_step, train
from sr3_core.training.state import CheckpointStore, TrainState
from sr3_core.training.worker import LocalWorker
from tests.plugins.tiny_objective import Memory, stage


def run(folder: Path, **training: Any) -> tuple[TrainState, list[tuple[int, dict[str, float]]], list[str]]:
    lines: list[tuple[int, dict[str, float]]] = []
    said: list[str] = []
    store = CheckpointStore(str(folder), keep=2, say=said.append)
    state = train(
        stage(**training),
        None,
        worker=LocalWorker(),
        checkpoints=store,
        batches=Memory(),
        say=said.append,
        log=lambda *line: lines.append(line),
    )
    return state, lines, said


def test_it_logs_by_images_seen_and_learns(tmp_path: Path) -> None:
    state, lines, said = run(tmp_path, images=240, log_images=48)
    assert [at for at, _ in lines] == [0, 48, 96, 144, 192, 240] and lines[0][1] == {}
    of_the_run = {"loss", "bias", "bias_of_thirds", "gradient_norm", "learning_rate"}
    assert set(lines[1][1]) - pace.NAMES == of_the_run and {"images_per_second", "data_wait_share"} < set(lines[1][1])
    assert lines[-1][1]["loss"] < 0.9 * lines[1][1]["loss"]
    assert state.images_seen == 240 and said == ["starting from scratch"]
    assert state.measured == {"mean": float(Memory().batch(0, 4).high.mean())}
    assert state.logged == {name: value for name, value in lines[-1][1].items() if name in of_the_run}


def test_a_loss_that_is_not_finite_stops_the_run_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="stage tiny, images 48 to 60, turn net: loss nan"):
        run(tmp_path, options={"poison": 55})
    assert [int(path.name) for path in sorted(tmp_path.iterdir())] == [24, 48]  # and the weights before it are kept


def test_accumulation_does_not_change_the_step(tmp_path: Path) -> None:
    one, _, _ = run(tmp_path / "one", micro_batch=12, options={"dropout": 0.0})
    six, _, _ = run(tmp_path / "six", micro_batch=2, options={"dropout": 0.0})
    for name, tensor in one.ema.items():
        torch.testing.assert_close(six.ema[name], tensor, rtol=1e-4, atol=1e-6)


def test_the_gradient_is_clipped_and_the_unclipped_norm_logged(tmp_path: Path) -> None:
    """SGD-like check by Adam's first moment: after one step it is (1 - beta1) x the clipped gradient."""
    state, lines, _ = run(tmp_path, images=12, checkpoint_images=12, log_images=12, clip_norm=1e-3)
    moments = torch.cat([entry["exp_avg"].flatten() for entry in state.optimizers["net"].state.values()])
    assert float(moments.norm()) == pytest.approx(0.1 * 1e-3, rel=1e-3)
    assert lines[-1][1]["gradient_norm"] > 1e-2


def test_a_static_graph_s_first_backward_leaves_no_trace(tmp_path: Path) -> None:
    """Nor in the running statistics of the players whose turn it is not."""
    section = stage(options={"dropout": 0.0})
    section = section.model_copy(update={"objective": section.objective.model_copy(update={"name": "tests.plugins.two_players"})})
    found: list[dict[str, torch.Tensor]] = []
    for static in (False, True):
        chosen = section.training.model_copy(update={"ddp": DataParallel(static_graph=static)})
        store = CheckpointStore(str(tmp_path / str(static)), keep=1, say=lambda text: None)
        state = train(
            section.model_copy(update={"training": chosen}),
            None, worker=LocalWorker(), checkpoints=store, batches=Memory(), say=lambda text: None, log=lambda *_: None,
        )  # fmt: skip
        found.append({f"{name}/{key}": value for name, player in state.players.items() for key, value in player.state_dict().items()})
    plain, static = found
    assert int(plain["critic/1.num_batches_tracked"]) == 96 / 2
    assert [name for name in plain if not torch.equal(plain[name], static[name])] == []


@pytest.mark.parametrize("workers", [4, 5, 12])
def test_a_batch_that_the_workers_cannot_divide(workers: int) -> None:
    with pytest.raises(BadInput, match=f"global_batch 12 with micro_batch 2 on {workers} workers"):
        micro_batches_per_step(stage().training, workers)


def test_learning_rate_by_images_seen() -> None:
    training = stage().training  # warm-up over 24 images, cosine to 0 at 96, peak 1e-3
    rates = [learning_rate(training, images) for images in (0, 12, 24, 60, 96)]
    assert rates == pytest.approx([0.5e-3, 1e-3, 1e-3, 0.5e-3, 0.0])
    constant = stage(learning_rate={"name": "constant", "warmup_images": 0}).training
    assert [learning_rate(constant, images) for images in (0, 84)] == [1e-3, 1e-3]


@pytest.mark.parametrize(("warmup", "decay"), [(True, 2 / 11), (False, 0.9)])
def test_the_average_moves_by_its_decay(warmup: bool, decay: float) -> None:
    """After the first step: (1 + 1) / (10 + 1) with warm-up, the decay itself without."""
    options = stage(ema={"decay": 0.9, "warmup": warmup})
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    state = TrainState.fresh({"net": module}, exported="net", measured={}, stage=options)
    before = module[0].weight.detach().clone()
    with torch.no_grad():
        module[0].weight.add_(1.0)
        module[1].num_batches_tracked.add_(5)
    state.images_seen = options.training.global_batch
    state.update_ema(options)
    torch.testing.assert_close(state.ema["0.weight"], before + (1 - decay))
    assert int(state.ema["1.num_batches_tracked"]) == 5
