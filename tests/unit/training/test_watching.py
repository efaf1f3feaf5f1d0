"""Looks at held-out images: the averaged weights' work, the same for the same weights, and nothing of the training is moved by them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sr3_core import config, images
from sr3_core.config import Stage, Training
from sr3_core.data.loader import Batch
from sr3_core.diffusion import noise_bins
from sr3_core.errors import BadInput
from sr3_core.metrics._base import make, quantised
from sr3_core.objectives.diffusion import Objective as Diffusion
from sr3_core.training import pace
from sr3_core.training.loop import train
from sr3_core.training.state import CheckpointStore, TrainState
from sr3_core.training.watching import GAP, Watcher, grid, judges
from sr3_core.training.worker import LocalWorker
from tests.plugins import tiny_objective
from tests.plugins.tiny_objective import Memory
from tests.unit.training.test_window import diffusion_stage

WATCH = {"images": 36, "samples": 3, "loss_samples": 5}
Looks = dict[int, tuple[dict[str, float], bytes | None]]


def run(stage: Stage, folder: Path, *, stop_at: int = 10**6) -> tuple[TrainState, dict[int, dict[str, float]], Looks]:
    """The state, the log without the clock and the looks, of a run that may be broken off in order after ``stop_at`` steps."""
    lines: dict[int, dict[str, float]] = {}
    looks: Looks = {}
    steps = iter(range(1, 10**6))
    watcher = None
    if stage.training.watch is not None:
        watcher = Watcher(stage, Memory(), degradation="bicubic", tell=lambda at, found, png: looks.update({at: (found, png)}))
    state = train(
        stage,
        None,
        worker=LocalWorker(stop=lambda: next(steps) == stop_at),
        checkpoints=CheckpointStore(str(folder), keep=1, say=lambda text: None),
        batches=Memory(),
        watcher=watcher,
        say=lambda text: None,
        log=lambda at, line: lines.update({at: {name: value for name, value in line.items() if name not in pace.NAMES}}),
    )
    return state, lines, looks


def files(folder: Path) -> dict[str, str]:
    manifest = json.loads((sorted(folder.iterdir())[-1] / "state.json").read_text())
    return {name: entry["sha256"] for name, entry in manifest["files"].items()}


def test_a_run_that_is_watched_ends_bit_equal_and_a_broken_one_sees_the_same(tmp_path: Path) -> None:
    """Dropout draws from the generator that a look must leave alone."""
    watched, plain = tiny_objective.stage(watch=WATCH), tiny_objective.stage()
    _, lines, looks = run(watched, tmp_path / "watched")
    _, expected, none = run(plain, tmp_path / "plain")
    assert none == {} and sorted(looks) == [36, 72, 96]
    assert files(tmp_path / "watched") == files(tmp_path / "plain") and lines == expected
    broken: Looks = {}
    for stop_at in (4, 10**6):  # at 48 images, between two looks
        broken |= run(watched, tmp_path / "broken", stop_at=stop_at)[2]
    assert broken == looks


def test_what_is_seen_is_of_the_averaged_weights(tmp_path: Path) -> None:
    """The last look again by hand: samples and losses of the network that the bundle would hold, without dropout."""
    stage = tiny_objective.stage(watch=WATCH, ema={"decay": 0.9, "also": {"slow": {"decay": 0.999}}})
    state, _, looks = run(stage, tmp_path)
    found, png = looks[96]
    objective = tiny_objective.Objective(stage, state.measured)
    batch = Memory().batch(0, 5)
    for name, weights in (("", state.ema), ("slow/", state.averages["slow"])):
        network = objective.players()["net"].eval()
        network.load_state_dict(weights)
        with torch.no_grad():
            loss, metrics = objective.loss("net", {"net": network}, batch)
        assert found[f"validation/{name}loss"] == pytest.approx(float(loss), rel=1e-5)
        assert found[f"validation/{name}bias"] == pytest.approx(metrics["bias"], rel=1e-4)
        total, count = metrics["bias_of_thirds"]
        assert found[f"validation/{name}bias_of_thirds"] == pytest.approx(total / count, rel=1e-4)
    network.load_state_dict(state.ema)
    made = objective.predictor(network, degradation="bicubic").predict(batch.low, seeds=batch.sample_index)
    assert png is not None
    picture = images.decode(png, channels=3)
    side, step = 8, 8 + GAP
    assert picture.shape == (3 * step - GAP, 3 * step - GAP, 3)
    for row in range(3):
        top = row * step
        np.testing.assert_array_equal(picture[top : top + side, step : step + side], images.from_unit(made[row].numpy()))
        np.testing.assert_array_equal(picture[top : top + side, 2 * step :], images.from_unit(batch.high[row].numpy()))
    errors = [images.psnr(images.from_unit(made[i].numpy()), images.from_unit(batch.high[i].numpy())) for i in range(3)]
    assert found["validation/psnr_rgb"] == pytest.approx(sum(errors) / 3, rel=1e-4)


class Large:
    """Pairs of 32 and 64 pixels, which LPIPS can judge."""

    def batch(self, first_index: int, count: int) -> Batch:
        pair = Memory().batch(first_index, count)
        high = nn.functional.interpolate(pair.high, scale_factor=8, mode="bicubic").clamp(-1, 1)
        return Batch(high=high, low=nn.functional.avg_pool2d(high, 2), sample_index=pair.sample_index, keys=pair.keys)


def test_metrics_judge_the_samples_of_every_average() -> None:
    """By hand: each average's network draws the samples, and the metrics of evaluation judge them as stored."""
    watch = {**WATCH, "loss_samples": 0, "metrics": ["lpips", "ssim", {"name": "consistency"}]}
    values = tiny_objective.stage(watch=watch, ema={"also": {"slow": {}}}).model_dump()
    stage = config.parse(Stage, {**values, "low": 32, "high": 64})
    objective = tiny_objective.Objective(stage, {"mean": 0.0})
    state = TrainState.fresh(objective.players(), exported="net", measured={}, stage=stage)
    for tensor in state.averages["slow"].values():
        tensor.mul_(0.5)
    state.images_seen = 36
    looks: list[dict[str, float]] = []
    Watcher(stage, Large(), degradation="bicubic", tell=lambda at, found, png: looks.append(found)).look(state, objective)
    (found,) = looks
    batch, network = Large().batch(0, 3), objective.players()["net"].eval()
    for name, weights in (("", state.ema), ("slow/", state.averages["slow"])):
        network.load_state_dict(weights)
        made = objective.predictor(network, degradation="bicubic").predict(batch.low, seeds=batch.sample_index)
        assert batch.low is not None
        output, truth, low = (quantised(each) for each in (made, batch.high, batch.low))
        for metric in ("lpips", "ssim", "consistency"):
            judged = make(metric, {}, scale=2, degradation="bicubic").values(output, reference=truth, low=low)
            assert found[f"validation/{name}{metric}"] == pytest.approx(sum(judged[metric]) / 3, rel=1e-4), metric
    both = {f"validation/{name}{metric}" for name in ("", "slow/") for metric in ("lpips", "ssim", "consistency", "psnr_rgb")}
    assert set(found) == both and found["validation/lpips"] != found["validation/slow/lpips"]


