"""infra/README.md says what is there: paths, commands, options, counts and lines of errors; and the files beside it pass their linters."""

import base64
import configparser
import os
import re
import subprocess
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import click
import pytest

from pipeline.cli import main as sr3_command
from sr3_core import config
from tests.conftest import BIN, REPOSITORY
from tests.infra.manifests import K8S, name_of, parse, pods, render
from tests.infra.readme import README, blocks, commands, of

INFRA = REPOSITORY / "infra"
RECIPES = sorted((K8S / "recipes").glob("*.yaml"))
ROOMS = ("prepare", "train", "evaluate", "export")


def options(words: list[str]) -> set[str]:
    return {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}


def options_of(command: click.Command) -> set[str]:
    return {name for parameter in command.params for name in [*parameter.opts, *parameter.secondary_opts]}


def test_the_blocks_are_bash() -> None:
    assert len(blocks()) > 15
    done = subprocess.run(["bash", "-n"], input="\n".join(blocks()), capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr


def test_every_path_is_there() -> None:
    named = set(re.findall(r"(?<![\w./$])(?:infra|overlays|components|runs|base|tests)/[\w./-]*\w", README.read_text(encoding="utf-8")))
    made = {"infra/k8s/mlflow/wheels"}  # by a command of the README
    for path in named - made:
        assert any((folder / path).exists() for folder in (REPOSITORY, K8S)), path
    assert len(named) > 10


def test_every_kustomization_that_is_applied_renders() -> None:
    applied = {word for words in commands() for flag, word in pairwise(words) if flag in ("-k", "kustomize")}
    ours = {word for word in applied if word.startswith("infra/")}
    assert ours >= {"infra/k8s/overlays/local", "infra/k8s/overlays/gke", "infra/k8s/runs/gke", "infra/k8s/runs/gke-kueue"}
    for path in ours:
        assert render(path.removeprefix("infra/k8s/")), path


def test_counts_are_those_that_are_seen() -> None:
    said = re.findall(r"kubectl kustomize infra/k8s/(\S+) \| grep -c \^kind: +# (\d+) \(seen\)", README.read_text(encoding="utf-8"))
    assert len(said) == 3
    assert [(tree, str(len(render(tree)))) for tree, _ in said] == said


def test_the_job_is_chosen_by_its_label() -> None:
    """``kubectl create -l`` takes the RayJob out of its overlay, and nothing else."""
    (chosen,) = {words[words.index("-l") + 1] for words in of("kubectl", "create") if "-l" in words}
    key, _, value = chosen.partition("=")
    for tree in ("runs/local", "runs/gke"):
        labelled = [name_of(document) for document in render(tree) if document["metadata"].get("labels", {}).get(key) == value]
        assert labelled == ["RayJob/sr3-run"]


def test_make_has_the_targets() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    said = {words[0] for words in of("make")} | set(re.findall(r"`make ([a-z-]+)`", README.read_text(encoding="utf-8")))
    assert "images" in said
    assert said <= targets


def test_sr3_has_the_commands_and_their_options() -> None:
    said = of("sr3")
    assert {words[0] for words in said} == {"compile", "submit"}
    for words in said:
        command = sr3_command.commands[words[0]]
        assert options(words) <= options_of(command), words
        assert words[1].startswith("infra/k8s/recipes/")


def test_each_room_is_submitted_with_options_that_it_has() -> None:
    submitted = of("ray", "job", "submit")
    cli = import_module("ray.dashboard.modules.job.cli")
    rooms = []
    for words in submitted:
        end = words.index("--")
        assert options(words[:end]) <= options_of(cli.submit), words
        entry = words[end + 1 :]
        assert entry[:2] == ["python", "-m"]
        room = import_module(f"{entry[2]}.__main__").main
        assert options(entry[3:]) <= options_of(room), entry
        missing = [p.opts[0] for p in room.params if p.required and p.opts[0] not in entry]
        assert not missing, entry
        rooms.append(entry[2].removeprefix("components."))
    assert rooms == list(ROOMS)


def test_the_stages_that_are_named_are_the_recipes() -> None:
    text = README.read_text(encoding="utf-8")
    stages = [stage.name for stage in config.load("demo").stages]
    assert set(re.findall(r"--stage (\w+)", text)) <= set(stages)
    assert list(dict.fromkeys(re.findall(r"/train/(\w+)/", text))) == stages


def test_kfp_has_the_options() -> None:
    (words,) = of("kfp")
    create = import_module("kfp.cli.run").create
    assert options(words[words.index("create") :]) <= options_of(create)


def test_the_lines_of_errors_are_those_of_the_code() -> None:
    table = README.read_text(encoding="utf-8").partition("| the line says |")[2].partition("\n\n")[0]
    lines = re.findall(r"^\| (.*?) \|", table, re.MULTILINE)[1:]
    assert len(lines) >= 6
    code = " ".join(
        path.read_text(encoding="utf-8") for package in ("pipeline", "components") for path in (REPOSITORY / package).rglob("*.py")
    )
    for line in lines:
        first = re.findall(r"`([^`]*)`", line)[0]
        for piece in re.split(r"\.\.\.|\(\d.*", first):
            assert piece.strip() in code, line


def test_the_commands_make_the_secrets_that_the_manifests_name(tmp_path: Path) -> None:
    """The block of section 1 is run, kubectl told to make nothing: it prints the Secrets."""
    (block,) = [block for block in blocks() if "create secret generic" in block]
    dry = 'kubectl() { [ "$1" = apply ] || { command kubectl "$@" --dry-run=client -o yaml && echo ---; }; }\n'
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    done = subprocess.run(["bash", "-euc", dry + block], capture_output=True, text=True, timeout=60, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    made = {(d["metadata"]["namespace"], d["metadata"]["name"]): d["data"] for d in parse(done.stdout) if d}
    assert made["kubeflow", "sr3-mlflow-client"] == made["sr3", "sr3-mlflow-client"]
    wanted = set[tuple[str, str]]()
    for document in render("overlays/local"):
        for _, pod in pods(document):
            for container in pod["containers"]:
                references = [variable.get("valueFrom", {}).get("secretKeyRef") for variable in container.get("env", [])]
                wanted |= {(reference["name"], reference["key"]) for reference in references if reference}
            secrets = [volume["secret"] for volume in pod.get("volumes", []) if "secret" in volume]
            wanted |= {(secret["secretName"], item["key"]) for secret in secrets for item in secret["items"]}
    assert len(wanted) == 8
    assert all(made["sr3", name].get(key) for name, key in wanted)
    uri = base64.b64decode(made["sr3", "sr3-mlflow-server"]["backend-store-uri"]).decode()
    ini = configparser.ConfigParser()
    ini.read_string(base64.b64decode(made["sr3", "sr3-mlflow-server"]["basic_auth.ini"]).decode())
    assert ini["mlflow"]["database_uri"] == uri
    assert re.fullmatch(r"postgresql://mlflow:[0-9a-f]{32}@sr3-postgres:5432/mlflow", uri)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_clusters_recipes_name_what_the_overlay_has(recipe: Path) -> None:
    """Accounts, secrets and node labels of the demo's recipes are those of the manifests and the README."""
    loaded = config.load(str(recipe))
    assert loaded.name == recipe.stem
    settings, text = loaded.scaling.kubernetes, README.read_text(encoding="utf-8")
    documents = render({"demo_local": "overlays/local", "demo_gke": "overlays/gke"}[recipe.stem])
    for variable in settings.env_from:
        assert re.search(
            rf"secret generic {variable.name} [^\n]*={variable.key}=|secret generic {variable.name} [^\n]*[ -]{variable.key}=", text
        )
    if recipe.stem == "demo_gke":
        assert f"ServiceAccount/{settings.service_account}" in {name_of(document) for document in documents}
        cluster = next(document for document in documents if document["kind"] == "RayCluster")
        selectors = [pod.get("nodeSelector", {}) for _, pod in pods(cluster)]
        assert settings.selector(gpu=True, works=True) in selectors
        assert settings.namespace == "sr3"


def test_yaml_is_clean() -> None:
    files = [str(INFRA / "k8s"), str(INFRA / ".yamllint")]
    done = subprocess.run([BIN / "yamllint", "--strict", "-c", INFRA / ".yamllint", *files], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_the_mlflow_image_is_clean() -> None:
    done = subprocess.run([BIN / "hadolint", K8S / "mlflow" / "Dockerfile"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
    lock = (K8S / "mlflow" / "requirements.lock").read_text(encoding="utf-8")
    assert re.findall(r"^([a-z0-9-]+)==", lock, re.MULTILINE) == ["flask-wtf", "psycopg", "psycopg-binary", "wtforms"]
    assert lock.count("--hash=sha256:") >= 4
