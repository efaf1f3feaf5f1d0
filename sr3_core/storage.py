"""The only importer of fsspec: files at any URI - read, ranged read, list, write atomically, retry. It knows no artifact.

A location is a local path (``/x``, ``file:///x``) or an fsspec URI (``gs://bucket/x``, ``memory://x``). Credentials come from the
environment, never from the URI. Local work is done without fsspec, so any file name the system allows is taken literally.

Every function raises FileNotFoundError or PermissionError with the URI, BadInput for what the user can mend (an unknown scheme,
a full disk) and Failed when a remote store still does not answer after the retries.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeVar, cast

import fsspec
import fsspec.core

from sr3_core.errors import BadInput, Failed

ATTEMPTS = 3
FIRST_WAIT_SECONDS = 0.5  # doubled after each attempt; the stores' own clients retry below this
BLOCK_BYTES = 8 * 1024 * 1024
_TEMPORARY = ".sr3-part-"  # hidden, so that a listing never shows a file that is being written
_LOCAL_SCHEMES = ("file://", "local://")
_FULL = (errno.ENOSPC, errno.EDQUOT)

_CHAIN = re.compile(r"::(?=[a-z0-9+]+://)")

T = TypeVar("T")


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
    first, chain = _links(uri)
    return "/".join([first.rstrip("/"), *(part.strip("/") for part in parts)]) + chain


def exists(uri: str) -> bool:
    """True for a file or a folder that is there."""
    if is_local(uri):
        return local_path(uri).exists()
    return _retry(uri, lambda fs, path: bool(fs.exists(path)))


def size(uri: str) -> int:
    """Bytes of a file."""
    if is_local(uri):
        return local_path(uri).stat().st_size
    return _retry(uri, lambda fs, path: int(fs.size(path)))


def read_bytes(uri: str) -> bytes:
    """The whole file."""
    if is_local(uri):
        return local_path(uri).read_bytes()
    return _retry(uri, lambda fs, path: cast(bytes, fs.cat_file(path)))


def read_range(uri: str, start: int, length: int) -> bytes:
    """``length`` bytes from ``start``; fewer at the end of the file."""
    if is_local(uri):
        with open(local_path(uri), "rb") as stream:
            stream.seek(start)
            return stream.read(length)
    return _retry(uri, lambda fs, path: cast(bytes, fs.cat_file(path, start=start, end=start + length)))


@contextmanager
def open_read(uri: str) -> Generator[BinaryIO, None, None]:
    """A binary stream; only opening is retried."""
    with local_path(uri).open("rb") if is_local(uri) else _retry(uri, lambda fs, path: cast(BinaryIO, fs.open(path, "rb"))) as stream:
        yield stream


def sha256(uri: str) -> str:
    """sha256 of the file's bytes, hex, read in blocks."""
    digest = hashlib.sha256()
    with open_read(uri) as stream:
        while block := stream.read(BLOCK_BYTES):
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
        _retry(uri, lambda fs, path: fs.pipe_file(path, data))
        return
    with _renamed_into(local_path(uri)) as stream:
        stream.write(data)


def publish_file(local: Path, uri: str) -> None:
    """Copy a finished local file to ``uri``, atomically as ``write_bytes`` but without holding it in memory."""
    if not is_local(uri):
        _retry(uri, lambda fs, path: fs.put_file(str(local), path))
        return
    with open(local, "rb") as source, _renamed_into(local_path(uri)) as stream:
        shutil.copyfileobj(source, stream, BLOCK_BYTES)


def create_exclusive(uri: str, data: bytes) -> bool:
    """Create a file that must not exist yet, with all its bytes at once; False when somebody was first."""
    if is_local(uri):
        target = local_path(uri)
        part = target.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}")
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
        _retry(uri, lambda fs, path: fs.pipe_file(path, data, mode="create"))
    except FileExistsError:
        return read_bytes(uri) == data  # a repeated request meets its own first success
    return True


def list_files(uri: str, *, suffixes: Collection[str] | None = None) -> list[FileInfo]:
    """Every file below ``uri`` at any depth, sorted by relative path; hidden ones left out; ``suffixes`` lower case, with the dot.

    A folder that is missing gives an empty list; one that cannot be listed raises PermissionError. Linked folders are followed once.
    """
    found = _list_local(local_path(uri)) if is_local(uri) else _list_remote(uri)
    kept = [info for info in found if not any(part.startswith(".") for part in info.path_relative.split("/"))]
    if suffixes is not None:
        kept = [info for info in kept if os.path.splitext(info.path_relative)[1].lower() in suffixes]
    return sorted(kept, key=lambda info: info.path_relative)


def remove(uri: str, *, recursive: bool = False) -> None:
    """Delete a file, or with ``recursive`` a folder; nothing happens when it is not there."""
    if not is_local(uri):
        with suppress(FileNotFoundError):
            _retry(uri, lambda fs, path: fs.rm(path, recursive=True) if recursive else fs.rm_file(path))
        return
    path = local_path(uri)
    if path.is_dir() and not path.is_symlink():
        if not recursive:
            raise IsADirectoryError(str(path))
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_parts(uri: str) -> None:
    """Delete what killed writers left below the folder ``uri``: call it while holding its lease. A store keeps no such parts."""
    if is_local(uri):
        for path in local_path(uri).rglob(f"{_TEMPORARY}*"):
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
        with open_read(info.uri) as source, _renamed_into(target) as stream:
            shutil.copyfileobj(source, stream, BLOCK_BYTES)


