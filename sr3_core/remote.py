"""The only importer of fsspec: remote locations, their filesystems, and trying again what a store may answer the next time.

What each store's client raises becomes FileNotFoundError, FileExistsError, PermissionError or Failed here, each with the URI.
"""

import errno
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import lru_cache
from typing import Any, TypeVar

import fsspec
import fsspec.core

from sr3_core.errors import BadInput, Failed

ATTEMPTS = 3
FIRST_WAIT_SECONDS = 0.5  # doubled after each attempt; the stores' own clients retry below this

_CHAIN = re.compile(r"::(?=[a-z0-9+]+://)")
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "RefreshError")  # botocore's, google.auth's
_EXTRAS = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}

# gcsfs logs each request that it gives up with a traceback; what went wrong is said once, by the error. A program that sets up logging
# sees these records as before.
logging.getLogger("gcsfs").addHandler(logging.NullHandler())

T = TypeVar("T")


def links(uri: str) -> tuple[str, str]:
    """A remote location as its first link and the rest with its "::"; a name that merely holds "::" is no chain."""
    chain = _CHAIN.search(uri)
    return (uri[: chain.start()], uri[chain.start() :]) if chain else (uri, "")


def filesystem(uri: str) -> tuple[Any, str]:
    """fsspec's filesystem of a remote location and the path in it."""
    first, chain = links(uri)
    scheme, _, rest = first.partition("://")
    fs = _filesystem(uri if chain else f"{scheme}://{rest.partition('/')[0]}/")
    return fs, str(fs._strip_protocol(first))


def forget() -> None:
    """Drop every filesystem that is kept, with its connections and the endpoint and credentials that it read from the environment."""
    _filesystem.cache_clear()
    for protocol in _used:
        fsspec.get_filesystem_class(protocol).clear_instance_cache()
    _used.clear()


def retry(uri: str, work: Callable[[Any, str], T], *, attempts: int | None = None) -> T:
    """Run ``work(filesystem, path)``, again after transient errors, ``attempts`` times in all (None: ATTEMPTS).

    Raises FileNotFoundError, FileExistsError or PermissionError, which are not tried again, and Failed for the rest; each names the URI.
    """
    fs, path = filesystem(uri)
    limit = ATTEMPTS if attempts is None else attempts
    for attempt in range(1, limit + 1):
        try:
            return work(fs, path)
        except (IsADirectoryError, NotADirectoryError, BadInput, Failed):
            raise
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, "No such file", uri) from error
        except Exception as error:  # each store's client has its own exceptions; which may be tried again is decided below
            if _is_there(error):
                raise FileExistsError(errno.EEXIST, "File exists", uri) from error
            if _is_forbidden(error):
                raise PermissionError(errno.EACCES, reason(error), uri) from error
            if attempt == limit or not _is_transient(error):
                raise Failed(f"{uri}: {reason(error)} (attempt {attempt} of {limit})") from error
            time.sleep(FIRST_WAIT_SECONDS * 2 ** (attempt - 1))
    raise AssertionError("unreachable")


def find(uri: str) -> Iterator[tuple[str, int, str]]:
    """(relative path, bytes, stamp) of every file below ``uri``; nothing when it is missing."""

    def listed(fs: Any, path: str) -> tuple[str, dict[str, dict[str, Any]]]:
        try:
            return path, fs.find(path, detail=True)
        except FileNotFoundError:
            return path, {}

    root, entries = retry(uri, listed)
    root = root.rstrip("/")
    for name, info in entries.items():
        relative = name[len(root) :].strip("/") if name.startswith(root) else name.strip("/")
        if info.get("type") == "file" and relative:
            yield relative, int(info.get("size") or 0), _stamp(info)


def info(uri: str) -> tuple[int, str]:
    """(bytes, stamp) of one file, the stamp as ``find`` gives it. Raises IsADirectoryError for a folder."""
    entry = retry(uri, lambda fs, path: fs.info(path))
    if entry.get("type") == "directory":
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), uri)
    return int(entry.get("size") or 0), _stamp(entry)


def reason(error: BaseException) -> str:
    """What went wrong, in one line of at most 300 characters."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:300] or type(error).__name__


_used: set[str] = set()


@lru_cache(maxsize=64)
def _filesystem(address: str) -> Any:
    """The filesystem of ``scheme://host/`` or of a chained URI; listings are not cached, since several processes write to one folder."""
    scheme = address.partition("://")[0]
    try:
        options = {} if _CHAIN.search(address) else {"use_listings_cache": False}  # a chain's options belong to its links
        made = fsspec.core.url_to_fs(address, **options)[0]
    except (ValueError, ImportError) as error:
        do = f"pip install {_EXTRAS[scheme]}" if scheme in _EXTRAS else "mend it or install its package"
        raise BadInput(f"location scheme {scheme}:// ({error})", "a scheme that fsspec knows", do) from None
    _used.add(scheme)
    return made


def _is_there(error: Exception) -> bool:
    """A conditional write that lost: gcsfs raises FileExistsError, S3 answers 412, or 409 while another one is under way."""
    if isinstance(error, FileExistsError):
        return True
    cause = error.__cause__
    answer = getattr(cause, "response", None)
    code = answer.get("Error", {}).get("Code") if isinstance(answer, dict) else None
    return code in ("PreconditionFailed", "ConditionalRequestConflict") or getattr(error, "code", None) == 412


def _is_forbidden(error: Exception) -> bool:
    if isinstance(error, PermissionError) or type(error).__name__ in _NO_CREDENTIALS:
        return True
    return getattr(error, "code", None) in (401, 403) or "Forbidden" in str(error)


def _is_transient(error: Exception) -> bool:
    code = getattr(error, "code", None) or getattr(error, "status", None)
    if isinstance(code, int) and 400 <= code < 500:
        return code in (408, 429)
    return not isinstance(error, (TypeError, ValueError, NotImplementedError))


def _stamp(info: dict[str, Any]) -> str:
    for key in ("etag", "ETag", "generation", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "created"):
        value = info.get(key)
        if value is not None:  # one store says the time as a number in a listing, as a date of one file
            return str(value.timestamp() if isinstance(value, datetime) else value)
    return ""
