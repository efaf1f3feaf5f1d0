"""Files at any URI: read, ranged read, list, write atomically. It knows no artifact; remote.py speaks to the stores and retries.

A location is a local path (``/x``, ``file:///x``) or an fsspec URI (``gs://bucket/x``, ``memory://x``). Credentials come from the
environment, never from the URI. Local work is done without fsspec, so any file name the system allows is taken literally.

Every function raises FileNotFoundError or PermissionError with the URI, BadInput for what the user can mend (an unknown scheme,
a full disk) and Failed when a remote store still does not answer after the retries.
"""

import errno
import hashlib
import json
import os
import shutil
import stat
import uuid
from collections.abc import Collection, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

from sr3_core import remote
from sr3_core.errors import BadInput, Failed

BLOCK_BYTES = 8 * 1024 * 1024
_TEMPORARY = ".sr3-part-"  # hidden, so that a listing never shows a file that is being written
_OWN = f"{_TEMPORARY}{uuid.uuid4().hex[:8]}-"  # of this process: what it is writing just now, as the heartbeat of a lease
_LOCAL_SCHEMES = ("file://", "local://")
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class FileInfo:
    """One listed file. ``stamp`` changes when the file does: etag, generation or modification time, whichever the store has."""

    uri: str
    path_relative: str  # with "/" between its parts
    size: int
    stamp: str


def is_local(uri: str) -> bool:
    """True for a path or ``file://`` URI."""
    return uri.startswith(_LOCAL_SCHEMES) or "://" not in uri


def absolute(uri: str) -> str:
    """The one spelling used everywhere: an absolute path for local locations, the URI without a trailing slash otherwise."""
    if not uri.strip() or "\0" in uri:
        raise BadInput(
            "an empty location" if not uri.strip() else "a location with a zero byte",
            "a path or an fsspec URI",
            "give one, as /data/photos or gs://bucket/photos",
        )
    if is_local(uri):
        for scheme in _LOCAL_SCHEMES:
            uri = uri.removeprefix(scheme)
        return os.path.abspath(os.path.expanduser(uri))
    scheme, _, rest = uri.partition("://")
    return f"{scheme}://{rest.rstrip('/')}"


def local_path(uri: str) -> Path:
    """The path of a local location; BadInput for a remote one."""
    if not is_local(uri):
        raise BadInput(f"{uri} is not on this machine", "a local path", "give a local path")
    return Path(absolute(uri))


def join(uri: str, *parts: str) -> str:
    """``uri/part/part``; in a chained URI (``zip://a::gs://b``) the parts belong to its first link."""
    first, chain = (uri, "") if is_local(uri) else remote.links(uri)
    return "/".join([first.rstrip("/"), *(part.strip("/") for part in parts)]) + chain


def exists(uri: str) -> bool:
    """True for a file or a folder that is there."""
    if is_local(uri):
        return local_path(uri).exists()
    return remote.retry(uri, lambda fs, path: bool(fs.exists(path)))


def size(uri: str) -> int:
    """Bytes of a file."""
    if is_local(uri):
        return local_path(uri).stat().st_size
    return remote.retry(uri, lambda fs, path: int(fs.size(path)))


def info(uri: str) -> FileInfo:
    """What a listing would say of one file, its name as the relative path. Raises IsADirectoryError for a folder."""
    uri = absolute(uri)
    name = uri.rpartition("/")[2]
    if not is_local(uri):
        return FileInfo(uri, name, *remote.info(uri))
    status = local_path(uri).stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), uri)
    return FileInfo(uri, name, status.st_size, str(status.st_mtime_ns))


def read_bytes(uri: str) -> bytes:
    """The whole file."""
    if is_local(uri):
        return local_path(uri).read_bytes()
    return remote.retry(uri, lambda fs, path: cast(bytes, fs.cat_file(path)))


def read_range(uri: str, start: int, length: int) -> bytes:
    """``length`` bytes from ``start``; fewer at the end of the file."""
    if is_local(uri):
        with open(local_path(uri), "rb") as stream:
            stream.seek(start)
            return stream.read(length)
    return remote.retry(uri, lambda fs, path: cast(bytes, fs.cat_file(path, start=start, end=start + length)))


