"""The doctor's checks of one image: what they name on the photos that come with the project, and what they must not name."""

import io
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from sr3_core import images
from sr3_core.data.sources import sample_photos
from sr3_core.doctor import checks

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
RATE = 0.9  # of the copies found; measured figures stand in the docstring of ``enlarged``


@pytest.fixture(scope="module")
def photos() -> dict[str, Pixels]:
    found = sample_photos.examples(sample_photos.Options())
    return {example.key: images.decode((sample_photos.FOLDER / f"{example.key}.jpg").read_bytes()) for example in found}


def look(pixels: Pixels) -> checks.Enlarged | None:
    return checks.enlarged(checks.luminance(pixels))


def enlarge(pixels: Pixels, scale: int, filter: images.Filter) -> Pixels:
    """The centre of a photo, enlarged to at most 1024 pixels."""
    side = min(*pixels.shape[:2], 1024 // scale)
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    return cast(Pixels, images.resize(pixels[top : top + side, left : left + side], (side * scale, side * scale), filter))


def jpeg(pixels: Pixels, quality: int) -> Pixels:
    return cast(Pixels, images.decode(images.encode(pixels, "jpeg", quality)))


def test_no_photo_of_good_quality_is_named(photos: dict[str, Pixels]) -> None:
    assert len(photos) >= 30
    assert {key: found for key, pixels in photos.items() if (found := look(pixels))} == {}


@pytest.mark.parametrize(
    ("scale", "filter", "quality", "kind"),
    [(2, "lanczos", None, "smooth"), (3, "bicubic", 85, "smooth"), (4, "bicubic", None, "smooth"), (2, "nearest", 75, "repeated")],
)
def test_enlarged_copies_are_found(scale: int, filter: images.Filter, quality: int | None, kind: str, photos: dict[str, Pixels]) -> None:
    found: list[checks.Enlarged] = []
    for pixels in photos.values():
        copy = enlarge(pixels, scale, filter)
        if result := look(jpeg(copy, quality) if quality else copy):
            found.append(result)
    assert len(found) >= RATE * len(photos)
    assert sum(item.kind == kind for item in found) >= RATE * len(found)
    assert abs(float(np.median([item.scale for item in found])) - scale) <= scale / 4
    assert all(item.strength >= 1 for item in found)


@pytest.mark.parametrize("quality", [90, 75, 30])
def test_jpeg_blocks_are_no_repeated_pixels(quality: int, photos: dict[str, Pixels]) -> None:
    for key, pixels in photos.items():
        found = look(jpeg(pixels, quality))
        assert found is None or found.kind == "smooth", key


def test_a_halved_photo_is_as_sharp_as_its_pixels(photos: dict[str, Pixels]) -> None:
    halved = [cast(Pixels, images.resize(p, (p.shape[0] // 2, p.shape[1] // 2), "lanczos")) for p in photos.values()]
    assert sum(look(pixels) is not None for pixels in halved) == 0


def test_noise_and_small_images_are_not_named() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    assert look(noise) is None
    small = cast(Pixels, images.resize(noise[:30, :30], (120, 120), "bicubic"))
    assert look(small) is None  # too few frequencies to tell
    assert look(cast(Pixels, images.resize(noise[:64, :64], (256, 256), "bicubic"))) is not None


def test_the_repeated_block_is_measured() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    for scale in checks.REPEATS:
        found = look(cast(Pixels, images.resize(noise, (96 * scale, 96 * scale), "nearest")))
        assert found is not None and (found.kind, found.scale) == ("repeated", scale)


def test_sixteen_bits_and_many_channels_are_judged_as_eight_bits() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    enlarged = cast(Pixels, images.resize(noise, (256, 256), "bicubic"))
    deep = enlarged.astype(np.uint16) * 257
    assert np.allclose(checks.luminance(deep), checks.luminance(enlarged), atol=1e-2)
    five = np.concatenate([enlarged, enlarged[:, :, :2]], axis=2)
    assert checks.luminance(five).shape == (256, 256)
    assert look(five) is not None


def test_the_spectrum_of_white_noise_is_flat() -> None:
    white = np.random.default_rng(0).normal(128, 20, (256, 256)).astype(np.float32)
    rings = checks.spectrum([white])
    assert rings.shape == (checks.RINGS,)
    assert np.ptp(rings[2:]) < 0.3  # decades
    assert checks.steepest_fall(rings)[1] < 0.2


def test_detailed_places_lie_where_the_detail_is() -> None:
    light = np.full((700, 900), 128, np.float32)
    light[400:600, 100:300] = np.random.default_rng(0).uniform(0, 255, (200, 200))
    top, left, side = checks.detailed_places(light)[0]
    assert side == checks.TILE
    assert top < 600 and top + side > 400 and left < 300 and left + side > 100
    assert all(0 <= t <= 700 - side and 0 <= x <= 900 - side for t, x, _ in checks.detailed_places(light))


@pytest.mark.parametrize("quality", [1, 5, 20, 30, 50, 74, 75, 76, 90, 95, 99, 100])
def test_jpeg_quality_is_the_one_asked_for(quality: int) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(buffer, "JPEG", quality=quality)
    assert abs((checks.jpeg_quality(buffer.getvalue()) or 0) - quality) <= 1


@pytest.mark.parametrize(
    "broken",
    [
        lambda data: b"",
        lambda data: data[:10],
        lambda data: data[: data.index(b"\xff\xdb") + 20],
        lambda data: data.replace(b"\xff\xdb\x00\x43", b"\xff\xdb\x00\x00", 1),
        lambda data: b"\x89PNG" + data,
    ],
)
def test_jpeg_quality_of_no_jpeg_is_none(broken: Callable[[bytes], bytes]) -> None:
    assert checks.jpeg_quality(broken(images.encode(np.zeros((16, 16, 3), np.uint8), "jpeg", 80))) is None
