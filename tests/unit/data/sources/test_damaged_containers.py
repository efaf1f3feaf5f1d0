"""Containers that are damaged, hostile or not there: every input has a reason or the source is refused in one line; no other error."""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from sr3_core import config, images, plugins
from sr3_core.config import Data
from sr3_core.data import plan
from sr3_core.errors import BadInput
from tests.source_trees import tar_bytes

SIDE = 16


def picture(seed: int) -> bytes:
    return images.encode(np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))


def reasons(name: str, **options: Any) -> dict[str, str]:
    """Key -> reason, empty for a good input: of all that the source lists."""
    module = plugins.load("data.sources", name)
    asked = config.options(module.Options, options, "data")
    module.listing(asked)
    data = Data.model_validate({"source": name, "options": options, "levels": [SIDE]})
    return {example.key: plan.inspect(example, data).reason for example in module.examples(asked)}


def npy(shape: str, descr: str = "'|u1'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(500)


def big_tiff(offset: int, *, directory: int = 16, kind: int = 16, number: int = 1) -> bytes:
    """A BigTIFF of one page whose one strip lies at ``offset``."""
    entries = struct.pack("<HHQQ", 273, kind, number, offset) + struct.pack("<HHQQ", 279, kind, number, 8)
    return b"II" + struct.pack("<HHHQ", 43, 8, 0, directory) + struct.pack("<Q", 2) + entries + struct.pack("<Q", 0)


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ("(-1, 8, 8)", "unsupported shape"),
        ("(2, -8, 8)", "unsupported shape"),
        ("(3000000, 1, 1)", "truncated"),  # and not three million inputs
        ("(5, 5", "corrupt"),
        ("(1," * 300, "corrupt"),
    ],
)
def test_npy_headers_that_no_one_wrote_in_good_faith(tmp_path: Path, shape: str, reason: str) -> None:
    (tmp_path / "a.npy").write_bytes(npy(shape))
    assert reasons("stack", uri=str(tmp_path)) == {"a.npy": reason}


def test_any_flipped_byte_of_a_compressed_npz(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", one=np.random.default_rng(0).integers(0, 9, (2, SIDE, SIDE), dtype=np.uint8))
    whole = (tmp_path / "a.npz").read_bytes()
    found: set[str] = set()
    for at in range(30, len(whole), 7):
        (tmp_path / f"{at}.npz").write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        found |= set(reasons("stack", uri=str(tmp_path / f"{at}.npz")).values())
    assert "corrupt" in found


@pytest.mark.parametrize(
    "data", [big_tiff(2**64 - 1), big_tiff(2**63), big_tiff(100, directory=2**63), big_tiff(2**63 + 5, number=300)], ids=range(4)
)
def test_tiff_offsets_beyond_any_file(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.tif").write_bytes(data)
    (reason,) = reasons("stack", uri=str(tmp_path)).values()
    assert reason == "corrupt"


def parquet(place: Path, column: Any) -> str:
    pyarrow.parquet.write_table(pyarrow.table({"image": column}), place, row_group_size=4, use_dictionary=False)
    return str(place)


def test_parquet_damage_is_that_row_groups_alone(tmp_path: Path) -> None:
    uri = parquet(tmp_path / "a.parquet", [picture(index) for index in range(12)])
    data = bytearray(Path(uri).read_bytes())
    start = pyarrow.parquet.ParquetFile(uri).metadata.row_group(1).column(0).data_page_offset
    data[start : start + 16] = bytes(16)
    Path(uri).write_bytes(data)
    assert list(reasons("parquet", uri=uri).values()) == [""] * 4 + ["corrupt"] * 4 + [""] * 4


@pytest.mark.parametrize("column", [["a.png", "b.png"], [[1, 300], [2]], [10**12, 5]], ids=["text", "lists", "numbers"])
def test_parquet_columns_that_hold_no_bytes(tmp_path: Path, column: Sequence[Any]) -> None:
    assert set(reasons("parquet", uri=parquet(tmp_path / "a.parquet", column)).values()) == {"no bytes in the row"}


def test_two_members_of_one_name_are_said(tmp_path: Path) -> None:
    members = [("a.png", picture(0)), ("a.png", picture(1)), ("b.png", picture(2)), ("c.png", picture(3)), ("c.PNG", picture(4))]
    (tmp_path / "x.tar").write_bytes(tar_bytes(members))
    twice = "two members of one name"
    assert reasons("webdataset", uri=str(tmp_path)) == {"x/a": twice, "x/b": "", "x/c": twice}


@pytest.mark.parametrize(("name", "file"), [("archive", "a.zip"), ("archive", "a.tar"), ("webdataset", "a.tar"), ("parquet", "a.parquet")])
def test_a_link_that_leads_nowhere_is_bad_input(tmp_path: Path, name: str, file: str) -> None:
    (tmp_path / file).symlink_to("nowhere")
    with pytest.raises(BadInput, match=rf"{file} cannot be read \(No such file"):
        reasons(name, uri=str(tmp_path))


@pytest.mark.parametrize("file", ["a.npy", "a.npz", "a.tif"])
def test_a_stack_that_is_not_there_is_an_input_with_a_reason(tmp_path: Path, file: str) -> None:
    (tmp_path / file).symlink_to("nowhere")
    assert reasons("stack", uri=str(tmp_path)) == {file: "missing"}


def test_any_flipped_byte_of_an_lmdb(tmp_path: Path) -> None:
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(tmp_path / "whole"), map_size=2**20) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"length", b"30")
        for index in range(30):
            transaction.put(b"hr_16_%05d" % index, picture(index))
    whole = (tmp_path / "whole" / "data.mdb").read_bytes()
    refused = 0
    for at in range(8192, 8250, 8):  # the first page that is no head
        (tmp_path / str(at)).mkdir()
        (tmp_path / str(at) / "data.mdb").write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            reasons("lmdb", uri=str(tmp_path / str(at)))
        except BadInput:
            refused += 1
    assert refused
