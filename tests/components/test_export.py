"""The export room with a real MLflow: the gate, the registered model that a stranger can load, the alias, a server that is down."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from components.export import card, main, registry
from components.export.__main__ import main as command
from sr3_core import config, images, plugins, tracking, upscale
from sr3_core.artifacts import report
from sr3_core.artifacts.bundle import ModelBundle, lineage
from sr3_core.errors import BadInput, Failed
from tests.conftest import RECIPES, REPOSITORY, free_port

SHARDS = "a" * 64
RESULTS = (("ours", 20.0), ("bicubic", 18.5))
LOAD = """
import importlib.util, json, os, sys
sys.path[:] = [place for place in sys.path if os.path.realpath(place) != sys.argv[2]]  # where the development install points to
assert not [name for name in ("sr3_core", "components", "pipeline") if importlib.util.find_spec(name)], sys.path
import mlflow, numpy as np
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/pair@champion")
low = np.random.default_rng(0).integers(0, 256, (2, 9, 7, 3), dtype=np.uint8)
made = model.predict(low, params={"seed": 3})
listed = model.unwrap_python_model().predict(None, [low[0], low[1][:4]], {"seed": 3})
again = model.predict(low, params={"seed": 3, "steps": 1})
ours = {name: module.__file__ for name, module in sys.modules.items() if name.split(".")[0] in ("sr3_core", "components", "pipeline")}
print(json.dumps({
    "shape": made.shape, "dtype": str(made.dtype), "listed": [image.shape for image in listed], "steps_matter": bool((again != made).any()),
    "same": bool((listed[0] == made[0]).all()), "ours": ours, "path": sys.path,
}))
"""


def write_inputs(
    root: Path, *, passed: bool = True, name: str = "pair", images_seen: int = 160, recipe_name: str = "pair", **changes: Any
) -> dict[str, str]:
    """The tiny trained stages of a recipe and the report about them (``changes`` of it): the arguments of the room."""
    recipe = config.load(str(RECIPES / f"{recipe_name}.yaml"))
    entries: list[dict[str, str]] = []
    for stage in recipe.stages:
        objective = plugins.load("objectives", stage.objective.name).Objective(stage, {"residual_scale": 0.3})
        uri = str(root / "train" / stage.name / "0123" / "bundle")
        sha256 = ModelBundle.save(
            uri,
            stage=stage,
            network_state=objective.players()["denoiser"].state_dict(),
            measured={"residual_scale": 0.3},
            degradation="bicubic",
            lineage=lineage(shards_sha256=SHARDS, images_seen=images_seen, git_commit="0123abc"),
        )
        entries.append({"uri": uri, "sha256": sha256})
    rule = {"task": "x16", "metric": "psnr", "than": "bicubic", "limit": None, "better": "higher", "mean": 20.0, "n": 3}
    content: dict[str, Any] = {
        "title": "8 -> 32", "fingerprint": "0123", "split": "test", "degradation": "bicubic", "baselines": ["bicubic"], "variants": [],
        "shards": {"uri": str(root / "shards" / "0123"), "sha256": SHARDS},
        "bundles": [{"stage": stage.name, **entry} for stage, entry in zip(recipe.stages, entries, strict=True)],
        "tasks": [{"name": "x16", "label": "8 -> 16", "n": 3}],
        "metrics": [{"name": "psnr", "better": "higher"}],
        "results": [{"task": "x16", "model": model, "metric": "psnr", "mean": mean, "n": 3} for model, mean in RESULTS],
        "gains": [],
        "gate": [{**rule, "gain": 1.5 if passed else -1.5, "interval_low": 0.1, "interval_high": 2.0, "passed": passed}],
        "search": {},
        "sampling": {"x16": {"steps": 3}, "x32": {}},
        "notes": {"x16": ["waived as published: 1000 steps"], "x32": []},
        **changes,
    }  # fmt: skip
    rows = [report.Measurement("test", "x16", "ours", "key", "photo", "psnr", 20.0)]
    written = report.publish(str(root / "eval" / ("passed" if passed else "failed")), content, rows, page="<p>report</p>")
    section = recipe.export.model_copy(update={"model": name})
    return {
        "section": section.canonical_json(),
        "report_uri": written.uri,
        "report_sha256": written.manifest_sha256,
        "bundles": json.dumps(entries),
        "root": str(root),
        "run_key": "key",
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export root")


@pytest.fixture(scope="module")
def uri(root: Path) -> str:
    return tracking.default_uri(str(root))


@pytest.fixture(scope="module")
def exported(root: Path, uri: str) -> Iterator[tuple[main.ExportResult, str]]:
    """The room run once under a parent run: its result and the parent's id."""
    before = Path.cwd()
    (root / "work").mkdir()
    os.chdir(root / "work")
    parent = tracking.open_parent(uri, "key", "pair")
    yield main.run(**write_inputs(root), mlflow_uri=uri, mlflow_run_id=parent), parent
    os.chdir(before)


