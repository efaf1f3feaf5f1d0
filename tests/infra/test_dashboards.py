"""Alerts and the board ask for metrics that exist: each name and label is looked up in the installed Ray, none is invented."""

import ast
import functools
import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.train.gauges import GAUGES
from tests.infra.manifests import K8S, Document, one, parse, render

MONITORING = K8S / "components" / "monitoring"
BOARD = MONITORING / "sr3.json"
# Where Ray defines metrics, and where it uses those of its C++ core, whose names stand in no Python: its own Grafana boards.
DEFINED = ("dashboard/modules/reporter", "autoscaler/_private/prom_metrics.py", "train/v2/_internal/metrics", "serve/_private")
USED = ("dashboard/modules/metrics/dashboards",)
METRICS = ("Gauge", "Counter", "Histogram", "Sum")
SUFFIXES = ("_total", "_bucket", "_sum", "_count")
ADDED = {"namespace", "instance", "ray_io_cluster", "stage"}  # labels that the PodMonitor adds, and that of our own gauges
WORDS = {
    "sum", "avg", "min", "max", "by", "without", "on", "unless", "and", "or", "rate", "increase", "changes", "offset",
    "histogram_quantile", "label_values",
}  # fmt: skip


def alerts() -> list[Document]:
    (document,) = parse((MONITORING / "alerts.yaml").read_text())
    return [rule for group in document["spec"]["groups"] for rule in group["rules"]]


def panels() -> list[Document]:
    return [panel for panel in json.loads(BOARD.read_text())["panels"] if panel["type"] != "row"]


def queries() -> dict[str, str]:
    """Every PromQL expression of the alerts and the board, by where it stands."""
    found = {rule["alert"]: rule["expr"] for rule in alerts()}
    found |= {f"{panel['title']} {target['refId']}": target["expr"] for panel in panels() for target in panel["targets"]}
    return found | {f"${v['name']}": v["query"] for v in json.loads(BOARD.read_text())["templating"]["list"] if v["type"] == "query"}


def metrics_of(expression: str) -> set[str]:
    """Names of metrics in a PromQL expression: words that are no function, no keyword, no label and no text."""
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\"[^\"]*\"", "", expression)
    bare = re.sub(r"\b(by|without|on)\s*\([^)]*\)", "", bare)
    bare = re.sub(r"\boffset \w+", "", bare)
    bare = re.sub(r"label_values\((.*),.*\)", r"\1", bare)
    return {word for word in re.findall(r"[A-Za-z_][A-Za-z0-9_]*", bare) if word not in WORDS}


def labels_of(expression: str) -> set[str]:
    """Labels that a PromQL expression selects or groups by."""
    selected = {name for inner in re.findall(r"\{([^}]*)\}", expression) for name in re.findall(r"(\w+)\s*[=!]~?", inner)}
    grouped = {name.strip() for inner in re.findall(r"\b(?:by|without|on)\s*\(([^)]*)\)", expression) for name in inner.split(",")}
    return selected | grouped


def sources(places: tuple[str, ...]) -> Iterator[Path]:
    spec = importlib.util.find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    for place in places:
        path = Path(spec.origin).parent / place
        assert path.exists(), f"Ray has no {place} any more"
        yield from [path] if path.is_file() else path.rglob("*.py")


@functools.cache
def known() -> frozenset[str]:
    """Names under which the installed Ray, and our training through it, export metrics to Prometheus."""
    names = {f"ray_sr3_train_{name}" for name in GAUGES}
    for path in sources(DEFINED):
        text = path.read_text(encoding="utf-8")
        if not any(kind in text for kind in METRICS):
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
                kind = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
                first = node.args[0] if node.args else None
                if kind in METRICS and isinstance(first, ast.Constant) and isinstance(first.value, str):
                    names.add(f"{'autoscaler' if path.name == 'prom_metrics.py' else 'ray'}_{first.value}")
            if "train" in path.parts and isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                names.add(f"ray_{node.value.value}")
    for path in sources(USED):
        names |= set(re.findall(r"\b(?:ray|autoscaler)_[a-z0-9_]+\b", path.read_text(encoding="utf-8")))
    return frozenset(names)


