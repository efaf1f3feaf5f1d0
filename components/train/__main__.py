"""``python -m components.train``: the train room by itself, its arguments as the pipeline passes them, or from a recipe."""

import click

_EXAMPLE = """Train one stage of a recipe on a ShardSet, go on with a run that was broken off, or find the bundle up to date.

\b
Example:
  python -m components.train --recipe demo --stage sr256 --shards-uri sr3-runs/shards/0123456789abcdef
"""


@click.command(help=_EXAMPLE)
@click.option("--recipe", default="", help="A recipe by name or path; with --stage.")
@click.option("--stage", default="", help="Name of the recipe's stage to train.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change the recipe, as stages.sr256.training.images=64.")
@click.option("--section", default="", help="Instead of a recipe: the stage's section as JSON.")
@click.option("--scaling", default="", help="The scaling section as JSON; by default the recipe's.")
@click.option("--shards-uri", required=True, help="Folder or URI of the ShardSet, as the prepare room printed it.")
@click.option("--shards-sha256", default="", help="sha256 of the ShardSet's manifest; by default not compared.")
@click.option("--root", default="sr3-runs", show_default=True, help="Folder or URI that results are written below.")
@click.option("--mlflow-uri", default="", help="MLflow tracking URI; by default sqlite below a local root.")
@click.option("--mlflow-run-id", default="", help="MLflow run to log under; by default the run stands alone.")
@click.option("--run-key", default="train", show_default=True, help="Name of the run that logs and errors are kept under.")
@click.option(
    "--ray-address",
    default="",
    help="HOST:PORT of a Ray head, http://HOST:8265 for a submitted job, kubernetes://NAMESPACE for a cluster of its own; else local.",
)
def main(recipe: str, stage: str, overrides: tuple[str, ...], section: str, **given: str) -> None:
    from components import entry
    from components.train import main as room
    from sr3_core import storage, tracking
    from sr3_core.artifacts.shardset import MANIFEST
    from sr3_core.errors import EXIT_BAD_INPUT, BadInput

    try:
        name, section, scaling = _section(recipe, stage, overrides, section, given["scaling"])
        root, shards_uri = storage.absolute(given["root"]), storage.absolute(given["shards_uri"])  # before the room changes its folder
        if not storage.exists(storage.join(shards_uri, MANIFEST)):
            raise BadInput(f"no {MANIFEST} in {shards_uri}", "the folder of a finished ShardSet", "run python -m components.prepare")
        shards_sha256 = given["shards_sha256"] or storage.sha256(storage.join(shards_uri, MANIFEST))
        mlflow_uri = tracking.absolute(given["mlflow_uri"]) if given["mlflow_uri"] else tracking.default_uri(root)
    except BadInput as error:
        click.echo(str(error), err=True)
        raise SystemExit(EXIT_BAD_INPUT) from None
    place = {"scaling": scaling, "root": root, "mlflow_uri": mlflow_uri, "shards_uri": shards_uri, "shards_sha256": shards_sha256}
    with entry.guard(f"{room.ROOM}-{name}", root=root, run_key=given["run_key"]):
        result = room.run(section=section, **{**given, **place})
        click.echo(f"{result.bundle_uri} {result.bundle_sha256}")


def _section(recipe: str, stage: str, overrides: tuple[str, ...], section: str, scaling: str) -> tuple[str, str, str]:
    """(stage name, stage section, scaling section)."""
    from sr3_core import config
    from sr3_core.errors import BadInput

    if bool(recipe) == bool(section):
        raise BadInput("both --recipe and --section" if recipe else "neither --recipe nor --section", "one of them", "see --help")
    if section:
        if overrides or stage:
            raise BadInput("--set or --stage with --section", "--set and --stage with --recipe", "change the section itself")
        parsed = config.parse(config.Stage, section)
        return parsed.name, parsed.canonical_json(), scaling or config.Scaling().canonical_json()
    loaded = config.load(recipe, overrides)
    names = [item.name for item in loaded.stages]
    if stage not in names:
        got = f"--stage {stage!r}" if stage else "no --stage"
        raise BadInput(got, config.nearest(stage, names), "name one of these")
    chosen = loaded.stages[names.index(stage)]
    return chosen.name, chosen.canonical_json(), scaling or loaded.scaling.canonical_json()


if __name__ == "__main__":
    main()
