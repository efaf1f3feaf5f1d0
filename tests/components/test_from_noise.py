"""Recipes that start from noise, from files to ``sr3 sample``: an unconditional stage alone, and a chain of two that are told labels."""

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from components.evaluate import main as evaluate
from components.export import main as export
from components.prepare import main as prepare
from components.train import main as train
from pipeline import cli
from sr3_core import config, images, seeds, storage, tracking
from sr3_core.artifacts import report
from sr3_core.artifacts.bundle import ModelBundle
from sr3_core.artifacts.report import EvalReport
from sr3_core.artifacts.shardset import ShardSet
from sr3_core.cascade import stage_seeds
from sr3_core.config import Recipe
from sr3_core.errors import BadInput
from tests.conftest import RECIPES, RayHead

LABELLED = [
    "data.source=imagenet",
    *(f"stages.{name}.model.options.labels=3" for name in ("base", "x32")),
    *(f"stages.{name}.training.optimizer.learning_rate=0.02" for name in ("base", "x32")),  # a few steps tell the labels apart
    "stages.base.objective.options.label_dropout=0.25",
]


@dataclass(frozen=True)
class Made:
    """A finished run: its recipe, the ShardSet, the stages' bundles, the report, and where MLflow has the model."""

    recipe: Recipe
    shards: ShardSet
    bundles: list[tuple[str, str]]
    report: EvalReport
    mlflow_uri: str
    model: str

    def sr3(self, *arguments: str | Path) -> Result:
        """``sr3`` on the registered model."""
        return CliRunner().invoke(cli.main, [*map(str, arguments), "--model", self.model, "--mlflow-uri", self.mlflow_uri])

    def drawn(self, folder: Path, *arguments: str) -> list[images.Array]:
        """What ``sr3 sample`` writes into a new folder."""
        done = self.sr3("sample", "-o", f"{folder}/", *arguments)
        assert done.exit_code == 0, done.output
        return [images.decode(path.read_bytes()) for path in sorted(folder.iterdir())]

    def version(self) -> Any:
        _, name, version = self.model.split("/")
        return tracking.client(self.mlflow_uri).get_model_version(name, version)


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """The photos as ImageNet lays them out, in three classes."""
    folder = tmp_path_factory.mktemp("classes")
    for index, path in enumerate(sorted(photos.iterdir())):
        place = folder / "train" / f"class {index % 3}"
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place / path.name)
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def base(root: Path, photos: Path, ray_head: RayHead) -> Made:
    return made("base", [f"data.options.uri={photos}"], root, ray_head)


@pytest.fixture(scope="module")
def chain(root: Path, classes: Path, ray_head: RayHead) -> Made:
    return made("noise", [f"data.options.uri={classes}", *LABELLED], root, ray_head)


def made(name: str, changes: list[str], folder: Path, ray_head: RayHead) -> Made:
    """Every room, one after the other, as the pipeline calls them."""
    recipe = config.load(str(RECIPES / f"{name}.yaml"), changes)
    mlflow_uri = tracking.default_uri(str(folder))
    place: dict[str, Any] = {"root": str(folder), "mlflow_uri": mlflow_uri, "run_key": name, "ray_address": ray_head.address}
    place["scaling"] = recipe.scaling.canonical_json()
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        shards_uri, shards_sha256, parent = prepare.run(section=recipe.data.canonical_json(), recipe_name=name, **place)
        place["mlflow_run_id"] = parent
        handed = {"shards_uri": shards_uri, "shards_sha256": shards_sha256}
        bundles = [tuple(train.run(section=stage.canonical_json(), **handed, **place)) for stage in recipe.stages]
        place["bundles"] = json.dumps([{"uri": uri, "sha256": sha256} for uri, sha256 in bundles])
        judged = evaluate.run(section=recipe.evaluation.canonical_json(), **handed, **place)
        handed = {"report_uri": judged.report_uri, "report_sha256": judged.report_sha256}
        result = export.run(section=recipe.export.canonical_json(), **handed, **place)
    return Made(recipe, ShardSet.open(shards_uri), bundles, EvalReport.open(judged.report_uri), mlflow_uri, result.model_uri)


def test_an_unconditional_stage_alone_is_registered_as_a_model_of_seeds(base: Made, tmp_path: Path) -> None:
    version = base.version()
    assert version.tags["sr3.verified"] == "true" and "--label" not in version.description
    assert base.report.content["tasks"] == [] and [row["name"] for row in base.report.content["generated"]] == ["base"]
    registered = loaded(base)
    assert str(registered.metadata.signature.inputs) == "[Tensor('int64', (-1,))]"
    assert "label" not in str(registered.metadata.signature.params)
    first, again = (base.drawn(tmp_path / name, "--seed", "7", "-n", "2") for name in ("a", "b"))
    assert [picture.shape for picture in first] == [(16, 16, 3)] * 2
    assert np.array_equal(first, again) and not np.array_equal(first[0], first[1])
    assert np.array_equal(registered.predict(np.array([7]))[0], first[0])
    assert np.array_equal(base.drawn(tmp_path / "c", "-n", "4"), shown(base, "base"))
    assert not np.array_equal(base.drawn(tmp_path / "d", "--seed", "7", "--steps", "1")[0], first[0])


