"""Bytes <-> arrays: exact where it must be, bounded and counted by reason where it cannot."""

import io

import numpy as np
import pytest
from PIL import Image

from sr3_core import images
from sr3_core.images import BadImage

RANDOM = np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8)


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


@pytest.mark.parametrize("channels", [1, 3])
def test_png_is_lossless_and_the_same_bytes_each_time(channels: int) -> None:
    data = images.encode(RANDOM[:, :, :channels], "png")
    assert np.array_equal(images.decode(data, channels=channels), RANDOM[:, :, :channels])
    assert data == images.encode(RANDOM[:, :, :channels].copy(), "png")
    assert data.startswith(b"\x89PNG")


def test_jpeg_keeps_full_chroma() -> None:
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[:, ::2, 0] = 255
    back = images.decode(images.encode(stripes, "jpeg", 95)).astype(int)
    assert abs(back - stripes).max() < 40  # with 4:2:0 the red and black columns run into each other


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(Image.fromarray(RANDOM), "PNG", exif=exif)
    upright = {1: RANDOM, 2: RANDOM[:, ::-1], 3: RANDOM[::-1, ::-1], 4: RANDOM[::-1], 5: RANDOM.transpose(1, 0, 2)}
    upright |= {6: np.rot90(RANDOM, -1), 7: RANDOM[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(RANDOM)}
    array = images.decode(data)
    header = images.header(data)
    assert np.array_equal(array, upright[orientation])
    assert (header.height, header.width) == array.shape[:2]
    assert header.upright == (orientation == 1)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("part", [0.02, 0.5, 0.9])
def test_truncated_files_are_bad_images(format: str, part: float) -> None:
    data = saved(Image.fromarray(RANDOM), format)
    with pytest.raises(BadImage) as caught:
        images.decode(data[: int(len(data) * part)])
    assert caught.value.reason in ("truncated", "corrupt", "not an image")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "PPM"])
def test_damaged_files_never_raise_anything_else(format: str) -> None:
    data = saved(Image.fromarray(RANDOM), format)
    random = np.random.default_rng(1)
    for _ in range(150):
        hurt = bytearray(data)
        for place in random.integers(0, min(len(data), 400), 4):
            hurt[place] = random.integers(0, 256)
        try:
            array = images.decode(bytes(hurt))
        except BadImage as error:
            assert error.reason
        else:
            assert array.dtype == np.uint8
            assert array.shape[2] == 3


def test_reasons() -> None:
    def reason(data: bytes) -> str:
        with pytest.raises(BadImage) as caught:
            images.decode(data)
        return caught.value.reason

    assert reason(b"") == "empty file"
    assert reason(b"hello, I am text") == "not an image"
    assert reason(saved(Image.new("I;16", (8, 8)), "PNG")) == "16-bit"
    assert reason(saved(Image.new("LAB", (8, 8)), "TIFF")) == "unsupported mode"
    assert reason(saved(Image.new("RGBA", (8, 8), (1, 2, 3, 128)), "PNG")) == "transparency"
    keyed = io.BytesIO()
    Image.new("RGB", (8, 8)).save(keyed, "PNG", transparency=(0, 0, 0))
    assert reason(keyed.getvalue()) == "transparency"
    bomb = saved(Image.new("1", (20_000, 10_000)), "PNG")
    assert len(bomb) < 100_000
    assert reason(bomb) == "too many pixels"
    assert reason(saved(Image.new("1", (9_500, 9_500)), "PNG")) == "too many pixels"


def test_grey_palette_and_opaque_alpha_become_colour() -> None:
    grey = Image.fromarray(RANDOM[:, :, 0])
    assert np.array_equal(images.decode(saved(grey, "PNG")), np.repeat(RANDOM[:, :, :1], 3, axis=2))
    opaque = Image.fromarray(RANDOM).convert("RGBA")
    assert np.array_equal(images.decode(saved(opaque, "PNG")), RANDOM)
    assert images.decode(saved(Image.fromarray(RANDOM).quantize(16), "PNG")).shape == RANDOM.shape


@pytest.mark.parametrize("filter", ["bicubic", "box", "lanczos", "nearest"])
@pytest.mark.parametrize("size", [(12, 10), (96, 120), (17, 40)])
def test_resize_is_its_matrix(filter: images.Filter, size: tuple[int, int]) -> None:
    exact = RANDOM.astype(np.float64)
    rows, columns = images.resize_matrix(48, size[0], filter), images.resize_matrix(40, size[1], filter)
    expected = np.einsum("oi,iwc->owc", rows, np.einsum("pj,hjc->hpc", columns, exact))
    assert abs(images.resize(RANDOM.astype(np.float32), size, filter) - expected).max() < 1e-3
    assert abs(rows.sum(axis=1) - 1).max() < 1e-6
    result = images.resize(RANDOM, size, filter)
    clear = abs(expected - np.floor(expected) - 0.5) > 1e-3  # elsewhere float32 may round to the other side
    assert np.array_equal(result[clear], np.clip(np.rint(expected), 0, 255).astype(np.uint8)[clear])


def test_resize_keeps_type_and_range() -> None:
    edge = np.zeros((8, 8, 3), np.uint8)
    edge[:, 4:] = 255
    assert images.resize(edge, (16, 16), "lanczos").dtype == np.uint8  # overshoots are clipped, not wrapped
    assert images.resize(edge, (16, 16), "lanczos")[0, 0, 0] < 10
    deep = np.full((8, 8, 1), 65535, np.uint16)
    assert (images.resize(deep, (4, 4), "bicubic") == 65535).all()
    assert images.resize(RANDOM, (48, 40), "bicubic").base is not RANDOM
    with pytest.raises(ValueError, match="cannot resize"):
        images.resize(RANDOM.astype(np.float64), (4, 4), "box")
    with pytest.raises(ValueError, match="read-only"):
        images.resize_matrix(8, 4, "box")[0, 0] = 1


def test_unit_range_is_exactly_inverted() -> None:
    every = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    unit = images.to_unit(every)
    assert (unit.shape, unit.dtype, unit.min(), unit.max()) == ((1, 16, 16), np.float32, -1, 1)
    assert np.array_equal(images.from_unit(unit), every)
    assert images.from_unit(np.array([[[-7.0, 7.0]]], np.float32)).ravel().tolist() == [0, 255]
    with pytest.raises(ValueError, match="NaN"):
        images.from_unit(np.array([[[np.nan]]], np.float32))


def test_centre_square() -> None:
    assert images.centre_square(RANDOM).shape == (40, 40, 3)
    assert np.array_equal(images.centre_square(RANDOM), RANDOM[4:44])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("factor", [2, 3, 4, 8, 16, 32])
def test_a_box_by_a_whole_factor_is_the_mean_of_blocks(dtype: type, factor: int) -> None:
    """Rounded once, halves to even: the integer sum gives what the float32 filter gives."""
    array = np.random.default_rng(factor).integers(0, np.iinfo(dtype).max + 1, (6 * factor, 10 * factor, factor % 5 + 1)).astype(dtype)
    array[:factor, :factor] = np.iinfo(dtype).max
    means = array.reshape(6, factor, 10, factor, -1).astype(np.float64).mean(axis=(1, 3))
    made = images.resize(array, (6, 10), "box")
    through_floats = np.rint(images.resize(array.astype(np.float32), (6, 10), "box")).astype(dtype)
    assert made.dtype == dtype
    assert np.array_equal(made, through_floats)
    assert np.abs(made - means).max() <= 0.5 + 1e-3
