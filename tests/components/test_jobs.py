"""components/jobs.py on a real Ray head: a job is followed to its end, also through a connection that breaks."""

import asyncio
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import pytest
from aiohttp import web

from components import jobs
from sr3_core import config
from sr3_core.errors import BadInput, Failed
from tests.conftest import RayHead, free_port


def test_a_job_is_followed_and_ends_as_its_entry_ends(ray_head: RayHead, tmp_path: Path) -> None:
    """The submitter is a process of its own: this one is connected to the cluster."""
    follow = "jobs.submit_and_follow(sys.argv[1], 'components.train', sys.argv[2:], fingerprint='test')"
    submit = f"import sys; from components import jobs; {follow}"
    arguments = ["--section={}", f"--shards-uri={tmp_path}", f"--root={tmp_path}"]
    ended = subprocess.run([sys.executable, "-c", submit, ray_head.jobs, *arguments], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert "sr3| ray submitted job sr3-test-0" in ended.stdout
    assert "bad input: no value for name" in ended.stdout  # its log was followed
    assert ended.stderr.rstrip().endswith("BadInput: bad input: no value for name; allowed: a value: the key is required; do: add it")


def test_nothing_listens_at_the_job_address() -> None:
    with pytest.raises(BadInput, match="does not answer"):
        jobs.submit_and_follow(f"http://127.0.0.1:{free_port()}", "components.train", [], fingerprint="test")


class Board:
    """A head's job API on loopback, whose list is older than its jobs: another one submits at the same time."""

    def __init__(self, there: dict[str, str]) -> None:
        """``there``: the entrypoints of the jobs that are there, by id."""
        self.there, self.submitted = there, list[str]()
        self._loop, self._ready, self._done = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
        self.url = f"http://127.0.0.1:{free_port()}"
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve()), daemon=True)

    def __enter__(self) -> "Board":
        self._thread.start()
        assert self._ready.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._done.set)
        self._thread.join(20)
        self._loop.close()

    async def _serve(self) -> None:
        application = web.Application()
        application.add_routes([
            web.get("/api/version", self._version), web.get("/api/jobs/", self._list), web.post("/api/jobs/", self._submit),
            web.get("/api/jobs/{id}", self._info), web.get("/api/jobs/{id}/logs/tail", self._log),
        ])  # fmt: skip
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", int(self.url.rpartition(":")[2])).start()
        self._ready.set()
        await self._done.wait()
        await runner.cleanup()

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": "4", "ray_version": metadata.version("ray"), "ray_commit": ""})

    async def _list(self, _: web.Request) -> web.Response:
        return web.json_response([])

    async def _submit(self, request: web.Request) -> web.Response:
        asked = await request.json()
        job = asked["submission_id"]
        if job in self.there:
            text = f"Traceback ...\nValueError: Job with submission_id {job} already exists. Please use a different submission_id."
            return web.Response(status=500, text=text)
        if asked["entrypoint"].endswith("refused"):
            return web.Response(status=500, text="No available agent to submit job, please try again later.")
        self.there[job] = asked["entrypoint"]
        self.submitted.append(job)
        return web.json_response({"job_id": job, "submission_id": job})

    async def _info(self, request: web.Request) -> web.Response:
        job = request.match_info["id"]
        if job not in self.there:
            return web.Response(status=404, text=f"Job {job} does not exist")
        ended = {"status": "SUCCEEDED", "driver_exit_code": 0}
        return web.json_response({"type": "SUBMISSION", "submission_id": job, "entrypoint": self.there[job], **ended})

    async def _log(self, request: web.Request) -> web.WebSocketResponse:
        answer = web.WebSocketResponse()
        await answer.prepare(request)
        await answer.send_str(f"the log of {request.match_info['id']}\n")
        await answer.close()
        return answer


def test_two_that_submit_at_once_follow_one_job(capsys: pytest.CaptureFixture[str]) -> None:
    with Board({"sr3-both-0": "python -m components.train --root=/a"}) as board:
        jobs.submit_and_follow(board.url, "components.train", ["--root=/a"], fingerprint="both")
        assert board.submitted == []
    said = capsys.readouterr().out
    assert "sr3| ray following job sr3-both-0, which another one submitted" in said and "the log of sr3-both-0" in said


def test_a_name_that_another_work_has_taken_meanwhile_is_passed_over(capsys: pytest.CaptureFixture[str]) -> None:
    with Board({"sr3-both-0": "python -m components.train --root=/b"}) as board:
        jobs.submit_and_follow(board.url, "components.train", ["--root=/a"], fingerprint="both")
        assert board.submitted == ["sr3-both-1"]
    assert "the log of sr3-both-1" in capsys.readouterr().out


def test_a_job_that_the_head_does_not_take_may_be_tried_again() -> None:
    with Board({}) as board, pytest.raises(Failed, match=r"did not take job sr3-both-0 \(.*No available agent"):
        jobs.submit_and_follow(board.url, "components.train", ["refused"], fingerprint="both")


