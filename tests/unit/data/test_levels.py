"""A photo is decoded once, when it is looked at: its levels wait for their shard, and where they are lost the same bytes are made anew."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sr3_core import images
from sr3_core.data import levels, reading, shards
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
    decode, read = images.decode, reading.read
    monkeypatch.setattr(images, "decode", lambda data, **given: (seen.append("decode"), decode(data, **given))[1])
    monkeypatch.setattr(reading, "read", lambda data, example: (seen.append("read"), read(data, example))[1])
    build(source, tmp_path / "out", **changes)
    assert sorted(seen) == ["decode"] * 12 + ["read"] * 12
