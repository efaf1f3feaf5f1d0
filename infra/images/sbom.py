"""``sbom.py CLIENT IMAGE FOLDER``: the bill of materials of an image as CycloneDX 1.6 JSON, FOLDER/<room>.json.

What is listed is asked of the image itself: Python and the packages that lie in it, with licences and needs as their metadata
state them, and the packages of its Debian. The file carries the image's commit and id, and no time: the same for the same image.
"""

import json
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

from cyclonedx.model import Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_PYTHON = """
import importlib.metadata, json, platform, sys, sysconfig
below = sysconfig.get_path("purelib", vars={"base": sys.base_prefix, "platbase": sys.base_prefix})
paths = [*sys.path, below, f"{sys.prefix}/share/sr3-weights"]
found = [
    [d.name, d.version, d.metadata["License-Expression"] or d.metadata["License"] or "", d.requires or []]
    for d in importlib.metadata.distributions(path=list(dict.fromkeys(paths)))
]
print(json.dumps([*found, ["python", platform.python_version(), "PSF-2.0", []]]))
"""
_DEBIAN = ["dpkg-query", "--show", "--showformat=${Package} ${Version} ${Architecture}\\n"]
_LICENCE_CHARACTERS = 100  # some packages put the whole text into that field
_NAMESPACE = uuid.UUID("6f1b1c5e-52a0-4a4e-8d8e-8f7a3c1d9b60")  # of the serial numbers: version 5 of the image's id


def main() -> int:
    client, image, folder = sys.argv[1:]
    inspected = json.loads(_said([client, "image", "inspect", image]))[0]
    labels = inspected["Config"].get("Labels") or {}
    room = labels["sr3.room"]
    text = bill(
        room,
        image=inspected["Id"],
        commit=labels["org.opencontainers.image.revision"],
        version=labels["org.opencontainers.image.version"],
        python=json.loads(_said([client, "run", "--rm", "--network", "none", image, "python3", "-c", _PYTHON])),
        debian=[line.split() for line in _said([client, "run", "--rm", "--network", "none", image, *_DEBIAN]).splitlines()],
    )
    if invalid := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        raise SystemExit(f"images: the bill of {image} is not valid CycloneDX: {invalid}")
    place = Path(folder) / f"{room}.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text, encoding="utf-8")
    print(f"images: {place}  {len(json.loads(text)['components'])} components")
    return 0


def bill(room: str, *, image: str, commit: str, version: str, python: list[Any], debian: list[list[str]]) -> str:
    """The JSON text; ``python`` is [name, version, licence, requirements] of each package, ``debian`` [name, version, architecture]."""
    bom = Bom(serial_number=uuid.uuid5(_NAMESPACE, image))
    root = Component(name=f"sr3-{room}", version=version, type=ComponentType.CONTAINER, bom_ref=f"sr3-{room}")
    root.properties = [Property(name="sr3:commit", value=commit), Property(name="sr3:image", value=image)]
    bom.metadata.component = root
    by_name: dict[str, Component] = {}
    for name, number, licence, _ in python:
        package = canonicalize_name(name)
        short = " ".join(licence.split())
        by_name[package] = Component(
            name=name,
            version=number,
            purl=PackageURL("generic" if package == "python" else "pypi", None, package, number),
            bom_ref=f"pypi:{package}",
            licenses=[DisjunctiveLicense(name=short)] if short and len(short) <= _LICENCE_CHARACTERS else [],
        )
    systems = [
        Component(
            name=name,
            version=number,
            purl=PackageURL("deb", "debian", name, number, {"arch": architecture}),
            bom_ref=f"deb:{name}:{architecture}",
        )
        for name, number, architecture in debian
    ]
    bom.components = [*by_name.values(), *systems]
    bom.register_dependency(root, [*by_name.values(), *systems])
    for name, _, _, requirements in python:
        needed = {canonicalize_name(wanted.name) for wanted in map(Requirement, requirements) if _holds(wanted)}
        bom.register_dependency(by_name[canonicalize_name(name)], [by_name[other] for other in sorted(needed & by_name.keys())])
    written = json.loads(JsonV1Dot6(bom).output_as_string())
    written["metadata"].pop("timestamp", None)
    return json.dumps(written, indent=1, sort_keys=True) + "\n"


def _holds(wanted: Requirement) -> bool:
    """Whether it is needed without extras; by this Python, which `make images` holds equal to the image's."""
    return wanted.marker is None or wanted.marker.evaluate({"extra": ""})


def _said(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    sys.exit(main())
