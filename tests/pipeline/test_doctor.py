"""`sr3 doctor` as a command: its exit codes, that stdout is the answer alone, that bad input is one line, and that help is light."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pipeline import cli
from sr3_core import plugins
from sr3_core.data.sources import sample_photos
from tests.conftest import RECIPES, REPOSITORY, Ended


def doctor(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, ["doctor", *arguments])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("church", "coffee", "rocket"):
        (tmp_path / "photos").mkdir(exist_ok=True)
        shutil.copy(sample_photos.FOLDER / f"{name}.jpg", tmp_path / "photos")
    return tmp_path / "photos"


def test_a_good_folder_is_0_and_stdout_is_the_answer(folder: Path) -> None:
    done = doctor(str(folder))
    assert done.exit_code == 0, done.output + repr(done.exception)
    assert done.stdout.startswith(f"{folder}: 3 inputs") and "verdict: usable" in done.stdout
    (folder / "empty.png").write_bytes(b"")
    warned = doctor(str(folder))
    assert warned.exit_code == 0 and "warning: 1 of 4 inputs cannot be used (empty file 1)" in warned.stdout


def test_json_is_json_alone_whatever_progress_says(folder: Path, sr3: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> None:
    from sr3_core.doctor import examination

    monkeypatch.setattr(examination, "QUIET_SECONDS", 0.0)
    done = doctor(str(folder), "--json")
    assert done.exit_code == 0
    assert "sr3| doctor look 3/3 photos" in done.stderr
    assert json.loads(done.stdout)["inputs"]["usable"] == 3


def test_nothing_usable_is_1(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"no image")
    done = doctor(str(tmp_path / "photos"))
    assert done.exit_code == 1
    assert "problem: nothing usable: all of 1 inputs are refused" in done.stdout and "verdict: not usable" in done.stdout
    assert json.loads(doctor(str(tmp_path / "photos"), "--json").stdout)["verdict"]["usable"] is False


def test_a_recipe_is_judged_by_its_own_section(photos: Path) -> None:
    recipe = str(RECIPES / "tiny.yaml")
    good = doctor(recipe, "--set", f"data.options.uri={photos}")
    assert good.exit_code == 0 and "verdict: prepare takes it" in good.stdout, good.output
    refused = doctor(recipe, "--set", f"data.options.uri={photos}", "--set", "data.split.minimum={train: 1000, val: 1, test: 1}")
    assert refused.exit_code == 1 and "problem: prepare would refuse it" in refused.stdout


BAD = [
    (("nowhere",), "unknown source"),
    (("demmo",), "demo (nearest)"),
    (("/nowhere/at/all",), "does not exist"),
    (("folder",), "data.options.uri"),
    (("folder", "--set", "uri"), "KEY=VALUE"),
    (("demo", "--set", "data.levelz=[1]"), "levels (nearest)"),
    (("https://user:CANARY@host/photos",), "credential"),
]


@pytest.mark.parametrize(("arguments", "says"), BAD)
def test_bad_input_is_2_and_one_line(arguments: tuple[str, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = doctor(*arguments)
    assert done.exit_code == 2, done.output + repr(done.exception)
    assert done.stderr.startswith("sr3: bad input: ") and done.stderr.count("\n") == 1, done.stderr
    assert says in done.stderr and "; do: " in done.stderr and "CANARY" not in done.output
    assert done.stdout == "" and not list(tmp_path.iterdir())


def test_an_empty_folder_and_a_report_that_cannot_be_written(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert doctor(str(tmp_path / "empty")).exit_code == 2
    (tmp_path / "file").write_text("")
    done = doctor(str(folder), "--report", str(tmp_path / "file" / "x"))
    assert done.exit_code == 2 and "cannot be written" in done.stderr


def test_the_report_is_a_page_and_the_same_json(folder: Path, tmp_path: Path) -> None:
    (folder / "copy.jpg").write_bytes((folder / "church.jpg").read_bytes())
    done = doctor(str(folder), "--report", str(tmp_path / "report"))
    assert done.exit_code == 0 and f"report: {tmp_path / 'report' / 'doctor.html'}" in done.stdout
    assert json.loads((tmp_path / "report" / "doctor.json").read_text())["duplicates"]["extra"] == 1
    assert "<h2>Exact copies (1)</h2>" in (tmp_path / "report" / "doctor.html").read_text()


def test_the_example_is_printed_without_a_source() -> None:
    done = doctor("--example")
    assert done.exit_code == 0 and done.stdout == plugins.EXAMPLE.read_text()


def test_help_is_light(sr3: Callable[..., Ended]) -> None:
    shown = sr3("doctor", "--help")
    assert shown.code == 0 and "sr3 doctor ~/photos" in shown.stdout
    code = "import sys, runpy; sys.argv = ['sr3', 'doctor', '--help']\n"
    code += "try:\n    runpy.run_module('pipeline.cli', run_name='__main__')\nexcept SystemExit:\n    pass\n"
    code += "print([name for name in ('numpy', 'PIL', 'torch', 'ray', 'mlflow', 'kfp', 'fsspec') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout.strip().endswith("[]"), done.stdout + done.stderr


def test_the_work_imports_no_torch() -> None:
    code = "import sys, sr3_core.doctor; print([name for name in ('torch', 'ray', 'mlflow', 'kfp') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
