"""Compile a recipe to a file, and hand the compiled pipeline to a KFP server: `sr3 compile` and `sr3 submit`."""

import hashlib
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from kfp import compiler

from pipeline import dag, resources
from sr3_core import config
from sr3_core.errors import BadInput

_INTERVAL = re.compile(r"([1-9]\d{0,5})(m|h|d|w)")
_SECONDS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_SMALLEST_SECONDS = 300
_CRON_FIELD = re.compile(r"[\dA-Za-z*/,?-]+")


def compile_to(recipe: config.Recipe, output: Path, *, images: str = resources.IMAGES, ray_address: str = "") -> None:
    """Write the pipeline of ``recipe`` as KFP's YAML; a file that stands there is replaced as a whole."""
    if output.suffix not in (".yaml", ".yml"):
        raise BadInput(f"output {output}", "a name that ends in .yaml", "choose another -o")
    if not output.absolute().parent.is_dir():
        raise BadInput(f"no folder {output.absolute().parent}", "an existing folder", "make it or choose another -o")
    resources.check_images(images)
    _name_what_is_not_used(recipe.scaling.kubernetes, ray_address)
    part = output.absolute().with_name(f".{output.stem}.part.yaml")
    compiler.Compiler().compile(dag.build(recipe, images=images, ray_address=ray_address), str(part))
    part.replace(output)


def _name_what_is_not_used(settings: config.Kubernetes, ray_address: str) -> None:
    from sr3_core.progress import say

    unused = [name for name in ("queue", "priority_class") if getattr(settings, name) is not None]
    if unused and not ray_address.startswith("kubernetes://"):
        say("recipe", f"scaling.kubernetes: {', '.join(unused)} hold for a run's own Ray cluster alone (--ray-address kubernetes://)")


def submit(
    recipe: config.Recipe,
    *,
    endpoint: str,
    experiment: str,
    root: str,
    mlflow_uri: str,
    ray_address: str,
    run_key: str,
    images: str,
    namespace: str,
    watch: bool,
    every: str,
    say: Callable[[str], None],
) -> bool:
    """Upload the pipeline of ``recipe`` and start it, once or again and again (``every``); with ``watch`` follow it: whether it succeeded.

    The version is named by commit and content, and used again when it is there. The service account is the recipe's, or KFP's own where
    the work goes to Ray clusters of the run's own: that account must have the right to make them. Raises BadInput for what the server
    refuses, Failed when it fails.
    """
    from pipeline import preflight
    from pipeline.server import Server

    if not root or not mlflow_uri:
        raise BadInput("no --root or no --mlflow-uri", "both: the server's rooms share no disk with this machine", "give both")
    schedule = parse_every(every) if every else None
    if schedule is not None and watch:
        raise BadInput("--watch with --every", "one of them: a recurring run has no end", "leave one out")
    preflight.refuse_text(recipe, root=root, mlflow_uri=mlflow_uri, ray_address=ray_address, run_key=run_key)
    preflight.check_source(recipe.data)
    preflight.check_plugins(recipe)
    preflight.check_labels(recipe)
    key = run_key or dag.default_run_key(recipe)
    parameters = {"root": root, "mlflow_uri": mlflow_uri, "ray_address": ray_address, "run_key": key}
    given = {"name": key, "experiment": experiment, "parameters": parameters}
    own_cluster = ray_address.startswith("kubernetes://")  # its pods have the recipe's account, in a namespace of their own
    given["service_account"] = None if own_cluster else recipe.scaling.kubernetes.service_account
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "pipeline.yaml"
        compile_to(recipe, package, images=images, ray_address=ray_address)
        name, version = dag.pipeline_name(recipe), version_name(package)
        server = Server(endpoint, namespace=namespace)
        ids = server.upload(package, name=name, version=version)
    say(f"pipeline {name}, version {version}")
    if schedule is not None:
        say(f"recurring run {server.recur(ids, every=schedule, **given)}: {every}")
        return True
    run_id = server.run(ids, **given)
    say(f"run {run_id}: {server.page(run_id)}")
    return server.follow(run_id, say) if watch else True


def version_name(package: Path) -> str:
    """``<commit>-<content>``: 12 digits of the code's commit (or its release, where that is not known) and 8 of the compiled pipeline's
    sha256, which the recipe changes too."""
    from components import provenance

    commit = provenance.git_commit()
    return f"{commit[:12] if commit else resources.VERSION}-{hashlib.sha256(package.read_bytes()).hexdigest()[:8]}"


def parse_every(text: str) -> str | int:
    """Seconds of an interval (30m, 6h, 1d, 2w; at least five minutes), or a cron expression in KFP's six fields, of five or six given."""
    allowed = "an interval as 30m, 6h, 1d or 2w, or a cron expression of five fields (or six, seconds first)"
    if found := _INTERVAL.fullmatch(text.strip()):
        seconds = int(found[1]) * _SECONDS[found[2]]
        if seconds < _SMALLEST_SECONDS:
            raise BadInput(f"--every {text!r}", f"at least {_SMALLEST_SECONDS // 60}m", "give a longer interval")
        return seconds
    fields = text.split()
    if len(fields) not in (5, 6) or not all(_CRON_FIELD.fullmatch(field) for field in fields):
        raise BadInput(f"--every {text!r}", allowed, "as --every 1d, or --every '0 3 * * *' for each night at three")
    return " ".join(fields if len(fields) == 6 else ["0", *fields])
