"""8 and 16 bits, 1 to 64 channels, colour profiles: what is exact is exact, what a decoder would cut in silence is refused by name."""

import io
import itertools
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageCms

from sr3_core import images
from sr3_core.images import BadImage, npy

DEEP = np.random.default_rng(0).integers(0, 65536, (24, 20), dtype=np.uint16)
COLOURS = np.random.default_rng(1).integers(0, 256, (24, 20, 3), dtype=np.uint8)
LOSSLESS: tuple[images.Format, ...] = ("png", "webp", "npy")
P3 = {"r": (0.51512, 0.24120, -0.00105), "g": (0.29198, 0.69225, 0.04189), "b": (0.15710, 0.06657, 0.78407)}  # D50, as Apple's file has
SRGB_D50 = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
GAMMA = 2.2


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def refused(data: bytes, **wanted: int) -> str:
    with pytest.raises(BadImage) as caught:
        images.decode(data, **wanted)
    return caught.value.reason


def png(bits: int, colour_type: int, values: np.ndarray[Any, Any]) -> bytes:
    """A PNG made by hand: Pillow writes no 16-bit colour. ``values`` (H, W, C)."""
    rows = b"".join(b"\0" + row.astype(">u2" if bits == 16 else "u1").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, colour_type, 0, 0, 0)

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(bits: tuple[int, ...], content: bytes, side: int, *, photometric: int, extra: int = 0) -> bytes:
    """An uncompressed little-endian TIFF made by hand, for depths that Pillow does not write."""
    entries = {256: side, 257: side, 259: 1, 262: photometric, 277: len(bits), 278: side, 279: len(content)}
    place = 8 + 2 + 12 * (len(entries) + 2 + bool(extra)) + 4
    rows = [(tag, 4, 1, struct.pack("<I", value)) for tag, value in entries.items()]
    packed = struct.pack(f"<{len(bits)}H", *bits)
    rows.append((258, 3, len(bits), packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack("<I", place)))
    rows += [(338, 3, extra, bytes(4))] * bool(extra)  # samples of no stated meaning
    rows.append((273, 4, 1, struct.pack("<I", place + len(packed))))
    table = b"".join(struct.pack("<HHI", *row[:3]) + row[3] for row in sorted(rows))
    return b"II*\0" + struct.pack("<IH", 8, len(rows)) + table + b"\0\0\0\0" + packed + content


def profile(primaries: dict[str, tuple[float, float, float]], gamma: float) -> bytes:
    """A version 2 display profile of three primaries (XYZ at D50) and one gamma."""

    def xyz(values: tuple[float, float, float]) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"Wide\0" + bytes(8) + bytes(3 + 67)
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    tags = {b"desc": text, b"cprt": b"text\0\0\0\0none\0", b"wtpt": xyz((0.9642, 1.0, 0.8249))}
    tags |= {name.encode() + b"XYZ": xyz(values) for name, values in primaries.items()}
    tags |= {name.encode() + b"TRC": curve for name in primaries}
    table, content = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        table += struct.pack(">4sII", name, start + len(content), len(value))
        content += value + b"\0" * (-len(value) % 4)
    head = struct.pack(">I4sI4s4s4s", start + len(content), b"none", 0x02100000, b"mntr", b"RGB ", b"XYZ ") + bytes(12) + b"acsp"
    head = head.ljust(68, b"\0") + struct.pack(">3i", round(0.9642 * 65536), 65536, round(0.8249 * 65536))
    return head.ljust(128, b"\0") + table + content


WIDE = profile(P3, GAMMA)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize(("format", "bits", "channels"), itertools.product(LOSSLESS, (8, 16), (1, 2, 3, 4, 5, 64)))
def test_every_lossless_codec_gives_back_what_it_was_given(format: images.Format, bits: int, channels: int) -> None:
    array = np.random.default_rng(2).integers(0, 2**bits, (7, 5, channels), dtype=f"uint{bits}")
    if not images.holds(format, channels=channels, bits=bits):
        with pytest.raises(ValueError, match="cannot encode"):
            images.encode(array, format)
        return
    data = images.encode(array, format)
    back = images.decode(data, channels=channels, bits=bits)
    assert back.dtype == array.dtype
    assert np.array_equal(back, array)
    assert data == images.encode(np.asfortranarray(array), format)
    stored = images.header(data)
    assert (stored.height, stored.width, stored.bits) == (7, 5, bits)
    assert stored.is_stored_as(channels=channels, bits=bits) == (format != "webp" or channels != 1)  # WebP has no grey: it comes as RGB


