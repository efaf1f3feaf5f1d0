"""A KFP API server on loopback as far as starting a run goes: each body must fit the published type, unknown keys are refused.

It proves the client's side only: nothing is run.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import kfp_server_api

API = "/apis/v2beta1"
CREATED = "2026-01-01T00:00:00Z"


@dataclass
class Stub:
    """The server's address, the bodies it accepted by resource, and what it refused."""

    address: str = ""
    experiments: list[Any] = field(default_factory=list)
    runs: list[Any] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def strictly(body: Any, type_name: str, where: str = "") -> None:
    """Raise ValueError for a key that the published type does not have."""
    if type_name.startswith("list["):
        for index, item in enumerate(body):
            strictly(item, type_name[5:-1], f"{where}[{index}]")
    elif type_name.startswith("dict("):
        for key, item in body.items():
            strictly(item, type_name[5:-1].split(", ", 1)[1], f"{where}.{key}")
    elif isinstance(model := getattr(kfp_server_api, type_name, None), type) and hasattr(model, "attribute_map") and isinstance(body, dict):
        names = {json_name: name for name, json_name in model.attribute_map.items()}
        for key, item in body.items():
            if key not in names:
                raise ValueError(f"unknown key {where}.{key} of {type_name}")
            if item is not None:
                strictly(item, model.openapi_types[names[key]], f"{where}.{key}")


def parsed(data: bytes, type_name: str) -> Any:
    """The body as an object of kfp_server_api, after ``strictly``."""
    strictly(json.loads(data), type_name)
    return kfp_server_api.ApiClient().deserialize(SimpleNamespace(data=data), type_name)


@contextmanager
def serving() -> Iterator[Stub]:
    stub = Stub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            return

        def _answer(self, code: int, value: dict[str, Any]) -> None:
            body = json.dumps(value).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == f"{API}/healthz":
                self._answer(200, {"multi_user": False})
            elif path == f"{API}/experiments":
                self._answer(
                    200,
                    {"experiments": [{"experiment_id": f"e{i}", "display_name": e.display_name} for i, e in enumerate(stub.experiments)]},
                )
            elif path.startswith(f"{API}/runs/r") and int(path.rpartition("r")[2]) < len(stub.runs):
                index = int(path.rpartition("r")[2])
                self._answer(
                    200, {"run_id": f"r{index}", "display_name": stub.runs[index].display_name, "state": "PENDING", "created_at": CREATED}
                )
            else:
                self._answer(404, {"message": f"no {path}"})

        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            try:
                if self.path == f"{API}/experiments":
                    stub.experiments.append(parsed(data, "V2beta1Experiment"))
                    self._answer(200, {"experiment_id": f"e{len(stub.experiments) - 1}", "display_name": stub.experiments[-1].display_name})
                elif self.path.partition("?")[0] == f"{API}/runs":
                    stub.runs.append(parsed(data, "V2beta1Run"))
                    self._answer(200, {"run_id": f"r{len(stub.runs) - 1}", "display_name": stub.runs[-1].display_name, "state": "PENDING"})
                else:
                    self._answer(404, {"message": f"no {self.path}"})
            except ValueError as error:
                stub.refused.append(str(error))
                self._answer(400, {"message": str(error)})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    stub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
