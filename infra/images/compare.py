"""``compare.py CLIENT IMAGE IMAGE``: whether two images hold the same files - path, kind, mode, owner, size, link and sha256 of each.

Times are left out: they are of the build, and nothing here reads them. Exit 0, or 1 with the first differences.
"""

import hashlib
import subprocess
import sys
import tarfile

_SHOWN = 20


def main() -> int:
    client, first, second = sys.argv[1:]
    one, other = listing(client, first), listing(client, second)
    differing = sorted(path for path in one.keys() | other.keys() if one.get(path) != other.get(path))
    for path in differing[:_SHOWN]:
        print(f"images: {path}: {one.get(path, 'missing')} | {other.get(path, 'missing')}")
    if differing:
        print(f"images: {len(differing)} of {len(one)} files differ between {first} and {second}")
        return 1
    print(f"images: {first} built twice: the same {len(one)} files")
    return 0


def listing(client: str, image: str) -> dict[str, str]:
    """path -> "kind mode owner size content" of every file of ``image``, as a container of it starts with."""
    container = subprocess.run([client, "create", image, "true"], capture_output=True, text=True, check=True).stdout.strip()
    try:
        export = subprocess.Popen([client, "export", container], stdout=subprocess.PIPE)
        with export, tarfile.open(fileobj=export.stdout, mode="r|") as archive:
            found = {entry.name: _line(archive, entry) for entry in archive}
        if export.returncode:
            raise SystemExit(f"images: {client} export of {image} failed")
        return found
    finally:
        subprocess.run([client, "rm", container], capture_output=True, check=True)


def _line(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> str:
    content = entry.linkname
    if stream := archive.extractfile(entry) if entry.isfile() else None:
        content = hashlib.file_digest(stream, "sha256").hexdigest()
    return f"{entry.type.decode()} {entry.mode:o} {entry.uid}:{entry.gid} {entry.size} {content}"


if __name__ == "__main__":
    sys.exit(main())
