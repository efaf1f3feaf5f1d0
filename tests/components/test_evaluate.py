"""The evaluate room on generated photos with a tiny family: what is computed, counted, chosen, judged, reported, and repeated."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from click.testing import CliRunner

from components import cluster
from components.evaluate import main, plan, work
from components.evaluate.__main__ import main as command
from components.evaluate.plan import Job
from sr3_core import config, images, storage
from sr3_core.artifacts import report
from sr3_core.artifacts.report import EvalReport
from sr3_core.artifacts.shardset import ShardSet
from sr3_core.config import Evaluation, Scaling
from sr3_core.errors import BadInput, Failed
from tests.components import evaluation as small
from tests.components.evaluation import World
from tests.conftest import REPOSITORY, RayHead


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return small.make(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def done(world: World, tmp_path_factory: pytest.TempPathFactory) -> EvalReport:
    return evaluated(world, world.evaluation(), tmp_path_factory.mktemp("eval"))


def prepared(world: World, evaluation: Evaluation, folder: Path) -> Any:
    stages = [main.stage_of(*bundle) for bundle in world.bundles]
    return main.Evaluating(evaluation, stages, world.bundles, world.shards, folder=str(folder), fingerprint="test")


def evaluated(world: World, evaluation: Evaluation, folder: Path, mapper: Any = small.in_process) -> EvalReport:
    work_in_hand = prepared(world, evaluation, folder)
    return work_in_hand.publish(work_in_hand.measure(mapper, threads=1, device="cpu"))


def result(of: EvalReport, task: str, metric: str, model: str = report.OURS) -> dict[str, Any]:
    return next(row for row in of.results(model=model) if (row["task"], row["metric"]) == (task, metric))


def test_stages_and_cascade_each_with_their_own_n(world: World, done: EvalReport) -> None:
    counted = {task["name"]: (task["n"], task["left_out"]) for task in done.content["tasks"]}
    whole, total = world.shards.count("test", 64), world.shards.count("test")
    assert 0 < whole < total
    assert counted == {"x32": (total, 0), "x64": (whole, total - whole), "cascade": (whole, total - whole)}
    for task, (n, _) in counted.items():
        for model in ("ours", "not sharpened", "bicubic", "nearest"):
            assert result(done, task, "psnr_rgb", model)["n"] == n


def test_the_search_takes_the_best_on_the_validation_photos(world: World, done: EvalReport) -> None:
    assert done.sampling == {"x32": {"steps": 1}, "x64": {"steps": 1}}
    search = done.content["search"]["x32"]
    assert (search["split"], search["n"]) == ("val", world.shards.count("val", 32))
    best = max(search["candidates"], key=lambda candidate: candidate["mean"])
    assert best["chosen"]
    assert best["sampling"] == {"steps": 1}


def test_the_report_carries_what_the_objective_says_of_the_sampling_that_was_used(done: EvalReport) -> None:
    """Of the chosen sampling and of the variants, not of the candidates that were not taken; on the page too."""
    assert done.notes() == [f"{stage}: sharpened {steps} times" for stage in ("x32", "x64") for steps in (1, 0)]
    page = storage.read_bytes(done.page_uri).decode()
    assert "<b>x64</b>sharpened 1 times" in page and "sharpened 3 times" not in page


def test_a_stage_starts_from_its_true_low_image_and_the_cascade_from_its_own(done: EvalReport) -> None:
    assert result(done, "cascade", "psnr_rgb")["mean"] < result(done, "x64", "psnr_rgb")["mean"]
    tasks = {task["name"]: (task["low"], task["high"], task["scale"]) for task in done.content["tasks"]}
    assert tasks == {"x32": (16, 32, 2), "x64": (32, 64, 2), "cascade": (16, 64, 4)}
    borders = next(metric["border"] for metric in done.content["metrics"] if metric["name"] == "psnr_y")
    assert borders == {"x32": 2, "x64": 2, "cascade": 4}


def test_not_sharpened_is_bicubic_exactly(done: EvalReport) -> None:
    for metric in ("psnr_rgb", "ssim", "consistency"):
        for task in ("x32", "x64"):
            assert result(done, task, metric, "not sharpened")["mean"] == pytest.approx(result(done, task, metric, "bicubic")["mean"])


def test_gains_and_gate_are_paired_by_photo(done: EvalReport) -> None:
    rows = pyarrow.parquet.read_table(storage.local_path(storage.join(done.uri, report.TABLE))).to_pylist()
    values = {
        (row["model"], row["key"]): row["value"]
        for row in rows
        if (row["split"], row["task"], row["metric"]) == ("test", "x64", "psnr_rgb")
    }
    keys = [key for model, key in values if model == "ours"]
    by_hand = sum(values["ours", key] - values["bicubic", key] for key in keys) / len(keys)
    gain = next(row for row in done.content["gains"] if (row["task"], row["metric"], row["than"]) == ("x64", "psnr_rgb", "bicubic"))
    assert gain["mean"] == pytest.approx(by_hand)
    assert gain["interval_low"] <= gain["mean"] <= gain["interval_high"]
    verdict = next(row for row in done.content["gate"] if (row["task"], row["metric"]) == ("x64", "psnr_rgb"))
    assert verdict["passed"] == (by_hand > 0)
    assert verdict["n"] == len(keys)
    limits = [row["metric"] for row in done.content["gate"] if row["limit"] is not None and row["task"] == "cascade"]
    assert limits == ["colour_bias_red", "colour_bias_green", "colour_bias_blue"]


def test_a_rule_that_does_not_hold_fails_the_gate(world: World, tmp_path: Path) -> None:
    found = evaluated(world, world.evaluation(gate=[{"metric": "psnr_rgb", "limit": 99.0}], search=None, variants={}), tmp_path)
    assert not found.passed
    assert len(found.failures()) == 3
    assert found.sampling == {"x32": {"steps": 3}, "x64": {"steps": 3}}  # the bundle's own


def test_no_image_is_sampled_twice(world: World, tmp_path: Path) -> None:
    seen: list[Job] = []

    def counting(jobs: Sequence[Job], on_done: Any) -> Any:
        seen.extend(jobs)
        costs = [job.cost for job in jobs]
        assert costs == sorted(costs, reverse=True)
        return small.in_process(jobs, on_done)

    evaluated(world, world.evaluation(), tmp_path, counting)
    sampled = [
        (job.photo.key, stage, job.sampling) for job in seen if job.sampling for stage in range(job.tasks[0].first, job.tasks[-1].stop)
    ]
    true_low = [(job.photo.key, job.tasks[0].first, job.sampling) for job in seen if job.sampling]
    assert len(set(true_low)) == len(true_low)
    whole, both = world.shards.count("test", 64), world.shards.count("test")
    ours_and_variant = 2 * (both + 2 * whole)  # x32 of all, its continuation to x64, x64 from the true low image
    searched = 3 * (world.shards.count("val", 32) + world.shards.count("val", 64))
    assert len(sampled) == ours_and_variant + searched


def test_a_broken_off_run_goes_on_and_ends_alike(world: World, done: EvalReport, tmp_path: Path) -> None:
    count = 0

    def breaking(jobs: Sequence[Job], on_done: Any) -> Any:
        nonlocal count
        for job in jobs:
            work.run(job)
            count += 1
            if count == 10:
                raise KeyboardInterrupt
        raise AssertionError("it should have been broken off")

    with pytest.raises(KeyboardInterrupt):
        evaluated(world, world.evaluation(), tmp_path, breaking)
    assert not storage.exists(str(tmp_path / report.MANIFEST))
    again: list[Job] = []

    def rest(jobs: Sequence[Job], on_done: Any) -> Any:
        again.extend(jobs)
        return small.in_process(jobs, on_done)

    second = evaluated(world, world.evaluation(), tmp_path, rest)
    every = len(plan.baseline_jobs(**jobs_of(world, tmp_path))) + searches(world) + models(world)
    assert len(again) == every - 10
    assert second.content["results"] == done.content["results"]
    assert not (tmp_path / work.PARTS).exists()


def jobs_of(world: World, folder: Path) -> dict[str, Any]:
    ready = prepared(world, world.evaluation(), folder)
    setting = plan.Setting(str(folder), world.shards.uri, world.bundles, 3, 8, "bicubic", 0, 1, "cpu")
    return {"setting": setting, "every_task": ready.tasks, "found": ready.photos, "evaluation": ready.evaluation}


def searches(world: World) -> int:
    return 3 * (world.shards.count("val", 32) + world.shards.count("val", 64))


def models(world: World) -> int:
    return 2 * (world.shards.count("test") + world.shards.count("test", 64))


def test_pictures_are_kept_for_the_first_images_of_each_task(done: EvalReport) -> None:
    names = sorted(path.name for path in storage.local_path(storage.join(done.uri, report.PICTURES, "cascade")).iterdir())
    assert len(names) == 4 * plan.NUM_PICTURED
    text = storage.read_bytes(done.page_uri).decode()
    assert text.count('class="sample"') == 3 * plan.NUM_PICTURED


def test_a_cascade_from_noise_is_judged_where_it_can_be_and_shown(world: World, tmp_path: Path) -> None:
    """The stage above the base as ever; base and chain by pictures, with the base's own sampling: neither candidates nor variants."""
    noisy = small.from_noise(world, tmp_path / "bundles", highs=(16, 32))
    found = evaluated(noisy, world.evaluation(), tmp_path / "eval")
    assert found.passed and found.content["title"] == "noise -> 16 -> 32"
    assert [task["name"] for task in found.content["tasks"]] == ["x32"] == list(found.content["search"])
    assert found.sampling == {"x16": {"steps": 3}, "x32": {"steps": 1}}
    assert {note for note in found.notes() if note.startswith("x16")} == {"x16: sharpened 3 times"}
    base, chain = found.content["generated"]
    assert [(made["label"], made["n"], made["high"]) for made in (base, chain)] == [
        ("x16 noise -> 16", plan.NUM_PICTURED, 16), ("cascade noise -> 32", plan.NUM_PICTURED, 32),
    ]  # fmt: skip
    assert 0 < base["seconds"] < chain["seconds"] and "Nothing is compared" in base["note"]
    assert {row["task"] for row in found.content["results"]} == {"x32"} == {verdict["task"] for verdict in found.content["gate"]}
    levels: list[float] = []
    for small_one, large_one in zip(base["pictures"], chain["pictures"], strict=True):
        shown = [images.decode(storage.read_bytes(storage.join(found.uri, report.PICTURES, name))) for name in (small_one, large_one)]
        assert [picture.shape for picture in shown] == [(16, 16, 3), (32, 32, 3)]
        assert abs(float(shown[0].mean()) - float(shown[1].mean())) < 1, "the chain goes on from the base's own image"
        levels.append(float(shown[0].mean()))
    assert len(set(levels)) == plan.NUM_PICTURED
    text = storage.read_bytes(found.page_uri).decode()
    assert text.count('class="sample"') == plan.NUM_PICTURED + 2 and "From noise" in text
    again = evaluated(noisy, world.evaluation(seed=1), tmp_path / "again")
    first = [storage.read_bytes(storage.join(of.uri, report.PICTURES, of.content["generated"][0]["pictures"][0])) for of in (found, again)]
    assert first[0] != first[1], "the draws are those of evaluation.seed"


