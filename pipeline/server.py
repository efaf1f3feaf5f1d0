"""A KFP API server: the compiled pipeline is uploaded there once a commit, started, repeated, and followed to its end.

Whatever the server answers becomes one line that says what to check. Credentials come from the environment (``credentials``).
"""

import contextlib
import io
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sr3_core.errors import BadInput, Failed

HEALTH = "/apis/v2beta1/healthz"
TOKEN_VARIABLE = "KFP_TOKEN"  # noqa: S105 - a name
PATIENCE_SECONDS = 30.0  # for one answer
POLL_SECONDS = 5.0
RETRIES = 5  # while following: after 1, 2, 4, 8 and 16 seconds
_CHECK_SECONDS = 5.0
_ALLOWED = "the address of a KFP API server, as http://host:8888"
_LOG_IN = f"log in: {TOKEN_VARIABLE}=<bearer token>, KF_PIPELINES_SA_TOKEN_PATH=<file of one>, or the client's own ~/.config/kfp"
_OTHER = f"check --endpoint; behind a login page set {TOKEN_VARIABLE}"
_ENDED = ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED")
_ENGINE = ("root", "executor", "driver")  # tasks of the engine's own beside the rooms'


def check(endpoint: str) -> None:
    """Raise BadInput when no KFP answers at ``endpoint`` within seconds; the client itself would try for half a minute."""
    if not endpoint.startswith(("http://", "https://")):
        raise BadInput(f"endpoint {endpoint!r}", _ALLOWED, "give the whole address")
    request = urllib.request.Request(f"{endpoint.rstrip('/')}{HEALTH}", headers=_header())  # noqa: S310 - http(s), see above
    try:
        with urllib.request.urlopen(request, timeout=_CHECK_SECONDS) as answer:  # noqa: S310
            if not isinstance(json.loads(answer.read()), dict):
                raise ValueError("no mapping")
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            if not _client_logs_in():
                raise BadInput(f"KFP at {endpoint} wants credentials ({error.code})", "a valid login", _LOG_IN) from None
        elif error.code >= 500:
            raise Failed(f"KFP at {endpoint} fails ({error.code} {error.reason}); check that its API server runs") from None
        else:
            raise BadInput(f"what answers at {endpoint} is not KFP ({error.code})", _ALLOWED, "check --endpoint") from None
    except ValueError:
        raise BadInput(f"what answers at {endpoint} is not KFP (no JSON)", _ALLOWED, _OTHER) from None
    except (OSError, urllib.error.URLError) as error:
        reason = getattr(error, "reason", error)
        raise BadInput(f"KFP at {endpoint} does not answer ({reason})", _ALLOWED, "check --endpoint") from None
    except Exception as error:  # http.client's: what listens there speaks another protocol
        raise BadInput(f"what answers at {endpoint} is not KFP ({type(error).__name__})", _ALLOWED, "check --endpoint") from None


