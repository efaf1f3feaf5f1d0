"""Where a run's pods go on a Kubernetes cluster: the recipe's ``scaling.kubernetes``. Locally none of it applies. No torch here."""

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from sr3_core.config.section import Section

RoomName = Literal["prepare", "train", "evaluate", "export"]

# The grammars of Kubernetes' own API: object names, label keys and values, environment variables, quantities.
OBJECT = r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$"
NAMESPACE = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
_LABEL_NAME = r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_LABEL_KEY = rf"^([a-z0-9]([a-z0-9.-]{{0,251}}[a-z0-9])?/)?{_LABEL_NAME}$"
_LABEL_VALUE = rf"^({_LABEL_NAME})?$"
_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"
_ENTRY = r"^[A-Za-z0-9._-]{1,253}$"
_CPU = r"^([0-9]+(\.[0-9]{1,3})?|[0-9]+m)$"
_MEMORY = r"^[0-9]+(Ki|Mi|Gi|Ti|M|G|T)$"
_POSITIVE = re.compile("[1-9]")

LabelKey = Annotated[str, Field(pattern=_LABEL_KEY)]
LabelValue = Annotated[str, Field(pattern=_LABEL_VALUE)]

SPOT = "cloud.google.com/gke-spot"  # GKE's label and taint of spot nodes
ACCELERATOR_LABEL = "cloud.google.com/gke-accelerator"  # GKE's label of nodes with a GPU


class Toleration(Section):
    """One taint that the rooms' pods put up with, as in a pod's ``tolerations``; ``seconds`` only with NoExecute."""

    key: LabelKey | None = None
    operator: Literal["Equal", "Exists"] = "Equal"
    value: LabelValue = ""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    seconds: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _agrees(self) -> "Toleration":
        if self.operator == "Exists" and self.value:
            raise ValueError("a toleration with operator Exists takes no value")
        if self.key is None and self.operator == "Equal":
            raise ValueError("a toleration without a key needs operator Exists")
        if self.seconds is not None and self.effect != "NoExecute":
            raise ValueError("a toleration's seconds need effect NoExecute")
        return self


class Variable(Section):
    """The environment variable ``variable`` is the key ``key`` of the Secret ``name``: names alone, a recipe holds no value of a secret."""

    variable: str = Field(pattern=_VARIABLE)
    name: str = Field(pattern=OBJECT)
    key: str = Field(pattern=_ENTRY)


class Room(Section):
    """What one pod of a room asks for, as Kubernetes quantities; None leaves it to ``SIZES``."""

    cpu: str | None = Field(default=None, pattern=_CPU)
    memory: str | None = Field(default=None, pattern=_MEMORY)

    @field_validator("cpu", "memory")
    @classmethod
    def _not_nothing(cls, value: str | None) -> str | None:
        if value is not None and not _POSITIVE.search(value):
            raise ValueError(f"{value} is nothing; a pod needs more")
        return value


# What one pod of a room asks for when the recipe says nothing: of a KFP task, and of each worker of a Ray cluster of the run's own.
SIZES = {
    "prepare": Room(cpu="4", memory="8Gi"),
    "train": Room(cpu="8", memory="32Gi"),
    "evaluate": Room(cpu="8", memory="32Gi"),
    "export": Room(cpu="2", memory="8Gi"),
}
FOLLOWER = Room(cpu="1", memory="4Gi")  # a task that only follows its work on a Ray elsewhere, and the one that closes a run
HEAD = Room(cpu="2", memory="8Gi")  # the head of a Ray cluster: no work is placed there, but the room's driver runs in it


class Kubernetes(Section):
    """Settings of the pods on a cluster: of the KFP tasks, and of the Ray cluster that a run brings with it (``kubernetes://``).

    ``env_from`` hands keys of existing Secrets to the rooms as environment variables. ``accelerator`` is the value of GKE's node label
    ``cloud.google.com/gke-accelerator`` (nvidia-l4, nvidia-h100-80gb), ``accelerator_resource`` what a pod with a GPU asks for. ``spot``
    puts the work on GKE's spot nodes, but no Ray head and no task that only follows. ``service_account`` is that of the KFP run, or with a
    Ray cluster of the run's own that of the cluster's pods, and the run has KFP's own then. ``retries`` and ``timeout_seconds`` hold for
    each task. ``queue`` is a LocalQueue of Kueue, that starts all pods of a Ray cluster or none; it and ``priority_class`` are for Ray
    clusters of the run's own.
    """

    namespace: str | None = Field(default=None, pattern=NAMESPACE)
    service_account: str | None = Field(default=None, pattern=OBJECT)
    node_selector: dict[LabelKey, LabelValue] = Field(default={})
    tolerations: tuple[Toleration, ...] = ()
    env_from: tuple[Variable, ...] = ()
    rooms: dict[RoomName, Room] = Field(default={})
    accelerator: LabelValue | None = Field(default=None, min_length=1)
    accelerator_resource: str = Field(default="nvidia.com/gpu", pattern=_LABEL_KEY)
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    spot: bool = False
    retries: int | None = Field(default=None, ge=0, le=10)
    timeout_seconds: int | None = Field(default=None, ge=60)
    queue: str | None = Field(default=None, pattern=NAMESPACE)
    priority_class: str | None = Field(default=None, pattern=OBJECT)

    @model_validator(mode="after")
    def _each_once(self) -> "Kubernetes":
        variables = [item.variable for item in self.env_from]
        if len(set(variables)) != len(variables):
            raise ValueError(f"env_from sets a variable twice: {', '.join(sorted({v for v in variables if variables.count(v) > 1}))}")
        for label, given in ((SPOT, self.spot), (ACCELERATOR_LABEL, self.accelerator is not None)):
            if given and label in self.node_selector:
                raise ValueError(f"node_selector names {label}, and so does {'spot' if label == SPOT else 'accelerator'}")
        return self

    def size(self, room: str) -> tuple[str, str]:
        """CPU and memory of one pod of ``room``, as Kubernetes quantities: the recipe's where it names them, else those of ``SIZES``."""
        own, usual = self.rooms.get(room, Room()), SIZES[room]  # type: ignore[call-overload]
        return str(own.cpu or usual.cpu), str(own.memory or usual.memory)

    def whole_cpus(self, room: str) -> int:
        """The whole CPUs of one pod of ``room``; at least 1, as Ray counts them there."""
        cpu, _ = self.size(room)
        return max(1, int(cpu.removesuffix("m")) // 1000 if cpu.endswith("m") else int(float(cpu)))

    def selector(self, *, gpu: bool, works: bool) -> dict[str, str]:
        """The node labels a pod wants: those of the accelerator with ``gpu``, of spot nodes where it ``works`` and does not only follow."""
        labels = dict(self.node_selector)
        if gpu and self.accelerator is not None:
            labels[ACCELERATOR_LABEL] = self.accelerator
        if self.spot and works:
            labels[SPOT] = "true"
        return labels

    def tolerated(self, *, works: bool) -> tuple[Toleration, ...]:
        """``tolerations``, and that of spot nodes where the pod ``works``."""
        return (*self.tolerations, *([Toleration(key=SPOT, value="true", effect="NoSchedule")] if self.spot and works else []))
