"""The train room started from a finished bundle: what it read is in the fingerprint and in the new bundle's lineage."""

from pathlib import Path
from typing import Any

import pytest

from components.train import main as room
from sr3_core import config, storage
from sr3_core.artifacts.bundle import ModelBundle, lineage
from sr3_core.config import Data
from sr3_core.data import shards as writer
from sr3_core.data.sources import folder as source
from sr3_core.errors import BadInput
from tests.conftest import write_photos
from tests.plugins.tiny_objective import Objective, stage

SMALL: dict[str, Any] = {"images": 12, "checkpoint_images": 12, "log_images": 12, "options": {"width": 4}}


def bundle(folder: Path, seed: int) -> str:
    of = stage(seed=seed, **SMALL)
    weights, made = Objective(of, {"mean": 0.0}).players()["net"].state_dict(), lineage(shards_sha256=None, images_seen=0, git_commit=None)
    return ModelBundle.save(str(folder), stage=of, network_state=weights, measured={"mean": 0.0}, degradation="bicubic", lineage=made)


def test_the_bundle_read_is_in_fingerprint_and_lineage(tmp_path: Path, ray_head: Any, capsys: pytest.CaptureFixture[str]) -> None:
    write_photos(tmp_path / "photos", 6)
    values = {"source": "folder", "options": {"uri": str(tmp_path / "photos")}, "levels": [4, 8], "split": {"val": 0.2, "test": 0.2}}
    examples = source.examples(source.Options(uri=str(tmp_path / "photos")))
    shards = writer.build(str(tmp_path / "shards"), config.parse(Data, values), examples, fingerprint="test")
    init = str(tmp_path / "init")
    sha256 = bundle(Path(init), seed=5)
    section = stage(**SMALL, init=init).canonical_json()

    def train() -> room.TrainResult:
        return room.run(
            section=section, scaling="{}", shards_uri=shards.uri, shards_sha256=shards.manifest_sha256, root=str(tmp_path / "root"),
            mlflow_uri=f"sqlite:///{tmp_path}/mlflow.db", run_key="test", ray_address=ray_head.address,
        )  # fmt: skip

    tuned = train()
    assert f"starting from the weights of {init} (manifest sha256 {sha256[:12]}" in capsys.readouterr().out
    made = ModelBundle.load(tuned.bundle_uri)
    assert made.manifest["lineage"]["init"] == {"uri": init, "sha256": sha256}
    assert f"started from the weights of {init}" in storage.read_bytes(f"{tuned.bundle_uri}/card.md").decode()
    assert train() == tuned and "up to date" in capsys.readouterr().out

    bundle(Path(init), seed=6)  # the same section, other weights behind it
    assert train().bundle_uri != tuned.bundle_uri
    storage.remove(init, recursive=True)
    with pytest.raises(BadInput, match=r"no bundle\.json in"):
        train()
