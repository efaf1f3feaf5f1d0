"""`sr3`: parses, then imports inside the command what does the work. Exit codes: 0 done, 1 failed, 2 bad input (one line)."""

import sys
from pathlib import Path
from typing import Any

import click

from pipeline import resources
from sr3_core import config
from sr3_core.errors import EXIT_BAD_INPUT, EXIT_DONE, EXIT_FAILED, BadInput, Failed

_SET = click.option("--set", "overrides", multiple=True, metavar="a.b=c", help="Change one value of the recipe; may be repeated.")
_ROOMS = ("prepare", "train", "evaluate", "export")


class _Group(click.Group):
    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except BadInput as error:
            click.echo(f"sr3: {error}", err=True)
            sys.exit(EXIT_BAD_INPUT)
        except Failed as error:
            click.echo(f"sr3: {error}", err=True)
            sys.exit(EXIT_FAILED)
        except click.UsageError as error:  # click's own answer is four lines
            command = error.ctx.command_path if error.ctx else "sr3"
            click.echo(f"sr3: bad input: {error.format_message().rstrip('.')}; do: {command} --help", err=True)
            sys.exit(EXIT_BAD_INPUT)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(resources.VERSION, prog_name="sr3")
def main() -> None:
    """Super-resolution by iterative refinement: prepare, train, evaluate and export as one pipeline.

    \b
    sr3 run demo                              the whole way on the photos that come with it
    sr3 upscale photo.jpg -o big.png          by the model that it registered
    sr3 sample -o samples/ -n 4               by a model that starts from noise
    """


def _runtime(command: Any) -> Any:
    """The four runtime parameters, which stand in no recipe."""
    for option in (
        click.option(
            "--run-key", default="", help="Name of the run; default: the recipe's name and fingerprint, so the same command goes on."
        ),
        click.option(
            "--ray-address",
            default="",
            help="HOST:PORT of a Ray head, http://HOST:8265, or kubernetes://NAMESPACE for a new cluster; default: local.",
        ),
        click.option("--mlflow-uri", default="", help="MLflow tracking server; default: sqlite under root."),
        click.option("--root", default="", help="Folder or fsspec URI for everything the run leaves; default: ./sr3-runs."),
    ):
        command = option(command)
    return command


@main.command()
@click.argument("recipe")
@_SET
@_runtime
@click.option(
    "--runner",
    type=click.Choice(["subprocess", "docker"]),
    default="subprocess",
    show_default=True,
    help="Rooms as processes or containers.",
)
@click.option("--images", default="", help="With docker: image of each room, {room} in it; default: those of make images for this code.")
@click.option("--verbose", is_flag=True, help="Show everything that goes to run.log.")
def run(recipe: str, overrides: tuple[str, ...], verbose: bool, **given: str) -> None:
    """Run the whole pipeline of RECIPE (a name or a YAML file) on this machine. The same command goes on where it was stopped.

    \b
    sr3 run demo
    sr3 run demo --set data.source=folder --set data.options.uri=~/photos --root ~/sr3-runs
    sr3 run demo --runner docker
    """
    from pipeline import run as implementation

    sys.exit(implementation.run(recipe, list(overrides), verbose=verbose, **given))


@main.command("compile")
@click.argument("recipe")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The YAML file to write.")
@_SET
@click.option("--images", default=resources.IMAGES, show_default=True, help="Image of each room, {room} in it; by digest or commit.")
@click.option("--ray-address", default="", help="Default of the pipeline's parameter; with it the tasks ask for no accelerator.")
def compile_(recipe: str, output: Path, overrides: tuple[str, ...], images: str, ray_address: str) -> None:
    """Compile RECIPE to a KFP pipeline.

    \b
    sr3 compile demo -o pipeline.yaml
    kfp --endpoint URL run create -e EXPERIMENT -r NAME -f pipeline.yaml root=gs://bucket/runs mlflow_uri=http://mlflow:5000
    """
    from pipeline import preflight, submit

    loaded = config.load(recipe, overrides)
    preflight.refuse_text(loaded, ray_address=ray_address)
    preflight.check_plugins(loaded)
    submit.compile_to(loaded, output, images=images, ray_address=ray_address)
    click.echo(f"wrote {output}")