@contextmanager
def open_read(uri: str) -> Generator[BinaryIO, None, None]:
    """A binary stream; only opening is retried."""
    with local_path(uri).open("rb") if is_local(uri) else remote.retry(uri, lambda fs, path: cast(BinaryIO, fs.open(path, "rb"))) as stream:
        yield stream


def read_blocks(uri: str) -> Iterator[bytes]:
    """The file's bytes in blocks of at most ``BLOCK_BYTES``; each is a read of its own and so retried by itself."""
    if is_local(uri):
        with local_path(uri).open("rb") as stream:
            while block := stream.read(BLOCK_BYTES):
                yield block
        return
    for start in range(0, size(uri), BLOCK_BYTES):
        yield read_range(uri, start, BLOCK_BYTES)


def sha256(uri: str) -> str:
    """sha256 of the file's bytes, hex, read in blocks."""
    digest = hashlib.sha256()
    for block in read_blocks(uri):
        digest.update(block)
    return digest.hexdigest()


def read_json(uri: str) -> Any:
    """A JSON file's value; BadInput when it is damaged."""
    try:
        return json.loads(read_bytes(uri))
    except ValueError as error:
        raise BadInput(f"{uri} is not JSON ({error})", "an undamaged file", "delete it and run the command that writes it again") from None


