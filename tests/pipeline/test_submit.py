"""The client's side of a KFP server: the stub takes what `kfp run create` and `sr3 submit` send, and nothing else."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import kfp_server_api
import pytest

from tests.conftest import BIN, Ended, free_port
from tests.pipeline import kfp_stub

GOLDEN = Path(__file__).parent / "golden" / "demo.yaml"


@pytest.fixture
def stub() -> Iterator[kfp_stub.Stub]:
    with kfp_stub.serving() as server:
        yield server


def test_the_stub_refuses_unknown_keys() -> None:
    kfp_stub.strictly({"display_name": "x", "runtime_config": {"parameters": {"a": 1}}}, "V2beta1Run")
    for body in ({"name": "x"}, {"runtime_config": {"parameter": {}}}, {"pipeline_version_reference": {"pipeline": "x"}}):
        with pytest.raises(ValueError, match="unknown key"):
            kfp_stub.strictly(body, "V2beta1Run")


def test_kfp_run_create(stub: kfp_stub.Stub, tmp_path: Path) -> None:
    command = [str(BIN / "kfp"), "--endpoint", stub.address, "run", "create", "-e", "experiment", "-r", "name", "-f", str(GOLDEN)]
    done = subprocess.run(
        [*command, "root=gs://bucket/runs", "mlflow_uri=http://mlflow:5000"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert not stub.refused
    run = stub.runs[0]
    assert isinstance(run, kfp_server_api.V2beta1Run) and run.display_name == "name" and run.experiment_id == "e0"
    assert run.runtime_config.parameters == {"root": "gs://bucket/runs", "mlflow_uri": "http://mlflow:5000"}
    assert (
        run.pipeline_spec["pipeline_spec"]["pipelineInfo"]["name"] == "sr3-demo"
        and "kubernetes" in run.pipeline_spec["platform_spec"]["platforms"]
    )


def test_sr3_submit(stub: kfp_stub.Stub, sr3: Callable[..., Ended], tmp_path: Path) -> None:
    done = sr3(
        "submit", "demo", "--endpoint", stub.address, "--root", "gs://bucket/runs", "--mlflow-uri", "http://mlflow:5000", cwd=tmp_path
    )
    assert done.code == 0, done.stderr
    assert not stub.refused
    parameters = stub.runs[0].runtime_config.parameters
    assert parameters["root"] == "gs://bucket/runs" and parameters["run_key"].startswith("demo-")
    assert stub.runs[0].runtime_config.pipeline_root == "gs://bucket/runs/.kfp"
    assert f"run r0: {stub.address}" in done.stdout


@pytest.mark.parametrize("address", ["http://127.0.0.1:{port}", "127.0.0.1", "ftp://127.0.0.1"])
def test_sr3_submit_without_a_server(address: str, sr3: Callable[..., Ended], tmp_path: Path) -> None:
    endpoint = address.format(port=free_port())
    done = sr3("submit", "demo", "--endpoint", endpoint, "--root", "gs://b/r", "--mlflow-uri", "http://mlflow:5000", cwd=tmp_path)
    assert done.code == 2 and done.stderr.startswith("sr3: bad input: ") and done.stderr.count("\n") == 1


def test_sr3_submit_wants_root_and_mlflow(sr3: Callable[..., Ended], tmp_path: Path) -> None:
    done = sr3("submit", "demo", "--endpoint", "http://127.0.0.1:1", "--root", "gs://b/r", cwd=tmp_path)
    assert done.code == 2 and "--mlflow-uri" in done.stderr