class Way:
    """A way to a port of this machine that can be cut, with every connection on it, and mended."""

    def __init__(self, to: int) -> None:
        self.port, self._to = free_port(), to
        self._open: list[socket.socket] = []
        self.mend()

    def mend(self) -> None:
        listener = socket.create_server(("127.0.0.1", self.port))
        self._open.append(listener)
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def cut(self) -> None:
        for one in self._open:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._open.clear()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                ends = listener.accept()[0], socket.create_connection(("127.0.0.1", self._to))
                self._open += ends
                for source, sink in (ends, ends[::-1]):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while part := source.recv(65536):
                sink.sendall(part)
            sink.shutdown(socket.SHUT_WR)


@pytest.fixture
def way(ray_head: RayHead) -> Iterator[Way]:
    made = Way(int(ray_head.jobs.rpartition(":")[2]))
    yield made
    made.cut()


ENTRY = "import time; from pathlib import Path; print('begun', flush=True)\nwhile not Path({marker!r}).exists(): time.sleep(0.2)"


def followed(way: Way, marker: Path, fingerprint: str, *, retries: int, through: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """The submitter of a job that prints, waits for ``marker`` and prints again; its log has begun. ``through``: what starts it."""
    follow = f"jobs.submit_and_follow(sys.argv[1], 'timeit', sys.argv[2:], fingerprint={fingerprint!r})"
    guard = f"entry.guard('train-x', root={str(marker.parent)!r}, run_key='key')"
    submit = f"import sys; from components import entry, jobs; jobs.RETRIES = {retries}\nwith {guard}:\n    {follow}"
    arguments = ["--number=1", "--repeat=1", f"--setup={ENTRY.format(marker=str(marker))}", "print('done')"]
    command = [*through, sys.executable, "-c", submit, f"http://127.0.0.1:{way.port}", *arguments]
    submitter = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert submitter.stdout is not None
    assert any(line == "begun\n" for line in submitter.stdout)
    return submitter


def ended(ray_head: RayHead, job: str) -> str:
    """The job's state once it has ended."""
    from ray.job_submission import JobSubmissionClient

    client = JobSubmissionClient(ray_head.jobs)
    deadline = time.monotonic() + 60
    while not (status := client.get_job_status(job)).is_terminal():
        assert time.monotonic() < deadline
        time.sleep(0.5)
    return str(status.value)


def test_term_stops_the_job(way: Way, ray_head: RayHead, tmp_path: Path) -> None:
    submitter = followed(way, tmp_path / "marker", "term", retries=jobs.RETRIES)
    submitter.send_signal(signal.SIGTERM)
    assert submitter.wait(60) == 128 + signal.SIGTERM
    assert ended(ray_head, "sr3-term-0") == "STOPPED"


def test_the_end_of_the_one_who_started_the_room_stops_the_job(way: Way, ray_head: RayHead, tmp_path: Path) -> None:
    """Kubernetes ends a task's launcher; the room below it may never hear of it."""
    launcher = followed(way, tmp_path / "marker", "orphan", retries=jobs.RETRIES, through=("sh", "-c", '"$@" & wait', "sh"))
    launcher.kill()
    assert ended(ray_head, "sr3-orphan-0") == "STOPPED"


def test_a_credential_is_not_made_a_parameter_of_a_job() -> None:
    given = ["--section={}", "--mlflow-uri=https://me:hunter2@mlflow.example"]
    for arguments in (given, ["--section", "{}", "--mlflow-uri", "https://me:hunter2@mlflow.example"]):
        with pytest.raises(BadInput, match="credential") as refused:
            jobs.run_elsewhere("http://127.0.0.1:1", "components.train", arguments, fingerprint="test", scaling=config.Scaling())
        assert "hunter2" not in str(refused.value)


def test_a_broken_connection_is_made_again(way: Way, tmp_path: Path) -> None:
    submitter = followed(way, tmp_path / "marker", "broken", retries=jobs.RETRIES)
    way.cut()
    assert submitter.stdout is not None
    assert "lost touch with job sr3-broken-0" in submitter.stdout.readline()
    way.mend()
    (tmp_path / "marker").touch()
    said, errors = submitter.communicate(timeout=120)
    assert submitter.returncode == 0, errors
    assert "done" in said and "begun" not in said  # the log goes on where it broke off


def test_a_job_out_of_reach_goes_on_and_is_found_again(way: Way, tmp_path: Path) -> None:
    submitter = followed(way, tmp_path / "marker", "lost", retries=1)
    way.cut()
    said, errors = submitter.communicate(timeout=120)
    assert submitter.returncode == 1
    assert "it was not stopped and goes on: the same command follows it again" in said.splitlines()[-1], errors
    way.mend()
    again = followed(way, tmp_path / "marker", "lost", retries=1)
    (tmp_path / "marker").touch()
    said, errors = again.communicate(timeout=120)
    assert again.returncode == 0 and "done" in said, errors
