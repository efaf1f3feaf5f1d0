"""Plug-ins from outside: a package's entry point, a dotted name; what is broken is bad input that names the package."""

import sys
from pathlib import Path

import pytest

from sr3_core import config, plugins
from sr3_core.config import Data
from sr3_core.data import reading, shards
from sr3_core.errors import BadInput

SOURCE = plugins.EXAMPLE.read_text(encoding="utf-8")


def install(folder: Path, package: str, entries: dict[str, str], modules: dict[str, str]) -> None:
    """What an installer leaves in a folder of packages: the modules, and metadata with the entry points."""
    about = folder / f"{package.replace('-', '_')}-1.2.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
    (about / "entry_points.txt").write_text("[sr3.sources]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items()))
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the search path; its modules are forgotten afterwards."""
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    for name in ("holiday_photos", "broken_photos"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return folder


def test_an_installed_package_adds_a_source_that_prepare_uses(photos: Path, tmp_path: Path, packages: Path) -> None:
    install(packages, "holiday-photos", {"holidays": "holiday_photos"}, {"holiday_photos": SOURCE})
    plugins.forget()
    assert "holidays" in plugins.names("data.sources") and "folder" in plugins.names("data.sources")
    assert "holidays" not in plugins.names("models")
    for index, path in enumerate(sorted(photos.iterdir())):
        (tmp_path / "mine" / "abc"[index % 3]).mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / "abc"[index % 3] / path.name).write_bytes(path.read_bytes())
    data = Data.model_validate({"source": "holidays", "options": {"uri": str(tmp_path / "mine")}, "levels": [16]})
    source, options = reading.source_of(data)
    assert [example.label for example in source.examples(options)] == [0] * 5 + [1] * 5 + [2] * 4
    assert len(source.listing(options).splitlines()) == 14
    made = shards.build(str(tmp_path / "out"), data, source.examples(options), fingerprint="f")
    assert made.manifest["accepted"] == 14 and made.sample("train", 0).label in (0, 1, 2)
    with pytest.raises(BadInput, match=r"holidays \(nearest\)"):
        plugins.load("data.sources", "holiday")


def test_a_dotted_name_needs_no_installation(photos: Path, packages: Path) -> None:
    (packages / "holiday_photos.py").write_text(SOURCE)
    (packages / "mine").mkdir()
    (packages / "mine" / "__init__.py").write_text("")
    (packages / "mine" / "photos.py").write_text(SOURCE)
    plugins.forget()
    source, options = reading.source_of(Data.model_validate({"source": "mine.photos", "options": {"uri": str(photos)}, "levels": [16]}))
    assert len(list(source.examples(options))) == 14


@pytest.mark.parametrize(
    ("value", "module", "message"),
    [
        ("broken_photos", "import no_such_library_anywhere", "ModuleNotFoundError"),
        ("broken_photos", "raise RuntimeError('out of order')", "RuntimeError: out of order"),
        ("broken_photos:missing", "", "AttributeError"),
        ("not_there_at_all", "", "ModuleNotFoundError"),
    ],
)
def test_a_broken_entry_point_names_its_package(packages: Path, value: str, module: str, message: str) -> None:
    install(packages, "broken-photos", {"broken": value}, {"broken_photos": module})
    plugins.forget()
    assert "broken" in plugins.names("data.sources")  # listing imports nothing
    with pytest.raises(BadInput, match=f"of broken-photos 1.2 does not load .{message}"):
        plugins.load("data.sources", "broken")


def test_a_dotted_module_that_fails_says_where(packages: Path) -> None:
    (packages / "mine_broken").mkdir()
    (packages / "mine_broken" / "photos.py").write_text("import os\n\nos.no_such_name\n")
    plugins.forget()
    with pytest.raises(BadInput, match=r"mine_broken\.photos does not import \(AttributeError: .*, .*photos\.py line 3\)"):
        plugins.load("data.sources", "mine_broken.photos")


def test_what_an_entry_point_gives_must_be_a_source(packages: Path) -> None:
    install(packages, "broken-photos", {"broken": "broken_photos"}, {"broken_photos": "Options = 1"})
    plugins.forget()
    with pytest.raises(BadInput, match="a module with Options, examples and listing"):
        reading.source_of(Data(source="broken", levels=(16,)))


def test_two_packages_with_one_name_and_one_with_ours(packages: Path) -> None:
    install(packages, "holiday-photos", {"holidays": "holiday_photos", "folder": "holiday_photos"}, {"holiday_photos": SOURCE})
    install(packages, "broken-photos", {"holidays": "broken_photos"}, {})
    plugins.forget()
    with pytest.raises(BadInput, match=r"several packages: broken-photos 1\.2, holiday-photos 1\.2"):
        plugins.load("data.sources", "holidays")
    assert plugins.load("data.sources", "folder").__name__ == "sr3_core.data.sources.folder"


def test_options_of_an_outside_source_are_checked(photos: Path, packages: Path) -> None:
    install(packages, "holiday-photos", {"holidays": "holiday_photos"}, {"holiday_photos": SOURCE})
    plugins.forget()
    with pytest.raises(BadInput, match=r"unknown key data\.options\.url"):
        config.options(plugins.load("data.sources", "holidays").Options, {"uri": str(photos), "url": ""}, "data")
