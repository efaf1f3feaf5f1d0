"""What each room is given on a cluster: one table. Locally none of it applies, the local engine ignores it."""

from dataclasses import dataclass

from sr3_core.config import Scaling

VERSION = "0.1.0"
IMAGES = "sr3-{room}:" + VERSION  # a released version or, by --images, a registry with a digest or commit; never a moving tag
ACCELERATOR = "nvidia.com/gpu"


@dataclass(frozen=True)
class Resources:
    """Requests of one room's pod. ``cpu`` and ``memory`` are Kubernetes quantities, ``gpu`` a count, ``retries`` those of the server."""

    cpu: str
    memory: str
    gpu: int
    retries: int


#                      cpu   memory   gpu  retries
TABLE = {
    "prepare":  Resources("4",  "8Gi",  0, 2),
    "train":    Resources("8",  "32Gi", 1, 3),   # gpu: per worker, here and below
    "evaluate": Resources("8",  "32Gi", 1, 2),
    "export":   Resources("2",  "8Gi",  0, 2),
    "finish":   Resources("1",  "2Gi",  0, 2),
}  # fmt: skip


def of(room: str, scaling: Scaling, *, ray_address: str = "") -> Resources:
    """The room's row, its accelerators derived from ``scaling``: none on CPUs, and none with ``ray_address`` (the work runs there)."""
    row = TABLE[room]
    gpu = row.gpu * scaling.workers if scaling.accelerator == "gpu" and not ray_address else 0
    return Resources(row.cpu, row.memory, gpu, row.retries)


def image(room: str, images: str = IMAGES) -> str:
    """The room's image, ``images`` holding ``{room}``; finish is the export room's second task."""
    return images.format(room="export" if room == "finish" else room)
