"""What a store may do at any time - throttle, break a connection, refuse - and what storage makes of it, over the stores' own protocols."""

from pathlib import Path

import pytest

from sr3_core import storage
from sr3_core.errors import BadInput, Failed
from tests.stores import Store

CONTENT = bytes(range(256)) * 1000


def gets(store: Store) -> int:
    """How often a store was asked for bytes."""
    assert store.proxy is not None
    return sum(request.method == "GET" for request in store.proxy.requests)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("act", ["read", "range", "write", "list", "publish"])
def test_throttling_is_waited_out(object_store: Store, status: int, act: str, tmp_path: Path) -> None:
    uri = storage.join(object_store.uri, "a.bin")
    storage.write_bytes(uri, CONTENT)
    object_store.fail(status, times=2)
    if act == "read":
        assert storage.read_bytes(uri) == CONTENT
    elif act == "range":
        assert storage.read_range(uri, 1000, 77) == CONTENT[1000:1077]
    elif act == "write":
        storage.write_bytes(uri, b"new")
    elif act == "list":
        assert [info.path_relative for info in storage.list_files(object_store.uri)] == ["a.bin"]
    else:
        (tmp_path / "a").write_bytes(b"published")
        storage.publish_file(tmp_path / "a", uri)
    assert object_store.proxy is not None and object_store.proxy.faults[0].times == 0  # both were met
    expected = {"write": b"new", "publish": b"published"}.get(act, CONTENT)
    assert storage.read_bytes(uri) == expected


@pytest.mark.parametrize("status", [429, 503])
def test_a_store_that_stays_away_is_named_in_one_line(object_store: Store, status: int, capfd: pytest.CaptureFixture[str]) -> None:
    uri = storage.join(object_store.uri, "a.bin")
    object_store.fail(status)
    with pytest.raises(Failed, match=rf"^{uri}: [^\n]*said the proxy[^\n]* \(attempt 3 of 3\)$"):
        storage.read_range(uri, 0, 10)
    assert capfd.readouterr() == ("", "")  # the clients print nothing beside it
    assert gets(object_store) >= 3


def test_a_connection_reset_in_the_middle_of_an_answer(object_store: Store, tmp_path: Path) -> None:
    uri = storage.join(object_store.uri, "a.bin")
    storage.write_bytes(uri, CONTENT)
    digest = storage.sha256(uri)
    for read in (lambda: storage.read_bytes(uri), lambda: storage.read_range(uri, 0, len(CONTENT))):
        object_store.fail("reset", method="GET", times=2)
        assert read() == CONTENT
    object_store.fail("reset", method="GET", where="a.bin", times=2)
    assert storage.sha256(uri) == digest
    object_store.fail("reset", method="GET", where="a.bin", times=2)
    storage.download_folder(object_store.uri, tmp_path / "down")
    assert (tmp_path / "down" / "a.bin").read_bytes() == CONTENT
    object_store.fail("reset", method="GET")
    with pytest.raises(Failed, match=rf"^{uri}: .*\(attempt 3 of 3\)$"):
        storage.read_bytes(uri)


def test_a_bucket_without_permission(object_store: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    where = object_store.forbidden
    uri = storage.join(where, "a.bin")
    (tmp_path / "a").write_bytes(b"x")
    assert object_store.proxy is not None
    for act in (
        lambda: storage.read_bytes(uri),
        lambda: storage.read_range(uri, 0, 1),
        lambda: storage.size(uri),
        lambda: storage.list_files(where),
        lambda: storage.write_bytes(uri, b"x"),
        lambda: storage.create_exclusive(uri, b"x"),
        lambda: storage.publish_file(tmp_path / "a", uri),
    ):
        object_store.proxy.requests.clear()
        with pytest.raises(PermissionError) as caught:
            act()
        assert caught.value.filename in (uri, where) and "\n" not in str(caught.value)
        assert len(object_store.proxy.requests) <= 3  # it will not get better
    with pytest.raises(
        BadInput, match=rf"^bad input: {where} cannot be written \([^\n]*\); allowed: a location you may write; do: check access[^\n]*$"
    ):
        storage.check_writable(where)
    with pytest.raises(
        BadInput, match=rf"^bad input: {where} cannot be read \([^\n]*\); allowed: a location you may read; do: check access[^\n]*$"
    ):
        storage.check_readable(where)
    assert capfd.readouterr() == ("", "")


def test_a_write_that_is_cut_off_leaves_the_old_file(object_store: Store) -> None:
    uri = storage.join(object_store.uri, "a.bin")
    storage.write_bytes(uri, b"old")
    for method in ("PUT", "POST"):
        object_store.fail(503, method=method)
    with pytest.raises(Failed, match=uri):
        storage.write_bytes(uri, CONTENT)
    assert storage.read_bytes(uri) == b"old"


def test_a_folder_that_cannot_be_finished_has_no_manifest(object_store: Store, tmp_path: Path) -> None:
    for name in ("manifest.json", "a.bin", "b.bin"):
        (tmp_path / name).write_bytes(name.encode())
    object_store.fail(503, where="b.bin")
    with pytest.raises(Failed, match=r"b\.bin"):
        storage.upload_folder(tmp_path, object_store.uri, last="manifest.json")
    assert object_store.proxy is not None
    object_store.proxy.faults.clear()
    assert [info.path_relative for info in storage.list_files(object_store.uri)] == ["a.bin"]
    storage.upload_folder(tmp_path, object_store.uri, last="manifest.json")
    assert storage.read_bytes(storage.join(object_store.uri, "manifest.json")) == b"manifest.json"


def test_an_exclusive_write_whose_answer_is_lost_knows_that_it_won(object_store: Store) -> None:
    """The file was made, the connection broke: the repeated request meets its own first success."""
    uri = storage.join(object_store.uri, "lease")
    for method in ("PUT", "POST"):
        object_store.fail("reset", method=method, times=1)
    assert storage.create_exclusive(uri, b"mine")
    assert storage.read_bytes(uri) == b"mine"
    assert not storage.create_exclusive(uri, b"yours")
