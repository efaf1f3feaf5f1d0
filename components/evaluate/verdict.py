"""From measurements to what the report states: means with intervals, paired gains, the sampler chosen, the gate. Computes no image."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.evaluate.plan import Generated, Photo, Task
from sr3_core import baselines, config, plugins, statistics
from sr3_core.artifacts.report import CASCADE, OURS, Measurement, number
from sr3_core.config import Evaluation, Plugin, Rule, Stage
from sr3_core.errors import BadInput
from sr3_core.metrics import _base
from sr3_core.metrics._base import Reported
from sr3_core.statistics import Estimate


@dataclass(frozen=True)
class Definitions:
    """Every value the metrics report, in order, with the plug-in it comes from and, by task, how it is computed."""

    plugins: dict[str, Plugin]
    reports: dict[str, dict[str, Reported]]  # name -> task name -> definition

    @classmethod
    def of(cls, evaluation: Evaluation, tasks: Sequence[Task], *, degradation: str, channels: int) -> "Definitions":
        """Make every metric once for each task, so that what is missing (weights, a plug-in) is said before any work."""
        named: dict[str, Plugin] = {}
        reports: dict[str, dict[str, Reported]] = defaultdict(dict)
        for plugin in evaluation.metrics:
            config.options(plugins.load("metrics", plugin.name).Options, plugin.options, plugin.name)  # also where there is no task
            for task in tasks:
                metric = _base.make(plugin.name, plugin.options, scale=task.scale, degradation=degradation, channels=channels)
                for report in metric.reports:
                    if named.setdefault(report.name, plugin) is not plugin:
                        raise BadInput(f"two metrics that report {report.name}", "one of each", "mend evaluation.metrics")
                    reports[report.name][task.name] = report
        return cls(named, dict(reports))

    def better(self, name: str) -> str:
        """ "lower" or "higher"."""
        return next(iter(self.reports[name].values())).better

    def resolve(self, name: str) -> list[str]:
        """Values meant by ``name``: one value, or all values of the metric plug-in of that name. BadInput with the nearest one."""
        if name in self.plugins:
            return [name]
        own = [value for value, plugin in self.plugins.items() if plugin.name == name]
        if not own:
            allowed = [*self.plugins, *{plugin.name for plugin in self.plugins.values()}]
            valid = config.nearest(name, sorted(set(allowed))) or "none: there is no metric, or no stage with a low image to be judged"
            raise BadInput(f"metric {name!r} in the search or the gate", valid, "name one of evaluation.metrics")
        return own

    def as_json(self) -> list[dict[str, Any]]:
        """For report.json."""
        rows: list[dict[str, Any]] = []
        for name, by_task in self.reports.items():
            report = next(iter(by_task.values()))
            border = {task: each.border for task, each in by_task.items()}
            rows.append(
                {"name": name, "better": report.better, "unit": report.unit, "colour": report.colour, "border": border, "note": report.note}
            )
        return rows


def check(evaluation: Evaluation, definitions: Definitions) -> Plugin | None:
    """The plug-in that judges the search (None without a search); BadInput for names of baselines, search and gate that mean nothing."""
    baselines.load_all(evaluation.baselines)
    for rule in evaluation.gate:
        definitions.resolve(rule.metric)
        if rule.than is not None and rule.than not in evaluation.baselines:
            raise BadInput(
                f"gate rule than={rule.than!r}", config.nearest(rule.than, evaluation.baselines), "name one of evaluation.baselines"
            )
    clash = {OURS, *evaluation.baselines} & set(evaluation.variants)
    if clash:
        raise BadInput(
            f"variant {sorted(clash)[0]!r}", "a name that no baseline has and that is not 'ours'", "rename it in evaluation.variants"
        )
    if evaluation.search is None:
        return None
    judges = definitions.resolve(evaluation.search.metric)
    if len(judges) > 1:
        raise BadInput(
            f"search metric {evaluation.search.metric!r}", f"one of {', '.join(judges)}", "name a single value in evaluation.search.metric"
        )
    if evaluation.search.split == evaluation.split:
        raise BadInput(f"search on split {evaluation.split}, which is also judged", "another split", "set evaluation.search.split=val")
    return definitions.plugins[judges[0]]


def search(
    measured: Sequence[Measurement], stages: Sequence[Stage], evaluation: Evaluation, definitions: Definitions
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What each stage's search found, and the chosen sampling options by stage: the candidate with the best mean, the first of equals."""
    found: dict[str, Any] = {}
    chosen: dict[str, dict[str, Any]] = {}
    for stage in stages:
        one = evaluation.search is not None and len(evaluation.search.candidates) == 1 and stage.low is not None
        chosen[stage.name] = {**stage.sampling, **(evaluation.search.candidates[0] if evaluation.search is not None and one else {})}
        own = [item for item in measured if item.task == stage.name]
        if evaluation.search is None or not own:
            continue
        metric = definitions.resolve(evaluation.search.metric)[0]
        better = definitions.better(metric)
        candidates: list[dict[str, Any]] = []
        for sampling in dict.fromkeys(item.sampling for item in own):
            rows = [item for item in own if item.sampling == sampling and item.metric == metric]
            estimate = _estimate(rows, evaluation.seed)
            seconds = sum(item.seconds for item in rows) / len(rows)
            candidates.append({"sampling": json.loads(sampling), **_stated(estimate), "seconds": seconds, "chosen": False})
        best = min(candidates, key=lambda item: item["mean"] if better == "lower" else -item["mean"])
        best["chosen"] = True
        chosen[stage.name] = dict(best["sampling"])
        found[stage.name] = {
            "split": evaluation.search.split,
            "metric": metric,
            "better": better,
            "n": candidates[0]["n"],
            "candidates": candidates,
        }
    return found, chosen