def filesystem(uri: str) -> tuple[Any, str]:
    """fsspec's filesystem of a remote location and the path in it, for a library that writes there by itself."""
    first, chain = _links(uri)
    scheme, _, rest = first.partition("://")
    fs = _filesystem(uri if chain else f"{scheme}://{rest.partition('/')[0]}/")
    return fs, str(fs._strip_protocol(first))


def check_readable(uri: str) -> None:
    """BadInput unless ``uri`` is a file that can be read or a folder that can be listed."""
    try:
        if is_local(uri):
            path = local_path(uri)
            if path.is_dir():
                os.listdir(path)
            else:
                path.open("rb").close()
        elif not _retry(uri, lambda fs, path: fs.exists(path), attempts=1):
            raise FileNotFoundError(uri)
    except FileNotFoundError:
        raise BadInput(f"{uri} does not exist", "an existing path or fsspec URI", "check its spelling") from None
    except (OSError, Failed) as error:
        raise BadInput(f"{uri} cannot be read ({_reason(error)})", "a location you may read", "check access and credentials") from None


def check_writable(uri: str) -> None:
    """BadInput unless files can be written below the folder ``uri``: one small file is written there and deleted."""
    probe = join(uri, f"{_TEMPORARY}check-{uuid.uuid4().hex}")
    try:
        if is_local(uri):
            write_bytes(probe, b"")
        else:
            _retry(probe, lambda fs, path: fs.pipe_file(path, b"sr3"), attempts=1)
        remove(probe)
    except (OSError, Failed) as error:
        got = f"{uri} cannot be written ({_reason(error)})"
        raise BadInput(got, "a location you may write", "check access or choose another root") from None


def _list_local(root: Path) -> list[FileInfo]:
    found: list[FileInfo] = []
    seen = {os.path.realpath(root)}  # a linked folder may lead back up

    def refuse(error: OSError) -> NoReturn:
        raise error

    if not root.exists():
        return found
    for folder, folders, names in os.walk(root, followlinks=True, onerror=refuse):
        for name in list(folders):
            real = os.path.realpath(os.path.join(folder, name))
            if real in seen or name.startswith("."):
                folders.remove(name)
            seen.add(real)
        folders.sort()
        for name in names:
            path = os.path.join(folder, name)
            if not os.path.isfile(path):  # a broken link, a socket
                continue
            status = os.stat(path)
            relative = os.path.relpath(path, root).replace(os.sep, "/")
            found.append(FileInfo(path, relative, status.st_size, str(status.st_mtime_ns)))
    return found


def _list_remote(uri: str) -> list[FileInfo]:
    def find(fs: Any, path: str) -> tuple[str, dict[str, dict[str, Any]]]:
        try:
            return path, fs.find(path, detail=True)
        except FileNotFoundError:
            return path, {}

    root, entries = _retry(uri, find)
    root = root.rstrip("/")
    found: list[FileInfo] = []
    for name, info in entries.items():
        relative = name[len(root) :].strip("/") if name.startswith(root) else name.strip("/")
        if info.get("type") == "file" and relative:
            found.append(FileInfo(join(uri, relative), relative, int(info.get("size") or 0), _stamp(info)))
    return found


def _stamp(info: dict[str, Any]) -> str:
    for key in ("etag", "ETag", "generation", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "created"):
        if info.get(key) is not None:
            return str(info[key])
    return ""


def _links(uri: str) -> tuple[str, str]:
    """A chained URI as its first link and the rest with its "::"; a name that merely holds "::" is no chain."""
    chain = None if is_local(uri) else _CHAIN.search(uri)
    return (uri[: chain.start()], uri[chain.start() :]) if chain else (uri, "")


@lru_cache(maxsize=64)
def _filesystem(address: str) -> Any:
    """The filesystem of ``scheme://host/`` or of a chained URI; listings are not cached, since several processes write to one folder."""
    try:
        if _CHAIN.search(address):
            return fsspec.core.url_to_fs(address)[0]
        return fsspec.core.url_to_fs(address, use_listings_cache=False)[0]
    except (ValueError, ImportError) as error:
        scheme = address.partition("://")[0]
        raise BadInput(f"location scheme {scheme}:// ({error})", "a scheme that fsspec knows", "mend it or install its package") from None


def _retry(uri: str, work: Callable[[Any, str], T], *, attempts: int = ATTEMPTS) -> T:
    """Run ``work(filesystem, path)``, again after transient errors; the final error names the URI."""
    fs, path = filesystem(uri)
    for attempt in range(1, attempts + 1):
        try:
            return work(fs, path)
        except (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError, BadInput, Failed):
            raise
        except Exception as error:  # each store's client has its own exceptions; which may be tried again is decided below
            if _is_forbidden(error):
                raise PermissionError(errno.EACCES, _reason(error), uri) from error
            if attempt == attempts or not _is_transient(error):
                raise Failed(f"{uri}: {_reason(error)} (attempt {attempt} of {attempts})") from error
            time.sleep(FIRST_WAIT_SECONDS * 2 ** (attempt - 1))
    raise AssertionError("unreachable")


def _is_forbidden(error: Exception) -> bool:
    return getattr(error, "code", None) in (401, 403) or "Forbidden" in str(error)


def _is_transient(error: Exception) -> bool:
    code = getattr(error, "code", None) or getattr(error, "status", None)
    if isinstance(code, int) and 400 <= code < 500:
        return code in (408, 429)
    return not isinstance(error, (TypeError, ValueError, NotImplementedError))


def _reason(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:300] or type(error).__name__


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
    part = target.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}")
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
