"""What is known of the images without building one: their Dockerfiles, their scripts, which packages go where, and refusals in one line.

The images themselves are tested in tests/e2e/test_containers.py.
"""

import json
import os
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.conftest import BIN, REPOSITORY

IMAGES = REPOSITORY / "infra" / "images"
DOCKERFILES = [IMAGES / "Dockerfile", *sorted((REPOSITORY / "components").glob("*/Dockerfile"))]
SCRIPTS = [*sorted((REPOSITORY / "infra").rglob("*.sh")), REPOSITORY / ".ci" / "run", REPOSITORY / ".ci" / "setup"]


def said(*command: str | Path, cwd: Path = REPOSITORY, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def test_the_linters_find_nothing_and_would_find_something(tmp_path: Path) -> None:
    assert len(DOCKERFILES) == 5
    done = said(BIN / "hadolint", *DOCKERFILES)
    assert done.returncode == 0, done.stdout
    done = said(BIN / "shellcheck", *SCRIPTS)
    assert done.returncode == 0, done.stdout
    (tmp_path / "Dockerfile").write_text("FROM debian:latest\nRUN cd /tmp && apt-get install -y curl\n")
    assert "DL3007" in said(BIN / "hadolint", tmp_path / "Dockerfile").stdout


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)
def test_a_dockerfile_ends_without_root_and_asks_no_hub(path: Path) -> None:
    words = [line.split() for line in path.read_text().splitlines() if line and not line.startswith(("#", " "))]
    assert not [line for line in words if line[0] in ("ENTRYPOINT", "CMD", "ADD", "VOLUME")]
    assert [line[1] for line in words if line[0] == "USER"][-1] == "10001:10001"
    assert not path.read_text().startswith("# syntax")
    assert "NVIDIA_VISIBLE_DEVICES" not in "".join(word for line in words for word in line), "a pod that asked for no GPU would see all"
    bases = {line[1] for line in words if line[0] == "FROM"}
    assert bases <= {"${BASE}", "${BASE_IMAGE}", "base"}, "a base that is not given by argument"
    assert {tuple(line[:2]) for line in words if line[0] == "ARG"} >= {("ARG", "BASE" if path.parent == IMAGES else "BASE_IMAGE")}


def wheel(folder: Path, name: str, version: str, *needs: str) -> Path:
    """A wheel of nothing but metadata."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {need}" for need in needs)]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}-{version}.dist-info/METADATA", "\n".join(lines) + "\n")
    return path


def test_a_set_is_closed_under_what_its_packages_need(tmp_path: Path) -> None:
    closure = runpy.run_path(str(IMAGES / "wheels.py"))["closure"]
    wheels = {
        "a": wheel(tmp_path, "a", "1.0", "b[fast]>=2", 'd; python_version < "3"', "c"),
        "b": wheel(tmp_path, "b", "2.1", 'e; extra == "fast"', 'f; extra == "slow"'),
        "c": wheel(tmp_path, "c", "1", "a"),
        **{name: wheel(tmp_path, name, "1") for name in "defg"},
    }
    assert closure([Requirement("a")], wheels) == {"a", "b", "c", "e"}
    assert closure([Requirement("b[slow]")], wheels) == {"b", "f"}
    with pytest.raises(ValueError, match=r"b>=3 is wanted, the lock has 2\.1"):
        closure([Requirement("b>=3")], wheels)
    with pytest.raises(KeyError):
        closure([Requirement("h")], wheels)


def test_a_bill_of_materials_is_valid_and_says_what_needs_what() -> None:
    python = [["Ray", "2.60.0", "Apache-2.0", ["click>=7", 'pandas; extra == "data"']], ["click", "8.5.1", "BSD " * 100, []]]
    text = runpy.run_path(str(IMAGES / "sbom.py"))["bill"](
        "prepare", image="sha256:" + "0" * 64, commit="c0ffee", version="0.1.0", python=python, debian=[["libc6", "2.36-9", "amd64"]]
    )
    found = json.loads(text)
    assert {part["purl"] for part in found["components"]} == {
        "pkg:pypi/ray@2.60.0", "pkg:pypi/click@8.5.1", "pkg:deb/debian/libc6@2.36-9?arch=amd64"
    }  # fmt: skip
    needs = {line["ref"]: line.get("dependsOn", []) for line in found["dependencies"]}
    assert needs["pypi:ray"] == ["pypi:click"] and len(needs["sr3-prepare"]) == 3
    licences = {part["name"]: part.get("licenses") for part in found["components"]}
    assert licences["Ray"] == [{"license": {"name": "Apache-2.0"}}] and not licences["click"], "a whole text is no name of a licence"
    assert {"name": "sr3:commit", "value": "c0ffee"} in found["metadata"]["component"]["properties"]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts of the images and the Dockerfiles in a repository of their own."""
    folder = tmp_path_factory.mktemp("clone")
    shutil.copytree(IMAGES, folder / "infra" / "images")
    shutil.copy(REPOSITORY / ".gitignore", folder)
    for path in DOCKERFILES[1:]:
        place = folder / path.relative_to(REPOSITORY)
        place.parent.mkdir(parents=True)
        shutil.copy(path, place)
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    for command in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-qm", "all"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


def build(clone: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return said("bash", "infra/images/build.sh", sys.executable, cwd=clone, **environment)


def engine(folder: Path, *, client: str = "20.10.24", answers: bool = True) -> str:
    """A program that is found as docker: what it says of its version is all that refusals ask."""
    path = folder / "docker"
    path.write_text(
        f'#!/bin/sh\n[ "$1" = version ] && {answers!s} && echo "{client} 20.10.24" && exit 0\nexit 1\n'.replace("True", "true").replace(
            "False", "false"
        )
    )
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        ({"VARIANT": "tpu"}, "VARIANT=tpu; allowed: cpu, gpu"),
        ({"IMAGES": "sr3"}, "allowed: a name with {room} in it"),
        ({"ROOMS": "kitchen"}, "no room kitchen; allowed: prepare train evaluate export"),
        ({"DOCKER": "no-such-engine"}, "no container engine; install docker.io"),
        ({"DOCKER": "deaf", "DOCKER_HOST": "unix:///nowhere.sock"}, "no container engine answers at unix:///nowhere.sock"),
        ({"DOCKER": "new"}, "cannot build without its plug-in buildx"),
        ({"DOCKER": "able", "BASE": "no-such-base:1"}, "no image no-such-base:1 here, and it cannot be pulled"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(environment: dict[str, str], line: str, clone: Path, tmp_path: Path) -> None:
    engines = {"deaf": {"answers": False}, "new": {"client": "28.2.2"}, "able": {}}
    if (name := environment.get("DOCKER", "")) in engines:
        environment = {**environment, "DOCKER": engine(tmp_path, **engines[name])}
    done = build(clone, **environment)
    assert done.returncode == 2 and line in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_images_are_named_by_a_commit_so_changed_files_are_refused(clone: Path, tmp_path: Path) -> None:
    (clone / "new.py").write_text("")
    try:
        done = build(clone, DOCKER=engine(tmp_path))
    finally:
        (clone / "new.py").unlink()
    assert done.returncode == 2 and "1 files differ from commit" in done.stderr and done.stderr.count("\n") == 1