def json_bytes(value: Any) -> bytes:
    """The one way JSON is written here: sorted keys, indent 1, ASCII (file names may hold bytes that are no UTF-8), NaN refused."""
    return (json.dumps(value, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


def write_json(uri: str, value: Any) -> str:
    """Write ``value`` atomically; the sha256 of the bytes written."""
    data = json_bytes(value)
    write_bytes(uri, data)
    return hashlib.sha256(data).hexdigest()


def write_bytes(uri: str, data: bytes) -> None:
    """Write a whole file so that a reader sees all of it or none: rename on a local disk, one PUT on a store."""
    if not is_local(uri):
        remote.retry(uri, lambda fs, path: fs.pipe_file(path, data))
        return
    with _renamed_into(local_path(uri)) as stream:
        stream.write(data)


def publish_file(local: Path, uri: str) -> None:
    """Copy a finished local file to ``uri``, atomically as ``write_bytes`` but without holding it in memory."""
    if not is_local(uri):
        remote.retry(uri, lambda fs, path: fs.put_file(str(local), path))
        return
    with open(local, "rb") as source, _renamed_into(local_path(uri)) as stream:
        shutil.copyfileobj(source, stream, BLOCK_BYTES)


def create_exclusive(uri: str, data: bytes) -> bool:
    """Create a file that must not exist yet, with all its bytes at once; False when somebody was first."""
    if is_local(uri):
        target = local_path(uri)
        part = target.with_name(f"{_OWN}{uuid.uuid4().hex}")
        with _writing(uri):
            target.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(data)
            try:
                os.link(part, target)
            except FileExistsError:
                return False
            finally:
                part.unlink()
            return True
    try:
        remote.retry(uri, lambda fs, path: fs.pipe_file(path, data, mode="create"))
    except FileExistsError:
        return read_bytes(uri) == data  # a repeated request meets its own first success
    return True


def list_files(uri: str, *, suffixes: Collection[str] | None = None) -> list[FileInfo]:
    """Every file below ``uri`` at any depth, sorted by relative path; hidden ones left out; ``suffixes`` lower case, with the dot.

    A folder that is missing gives an empty list; one that cannot be listed raises PermissionError. Linked folders are followed once and
    never up; a link that leads nowhere is listed: whoever reads it is told.
    """
    if is_local(uri):
        found = _list_local(local_path(uri))
    else:
        found = [FileInfo(join(uri, name), name, bytes_, stamp) for name, bytes_, stamp in remote.find(uri)]
    kept = [info for info in found if not any(part.startswith(".") for part in info.path_relative.split("/"))]
    if suffixes is not None:
        kept = [info for info in kept if os.path.splitext(info.path_relative)[1].lower() in suffixes]
    return sorted(kept, key=lambda info: info.path_relative)


def remove(uri: str, *, recursive: bool = False) -> None:
    """Delete a file, or with ``recursive`` a folder; nothing happens when it is not there."""
    if not is_local(uri):
        with suppress(FileNotFoundError):
            remote.retry(uri, lambda fs, path: fs.rm(path, recursive=True) if recursive else fs.rm_file(path))
        return
    path = local_path(uri)
    if path.is_dir() and not path.is_symlink():
        if not recursive:
            raise IsADirectoryError(str(path))
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_parts(uri: str) -> None:
    """Delete what other, killed writers left below the folder ``uri``: call it while holding its lease. A store keeps no such parts."""
    if is_local(uri):
        for path in local_path(uri).rglob(f"{_TEMPORARY}*"):
            if not path.name.startswith(_OWN):
                path.unlink(missing_ok=True)


def upload_folder(local: Path, uri: str, *, last: str | None = None) -> None:
    """Copy every file below ``local`` to ``uri``; the file named ``last`` (a manifest) goes after all others."""
    names = sorted(str(path.relative_to(local)).replace(os.sep, "/") for path in local.rglob("*") if path.is_file())
    if last is not None and last not in names:
        raise FileNotFoundError(str(local / last))
    for name in sorted(names, key=lambda name: (name == last, name)):
        publish_file(local / name, join(uri, name))


def download_folder(uri: str, local: Path) -> None:
    """Copy every file below ``uri`` under ``local``; raises FileNotFoundError when there is none."""
    files = list_files(uri)
    if not files:
        raise FileNotFoundError(uri)
    for info in files:
        target = (local / info.path_relative).resolve()
        if not target.is_relative_to(local.resolve()):
            raise BadInput(f"{info.uri} would be written outside {local}", "files inside the folder", "remove it from the source")
        with _renamed_into(target) as stream:
            stream.writelines(read_blocks(info.uri))


def check_readable(uri: str) -> None:
    """BadInput unless ``uri`` is a file that can be read or a folder that can be listed."""
    try:
        if is_local(uri):
            path = local_path(uri)
            if path.is_dir():
                os.listdir(path)
            else:
                path.open("rb").close()
        elif not remote.retry(uri, lambda fs, path: fs.exists(path), attempts=1):
            raise FileNotFoundError(uri)
    except FileNotFoundError:
        raise BadInput(f"{uri} does not exist", "an existing path or fsspec URI", "check its spelling") from None
    except (OSError, Failed) as error:
        raise BadInput(
            f"{uri} cannot be read ({remote.reason(error)})", "a location you may read", "check access and credentials"
        ) from None


def check_writable(uri: str) -> None:
    """BadInput unless files can be written below the folder ``uri``: one small file is written there and deleted."""
    probe = join(uri, f"{_TEMPORARY}check-{uuid.uuid4().hex}")
    try:
        if is_local(uri):
            write_bytes(probe, b"")
        else:
            remote.retry(probe, lambda fs, path: fs.pipe_file(path, b"sr3"), attempts=1)
        remove(probe)
    except (OSError, Failed) as error:
        got = f"{uri} cannot be written ({remote.reason(error)})"
        raise BadInput(got, "a location you may write", "check access or choose another root") from None


def _list_local(root: Path) -> list[FileInfo]:
    found: list[FileInfo] = []
    seen = {os.path.realpath(root), *map(str, Path(os.path.realpath(root)).parents)}  # a linked folder may lead back up

    def refuse(error: OSError) -> NoReturn:
        raise error

    if not root.exists():
        return found
    for folder, folders, names in os.walk(root, followlinks=True, onerror=refuse):
        for name in sorted(folders):  # of two links to one folder the same is followed on every machine
            real = os.path.realpath(os.path.join(folder, name))
            if real in seen or name.startswith("."):
                folders.remove(name)
            seen.add(real)
        folders.sort()
        for name in names:
            path = os.path.join(folder, name)
            try:
                status = os.stat(path)
            except OSError:  # a link that leads nowhere, or round: who reads it is told, nothing is left out unsaid
                status = os.lstat(path)
            relative = os.path.relpath(path, root).replace(os.sep, "/")
            found.append(FileInfo(path, relative, status.st_size, str(status.st_mtime_ns)))
    return found


@contextmanager
def _writing(uri: str) -> Generator[None, None, None]:
    """A full disk is the user's to mend, so it is bad input and not a traceback."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise BadInput(f"no space left while writing {uri}", "a root with free space", "free some or choose another root") from None
        raise


@contextmanager
def _renamed_into(target: Path) -> Generator[BinaryIO, None, None]:
    """A stream to a hidden file beside ``target`` that takes its name once it is complete and on the disk."""
    part = target.with_name(f"{_OWN}{uuid.uuid4().hex}")
    with _writing(str(target)):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(part, "xb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