IMAGES = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 6), st.sampled_from(["uint8", "uint16"])).flatmap(
    lambda drawn: arrays(drawn[3], drawn[:3])
)


@settings(max_examples=60, deadline=None)
@given(IMAGES)
def test_decode_undoes_encode(array: np.ndarray[Any, Any]) -> None:
    bits, channels = images.bits_of(array), array.shape[2]
    format = images.lossless(channels, bits)
    assert np.array_equal(images.decode(images.encode(array, format), channels=channels, bits=bits), array)
    assert np.array_equal(images.from_unit(images.to_unit(array), bits=bits), array)


def test_all_65536_values_survive_the_unit_range() -> None:
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
    unit = images.to_unit(every)
    assert (unit.min(), unit.max()) == (-1, 1)
    assert np.array_equal(images.from_unit(unit, bits=16), every)
    with pytest.raises(ValueError, match="float64"):
        images.to_unit(every.astype(np.float64))


@pytest.mark.parametrize(
    "data",
    [
        saved(Image.fromarray(DEEP), "PNG"),
        saved(Image.fromarray(DEEP), "TIFF"),
        saved(Image.fromarray(DEEP), "TIFF", compression="tiff_lzw"),
        saved(Image.fromarray(DEEP), "PPM"),
        saved(Image.frombytes("I;16B", DEEP.shape[::-1], DEEP.astype(">u2").tobytes()), "TIFF"),
        saved(Image.fromarray(65535 - DEEP), "TIFF", tiffinfo={262: 0}),  # white is zero
    ],
    ids=["png", "tiff", "lzw", "pgm", "big-endian", "white is zero"],
)
def test_grey_of_16_bits_is_read_exactly(data: bytes) -> None:
    assert images.header(data).bits == 16
    assert np.array_equal(images.decode(data, channels=1, bits=16)[:, :, 0], DEEP)
    assert np.array_equal(images.decode(data, channels=3, bits=16), np.repeat(DEEP[:, :, None], 3, axis=2))
    assert refused(data, channels=1, bits=8) == "16-bit"
    assert refused(data, channels=4, bits=16) == "no alpha channel"


def test_16_bits_are_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(Image.fromarray(DEEP), "PNG", exif=exif)
    assert np.array_equal(images.decode(data, channels=1, bits=16)[:, :, 0], np.rot90(DEEP, -1))
    assert not images.header(data).is_stored_as(channels=1, bits=16)


def test_16_bit_colour_is_refused_and_never_cut() -> None:
    values = np.random.default_rng(3).integers(0, 65536, (6, 6, 4), dtype=np.uint16)
    files = {
        "png": png(16, 2, values[:, :, :3]),
        "png with alpha": png(16, 6, values),
        "grey with alpha": png(16, 4, values[:, :, :2]),
        "tiff": tiff((16, 16, 16), values[:, :, :3].astype("<u2").tobytes(), 6, photometric=2),
        "ppm": b"P6 6 6 65535\n" + values[:, :, :3].astype(">u2").tobytes(),
    }
    for name, data in files.items():
        Image.open(io.BytesIO(data)).load()  # Pillow reads each of them, and says nothing
        for channels, bits in itertools.product((1, 3, 4), (8, 16)):
            assert refused(data, channels=channels, bits=bits) == "16-bit colour", name
    with pytest.raises(BadImage, match=r"convert it to \.npy"):
        images.decode(files["png"])


