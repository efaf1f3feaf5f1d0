"""ImageNet (ILSVRC 2012) and what is laid out like it: train/<class>/*.JPEG, val/<class>/*.JPEG or val/*.JPEG with a list. Labels are the
places of the sorted class names (synsets).
"""

import os
from collections.abc import Iterator, Mapping, Sequence

from sr3_core import storage
from sr3_core.config import Section
from sr3_core.data.sources import _files
from sr3_core.data.sources._base import Example
from sr3_core.errors import BadInput

LISTS = (
    "LOC_val_solution.csv",
    "val.txt",
    "val/val_annotations.txt",
    "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt",
    "data/ILSVRC2012_validation_ground_truth.txt",
)  # where a list of the validation photos' classes is looked for
_SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")


class Options(Section):
    """``uri``: the folder that holds train and val (a test folder has no labels and is no input). ``held_out``: what val is called here.

    ``val_list``: the classes of a val folder without class folders; looked for under the usual names when empty. A line is ``name class``
    (more words are left out; commas will do), ``name label`` with the label from 0 by sorted class names, or, as in the devkit, a number
    from 1 for each photo by name; then ``synsets`` is a text file with the classes in the devkit's order, or its meta.mat (read by scipy).
    ``classes``: only these; labels then are their places among them, sorted.
    """

    uri: str
    held_out: _files.HeldOut = "val"
    val_list: str = ""
    synsets: str = ""
    classes: tuple[str, ...] = ()


def examples(options: Options) -> Iterator[Example]:
    """Every photo once: training, then validation. Raises BadInput for a folder that is missing or laid out otherwise."""
    for item in _items(options):
        yield item.example


def listing(options: Options) -> str:
    """``key size stamp split label`` a line."""
    return _files.layout_listing(_items(options))


def _items(options: Options) -> list[_files.Listed]:
    files = _files.listed(options.uri, _SUFFIXES)
    train, val = _files.folder_of(files, "train"), _files.folder_of(files, "val")
    every = sorted({info.path_relative.split("/")[0] for info in train if "/" in info.path_relative})
    if not every:
        layout = "train/<class>/*.JPEG, and val/<class>/*.JPEG or val/*.JPEG with a list"
        raise _files.wrong_layout(options.uri, files, layout, "set data.options.uri to the folder that holds train and val")
    for name in options.classes:
        if name not in every:
            raise BadInput(f"no class {name!r} in {options.uri}/train", _files.few(every), "mend data.options.classes")
    labels = {name: label for label, name in enumerate(sorted(options.classes or every))}
    found = [_item(info, info.path_relative.split("/")[0] if "/" in info.path_relative else "", "train", labels, every) for info in train]
    if not val:
        return [item for item in found if item is not None]
    held = options.held_out
    if all("/" in info.path_relative and info.path_relative.split("/")[0] in every for info in val):
        found += [_item(info, info.path_relative.split("/")[0], held, labels, every) for info in val]
        return [item for item in found if item is not None]
    listed = _val_classes(options, val, every)
    there = {os.path.basename(_files.stem(info.path_relative)): info for info in val}
    found += [_item(info, listed.get(name, ""), held, labels, every) for name, info in sorted(there.items())]
    for name in sorted(set(listed) - set(there)):
        if listed[name] in labels:
            uri = storage.join(storage.absolute(options.uri), "val", f"{name}.JPEG")
            found.append(_files.Listed(Example(f"val/{name}", uri, held, labels[listed[name]]), None))
    return [item for item in found if item is not None]


def _item(
    info: storage.FileInfo, name: str, split: _files.SplitName, labels: Mapping[str, int], every: Sequence[str]
) -> _files.Listed | None:
    """None for a class that the options leave out."""
    key = f"{'train' if split == 'train' else 'val'}/{_files.stem(info.path_relative)}"
    if name in labels:
        return _files.Listed(Example(key, info.uri, split, labels[name]), info)
    if name in every:
        return None
    reason = "unknown class" if name else "no class"
    return _files.Listed(Example(key, info.uri, split, reason=reason, detail=name), info)


def _val_classes(options: Options, val: Sequence[storage.FileInfo], every: Sequence[str]) -> dict[str, str]:
    """Photo's name without extension -> class."""
    places = [_files.beside(options.uri, name) for name in ((options.val_list,) if options.val_list else LISTS)]
    place = next((place for place in places if storage.exists(place)), None)
    if place is None:
        layout = f"folders of classes in val, or a list: {', '.join(LISTS)}"
        raise BadInput(f"val photos without classes in {options.uri}", layout, "fetch the list, and name it in data.options.val_list")
    rows = _files.table(place, "a photo's name and its class a line")
    if all(len(row) == 1 and row[0].isdecimal() for row in rows):
        return _of_devkit(options, [int(row[0]) for row in rows], val, place)
    classes: dict[str, str] = {}
    for number, row in enumerate(rows):
        if len(row) < 2:
            raise BadInput(f"line {number + 1} of {place}: {' '.join(row)[:80]!r}", "a photo's name and its class a line", "mend it")
        if number == 0 and row[0] == "ImageId":
            continue
        name = row[1]
        if name.isdecimal():
            if int(name) >= len(every):
                raise BadInput(f"label {name} in {place}", f"0 .. {len(every) - 1}, for the {len(every)} classes of train", "check both")
            name = every[int(name)]
        classes[os.path.basename(_files.stem(row[0]))] = name
    return classes


def _of_devkit(options: Options, numbers: Sequence[int], val: Sequence[storage.FileInfo], place: str) -> dict[str, str]:
    if not options.synsets:
        do = "set data.options.synsets to the devkit's meta.mat, or to a text file with its classes in order"
        raise BadInput(f"{place} has the devkit's own class numbers", "a list of what they stand for", do)
    synsets = _synsets(_files.beside(options.uri, options.synsets))
    if not all(1 <= number <= len(synsets) for number in numbers):
        raise BadInput(f"class numbers up to {max(numbers)} in {place}", f"1 .. {len(synsets)}, as in data.options.synsets", "check both")
    names = sorted(os.path.basename(_files.stem(info.path_relative)) for info in val)
    stem = names[0].rstrip("0123456789")
    digits = len(names[0]) - len(stem)
    return {f"{stem}{index:0{digits}d}": synsets[number - 1] for index, number in enumerate(numbers, 1)}


def _synsets(place: str) -> list[str]:
    if not place.endswith(".mat"):
        return [row[0] for row in _files.table(place, "a class a line, in the devkit's order")]
    try:
        from scipy.io import loadmat
    except ImportError:
        raise BadInput(f"{place}, but no package to read it with", "scipy, or a text file", "pip install scipy") from None
    with storage.open_read(place) as stream:
        rows = loadmat(stream, squeeze_me=True)["synsets"]
    numbered = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows if int(row["num_children"]) == 0}
    return [numbered[number] for number in sorted(numbered)]
