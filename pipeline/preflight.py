"""What can be checked before any work: plug-ins and their options, the source, root, MLflow, Ray, disk, paths. Raises BadInput."""

import re
import shutil

from components import cluster, rayjobs
from sr3_core import config, plugins, storage, tracking
from sr3_core.errors import BadInput
from sr3_core.progress import say

FREE_BYTES = 1024**3
_RUN_KEY = re.compile(r"[A-Za-z0-9][\w.:-]{0,199}", re.ASCII)  # it names a folder and an MLflow tag
_REFUSED = {
    "python3": "KFP's local engine replaces the word python3 in every argument",
    "{{": "KFP takes {{ for a placeholder",
    '"': "it ends a JSON string",
    "\\": "KFP puts the value into a JSON string as it is",
}


def check(recipe: config.Recipe, *, root: str, mlflow_uri: str, ray_address: str, run_key: str) -> None:
    """Everything, in the order of cost."""
    from components.prepare import main as prepare

    refuse_text(recipe, root=root, mlflow_uri=mlflow_uri, ray_address=ray_address, run_key=run_key)
    prepare.refuse_root_inside(root, recipe.data.options.get("uri"))
    storage.check_writable(root)
    check_disk(root)
    cluster.check(ray_address)
    if ray_address.startswith(cluster.KUBERNETES):
        rayjobs.check_address(ray_address, recipe.scaling)
    check_source(recipe.data)
    check_plugins(recipe)
    check_labels(recipe)
    if not cluster.resolve(ray_address):
        warn_of_memory(recipe)
    tracking.check(mlflow_uri)


def refuse_text(recipe: config.Recipe, **parameters: str) -> None:
    """Values that KFP would change or print: its placeholders, the word python3, credentials."""
    config.refuse_secrets(parameters)
    for name, value in parameters.items():
        for text, reason in _REFUSED.items():
            if text in value:
                raise BadInput(f"{name} {value!r} contains {text}", f"values without it ({reason})", "choose another path or value")
    if (key := parameters.get("run_key")) and not _RUN_KEY.fullmatch(key):
        raise BadInput(f"run_key {key!r}", "a letter or digit, then up to 199 letters, digits and . _ : -", "choose another run_key")
    for section in (recipe.data, *recipe.stages, recipe.evaluation, recipe.export):
        for text in ("python3", "{{"):
            if text in section.canonical_json():
                raise BadInput(
                    f"the recipe's {type(section).__name__} section contains {text}", f"values without it ({_REFUSED[text]})", "rename it"
                )


def absolute_sources(recipe: config.Recipe) -> config.Recipe:
    """``recipe`` with a relative ``data.options.uri`` made absolute: the rooms work in another folder."""
    uri = recipe.data.options.get("uri")
    if not isinstance(uri, str):
        return recipe
    data = recipe.data.model_copy(update={"options": {**recipe.data.options, "uri": storage.absolute(uri)}})
    return recipe.model_copy(update={"data": data})


def check_source(data: config.Data) -> None:
    """The source exists, may be read and lists at least one input."""
    module = plugins.load("data.sources", data.source)
    options = config.options(module.Options, data.options, "data")
    if not module.listing(options).strip():
        raise BadInput(f"source {data.source} lists no input", "a source with images", "check data.options")


def check_labels(recipe: config.Recipe) -> None:
    """Where a stage is told labels, every input that the source does not refuse itself has one that the stage's network knows."""
    from sr3_core import labels

    if not labels.of(*recipe.stages).count:
        return
    module = plugins.load("data.sources", recipe.data.source)
    options = config.options(module.Options, recipe.data.options, "data")
    found = [example.label for example in module.examples(options) if not example.reason]
    for stage in recipe.stages:
        labels.check_samples(stage, found, f"source {recipe.data.source}")


def check_plugins(recipe: config.Recipe) -> None:
    """Every plug-in loads and takes its options; so do the sampling options, the search's candidates, the variants, the gate and what
    ``training.watch`` samples and judges with.

    What the objectives have to say of a stage and all its sampling (the schedule guard's warnings and waivers) is said, a line each.
    """
    from components.evaluate import plan, verdict
    from sr3_core.training import watching

    config.options(plugins.load("data.sources", recipe.data.source).Options, recipe.data.options, "data")
    evaluation = recipe.evaluation
    for stage in recipe.stages:
        model = plugins.load("models", stage.model.name)
        chosen = config.options(model.Options, stage.model.options, f"stages.{stage.name}.model")
        if hasattr(model, "check"):  # a plug-in's own word on options and stage together
            model.check(chosen, stage)
        watched = [] if stage.training.watch is None else [stage.training.watch.sampling]
        if stage.training.watch is not None:
            watching.judges(stage, degradation=recipe.data.degradation)
        for note in verdict.notes(stage, [*plan.changes(stage, evaluation), *watched]):
            say("recipe", f"{stage.name}: {note}")
    definitions = verdict.Definitions.of(
        evaluation, plan.tasks(recipe.stages), degradation=recipe.data.degradation, channels=recipe.data.channels
    )
    verdict.check(evaluation, definitions)


def warn_of_memory(recipe: config.Recipe) -> None:
    """Say, a line each, which stages need more memory for training than this machine, or its GPU, has. A network that cannot be counted
    costs the warning alone."""
    from sr3_core import capacity

    try:
        for line in capacity.shortages(recipe, capacity.present(recipe)):
            say("recipe", f"warning: {line}")
    except BadInput:
        raise
    except Exception as error:  # a network may do what has no meta kernel
        say("recipe", f"memory was not estimated: counting it raised {type(error).__name__}: {error}")


def check_disk(root: str) -> None:
    """Free space where the run writes."""
    if storage.is_local(root):
        folder = storage.local_path(root)
        free = shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if parent.exists())).free
        if free < FREE_BYTES:
            raise BadInput(
                f"{free / 1024**2:.0f} MiB free at {folder}",
                f"at least {FREE_BYTES / 1024**2:.0f} MiB",
                "make room or choose another --root",
            )
