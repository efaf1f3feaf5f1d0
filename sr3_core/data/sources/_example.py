"""Photos whose folder is their class: a whole source plug-in, to be copied and changed. What its names must do stands in _base.py.

Saved as sr3_core/data/sources/NAME.py it is called NAME; in a package of your own it is called by its dotted path, or NAME through
[project.entry-points."sr3.sources"] NAME = "my_package.my_photos" in that package's pyproject.toml. Then: sr3 doctor NAME --set uri=FOLDER
"""

from collections.abc import Iterator

from sr3_core.config import Section
from sr3_core.data.sources import _files
from sr3_core.data.sources._base import Example


class Options(Section):
    """What a recipe's data.options may hold; other keys are refused."""

    uri: str


def examples(options: Options) -> Iterator[Example]:
    files = _files.listed(options.uri, _files.SUFFIXES)  # in order; BadInput where there are none
    classes = sorted({info.path_relative.split("/")[0] for info in files})
    for info in files:
        label = classes.index(info.path_relative.split("/")[0])
        yield Example(key=_files.stem(info.path_relative), uri=info.uri, label=label)


def listing(options: Options) -> str:  # a line a photo: one that changed makes a new ShardSet
    return _files.lines((info.path_relative, info) for info in _files.listed(options.uri, _files.SUFFIXES))
