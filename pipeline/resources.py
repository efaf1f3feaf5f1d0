"""What each room is given on a cluster: one table. Locally none of it applies, the local engine ignores it."""

import re
from dataclasses import dataclass

from sr3_core import config
from sr3_core.config import Scaling
from sr3_core.errors import BadInput

VERSION = "0.1.0"
IMAGES = "sr3-{room}:" + VERSION  # a released version or, by --images, a registry with a digest or commit; never a moving tag
ELSEWHERE = ("http://", "https://", "kubernetes://")  # Ray addresses where a room's entry is submitted instead of working from its task
_MOVING = ("latest", "main", "master", "trunk", "head", "dev", "develop", "edge", "nightly", "stable", "staging")
_IMAGE = re.compile(r"[A-Za-z0-9][\w.-]*(:\d+)?(/[A-Za-z0-9][\w.-]*)*(:\w[\w.-]{0,127})?", re.ASCII)


@dataclass(frozen=True)
class Resources:
    """Requests of one room's pod. ``cpu`` and ``memory`` are Kubernetes quantities, ``gpu`` a count, ``retries`` those of the server;
    ``works``: it does heavy work itself, and may do so on a spot node."""

    cpu: str
    memory: str
    gpu: int
    retries: int
    works: bool


@dataclass(frozen=True)
class Row:
    """A room's GPUs per worker, its retries on the server, and whether its work may be submitted to a Ray. CPU and memory stand in
    ``config.SIZES``; the recipe may change them."""

    gpu: int
    retries: int
    submits: bool


TABLE = {
    "prepare": Row(gpu=0, retries=2, submits=True),
    "train": Row(gpu=1, retries=3, submits=True),
    "evaluate": Row(gpu=1, retries=2, submits=True),
    "export": Row(gpu=0, retries=2, submits=False),
    "finish": Row(gpu=0, retries=2, submits=False),
}


def of(room: str, scaling: Scaling, *, ray_address: str = "") -> Resources:
    """What the room's KFP task asks for, its accelerators derived from ``scaling``: none on CPUs, and none with ``ray_address`` (the work
    runs there). A task that submits its work elsewhere only follows it, and asks for little."""
    row, settings = TABLE[room], scaling.kubernetes
    follows = row.submits and ray_address.startswith(ELSEWHERE)
    size = config.FOLLOWER if follows or room == "finish" else None
    cpu, memory = (str(size.cpu), str(size.memory)) if size else settings.size(room)
    gpu = row.gpu * scaling.workers if scaling.accelerator == "gpu" and not ray_address else 0
    retries = row.retries if settings.retries is None else settings.retries
    return Resources(cpu, memory, gpu, retries, works=row.submits and not follows)


def image(room: str, images: str = IMAGES) -> str:
    """The room's image, ``images`` holding ``{room}``; finish is the export room's second task."""
    return images.replace("{room}", "export" if room == "finish" else room)


def check_images(images: str) -> None:
    """Raise BadInput unless ``images`` has ``{room}`` in its name and ends in a digest or in a tag that stays what it is."""
    allowed = "a name with {room} in it and a digest or a fixed tag, as registry.example/sr3-{room}:COMMIT"
    name, at, digest = images.partition("@")
    plain = name.replace("{room}", "room")
    if plain == name or not _IMAGE.fullmatch(plain) or (at and not re.fullmatch(r"sha256:[0-9a-f]{64}", digest)):
        raise BadInput(f"--images {images!r}", allowed, "give such a name")
    _, colon, tag = name.rpartition("/")[2].partition(":")
    if not at and (not colon or tag.lower() in _MOVING):
        got = f"the moving tag {tag!r}" if colon else "no tag, which means the moving tag 'latest'"
        raise BadInput(f"--images {images!r} with {got}", allowed, "name the version, the commit or the digest")
