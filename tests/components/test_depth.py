"""16-bit grey TIFFs and arrays of four channels, from prepare to the registered model and ``sr3 upscale``: exact where bytes are kept."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from components.evaluate import main as evaluate
from components.export import main as export
from components.prepare import main as prepare
from components.train import main as train
from sr3_core import config, images, storage, tracking, upscale
from sr3_core.artifacts import report
from sr3_core.artifacts.bundle import ModelBundle
from sr3_core.artifacts.report import EvalReport
from sr3_core.artifacts.shardset import ShardSet
from sr3_core.cascade import Cascade
from sr3_core.images import npy
from tests.conftest import RECIPES, RayHead

TRAINING = {"images": 16, "global_batch": 4, "micro_batch": 2, "checkpoint_images": 16, "log_images": 16}


def picture(seed: int, bits: int, channels: int, side: int = 40) -> images.Array:
    """Blobs whose values need all of ``bits``."""
    coarse = np.random.default_rng(seed).integers(0, 2**bits, (side // 4, side // 4, channels), dtype=f"uint{bits}")
    return images.resize(coarse, (side, side), "bicubic")


def write_tiff(path: Path, array: images.Array) -> None:
    Image.fromarray(array[:, :, 0]).save(path.with_suffix(".tif"))


def write_npy(path: Path, array: images.Array) -> None:
    path.with_suffix(".npy").write_bytes(npy.encode(array))


KINDS = [
    pytest.param(16, 1, write_tiff, ".tif", ".png", id="16-bit grey TIFF"),
    pytest.param(8, 4, write_npy, ".npy", ".npy", id="4-channel array"),
    pytest.param(16, 5, write_npy, ".npy", ".npy", id="16-bit 5-channel array", marks=pytest.mark.nightly),
]


@pytest.mark.parametrize(("bits", "channels", "write", "given", "made"), KINDS)
def test_from_files_to_the_registered_model_and_back_to_files(
    bits: int,
    channels: int,
    write: Callable[[Path, images.Array], None],
    given: str,
    made: str,
    tmp_path: Path,
    ray_head: RayHead,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    photos = tmp_path / "photos"
    photos.mkdir()
    pictures = {f"p{index}": picture(index, bits, channels, side=32 if index == 0 else 40) for index in range(12)}
    for key, array in pictures.items():
        write(photos / key, array)
    stage = [{"name": "x2", "channels": channels, "training": TRAINING}]
    changes = [f"data.options.uri={photos}", f"data.bits={bits}", f"data.channels={channels}", f"stages={json.dumps(stage)}"]
    recipe = config.load(str(RECIPES / "tiny.yaml"), [*changes, "scaling.workers=1"])
    root, mlflow_uri = str(tmp_path / "root"), tracking.default_uri(str(tmp_path / "root"))
    place: dict[str, Any] = {"root": root, "mlflow_uri": mlflow_uri, "run_key": "k", "ray_address": ray_head.address}
    place["scaling"] = recipe.scaling.canonical_json()

    shards_uri, shards_sha256, parent = prepare.run(section=recipe.data.canonical_json(), recipe_name="tiny", **place)
    shards = ShardSet.open(shards_uri)
    split, index = next((split, shards.keys(split).index("p0")) for split in config.SPLITS if "p0" in shards.keys(split))
    assert np.array_equal(shards.image(split, index, 32), pictures["p0"])  # the level it has already

    handed = {"shards_uri": shards_uri, "shards_sha256": shards_sha256}
    bundle_uri, bundle_sha256 = train.run(section=recipe.stages[0].canonical_json(), mlflow_run_id=parent, **handed, **place)
    assert ModelBundle.load(bundle_uri).bits == bits
    assert f"uint{bits}" in ModelBundle.load(bundle_uri).manifest["normalisation"]

    bundles = json.dumps([{"uri": bundle_uri, "sha256": bundle_sha256}])
    judged = evaluate.run(section=recipe.evaluation.canonical_json(), bundles=bundles, mlflow_run_id=parent, **handed, **place)
    check_levels(EvalReport.open(judged.report_uri), shards, bits)

    handed = {"report_uri": judged.report_uri, "report_sha256": judged.report_sha256}
    result = export.run(section=recipe.export.canonical_json(), bundles=bundles, mlflow_run_id=parent, **handed, **place)
    version = tracking.client(mlflow_uri).get_model_version("tiny", result.version)
    assert version.tags["sr3.verified"] == "true"  # a fresh process gave it an image of this depth and got one back
    assert Cascade.load(version.tags["sr3.bundle_uri"]).manifest["bits"] == bits

    (large,) = upscale.run([str(photos / f"p1{given}")], f"{tmp_path}/out/", model=version.tags["sr3.bundle_uri"])
    assert large.endswith(f"p1{made}")
    found = images.decode(storage.read_bytes(large), channels=channels, bits=bits)
    assert (found.shape, found.dtype) == ((80, 80, channels), np.dtype(f"uint{bits}"))
    model = upscale.find_model(version.tags["sr3.bundle_uri"])
    assert np.array_equal(model.upscale(pictures["p1"]), found)  # what is computed is what is written
    if bits == 16:
        assert (found % 257 != 0).any()  # not 8 bits made larger


def check_levels(done: EvalReport, shards: ShardSet, bits: int) -> None:
    """Bicubic's PSNR is that of the stored images at their own depth; the pictures are what a screen shows."""
    rows = pyarrow.parquet.read_table(storage.local_path(storage.join(done.uri, report.TABLE))).to_pylist()
    key, measured = next((row["key"], row["value"]) for row in rows if (row["model"], row["metric"]) == ("bicubic", "psnr_rgb"))
    index = shards.keys("test").index(key)
    low, high = (shards.image("test", index, level) for level in (16, 32))
    assert measured == pytest.approx(images.psnr(images.resize(low, (32, 32), "bicubic"), high), abs=1e-3)
    assert len(done.results(model=report.OURS)) >= 3
    page = storage.read_bytes(done.page_uri).decode()
    assert "data:image/png" in page