def notes(stage: Stage, changes: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the stage's objective has to say of the stage with each of ``changes`` on top of its sampling options, each line once.

    BadInput for options that the objective refuses.
    """
    objective = plugins.load("objectives", stage.objective.name).Objective(stage, {})
    return list(dict.fromkeys(note for change in changes for note in objective.sampling_notes(change)))


def results(measured: Sequence[Measurement], definitions: Definitions, *, seed: int) -> list[dict[str, Any]]:
    """Mean, interval, n and worst image for every task, model and metric that was measured."""
    rows: list[dict[str, Any]] = []
    for (task, model, metric), items in _grouped(measured).items():
        better = definitions.better(metric)
        worst = max(items, key=lambda item: item.value if better == "lower" else -item.value)
        stated = _stated(_estimate(items, seed))
        rows.append({"task": task, "model": model, "metric": metric, **stated, "worst_key": worst.key, "worst": worst.value})
    return rows


def gains(measured: Sequence[Measurement], definitions: Definitions, evaluation: Evaluation, tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """Mean paired difference per photo in favour of ours, against every baseline."""
    groups = _grouped(measured)
    rows: list[dict[str, Any]] = []
    for task in tasks:
        for metric in definitions.reports:
            for baseline in evaluation.baselines:
                ours, other = groups.get((task.name, OURS, metric)), groups.get((task.name, baseline, metric))
                if not ours or not other:
                    continue
                theirs = {item.key: item.value for item in other}
                sign = -1.0 if definitions.better(metric) == "lower" else 1.0
                paired = [item for item in ours if item.key in theirs]
                differences = [sign * (item.value - theirs[item.key]) for item in paired]
                estimate = statistics.estimate(differences, [item.photo for item in paired], seed=evaluation.seed)
                rows.append({"task": task.name, "metric": metric, "than": baseline, **_stated(estimate)})
    return rows


def gate(
    rows: Sequence[Mapping[str, Any]],
    differences: Sequence[Mapping[str, Any]],
    definitions: Definitions,
    rules: Sequence[Rule],
    tasks: Sequence[Task],
) -> list[dict[str, Any]]:
    """Every rule for every task: a ``than`` rule holds when the mean paired gain is above 0, a ``limit`` rule when the mean is within it.

    A rule for which no image was judged does not hold.
    """
    verdicts: list[dict[str, Any]] = []
    for task in tasks:
        for rule in rules:
            for metric in definitions.resolve(rule.metric):
                better = definitions.better(metric)
                ours = _first(rows, task=task.name, model=OURS, metric=metric)
                gain = _first(differences, task=task.name, metric=metric, than=rule.than)
                judged = gain if rule.than is not None else ours
                passed = False
                if judged is not None and rule.limit is not None:
                    passed = judged["mean"] <= rule.limit if better == "lower" else judged["mean"] >= rule.limit
                elif judged is not None:
                    passed = judged["mean"] > 0
                verdicts.append(
                    {
                        "task": task.name,
                        "metric": metric,
                        "better": better,
                        "than": rule.than,
                        "limit": rule.limit,
                        "passed": passed,
                        "n": judged["n"] if judged else 0,
                        "mean": ours["mean"] if ours else None,
                        "gain": gain["mean"] if gain and rule.than is not None else None,
                        "interval_low": judged["interval_low"] if judged else None,
                        "interval_high": judged["interval_high"] if judged else None,
                    }
                )
    return verdicts


def task_json(task: Task, found: Sequence[Photo], measured: Sequence[Measurement]) -> dict[str, Any]:
    """A task for report.json: sizes, n, how many images lack a level it needs, seconds per image by model."""
    n = sum(photo.serves(task) for photo in found)
    left_out = len(found) - n
    what = "The whole cascade, from the lowest image." if task.name == CASCADE else "The stage by itself, from its true low image."
    note = f"{what} n = {n}" + (f"; {left_out} more have no {task.high}-px level and are not counted." if left_out else ".")
    seconds: dict[str, list[float]] = defaultdict(list)
    for _, items in _grouped([item for item in measured if item.task == task.name]).items():
        seconds[items[0].model] = [item.seconds for item in items]
    means = {model: sum(values) / len(values) for model, values in seconds.items()}
    return {
        "name": task.name, "label": task.label, "low": task.low, "high": task.high, "scale": task.scale,
        "n": n, "left_out": left_out, "note": note, "seconds": means,
    }  # fmt: skip


def generated_json(
    made: Generated, measured: Sequence[Measurement], pictures: Sequence[str], *, seed: int, labels: Sequence[int | None]
) -> dict[str, Any]:
    """What was drawn from noise for report.json: size, n, the seed of ``sr3 sample``, seconds per image, the files of the pictures; in the
    note the label that each was drawn with."""
    own = [item.seconds for item in measured if item.task == made.name]
    seconds = sum(own) / len(own)
    what = "The first stage by itself" if made.stop == 1 else "The whole cascade"
    told = [str(label) for label in labels if label is not None]
    classes = f" and label {', '.join(told)}" if told else ""
    note = (
        f"{what}, from noise: {len(own)} images of seed {seed}{classes}, {number(seconds)} s each. Nothing is "
        "compared: an image from noise has no true image, and distances between sets of images are not computed."
    )
    return {
        "name": made.name, "label": made.label, "high": made.high, "n": len(own), "seed": seed, "seconds": seconds, "note": note,
        "pictures": list(pictures),
    }  # fmt: skip


def _grouped(measured: Sequence[Measurement]) -> dict[tuple[str, str, str], list[Measurement]]:
    groups: dict[tuple[str, str, str], list[Measurement]] = defaultdict(list)
    for item in measured:
        groups[item.task, item.model, item.metric].append(item)
    return groups


def _estimate(items: Sequence[Measurement], seed: int) -> Estimate:
    return statistics.estimate([item.value for item in items], [item.photo for item in items], seed=seed)


def _stated(estimate: Estimate) -> dict[str, Any]:
    return {
        "mean": estimate.mean, "interval_low": estimate.low, "interval_high": estimate.high, "n": estimate.n, "photos": estimate.clusters
    }  # fmt: skip


def _first(rows: Sequence[Mapping[str, Any]], **wanted: Any) -> Mapping[str, Any] | None:
    return next((row for row in rows if all(row[key] == value for key, value in wanted.items())), None)
