"""Files at any URI: the same behaviour on a local disk, in memory and on object stores, and what each refuses."""

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest

from sr3_core import remote, storage
from sr3_core.errors import BadInput, Failed
from tests.stores import Store

HARD_NAMES = ["plain.txt", "a b.txt", "100%.txt", "a%20b.txt", "#1.txt", "Grüße.txt", "a.b.c.txt", "[x]*.txt", "a::b.txt", "'q'.txt"]


@pytest.fixture
def folder(store: Store) -> str:
    return store.uri


@pytest.mark.parametrize("name", HARD_NAMES)
def test_written_is_read_under_any_name(folder: str, name: str) -> None:
    if "::" in name and not storage.is_local(folder):
        pytest.skip("fsspec takes '::' in a remote location for a chain")
    uri = storage.join(folder, "sub", name)
    storage.write_bytes(uri, b"0123456789")
    assert storage.exists(uri)
    assert storage.size(uri) == 10
    assert storage.read_bytes(uri) == b"0123456789"
    assert storage.read_range(uri, 3, 4) == b"3456"
    assert storage.read_range(uri, 8, 9) == b"89"
    with storage.open_read(uri) as stream:
        assert stream.read() == b"0123456789"
    (info,) = storage.list_files(folder)
    assert (info.path_relative, info.size) == (f"sub/{name}", 10)
    assert storage.info(uri) == storage.FileInfo(storage.absolute(uri), name, 10, info.stamp)
    with pytest.raises(IsADirectoryError):
        storage.info(folder)
    with pytest.raises(FileNotFoundError):
        storage.info(storage.join(folder, "missing"))
    assert storage.read_bytes(info.uri) == b"0123456789"
    storage.remove(uri)
    assert not storage.exists(uri)
    storage.remove(uri)


def test_json_has_one_spelling_and_its_hash(folder: str) -> None:
    uri = storage.join(folder, "a.json")
    digest = storage.write_json(uri, {"b": 1, "a": [1.5, None, "ü\udcff"]})
    assert storage.sha256(uri) == digest
    assert storage.read_json(uri) == {"a": [1.5, None, "ü\udcff"], "b": 1}
    assert storage.write_json(uri, {"a": [1.5, None, "ü\udcff"], "b": 1}) == digest
    with pytest.raises(ValueError):
        storage.write_json(uri, float("nan"))
    storage.write_bytes(uri, b"{")
    with pytest.raises(BadInput, match="is not JSON"):
        storage.read_json(uri)


def test_listing_is_sorted_recursive_and_without_hidden_files(folder: str) -> None:
    for name in ("b/2.PNG", "b/1.jpg", "a.png", "c.txt", ".hidden/x.png", "b/.part.png"):
        storage.write_bytes(storage.join(folder, name), b"x")
    assert [info.path_relative for info in storage.list_files(folder, suffixes={".png", ".jpg"})] == ["a.png", "b/1.jpg", "b/2.PNG"]
    assert storage.list_files(storage.join(folder, "missing")) == []


def test_stamp_changes_with_the_file(folder: str) -> None:
    uri = storage.join(folder, "a")
    storage.write_bytes(uri, b"1")
    before = storage.list_files(folder)
    assert before == storage.list_files(folder)
    storage.write_bytes(uri, b"2")
    assert storage.list_files(folder) != before


def test_exclusive_creation_has_one_winner(folder: str) -> None:
    uri = storage.join(folder, "lease")
    assert storage.create_exclusive(uri, b"first")
    assert not storage.create_exclusive(uri, b"second")
    assert storage.read_bytes(uri) == b"first"


