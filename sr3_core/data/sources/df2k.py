"""DF2K: DIV2K and Flickr2K together, with DIV2K's published split and Flickr2K's photos in training or held out for test by number."""

from collections.abc import Iterator

from pydantic import model_validator

from sr3_core import storage
from sr3_core.config import Section
from sr3_core.data.sources import _files
from sr3_core.data.sources import div2k as div2k_source
from sr3_core.data.sources import flickr2k as flickr2k_source
from sr3_core.data.sources._base import Example


class Options(Section):
    """``uri``: the folder that holds DIV2K_train_HR, DIV2K_valid_HR (or DIV2K with both) and Flickr2K.

    ``div2k`` and ``flickr2k``: their folders when they lie elsewhere; as these plug-ins' ``uri``. ``flickr2k_test``: first and last number
    of Flickr2K that are for test, the rest is for training; the default is novwaul/SR3's (training on DIV2K's 800 and Flickr2K's
    1001 .. 2650, validation on DIV2K's 100, test on Flickr2K's 1 .. 1000). Null: all of Flickr2K in training, the usual DF2K.
    ``div2k_numbers`` and ``flickr2k_numbers``: the first and last photo to use.
    """

    uri: str = ""
    div2k: str = ""
    flickr2k: str = ""
    flickr2k_test: flickr2k_source.Numbers | None = (1, 1000)
    div2k_numbers: div2k_source.Numbers = (1, div2k_source.LAST)
    flickr2k_numbers: flickr2k_source.Numbers = (1, flickr2k_source.LAST)

    @model_validator(mode="after")
    def _both_are_somewhere(self) -> "Options":
        if not self.uri and not (self.div2k and self.flickr2k):
            raise ValueError("no uri, which holds both, nor div2k and flickr2k, where each lies")
        return self


def examples(options: Options) -> Iterator[Example]:
    """Every photo of both once. Raises BadInput for folders that are missing or laid out otherwise."""
    for item in _items(options):
        yield item.example


def listing(options: Options) -> str:
    """``key size stamp split`` a line."""
    return _files.layout_listing(_items(options))


def _items(options: Options) -> list[_files.Listed]:
    first = div2k_source.items(div2k_source.Options(uri=options.div2k or options.uri, numbers=options.div2k_numbers))
    beside = options.flickr2k or storage.join(options.uri, "Flickr2K")
    second = flickr2k_source.items(flickr2k_source.Options(uri=beside, numbers=options.flickr2k_numbers, test=options.flickr2k_test))
    found = [_files.changed(item, key=f"DIV2K/{item.example.key}") for item in first]
    for item in second:
        split = None if item.example.reason else item.example.split or "train"
        found.append(_files.changed(item, key=f"Flickr2K/{item.example.key}", split=split))
    return found
