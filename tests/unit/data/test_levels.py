"""A photo is decoded once, when it is looked at: its levels wait for their shard, and where they are lost the same bytes are made anew."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from sr3_core import images, storage
from sr3_core.data import degrade, levels, reading, shards
from sr3_core.data.sources import sample_photos
from tests.unit.data.test_shards import build, examples, photo, section, tree


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Twelve good photos."""
    root = tmp_path / "photos"
    root.mkdir()
    for index in range(12):
        (root / f"{index:02d}.png").write_bytes(images.encode(photo(index)))
    return root


@pytest.mark.parametrize("how", ["gone", "damaged", "short"])
@pytest.mark.parametrize("fit", ["crop", "tiles"])
def test_levels_that_waited_and_were_lost_are_made_again(source: Path, tmp_path: Path, how: str, fit: str) -> None:
    """Of every second file; nothing is left of them in the end, and no photo is decoded twice where they are whole."""
    for index in range(12, 20):
        (source / f"{index:02d}.png").write_bytes(images.encode(photo(index, (72, 40))))
    whole = build(source, tmp_path / "whole", fit=fit)

    def mapper(function: Callable[[Any], Any], items: Sequence[Any], on_done: Callable[[Any, Any], None]) -> list[Any]:
        if function is shards.make_shard:
            waiting = sorted((tmp_path / "out" / levels.FOLDER).iterdir())
            assert len(waiting) == 2
            content = waiting[0].read_bytes()
            if how == "gone":
                waiting[0].unlink()
            else:
                waiting[0].write_bytes(content[:-1] if how == "short" else content[:-9] + b"x" + content[-8:])
        return shards.in_process(function, items, on_done)

    made = shards.build(str(tmp_path / "out"), section(fit=fit), examples(source), fingerprint="f", mapper=mapper)
    assert made.manifest_sha256 == whole.manifest_sha256
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert not (tmp_path / "out" / levels.FOLDER).exists()


@pytest.mark.parametrize("changes", [{}, {"fit": "tiles", "tiles": {"stride": 8}}, {"near_duplicates": 4}])
def test_a_photo_is_read_and_decoded_once(source: Path, tmp_path: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def counted(module: Any, name: str) -> None:
        function = getattr(module, name)

        def count(*positional: Any, **named: Any) -> Any:
            seen.append(name)
            return function(*positional, **named)

        monkeypatch.setattr(module, name, count)

    counted(images, "decode")
    counted(reading, "read")
    build(source, tmp_path / "out", **changes)
    assert sorted(seen) == ["decode"] * 12 + ["read"] * 12


@pytest.mark.parametrize(
    ("size", "changes", "expected"),
    [
        ((1024, 1024), {"levels": (8, 256)}, 2),
        ((1024, 1536), {"levels": (8, 128)}, 4),  # cut in the middle, at 256
        ((1024, 1028), {"levels": (8, 128)}, 2),  # at 2
        ((1024, 1026), {"levels": (8, 128)}, 1),  # at 1
        ((4096, 4096), {"levels": (8, 32)}, 8),
        ((1000, 1000), {"levels": (8, 256)}, 1),
        ((512, 512), {"levels": (8, 256)}, 1),  # not twice the level would be left
        ((768, 768), {"levels": (8, 256)}, 1),
        ((1024, 512), {"levels": (8, 128), "fit": "resize"}, 2),
        ((1023, 4096), {"levels": (8, 128), "fit": "resize"}, 1),
        ((100, 100), {"levels": (8, 128)}, 1),
    ],
)
def test_what_may_be_decoded_smaller(size: tuple[int, int], changes: dict[str, Any], expected: int) -> None:
    assert degrade.shrink(*size, section(**changes, decoding="fast")) == expected
    assert degrade.shrink(*size, section(**changes)) == 1


@pytest.mark.parametrize(("turn", "subsampling", "least"), [(1, 0, 53.0), (3, 0, 53.0), (6, 0, 53.0), (6, 2, 50.0)])
def test_fast_decoding_differs_from_exact_by_rounding(turn: int, subsampling: int, least: float, tmp_path: Path) -> None:
    """Large JPEGs that divide evenly, turned by EXIF or not, cut off the middle or not; every other input is as in exact."""
    from PIL import Image

    (tmp_path / "in").mkdir()
    found = {example.key: example.uri for example in sample_photos.examples(sample_photos.Options())}
    picture = images.decode(storage.read_bytes(found["walls-4"]))
    exif = Image.Exif()
    exif[0x0112] = turn
    for name, pixels in {"whole": picture, "wide": picture[:512], "odd": picture[:, :1000]}.items():
        Image.fromarray(pixels).save(tmp_path / "in" / f"{name}.jpg", quality=90, subsampling=subsampling, exif=exif)
    (tmp_path / "in" / "lossless.png").write_bytes(images.encode(picture[:512, :512]))
    (tmp_path / "in" / "cut.jpg").write_bytes((tmp_path / "in" / "whole.jpg").read_bytes()[:-9000])
    shape = {"levels": (32, 128), "split": {"val": 0, "test": 0, "minimum": {"train": 1, "val": 0, "test": 0}}}
    exact, fast = (build(tmp_path / "in", tmp_path / way, decoding=way, **shape) for way in ("exact", "fast"))
    assert exact.manifest["rejected"] == fast.manifest["rejected"] == {"truncated": 1}
    for index, key in enumerate(exact.keys("train")):
        assert exact.sample("train", index).original_size == fast.sample("train", index).original_size
        for level in (128, 32):
            one, other = exact.image("train", index, level), fast.image("train", index, level)
            assert np.array_equal(one, other) == (key in ("odd", "lossless"))
            assert images.psnr(other, one) > least


@pytest.mark.parametrize("fit", ["tiles", "keep"])
def test_fast_decoding_of_what_wants_every_pixel_is_refused(fit: str) -> None:
    with pytest.raises(ValidationError, match="is for fit 'crop' and 'resize'"):
        section(fit=fit, decoding="fast")


def test_what_cannot_be_decoded_smaller() -> None:
    with pytest.raises(ValueError, match="shrink=2 of PNG"):
        images.decode(images.encode(photo(0)), shrink=2)
    with pytest.raises(ValueError, match="shrink=3 of JPEG"):
        images.decode(images.encode(photo(0), "jpeg"), shrink=3)
    assert images.decode(images.encode(photo(0, (41, 47)), "jpeg"), shrink=2).shape == (21, 24, 3)
