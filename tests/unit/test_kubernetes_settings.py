"""``scaling.kubernetes``: what it takes, and the one line it answers to what it does not."""

from typing import Any

import pytest

from sr3_core import config
from sr3_core.config import Kubernetes, Scaling
from sr3_core.errors import BadInput

A = {"variable": "A", "name": "n", "key": "k"}


def settings(**values: Any) -> Kubernetes:
    return config.parse(Scaling, {"kubernetes": values}).kubernetes


def test_the_defaults_say_nothing() -> None:
    plain = settings()
    assert plain == Kubernetes() and "kubernetes" not in Scaling().canonical_json()
    assert plain.selector(gpu=True, works=True) == {} and plain.tolerated(works=True) == ()
    assert plain.size("train") == ("8", "32Gi")


def test_spot_and_accelerator_become_labels_and_a_toleration() -> None:
    given = settings(spot=True, accelerator="nvidia-l4", node_selector={"pool": "a"})
    assert given.selector(gpu=True, works=True) == {
        "pool": "a", "cloud.google.com/gke-accelerator": "nvidia-l4", "cloud.google.com/gke-spot": "true",
    }  # fmt: skip
    assert given.selector(gpu=False, works=False) == {"pool": "a"}
    assert [taint.key for taint in given.tolerated(works=True)] == ["cloud.google.com/gke-spot"] and not given.tolerated(works=False)


def test_a_room_may_name_one_of_its_sizes() -> None:
    given = settings(rooms={"train": {"memory": "64Gi"}})
    assert given.size("train") == ("8", "64Gi") and given.size("export") == ("2", "8Gi")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"env_from": [A, {**A, "key": "other"}]}, "sets a variable twice: A"),
        ({"namespaces": "a"}, "unknown key kubernetes.namespaces; allowed: namespace (nearest)"),
        ({"namespace": "Team A"}, "kubernetes.namespace='Team A'"),
        ({"service_account": "-x"}, "kubernetes.service_account='-x'"),
        ({"spot": "perhaps"}, "kubernetes.spot='perhaps'"),
        ({"retries": 11}, "kubernetes.retries=11"),
        ({"timeout_seconds": 5}, "kubernetes.timeout_seconds=5"),
        ({"image_pull_policy": "Sometimes"}, "kubernetes.image_pull_policy='Sometimes'"),
        ({"rooms": {"kitchen": {"cpu": "1"}}}, "kitchen"),
        ({"rooms": {"train": {"cpu": "many"}}}, "kubernetes.rooms.train.cpu='many'"),
        ({"rooms": {"train": {"memory": "0Gi"}}}, "0Gi is nothing"),
        ({"rooms": {"train": {"gpu": 1}}}, "unknown key kubernetes.rooms.train.gpu"),
        ({"node_selector": {"a b": "c"}}, "a b"),
        ({"tolerations": [{"operator": "Exists", "key": "a", "value": "b"}]}, "takes no value"),
        ({"tolerations": [{"value": "b"}]}, "without a key"),
        ({"tolerations": [{"key": "a", "seconds": 3}]}, "need effect NoExecute"),
        ({"tolerations": [{"key": "a", "effect": "Never"}]}, "tolerations.0.effect='Never'"),
        ({"env_from": [{**A, "variable": "A-B"}]}, "env_from.0.variable='A-B'"),
        ({"env_from": [{"variable": "A", "name": "n"}]}, "no value for kubernetes.env_from.0.key"),
        ({"spot": True, "node_selector": {"cloud.google.com/gke-spot": "true"}}, "and so does spot"),
        ({"secrets": {"a": "b"}}, "key kubernetes.secrets carries a credential (not shown)"),
        ({"env_from": [{**A, "password": "hunter2"}]}, "carries a credential (not shown)"),
    ],
)
def test_what_it_refuses(values: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput) as refused:
        settings(**values)
    assert says in str(refused.value) and "\n" not in str(refused.value) and "hunter2" not in str(refused.value)