@main.command()
@click.argument("recipe")
@_SET
@_runtime
@click.option("--endpoint", required=True, help="Address of the KFP API server.")
@click.option("--experiment", default="sr3", show_default=True)
@click.option("--namespace", default="", help="Your namespace, where KFP serves several users.")
@click.option("--images", default=resources.IMAGES, show_default=True, help="Image of each room, {room} in it; by digest or commit.")
@click.option("--watch", is_flag=True, help="Follow the run to its end, a line per change; exit 0 when it succeeded, else 1.")
@click.option("--every", default="", metavar="CRON|INTERVAL", help="Run again and again: 1d, 6h, or a cron expression as '0 3 * * *'.")
def submit(recipe: str, overrides: tuple[str, ...], **given: Any) -> None:
    """Compile RECIPE and start it on a KFP server. The pipeline is uploaded as a version named by the commit, once.

    \b
    sr3 submit demo --endpoint http://kfp.example --root gs://bucket/runs --mlflow-uri http://mlflow.example:5000 --watch
    sr3 submit demo --endpoint http://kfp.example --root gs://bucket/runs --mlflow-uri http://mlflow.example:5000 --every 1d
    """
    from pipeline import submit as implementation

    is_good = implementation.submit(config.load(recipe, overrides), **given, say=click.echo)
    sys.exit(EXIT_DONE if is_good else EXIT_FAILED)


@main.command()
def recipes() -> None:
    """List the recipes that come with the project: sr3 recipes."""
    names = config.recipe_names()
    for name in names:
        lines = (config.RECIPES / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        comments = [line.lstrip("# ") for line in lines if line.startswith("#") and not line.startswith("# sr3 run")]
        click.echo(f"{name:<{max(map(len, names))}} {comments[0] if comments else ''}")


@main.command()
@click.argument("recipe")
@_SET
@click.option("--json", "as_json", is_flag=True, help="As JSON, the summary under its own key.")
@click.option("--device", default="", help="h100, h200, a100, l4, t4 or cpu, for the estimates; default: h100 or cpu, as scaling says.")
def show(recipe: str, overrides: tuple[str, ...], as_json: bool, device: str) -> None:
    """Print RECIPE as it is after all defaults and changes, and what its stages cost: parameters, FLOPs, memory, time.

    The costs are comment lines, so that what is printed is a recipe. A stage that cannot be trained in the memory there is gets a warning:
    the GPU's here where scaling asks for one and there is one, this machine's for a CPU, else that of --device.

    \b
    sr3 show demo --set scaling.workers=4
    sr3 show paper_64_256 --device a100
    """
    import json

    import yaml

    from sr3_core import capacity, summary

    loaded = config.load(recipe, overrides)
    values = loaded.model_dump(mode="json")
    found = summary.summary(loaded, device)
    warnings = capacity.shortages(loaded, capacity.present(loaded, device))
    if as_json:
        click.echo(json.dumps({**values, "summary": {**found, "warnings": warnings}}, indent=1))
        return
    for line in [*summary.text(loaded, found).splitlines(), *(f"warning: {line}" for line in warnings)]:
        click.echo(f"# {line}".rstrip())
    click.echo(yaml.safe_dump(values, sort_keys=False).rstrip())


def _made(command: Any) -> Any:
    """The options of the commands that make images: which model, how it samples, what is written."""
    for option in (
        click.option("--force", is_flag=True, help="Replace files that exist."),
        click.option(
            "--chain", default="", help="Also show how the result came about: .webp or .gif animates it from noise on, .png is a grid."
        ),
        click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True),
        click.option("--label", type=click.IntRange(min=0), help="Class of the images, for a model trained with labels."),
        click.option("--sampler", default="", help="Sampler instead of the chosen one."),
        click.option("--steps", type=click.IntRange(min=1), help="Sampling steps."),
        click.option("--stage", default="", help="One stage of a cascade alone."),
        click.option("--root", default="", help="The root whose MLflow is the last place; default: ./sr3-runs."),
        click.option(
            "--mlflow-uri", default="", help="Where models:/ is looked for first; then MLFLOW_TRACKING_URI, then the default root."
        ),
        click.option(
            "--model", default="", help="models:/NAME@ALIAS, or a bundle or cascade folder; default: the one registered champion."
        ),
    ):
        command = option(command)
    return command


def _print_example(context: click.Context, parameter: click.Parameter, is_asked: bool) -> None:
    from sr3_core import plugins

    if is_asked:
        click.echo(plugins.EXAMPLE.read_text(encoding="utf-8"), nl=False)
        context.exit()


@main.command()
@click.argument("source")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="uri=... for the source, data.levels=..., or as in run.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable; the keys stand in sr3_core/doctor_findings.py.")
@click.option("--report", default="", metavar="DIR", help="Also write doctor.html, with pictures of the worst, and doctor.json there.")
@click.option("--limit", type=click.IntRange(min=1), help="Look at so many inputs, always the same ones; the others are listed.")
@click.option("--verbose", is_flag=True, help="Name every input that something is said of.")
@click.option(
    "--example",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_example,
    help="Print a source of 20 lines to start one's own.",
)
def doctor(source: str, overrides: tuple[str, ...], as_json: bool, report: str, limit: int | None, verbose: bool) -> None:
    """Look at every input of SOURCE before training: a folder, file or URI, a source plug-in, or a recipe (then its data section).

    Exit codes: 0 usable, perhaps with warnings; 1 not usable as it is, or the recipe's prepare would refuse it; 2 no such source.

    \b
    sr3 doctor ~/photos --report doctor/
    sr3 doctor gs://bucket/photos --limit 2000 --set 'data.levels=[64, 256]'
    sr3 doctor div2k --set uri=/data/DIV2K
    sr3 doctor demo --json
    sr3 doctor --example > sr3_core/data/sources/my_photos.py
    """
    from sr3_core import doctor as implementation

    sys.exit(implementation.run(source, overrides, as_json=as_json, report=report, limit=limit, verbose=verbose))