class Server:
    """The server at ``endpoint``; ``namespace`` is the user's in KFP's multi-user mode, else empty."""

    def __init__(self, endpoint: str, *, namespace: str = "") -> None:
        check(endpoint)
        from kfp import Client
        from kfp.client import ServiceAccountTokenVolumeCredentials

        self.endpoint, self._namespace = endpoint.rstrip("/"), namespace
        path = os.environ.get("KF_PIPELINES_SA_TOKEN_PATH", "")
        with self._asking("log in"):
            self._client = Client(
                host=self.endpoint,
                namespace=namespace or "kubeflow",  # the client's word for none
                existing_token=os.environ.get(TOKEN_VARIABLE) or None,
                credentials=ServiceAccountTokenVolumeCredentials(path) if path else None,
            )
        self._bound()

    def upload(self, package: Path, *, name: str, version: str) -> tuple[str, str]:
        """Ids of the pipeline ``name`` and of its version ``version`` of ``package``; what is there already is used."""
        from kfp_server_api import ApiException, V2beta1Pipeline

        with self._asking("look for the pipeline"):
            pipeline = self._client.get_pipeline_id(name)
        if pipeline is None:
            with self._asking("create the pipeline"):
                body = V2beta1Pipeline(name=name, display_name=name, namespace=self._namespace or None)
                pipeline = self._id(self._client.pipelines.pipeline_service_create_pipeline(body).pipeline_id)
        found = self._version(pipeline, version)
        if found is None:
            with self._asking("upload the pipeline version"):
                try:
                    made = self._client.upload_pipeline_version(str(package), version, pipeline_id=pipeline)
                    found = self._id(made.pipeline_version_id)
                except ApiException as error:
                    if error.status != 409:
                        raise
        found = found or self._version(pipeline, version)  # 409: another submission was faster
        if found is None:
            raise BadInput(
                f"KFP at {self.endpoint} has another version {version} of {name} (409)", "a version of its own", "remove it in KFP"
            )
        return pipeline, found

    def run(self, ids: tuple[str, str], *, name: str, experiment: str, parameters: dict[str, str], service_account: str | None) -> str:
        """Start a run of the uploaded version; its id."""
        with self._asking("start a run"):
            return self._id(
                self._client.run_pipeline(
                    self._experiment(experiment),
                    name,
                    pipeline_id=ids[0],
                    version_id=ids[1],
                    params=parameters,
                    pipeline_root=_pipeline_root(parameters),
                    service_account=service_account,
                ).run_id
            )

    def recur(
        self,
        ids: tuple[str, str],
        *,
        every: str | int,
        name: str,
        experiment: str,
        parameters: dict[str, str],
        service_account: str | None,
    ) -> str:
        """Start the uploaded version again and again: at the times of a cron expression of six fields, or each ``every`` seconds; the id.

        One run at a time, and none is made up for. Raises BadInput when a recurring run of this name is there.
        """
        with self._asking("create a recurring run"):
            place = self._experiment(experiment)
            listed = self._client.list_recurring_runs(experiment_id=place, page_size=100).recurring_runs or []
            if any(item.display_name == name for item in listed):
                raise BadInput(f"a recurring run {name} in experiment {experiment}", "one of a name", "delete it in KFP, or give --run-key")
            return self._id(
                self._client.create_recurring_run(
                    place,
                    name,
                    cron_expression=every if isinstance(every, str) else None,
                    interval_second=every if isinstance(every, int) else None,
                    max_concurrency=1,
                    no_catchup=True,
                    params=parameters,
                    pipeline_id=ids[0],
                    version_id=ids[1],
                    pipeline_root=_pipeline_root(parameters),
                    service_account=service_account,
                ).recurring_run_id
            )

    def follow(self, run_id: str, say: Callable[[str], None]) -> bool:
        """Say each change of a task's state until the run has ended; whether it succeeded. It goes on when the server is lost."""
        states: dict[str, str] = {}
        failures = 0
        while True:
            try:
                with self._asking("follow the run"):
                    run = self._client.get_run(run_id)
                failures = 0
            except Failed as error:
                if failures == RETRIES:
                    raise Failed(f"{error}; run {run_id} goes on: {self.page(run_id)}") from None
                time.sleep(2**failures)
                failures += 1
                continue
            for task in (run.run_details.task_details or []) if run.run_details else []:
                name = str(task.display_name or task.task_id)
                if not name.endswith(_ENGINE) and task.state and states.get(task.task_id) != task.state:
                    states[task.task_id] = task.state
                    reason = f": {_one_line(task.error.message)}" if task.state == "FAILED" and task.error and task.error.message else ""
                    say(f"{name}: {task.state}{reason}")
            if run.state in _ENDED:
                reason = f": {_one_line(run.error.message)}" if run.error and run.error.message else ""
                say(f"run {run_id}: {run.state}{reason}")
                return bool(run.state == "SUCCEEDED")
            time.sleep(POLL_SECONDS)

    def page(self, run_id: str) -> str:
        """Where the run is seen in a browser."""
        return f"{self.endpoint}/#/runs/details/{run_id}"

    def _experiment(self, name: str) -> str:
        return self._id(self._client.create_experiment(name, namespace=self._namespace or None).experiment_id)

    def _version(self, pipeline: str, name: str) -> str | None:
        equal = {"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]}
        with self._asking("look for the pipeline version"):
            found = self._client.list_pipeline_versions(pipeline, filter=json.dumps(equal)).pipeline_versions or []
        return next((str(version.pipeline_version_id) for version in found if version.display_name == name), None)

    def _bound(self) -> None:
        """Let no request of the client wait for ever; it has no such setting of its own."""
        rest = self._client.runs.run_service_get_run.__self__.api_client.rest_client
        request = rest.request
        rest.pool_manager.clear()
        rest.pool_manager.connection_pool_kw["retries"] = False
        rest.request = lambda *given, **options: request(*given, **{**options, "_request_timeout": (PATIENCE_SECONDS, PATIENCE_SECONDS)})

    def _id(self, value: Any) -> str:
        """An id that the server gave; the client takes a login page for an answer without one."""
        if not isinstance(value, str) or not value:
            raise BadInput(f"what answers at {self.endpoint} is not KFP (no id)", _ALLOWED, _OTHER)
        return value

    @contextlib.contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        """A request of the client: its own printing left out, what goes wrong said in one line."""
        import urllib3
        from kfp_server_api import ApiException

        try:
            with contextlib.redirect_stdout(io.StringIO()):
                yield
        except ApiException as error:
            raise self._refusal(error, what) from None
        except (urllib3.exceptions.HTTPError, OSError) as error:  # a TimeoutError is an OSError
            asked = f"KFP at {self.endpoint} does not answer, asked to {what} ({_last(error)})"
            raise Failed(f"{asked}; check it, then its list of runs") from None
        except ValueError as error:
            raise BadInput(f"what answers at {self.endpoint} is not KFP ({_last(error)})", _ALLOWED, _OTHER) from None

    def _refusal(self, error: Any, what: str) -> BadInput | Failed:
        status, message = error.status, _message(error)
        if status == 401:
            return BadInput(f"KFP at {self.endpoint} does not know these credentials (401 {message})", "a valid login", _LOG_IN)
        if status == 403:
            do = "ask for it, or name your own with --namespace"
            return BadInput(f"no right to {what} at {self.endpoint} (403 {message})", "that right in the namespace", do)
        if status == 409:
            do = "choose another --run-key or --experiment"
            return BadInput(f"KFP at {self.endpoint} has that already, asked to {what} (409 {message})", "a new name", do)
        if status and status < 500 and status not in (408, 429):
            return BadInput(
                f"KFP at {self.endpoint} refused to {what} ({status} {message})", _ALLOWED, "check the endpoint and its version"
            )
        return Failed(f"KFP at {self.endpoint} failed, asked to {what} ({status} {message}); check its log, then its list of runs")


def _header() -> dict[str, str]:
    """The credentials that the environment names, for the first question."""
    token, path = os.environ.get(TOKEN_VARIABLE, ""), os.environ.get("KF_PIPELINES_SA_TOKEN_PATH", "")
    if path and not token:
        try:
            token = Path(path).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise BadInput(f"KF_PIPELINES_SA_TOKEN_PATH={path} cannot be read ({error.strerror})", "a file with a token", _LOG_IN) from None
    return {"Authorization": f"Bearer {token}"} if token else {}


def _client_logs_in() -> bool:
    """Whether the client has a login of its own kind, that the first question does not know."""
    return "KF_PIPELINES_IAP_OAUTH2_CLIENT_ID" in os.environ or Path("~/.config/kfp/context.json").expanduser().exists()


def _pipeline_root(parameters: dict[str, str]) -> str:
    return f"{parameters['root'].rstrip('/')}/.kfp"


def _message(error: Any) -> str:
    try:
        body = json.loads(error.body)
        text = body.get("message") or body["error"]
    except (TypeError, ValueError, KeyError, AttributeError):
        text = error.reason or ""
    return _one_line(text)


def _one_line(text: Any) -> str:
    return " ".join(str(text).split())[:500]


def _last(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return _one_line(lines[-1]) if lines else type(error).__name__