def test_an_unconditional_stage_alone_is_shown_and_compared_with_nothing(world: World, tmp_path: Path) -> None:
    nothing = {"metrics": [], "search": None, "gate": []}
    lone = small.from_noise(world, tmp_path / "bundles", highs=(64,))
    found = evaluated(lone, world.evaluation(**nothing), tmp_path / "eval")
    assert found.passed and found.content["tasks"] == found.content["results"] == []
    assert found.table().startswith("x64 noise -> 64: ") and len(found.table().splitlines()) == 1
    assert found.metrics()["x64/n"] == plan.NUM_PICTURED and found.metrics()["x64/seconds"] > 0
    rows = pyarrow.parquet.read_table(storage.local_path(storage.join(found.uri, report.TABLE))).to_pylist()
    assert {(row["split"], row["metric"]) for row in rows} == {(report.NOISE, report.SECONDS)} and len(rows) == plan.NUM_PICTURED
    search = {"metric": "psnr_rgb", "candidates": [{"steps": 1}, {"steps": 2}]}
    for asked, line in (({"search": search}, "no stage with a low image"), ({"gate": [{"metric": "psnr", "limit": 1}]}, "no stage with")):
        with pytest.raises(BadInput, match=line):
            prepared(lone, world.evaluation(**{**nothing, "metrics": ["psnr"], **asked}), tmp_path)
    with pytest.raises(BadInput, match="psnr"):
        prepared(lone, world.evaluation(**{**nothing, "metrics": ["psnrr"]}), tmp_path)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"metrics": ["psnrr"]}, "psnr"),
        ({"gate": [{"metric": "lpipss", "limit": 1}]}, "metric 'lpipss'"),
        ({"gate": [{"metric": "ssim", "than": "lanczos"}]}, "than='lanczos'"),
        ({"baselines": ["bicubik"], "gate": []}, "bicubic"),
        ({"variants": {"bicubic": {}}}, "variant 'bicubic'"),
        ({"search": {"metric": "psnr", "candidates": [{}]}}, "single value"),
        ({"search": {"metric": "ssim", "split": "test", "candidates": [{}]}}, "also judged"),
        ({"metrics": ["psnr", "psnr"]}, "two metrics"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(world: World, tmp_path: Path, changes: dict[str, Any], line: str) -> None:
    with pytest.raises(BadInput, match=line):
        prepared(world, world.evaluation(**changes), tmp_path).measure(no_work, threads=1, device="cpu")


def no_work(jobs: Sequence[Job], on_done: Any) -> Any:
    raise AssertionError("work was started")


def test_unknown_sampling_options_are_bad_input(world: World, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="stepps"):
        evaluated(world, world.evaluation(variants={"more": {"stepps": 4}}, search=None), tmp_path)


def test_a_model_that_gives_nan_stops_the_run(world: World, tmp_path: Path) -> None:  # sharpened beyond what a float holds
    with pytest.raises(Failed, match="NaN"):
        evaluated(world, world.evaluation(variants={"broken": {"steps": 400}}, search=None), tmp_path)


def arguments(world: World, root: Path, **changes: Any) -> dict[str, Any]:
    bundles = json.dumps([{"uri": uri, "sha256": sha256} for uri, sha256 in world.bundles])
    given = {
        "section": world.evaluation().canonical_json(),
        "scaling": Scaling(workers=2).canonical_json(),
        "shards_uri": world.shards.uri,
        "shards_sha256": world.shards.manifest_sha256,
        "bundles": bundles,
        "root": str(root),
        "mlflow_uri": f"sqlite:///{root}/mlflow.db",
        "run_key": "test",
    }
    return {**given, **changes}


def test_the_room_on_ray_is_up_to_date_the_second_time(
    world: World, done: EvalReport, ray_head: RayHead, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = main.run(**arguments(world, tmp_path, ray_address=ray_head.address))
    assert first.passed
    found = EvalReport.open(first.report_uri)
    assert found.content["results"] == done.content["results"]
    assert not (storage.local_path(first.report_uri) / "lease.json").exists()
    capfd.readouterr()
    second = main.run(**arguments(world, tmp_path, ray_address="127.0.0.1:1"))  # nobody is asked for work
    assert second == first
    assert "up to date" in capfd.readouterr().out
    run = logged(tmp_path)
    assert run.data.metrics["x64/psnr_rgb"] == pytest.approx(result(done, "x64", "psnr_rgb")["mean"])
    assert run.data.tags["sr3.gate"] == "passed" and run.data.tags["sr3.code"] == cluster.code_hash()
    assert {"evaluation.split", "scaling.workers", "shards"} <= run.data.params.keys()


def logged(root: Path) -> Any:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert len(runs) == 1
    return runs[0]


def test_inputs_that_are_not_those_handed_on_are_refused(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="prepare handed on"):
        main.run(**arguments(world, tmp_path, shards_sha256="0" * 64))
    other = json.dumps([{"uri": world.bundles[0][0], "sha256": "0" * 64}])
    with pytest.raises(BadInput, match="training handed on"):
        main.run(**arguments(world, tmp_path, bundles=other))
    with pytest.raises(BadInput, match="JSON list"):
        main.run(**arguments(world, tmp_path, bundles="[1]"))


def test_a_root_or_a_ray_that_cannot_be_used_is_refused_first(world: World, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no Ray at 127\.0\.0\.1:1"):
        main.run(**arguments(world, tmp_path, ray_address="127.0.0.1:1"))
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be written"):
        main.run(**arguments(world, tmp_path / "file", mlflow_uri=f"sqlite:///{tmp_path}/mlflow.db"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_changed_bundle_is_refused(world: World, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(world.bundles[0][0], copy)
    (copy / "model.safetensors").write_bytes(b"changed")
    with pytest.raises(BadInput, match=r"model\.safetensors"):
        main.stage_of(str(copy), world.bundles[0][1])


def test_a_split_without_the_levels_is_refused(world: World, tmp_path: Path) -> None:
    manifest = json.loads(json.dumps(world.shards.manifest))
    for shard in manifest["shards"]:
        for member in shard["members"]:
            member["levels"] = {level: place for level, place in member["levels"].items() if level == "16"}
    bare = World(ShardSet(world.shards.uri, manifest, "0" * 64), world.bundles, tmp_path)
    with pytest.raises(BadInput, match="no image of split test"):
        prepared(bare, world.evaluation(), tmp_path)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["--shards-uri", "nowhere"], "neither --recipe nor --section"),
        (["--recipe", "demoo", "--shards-uri", "nowhere"], "demo"),
        (["--recipe", "demo", "--shards-uri", "nowhere"], "ShardSet"),
        (["--section", '{"metrics": ["psnr"]}', "--shards-uri", "nowhere", "--shards-sha256", "0", "--bundles", "[{'uri'"], "JSON list"),
        (["--section", '{"metrics": ["psnr"], "metric": 1}', "--shards-uri", "nowhere"], "unknown key metric"),
    ],
)
def test_the_command_refuses_in_one_line(given: list[str], line: str, tmp_path: Path) -> None:
    ended = CliRunner().invoke(command, [*given, "--root", str(tmp_path)])
    assert ended.exit_code == 2
    assert line in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("named", ["--bundle", "--bundles"])
def test_paths_are_of_the_folder_the_command_is_given_in(named: str, world: World, tmp_path: Path) -> None:
    """The room works in another folder: it finds the bundles, and only the sha256 of the second, or the address, is wrong."""
    (uri, sha256), (last, _) = [(os.path.relpath(uri, tmp_path), sha256) for uri, sha256 in world.bundles]
    if named == "--bundles":
        given, line = [named, json.dumps([{"uri": uri, "sha256": sha256}, {"uri": last, "sha256": "0" * 64}])], "training handed on (0000"
    else:
        given, line = [named, uri, named, last, "--ray-address", "127.0.0.1:1"], "no Ray at 127.0.0.1:1"
    place = ["--shards-uri", os.path.relpath(world.shards.uri, tmp_path), "--root", "runs"]
    ended = subprocess.run(
        [sys.executable, "-m", "components.evaluate", "--section", world.evaluation().canonical_json(), *place, *given],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 2, ended.stderr
    assert line in ended.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_the_canonical_section_is_what_the_fingerprint_hashes(world: World) -> None:
    text = world.evaluation().canonical_json()
    assert config.parse(Evaluation, text) == world.evaluation()
