"""The client's side of a KFP server: the stub takes what `kfp run create` and `sr3 submit` send, and nothing else."""

import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kfp_server_api
import pytest
from click.testing import CliRunner, Result

from components import provenance
from pipeline import cli, server, submit
from sr3_core.errors import BadInput, Failed
from tests.conftest import BIN, RECIPES, Ended, free_port
from tests.pipeline import kfp_stub

GOLDEN = Path(__file__).parent / "golden" / "demo.yaml"
ROOT = ("--root", "gs://bucket/runs", "--mlflow-uri", "http://mlflow:5000")


@pytest.fixture
def stub(pytestconfig: pytest.Config) -> Iterator[kfp_stub.Stub]:
    folder: Path = pytestconfig.getoption("--schemas")
    with kfp_stub.serving(folder if folder.is_dir() else None) as made:
        yield made
    assert not made.refused


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(server, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(server, "PATIENCE_SECONDS", 1.0)
    monkeypatch.setattr(server, "RETRIES", 0)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("KFP_TOKEN", "KF_PIPELINES_SA_TOKEN_PATH", "KF_PIPELINES_IAP_OAUTH2_CLIENT_ID"):
        monkeypatch.delenv(name, raising=False)


def submitted(stub: kfp_stub.Stub, *more: str, recipe: str = "demo") -> Result:
    """`sr3 submit` in this process, where the waits are short."""
    return CliRunner().invoke(cli.main, ["submit", recipe, "--endpoint", stub.address, *ROOT, *more])


def line(done: Result) -> str:
    """The one line of a submission that was refused or failed."""
    assert done.stderr.startswith("sr3: ") and done.stderr.count("\n") == 1, done.output
    return done.stderr


def started(stub: kfp_stub.Stub, every: str = "") -> tuple[server.Server, str]:
    """What a submission asks of the server, without what it does before."""
    there = server.Server(stub.address)
    ids = there.upload(GOLDEN, name="sr3-demo", version="0123456789ab-01234567")
    given: dict[str, Any] = {"name": "demo-1", "experiment": "sr3", "parameters": {"root": "gs://bucket/runs"}, "service_account": None}
    return there, there.recur(ids, every=submit.parse_every(every), **given) if every else there.run(ids, **given)


def refused(stub: kfp_stub.Stub, kind: type[Exception]) -> str:
    """The line that a submission ends with, which names the server."""
    with pytest.raises((BadInput, Failed)) as found:
        started(stub)
    assert type(found.value) is kind and "\n" not in str(found.value) and stub.address in str(found.value)
    return str(found.value)


def test_the_stub_refuses_unknown_keys() -> None:
    kfp_stub.strictly({"display_name": "x", "runtime_config": {"parameters": {"a": 1}}}, "V2beta1Run")
    for body in ({"name": "x"}, {"runtime_config": {"parameter": {}}}, {"pipeline_version_reference": {"pipeline": "x"}}):
        with pytest.raises(ValueError, match="unknown key"):
            kfp_stub.strictly(body, "V2beta1Run")


def test_the_published_interface_refuses_what_it_does_not_know(schemas: Path) -> None:
    requests = kfp_stub.KfpRequests(schemas)
    run = f"{kfp_stub.API}/runs"
    assert not requests.faults("post", run, ["experiment_id"], {"display_name": "x"})
    assert requests.faults("post", run, [], {"display_name": 1}) and requests.faults("post", run, [], {"displayname": "x"})
    assert requests.faults("post", run, ["experiment"], {}) and requests.faults("put", run, [], {})


def test_kfp_run_create(stub: kfp_stub.Stub, tmp_path: Path) -> None:
    command = [str(BIN / "kfp"), "--endpoint", stub.address, "run", "create", "-e", "experiment", "-r", "name", "-f", str(GOLDEN)]
    done = subprocess.run(
        [*command, "root=gs://bucket/runs", "mlflow_uri=http://mlflow:5000"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    run = stub.runs[0]
    assert isinstance(run, kfp_server_api.V2beta1Run) and run.display_name == "name" and run.experiment_id == "e0"
    assert run.runtime_config.parameters == {"root": "gs://bucket/runs", "mlflow_uri": "http://mlflow:5000"}
    assert run.pipeline_spec["pipeline_spec"]["pipelineInfo"]["name"] == "sr3-demo"
    assert "kubernetes" in run.pipeline_spec["platform_spec"]["platforms"]


def test_sr3_submit(stub: kfp_stub.Stub, sr3: Callable[..., Ended], tmp_path: Path) -> None:
    done = sr3("submit", "demo", "--endpoint", stub.address, *ROOT, cwd=tmp_path)
    assert done.code == 0, done.stderr
    (run,), (made,) = stub.runs, stub.versions
    assert run.runtime_config.parameters["root"] == "gs://bucket/runs" and run.runtime_config.parameters["run_key"].startswith("demo-")
    assert run.runtime_config.pipeline_root == "gs://bucket/runs/.kfp"
    assert (run.pipeline_version_reference.pipeline_id, run.pipeline_version_reference.pipeline_version_id) == ("p0", "v0")
    assert stub.pipelines[0].display_name == "sr3-demo" and made[2]["pipelineInfo"]["name"] == "sr3-demo"
    commit = provenance.git_commit()
    assert commit is not None and made[1].startswith(f"{commit[:12]}-")
    assert done.stdout.splitlines() == [f"pipeline sr3-demo, version {made[1]}", f"run r0: {stub.address}/#/runs/details/r0"]


def test_a_version_is_uploaded_once(stub: kfp_stub.Stub) -> None:
    for _ in range(2):
        started(stub)
    assert len(stub.pipelines) == len(stub.experiments) == len(stub.versions) == 1 and len(stub.runs) == 2
    assert [run.pipeline_version_reference.pipeline_version_id for run in stub.runs] == ["v0", "v0"]


def test_a_version_is_named_by_commit_and_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.yaml").write_text("a")
    (tmp_path / "b.yaml").write_text("b")
    monkeypatch.setenv(provenance.COMMIT_VARIABLE, "0123456789abcdef")
    names = [submit.version_name(tmp_path / name) for name in ("a.yaml", "b.yaml")]
    assert names[0].startswith("0123456789ab-") and names[0] != names[1]


def test_the_recipes_service_account_and_the_token_go_along(stub: kfp_stub.Stub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"x")
    monkeypatch.setenv("KFP_TOKEN", "a-token")
    more = ("--set", f"data.options.uri={tmp_path / 'photos'}", "--experiment", "mine")
    done = submitted(stub, *more, recipe=str(RECIPES / "gpu.yaml"))
    assert done.exit_code == 0, done.output
    assert stub.runs[0].service_account == "sr3" and stub.experiments[0].display_name == "mine"
    assert set(stub.tokens) == {"Bearer a-token"} and "a-token" not in done.output
    submitted(stub, *more, "--ray-address", "kubernetes://team-a", recipe=str(RECIPES / "gpu.yaml"))
    assert not stub.runs[1].service_account, "the account of the Ray cluster's pods, in their namespace, which KFP's does not have"
    monkeypatch.delenv("KFP_TOKEN")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
    (tmp_path / "token").write_text("another\n")
    started(stub)
    assert stub.tokens[-1] == "Bearer another"
    (tmp_path / "token").unlink()
    with pytest.raises(BadInput, match="cannot be read"):
        started(stub)


RUNNING = {"root": "RUNNING", "prepare-driver": "SUCCEEDED", "prepare": "RUNNING"}
TRAINED = {"prepare": "SUCCEEDED", "train-sr256": "RUNNING"}


def test_watch_follows_the_run_to_its_end(stub: kfp_stub.Stub) -> None:
    stub.states = [
        ("PENDING", {}),
        ("RUNNING", RUNNING),
        ("RUNNING", RUNNING),
        ("RUNNING", TRAINED),
        ("SUCCEEDED", {"finish": "SUCCEEDED"}),
    ]
    done = submitted(stub, "--watch")
    assert done.exit_code == 0
    said = ["prepare: RUNNING", "prepare: SUCCEEDED", "train-sr256: RUNNING", "finish: SUCCEEDED", "run r0: SUCCEEDED"]
    assert done.stdout.splitlines()[2:] == said
    stub.states = [("FAILED: task prepare failed", {"prepare": "FAILED: exit code 2"})]
    done = submitted(stub, "--watch")
    assert done.exit_code == 1
    assert done.stdout.splitlines()[2:] == ["prepare: FAILED: exit code 2", "run r1: FAILED: task prepare failed"]


def test_a_run_that_is_cancelled_did_not_succeed(stub: kfp_stub.Stub) -> None:
    there, run = started(stub)
    stub.states = [("CANCELING", {}), ("CANCELED", {})]
    said: list[str] = []
    assert there.follow(run, said.append) is False and said == ["run r0: CANCELED"]


def test_watch_that_loses_the_server_says_that_the_run_goes_on(stub: kfp_stub.Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    there, run = started(stub)
    stub.faults["GET /runs/r0"] = (503, "no upstream")
    with pytest.raises(Failed, match=r"503 no upstream.*run r0 goes on: http"):
        there.follow(run, print)
    monkeypatch.setattr(server, "RETRIES", 1)
    monkeypatch.setattr(server.time, "sleep", lambda seconds: stub.faults.clear())
    stub.states = [("SUCCEEDED", {})]
    assert there.follow(run, print)


@pytest.mark.parametrize(
    ("every", "cron", "seconds"),
    [("6h", None, "21600"), ("0 3 * * *", "0 0 3 * * *", None), ("30 0 3 * * MON-FRI", "30 0 3 * * MON-FRI", None)],
)
def test_recurring_runs(every: str, cron: str | None, seconds: str | None, stub: kfp_stub.Stub) -> None:
    assert started(stub, every)[1] == "c0"
    (made,) = stub.recurring
    trigger = made.trigger
    assert (trigger.cron_schedule and trigger.cron_schedule.cron) == cron
    assert (trigger.periodic_schedule and str(trigger.periodic_schedule.interval_second)) == seconds
    assert made.mode == "ENABLE" and int(made.max_concurrency) == 1 and made.no_catchup is True
    assert made.pipeline_version_reference.pipeline_version_id == "v0" and not stub.runs
    with pytest.raises(BadInput, match="a recurring run demo-1 in experiment sr3"):
        started(stub, every)
    assert len(stub.recurring) == 1


def test_submit_every(stub: kfp_stub.Stub) -> None:
    done = submitted(stub, "--every", "1d")
    assert done.exit_code == 0 and done.stdout.splitlines()[1] == "recurring run c0: 1d", done.output
    assert "--watch with --every" in line(submitted(stub, "--every", "1d", "--watch")) and len(stub.recurring) == 1


@pytest.mark.parametrize("every", ["1m", "5 minutes", "0d", "* * *", "0 3 * * ;"])
def test_times_that_are_none(every: str) -> None:
    with pytest.raises(BadInput, match="--every"):
        submit.parse_every(every)


@pytest.mark.parametrize("where", ["GET /healthz", "GET /pipelines", "POST /pipelines", "POST /pipelines/upload_version", "POST /runs"])
@pytest.mark.parametrize(
    ("fault", "kind", "says"),
    [((401, "no token"), BadInput, "KFP_TOKEN="), ((403, "not yours"), BadInput, "403"), ((500, "database is locked"), Failed, "500")],
)
def test_a_server_that_refuses_or_fails_is_one_line(
    where: str, fault: tuple[int, str], kind: type[Exception], says: str, stub: kfp_stub.Stub
) -> None:
    stub.faults[where] = fault
    said = refused(stub, kind)
    assert says in said and (where == "GET /healthz" or fault[1] in said)


def test_a_refusal_ends_the_command_with_its_line(stub: kfp_stub.Stub) -> None:
    stub.faults["POST /runs"] = (409, "run exists")
    done = submitted(stub)
    assert done.exit_code == 2 and "has that already, asked to start a run (409 run exists)" in line(done) and "--run-key" in line(done)
    stub.faults["POST /runs"] = (500, "no database")
    done = submitted(stub)
    assert done.exit_code == 1 and "(500 no database); check its log, then its list of runs" in line(done)


def test_a_version_uploaded_by_another_meanwhile_is_used(stub: kfp_stub.Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    started(stub)
    seen: list[Any] = []
    real = server.Server._version
    monkeypatch.setattr(server.Server, "_version", lambda self, pipeline, name: real(self, pipeline, name) if seen else seen.append(name))
    started(stub)
    assert seen and len(stub.versions) == 1 and len(stub.runs) == 2


@pytest.mark.parametrize("where", ["GET /pipelines", "POST /runs"])
def test_a_server_that_does_not_answer_in_time(where: str, stub: kfp_stub.Stub) -> None:
    stub.faults[where] = (0, "")
    said = refused(stub, Failed)
    assert "does not answer, asked to" in said and "timed out" in said


@pytest.mark.parametrize(("where", "answer"), [("GET /healthz", "<html>hello</html>"), ("GET /healthz", "[]"), ("POST /runs", "<html>")])
def test_something_else_that_answers(where: str, answer: str, stub: kfp_stub.Stub) -> None:
    stub.faults[where] = (1, answer)
    said = refused(stub, BadInput)
    assert f"what answers at {stub.address} is not KFP" in said and "check --endpoint" in said


def test_a_port_that_speaks_another_protocol() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:

        def speak() -> None:
            connection, _ = other.accept()
            connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
            connection.close()

        threading.Thread(target=speak, daemon=True).start()
        with pytest.raises(BadInput, match=r"127\.0\.0\.1:\d+ (is not KFP|does not answer)"):
            server.check(f"http://127.0.0.1:{other.getsockname()[1]}")


@pytest.mark.parametrize("address", ["http://127.0.0.1:{port}", "127.0.0.1", "ftp://127.0.0.1"])
def test_sr3_submit_without_a_server(address: str) -> None:
    done = CliRunner().invoke(cli.main, ["submit", "demo", "--endpoint", address.format(port=free_port()), *ROOT])
    assert done.exit_code == 2 and line(done).startswith("sr3: bad input: ")


def test_sr3_submit_wants_root_and_mlflow(sr3: Callable[..., Ended], tmp_path: Path) -> None:
    done = sr3("submit", "demo", "--endpoint", "http://127.0.0.1:1", "--root", "gs://b/r", cwd=tmp_path)
    assert done.code == 2 and "--mlflow-uri" in done.stderr