def test_a_metric_that_cannot_judge_is_refused_before_any_work() -> None:
    watch = {"images": 12, "metrics": ["lpips"]}
    with pytest.raises(BadInput, match=r"training\.watch\.metrics lpips on crops of 8 px .*needs 63 or more"):
        judges(tiny_objective.stage(watch=watch), degradation="bicubic")
    with pytest.raises(BadInput, match=r"lpipps"):
        judges(tiny_objective.stage(watch={"images": 12, "metrics": ["lpipps"]}), degradation="bicubic")
    alone = tiny_objective.stage(watch=watch).model_copy(update={"low": None})
    with pytest.raises(BadInput, match=r"without a low image"):
        judges(alone, degradation="bicubic")
    with pytest.raises(BadInput, match=r"metrics is set, but samples 0 draws none"):
        tiny_objective.stage(watch={**watch, "samples": 0})
    unwatched = tiny_objective.stage(watch={"images": 12})
    assert "metrics" not in unwatched.canonical_json(), "fingerprints stay"


class Alone:
    """Held-out images of a stage that starts from noise."""

    def batch(self, first_index: int, count: int) -> Batch:
        pair = Memory().batch(first_index, count)
        return Batch(high=pair.high, low=None, sample_index=pair.sample_index, keys=pair.keys)


