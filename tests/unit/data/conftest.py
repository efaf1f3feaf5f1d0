"""Small ShardSets on disk, written as prepare writes them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sr3_core import images
from sr3_core.artifacts.shardset import ShardSet
from sr3_core.config import Data
from sr3_core.data.shards import build
from sr3_core.data.sources._base import Example

Photo = np.ndarray[Any, np.dtype[np.uint8]]
Write = Callable[..., ShardSet]


def noise_photo(side: int, seed: int) -> Photo:
    """Blobs of colour: (side, side, 3), different everywhere and not the same after any turn."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (side // 4, side // 4, 3), dtype=np.uint8)
    return np.asarray(images.resize(coarse, (side, side), "bicubic"), dtype=np.uint8)


@pytest.fixture(scope="session")
def write_shards(tmp_path_factory: pytest.TempPathFactory) -> Write:
    """``write({key: photo}, levels, labels={key: label})``: a ShardSet; a photo lacks the levels above its side."""

    def write(photos: dict[str, Photo], levels: tuple[int, ...], labels: dict[str, int] | None = None) -> ShardSet:
        folder = tmp_path_factory.mktemp("shards")
        examples = []
        for key, photo in photos.items():
            path = folder / f"{key}.png"
            path.write_bytes(images.encode(photo))
            examples.append(Example(key=key, uri=str(path), split="train", label=(labels or {}).get(key)))
        data = Data.model_validate(
            {
                "source": "folder",
                "split": {"by": "published", "minimum": {"train": 1, "val": 0, "test": 0}},
                "levels": levels,
                "required_levels": {"train": levels[:2]},
            }
        )
        return build(str(folder / "out"), data, examples, fingerprint="test")

    return write


@pytest.fixture(scope="session")
def shards(write_shards: Write) -> ShardSet:
    """Five photos with levels 16, 64 and 128."""
    return write_shards({f"photo-{index}": noise_photo(128, index) for index in range(5)}, (16, 64, 128))


@pytest.fixture(scope="session")
def uneven_shards(write_shards: Write) -> ShardSet:
    """Three photos with every level and ``small``, which lacks 128."""
    photos = {f"photo-{index}": noise_photo(128, index) for index in range(3)}
    return write_shards({**photos, "small": noise_photo(64, 9)}, (16, 64, 128))


@pytest.fixture(scope="session")
def labelled_shards(write_shards: Write) -> ShardSet:
    photos = {f"photo-{index}": noise_photo(64, index) for index in range(3)}
    return write_shards(photos, (16, 64), {"photo-0": 7, "photo-1": 0, "photo-2": 3})


@pytest.fixture(scope="session")
def half_labelled_shards(write_shards: Write) -> ShardSet:
    return write_shards({f"photo-{index}": noise_photo(64, index) for index in range(2)}, (16, 64), {"photo-0": 7})


@pytest.fixture(scope="session")
def gradient_shards(write_shards: Write) -> ShardSet:
    """One photo whose value is the column's number, so that a crop tells where and how large it was cut."""
    ramp = np.broadcast_to(np.arange(128, dtype=np.uint8)[None, :, None], (128, 128, 3))
    return write_shards({"ramp": np.ascontiguousarray(ramp)}, (16, 64, 128))
