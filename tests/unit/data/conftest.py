"""Small ShardSets on disk, in the layout that sr3_core/artifacts/shardset.py documents."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sr3_core import images
from sr3_core.artifacts.shardset import MANIFEST, SCHEMA_VERSION, ShardSet
from sr3_core.config import Data

Photo = np.ndarray[Any, np.dtype[np.uint8]]
Write = Callable[..., ShardSet]


def noise_photo(side: int, seed: int) -> Photo:
    """Blobs of colour: (side, side, 3), different everywhere and not the same after any turn."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (side // 4, side // 4, 3), dtype=np.uint8)
    return np.asarray(images.resize(coarse, (side, side), "bicubic"), dtype=np.uint8)


@pytest.fixture(scope="session")
def write_shards(tmp_path_factory: pytest.TempPathFactory) -> Write:
    """``write({key: photo}, levels, labels={key: label})`` -> a ShardSet of one train shard; a photo lacks the levels above its side."""

    def write(photos: dict[str, Photo], levels: tuple[int, ...], labels: dict[str, int] | None = None) -> ShardSet:
        folder = tmp_path_factory.mktemp("shards")
        name, members = "train/000000.tar", []
        (folder / "train").mkdir()
        with tarfile.open(folder / name, "w", format=tarfile.USTAR_FORMAT) as tar:
            for key, photo in photos.items():
                placed = {}
                for level in (level for level in levels if level <= photo.shape[0]):
                    data = images.encode(np.asarray(images.resize(photo, (level, level), "bicubic"), dtype=np.uint8))
                    info = tarfile.TarInfo(f"{key}.{level}.png")
                    info.size = len(data)
                    placed[str(level)] = [tar.offset + tarfile.BLOCKSIZE, len(data), "png"]
                    tar.addfile(info, io.BytesIO(data))
                facts = {"label": (labels or {}).get(key), "source": key, "original_size": list(photo.shape[:2])}
                members.append({"key": key, "levels": placed, "content_hash": hashlib.sha256(photo.tobytes()).hexdigest(), **facts})
        content = (folder / name).read_bytes()
        shard = {
            "name": name,
            "split": "train",
            "samples": len(photos),
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        section = Data(source="folder", levels=levels).model_dump(mode="json")
        manifest = {"schema": SCHEMA_VERSION, "section": section, "fingerprint": "0" * 16, "shards": [{**shard, "members": members}]}
        (folder / MANIFEST).write_text(json.dumps({**manifest, "counts": {}, "rejected": {}, "accepted": len(photos)}))
        return ShardSet.open(str(folder))

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