@pytest.mark.parametrize("low", [4, None])
def test_a_diffusion_stage_shows_its_levels_and_reads_its_own_sampling_options(low: int | None) -> None:
    values = diffusion_stage().model_dump()
    values["training"]["watch"] = {"images": 8, "samples": 3, "loss_samples": 16, "sampling": {"steps": 1}}
    stage = config.parse(Stage, {**values, "low": low})
    objective = Diffusion(stage, {})
    state = TrainState.fresh(objective.players(), exported="denoiser", measured={}, stage=stage)
    calls: list[int] = []
    looks: list[tuple[dict[str, float], bytes | None]] = []
    watcher = Watcher(stage, Memory() if low else Alone(), degradation="bicubic", tell=lambda at, found, png: looks.append((found, png)))
    state.images_seen = 8
    before = torch.random.get_rng_state()
    with nn.modules.module.register_module_forward_hook(
        lambda *_: calls.append(0) if isinstance(_[0], type(state.players["denoiser"])) else None
    ):
        assert watcher.look(state, objective) > 0
        assert watcher.look(state, objective) > 0
    assert len(calls) == 2 * (16 // 2 + 2), "eight micro-batches for the loss, and one step for each of two of samples"
    assert torch.equal(torch.random.get_rng_state(), before) and state.players["denoiser"].training
    assert looks[0] == looks[1], "nothing in it depends on when"
    found, png = looks[0]
    levels = {name.removeprefix("validation/") for name in found} & {noise_bins.PREFIX + name for name in noise_bins.NAMES}
    assert len(levels) > 3 and ("validation/psnr_rgb" in found) == (low is not None)
    assert png is not None
    height, width, _ = images.decode(png, channels=3).shape
    assert (height, width) == ((3 * (8 + GAP) - GAP, 3 * (8 + GAP) - GAP) if low else (2 * (8 + GAP) - GAP, 2 * (8 + GAP) - GAP))
    state.images_seen = 12
    assert watcher.look(state, objective) == 0.0 and len(looks) == 2, "not yet"


def test_what_is_not_finite_is_no_picture() -> None:
    stage = tiny_objective.stage(watch=WATCH)
    objective = tiny_objective.Objective(stage, {"mean": 0.0})
    state = TrainState.fresh(objective.players(), exported="net", measured={}, stage=stage)
    state.images_seen = 36
    state.ema["first.bias"].fill_(float("nan"))
    looks: list[bytes | None] = []
    Watcher(stage, Memory(), degradation="bicubic", tell=lambda at, found, png: looks.append(png)).look(state, objective)
    assert looks == [None]


def test_single_images_are_set_in_a_square() -> None:
    tiles = [np.full((2, 3, 1), value, np.uint8) for value in (10, 20, 30, 40, 50)]
    whole = grid([[tile] for tile in tiles])
    assert whole.shape == (2 * 2 + GAP, 3 * 3 + 2 * GAP, 1)
    assert [int(whole[top, left, 0]) for top in (0, 2 + GAP) for left in (0, 3 + GAP, 6 + 2 * GAP)] == [10, 20, 30, 40, 50, 255]


@pytest.mark.parametrize(
    ("watch", "line"),
    [
        ({"images": 10}, "watch.images 10 must be a multiple of global_batch 12"),
        ({"images": 12, "samples": 0, "loss_samples": 0}, "nothing would be looked at"),
        ({"images": 12, "samples": 0, "sampling": {"steps": 1}}, "samples 0 draws none"),
    ],
)
def test_options_that_do_not_agree(watch: dict[str, Any], line: str) -> None:
    with pytest.raises(BadInput, match=line):
        tiny_objective.stage(watch=watch)


def test_a_stage_that_is_not_watched_keeps_its_section() -> None:
    """So its fingerprint, and with it the results that are there, stay."""
    assert "watch" not in tiny_objective.stage().canonical_json()
    assert config.parse(Training, tiny_objective.stage(watch=WATCH).training.model_dump()).watch is not None


def test_a_run_that_should_be_watched_is_not_run_unwatched(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="needs a watcher"):
        train(
            tiny_objective.stage(watch=WATCH),
            None,
            worker=LocalWorker(),
            checkpoints=CheckpointStore(str(tmp_path), keep=1, say=lambda text: None),
            batches=Memory(),
            say=lambda text: None,
            log=lambda at, line: None,
        )
