"""A KFP API server on loopback as far as submitting goes: each body must fit the published type, unknown keys are refused.

It proves the client's side only: nothing is run.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import kfp_server_api
import yaml

from tests.published import KfpRequests

API = "/apis/v2beta1"
CREATED = "2026-01-01T00:00:00Z"


@dataclass
class Stub:
    """The server's address, the bodies it accepted by resource, what it refused, and what it is told to do.

    ``faults``: "METHOD /path" (below API) -> (status, message); status 0: never an answer, status 1: an answer that is no JSON.
    ``states``: what a run is at one look after the other, its state and its tasks' by name ("FAILED: why"); the last one stays.
    """

    address: str = ""
    published: KfpRequests | None = None
    experiments: list[Any] = field(default_factory=list)
    runs: list[Any] = field(default_factory=list)
    recurring: list[Any] = field(default_factory=list)
    pipelines: list[Any] = field(default_factory=list)
    versions: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)  # pipeline's id, name, pipeline spec
    refused: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    faults: dict[str, tuple[int, str]] = field(default_factory=dict)
    states: list[tuple[str, dict[str, str]]] = field(default_factory=lambda: [("PENDING", {})])


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
def serving(schemas: Path | None = None) -> Iterator[Stub]:
    """With ``schemas`` each request must fit KFP's published interface too."""
    stub = Stub(published=KfpRequests(schemas) if schemas else None)
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            return

        def _answer(self, code: int, value: Any) -> None:
            body = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _serve(self, method: str) -> None:
            parts = urlsplit(self.path)
            path, query = parts.path.removeprefix(API), dict(parse_qsl(parts.query))
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            is_json = bool(data) and not self.headers["Content-Type"].startswith("multipart/")
            stub.asked.append(f"{method} {path}")
            stub.tokens.append(self.headers.get("Authorization", ""))
            if stub.published:
                stub.refused += stub.published.faults(method.lower(), API + path, list(query), json.loads(data) if is_json else None)
            code, message = stub.faults.get(f"{method} {path}", (200, ""))
            if code == 0:
                over.wait(60)
            elif code == 1:
                self._answer(200, message.encode())
            elif code != 200:
                self._answer(code, {"error": message, "code": 2, "message": message, "details": []})
            else:
                try:
                    self._answer(*_answered(stub, method, path, query, data))
                except ValueError as error:
                    stub.refused.append(str(error))
                    self._answer(400, {"message": str(error)})

        def do_GET(self) -> None:
            self._serve("GET")

        def do_POST(self) -> None:
            self._serve("POST")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    stub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        over.set()
        server.shutdown()
        server.server_close()
        thread.join()


_POSTED = {
    "/experiments": ("experiments", "V2beta1Experiment", "experiment_id", "e"),
    "/runs": ("runs", "V2beta1Run", "run_id", "r"),
    "/recurringruns": ("recurring", "V2beta1RecurringRun", "recurring_run_id", "c"),
    "/pipelines": ("pipelines", "V2beta1Pipeline", "pipeline_id", "p"),
}


def _answered(stub: Stub, method: str, path: str, query: dict[str, str], data: bytes) -> tuple[int, dict[str, Any]]:
    """Status and body of the answer; ValueError for a body that does not fit."""
    if (method, path) == ("GET", "/healthz"):
        return 200, {"multi_user": False}
    if method == "POST" and path in _POSTED:
        name, kind, key, letter = _POSTED[path]
        kept = getattr(stub, name)
        kept.append(parsed(data, kind))
        return 200, {key: f"{letter}{len(kept) - 1}", "display_name": kept[-1].display_name}
    if path.startswith("/pipelines"):
        return _pipelines(stub, path, query, data)
    if (method, path) == ("GET", "/experiments"):
        return 200, {"experiments": [{"experiment_id": f"e{i}", "display_name": e.display_name} for i, e in enumerate(stub.experiments)]}
    if (method, path) == ("GET", "/recurringruns"):
        listed = [{"recurring_run_id": f"c{i}", "display_name": item.display_name} for i, item in enumerate(stub.recurring)]
        return 200, {"recurringRuns": listed}
    index = path.removeprefix("/runs/r")
    if method == "GET" and index.isdigit() and int(index) < len(stub.runs):
        state, tasks = stub.states.pop(0) if len(stub.states) > 1 else stub.states[0]
        details = [{"task_id": f"t{name}", "display_name": name, **_state(value)} for name, value in tasks.items()]
        found = {"run_id": f"r{index}", "display_name": stub.runs[int(index)].display_name, "created_at": CREATED}
        return 200, {**found, **_state(state), "run_details": {"task_details": details}}
    return 404, {"message": f"no {method} {path}"}


def _state(text: str) -> dict[str, Any]:
    """What the interface says of "FAILED: why"."""
    state, _, reason = text.partition(": ")
    return {"state": state, **({"error": {"code": 2, "message": reason}} if reason else {})}


def _pipelines(stub: Stub, path: str, query: dict[str, str], data: bytes) -> tuple[int, dict[str, Any]]:
    wanted = next((predicate["stringValue"] for predicate in json.loads(query.get("filter") or "{}").get("predicates", [])), None)
    if path == "/pipelines":
        listed = [{"pipeline_id": f"p{i}", "display_name": item.display_name} for i, item in enumerate(stub.pipelines)]
        return 200, {"pipelines": [item for item in listed if item["display_name"] == wanted]}
    if path == "/pipelines/upload_version":
        made = (query["pipelineid"], query["name"])
        if made in [version[:2] for version in stub.versions]:
            return 409, {"message": f"the name {query['name']} already exists"}
        stub.versions.append((*made, _uploaded(data)))
        return 200, {"pipeline_id": made[0], "pipeline_version_id": f"v{len(stub.versions) - 1}", "display_name": made[1]}
    versions = [
        {"pipeline_id": pipeline, "pipeline_version_id": f"v{i}", "display_name": name}
        for i, (pipeline, name, _) in enumerate(stub.versions)
        if path == f"/pipelines/{pipeline}/versions" and wanted in (None, name)
    ]
    return 200, {"pipeline_versions": versions}


def _uploaded(data: bytes) -> dict[str, Any]:
    """The pipeline spec of an uploaded file: the first document of the form's only part."""
    boundary = data.split(b"\r\n", 1)[0]
    (part,) = [part for part in data.split(boundary) if b"uploadfile" in part]
    spec = next(yaml.safe_load_all(part.partition(b"\r\n\r\n")[2].rpartition(b"\r\n")[0]))
    if "pipelineInfo" not in spec:
        raise ValueError("no compiled pipeline")
    return dict(spec)
