"""What every metric in metrics/ keeps: a perfect output scores perfectly, a worse one scores worse, one number per image."""

import numpy as np
import pytest
import torch
from torch import Tensor

from sr3_core import images, plugins
from sr3_core.metrics import _base
from sr3_core.metrics.consistency import FLOOR
from sr3_core.metrics.psnr import CEILING_DB
from sr3_core.resample import resample
from tests.conftest import REPOSITORY

NAMES = plugins.names("metrics")
SCALE = 4
PERFECT = {"psnr": CEILING_DB, "ssim": 1.0, "lpips": 0.0, "consistency": FLOOR, "colour_bias": 0.0}
TOLERANCE = {"consistency": 0.03}  # the floor is the mean over many roundings


@pytest.fixture(scope="module")
def truth() -> Tensor:
    """Two photos (2, 3, 128, 128), multiples of 1/255 in [0, 1]."""
    folder = REPOSITORY / "sr3_core" / "data" / "sample_photos"
    crops = [images.decode((folder / name).read_bytes())[:128, 100:228] for name in ("astronaut.jpg", "chelsea.jpg")]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / _base.LEVELS


@pytest.fixture(scope="module")
def low(truth: Tensor) -> Tensor:
    arrays = [np.ascontiguousarray((image * 255).round().byte().permute(1, 2, 0).numpy()) for image in truth]
    small = [images.resize(array, (128 // SCALE, 128 // SCALE), "bicubic") for array in arrays]
    return torch.from_numpy(np.stack(small).astype(np.float32)).permute(0, 3, 1, 2) / _base.LEVELS


def worse(truth: Tensor, amount: float) -> Tensor:
    """Noise and a colour cast that grow with ``amount``: worse by every metric."""
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(1))
    return _base.quantised(_base.signed(truth) + amount * (noise + 1))


def make(name: str, channels: int = 3) -> _base.Metric:
    return _base.make(name, {}, scale=SCALE, degradation="bicubic", channels=channels)


@pytest.mark.parametrize("name", NAMES)
def test_perfect_output_scores_perfectly(name: str, truth: Tensor, low: Tensor) -> None:
    metric = make(name)
    values = metric.values(truth, reference=truth, low=low)
    assert set(values) == {report.name for report in metric.reports}
    for numbers in values.values():
        assert numbers == pytest.approx([PERFECT[name]] * 2, abs=TOLERANCE.get(name, 1e-6))


@pytest.mark.parametrize("name", NAMES)
def test_worse_output_scores_worse(name: str, truth: Tensor, low: Tensor) -> None:
    metric = make(name)
    ladder = [metric.values(worse(truth, amount), reference=truth, low=low) for amount in (0.02, 0.1, 0.4)]
    for report in metric.reports:
        sign = 1 if report.better == "lower" else -1
        for image in range(2):
            steps = [sign * values[report.name][image] for values in ladder]
            assert steps == sorted(steps), (report.name, steps)
            assert steps[0] < steps[-1]


@pytest.mark.parametrize("name", NAMES)
def test_one_number_per_image_whatever_stands_beside_it(name: str, truth: Tensor, low: Tensor) -> None:
    metric = make(name)
    output = worse(truth, 0.1)
    together = metric.values(output, reference=truth, low=low)
    alone = metric.values(output[1:], reference=truth[1:], low=low[1:])
    for report in metric.reports:
        assert len(together[report.name]) == 2
        assert together[report.name][1] == pytest.approx(alone[report.name][0], rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_every_value_says_how_it_is_computed(name: str) -> None:
    metric = make(name)
    assert metric.needs in ("reference", "low")
    for report in metric.reports:
        assert report.better in ("lower", "higher")
        assert report.colour
        assert report.border >= 0
        assert report.name == name or report.name.startswith(f"{name}_")


@pytest.mark.parametrize("name", NAMES)
def test_what_it_needs_is_asked_for(name: str, truth: Tensor, low: Tensor) -> None:
    metric = make(name)
    given = {"reference": truth, "low": low, metric.needs: None}
    with pytest.raises(ValueError, match=r"reference|low"):
        metric.values(truth, **given)


def test_fidelity_ranks_bicubic_above_nearest(truth: Tensor, low: Tensor) -> None:
    smooth, blocks = (_base.quantised(_base.signed(resample(low, (128, 128), name))) for name in ("bicubic", "nearest"))
    for name in ("psnr", "ssim"):
        metric = make(name)
        for report in metric.reports:
            pair = [metric.values(output, reference=truth, low=low)[report.name][0] for output in (smooth, blocks)]
            assert (pair[0] < pair[1]) == (report.better == "lower"), (report.name, pair)
