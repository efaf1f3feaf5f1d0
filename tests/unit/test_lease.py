"""One writer a folder: real processes contend, die and fall silent."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sr3_core import storage
from sr3_core.artifacts import lease as leases
from sr3_core.errors import BadInput, Failed

HOLD = """
import sys, time
from sr3_core.artifacts.lease import lease
with lease(sys.argv[1], task="other"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_second_writer_is_refused_and_a_dead_one_replaced(
    holder: subprocess.Popen[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        pytest.raises(BadInput, match=rf"in use by .*:{holder.pid} \(other\), since 20"),
        leases.lease(str(tmp_path), task="me", wait_seconds=0.3),
    ):
        pass
    holder.kill()  # not waited for yet: a zombie has no lease either
    time.sleep(0.1)
    with leases.lease(str(tmp_path), task="me") as held:
        held.check()
        assert "sr3| me takes over the lease of" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_predecessor_that_ends_is_waited_for(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    import threading

    threading.Timer(0.5, holder.kill).start()
    with leases.lease(str(tmp_path), task="me", wait_seconds=20):
        pass


@pytest.mark.parametrize("uri", ["path", "memory"])
def test_silence_makes_stale(uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path) if uri == "path" else f"memory://{tmp_path.name}"
    other = {"host": "elsewhere", "pid": 1, "process": "1", "namespace": "x", "task": "t", "since": time.time() - 500, "token": "a"}
    where = storage.join(folder, leases.LEASE)
    storage.write_json(where, {**other, "heartbeat": time.time() - 30})
    with pytest.raises(BadInput, match=r"in use by elsewhere:1 \(t\)"), leases.lease(folder, task="me", wait_seconds=60):
        pass
    storage.write_json(where, {**other, "heartbeat": time.time() - 61})
    with leases.lease(folder, task="me"):
        assert "no heartbeat for 61 s" in capsys.readouterr().out
    timeless = {**json.loads(json.dumps(leases._self())), "token": "x", "since": None, "heartbeat": "now"}
    for content in (b"{", b"[]", json.dumps(timeless).encode()):
        storage.write_bytes(where, content)
        with leases.lease(folder, task="me"):
            assert "damaged" in capsys.readouterr().out


def test_the_heart_beats_and_a_lost_lease_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.05)
    where = tmp_path / leases.LEASE
    with leases.lease(str(tmp_path), task="me") as held:
        first = json.loads(where.read_text())
        time.sleep(0.3)
        assert json.loads(where.read_text())["heartbeat"] > first["heartbeat"]
        held.check()
        until = time.monotonic() + 20
        while json.loads(where.read_text())["token"] != "b" and time.monotonic() < until:  # a beat that is under way may overwrite it once
            storage.write_json(str(where), {**first, "token": "b", "host": "thief"})
            time.sleep(0.2)
        with pytest.raises(Failed, match="lost its lease"):
            held.check()
    assert json.loads(where.read_text())["host"] == "thief"
    assert "lost its lease" in capsys.readouterr().out


def test_the_lease_ends_with_its_block_even_by_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), leases.lease(str(tmp_path), task="me"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