def test_of_many_exclusive_writers_one_wins_and_the_others_know(store: Store) -> None:
    if store.kind == "memory":
        pytest.skip("memory:// is one process's and promises no order between threads")
    uri, start, won = storage.join(store.uri, "lease"), threading.Barrier(8), dict[int, bool]()

    def contend(index: int) -> None:
        start.wait()
        won[index] = storage.create_exclusive(uri, f"writer {index}".encode())

    threads = [threading.Thread(target=contend, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [index for index, first in won.items() if first]
    assert len(won) == 8
    assert storage.read_bytes(uri) == f"writer {winner}".encode()
    assert [info.path_relative for info in storage.list_files(store.uri)] == ["lease"]
    if storage.is_local(store.uri):
        assert len(list(storage.local_path(store.uri).iterdir())) == 1  # no part is left


def test_folder_goes_up_with_the_manifest_last_and_comes_down(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = tmp_path / "local"
    (local / "sub").mkdir(parents=True)
    for name in ("manifest.json", "z.bin", "sub/a.bin"):
        (local / name).write_bytes(name.encode())
    order: list[str] = []
    publish = storage.publish_file
    monkeypatch.setattr(storage, "publish_file", lambda path, uri: (order.append(path.name), publish(path, uri)))
    storage.upload_folder(local, folder, last="manifest.json")
    assert order[-1] == "manifest.json"
    down = tmp_path / "down"
    storage.download_folder(folder, down)
    assert {str(path.relative_to(down)) for path in down.rglob("*") if path.is_file()} == {"manifest.json", "z.bin", "sub/a.bin"}
    storage.remove(folder, recursive=True)
    assert storage.list_files(folder) == []
    storage.remove(folder, recursive=True)
    with pytest.raises(FileNotFoundError):
        storage.download_folder(folder, down)


def test_an_interrupted_write_leaves_the_old_file_and_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a"
    storage.write_bytes(str(target), b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BadInput, match="no space left"):
        storage.write_bytes(str(target), b"new")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_parts_of_killed_writers_go_and_those_of_this_process_stay(tmp_path: Path) -> None:
    left = tmp_path / "deep" / ".sr3-part-0123-left"
    left.parent.mkdir()
    left.write_bytes(b"half")
    with storage._renamed_into(tmp_path / "lease.json") as stream:  # as a heartbeat writes while prepare tidies up
        stream.write(b"beat")
        storage.remove_parts(str(tmp_path))
    assert not left.exists() and (tmp_path / "lease.json").read_bytes() == b"beat"


def test_full_disk_is_bad_input() -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    with pytest.raises(BadInput, match="no space left"), storage._writing("/dev/full"), open("/dev/full", "wb", buffering=0) as stream:  # pyright: ignore[reportPrivateUsage]
        stream.write(b"x")


def test_the_same_of_two_links_is_followed_in_any_order_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "1.png").write_bytes(b"x")
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "c").symlink_to("b")
    walk = os.walk

    def backwards(*given: Any, **more: Any) -> Iterator[tuple[str, list[str], list[str]]]:
        for folder, folders, names in walk(*given, **more):
            folders.reverse()
            yield folder, folders, names

    once = storage.list_files(str(tmp_path))
    monkeypatch.setattr(os, "walk", backwards)
    assert storage.list_files(str(tmp_path)) == once
    assert [info.path_relative for info in once] == ["a/1.png"]


def test_linked_folders_are_followed_once_and_dead_links_listed(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "data" / "1.png").write_bytes(b"x")
    (tmp_path / "other" / "2.png").write_bytes(b"x")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "link").symlink_to(tmp_path / "other")
    (tmp_path / "data" / "up").symlink_to("..")
    (tmp_path / "data" / "dead.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "data" / "round.png").symlink_to("round.png")
    names = ["1.png", "dead.png", "link/2.png", "round.png"]
    assert [info.path_relative for info in storage.list_files(str(tmp_path / "data"))] == names


def test_absolute_and_join() -> None:
    assert storage.absolute("photos") == os.path.join(os.getcwd(), "photos")
    assert storage.absolute("file:///a/../b/") == "/b"
    assert storage.absolute("gs://bucket/x/") == "gs://bucket/x"
    assert storage.join("gs://bucket/x/", "a", "b.c") == "gs://bucket/x/a/b.c"
    assert storage.join("zip://in::gs://bucket/a.zip", "b") == "zip://in/b::gs://bucket/a.zip"
    assert storage.join("/a::b", "c") == "/a::b/c"
    with pytest.raises(BadInput, match="empty location"):
        storage.absolute(" ")
    with pytest.raises(BadInput, match="not on this machine"):
        storage.local_path("gs://bucket/x")


def test_chained_uris_are_read(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("in/x.txt", "inside")
    uri = f"zip://in::file://{tmp_path}/a.zip"
    (info,) = storage.list_files(uri)
    assert info.path_relative == "x.txt"
    assert storage.read_bytes(info.uri) == b"inside"


def test_checks_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="does not exist"):
        storage.check_readable(str(tmp_path / "missing"))
    with pytest.raises(BadInput, match="does not exist"):
        storage.check_readable("memory://missing/x")
    with pytest.raises(BadInput, match="nosuch://"):
        storage.check_readable("nosuch://bucket/x")
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(BadInput, match="cannot be written"):
        storage.check_writable(str(tmp_path / "file"))
    storage.check_readable(str(tmp_path))
    storage.check_writable(str(tmp_path / "new"))
    assert list((tmp_path / "new").iterdir()) == []


class _Flaky(fsspec.get_filesystem_class("memory")):  # type: ignore[misc]
    """A store that fails as many times as told, then works."""

    protocol = "flaky"
    failures: ClassVar[list[Exception]] = []

    def cat_file(self, path: str, **options: object) -> bytes:
        if self.failures:
            raise self.failures.pop()
        return b"good"


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> type[_Flaky]:
    fsspec.register_implementation("flaky", _Flaky, clobber=True)
    monkeypatch.setattr(remote, "FIRST_WAIT_SECONDS", 0.001)
    _Flaky.failures = []
    return _Flaky


def test_transient_errors_are_tried_again_and_the_last_names_the_uri(flaky: type[_Flaky]) -> None:
    flaky.failures = [ConnectionError("reset"), TimeoutError("slow")]
    assert storage.read_bytes("flaky://bucket/x") == b"good"
    flaky.failures = [ConnectionError("reset")] * 5
    with pytest.raises(Failed, match=r"flaky://bucket/x: reset \(attempt 3 of 3\)"):
        storage.read_bytes("flaky://bucket/x")
    assert len(flaky.failures) == 2


def test_what_will_not_get_better_is_not_tried_again(flaky: type[_Flaky]) -> None:
    flaky.failures = [OSError("Forbidden: bucket/x")] * 2
    with pytest.raises(PermissionError, match="flaky://bucket/x"):
        storage.read_bytes("flaky://bucket/x")
    assert len(flaky.failures) == 1
    flaky.failures = [FileNotFoundError("x")] * 2
    with pytest.raises(FileNotFoundError):
        storage.read_bytes("flaky://bucket/x")
    assert len(flaky.failures) == 1


def test_what_is_missing_is_said(folder: str) -> None:
    uri = storage.join(folder, "missing")
    for act in (
        lambda: storage.read_bytes(uri),
        lambda: storage.size(uri),
        lambda: storage.read_range(uri, 0, 1),
        lambda: storage.sha256(uri),
    ):
        with pytest.raises(FileNotFoundError) as caught:
            act()
        assert str(caught.value.filename).endswith("/missing")
    with pytest.raises(BadInput, match="does not exist"):
        storage.check_readable(folder)
    storage.check_writable(folder)
    assert storage.list_files(folder) == []


def test_a_scheme_whose_package_is_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ImportError("Install s3fs to access S3")

    remote.forget()
    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(BadInput, match=r"Install s3fs.*do: pip install"):
        storage.exists("s3://bucket/x")
