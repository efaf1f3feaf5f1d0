"""Runs in MLflow: found again by their tags, quiet, and a server that goes away costs neither the training nor a number."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sr3_core import tracking
from sr3_core.errors import BadInput, Failed
from sr3_core.tracking import tracker as tracker_module
from sr3_core.tracking.journal import Journal
from tests.conftest import answers, free_port

REPOSITORY = Path(__file__).resolve().parents[2]


class Server:
    """A real MLflow server of this test alone, that can be stopped and started again on its port."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self.process = folder, free_port(), None
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db", "--artifacts-destination", str(self.folder / "artifacts"),
            "--serve-artifacts",
        ]  # fmt: skip
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "server.log").open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        deadline = time.monotonic() + 120
        while not answers(f"{self.uri}/health"):
            assert self.process.poll() is None, (self.folder / "server.log").read_text()[-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.25)

    def signal(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def end(self) -> None:
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    server.start()
    yield server
    server.end()


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tracking.default_uri(str(tmp_path_factory.mktemp("a root with é and #")))


def run_of(uri: str, run_id: str):
    return tracking.client(uri).get_run(run_id)


def test_the_default_is_sqlite_under_root_and_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert tracking.default_uri(str(tmp_path)) == f"sqlite:///{tmp_path}/mlflow.db"
    assert tracking.default_uri(f"file://{tmp_path}") == f"sqlite:///{tmp_path}/mlflow.db"
    assert tracking.absolute("sqlite:///here.db") == f"sqlite:///{tmp_path}/here.db"
    assert tracking.absolute("http://127.0.0.1:5000/") == "http://127.0.0.1:5000"


@pytest.mark.parametrize("wrong", ["", "file:///tmp/mlruns", "mlruns", "sqlite:///", "ftp://host/x", "sqlite:////tmp/100%/m.db"])
def test_a_uri_mlflow_cannot_use_is_bad_input(wrong: str) -> None:
    with pytest.raises(BadInput):
        tracking.check(wrong)


def test_a_credential_in_the_uri_is_refused_and_not_shown() -> None:
    with pytest.raises(BadInput) as refused:
        tracking.check("http://someone:hunter2@127.0.0.1:5000")
    assert "hunter2" not in str(refused.value)


def test_a_remote_root_needs_an_mlflow_uri() -> None:
    with pytest.raises(BadInput, match="--mlflow-uri"):
        tracking.default_uri("gs://bucket/runs")


def test_looking_creates_nothing(tmp_path: Path) -> None:
    uri = tracking.default_uri(str(tmp_path / "new"))
    tracking.check(uri)
    assert tracking.find_parent(uri, "key") == ""
    assert not (tmp_path / "new").exists()


def test_a_file_that_is_no_database_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is not sqlite at all, and long enough for its header to be looked at" * 20)
    with pytest.raises(BadInput, match="not a database"):
        tracking.check(tracking.default_uri(str(tmp_path)))


def test_a_parent_is_found_again_by_its_run_key(uri: str) -> None:
    first = tracking.open_parent(uri, "key-1", "demo")
    tracking.close_parent(uri, first, "FAILED")
    assert run_of(uri, first).info.status == "FAILED"
    assert tracking.open_parent(uri, "key-1", "demo") == first == tracking.find_parent(uri, "key-1")
    assert run_of(uri, first).info.status == "RUNNING"
    assert tracking.open_parent(uri, "key-2", "demo") != first
    tracking.close_parent(uri, "", "FINISHED")
    with pytest.raises(BadInput):
        tracking.open_parent(uri, "it's", "demo")


def test_a_child_is_found_again_under_its_parent_alone(uri: str) -> None:
    parent = tracking.open_parent(uri, "key-3", "demo")
    with tracking.child(uri, parent, "train-x4", "0123") as first:
        pass
    with tracking.child(uri, parent, "train-x4", "0123") as again:
        assert run_of(uri, again.run_id).info.status == "RUNNING"
    with tracking.child(uri, None, "train-x4", "0123") as alone, tracking.child(uri, "", "train-x4", "0123") as alone_again:
        assert alone.run_id == alone_again.run_id
    with tracking.child(uri, parent, "train-x4", "4567") as other:
        pass
    assert first.run_id == again.run_id
    assert len({first.run_id, alone.run_id, other.run_id}) == 3
    run = run_of(uri, first.run_id)
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert run.info.status == "FINISHED"


def test_what_is_told_is_kept_whole(uri: str, tmp_path: Path) -> None:
    long = "x" * 7000
    (tmp_path / "note.txt").write_text("note")
    with tracking.child(uri, None, "train-x4", "whole") as tracker:
        tracker.log_params({"stage": {"name": "x4", "model": {"long": long}}, "odd (key)": 1})
        tracker.log_metrics({"loss": 0.5, "time (s)": 2.0}, step=16)
        tracker.log_metrics({"loss": float("nan")}, step=32)
        tracker.log_artifact(tmp_path / "note.txt", folder="notes")
        tracker.set_tags({"sr3.git_commit": "abc"})
    with tracking.child(uri, None, "train-x4", "whole") as tracker:
        tracker.log_params({"stage": {"name": "changed"}})
    client, run = tracking.client(uri), run_of(uri, tracker.run_id)
    assert run.data.params["stage.name"] == "x4"
    assert run.data.tags["sr3.changed.stage.name"] == "changed"
    assert len(run.data.params["stage.model.long"]) == 6000
    assert [metric.step for metric in client.get_metric_history(tracker.run_id, "loss")] == [16, 32]
    assert run.data.metrics["time _s_"] == 2.0
    assert run.data.tags["sr3.git_commit"] == "abc"
    assert {item.path for item in client.list_artifacts(tracker.run_id, "notes")} == {"notes/note.txt"}
    beside = Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts"
    assert [path.read_text() for path in beside.rglob("note.txt")] == ["note"]


def test_all_params_are_in_the_artifact(uri: str) -> None:
    with tracking.child(uri, None, "train-x4", "artifact") as tracker:
        tracker.log_params({"long": "y" * 9000})
    beside = Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts"
    assert any("y" * 9000 in path.read_text() for path in beside.rglob("params.json"))


@pytest.mark.parametrize(("raised", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_a_child_that_ends_badly_says_so(uri: str, raised: type[BaseException], status: str) -> None:
    with pytest.raises(raised), tracking.child(uri, None, "train-x4", status) as tracker:
        raise raised
    assert run_of(uri, tracker.run_id).info.status == status


def test_two_rooms_may_create_the_database_at_once(tmp_path: Path) -> None:
    code = "import sys\nfrom sr3_core import tracking\n"
    code += "with tracking.child(sys.argv[1], None, sys.argv[2], 'f') as t:\n t.log_metrics({'a': 1.0})"
    uri = tracking.default_uri(str(tmp_path))
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", code, uri]
    rooms = [
        subprocess.Popen([*command, name], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for name in ("train-a", "train-b")
    ]
    said = [room.communicate(timeout=120)[0] for room in rooms]
    assert [room.returncode for room in rooms] == [0, 0], said
    assert said == ["", ""], "MLflow is quiet"
    client = tracking.client(uri)
    assert len(client.search_experiments()) == 2  # MLflow's own "Default" and ours
    assert len(client.search_runs([tracking.experiment_id(uri)])) == 2


def test_a_server_that_is_down_at_the_start_is_bad_input_within_seconds() -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    start = time.monotonic()
    with pytest.raises(BadInput, match="Connection refused"):
        tracking.open_parent(uri, "key", "demo")
    with pytest.raises(BadInput, match="does not answer"), tracking.child(uri, None, "train", "f"):
        pass
    with pytest.raises(Failed, match="could not be marked"):
        tracking.close_parent(uri, "0123", "FINISHED")
    assert time.monotonic() - start < 10


def test_a_server_lost_in_mid_run_loses_nothing(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(tracker_module, "ANSWER_SECONDS", 1)
    note = tmp_path / "note.txt"
    note.write_text("kept")
    with tracking.child(server.uri, None, "train-x4", "f") as tracker:
        tracker.log_metrics({"loss": 1.0}, step=1)
        server.signal(signal.SIGSTOP)
        start = time.monotonic()
        tracker.log_metrics({"loss": 2.0}, step=2)
        assert time.monotonic() - start < 5, "a server that hangs holds the training up"
        server.end()
        for step in (3, 4):
            tracker.log_metrics({"loss": float(step)}, step=step)
        tracker.log_artifact(note)
        note.unlink()
        assert time.monotonic() - start < 15
    said = capsys.readouterr().out
    assert said.count("does not answer") == 1
    assert "still down" in said
    journal = work / "mlflow-journal-train-x4-f"
    assert str(journal) in said
    kept = [json.loads(line)["kind"] for line in (journal / "entries.jsonl").read_text().splitlines()]
    assert kept == ["metrics", "metrics", "metrics", "artifact", "end"]
    server.start()
    tracking.open_parent(server.uri, "next", "demo")
    assert not journal.exists()
    history = tracking.client(server.uri).get_metric_history(tracker.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    assert run_of(server.uri, tracker.run_id).info.status == "FINISHED"
    assert [path.read_text() for path in (tmp_path / "artifacts").rglob("note.txt")] == ["kept"]


def test_a_journal_outlives_a_torn_line_and_belongs_to_one(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.append({"kind": "tags", "n": 1})
    with (tmp_path / "journal" / "entries.jsonl").open("a") as file:
        file.write('{"kind": "tag')
    with pytest.raises(BlockingIOError):
        Journal(tmp_path / "journal")
    journal.append({"kind": "tags", "n": 2})
    journal.release()
    again = Journal(tmp_path / "journal")
    assert [entry["n"] for entry in again.entries()] == [1, 2]
    again.drop(1)
    assert [entry["n"] for entry in again.entries()] == [2]
    again.drop(1)
    assert not (tmp_path / "journal").exists()
