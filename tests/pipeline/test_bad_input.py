"""Each bad input of `sr3 run`, `sr3 compile` and `sr3 submit` ends before any work: exit 2, one line that says what was got, nothing
left that a later run would trust."""

import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pipeline import cli
from tests.conftest import RECIPES, Ended, free_port, write_photos

TINY = str(RECIPES / "tiny.yaml")


@pytest.fixture
def run(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """``sr3 run`` (or another ``command``) in this process, in an empty folder; checks that it refused in one line and wrote nothing
    but an empty root."""
    monkeypatch.chdir(tmp_path)

    def refused(recipe: str, *arguments: str, says: str, source: Path | None = photos, command: str = "run") -> Result:
        given = ["--set", f"data.options.uri={source}"] if source else []
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        done = CliRunner().invoke(cli.main, [command, recipe, *given, *arguments])
        assert done.exit_code == 2, done.output + repr(done.exception)
        assert done.stderr.startswith("sr3: bad input: ") and done.stderr.count("\n") == 1, done.stderr
        assert says in done.stderr and "; do: " in done.stderr
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
        return done

    return refused


def test_unknown_recipe_names_the_nearest(run: Callable[..., Result]) -> None:
    run("demmo", says="demo (nearest)", source=None)


WRONG_VALUES = [
    ("data.levelz=[16,32]", "levels (nearest)"),
    ("stages.x2.training.imagess=8", "images (nearest)"),
    ("stages.x2.training.images=many", "stages.0.training.images='many'"),
    ("stages.7.training.images=8", "no item '7'"),
    ("stages.x2.model=null", "stages.0.model"),
    ("data.levels=null", "data.levels=None"),
    ("stages.x2.training.images=12", "multiple of global_batch"),
    ("stages.x2.model.name=unnet", "unet (nearest)"),
    ("stages.x2.model.options.channelz=3", "channels (nearest)"),
    ("stages.x2.model.options.norm_groups=3", "norm_groups 3 must divide every width"),
    ("stages.x2.model.options={channels: 8, multipliers: [1], attention_factors: [1], attention_max_side: 8}", "attention_max_side"),
    ("stages.x2.model.options={channels: 8, multipliers: [1, 1, 1, 1, 1, 1, 1], padding: forbid}", "multiples of 64"),
    ("stages.x2.objective.name=difusion", "diffusion (nearest)"),
    ("stages.x2.objective.options.prediction=epsilon", "prediction='epsilon'"),
    ("stages.x2.sampling.sampler=euler", "sampler='euler'"),
    ("stages.x2.objective.options.levels={schedule: {steps: 500}}", "levels.schedule.end=0.0396"),
    ("stages.x2.objective.options.schedule_guard=published", "schedule_guard_reason"),
    ("stages.x2.sampling.start=-7", "start at gamma 4.386e-05"),
    ("evaluation.search={split: val, metric: psnr_y, candidates: [{steps: 2}, {start: -7}]}", "start at gamma 4.386e-05"),
    ("evaluation.variants={early: {start: -7}}", "start at gamma 4.386e-05"),
    ("stages.x2.training.watch={images: 8, sampling: {start: -7}}", "start at gamma 4.386e-05"),
    ("stages.x2.training.watch={images: 12}", "watch.images 12 must be a multiple of global_batch 8"),
    ("evaluation.metrics=[psnr, lpipz]", "lpips (nearest)"),
    ("evaluation.gate=[{metric: lpips, limit: 1}]", "lpips"),
    ("evaluation.gate=[{metric: psnr, than: nearest}]", "than='nearest'"),
    ("scaling.workers=0", "scaling.workers=0"),
    ("nonsense", "nonsense"),
    ("data.source=foldr", "folder (nearest)"),
    ("data.options.urll=x", "uri (nearest)"),
    ("data.source=no.such.module", "does not import"),
]


@pytest.mark.parametrize("command", [("run",), ("compile", "-o", "pipeline.yaml")], ids=["run", "compile"])
@pytest.mark.parametrize(("change", "says"), WRONG_VALUES)
def test_wrong_values_name_themselves(change: str, says: str, command: tuple[str, ...], run: Callable[..., Result]) -> None:
    run(TINY, *command[1:], "--set", change, says=says, command=command[0])


def test_what_the_schedule_guard_warns_of_and_waives_is_said(tmp_path: Path, photos: Path) -> None:
    """A recipe that passes with a warning, and one that was refused but for its reason: a line each, once, and the work is done."""
    changes = ("stages.x2.objective.options.levels={schedule: {steps: 1000}}", "stages.x2.sampling.start=-2.5")
    published = (
        "stages.x2.objective.options.schedule_guard=published",
        "stages.x2.objective.options.schedule_guard_reason=as in the paper",
    )
    given = ["compile", TINY, "-o", str(tmp_path / "pipeline.yaml"), "--set", f"data.options.uri={photos}"]
    cases = ((changes, "warning: the schedule's 1000 steps"), ((*changes, *published, "stages.x2.sampling.start=-4"), "(as in the paper)"))
    for overrides, says in cases:
        done = CliRunner().invoke(cli.main, [*given, *(word for change in overrides for word in ("--set", change))])
        assert done.exit_code == 0, done.output
        said = [line for line in done.output.splitlines() if line.startswith("sr3| recipe x2: ")]
        assert len(said) == len(set(said)) >= 1 and says in done.output


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("stages.x2.model.options.channelz=3", "channels (nearest)"),
        ("evaluation.metrics=[psnr, lpipz]", "lpips (nearest)"),
        ("data.options.uri=nowhere", "does not exist"),
    ],
)
def test_submit_refuses_them_before_it_asks_the_server(change: str, says: str, run: Callable[..., Result]) -> None:
    server = ("--endpoint", f"http://127.0.0.1:{free_port()}", "--root", "gs://bucket/runs", "--mlflow-uri", "http://mlflow:5000")
    run(TINY, *server, "--set", change, says=says, command="submit")


