"""What is cut from a photo, how large its levels are, and what a corrupted low image is: each draw, each step, each bound."""

import math
from typing import Any

import numpy as np
import pytest

from sr3_core import config, images, seeds
from sr3_core.config import Corruption, Data
from sr3_core.data import degrade
from sr3_core.errors import BadInput


def section(**changes: Any) -> Data:
    return Data.model_validate({"source": "folder", "levels": (8, 16, 32), **changes})


def chain(**steps: Any) -> Corruption:
    return Corruption.model_validate(steps)


def low(high: np.ndarray[Any, Any], side: int, index: int = 0, **steps: Any) -> tuple[np.ndarray[Any, Any], dict[str, float]]:
    return degrade.corrupted(high, (side, side), "bicubic", chain(**steps), seeds.generator(0, "degrade", index))


def noise(side: int, channels: int = 3, dtype: str = "uint8") -> np.ndarray[Any, Any]:
    return np.random.default_rng(3).integers(0, np.iinfo(dtype).max + 1, (side, side, channels)).astype(dtype)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 641), {8: (120, 160), 16: (240, 320), 32: (480, 640)}),
        ((35, 32), {8: (8, 8), 16: (16, 16), 32: (32, 32)}),
        ((31, 99), {8: (15, 49), 16: (30, 98)}),
    ],
)
def test_keep_stores_the_photo_at_its_own_size(size: tuple[int, int], expected: dict[int, tuple[int, int]]) -> None:
    """Cut to whole pixels of every level; a photo below the largest level has the levels it reaches."""
    data = section(fit="keep")
    photo = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    (crop,) = degrade.crops(*size, data)
    made = degrade.pyramid(photo, crop, data)
    assert {level: pixels.shape[:2] for level, pixels in made.items()} == expected
    top = max(made)
    assert np.array_equal(made[top], photo[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width])
    below = max(level for level in made if level < top)
    assert np.array_equal(made[below], images.resize(made[top], expected[below], "bicubic"))


def test_levels_whose_ratios_are_no_integers() -> None:
    data = section(levels=(12, 18, 36), fit="keep")
    assert [degrade.level_size(100, 77, level, data) for level in data.levels] == [(32, 24), (48, 36), (96, 72)]
    with pytest.raises(ValueError, match="has no level 36"):
        degrade.level_size(20, 77, 36, data)


