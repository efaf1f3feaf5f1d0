"""The export room: the gate, the final bundle with its card, the registered model, the alias. Nothing passes the gate unmeasured.

<root>/export/<fingerprint>/bundle/    a cascade folder (sr3_core/cascade.py), also for a single stage
"""

import shlex
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from components import provenance
from components.export import card, registry
from sr3_core import config, labels, storage, tracking
from sr3_core.artifacts.bundle import ModelBundle, handed_on
from sr3_core.artifacts.lease import lease
from sr3_core.artifacts.report import EvalReport
from sr3_core.artifacts.shardset import ShardSet
from sr3_core.cascade import SCHEMA_VERSION, Cascade, is_cascade
from sr3_core.errors import BadInput, Failed
from sr3_core.progress import say


class ExportResult(NamedTuple):
    """``model_uri`` is models:/name/version."""

    model_uri: str
    version: str


def run(
    *,
    section: str,
    report_uri: str,
    report_sha256: str,
    bundles: str,
    root: str,
    mlflow_uri: str,
    run_key: str,
    ray_address: str = "",
    mlflow_run_id: str = "",
    scaling: str = "{}",
) -> ExportResult:
    """Gate, bundle, registration, alias; closes the parent run ``mlflow_run_id``.

    ``section`` is an Export section, ``bundles`` a JSON list of {"uri", "sha256"} in the order of the cascade. ``ray_address`` and
    ``scaling`` are every room's; nothing here is heavy enough for them. Raises BadInput for bundles that are not those the report is
    about, Failed when the gate does not hold (nothing is registered), when the registered model does not load, and when MLflow is down
    (the bundle is kept).
    """
    export = config.parse(config.Export, section)
    mlflow_uri, root = tracking.absolute(mlflow_uri), storage.absolute(root)
    entries = handed_on(bundles)
    report = EvalReport.open(report_uri)
    if report_sha256 and report.manifest_sha256 != report_sha256:
        raise BadInput(f"the report at {report_uri} is not the one that was handed on", f"sha256 {report_sha256}", "run evaluate again")
    measured = [entry["sha256"] for entry in report.content["bundles"]]
    if [sha256 for _, sha256 in entries] != measured:
        raise BadInput(
            f"bundles {_short(sha256 for _, sha256 in entries)}", f"those of the report at {report_uri}, in order: {_short(measured)}",
            "pass the bundles that were evaluated, or run evaluate again",
        )  # fmt: skip
    storage.check_writable(root)
    if not report.passed:
        raise Failed(f"gate failed: {'; '.join(report.failures())}; nothing registered; report: {report.page_uri}")
    identity = [export.canonical_json(), report.manifest_sha256, *measured, f"export {SCHEMA_VERSION}"]
    fingerprint = config.fingerprint(*identity)
    folder = storage.join(root, "export", fingerprint)
    with lease(folder, task="export"):
        cascade = _bundle(storage.join(folder, "bundle"), export, report, entries, mlflow_uri)
        try:
            version = _publish(cascade, export, report, mlflow_uri=mlflow_uri, parent=mlflow_run_id, fingerprint=fingerprint)
        except Failed:
            raise
        except Exception as error:  # mlflow raises many kinds; each of them leaves the bundle and means: again later
            given = {"section": section, "report_uri": report_uri, "report_sha256": report_sha256, "bundles": bundles, "root": root}
            again = _command({**given, "mlflow_uri": mlflow_uri, "run_key": run_key, "mlflow_run_id": mlflow_run_id})
            reason = " ".join(f"{error}".split())[:300]
            raise Failed(f"not registered: {reason}; the bundle is kept at {cascade.uri}; to repeat: {again}") from error
    return ExportResult(f"models:/{export.model}/{version}", version)


def _bundle(uri: str, export: config.Export, report: EvalReport, entries: Sequence[tuple[str, str]], mlflow_uri: str) -> Cascade:
    """The cascade folder at ``uri``, written unless it is there already and sound."""
    if is_cascade(uri):
        with suppress(BadInput):
            cascade = Cascade.load(uri)
            say("export", f"bundle up to date: {uri}")
            return cascade
        say("export", f"the bundle at {uri} is damaged; written again")
    storage.remove(uri, recursive=True)
    loaded = [_trained(*entry) for entry in entries]
    stages = [bundle.stage for bundle in loaded]
    text = card.write(
        section=export,
        report=report,
        stages=stages,
        manifests=[bundle.manifest for bundle in loaded],
        data=_data(report),
        mlflow_uri=mlflow_uri,
    )
    lineage = {"shards_sha256": report.content["shards"]["sha256"], "report_sha256": report.manifest_sha256, "git_commit": _commit(loaded)}
    metrics = {"split": report.content["split"], "tasks": report.content["tasks"], "metrics": report.metrics()}
    sampling = [{**stage.sampling, **report.sampling.get(stage.name, {})} for stage in stages]
    Cascade.save(uri, loaded, sampling=sampling, metrics=metrics, card=text, lineage=lineage)
    say("export", f"wrote {uri}")
    return Cascade.load(uri)


