"""components/cluster.py on a real Ray head: which Ray is chosen, tasks with retries; each refusal is one clear line."""

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from components import cluster
from sr3_core.errors import BadInput, Failed
from tests.conftest import RayHead
from tests.plugins import tasks


@pytest.fixture(scope="module")
def connected(ray_head: RayHead) -> Iterator[cluster.Cluster]:
    with cluster.connect(ray_head.address, workers=2) as there:
        yield there


def test_the_head_is_used_and_its_cpus_are_shared_out(connected: cluster.Cluster, ray_head: RayHead) -> None:
    assert connected == cluster.Cluster(address=ray_head.address, cpus=4, gpus=0, cpus_per_worker=2)


def test_results_come_in_order_and_each_is_told(connected: cluster.Cluster) -> None:
    told: dict[int, int] = {}
    assert cluster.map_tasks(tasks.square, range(7), on_done=told.__setitem__, at_once=3) == [0, 1, 4, 9, 16, 25, 36]
    assert told == {number: number * number for number in range(7)}


def test_a_task_whose_process_dies_is_tried_again(connected: cluster.Cluster, tmp_path: Path) -> None:
    assert cluster.map_tasks(tasks.dies_once, [str(tmp_path / "marker")], retries=1) == ["alive"]


def test_a_task_that_fails_for_a_moment_is_tried_again(connected: cluster.Cluster, tmp_path: Path) -> None:
    told: list[str] = []
    markers = [str(tmp_path / "one"), str(tmp_path / "two")]
    assert cluster.map_tasks(tasks.raises_once, markers, retries=1, on_done=lambda _, said: told.append(said)) == ["answered"] * 2
    assert told == ["answered"] * 2
    with pytest.raises(Failed, match="failed 1 times, at last with ConnectionResetError: the store hung up"):
        cluster.map_tasks(tasks.raises_once, [str(tmp_path / "three")], retries=0)


def test_a_final_failure_names_the_item(connected: cluster.Cluster) -> None:
    with pytest.raises(Failed, match="photo 2 failed 2 times, at last with ValueError: two is not allowed"):
        cluster.map_tasks(tasks.fails, [1, 2, 3], retries=1, name=lambda number: f"photo {number}")


def test_bad_input_is_not_tried_again(connected: cluster.Cluster, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="a photo"):
        cluster.map_tasks(tasks.refuses, [str(tmp_path / "attempts")], retries=3)
    assert (tmp_path / "attempts").read_text() == "x"


@pytest.mark.parametrize(("asked", "line"), [({"workers": 5}, "5 workers x 1 CPU"), ({"workers": 1, "gpus_per_worker": 1}, "1 GPU")])
def test_more_workers_than_resources(connected: cluster.Cluster, asked: dict[str, int], line: str) -> None:
    with pytest.raises(BadInput, match=f"{line}.*what is there: 4 CPU, 0 GPU"), cluster.connect(connected.address, **asked):
        pass


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere", "ray://127.0.0.1:10001", "http://127.0.0.1:1"])
def test_an_address_that_is_no_ray(address: str) -> None:
    with pytest.raises(BadInput), cluster.connect(address, workers=1):
        pass
    with pytest.raises(BadInput):
        cluster.check(address)


class _Other(BaseHTTPRequestHandler):
    """Some other server: a page on everything, or JSON that is not Ray's."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"[]" if self.path.startswith("/json") else b"<html>hello</html>")

    def log_message(self, *_: object) -> None:
        return


@pytest.mark.parametrize("path", ["", "/json"])
def test_a_server_that_is_no_ray(path: str) -> None:
    with HTTPServer(("127.0.0.1", 0), _Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(BadInput) as refused:
            cluster.check(f"http://127.0.0.1:{server.server_port}{path}")
        server.shutdown()
    assert "is not Ray; allowed: the dashboard address of a Ray head; do: check the port" in str(refused.value)


def test_a_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_CONNECT_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(BadInput) as refused:
        cluster.check(f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert "does not answer (timed out)" in str(refused.value) and "check it and that the head runs" in str(refused.value)


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("ray://127.0.0.1:10001", "do: use the job address"),
        ("http://127.0.0.1:1", "does not answer"),
        ("127.0.0.1:1", "check the address, or leave it out for a local Ray"),
        ("nowhere", "HOST:PORT of a head"),
    ],
)
def test_an_address_says_what_to_check(address: str, says: str) -> None:
    with pytest.raises(BadInput) as refused:
        cluster.check(address)
    assert says in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
def test_a_socket_path_that_is_too_long(variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(variable, str(tmp_path / ("x" * 60)))
    with pytest.raises(BadInput, match=rf"{variable} of \d+ bytes.*set RAY_TMPDIR to a shorter folder"):
        cluster.check("")
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")  # it comes first
    cluster.check("")


def test_one_core_takes_two_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a Ray of its own is asked for on a machine of one core, without starting it."""
    cluster.quieten()
    import ray

    asked: dict[str, Any] = {}
    monkeypatch.setenv("PYTHONPATH", "")  # connect changes it
    monkeypatch.setattr(cluster, "cores", lambda: 1)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **settings: asked.update(settings))
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": float(asked["num_cpus"])})
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with cluster.connect("", workers=2) as there:
        assert there == cluster.Cluster(address="", cpus=2, gpus=0, cpus_per_worker=1)
    assert asked["address"] == "local"
    with pytest.raises(BadInput, match=r"2 workers x 2 CPU.*what is there: 2 CPU"), cluster.connect("", workers=2, cpus_per_worker=2):
        pass


def test_the_code_hash_covers_code_and_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "PROJECT", tmp_path)
    found = [cluster.code_hash()]
    for name, text in ((cluster.LOCK, "numpy==2"), (cluster.LOCK, "numpy==3"), ("sr3_core/storage.py", "x = 1")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        found.append(cluster.code_hash())
    (tmp_path / "README.md").touch()
    assert len(set(found)) == 4 and cluster.code_hash() == found[-1]