def test_a_chain_draws_by_label_what_its_report_shows(chain: Made, tmp_path: Path) -> None:
    base, both = chain.report.content["generated"]
    assert (base["name"], both["name"]) == ("base", report.CASCADE) and "of seed 0 and label 0, 1, 2, 0," in both["note"]
    assert "label 2, " in storage.read_bytes(chain.report.page_uri).decode()
    pictures = shown(chain, report.CASCADE)
    for label in range(3):
        drawn = chain.drawn(tmp_path / f"of {label}", "-n", "4", "--label", str(label))
        assert drawn[0].shape == (32, 32, 3)
        assert [np.array_equal(ours, theirs) for ours, theirs in zip(drawn, pictures, strict=True)] == [
            number % 3 == label for number in range(4)
        ]
    registered = loaded(chain)
    assert str(registered.metadata.signature.inputs) == "[Tensor('int64', (-1,))]"
    once = chain.drawn(tmp_path / "once", "--seed", "7", "--label", "1")[0]
    assert np.array_equal(registered.predict(np.array([7]), params={"label": 1})[0], once)
    assert all(text in chain.version().description for text in ("0 .. 2, as the data", "sr3 sample -o samples/ -n 4 --label 0"))


def test_evaluate_gives_each_image_its_own_label(chain: Made) -> None:
    """The picture of a held-out photo is what the stage makes of its low image and its label; another label makes another one."""
    task = next(row for row in chain.report.content["tasks"] if row["name"] == "x32")
    assert task["n"] == chain.shards.count("test") >= 3
    model, sampling = ModelBundle.load(chain.bundles[1][0]), chain.report.sampling["x32"]
    labels = [chain.shards.sample("test", index).label for index in range(3)]
    assert len(set(labels)) > 1
    for index, key in enumerate(chain.shards.keys("test")[:3]):
        low = torch.from_numpy(images.to_unit(chain.shards.image("test", index, 16)))[None]
        own = labels[index]
        (drawn,) = stage_seeds([seeds.from_key(key, chain.recipe.evaluation.seed)], 1)
        by_label = [
            images.from_unit(model.predict(low, seeds=[drawn], labels=torch.tensor([label]), **sampling)[0].numpy()) for label in range(3)
        ]
        kept = images.decode(storage.read_bytes(picture(chain, "x32", key)))
        assert [np.array_equal(kept, each) for each in by_label] == [label == own for label in range(3)]


def picture(of: Made, task: str, key: str) -> str:
    return storage.join(of.report.uri, report.PICTURES, report.picture_name(task, key, report.OURS))


def shown(of: Made, task: str) -> list[images.Array]:
    """The images from noise of the report."""
    return [images.decode(storage.read_bytes(picture(of, task, f"sample-{number}"))) for number in range(1, 5)]


def loaded(of: Made) -> Any:
    import mlflow

    with pytest.MonkeyPatch.context() as patched, tracking.current(of.mlflow_uri):
        patched.setattr(sys, "path", [*sys.path])  # the model's own code goes there
        return mlflow.pyfunc.load_model(of.model)


def test_a_label_is_asked_for_in_one_line(base: Made, chain: Made, tmp_path: Path) -> None:
    cases = [
        (chain, ("sample",), "trained with a label on every image; allowed: 0 .. 2"),
        (chain, ("sample", "--label", "3"), "label 3 for the model (base noise -> 16, x32 16 -> 32); allowed: 0 .. 2"),
        (base, ("sample", "--label", "0"), "trained without labels"),
    ]
    for model, given, line in cases:
        done = model.sr3(*given, "-o", tmp_path / "made.png")
        assert done.exit_code == 2 and done.stderr.count("\n") == 1 and line in done.stderr, done.output
    assert not list(tmp_path.iterdir())
    assert chain.sr3("sample", "--stage", "base", "-o", tmp_path / "made.png").exit_code == 0  # trained without a label now and then


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (["stages.x32.model.options.labels=2"], "label 2 of source imagenet, for stage x32 with 2 labels; allowed: 0 .. 1;"),
        (["data.source=folder"], "14 of 14 samples of source folder have no label, for stage base with 3 labels"),
        (["stages.base.model.options.labels=0"], "label_dropout 0.25 for a network without labels"),
    ],
)
def test_data_and_networks_that_do_not_agree_are_refused_before_prepare(
    changes: list[str], line: str, classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [word for change in (f"data.options.uri={classes}", *LABELLED, *changes) for word in ("--set", change)]
    done = CliRunner().invoke(cli.main, ["run", str(RECIPES / "noise.yaml"), *given])
    assert done.exit_code == 2 and done.stderr.count("\n") == 1 and line in done.stderr, done.output
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_rooms_refuse_them_too(chain: Made, tmp_path: Path) -> None:
    """Before a worker is started: a room may be run by itself, on a ShardSet that the recipe's source did not make."""
    stages = [
        config.load(str(RECIPES / "noise.yaml"), [*LABELLED, "stages.x32.model.options.labels=2"]).stages[1],
        config.load(str(RECIPES / "noise.yaml"), LABELLED).stages[1],
    ]
    place = {"shards_uri": chain.shards.uri, "shards_sha256": chain.shards.manifest_sha256, "root": str(tmp_path), "run_key": "k"}
    with pytest.raises(BadInput, match="label 2 of split train of"):
        train.run(section=stages[0].canonical_json(), scaling="{}", mlflow_uri=chain.mlflow_uri, ray_address="127.0.0.1:1", **place)
    given: dict[str, Any] = {"folder": str(tmp_path), "fingerprint": "test"}
    with pytest.raises(BadInput, match=r"label 2 of split (val|test) of"):
        evaluate.Evaluating(chain.recipe.evaluation, stages[:1], chain.bundles[1:], chain.shards, **given)
    evaluate.Evaluating(chain.recipe.evaluation, stages[1:], chain.bundles[1:], chain.shards, **given)
    assert not list(tmp_path.iterdir())