def model_folder(uri: str) -> Path:
    models = Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts" / "models"
    (folder,) = models.iterdir()
    return folder / "artifacts"


def test_it_registers_a_version_with_alias_card_and_tags(exported: tuple[main.ExportResult, str], uri: str, root: Path) -> None:
    result, parent = exported
    assert result == ("models:/pair/1", "1")
    version = tracking.client(uri).get_model_version_by_alias("pair", "champion")
    assert str(version.version) == "1"
    assert version.tags["metric.x16/psnr"] == "20"
    assert version.tags["sr3.shards_sha256"] == SHARDS
    assert version.tags["sr3.git_commit"] == "0123abc"
    assert all(text in version.description for text in ("8 -> 16 -> 32", "n = 3", SHARDS, "licence", "models:/pair@champion", "Limits"))
    assert "- x16: waived as published: 1000 steps" in version.description
    assert tracking.client(uri).get_run(parent).info.status == "FINISHED"
    bundle = Path(version.tags["sr3.bundle_uri"])
    assert bundle.parent.parent == root / "export"
    assert sorted(path.name for path in bundle.iterdir()) == ["card.md", "cascade.json", "metrics.json", "stages"]
    chosen = json.loads((bundle / "stages" / "x16" / "bundle.json").read_text())["sampling"]
    assert (chosen["steps"], chosen["sampler"]) == (3, "ddim")


def test_a_stranger_loads_the_champion_without_the_repository(exported: tuple[main.ExportResult, str], uri: str, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", LOAD, uri, os.path.realpath(REPOSITORY)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout.strip().splitlines()[-1])
    assert (loaded["shape"], loaded["dtype"]) == ([2, 36, 28, 3], "uint8")
    assert loaded["listed"] == [[36, 28, 3], [16, 28, 3]]
    assert loaded["same"]
    assert loaded["steps_matter"]
    assert loaded["ours"]
    code = model_folder(uri) / "code"
    assert all(name.split(".")[0] == "sr3_core" and Path(file).is_relative_to(code) for name, file in loaded["ours"].items())
    third_party = {name for file in loaded["ours"].values() for name in imported_at_load(Path(file))} - set(sys.stdlib_module_names)
    packages = {"PIL": "pillow", "yaml": "pyyaml"}
    missing = {packages.get(name, name) for name in third_party} - {*registry.REQUIREMENTS, "sr3_core"}
    assert not missing, "the model's requirements must name what its code imports"


def imported_at_load(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    named = [alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names]
    return {
        name.split(".")[0] for name in [*named, *(node.module for node in tree.body if isinstance(node, ast.ImportFrom) and node.module)]
    }


def test_the_model_holds_no_pickle_and_only_code_of_ours(exported: tuple[main.ExportResult, str], uri: str) -> None:
    names = [path.name for path in model_folder(uri).rglob("*") if path.is_file()]
    assert "model.safetensors" in names
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".pt", ".pth", ".jpg"))]
    requirements = (model_folder(uri) / "requirements.txt").read_text().split()
    assert all("==" in line and "+" not in line for line in requirements)


