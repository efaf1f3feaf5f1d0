"""``python -m components.prepare``: the prepare room by itself, its arguments as the pipeline passes them, or from a recipe."""

import click

_EXAMPLE = """Make a ShardSet from photos, or find it up to date.

\b
Example:
  python -m components.prepare --recipe demo --set data.source=folder --set data.options.uri=/data/photos --root sr3-runs
"""


@click.command(help=_EXAMPLE)
@click.option("--recipe", default="", help="A recipe by name or path: its data section is used.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change the recipe, as data.source=folder.")
@click.option("--section", default="", help="Instead of a recipe: the data section as JSON.")
@click.option("--scaling", default="{}", show_default=True, help="With --section: the recipe's scaling section as JSON.")
@click.option("--root", default="sr3-runs", show_default=True, help="Folder or URI that results are written below.")
@click.option("--mlflow-uri", default="", help="MLflow tracking URI; by default sqlite below a local root.")
@click.option("--run-key", default="prepare", show_default=True, help="Name of the run that logs and errors are kept under.")
@click.option("--recipe-name", default="", help="Name of the recipe in MLflow; by default its own.")
@click.option(
    "--ray-address",
    default="",
    help="HOST:PORT of a Ray head, http://HOST:8265 for a submitted job, kubernetes://NAMESPACE for a cluster of its own; else local.",
)
def main(recipe: str, overrides: tuple[str, ...], section: str, **given: str) -> None:
    from components import entry
    from components.prepare import main as room
    from sr3_core import storage, tracking
    from sr3_core.errors import EXIT_BAD_INPUT, BadInput

    try:
        root = storage.absolute(given["root"])
        section, scaling, name = _section(recipe, overrides, section, given["scaling"])  # before the room changes its folder
        mlflow_uri = tracking.absolute(given["mlflow_uri"]) if given["mlflow_uri"] else tracking.default_uri(root)
    except BadInput as error:
        click.echo(str(error), err=True)
        raise SystemExit(EXIT_BAD_INPUT) from None
    place = {"scaling": scaling, "root": root, "mlflow_uri": mlflow_uri, "recipe_name": given["recipe_name"] or name}
    with entry.guard("prepare", root=root, run_key=given["run_key"]):
        result = room.run(section=section, **{**given, **place})
        click.echo(f"{result.shards_uri} {result.shards_sha256}")


def _section(recipe: str, overrides: tuple[str, ...], section: str, scaling: str) -> tuple[str, str, str]:
    """(data section, scaling section, recipe name) with a relative ``uri`` of the source made absolute."""
    from sr3_core import config, storage
    from sr3_core.errors import BadInput

    if bool(recipe) == bool(section):
        raise BadInput("both --recipe and --section" if recipe else "neither --recipe nor --section", "one of them", "see --help")
    if overrides and section:
        raise BadInput("--set with --section", "--set with --recipe", "change the section itself")
    name = "prepare"
    if recipe:
        loaded = config.load(recipe, overrides)
        data, scaling, name = loaded.data, loaded.scaling.canonical_json(), loaded.name
    else:
        data = config.parse(config.Data, section)
    uri = data.options.get("uri")
    if isinstance(uri, str):
        data = data.model_copy(update={"options": {**data.options, "uri": storage.absolute(uri)}})
    return data.canonical_json(), scaling, name


if __name__ == "__main__":
    main()