def _trained(uri: str, sha256: str) -> ModelBundle:
    bundle = ModelBundle.load(uri)
    if bundle.manifest_sha256 != sha256:
        raise BadInput(f"the bundle at {uri} is not the one that was handed on", f"sha256 {sha256}", "run train again")
    return bundle


def _short(hashes: Iterable[str]) -> str:
    return ", ".join(text[:12] for text in hashes) or "none"


def _publish(cascade: Cascade, export: config.Export, report: EvalReport, *, mlflow_uri: str, parent: str, fingerprint: str) -> str:
    client = tracking.client(mlflow_uri)
    found = registry.find(client, export.model, fingerprint)
    interface = _interface(cascade)
    if found is not None and found.tags.get(registry.VERIFIED) == "true":
        version = str(found.version)
        say("export", f"up to date: models:/{export.model}/{version}")
    else:
        with tracking.child(mlflow_uri, parent, "export", fingerprint) as tracker:
            tracker.set_tags(provenance.tags())
            tracker.log_params({"export": export.model_dump(), "bundle_uri": cascade.uri, "report_uri": report.uri})
            tracker.log_metrics(report.metrics())
            text = storage.read_bytes(storage.join(cascade.uri, "card.md")).decode()
            version = str(found.version) if found is not None else ""
            if not version:
                tags = _tags(report, cascade, fingerprint)
                version = _register(cascade, export, interface, uri=mlflow_uri, run_id=tracker.run_id, description=text, tags=tags)
            registry.verify(mlflow_uri, export.model, version, interface=interface)
            tracker.set_tags({"sr3.model": f"models:/{export.model}/{version}"})
    registry.move_alias(mlflow_uri, export.model, export.alias, version)
    tracking.upload_left_behind(mlflow_uri, Path.cwd())
    tracking.close_parent(mlflow_uri, parent, "FINISHED")
    return version


def _interface(cascade: Cascade) -> registry.Interface:
    """The size of an image from noise is the model's own, and all its steps may take hours on a CPU: one step tries such a model, unless a
    stage samples by a list of levels, whose length is its number of steps."""
    stages = [bundle.stage for bundle in cascade.bundles]
    given: dict[str, Any] = {
        "channels": stages[0].channels, "scale": cascade.scale, "bits": cascade.bits, "labels": labels.of(*stages).count
    }  # fmt: skip
    if stages[0].low is not None:
        return registry.Interface(side=None, **given)
    steps = 0 if any("gammas" in bundle.sampling for bundle in cascade.bundles) else 1
    return registry.Interface(side=stages[-1].high, trial_steps=steps, **given)


def _register(
    cascade: Cascade,
    export: config.Export,
    interface: registry.Interface,
    *,
    uri: str,
    run_id: str,
    description: str,
    tags: Mapping[str, str],
) -> str:
    def register(bundle: Path) -> str:
        return registry.register(
            uri,
            run_id=run_id,
            name=export.model,
            bundle=bundle,
            interface=interface,
            description=description,
            tags=tags,
        )

    if storage.is_local(cascade.uri):
        return register(storage.local_path(cascade.uri))
    with tempfile.TemporaryDirectory(prefix="sr3-export-") as folder:
        storage.download_folder(cascade.uri, Path(folder) / "bundle")
        return register(Path(folder) / "bundle")


def _tags(report: EvalReport, cascade: Cascade, fingerprint: str) -> dict[str, str]:
    tags = {f"metric.{name}": f"{value:.6g}" for name, value in report.metrics().items()}
    tags |= {f"sr3.{name}": str(value) for name, value in cascade.manifest["lineage"].items() if value}
    return {**tags, registry.FINGERPRINT: fingerprint, "sr3.bundle_uri": cascade.uri, "sr3.report_uri": report.uri}


def _commit(bundles: Sequence[ModelBundle]) -> str:
    """The git commit that the stages were trained at; several are joined."""
    return "+".join(sorted({str(bundle.manifest["lineage"].get("git_commit") or "") for bundle in bundles} - {""}))


def _data(report: EvalReport) -> dict[str, Any]:
    """What the card says of the data, from the ShardSet's manifest; {} when it is no longer where the report found it."""
    with suppress(BadInput, OSError, Failed):
        shards = ShardSet.open(report.content["shards"]["uri"])
        if shards.manifest_sha256 == report.content["shards"]["sha256"]:
            return {"source": shards.data.source, "counts": shards.manifest["counts"]}
    return {}


def _command(given: Mapping[str, str]) -> str:
    options = [f"--{name.replace('_', '-')} {shlex.quote(value)}" for name, value in given.items() if value]
    return " ".join(["python -m components.export", *options])
