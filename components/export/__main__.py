"""``python -m components.export``: the export room by itself, its arguments as the pipeline passes them."""

import click

_EXAMPLE = """Check the gate, write the final bundle, register it in MLflow and move the alias.

\b
Example:
  python -m components.export --section '{"model": "my-model"}' \\
      --report-uri sr3-runs/eval/FP --report-sha256 HEX \\
      --bundles '[{"uri": "sr3-runs/train/sr256/FP/bundle", "sha256": "HEX"}]' --root sr3-runs
"""


@click.command(help=_EXAMPLE)
@click.option("--section", required=True, help="The recipe's export section as JSON.")
@click.option("--scaling", default="{}", show_default=True, help="The recipe's scaling section as JSON.")
@click.option("--report-uri", required=True, help="Folder of the EvalReport.")
@click.option("--report-sha256", default="", help="sha256 of its report.json; unchecked when empty.")
@click.option("--bundles", required=True, help='JSON list of {"uri", "sha256"}, in the order of the cascade.')
@click.option("--root", default="sr3-runs", show_default=True, help="Folder or URI that results are written below.")
@click.option("--mlflow-uri", default="", help="MLflow tracking URI; by default sqlite below a local root.")
@click.option("--run-key", default="export", show_default=True, help="Name of the run that logs and errors are kept under.")
@click.option("--ray-address", default="", help="Every room takes it; export does nothing heavy.")
@click.option("--mlflow-run-id", default="", help="Parent run in MLflow, closed at the end; by default none.")
def main(**given: str) -> None:
    from components import entry
    from components.export import main as room
    from sr3_core import storage, tracking
    from sr3_core.artifacts.bundle import handed_on, handed_on_json
    from sr3_core.errors import EXIT_BAD_INPUT, BadInput

    try:
        root = storage.absolute(given["root"])  # these before the room changes its folder
        place = {
            "root": root,
            "report_uri": storage.absolute(given["report_uri"]),
            "bundles": handed_on_json(handed_on(given["bundles"])),
            "mlflow_uri": tracking.absolute(given["mlflow_uri"]) if given["mlflow_uri"] else tracking.default_uri(root),
        }
    except BadInput as error:
        click.echo(str(error), err=True)
        raise SystemExit(EXIT_BAD_INPUT) from None
    with entry.guard("export", root=root, run_key=given["run_key"]):
        result = room.run(**{**given, **place})
        click.echo(result.model_uri)


if __name__ == "__main__":
    main()