def test_a_second_run_is_up_to_date(
    exported: tuple[main.ExportResult, str], root: Path, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    parent = tracking.open_parent(uri, "again", "pair")
    assert main.run(**write_inputs(root), mlflow_uri=uri, mlflow_run_id=parent) == exported[0]
    said = capsys.readouterr().out
    assert "up to date: models:/pair/1" in said
    assert len(tracking.client(uri).search_model_versions("name = 'pair'")) == 1
    assert tracking.client(uri).get_run(parent).info.status == "FINISHED"


def test_a_missing_alias_is_set_and_a_rollback_is_respected(exported: tuple[main.ExportResult, str], uri: str, root: Path) -> None:
    client = tracking.client(uri)
    client.delete_registered_model_alias("pair", "champion")
    registry.move_alias(uri, "pair", "champion", "1")
    assert str(client.get_model_version_by_alias("pair", "champion").version) == "1"
    client.create_registered_model("rolled")
    for _ in range(2):
        registry.move_alias(uri, "rolled", "champion", str(client.create_model_version("rolled", source=str(root)).version))
    assert str(client.get_model_version_by_alias("rolled", "champion").version) == "2"
    client.set_registered_model_alias("rolled", "champion", "1")
    registry.move_alias(uri, "rolled", "champion", "2")
    assert str(client.get_model_version_by_alias("rolled", "champion").version) == "1"
    client.delete_registered_model("rolled")


def test_sr3_upscale_finds_the_champion(
    exported: tuple[main.ExportResult, str], uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes(images.encode(np.full((9, 7, 3), 99, np.uint8)))
    upscale.run([str(photo)], str(tmp_path / "a.png"), mlflow_uri=uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    upscale.run([str(photo)], str(tmp_path / "b.png"))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert images.decode((tmp_path / "a.png").read_bytes()).shape == (36, 28, 3)
    assert "models:/pair@champion" in capsys.readouterr().out


def test_a_named_model_is_looked_up_at_each_place_in_turn(
    exported: tuple[main.ExportResult, str], root: Path, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tracking.default_uri(str(tmp_path))
    tracking.client(other).create_registered_model("pair")  # the name alone, without version or alias
    for model in ("models:/pair@champion", "models:/pair/1"):
        assert upscale.find_model(model, mlflow_uri=other, root=str(root)).scale == 4
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert upscale.find_model("models:/pair@champion", mlflow_uri=other, root=str(tmp_path / "none")).scale == 4
    for model in ("models:/nobody@champion", "models:/pair@nobody", "models:/pair/9", "models:/pair"):
        with pytest.raises(BadInput) as refused:
            upscale.find_model(model, mlflow_uri=other, root=str(tmp_path / "none"))
        line = str(refused.value)
        assert all(text in line for text in (f"no {model} ", other, uri, f"{tmp_path}/none/mlflow.db"))
    assert not (tmp_path / "none").exists()


NOTHING: dict[str, Any] = {"tasks": [], "metrics": [], "results": [], "gate": [], "notes": {}}
GIVEN = {"grid": "given", "gammas": [0.001, 0.1, 0.5, 0.9], "steps": 4, "start": None, "end": None}  # as many steps as levels: not fewer
NOTE = "4 images of seed 0, 0.100 s each. Nothing is compared"


@pytest.mark.parametrize(
    ("name", "side", "sampling", "says"),
    [
        ("base", 16, GIVEN, ("Images of 16 x 16 pixels from noise (noise -> 16 pixels)", "## Not measured")),
        (
            "noise",
            32,
            {"steps": 2},
            ("Images of 32 x 32 pixels from noise (noise -> 16 -> 32 pixels)", "sr3 upscale photo.jpg -o big.png --stage x32"),
        ),
    ],
)
def test_a_model_that_starts_from_noise_takes_seeds(
    name: str,
    side: int,
    sampling: dict[str, Any],
    says: tuple[str, ...],
    exported: tuple[main.ExportResult, str],
    root: Path,
    uri: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import mlflow

    made = {"name": "base", "label": "base noise -> 16", "n": 4, "seconds": 0.1, "note": NOTE}
    inputs = write_inputs(root / name, name=name, recipe_name=name, **NOTHING, generated=[made], sampling={"base": sampling})
    assert main.run(**{**inputs, "root": str(root)}, mlflow_uri=uri).model_uri == f"models:/{name}/1"
    version = tracking.client(uri).get_model_version_by_alias(name, "champion")
    assert all(text in version.description for text in (*says, NOTE, "| noise -> 16 |", "sr3 sample -o samples/ -n 4", "np.arange(4)"))
    assert "Input: 8-bit" not in version.description and version.tags["metric.base/seconds"] == "0.1"
    monkeypatch.setattr(sys, "path", [*sys.path])  # the model's own code goes there
    with tracking.current(uri):
        model = mlflow.pyfunc.load_model(f"models:/{name}@champion")
    assert str(model.metadata.signature.inputs) == "[Tensor('int64', (-1,))]"
    drawn = model.predict(np.array([5, 6]))
    assert (drawn.shape, drawn.dtype) == ((2, side, side, 3), np.uint8)
    assert np.array_equal(drawn[1], upscale.find_model(f"models:/{name}/1", mlflow_uri=uri).sample(seed=6)), "as sr3 sample --seed 6"
    unwrapped = model.unwrap_python_model()
    assert np.array_equal(unwrapped.predict(None, np.array([[5], [6]])), drawn)
    if "gammas" in sampling:
        with pytest.raises(BadInput, match="4 gammas are 4 steps, not 1"):
            model.predict(np.array([5, 6]), params={"steps": 1})
    else:
        assert not np.array_equal(model.predict(np.array([5, 6]), params={"steps": 1}), drawn)
    for wrong in (np.array([0.5]), np.array([[1, 2]]), np.array([], np.int64), np.array([3, -1])):
        with pytest.raises(BadInput, match=r"seeds? (of|-1)"):
            unwrapped.predict(None, wrong)
    tracking.client(uri).delete_registered_model(name)  # one champion is found unnamed


@pytest.mark.parametrize(
    ("labelled", "line", "call"),
    [
        (("x16",), "sr3 upscale photo.jpg -o big.png --label 0", 'model.predict(images, params={"seed": 0, "label": 0})'),
        ((), "sr3 upscale photo.jpg -o big.png", 'model.predict(images, params={"seed": 0})'),
    ],
)
def test_the_card_of_a_model_with_labels_says_how_they_are_given(labelled: tuple[str, ...], line: str, call: str, tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path)
    changes = [f"stages.{name}.model.options={{channels: 8, multipliers: [1], blocks: 1, labels: 7}}" for name in labelled]
    stages = config.load(str(RECIPES / "pair.yaml"), changes).stages
    manifests = [ModelBundle.load(entry["uri"]).manifest for entry in json.loads(inputs["bundles"])]
    text = card.write(
        section=config.parse(config.Export, inputs["section"]), report=report.EvalReport.open(inputs["report_uri"]), stages=stages,
        manifests=manifests, data={}, mlflow_uri="http://mlflow:5000",
    )  # fmt: skip
    assert f"{line} --model models:/pair@champion" in text and call in text
    assert ("- Label: the class of the images, 0 .. 6, as the data counts them." in text) == bool(labelled)


def test_a_failed_gate_registers_nothing(exported: tuple[main.ExportResult, str], root: Path, uri: str) -> None:
    inputs = write_inputs(root, passed=False, name="refused")
    with pytest.raises(Failed) as failed:
        main.run(**inputs, mlflow_uri=uri)
    line = str(failed.value)
    assert all(text in line for text in ("x16 psnr", "bicubic", "-1.5", "n = 3", "nothing registered", inputs["report_uri"]))
    assert "refused" not in [model.name for model in tracking.client(uri).search_registered_models()]
    assert Path(inputs["report_uri"], "report.html").exists()


def test_a_server_that_is_down_keeps_the_bundle_and_says_how_to_repeat(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path)
    with pytest.raises(Failed) as failed:
        main.run(**inputs, mlflow_uri=f"http://127.0.0.1:{free_port()}", mlflow_run_id="0123")
    line = str(failed.value)
    assert "Connection refused" in line
    assert "python -m components.export --section" in line
    assert list(tmp_path.glob("export/*/bundle/cascade.json"))


def test_a_version_that_does_not_load_never_gets_the_alias(exported: tuple[main.ExportResult, str], uri: str, tmp_path: Path) -> None:
    client = tracking.client(uri)
    client.create_registered_model("broken")
    version = client.create_model_version("broken", source=str(tmp_path))
    with pytest.raises(Failed, match="alias was not moved"):
        registry.verify(uri, "broken", str(version.version), interface=registry.Interface(channels=3, scale=4, side=None))
    client.delete_registered_model("broken")


def test_inputs_that_changed_on_the_way_are_refused(root: Path, uri: str) -> None:
    inputs = write_inputs(root)
    with pytest.raises(BadInput, match="report"):
        main.run(**{**inputs, "report_sha256": "0" * 64}, mlflow_uri=uri)
    entries = [{**entry, "sha256": "0" * 64} for entry in json.loads(inputs["bundles"])]
    with pytest.raises(BadInput, match="bundle"):
        main.run(**{**inputs, "bundles": json.dumps(entries)}, mlflow_uri=uri)
    first, second = json.loads(inputs["bundles"])
    crossed = [{**first, "uri": second["uri"]}, {**second, "uri": first["uri"]}]
    with pytest.raises(BadInput, match=r"the bundle at .* is not the one"):
        main.run(**{**inputs, "section": other_model(inputs), "bundles": json.dumps(crossed)}, mlflow_uri=uri)


def other_model(inputs: dict[str, str]) -> str:
    """The section with another model's name, whose bundle nobody has written yet."""
    return json.dumps({**json.loads(inputs["section"]), "model": "another"})


def test_bundles_that_were_not_evaluated_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    """The gate speaks for the bundles in its report alone: a better report does not let another bundle through."""
    inputs = write_inputs(tmp_path)
    first, second = json.loads(inputs["bundles"])
    retrained = write_inputs(tmp_path / "again", images_seen=320)
    (other, _) = json.loads(retrained["bundles"])
    assert other["sha256"] != first["sha256"]
    before = sorted(tmp_path.rglob("*"))
    for wrong in ([other, second], [second, first], [first], [first, second, second], []):
        with pytest.raises(BadInput, match="those of the report"):
            main.run(**{**inputs, "bundles": json.dumps(wrong)}, mlflow_uri=f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(BadInput, match="JSON list"):
        main.run(**{**inputs, "bundles": "[1]"}, mlflow_uri=f"sqlite:///{tmp_path}/mlflow.db")
    assert sorted(tmp_path.rglob("*")) == before


def test_the_command_of_the_help_works_with_relative_paths(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "sr3-runs")
    entries = [{**entry, "uri": os.path.relpath(entry["uri"], tmp_path)} for entry in json.loads(inputs["bundles"])]
    report_uri = os.path.relpath(inputs["report_uri"], tmp_path)
    given = ["--section", '{"model": "my-model"}', "--report-uri", report_uri, "--report-sha256", inputs["report_sha256"]]
    done = alone(*given, "--bundles", json.dumps(entries), "--root", "sr3-runs", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "models:/my-model/1" in done.stdout.splitlines()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sr3-runs"]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["--bundles", "[{'uri'"], "a JSON list"),
        (["--bundles", '["bundle"]'], "a JSON list"),
        (["--bundles", "[]", "--root", "memory://runs"], "no MLflow URI with the remote root"),
        (["--bundles", "[]", "--report-uri", ""], "an empty location"),
    ],
)
def test_the_command_refuses_in_one_line(given: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ended = CliRunner().invoke(command, ["--section", "{}", "--report-uri", "nowhere", *given])
    assert ended.exit_code == 2
    assert line in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_root_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be written"):
        main.run(**{**inputs, "root": str(tmp_path / "file")}, mlflow_uri=f"sqlite:///{tmp_path}/mlflow.db")


def alone(*arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "components.export", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def test_the_room_alone(exported: tuple[main.ExportResult, str], root: Path, uri: str, tmp_path: Path) -> None:
    inputs = write_inputs(root, passed=False)
    arguments = [part for name, value in inputs.items() for part in (f"--{name.replace('_', '-')}", value)]
    done = alone(*arguments, "--mlflow-uri", uri, cwd=REPOSITORY)
    assert done.returncode == 1, done.stderr
    assert "gate failed" in done.stdout
    assert json.loads((root / "runs" / "key" / "export.error.json").read_text())["exit"] == 1
    assert "--report-uri" in alone("--help", cwd=tmp_path).stdout
