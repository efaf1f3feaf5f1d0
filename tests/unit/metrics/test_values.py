"""Metrics against numbers computed by hand or published: definitions do not drift."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from sr3_core import images
from sr3_core.errors import BadInput
from sr3_core.metrics import _base, lpips
from tests.conftest import REPOSITORY


def flat(*rgb: float) -> Tensor:
    """(1, 3, 20, 20) of one colour, 0..255."""
    return torch.tensor(rgb).view(1, 3, 1, 1).expand(1, 3, 20, 20) / 255


def values(name: str, output: Tensor, reference: Tensor, *, scale: int = 2) -> dict[str, list[float]]:
    metric = _base.make(name, {}, scale=scale, degradation="bicubic", channels=output.shape[1])
    return dict(metric.values(output, reference=reference, low=None))


def test_psnr_is_ten_log_of_the_mean_square() -> None:
    found = values("psnr", flat(100, 100, 100), flat(110, 100, 100))
    assert found["psnr_rgb"] == pytest.approx([10 * math.log10(255**2 / (100 / 3))], rel=1e-5)
    # a red step of 10 is 10 x 65.481 / 255 in studio-range luma
    assert found["psnr_y"] == pytest.approx([20 * math.log10(255 / (10 * 65.481 / 255))], rel=1e-4)


def test_psnr_y_leaves_out_the_border_and_rgb_does_not() -> None:
    reference, output = flat(100, 100, 100), flat(100, 100, 100).clone()
    output[..., :2, :] = 0
    found = values("psnr", output, reference, scale=2)
    assert found["psnr_y"] == [100.0]
    assert found["psnr_rgb"][0] < 30


def test_white_and_black_in_studio_range() -> None:
    assert float(_base.luma(flat(255, 255, 255)).mean()) * 255 == pytest.approx(235, abs=1e-3)
    assert float(_base.luma(flat(0, 0, 0)).mean()) * 255 == pytest.approx(16, abs=1e-3)


def test_colour_bias_per_channel_in_units_of_one_level() -> None:
    found = values("colour_bias", flat(100, 90, 104), flat(102, 90, 100))
    assert found == {
        "colour_bias_red": pytest.approx([2], abs=1e-4),
        "colour_bias_green": pytest.approx([0], abs=1e-4),
        "colour_bias_blue": pytest.approx([4], abs=1e-4),
    }


def test_quantised_rounds_and_clips() -> None:
    given = torch.tensor([-2.0, -1.0, 0.0, 100.4 / 127.5 - 1, 100.6 / 127.5 - 1, 3.0])
    assert (_base.quantised(given) * 255).round().int().tolist() == [0, 0, 128, 100, 101, 255]


def test_ssim_of_two_flat_images_is_the_luminance_term() -> None:
    a, b, c1 = 100 / 255, 120 / 255, 0.01**2
    expected = (2 * a * b + c1) / (a * a + b * b + c1)
    assert values("ssim", flat(100, 100, 100), flat(120, 120, 120))["ssim"] == pytest.approx([expected], abs=2e-4)  # float32


def test_lpips_reads_the_published_weights() -> None:
    kernel = lpips.load().kernels[0]
    assert kernel.shape == (64, 3, 11, 11)
    assert kernel[0, 0, 0, :3].tolist() == pytest.approx([0.11864, 0.094069, 0.095435], abs=1e-5)


def test_lpips_of_the_astronaut_at_the_known_points() -> None:
    photo = images.decode((REPOSITORY / "sr3_core/data/sample_photos/astronaut.jpg").read_bytes())[:256, :256]
    network = lpips.load()

    def distance(other: np.ndarray) -> float:
        as_tensor = [torch.from_numpy(array.astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1 for array in (photo, other)]
        return float(network(*as_tensor))

    blurred = [gaussian_filter(photo.astype(np.float64), (sigma, sigma, 0)) for sigma in (1, 3)]
    assert distance(photo) == 0
    # 0.142 and 0.428 on the lossless original; the vendored photo is a JPEG of it
    assert [distance(image) for image in blurred] == pytest.approx([0.142, 0.428], abs=0.01)


def test_lpips_refuses_other_weights_and_other_channels(tmp_path) -> None:
    changed = tmp_path / "alexnet.ckpt"
    changed.write_bytes(b"not the weights")
    with pytest.raises(BadInput, match="make weights"):
        lpips.load(str(changed))
    with pytest.raises(BadInput, match="3 channels"):
        _base.make("lpips", {}, scale=2, degradation="bicubic", channels=1)


def test_lpips_weights_are_looked_for_in_the_named_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SR3_WEIGHTS", str(tmp_path))
    with pytest.raises(BadInput, match="make weights"):
        lpips.load()


def test_the_unpickler_admits_arrays_alone() -> None:
    import io
    import pickle

    tree = {"a": np.arange(3, dtype=np.float32)}
    assert lpips.ArraysOnly(io.BytesIO(pickle.dumps(tree, protocol=3))).load()["a"].tolist() == [0, 1, 2]
    for hostile in (print, eval, np.load):
        with pytest.raises(pickle.UnpicklingError, match="refused"):
            lpips.ArraysOnly(io.BytesIO(pickle.dumps(hostile, protocol=3))).load()