def test_other_depths_and_channels_are_refused_by_name() -> None:
    assert refused(saved(Image.fromarray(COLOURS), "PNG"), bits=16) == "8-bit in a 16-bit set"
    assert refused(npy.encode(COLOURS), bits=16) == "8-bit in a 16-bit set"
    assert refused(npy.encode(DEEP[:, :, None]), channels=1) == "16-bit"
    assert refused(npy.encode(COLOURS), channels=4) == "other channels"
    assert refused(saved(Image.fromarray(COLOURS), "PNG"), channels=5) == "other channels"
    assert refused(saved(Image.fromarray(COLOURS), "PNG"), channels=4) == "no alpha channel"
    assert refused(saved(Image.fromarray(DEEP.astype(np.int32)), "TIFF"), channels=1, bits=16) == "unsupported depth"
    assert refused(saved(Image.fromarray(DEEP.astype(np.float32)), "TIFF"), channels=1, bits=16) == "unsupported depth"
    assert refused(b"P5 20 24 1023\n" + (DEEP % 1024).astype(">u2").tobytes(), channels=1, bits=16) == "unsupported depth"
    assert refused(tiff((8,) * 5, bytes(5 * 36), 6, photometric=2, extra=2)) == "extra channels"
    assert refused(png(16, 0, DEEP[:, :, None])[:8] + b"\0\0\0\0tEXt\xc0\x46\xac\xd9" + png(16, 0, DEEP[:, :, None])[8:]) in (
        "corrupt",
        "not an image",
    )
    for bits in (1, 2, 4):
        assert images.header(png(bits, 0, np.zeros((8, 8 * bits // 8, 1), np.uint8))).bits == 8


def test_alpha_is_data_with_four_channels_alone() -> None:
    values = np.random.default_rng(4).integers(0, 256, (9, 8, 4), dtype=np.uint8)
    values[0, 0, 3] = 0  # its colour is data too
    for format in ("PNG", "TIFF", "WEBP"):
        data = saved(Image.fromarray(values), format, **({"lossless": True, "exact": True} if format == "WEBP" else {}))
        assert np.array_equal(images.decode(data, channels=4), values)
        assert refused(data, channels=3) == "transparency"
    assert np.array_equal(images.decode(images.encode(values, "webp"), channels=4), values)


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 1), (5, 4, 7)])
@pytest.mark.parametrize("stored", ["u1", "<u2", ">u2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_numpy_files_of_any_byte_order(shape: tuple[int, ...], stored: str, order: str) -> None:
    values = np.random.default_rng(5).integers(0, 256, shape).astype(stored)
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(values, order=order))  # type: ignore[call-overload]
    back = images.decode(buffer.getvalue(), channels=shape[2] if len(shape) > 2 else 1, bits=8 * values.dtype.itemsize)
    assert back.dtype == values.dtype.newbyteorder("=")
    assert np.array_equal(back, values.reshape(back.shape))


def numpy_file(shape: object, descr: str = "|u1", content: bytes = b"") -> bytes:
    text = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    text += b" " * (-(10 + len(text) + 1) % 64) + b"\n"
    return npy.MAGIC + bytes([1, 0]) + struct.pack("<H", len(text)) + text + content


def test_hostile_numpy_files() -> None:
    pickled = io.BytesIO()
    np.save(pickled, np.array([[{"a": 1}]], dtype=object), allow_pickle=True)
    assert refused(pickled.getvalue()) == "unsupported type"
    assert refused(numpy_file((10**6, 10**6, 3))) == "too many pixels"  # before any memory is taken
    assert refused(numpy_file((8, 8, 10**12)), channels=3) == "other channels"
    assert refused(numpy_file((9_000, 9_000, 3), content=b"\0" * 10)) == "truncated"
    assert refused(numpy_file((1, 1, 3), content=b"\0" * 4)) == "corrupt"
    for shape in ((-1, 4, 3), (0, 4, 3), (4,), (1, 2, 3, 4), (True, 2)):
        assert refused(numpy_file(shape)) in ("unsupported shape", "corrupt")
    for kind in ("<f4", "|i1", "<u4", "|V3", "|b1"):
        assert refused(numpy_file((1, 1), kind, b"\0" * 8)) == "unsupported type"
    data = npy.encode(COLOURS)
    random = np.random.default_rng(6)
    for _ in range(200):
        hurt = bytearray(data)
        for place in random.integers(0, 130, 3):
            hurt[place] = random.integers(0, 256)
        try:
            assert images.decode(bytes(hurt)).shape[2] == 3
        except BadImage as error:
            assert error.reason


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_a_wide_profile_is_brought_to_srgb(format: str) -> None:
    """As ImageCms does it, and as the definition does: linear light, primaries, the sRGB curve."""
    muted = (64 + COLOURS // 4).astype(np.uint8)  # inside the smaller gamut, so that nothing is clipped
    options = {"lossless": True} if format == "WEBP" else {}
    data = saved(Image.fromarray(muted), format, icc_profile=WIDE, **options)
    bare = images.decode(saved(Image.fromarray(muted), format, **options))
    assert images.header(data).profile == "other"
    assert not images.header(data).is_stored_as(channels=3, bits=8)
    found = images.decode(data)
    by_pillow = ImageCms.profileToProfile(
        Image.fromarray(bare), ImageCms.ImageCmsProfile(io.BytesIO(WIDE)), ImageCms.createProfile("sRGB"),
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC, flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )  # fmt: skip
    assert np.array_equal(found, np.asarray(by_pillow))
    linear = (bare / 255.0) ** GAMMA @ np.array(list(P3.values())) @ np.linalg.inv(SRGB_D50).T
    expected = 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 0) ** (1 / 2.4) - 0.055)
    assert np.abs(found - expected).max() < 1.6
    assert np.abs(found.astype(int) - bare).max() > 8


def test_srgb_and_broken_profiles_leave_the_pixels_alone() -> None:
    for name, embedded in (("sRGB", SRGB), ("broken", b"no profile"), ("broken", WIDE[:200]), ("broken", b"\0" * 500)):
        data = saved(Image.fromarray(COLOURS), "PNG", icc_profile=embedded)
        assert images.header(data).profile == name
        assert images.header(data).is_stored_as(channels=3, bits=8)
        assert np.array_equal(images.decode(data), COLOURS)
    assert images.header(saved(Image.fromarray(COLOURS), "PNG")).profile == "none"
    own = profile({"r": tuple(SRGB_D50[:, 0]), "g": tuple(SRGB_D50[:, 1]), "b": tuple(SRGB_D50[:, 2])}, GAMMA)
    assert images.header(saved(Image.fromarray(COLOURS), "PNG", icc_profile=own)).profile == "other"  # its curve is not that of sRGB


def test_a_profile_leaves_alpha_alone() -> None:
    values = np.random.default_rng(7).integers(0, 256, (9, 8, 4), dtype=np.uint8)
    found = images.decode(saved(Image.fromarray(values), "PNG", icc_profile=WIDE), channels=4)
    assert np.array_equal(found[:, :, 3], values[:, :, 3])
    alone = images.decode(saved(Image.fromarray(values[:, :, :3]), "PNG", icc_profile=WIDE))
    assert np.array_equal(found[:, :, :3], alone)


def test_a_palette_with_a_profile_is_brought_to_srgb_too() -> None:
    few = Image.fromarray(COLOURS).quantize(16)
    expected = images.decode(saved(few.convert("RGB"), "PNG", icc_profile=WIDE))
    assert np.array_equal(images.decode(saved(few, "PNG", icc_profile=WIDE)), expected)


def test_cmyk_without_a_profile_is_refused() -> None:
    for embedded in (None, b"broken", WIDE):
        data = saved(Image.new("CMYK", (8, 8), (10, 20, 30, 40)), "JPEG", **({"icc_profile": embedded} if embedded else {}))
        assert refused(data) == "CMYK without a profile"


def test_jpeg_keeps_its_floor_or_becomes_png() -> None:
    smooth = np.asarray(images.resize(COLOURS, (96, 80), "bicubic"), np.uint8)
    plain = images.psnr(images.decode(images.encode(smooth, "jpeg", 60)), smooth)
    format, data = images.encode_above(smooth, quality=60, min_psnr=plain - 0.1)
    assert (format, data) == ("jpeg", images.encode(smooth, "jpeg", 60))
    format, data = images.encode_above(smooth, quality=60, min_psnr=plain + 5)
    assert format == "jpeg"
    assert images.psnr(images.decode(data), smooth) >= plain + 5
    assert len(data) < len(images.encode(smooth, "jpeg", 100))
    format, data = images.encode_above(COLOURS, quality=60, min_psnr=70)
    assert format == "png"
    assert np.array_equal(images.decode(data), COLOURS)


def test_psnr_is_by_the_depth() -> None:
    assert images.psnr(COLOURS, COLOURS) == np.inf
    black8, black16 = np.zeros((4, 4, 1), np.uint8), np.zeros((4, 4, 1), np.uint16)
    assert images.psnr(black8, black8 + 255) == images.psnr(black16, black16 + 65535) == 0


def test_preview_is_what_a_screen_shows() -> None:
    assert np.array_equal(images.preview(COLOURS), COLOURS)
    assert np.array_equal(images.preview(DEEP[:, :, None])[:, :, 0], np.rint(DEEP / 257))
    many = np.random.default_rng(8).integers(0, 256, (4, 4, 6), dtype=np.uint8)
    assert np.array_equal(images.preview(many), many[:, :, :3])
    assert images.preview(many[:, :, :2]).shape == (4, 4, 1)
    white = np.full((2, 2, 1), 65535, np.uint16)
    assert (images.preview(white) == 255).all()
