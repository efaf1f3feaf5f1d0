"""The import rules of the house: who may import whom, which file is the seam to which library, and what an import may not bring in."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
ROOMS = ("prepare", "train", "evaluate", "export")
SOURCES = sorted(path for package in ("pipeline", "components", "sr3_core") for path in (REPOSITORY / package).rglob("*.py"))

# library -> the only files (or folders) that may import it
SEAMS = {
    "fsspec": ("sr3_core/remote.py",),
    "PIL": ("sr3_core/images/",),
    "kubernetes": ("components/kubernetes_api.py",),
    "ray": ("components/cluster.py", "components/jobs.py", "components/train/ray_launcher.py", "components/train/gauges.py"),
    "docker": ("pipeline/containers.py",),
    "mlflow": ("sr3_core/tracking/", "components/export/"),
    "kfp": (
        "pipeline/",
        "components/prepare/component.py",
        "components/train/component.py",
        "components/evaluate/component.py",
        "components/export/component.py",
    ),
}
NO_TORCH = (
    "sr3_core/__init__.py", "sr3_core/config/", "sr3_core/errors.py", "sr3_core/storage.py", "sr3_core/remote.py",
    "sr3_core/images/", "sr3_core/seeds.py",
    "sr3_core/tracking/", "sr3_core/artifacts/shardset.py", "sr3_core/artifacts/report.py", "sr3_core/data/sources/",
    "sr3_core/data/shards.py", "sr3_core/data/order.py", "components/prepare/",
)  # fmt: skip
MLFLOW_INSIDE_FUNCTIONS = ("sr3_core/tracking/", "components/export/")
PIPELINE_AT_IMPORT = {"pipeline/dag.py", "pipeline/resources.py", "pipeline/submit.py", "pipeline/cli.py", "pipeline/__init__.py"}


def name_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def imports(path: Path, *, nested: bool) -> Iterator[str]:
    """Dotted names imported by the file: at module level, or inside functions and classes when ``nested``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom) and (id(node) in inner) == nested:
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            else:
                assert node.level == 0, f"{name_of(path)}: a relative import"
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def every(path: Path) -> set[str]:
    return {*imports(path, nested=False), *imports(path, nested=True)}


def is_under(imported: str, name: str) -> bool:
    return imported == name or imported.startswith(name + ".")


def allowed(path: Path, places: tuple[str, ...]) -> bool:
    return any(name_of(path) == place or (place.endswith("/") and name_of(path).startswith(place)) for place in places)


def test_there_is_something_to_check() -> None:
    assert len(SOURCES) > 30
    assert all(
        any(name_of(path) == place or name_of(path).startswith(place) for path in SOURCES) for places in SEAMS.values() for place in places
    )


@pytest.mark.parametrize("library", SEAMS)
def test_each_library_has_one_seam(library: str) -> None:
    found = {
        name_of(path) for path in SOURCES if any(is_under(item, library) for item in every(path)) and not allowed(path, SEAMS[library])
    }
    assert not found, f"{library} is imported outside of {SEAMS[library]}"


def test_gcsfs_is_never_imported() -> None:
    assert not [name_of(path) for path in SOURCES if any(is_under(item, "gcsfs") for item in every(path))]


def test_the_science_knows_no_orchestrator() -> None:
    found = [
        name_of(path)
        for path in SOURCES
        if name_of(path).startswith("sr3_core/")
        if any(is_under(i, p) for i in every(path) for p in ("components", "pipeline"))
    ]
    assert not found


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_no_other_room(room: str) -> None:
    own = (f"components.{room}", "components.cluster", "components.entry", "components.jobs", "components.provenance")
    for path in (REPOSITORY / "components" / room).rglob("*.py"):
        for item in every(path):
            if is_under(item, "components"):
                assert any(is_under(item, name) for name in own), f"{name_of(path)} imports {item}"
            assert not is_under(item, "pipeline"), f"{name_of(path)} imports {item}"


def test_the_dag_imports_contracts_alone() -> None:
    for path in SOURCES:
        if name_of(path) in PIPELINE_AT_IMPORT:
            for item in imports(path, nested=False):
                if is_under(item, "components"):
                    assert item.split(".")[2:3] == ["component"], f"{name_of(path)} imports {item} at module level"
                if is_under(item, "sr3_core"):
                    assert item.startswith(("sr3_core.config", "sr3_core.errors", "sr3_core.recipes")), (
                        f"{name_of(path)} imports {item} at module level"
                    )


def test_no_torch_where_none_is_needed() -> None:
    found = [name_of(path) for path in SOURCES if allowed(path, NO_TORCH) and any(is_under(item, "torch") for item in every(path))]
    assert not found


def test_mlflow_is_imported_inside_functions() -> None:
    found = [
        name_of(path)
        for path in SOURCES
        if allowed(path, MLFLOW_INSIDE_FUNCTIONS) and any(is_under(i, "mlflow") for i in imports(path, nested=False))
    ]
    assert not found


def test_components_have_no_postponed_annotations() -> None:
    for room in ROOMS:
        assert "__future__.annotations" not in every(REPOSITORY / "components" / room / "component.py"), "KFP reads annotations as objects"


def test_files_stay_readable() -> None:
    lengths = {
        name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in [*SOURCES, *(REPOSITORY / "tests").rglob("*.py")]
    }
    assert not {name: length for name, length in lengths.items() if length > 500}


FRESH = {
    "pipeline.dag, pipeline.resources, pipeline.submit, pipeline.cli": ("torch", "ray", "webdataset", "mlflow"),
    "pipeline.run, pipeline.preflight, pipeline.console": ("torch", "ray", "mlflow"),
    "sr3_core.config, sr3_core.errors, sr3_core.storage, sr3_core.images, sr3_core.seeds, sr3_core.tracking": (
        "torch",
        "ray",
        "mlflow",
        "kfp",
    ),
    "sr3_core.artifacts.shardset, sr3_core.artifacts.report, sr3_core.data.shards, sr3_core.data.order": ("torch", "ray", "mlflow"),
    "sr3_core.data.sources.folder, sr3_core.data.sources.sample_photos": ("torch", "ray", "mlflow"),
    "components.entry, components.cluster, components.jobs, components.prepare.main": ("torch", "ray", "mlflow", "kubernetes"),
    "components.export.main": ("mlflow", "ray"),
    "components.train.main, components.evaluate.main": ("ray", "mlflow"),
}


@pytest.mark.parametrize("modules", FRESH)
def test_a_fresh_process_brings_in_no_more(modules: str) -> None:
    code = f"import sys\nimport {modules}\nprint([name for name in {FRESH[modules]!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
