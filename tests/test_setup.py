"""What a machine lacks is named in one line before anything is installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY


def program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def refused(tmp_path: Path, python: str, *arguments: str, path: str | None = None) -> str:
    environment = {**os.environ, **({"PATH": path} if path else {})}
    command = ["/bin/bash", str(REPOSITORY / "infra" / "setup.sh"), python, str(tmp_path / "venv"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not (tmp_path / "venv").exists(), done.stdout + done.stderr
    return done.stderr


def test_no_python(tmp_path: Path) -> None:
    assert "no-such-python is missing" in refused(tmp_path, "no-such-python")


def test_python_of_another_version(tmp_path: Path) -> None:
    old = program(tmp_path / "old", 'case "$2" in *exit*) exit 1;; *platform*) echo 3.10.2;; esac')
    assert "is 3.10.2; allowed: 3.11, 3.12, 3.13" in refused(tmp_path, str(old))


def test_python_without_venv(tmp_path: Path) -> None:
    bare = program(tmp_path / "bare", 'case "$2" in *ensurepip*) exit 1;; *venv*) echo python3.12-venv;; esac')
    assert "install the package python3.12-venv" in refused(tmp_path, str(bare))


def tools_with_little_space(at: Path) -> str:
    """A PATH of what set-up calls, with 1 GiB free; no git."""
    at.mkdir()
    for name in ("dirname", "awk"):
        (at / name).symlink_to(subprocess.run(["which", name], capture_output=True, text=True, check=True).stdout.strip())
    program(at / "df", "echo header; echo /dev/x 100 90 1048576 90% /")
    return str(at)


@pytest.mark.parametrize(
    ("tool", "arguments", "line"),
    [
        ("git", (), "install the package git"),
        ("space", (), "1 GiB free"),
        ("space", (), "needed: 9 GiB"),
        ("space", ("--dev", "--"), "needed: 9 GiB"),
        ("space", ("--", "--timeout=60"), "needed: 4 GiB"),
    ],
)
def test_no_git_and_no_room(tool: str, arguments: tuple[str, ...], line: str, tmp_path: Path) -> None:
    tools = tools_with_little_space(tmp_path / "tools")
    if tool == "space":
        program(Path(tools) / "git", "")
    assert line in refused(tmp_path, sys.executable, *arguments, path=tools)


def test_an_environment_that_stands_needs_no_such_room(tmp_path: Path) -> None:
    tools = tools_with_little_space(tmp_path / "tools")
    program(Path(tools) / "git", "")
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / ".installed").touch()
    command = ["/bin/bash", str(REPOSITORY / "infra" / "setup.sh"), sys.executable, str(tmp_path / "venv")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": tools}, stdin=subprocess.DEVNULL)
    assert done.returncode == 0 and done.stdout.startswith("setup: ready"), done.stdout + done.stderr
