"""Any folder of photos at any fsspec URI, at any depth or by a pattern; a first folder train, val, test (or training, validation, dev,
testing; case does not count) is the published split.
"""

from collections.abc import Iterator

from sr3_core import storage
from sr3_core.config import Section
from sr3_core.data.sources import _files
from sr3_core.data.sources._base import Example

SUFFIXES = _files.SUFFIXES


class Options(Section):
    """``uri``: the folder, or a pattern such as ``gs://bucket/photos/**/*.png``, which is the same as the folder with ``glob: "**/*.png"``.

    ``glob`` is matched against the path below ``uri``: ``*`` and ``?`` within a name, ``**/`` any folders, ``[a-z]`` a set; with it, what
    it matches are the inputs. Without it, files with other endings than ``suffixes`` (lower case, with the dot) are none. Hidden files
    never are.
    """

    uri: str
    suffixes: tuple[str, ...] = SUFFIXES
    glob: str = ""

    _split_uri = _files.split_uri


def examples(options: Options) -> Iterator[Example]:
    """Every photo once, by relative path. Raises BadInput for a folder that is missing, not readable or without photos."""
    for info in _listed(options):
        split = _files.first_folder_split(info.path_relative)
        yield Example(key=_files.stem(info.path_relative), uri=info.uri, split=split)


def listing(options: Options) -> str:
    """``path size stamp`` a line, and the split where the path says it in another word."""
    lines: list[str] = []
    for info in _listed(options):
        split = _files.first_folder_split(info.path_relative)
        told = [split] if split and not info.path_relative.startswith(f"{split}/") else []
        lines.append(_files.line(info.path_relative, info.size, info.stamp, *told))
    return "\n".join(lines)


def _listed(options: Options) -> list[storage.FileInfo]:
    return _files.listed(options.uri, options.suffixes, pattern=options.glob)
