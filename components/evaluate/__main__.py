"""``python -m components.evaluate``: the evaluate room by itself, its arguments as the pipeline passes them, or from a recipe."""

import click

_EXAMPLE = """Evaluate trained bundles on held-out photos and write a report, or find it up to date.

\b
Example:
  python -m components.evaluate --recipe demo --shards-uri sr3-runs/shards/0123456789abcdef \\
      --bundle sr3-runs/train/sr256/0123456789abcdef/bundle --bundle sr3-runs/train/sr1024/0123456789abcdef/bundle
"""


@click.command(help=_EXAMPLE)
@click.option("--recipe", default="", help="A recipe by name or path.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change the recipe, as evaluation.split=val.")
@click.option("--section", default="", help="Instead of a recipe: its evaluation section as JSON.")
@click.option("--scaling", default="", help="The scaling section as JSON; by default the recipe's.")
@click.option("--shards-uri", required=True, help="Folder or URI of the ShardSet, as the prepare room printed it.")
@click.option("--shards-sha256", default="", help="sha256 of the ShardSet's manifest; by default not compared.")
@click.option(
    "--bundle", "folders", multiple=True, metavar="URI", help="A stage's bundle; one for every stage, in the order of the cascade."
)
@click.option("--bundles", default="", help='Instead of --bundle: a JSON list of {"uri", "sha256"}.')
@click.option("--root", default="sr3-runs", show_default=True, help="Folder or URI that results are written below.")
@click.option("--mlflow-uri", default="", help="MLflow tracking URI; by default sqlite below a local root.")
@click.option("--mlflow-run-id", default="", help="MLflow run to log under; by default the run stands alone.")
@click.option("--run-key", default="evaluate", show_default=True, help="Name of the run that logs and errors are kept under.")
@click.option(
    "--ray-address",
    default="",
    help="HOST:PORT of a Ray head, http://HOST:8265 for a submitted job, kubernetes://NAMESPACE for a cluster of its own; else local.",
)
def main(recipe: str, overrides: tuple[str, ...], section: str, folders: tuple[str, ...], **given: str) -> None:
    from components import entry
    from components.evaluate import main as room
    from sr3_core import storage, tracking
    from sr3_core.artifacts.report import EvalReport
    from sr3_core.artifacts.shardset import MANIFEST
    from sr3_core.errors import EXIT_BAD_INPUT, BadInput

    try:
        section, scaling = _section(recipe, overrides, section, given["scaling"])
        root, shards_uri = storage.absolute(given["root"]), storage.absolute(given["shards_uri"])  # before the room changes its folder
        shards_sha256 = given["shards_sha256"] or _sha256(shards_uri, MANIFEST, "ShardSet")
        bundles = _bundles(folders, given["bundles"])
        mlflow_uri = tracking.absolute(given["mlflow_uri"]) if given["mlflow_uri"] else tracking.default_uri(root)
    except BadInput as error:
        click.echo(str(error), err=True)
        raise SystemExit(EXIT_BAD_INPUT) from None
    place = {"scaling": scaling, "root": root, "mlflow_uri": mlflow_uri, "shards_uri": shards_uri, "shards_sha256": shards_sha256}
    with entry.guard(room.ROOM, root=root, run_key=given["run_key"]):
        result = room.run(section=section, **{**given, **place, "bundles": bundles})
        click.echo(EvalReport.open(result.report_uri).table())
        click.echo(f"{result.report_uri} {result.report_sha256}")


def _section(recipe: str, overrides: tuple[str, ...], section: str, scaling: str) -> tuple[str, str]:
    """(evaluation section, scaling section)."""
    from sr3_core import config
    from sr3_core.errors import BadInput

    if bool(recipe) == bool(section):
        raise BadInput("both --recipe and --section" if recipe else "neither --recipe nor --section", "one of them", "see --help")
    if section:
        if overrides:
            raise BadInput("--set with --section", "--set with --recipe", "change the section itself")
        return config.parse(config.Evaluation, section).canonical_json(), scaling or config.Scaling().canonical_json()
    loaded = config.load(recipe, overrides)
    return loaded.evaluation.canonical_json(), scaling or loaded.scaling.canonical_json()


def _bundles(folders: tuple[str, ...], bundles: str) -> str:
    """The bundles as JSON with absolute URIs, those given by folder with the sha256 of their manifests."""
    from sr3_core import storage
    from sr3_core.artifacts.bundle import MANIFEST, handed_on, handed_on_json
    from sr3_core.errors import BadInput

    if bool(folders) == bool(bundles):
        raise BadInput("both --bundle and --bundles" if bundles else "no --bundle", "one of them", "name the bundle of every stage")
    if bundles:
        return handed_on_json(handed_on(bundles))
    uris = [storage.absolute(folder) for folder in folders]
    return handed_on_json([(uri, _sha256(uri, MANIFEST, "ModelBundle")) for uri in uris])


def _sha256(uri: str, manifest: str, what: str) -> str:
    from sr3_core import storage
    from sr3_core.errors import BadInput

    file = storage.join(uri, manifest)
    if not storage.exists(file):
        raise BadInput(f"no {manifest} in {uri}", f"the folder of a finished {what}", "check the path, or run the room that makes it")
    return storage.sha256(file)


if __name__ == "__main__":
    main()
