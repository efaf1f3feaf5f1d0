"""ShardSets of 16 bits and of many channels: stored without loss, read back by the loader, refused inputs counted by reason."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sr3_core import config, images, storage
from sr3_core.artifacts.shardset import REJECTED, ShardSet
from sr3_core.config import Data, Stage
from sr3_core.data import degrade, shards
from sr3_core.data.loader import MicroBatches
from sr3_core.data.sources import folder
from sr3_core.errors import BadInput
from sr3_core.images import npy
from tests.unit.test_depth import SRGB, WIDE

LEVELS = (16, 32)
KINDS = [(8, 1), (8, 2), (8, 3), (8, 4), (8, 7), (16, 1), (16, 2), (16, 3), (16, 4)]


def noise(seed: int, bits: int, channels: int, side: int = 40) -> images.Array:
    coarse = np.random.default_rng(seed).integers(0, 2**bits, (side // 4, side // 4, channels), dtype=f"uint{bits}")
    return images.resize(coarse, (side, side), "bicubic")


def section(at: Path, **changes: Any) -> Data:
    minimum = {"train": 1, "val": 0, "test": 0}
    values = {"source": "folder", "options": {"uri": str(at)}, "levels": LEVELS, "split": {"val": 0, "test": 0, "minimum": minimum}}
    return config.parse(Data, {**values, **changes})


def built(at: Path, data: Data, name: str = "shards") -> ShardSet:
    options = folder.Options(uri=str(at))
    return shards.build(str(at.parent / name), data, folder.examples(options), fingerprint="test")


@pytest.mark.parametrize(("bits", "channels"), KINDS)
def test_every_depth_and_number_of_channels_is_stored_without_loss(bits: int, channels: int, tmp_path: Path) -> None:
    at = tmp_path / "in"
    at.mkdir()
    made = {f"p{index}": noise(index, bits, channels) for index in range(3)}
    made["whole"] = noise(9, bits, channels, side=32)
    for key, array in made.items():
        (at / f"{key}.npy").write_bytes(npy.encode(array))
    data = section(at, bits=bits, channels=channels)
    found = built(at, data)
    assert found.count("train") == 4
    extension = images.EXTENSIONS[images.lossless(channels, bits)]
    for index, key in enumerate(found.keys("train")):
        exact = degrade.pyramid(made[key], degrade.crops(*made[key].shape[:2], data)[0], data)
        assert {entry[2] for entry in found.sample("train", index).members.values()} == {extension}
        for level in LEVELS:
            image = found.image("train", index, level)
            assert image.dtype == np.dtype(f"uint{bits}")
            assert np.array_equal(image, exact[level])
    assert np.array_equal(found.image("train", found.keys("train").index("whole"), 32), made["whole"])  # uint16 in, uint16 out
    batch = MicroBatches(found, stage(channels)).batch(0, 4)
    assert batch.low is not None
    assert (batch.high.shape, batch.low.shape) == ((4, channels, 32, 32), (4, channels, 16, 16))
    assert batch.high.dtype == torch.float32
    for image, key in zip(batch.high.numpy(), batch.keys, strict=True):
        level = images.from_unit(image, bits=bits)
        assert np.array_equal(level, degrade.pyramid(made[key], degrade.crops(*made[key].shape[:2], data)[0], data)[32])


def stage(channels: int) -> Stage:
    values = {"name": "x2", "low": 16, "high": 32, "channels": channels, "model": {"name": "unet"}, "objective": {"name": "diffusion"}}
    training = {"images": 4, "global_batch": 4, "micro_batch": 4, "checkpoint_images": 4, "log_images": 4, "augment": {"flip": False}}
    return config.parse(Stage, {**values, "training": training})


def test_16_bit_tiffs_pass_through_as_png_and_others_are_counted(tmp_path: Path) -> None:
    at = tmp_path / "in"
    at.mkdir()
    deep = noise(1, 16, 1, side=32)
    Image.fromarray(deep[:, :, 0]).save(at / "tiff.tif")
    (at / "same.png").write_bytes(images.encode(deep))
    Image.fromarray(noise(2, 8, 3)).save(at / "shallow.png")
    found = built(at, section(at, bits=16, channels=1, max_rejected_share=0.5))
    assert found.manifest["rejected"] == {"8-bit in a 16-bit set": 1}
    for index in range(2):
        assert np.array_equal(found.image("train", index, 32), deep)
    offset, size, _ = found.sample("train", found.keys("train").index("same")).members[32]
    shard = storage.join(found.uri, found.sample("train", 0).shard)
    assert storage.read_range(shard, offset, size) == (at / "same.png").read_bytes()
    shallow = built(at, section(at, channels=1, max_rejected_share=0.7), "shallow")
    assert shallow.manifest["rejected"] == {"16-bit": 2}
    line = json.loads(storage.read_bytes(storage.join(shallow.uri, REJECTED)).splitlines()[0])
    assert "data.bits=16" in line["detail"]


def test_alpha_is_data_of_a_set_with_four_channels(tmp_path: Path) -> None:
    at = tmp_path / "in"
    at.mkdir()
    clear = noise(1, 8, 4, side=32)
    (at / "clear.png").write_bytes(images.encode(clear))
    (at / "opaque.png").write_bytes(images.encode(noise(2, 8, 3)))
    found = built(at, section(at, channels=4, max_rejected_share=0.5))
    assert found.manifest["rejected"] == {"no alpha channel": 1}
    assert np.array_equal(found.image("train", 0, 32), clear)


CODECS: list[tuple[dict[str, Any], str, str]] = [  # codec, endings of the lower and of the largest level
    ({"format": "webp"}, "webp", "webp"),
    ({"format": "jpeg", "quality": 70}, "png", "jpg"),
    ({"format": "jpeg", "quality": 30, "min_psnr": 38}, "png", "jpg"),
    ({"format": "jpeg", "quality": 30, "min_psnr": 60}, "png", "png"),  # above what quality 100 gives
]


@pytest.mark.parametrize(("codec", "lower", "largest"), CODECS)
def test_codecs_are_exact_below_the_largest_level_and_keep_the_floor_on_it(
    codec: dict[str, Any], lower: str, largest: str, tmp_path: Path
) -> None:
    at = tmp_path / "in"
    at.mkdir()
    made = {f"p{index}": noise(index, 8, 3) for index in range(3)}
    for key, array in made.items():
        (at / f"{key}.bmp").write_bytes(bmp(array))
    data = section(at, codec=codec)
    found = built(at, data)
    extensions: dict[int, set[str]] = {level: set() for level in LEVELS}
    for index, key in enumerate(found.keys("train")):
        exact = degrade.pyramid(made[key], degrade.crops(*made[key].shape[:2], data)[0], data)
        assert np.array_equal(found.image("train", index, 16), exact[16])
        decibels = images.psnr(found.image("train", index, 32), exact[32])
        assert decibels >= codec.get("min_psnr", 25) if largest == "jpg" else decibels == np.inf
        for level in LEVELS:
            extensions[level].add(found.sample("train", index).members[level][2])
    assert extensions == {16: {lower}, 32: {largest}}


def test_the_first_of_several_pages_is_used_and_counted(tmp_path: Path) -> None:
    at = tmp_path / "in"
    at.mkdir()
    first, *others = [Image.fromarray(noise(seed, 8, 3, side=32)) for seed in range(3)]
    first.save(at / "pages.tiff", save_all=True, append_images=others)
    first.save(at / "one.tiff")
    found = built(at, section(at))
    assert found.manifest["first_frames"] == 1 and found.count("train") == 2
    assert all(np.array_equal(found.image("train", index, 32), np.asarray(first)) for index in range(2))
    (at / "pages.tiff").unlink()
    assert "first_frames" not in built(at, section(at), "others").manifest


def test_colour_profiles_are_followed_once_and_counted(tmp_path: Path) -> None:
    """The level is stored in sRGB without a profile: nothing is converted twice, and no source bytes pass through unconverted."""
    at = tmp_path / "in"
    at.mkdir()
    array = noise(1, 8, 3, side=32)
    for name, embedded in (("wide", WIDE), ("srgb", SRGB), ("broken", b"none")):
        Image.fromarray(array).save(at / f"{name}.png", icc_profile=embedded)
    found = built(at, section(at))
    assert found.manifest["profiles"] == {"broken": 1, "other": 1}
    converted = images.decode((at / "wide.png").read_bytes())
    assert (converted != array).any()
    for index, key in enumerate(found.keys("train")):
        assert np.array_equal(found.image("train", index, 32), converted if key == "wide" else array)
        offset, size, _ = found.sample("train", index).members[32]
        stored = storage.read_range(storage.join(found.uri, found.sample("train", 0).shard), offset, size)
        assert (stored == (at / f"{key}.png").read_bytes()) == (key != "wide")
        assert images.header(stored).profile == {"wide": "none", "srgb": "sRGB", "broken": "broken"}[key]


def bmp(array: images.Array) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "BMP")
    return buffer.getvalue()


def test_codecs_that_cannot_hold_the_set_are_refused() -> None:
    def refused(**changes: Any) -> str:
        with pytest.raises(BadInput) as caught:
            section(Path("/in"), **changes)
        return str(caught.value)

    assert "take png" in refused(bits=16, channels=1, codec={"format": "webp"})
    assert "take png" in refused(channels=4, codec={"format": "jpeg"})
    assert "min_psnr" in refused(codec={"format": "png", "min_psnr": 40})
    assert "bits=12" in refused(bits=12)
    corruption = {"jpeg": {"quality": [40, 90]}}
    assert "corruption.jpeg takes 8 bits" in refused(bits=16, channels=1, corruption=corruption)


def test_what_was_added_leaves_the_names_of_older_sets_as_they_were() -> None:
    written = section(Path("/in")).model_dump(mode="json")
    assert "bits" not in written
    assert set(written["codec"]) == {"format", "quality"}
    deep = section(Path("/in"), bits=16, channels=1)
    assert config.parse(Data, deep.canonical_json()) == deep
    floor = section(Path("/in"), codec={"format": "jpeg", "min_psnr": 40})
    assert config.parse(Data, floor.canonical_json()).codec.min_psnr == 40
