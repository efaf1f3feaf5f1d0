"""Compile a recipe to a file, and hand the compiled pipeline to a KFP server."""

import http.client
import urllib.error
import urllib.request
from pathlib import Path

from kfp import compiler

from pipeline import dag, resources
from sr3_core import config
from sr3_core.errors import BadInput

_HEALTH = "/apis/v2beta1/healthz"
_PATIENCE_SECONDS = 5


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


def submit(package: Path, *, endpoint: str, experiment: str, name: str, parameters: dict[str, str]) -> str:
    """Start a run of the compiled pipeline on the server; its id. Raises BadInput when the server does not answer or refuses.

    The engine's own files go to ``<root>/.kfp``.
    """
    from kfp import Client
    from kfp_server_api import ApiException

    allowed = "the address of a KFP API server"
    check(endpoint)
    try:
        return (
            Client(host=endpoint)
            .create_run_from_pipeline_package(
                str(package),
                arguments=parameters,
                run_name=name,
                experiment_name=experiment,
                enable_caching=False,
                pipeline_root=f"{parameters['root'].rstrip('/')}/.kfp",
            )
            .run_id
        )
    except ApiException as error:
        raise BadInput(
            f"KFP at {endpoint} refused ({error.status} {error.reason})", allowed, "check the endpoint and your rights"
        ) from None


def check(endpoint: str) -> None:
    """Raise BadInput when no KFP answers at ``endpoint`` within seconds; the client itself would try for half a minute."""
    allowed = "the address of a KFP API server, as http://host:8888"
    if not endpoint.startswith(("http://", "https://")):
        raise BadInput(f"endpoint {endpoint!r}", allowed, "give the whole address")
    try:
        with urllib.request.urlopen(f"{endpoint.rstrip('/')}{_HEALTH}", timeout=_PATIENCE_SECONDS):  # noqa: S310
            return
    except urllib.error.HTTPError as error:
        if error.code not in (401, 403):  # the client brings its own credentials
            raise BadInput(f"what answers at {endpoint} is not KFP ({error.code})", allowed, "check --endpoint") from None
    except (OSError, http.client.HTTPException) as error:
        raise BadInput(f"KFP at {endpoint} does not answer ({error})", allowed, "check --endpoint") from None
