"""The small rooms of the core: plug-in folders, progress lines, counter-based seeds, one-line errors."""

import sys
from pathlib import Path

import numpy as np
import pytest

from sr3_core import plugins, progress, seeds
from sr3_core.errors import BadInput


def test_the_folder_is_the_registry() -> None:
    assert "unet" in plugins.names("models") and not any(name.startswith("_") for name in plugins.names("models"))
    assert plugins.load("models", "unet").__name__ == "sr3_core.models.unet"


def test_an_unknown_plugin_names_the_nearest() -> None:
    with pytest.raises(BadInput, match="unet \\(nearest\\)"):
        plugins.load("models", "unte")


def test_a_dotted_name_loads_a_plugin_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_outside").mkdir()
    (tmp_path / "mine_outside" / "net.py").write_text("WIDTH = 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert plugins.load("models", "mine_outside.net").WIDTH == 3
    sys.modules.pop("mine_outside.net")
    with pytest.raises(BadInput, match="does not import"):
        plugins.load("models", "mine_outside.nobody")


def test_an_error_is_one_line() -> None:
    assert "\n" not in str(BadInput("a\nb", "c\r\nd", "e"))


def test_progress_prints_first_and_last_and_rarely_between(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SR3_PROGRESS_SECONDS", "1000")
    with progress.Progress("prepare", "shards", total=50, unit="shards") as shown:
        for _ in range(50):
            shown.advance(note="ok")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("sr3| prepare shards 0/50") and lines[-1].startswith("sr3| prepare shards 50/50 shards") and len(lines) == 2
    assert lines[-1].endswith("ok") and "left 0s" in lines[-1]


def test_a_failed_room_prints_no_closing_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), progress.Progress("train", "s", total=3, unit="images"):
        _ = 1 / 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_a_draw_depends_on_its_three_counters_alone() -> None:
    first = seeds.generator(1, "noise", 5).standard_normal(4)
    seeds.generator(1, "noise", 4).standard_normal(100)
    np.testing.assert_array_equal(first, seeds.generator(1, "noise", 5).standard_normal(4))
    for other in (seeds.generator(2, "noise", 5), seeds.generator(1, "gamma", 5), seeds.generator(1, "noise", 6)):
        assert not np.array_equal(first, other.standard_normal(4))


def test_neighbouring_streams_are_uncorrelated() -> None:
    drawn = np.stack([seeds.generator(0, "noise", index).standard_normal(4000) for index in range(20)])
    correlation = np.corrcoef(drawn) - np.eye(20)
    assert np.abs(correlation).max() < 5 / np.sqrt(4000)


def test_a_key_gives_a_positive_64_bit_seed() -> None:
    numbers = {seeds.from_key(f"photo-{index}") for index in range(1000)}
    assert len(numbers) == 1000 and min(numbers) >= 0 and max(numbers) < 2**63
    assert seeds.from_key("a", seed=1) != seeds.from_key("a")
