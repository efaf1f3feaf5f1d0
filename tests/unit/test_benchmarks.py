"""The benchmarks that no one runs daily still run: the GPU command on the CPU, the scale model against what was published, goodput."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import gpu, scale_model, simulate


def rows_of(folder: Path, table: str) -> list[dict[str, str]]:
    with (folder / f"{table}.csv").open() as stream:
        return list(csv.DictReader(stream))


def test_the_gpu_command_measures_all_of_it_on_a_tiny_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With no time for a second batch size, which is named as left out."""
    rows: list[dict[str, Any]] = []
    recipes = ["paper_16_128"]
    gpu.everything("cpu", [], gpu.Clock(0), recipes=recipes, tiny=True, record=lambda table, **row: rows.append({"table": table, **row}))
    rows = json.loads(json.dumps(rows))  # as they are handed over
    gpu.write_tables(rows, tmp_path)
    assert gpu.verdict(rows, ended=True) == 0
    said = capsys.readouterr().out
    assert "goal 45%" in said and "CUDA graphs and copies ahead of use were not tried" in said
    checks = rows_of(tmp_path, "correctness")
    assert {(row["check"], row["figure"]) for row in checks} == {
        (check, figure) for check in gpu.LIMITS for figure in ("loss", "gradient_norm")
    }
    assert all(float(row["difference"]) > 0 for row in checks if "bfloat16" in row["check"])  # it did compute in another precision
    throughput = rows_of(tmp_path, "throughput")
    assert [(row["batch"], row["note"]) for row in throughput] == [("1", ""), ("2", "left out: no time")]
    assert float(throughput[0]["images_per_second"]) > 0 and float(throughput[0]["utilisation"]) > 0
    assert {row["precision"] for row in rows_of(tmp_path, "sampling")} == {"float32", "bfloat16"}
    assert 0 < sum(float(row["share"]) for row in rows_of(tmp_path, "kernels")) <= 1.001
    assert (tmp_path / "throughput.svg").stat().st_size and (tmp_path / "sampling.svg").stat().st_size


def test_a_check_that_fails_and_a_run_cut_off_end_with_status_1() -> None:
    passed = [{"table": "correctness", "check": check, "figure": figure, "value": 1.0, "other": 1.0, "difference": 0.0, "limit": 1.0,
               "passed": True} for check in gpu.LIMITS for figure in ("loss", "gradient_norm")]  # fmt: skip
    assert gpu.verdict(passed, ended=True) == 0
    assert gpu.verdict(passed, ended=False) == 1
    assert gpu.verdict(passed[1:], ended=True) == 1
    assert gpu.verdict([{**passed[0], "passed": False}, *passed[1:]], ended=True) == 1


def test_the_time_is_kept_by_ending_the_child(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--out", str(tmp_path), "--device", "cpu", "--dry-run", "--seconds", "0.2"]) == 1
    assert "the time was over" in capsys.readouterr().out
    assert rows_of(tmp_path, "throughput") == []


def test_the_published_cliff_is_predicted() -> None:
    """MosaicML's table, 128 devices at 256 px: 65.9 % of the images/s a device that 8 have, within .3 points."""
    rows = {(row["pixels"], row["devices"]): row for row in scale_model.mosaic()}
    cliff = rows[256, 128]
    assert cliff["published"] == pytest.approx(0.659, abs=0.001)
    assert cliff["predicted"] == pytest.approx(cliff["published"], abs=0.003)
    assert all(row["predicted"] == pytest.approx(1.0) for key, row in rows.items() if key != (256, 128))
    elsewhere = {(row["pixels"], row["devices"]): row["predicted"] for row in scale_model.mosaic(bandwidth=45e9)}
    assert abs(elsewhere[256, 128] - cliff["published"]) > 0.02  # the bandwidth matters


def test_a_step_by_hand() -> None:
    """10 images/s, 3 GB of gradients, 8 images over 2 devices: .4 s, .267 of it backward; 1 GB/s exchanges in 3 s, 100 GB/s in .03."""
    work = scale_model.Work(rate=10.0, gradient_bytes=3e9, optimizer_seconds=0.2, tail_bytes=1e9)
    slow = scale_model.step(work, 2, 8, 1e9)
    assert (slow.seconds, slow.bound) == (pytest.approx(0.4 / 3 + 3.0 + 1.0 + 0.2), "exchange")
    fast = scale_model.step(work, 2, 8, 100e9, shards=2)
    assert (fast.seconds, fast.bound) == (pytest.approx(0.4 + 0.01 + 0.1), "compute")
    starved = scale_model.step(work, 2, 8, 100e9, data_rate=4.0)
    assert (starved.seconds, starved.bound) == (2.0, "data")


def test_a_recipe_at_its_goal() -> None:
    """The floor of one H100-class GPU for 16 -> 128: 217 images/s at 45 %, here 216.5 of 561 M parameters; when 64 devices wait."""
    work = scale_model.recipe_work("paper_16_128")
    assert work.rate == pytest.approx(217, rel=0.005)
    assert work.gradient_bytes == 4 * 560_719_107
    at = scale_model.hidden_from(work, 64) / 4
    assert scale_model.step(work, 64, 256, 0.99 * at).bound == "exchange"
    assert scale_model.step(work, 64, 256, 1.01 * at).bound == "compute"
    assert scale_model.step(work, 256, 2048, at).bound == "compute"


def test_goodput_of_steps_by_hand() -> None:
    """Ten steps where eight were needed, half a second each, .4 at best; the second group's first step took 3 seconds more."""
    at = [0.5, 1.0, 1.5, 2.0, 2.5, 6.0, 6.5, 7.0, 7.5, 8.0]
    made = [simulate.Step(time, 1 if time < 3 else 2) for time in at]
    found = simulate.figures(made, 8, 0.4)
    assert found["steps_lost"] == 2
    assert found["restart_seconds"] == pytest.approx(3.0)
    assert found["goodput"] == pytest.approx(8 * 0.4 / 8.0)
    assert found["goodput_without_restarts"] == pytest.approx(8 * 0.4 / 5.0)


@pytest.mark.nightly
@pytest.mark.parametrize(("scenario", "lost"), [("preempted", range(1)), ("killed", range(1, 2 * simulate.CHECKPOINT_STEPS))])
def test_a_disturbed_group_sees_every_image(scenario: str, lost: range) -> None:
    """Two real workers: announced, the loss of one costs no step; unannounced, what was made since the last finished checkpoint."""
    found = simulate.simulate(scenario, 2, 32, seconds=0.01, megabytes=1.0, bandwidth=1e8)
    assert found["images_seen"] == found["images"] == 32 * 4
    assert found["groups"] == 2
    assert found["steps_lost"] in lost