def test_a_stride_overlaps_tiles_and_the_default_does_not() -> None:
    plain = degrade.crops(70, 101, section(fit="tiles"))
    assert [(crop.top, crop.left) for crop in plain] == [(3, 2), (3, 34), (3, 66), (35, 2), (35, 34), (35, 66)]
    tiles = degrade.crops(70, 101, section(fit="tiles", tiles={"stride": 16}))
    assert len(tiles) == ((70 - 32) // 16 + 1) * ((101 - 32) // 16 + 1)
    assert {crop.top for crop in tiles} == {3, 19, 35} and tiles[1].left - tiles[0].left == 16
    assert all(crop.top + crop.height <= 70 and crop.left + crop.width <= 101 for crop in tiles)
    small = degrade.crops(16, 40, section(fit="tiles", tiles={"stride": 16}, required_levels={"train": (8, 16)}))
    assert [crop.left for crop in small] == [0, 8, 16, 24]  # half a tile again


def test_detail_is_in_levels_of_8_bits() -> None:
    assert degrade.detail(np.full((9, 9, 3), 77, np.uint8)) == 0
    board = np.indices((8, 8)).sum(0)[..., None] % 2 * np.uint8(10)
    assert degrade.detail(board.astype(np.uint8)) == pytest.approx(10)
    assert degrade.detail((board * 257).astype(np.uint16)) == pytest.approx(10, rel=1e-5)
    ramp = np.tile(np.arange(100, dtype=np.uint8), (100, 1))[..., None]
    assert degrade.detail(ramp) == pytest.approx(math.sqrt(0.5))


def test_draws_cover_their_ranges_and_stand_alone() -> None:
    """Turning one step on or off does not move what the others draw; an index has its own draws."""
    everything = {"blur": {"sigma": (0.5, 2)}, "noise": {"level": (1, 9)}, "jpeg": {"quality": (40, 60)}}
    drawn = [low(noise(32), 8, index, **everything)[1] for index in range(200)]
    for name, (least, most) in {"blur_sigma": (0.5, 2), "noise_level": (1, 9), "jpeg_quality": (40, 60)}.items():
        values = [draw[name] for draw in drawn]
        assert least <= min(values) < least + 0.1 * (most - least) and most - 0.1 * (most - least) < max(values) <= most
    assert {draw["jpeg_quality"] for draw in drawn} == set(range(40, 61))
    assert low(noise(32), 8, 5, jpeg=everything["jpeg"])[1] == {"jpeg_quality": drawn[5]["jpeg_quality"]}
    assert low(noise(32), 8, 5, noise=everything["noise"])[1] == {"noise_level": drawn[5]["noise_level"]}
    first, again = (low(noise(32), 8, 7, **everything)[0] for _ in range(2))
    assert np.array_equal(first, again) and not np.array_equal(first, low(noise(32), 8, 8, **everything)[0])


def test_a_chain_that_draws_nothing_is_the_plain_resize() -> None:
    for dtype in ("uint8", "uint16"):
        high = noise(32, dtype=dtype)
        still, _ = low(high, 8, blur={"sigma": (0, 0)}, noise={"level": (0, 0)})
        assert still.dtype == high.dtype
        assert np.abs(still.astype(int) - images.resize(high, (8, 8), "bicubic")).max() <= (0 if dtype == "uint8" else 1)


@pytest.mark.parametrize("sigma", [0.7, 3.0])
def test_the_blur_is_a_gaussian(sigma: float) -> None:
    """A point becomes a Gaussian of that deviation whose sum is kept, also at the border."""
    high = np.zeros((65, 65, 1), np.uint16)
    high[32, 32] = 65535
    spread = degrade.corrupted(high, (65, 65), "box", chain(blur={"sigma": (sigma, sigma)}), seeds.generator(0, "x", 0))[0][..., 0] / 65535
    assert spread.sum() == pytest.approx(1, abs=0.02)
    offsets = np.arange(65) - 32
    assert math.sqrt((spread.sum(0) * offsets**2).sum() / spread.sum()) == pytest.approx(sigma, rel=0.03)
    assert np.array_equal(spread, spread.T) and np.array_equal(spread, spread[::-1])
    white = np.full((9, 9, 1), 200, np.uint8)
    assert (degrade.corrupted(white, (9, 9), "box", chain(blur={"sigma": (4, 4)}), seeds.generator(0, "x", 0))[0] == 200).all()


@pytest.mark.parametrize("kind", ["gaussian", "poisson"])
def test_noise_has_its_level(kind: str) -> None:
    """In 8-bit steps, of uint8 and uint16 alike; poisson noise has its level at white and grows with the root of the light."""
    for dtype, unit in (("uint8", 1), ("uint16", 257)):
        for light in (60, 120):
            grey = np.full((128, 128, 1), light * unit, dtype)
            made, _ = degrade.corrupted(
                grey, (128, 128), "box", chain(noise={"kind": kind, "level": (8, 8)}), seeds.generator(0, "n", light)
            )
            expected = 8 if kind == "gaussian" else 8 * math.sqrt(light / 255)
            assert made.std() / unit == pytest.approx(expected, rel=0.03)
            assert made.mean() / unit == pytest.approx(light, abs=0.2)


def test_jpeg_is_the_last_step() -> None:
    made, drawn = low(noise(64), 32, jpeg={"quality": (50, 50)})
    plain = images.resize(noise(64), (32, 32), "bicubic")
    assert np.array_equal(made, images.decode(images.encode(plain, "jpeg", 50), channels=3)) and drawn == {"jpeg_quality": 50}
    grey, _ = low(noise(64, 1), 32, jpeg={"quality": (50, 50)})
    assert grey.shape == (32, 32, 1)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"corruption": {}}, "changes nothing"),
        ({"corruption": {"blur": {"sigma": [2, 1]}}}, "smaller to its larger"),
        ({"corruption": {"blur": {"sigma": [0, 99]}}}, r"must lie in 0 \.\. 32"),
        ({"corruption": {"noise": {"level": [-1, 1]}}}, r"must lie in 0 \.\. 128"),
        ({"corruption": {"jpeg": {"quality": [0, 50]}}}, r"must lie in 1 \.\. 100"),
        ({"corruption": {"jpeg": {"quality": [50.5, 60]}}}, "whole numbers"),
        ({"corruption": {"jpeg": {}}, "channels": 4}, "1 or 3 channels"),
        ({"corruption": {"jpeg": {}}, "levels": [16]}, "one level"),
        ({"corruption": {"blurr": {}}}, "blur \\(nearest\\)"),
        ({"tiles": {"stride": 8}}, "fit is 'crop'"),
        ({"near_duplicates": 17}, "near_duplicates=17"),
    ],
)
def test_options_that_cannot_be(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(BadInput, match=line):
        config.parse(Data, {"source": "folder", "levels": [8, 16], **changes})


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ((), "consistency"),
        (("evaluation.metrics=[psnr, lpips]", "evaluation.gate=[]"), "stage sr256 cannot project"),
        (("evaluation.metrics=[psnr, lpips]", "evaluation.gate=[]", "stages.sr256.sampling={sampler: ddim, steps: 2}"), ""),
    ],
)
def test_what_needs_a_linear_low_image_is_refused_with_a_corrupted_one(overrides: tuple[str, ...], line: str) -> None:
    """The second stage of the demo starts at a plain low image and keeps its projection."""
    given = ("data.corruption={jpeg: {quality: [40, 90]}}", *overrides)
    if line:
        with pytest.raises(BadInput, match=line):
            config.load("demo", given)
    else:
        assert config.load("demo", given).stages[1].sampling["projection"] == 1


def test_a_section_without_the_later_options_keeps_its_text() -> None:
    text = section().canonical_json()
    assert not any(name in text for name in Data.LATER)
    full = section(fit="tiles", tiles={"stride": 4}, corruption={"jpeg": {}}, near_duplicates=4)
    assert config.parse(Data, full.canonical_json()) == full
    assert all(f'"{name}"' in full.canonical_json() for name in ("tiles", "corruption", "near_duplicates"))
