"""The commands that a finished run names can be typed in the folder it was started from, whatever that shell's PATH is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import next_steps
from sr3_core import config
from tests.conftest import BIN, RECIPES

BARE = "/usr/bin:/bin"  # a shell that knows nothing of this environment


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder "a clone" as `make setup` leaves it: .venv/KEY (its commands are this environment's) and .venv/current."""
    folder = tmp_path / "a clone"
    (folder / ".venv").mkdir(parents=True)
    (folder / ".venv" / "0123abcd").symlink_to(BIN.parent, target_is_directory=True)
    (folder / ".venv" / "current").symlink_to("0123abcd", target_is_directory=True)
    monkeypatch.setattr(sys, "executable", str(folder / ".venv" / "0123abcd" / "bin" / Path(sys.executable).name))
    return folder


def lines(
    recipe: str, folder: Path, *changes: str, path: str = BARE, root: str = "/r", mlflow_uri: str = "sqlite:////r/mlflow.db"
) -> dict[str, str]:
    loaded = config.load(recipe, changes)
    return dict(next_steps.commands(loaded, root=root, mlflow_uri=mlflow_uri, default_root="/r", folder=folder, path=path))


@pytest.mark.parametrize("name", ["sr3", "mlflow"])
def test_a_command_that_the_shell_does_not_find_is_named_by_its_path(name: str, environment: Path) -> None:
    assert next_steps.executable(name, folder=environment, path=BARE) == f".venv/current/bin/{name}"
    (environment / ".venv" / "current").unlink()
    assert next_steps.executable(name, folder=environment, path=BARE) == f".venv/0123abcd/bin/{name}"
    elsewhere = environment.parent / "elsewhere"
    elsewhere.mkdir()
    assert next_steps.executable(name, folder=elsewhere, path=BARE) == f"'{environment}/.venv/0123abcd/bin/{name}'"


def test_a_command_of_this_environment_on_the_path_goes_by_its_name(environment: Path) -> None:
    assert next_steps.executable("sr3", folder=environment, path=f"{environment}/.venv/current/bin:{BARE}") == "sr3"
    other = environment / "other"
    other.mkdir()
    (other / "sr3").write_text("#!/bin/sh\n")
    (other / "sr3").chmod(0o755)
    assert next_steps.executable("sr3", folder=environment, path=f"{other}:{environment}/.venv/current/bin") == ".venv/current/bin/sr3"


@pytest.mark.parametrize("place", ["", "elsewhere"])
def test_what_is_printed_can_be_executed(place: str, environment: Path) -> None:
    folder = environment.parent / place if place else environment
    folder.mkdir(exist_ok=True)
    printed = [*lines("demo", folder).values(), next_steps.ui_command("sqlite:////r/mlflow.db", folder=folder, path=BARE)]
    for command in printed:
        typed = f"{command} --help"
        shell = subprocess.run(["sh", "-c", typed], cwd=folder, env={**os.environ, "PATH": BARE}, capture_output=True, text=True)
        assert shell.returncode == 0 and "Usage: " in shell.stdout, typed + shell.stderr


def test_a_cascade_names_its_first_stage_first_and_then_the_whole(environment: Path) -> None:
    shown = lines("demo", environment)
    assert list(shown)[:2] == [
        "a photo of up to 2048 x 2048 pixels, 4 times larger",
        "a small picture of up to 512 x 512 pixels, 16 times larger",
    ]
    photo, small, *_ = shown.values()
    assert photo == ".venv/current/bin/sr3 upscale PHOTO.jpg -o BIG.png --stage sr256"
    assert small == ".venv/current/bin/sr3 upscale PHOTO.jpg -o BIG.png"


def test_a_single_stage_has_one_line(environment: Path) -> None:
    upscale = [command for command in lines(str(RECIPES / "tiny.yaml"), environment).values() if " upscale " in command]
    assert upscale == [".venv/current/bin/sr3 upscale PHOTO.jpg -o BIG.png --model models:/tiny@champion"]


def test_a_model_that_starts_from_noise_makes_images_and_its_next_stage_enlarges_a_photo(environment: Path) -> None:
    shown = list(lines("cascade_1024", environment).values())
    assert shown[0] == ".venv/current/bin/sr3 sample -o SAMPLES/ -n 4 --model models:/sr3-cascade-1024@champion"
    assert shown[1] == ".venv/current/bin/sr3 upscale PHOTO.jpg -o BIG.png --model models:/sr3-cascade-1024@champion --stage sr256"
    alone = list(lines(str(RECIPES / "base.yaml"), environment).values())
    assert alone[0].endswith("sample -o SAMPLES/ -n 4 --model models:/base@champion") and " upscale " not in "".join(alone)


def test_a_model_that_is_told_labels_is_given_one(environment: Path) -> None:
    """Only where a stage of the command is told labels."""
    sample, upscale, *_ = lines(str(RECIPES / "noise.yaml"), environment, "stages.base.model.options={channels: 8, labels: 5}").values()
    assert sample.endswith(" --label 0") and upscale.endswith("--stage x32")
    stage, chain, *_ = lines(str(RECIPES / "pair.yaml"), environment, "stages.x16.model.options={channels: 8, labels: 5}").values()
    assert stage.endswith("--stage x16 --label 0") and chain.endswith("models:/pair@champion --label 0")


def test_other_places_are_options(environment: Path) -> None:
    here = lines("demo", environment, root="/my runs", mlflow_uri="sqlite:////my runs/mlflow.db")
    assert all(command.count(" --root '/my runs'") == 1 for command in list(here.values())[:3])
    server, own, *_ = list(lines("demo", environment, root="gs://b/r", mlflow_uri="http://m:5000").values())[1:]
    assert server.endswith("BIG.png --mlflow-uri http://m:5000"), "a model is found by its MLflow, the root is not asked for"
    assert own.endswith("YOUR_PHOTOS --mlflow-uri http://m:5000 --root gs://b/r")
    assert next_steps.ui_command("http://m:5000", folder=environment, path=BARE) == "http://m:5000"