@functools.cache
def known_labels() -> frozenset[str]:
    found = set[str]()
    for path in (*sources(USED), *sources(DEFINED)):
        text = path.read_text(encoding="utf-8")
        found |= set(re.findall(r"\b([A-Za-z_]+)\s*(?:=~|!~|=\"|!=)", text)) | set(re.findall(r"\"([A-Za-z_]+)\"", text))
        found |= {name.strip() for inner in re.findall(r"\bby\s*\(([^){]*)\)", text) for name in inner.split(",")}
    return frozenset(found)


def is_known(metric: str) -> bool:
    plain = next((metric.removesuffix(suffix) for suffix in SUFFIXES if metric.endswith(suffix)), metric)
    return metric in known() or plain in known()


@pytest.mark.parametrize("place", sorted(queries()))
def test_every_metric_and_label_is_one_of_rays(place: str) -> None:
    expression = queries()[place]
    assert expression.count("(") == expression.count(")")
    assert expression.count("{") == expression.count("}")
    names = metrics_of(expression)
    assert names, "asks for nothing"
    assert not {name for name in names if not is_known(name)}
    assert 'namespace="sr3"' in expression
    assert not labels_of(expression) - known_labels() - ADDED


def test_an_invented_metric_and_label_are_found() -> None:
    assert metrics_of('sum by (le) (rate(ray_node_gpu_happiness{a="b"}[5m])) > 1 unless ray_tasks') == {
        "ray_node_gpu_happiness",
        "ray_tasks",
    }
    assert not is_known("ray_node_gpu_happiness")
    assert not is_known("ray_serve_deployment_requests_total")
    assert is_known("ray_serve_deployment_request_counter_total")
    assert is_known("ray_train_controller_state")
    assert is_known("ray_sr3_train_loss")
    assert not is_known("ray_sr3_train_happiness")
    assert "gpu_happiness" not in known_labels()
    assert labels_of('sum(x{Name="CPU", le!~"1"}) by (State, node)') == {"Name", "le", "State", "node"}


def test_our_gauges_are_of_what_the_training_logs() -> None:
    from sr3_core.training import pace

    logged = pace.NAMES | {"loss", "gradient_norm", "images_seen", "validation_loss", "validation_psnr_rgb"}
    assert set(GAUGES) <= logged


def test_every_alert_says_what_to_do() -> None:
    for rule in alerts():
        assert set(rule["annotations"]) == {"summary", "do"}, rule["alert"]
        assert rule["labels"]["severity"] in ("warning", "critical")


def test_the_board_has_ray_training_and_serving() -> None:
    board = json.loads(BOARD.read_text())
    rows = [panel["title"].split()[0] for panel in board["panels"] if panel["type"] == "row"]
    assert rows == ["Cluster", "Training", "Serving"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
    assert len(set(places)) == len(places), "two panels at one place"
    config = one(render("overlays/gke"), "ConfigMap", "sr3-grafana")
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(config["data"]["sr3.json"]) == board


def test_what_is_scraped_are_ports_of_ray_pods() -> None:
    documents = render("overlays/gke")
    monitor = one(documents, "PodMonitor", "sr3-ray")["spec"]
    pod = one(documents, "RayCluster", "sr3")["spec"]["headGroupSpec"]["template"]["spec"]
    ports = {port["name"]: port["containerPort"] for port in pod["containers"][0]["ports"]}
    scraped = {endpoint["port"] for endpoint in monitor["podMetricsEndpoints"]}
    assert scraped <= set(ports)
    (rule,) = one(documents, "NetworkPolicy", "ray-metrics")["spec"]["ingress"]
    assert {port["port"] for port in rule["ports"]} == {ports[name] for name in scraped}