@pytest.mark.parametrize(("text", "says"), [("name: [", "YAML"), ("name: a\nname: b\n", "name"), ("- 1\n", "mapping"), ("", "")])
def test_broken_yaml(text: str, says: str, run: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    run("mine.yaml", says=says, source=None)


def test_missing_and_empty_source(run: Callable[..., Result], tmp_path: Path) -> None:
    run(TINY, says="does not exist", source=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    run(TINY, says="no photo in", source=tmp_path / "empty")


@pytest.mark.parametrize("inside", ["", "runs/here"])
def test_root_in_the_source(inside: str, run: Callable[..., Result], tmp_path: Path) -> None:
    write_photos(tmp_path / "source", 2)
    run(TINY, "--root", str(tmp_path / "source" / inside), says="inside the source", source=tmp_path / "source")


def test_unwritable_root(run: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run(TINY, "--root", str(tmp_path / "file" / "root"), says="cannot be written")
    run(TINY, "--root", "nosuch://bucket/root", "--mlflow-uri", "http://127.0.0.1:1", says="nosuch")


def test_a_remote_root_wants_an_mlflow(run: Callable[..., Result]) -> None:
    run(TINY, "--root", "gs://bucket/runs", says="no MLflow URI")


def test_mlflow_that_is_down(run: Callable[..., Result]) -> None:
    run(TINY, "--mlflow-uri", f"http://127.0.0.1:{free_port()}", says="MLflow at http://127.0.0.1")
    run(TINY, "--mlflow-uri", "postgres://x", says="MLflow URI")


def test_ray_that_is_down(run: Callable[..., Result]) -> None:
    run(TINY, "--ray-address", f"127.0.0.1:{free_port()}", says="no Ray at")
    run(TINY, "--ray-address", f"http://127.0.0.1:{free_port()}", says="does not answer")
    run(TINY, "--ray-address", "ray://127.0.0.1:10001", says="ray://")


@pytest.fixture
def stranger() -> Iterator[int]:
    """A port that is busy with another service."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            return

        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"hello")

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def test_a_port_busy_with_something_else(run: Callable[..., Result], stranger: int) -> None:
    run(TINY, "--ray-address", f"http://127.0.0.1:{stranger}", says="is not Ray")
    run(TINY, "--mlflow-uri", f"http://127.0.0.1:{stranger}", says="MLflow at")


def test_a_silent_port_is_not_waited_for(run: Callable[..., Result]) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        run(TINY, "--ray-address", f"http://127.0.0.1:{listener.getsockname()[1]}", says="does not answer")


def test_words_that_kfp_would_change(run: Callable[..., Result], tmp_path: Path) -> None:
    run(TINY, "--root", str(tmp_path / "python3"), says="python3")
    run(TINY, "--run-key", "{{$.pipeline_job_name}}", says="{{")
    run(TINY, "--root", str(tmp_path / "a\\b"), says="into a JSON string as it is")
    run(TINY, "--set", "data.options.uri=/data/python3/photos", says="python3", source=None)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--set", "data.options.access_key=CANARY"),
        ("--root", "gs://user:CANARY@bucket/x"),
        ("--mlflow-uri", "http://user:CANARY@127.0.0.1:5000"),
        ("--set", "data.options.uri=https://host/x?X-Goog-Signature=CANARY"),
    ],
)
def test_credentials_are_refused_and_not_echoed(arguments: tuple[str, str], run: Callable[..., Result]) -> None:
    assert "CANARY" not in run(TINY, *arguments, says="credential").output


def test_a_temporary_folder_too_deep_for_sockets(run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/" + "d" * 80)
    run(TINY, says="RAY_TMPDIR")


def test_a_run_key_that_is_no_name(run: Callable[..., Result]) -> None:
    run(TINY, "--run-key", "../../elsewhere", says="run_key")


def test_too_few_photos_end_in_the_room_with_its_line(sr3: Callable[..., Ended], tmp_path: Path) -> None:
    """Found by prepare, carried through KFP by the error file; the exit handler leaves no running MLflow run."""
    write_photos(tmp_path / "photos", 2)
    done = sr3("run", TINY, "--set", f"data.options.uri={tmp_path / 'photos'}", "--root", str(tmp_path / "root"))
    assert done.code == 2, done.stdout + done.stderr
    assert done.stderr.startswith("sr3: bad input: ") and done.stderr.count("\n") == 1, done.stderr
    assert done.stdout.startswith(f"log: {tmp_path / 'root'}") and "Traceback" not in done.stdout
    assert not list((tmp_path / "root").rglob("manifest.json"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["frobnicate"], "No such command 'frobnicate'; do: sr3 --help"),
        (["run"], "Missing argument 'RECIPE'; do: sr3 run --help"),
        (["run", "demo", "--runner", "k8s"], "'k8s' is not one of 'subprocess', 'docker'; do: sr3 run --help"),
        (["sample", "-o", "x.png", "--seed", "x"], "'x' is not a valid integer range; do: sr3 sample --help"),
    ],
)
def test_wrong_arguments_end_in_one_line(arguments: list[str], says: str) -> None:
    done = CliRunner().invoke(cli.main, arguments, prog_name="sr3")
    assert done.exit_code == 2
    assert done.stderr.startswith("sr3: bad input: ") and done.stderr.count("\n") == 1 and says in done.stderr
