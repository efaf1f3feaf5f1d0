"""The error protocol of the rooms: lines, files, exit codes, retries, the code look-up check, the orphan watch."""

import contextlib
import importlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from components import entry
from sr3_core import processes, storage
from sr3_core.artifacts.lease import LEASE
from sr3_core.errors import BadInput, Failed
from tests.conftest import RECIPES, REPOSITORY


def guarded(body: str, root: Path, *, job_id: str = "", environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``body`` under a guard in a process of its own, as a component does."""
    code = (
        "import os, sys\nfrom components import entry\nfrom sr3_core.errors import BadInput, Failed\n"
        f"with entry.guard('train-x', root={str(root)!r}, run_key='key', job_id={job_id!r}):\n"
        + "\n".join(f"    {line}" for line in body.splitlines())
    )
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **(environment or {})}, cwd=root.parent
    )


def recorded(root: Path) -> dict[str, object]:
    return json.loads((root / "runs" / "key" / "train-x.error.json").read_text())


@pytest.mark.parametrize("room", ["prepare", "train", "evaluate", "export"])
def test_a_relative_mlflow_uri_is_of_the_folder_one_stands_in(room: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command, work = (importlib.import_module(f"components.{room}.{name}") for name in ("__main__", "main"))
    (tmp_path / "work").mkdir()
    storage.write_json(str(tmp_path / "shards" / "manifest.json"), {})
    given: dict[str, str] = {}

    def run(**values: str) -> None:
        given.update(values)
        raise SystemExit(77)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(work, "run", run)
    monkeypatch.setattr(entry, "guard", lambda *_, **__: contextlib.chdir(tmp_path / "work"))
    recipe = ["--recipe", str(RECIPES / "tiny.yaml")]
    arguments = {
        "prepare": recipe,
        "train": [*recipe, "--stage=x2", "--shards-uri=shards"],
        "evaluate": [*recipe, "--shards-uri=shards", "--bundles=[]"],
        "export": ["--section={}", "--report-uri=eval", "--bundles=[]"],
    }[room]
    done = CliRunner().invoke(command.main, [*arguments, "--root=root", "--mlflow-uri=sqlite:///mlflow.db"])
    assert done.exit_code == 77, done.output
    assert (given["mlflow_uri"], given["root"]) == (f"sqlite:///{tmp_path}/mlflow.db", str(tmp_path / "root"))


def test_success_leaves_no_error_file_and_works_in_the_work_folder(tmp_path: Path) -> None:
    done = guarded("print(os.getcwd())", tmp_path / "root")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == str(tmp_path / "root" / "work") and lines[1].startswith("sr3| train-x finished in ")
    assert not (tmp_path / "root" / "runs").exists()


def test_a_relative_place_on_the_path_is_kept_for_its_workers(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photos.py").write_text("")
    body = "import subprocess\nsubprocess.run([sys.executable, '-c', 'import mine.photos'], check=True)\nprint(os.environ['PYTHONPATH'])"
    done = guarded(body, tmp_path / "root", environment={"PYTHONPATH": os.pathsep.join([".", "", str(REPOSITORY)])})
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == os.pathsep.join([str(tmp_path), str(REPOSITORY)])


def test_bad_input_is_one_line_and_exit_2(tmp_path: Path) -> None:
    done = guarded("raise BadInput('got', 'allowed', 'do')", tmp_path / "root")
    assert done.returncode == 2
    line = "bad input: got; allowed: allowed; do: do"
    assert done.stdout == f"sr3| train-x failed: {line}\n" and "Traceback" not in done.stderr
    assert recorded(tmp_path / "root") == {"exit": 2, "line": line, "job_id": ""}


@pytest.mark.parametrize(
    ("body", "line", "traceback"), [("raise Failed('no gate')", "no gate", False), ("1 / 0", "ZeroDivisionError: division by zero", True)]
)
def test_failures_exit_1(body: str, line: str, traceback: bool, tmp_path: Path) -> None:
    done = guarded(body, tmp_path / "root")
    assert done.returncode == 1 and recorded(tmp_path / "root") == {"exit": 1, "line": line, "job_id": ""}
    assert ("Traceback" in done.stderr) == traceback


def test_bad_input_is_found_inside_what_wraps_it(tmp_path: Path) -> None:
    done = guarded(
        "try:\n    raise BadInput('a', 'b', 'c')\nexcept BadInput as error:\n    raise RuntimeError('worker died') from error",
        tmp_path / "root",
    )
    assert done.returncode == 2
    wrapped = "error = RuntimeError('group')\nerror.worker_failures = {0: BadInput('a', 'b', 'c')}\nraise error"
    assert guarded(wrapped, tmp_path / "root").returncode == 2


def test_a_bad_input_met_and_handled_is_no_bad_input(tmp_path: Path) -> None:
    done = guarded("try:\n    raise BadInput('a', 'b', 'c')\nexcept BadInput:\n    1 / 0", tmp_path / "root")
    assert done.returncode == 1


def test_errors_survive_pickling() -> None:
    """Ray carries them between processes."""
    error = pickle.loads(pickle.dumps(BadInput("a", "b", "c")))
    assert str(error) == "bad input: a; allowed: b; do: c"
    assert str(pickle.loads(pickle.dumps(Failed("x")))) == "x"


def test_a_retry_of_the_same_pipeline_run_ends_at_once(tmp_path: Path) -> None:
    root = tmp_path / "root"
    assert guarded("raise BadInput('a', 'b', 'c')", root, job_id="1").returncode == 2
    again = guarded("print('worked')", root, job_id="1")
    assert again.returncode == 2 and "worked" not in again.stdout and "not tried again" in again.stdout
    assert guarded("print('worked')", root, job_id="2").returncode == 0


def test_a_folder_in_use_is_tried_again(tmp_path: Path) -> None:
    """A pod that was killed hard leaves a lease that counts for a minute."""
    root = tmp_path / "root"
    folder = root / "shards" / "mark"
    there = {"host": "another", "pid": 1, "process": "1", "namespace": "", "task": "train-x", "token": "t"}
    storage.write_json(str(folder / LEASE), {**there, "since": time.time(), "heartbeat": time.time()})
    take = f"from sr3_core.artifacts.lease import lease\nwith lease({str(folder)!r}, task='train-x'):\n    print('worked')"
    refused = guarded(take, root, job_id="1")
    assert refused.returncode == 2 and "in use by another:1" in refused.stdout
    assert recorded(root)["again"] is True
    storage.write_json(str(folder / LEASE), {**there, "since": time.time() - 90, "heartbeat": time.time() - 90})
    again = guarded(take, root, job_id="1")
    assert again.returncode == 0 and "worked" in again.stdout, again.stdout


def test_a_failure_is_tried_again(tmp_path: Path) -> None:
    assert guarded("raise Failed('x')", tmp_path / "root", job_id="1").returncode == 1
    assert guarded("print('worked')", tmp_path / "root", job_id="1").returncode == 0


@pytest.mark.parametrize("stray", ["components/__init__.py", "pipeline.py", "sr3_core/__init__.py"])
def test_stray_code_is_named(stray: str, tmp_path: Path) -> None:
    (tmp_path / stray).parent.mkdir(exist_ok=True)
    (tmp_path / stray).write_text("")
    code = (
        f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\nfrom components import entry\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "for name in [name for name in sys.modules if name.split('.')[0] in ('components', 'pipeline', 'sr3_core')]:\n"
        "    del sys.modules[name]\n"
        "entry.check_code_lookup()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert (
        done.returncode != 0
        and "BadInput" in done.stderr
        and f"{stray.partition('/')[0].removesuffix('.py')} is found at {tmp_path}" in done.stderr
    )


def test_an_unwritable_root_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = guarded("print('worked')", tmp_path / "file")
    assert done.returncode == 2 and "worked" not in done.stdout


def test_term_ends_a_room_through_its_cleanup(tmp_path: Path) -> None:
    code = (
        "import time\nfrom components import entry\n"
        f"with entry.guard('x', root={str(tmp_path)!r}, run_key='k'):\n"
        "    try:\n        print('up', flush=True); time.sleep(60)\n    finally:\n        print('cleaned')"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30)[0] == "cleaned\n" and process.returncode == 143


def test_a_room_ends_with_its_run(tmp_path: Path) -> None:
    """The run is killed hard; a shell stands between it and the room, the room has a child of its own."""
    room = (
        "import subprocess, sys, time\nfrom components import entry\n"
        f"with entry.guard('x', root={str(tmp_path)!r}, run_key='k'):\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "    print(child.pid, flush=True); time.sleep(600)"
    )
    (tmp_path / "room.py").write_text(room)
    run = (
        f"import os, subprocess, time\nfrom components import entry\nfrom sr3_core import processes\n"
        f"os.environ[entry.PARENT] = processes.identity(os.getpid())\n"
        f"subprocess.run(['sh', '-c', '{sys.executable} {tmp_path}/room.py; true'])"
    )
    process = subprocess.Popen([sys.executable, "-c", run], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    below = {pid: processes.identity(pid) for pid in processes.descendants(process.pid)}
    assert child in below and len(below) >= 3
    process.kill()
    process.wait()
    deadline = time.monotonic() + 15
    while any(processes.is_alive(who) for who in below.values()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid, who in below.items() if processes.is_alive(who)]


def test_receipts_are_small_copies(tmp_path: Path) -> None:
    sha = storage.write_json(str(tmp_path / "set" / "manifest.json"), {"a": 1})
    metadata = entry.receipt(str(tmp_path / "out" / "artifact"), uri=str(tmp_path / "set"), sha256=sha, name="manifest.json")
    assert metadata == {"uri": str(tmp_path / "set"), "manifest_sha256": sha}
    assert json.loads((tmp_path / "out" / "artifact").read_text()) == {"a": 1}
    (tmp_path / "set" / "big.html").write_bytes(b"x" * (entry.RECEIPT_BYTES + 1))
    entry.receipt(str(tmp_path / "out" / "big"), uri=str(tmp_path / "set"), sha256=sha, name="big.html")
    assert json.loads((tmp_path / "out" / "big").read_text())["uri"].endswith("big.html")
