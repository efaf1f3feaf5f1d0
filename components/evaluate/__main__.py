"""``python -m components.evaluate``: the evaluate room by itself, its arguments as the pipeline passes them."""

import click

_EXAMPLE = """Evaluate trained bundles on held-out photos and write an EvalReport.

\b
Example:
  python -m components.evaluate --section '{"metrics": ["psnr", "lpips"], "search": null}' \\
      --shards-uri sr3-runs/shards/FP --shards-sha256 HEX \\
      --bundles '[{"uri": "sr3-runs/train/sr256/FP/bundle", "sha256": "HEX"}]' --root sr3-runs
"""


@click.command(help=_EXAMPLE)
@click.option("--section", required=True, help="The recipe's evaluation section as JSON.")
@click.option("--scaling", default="{}", show_default=True, help="The recipe's scaling section as JSON.")
@click.option("--shards-uri", required=True, help="Folder of the ShardSet.")
@click.option("--shards-sha256", required=True, help="sha256 of its manifest.json.")
@click.option("--bundles", required=True, help='JSON list of {"uri", "sha256"}, in the order of the cascade.')
@click.option("--root", default="sr3-runs", show_default=True, help="Folder or URI that results are written below.")
@click.option("--mlflow-uri", default="", help="MLflow tracking URI; by default sqlite below a local root.")
@click.option("--run-key", default="evaluate", show_default=True, help="Name of the run that logs and errors are kept under.")
@click.option("--ray-address", default="", help="HOST:PORT of a Ray head, http://HOST:8265 for a submitted job; by default a local Ray.")
@click.option("--mlflow-run-id", default="", help="Parent run in MLflow; by default none.")
def main(**given: str) -> None:
    from components import entry
    from components.evaluate import main as room
    from sr3_core import storage, tracking
    from sr3_core.artifacts.report import EvalReport

    root = storage.absolute(given["root"])
    place = {
        "root": root,
        "shards_uri": storage.absolute(given["shards_uri"]),
        "mlflow_uri": given["mlflow_uri"] or tracking.default_uri(root),
    }
    with entry.guard("evaluate", root=root, run_key=given["run_key"]):
        result = room.run(**{**given, **place})
        click.echo(EvalReport.open(result.report_uri).table())


if __name__ == "__main__":
    main()