@main.command()
@click.argument("images", nargs=-1, required=True)
@click.option("-o", "--output", required=True, help="A .png or .jpg file for one image, a folder for several.")
@_made
@click.option("-n", "--samples", type=click.IntRange(min=1), default=1, show_default=True, help="Different draws of each image.")
def upscale(images: tuple[str, ...], output: str, **given: Any) -> None:
    """Make IMAGES larger by the registered champion.

    \b
    sr3 upscale photo.jpg -o big.png
    sr3 upscale photo.jpg -o big.png --chain chain.webp --steps 20
    sr3 upscale a.png b.png -o larger/ --model ./sr3-runs/train/sr256/0123456789abcdef/bundle
    """
    from sr3_core import upscale as implementation

    implementation.run(list(images), output, **given)


@main.command()
@click.option("-o", "--output", required=True, help="A .png or .jpg file for one image, a folder (with / at its end) for several.")
@_made
@click.option("-n", "--samples", type=click.IntRange(min=1), default=1, show_default=True, help="Images of this seed.")
def sample(output: str, **given: Any) -> None:
    """Make images from noise, by a model whose first stage is unconditional.

    \b
    sr3 sample -o face.png --model models:/sr3-cascade-1024@champion
    sr3 sample -o faces/ -n 8 --seed 1 --label 3 --model models:/faces@champion
    sr3 sample -o small.png --stage base64 --steps 50 --chain chain.webp --model ./sr3-runs/export/0123456789abcdef/bundle
    """
    from sr3_core import upscale as implementation

    implementation.run(None, output, **given)


@main.group("import-weights")
def import_weights() -> None:
    """Make a model of weights that another SR3 code trained; its outputs are the original's.

    \b
    sr3 import-weights janspiry I640000_E37_gen.pth --config sr_sr3_16_128.json --out faces
    sr3 import-weights novwaul last.pt --low 64 --high 256 --out photos
    sr3 upscale photo.jpg -o big.png --model ./photos
    """


@import_weights.command()
@click.argument("file")
@click.option("--config", "config_path", required=True, help="The JSON config these weights were trained with.")
@click.option("--out", required=True, help="Folder or fsspec URI of the model to write.")
def janspiry(file: str, config_path: str, out: str) -> None:
    """FILE is I..._E..._gen.pth of Janspiry/Image-Super-Resolution-via-Iterative-Refinement (sr3 or ddpm, conditional or not).

    \b
    sr3 import-weights janspiry I640000_E37_gen.pth --config sr_sr3_16_128.json --out faces
    """
    from sr3_core.importers import janspiry as implementation

    _imported(*implementation.import_weights(file, config_path, out))


@import_weights.command()
@click.argument("file")
@click.option("--low", type=click.IntRange(min=1), required=True, help="Pixels of the low image's side in training.")
@click.option("--high", type=click.IntRange(min=1), required=True, help="Pixels of the high image's side in training.")
@click.option("--weights", type=click.Choice(["ema", "last"]), default="ema", show_default=True, help="Averaged or last weights.")
@click.option("--out", required=True, help="Folder or fsspec URI of the model to write.")
def novwaul(file: str, low: int, high: int, weights: str, out: str) -> None:
    """FILE is last.pt of novwaul/SR3; the network's sizes and both noise tables are read off its tensors.

    \b
    sr3 import-weights novwaul last.pt --low 64 --high 256 --out photos
    """
    from sr3_core.importers import novwaul as implementation

    _imported(*implementation.import_weights(file, out, low=low, high=high, averaged=weights == "ema"))


def _imported(uri: str, notes: tuple[str, ...]) -> None:
    for note in notes:
        click.echo(note, err=True)
    click.echo(f"wrote {uri}")


def _room(name: str) -> click.Command:
    """One room by itself: the arguments go to ``python -m components.<name>`` as they are."""

    @click.command(name, context_settings={"ignore_unknown_options": True, "help_option_names": []}, add_help_option=False)
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def command(arguments: tuple[str, ...]) -> None:
        import importlib

        module = importlib.import_module(f"components.{name}.__main__")
        module.main(args=list(arguments), prog_name=f"sr3 {name}")

    command.help = f"The {name} room alone, as python -m components.{name}: sr3 {name} --help"
    command.short_help = command.help
    return command


for _name in _ROOMS:
    main.add_command(_room(_name))


if __name__ == "__main__":
    main()
