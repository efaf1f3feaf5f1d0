"""Inputs inside containers: each member is read as it was put in, here and from a store; what is damaged or hostile is refused."""

import io
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from sr3_core import config, images, plugins, storage
from sr3_core.config import Data
from sr3_core.data import levels, plan, reading, shards
from sr3_core.data.sources._base import Example
from sr3_core.errors import BadImage, BadInput
from tests import source_trees
from tests.source_trees import contents, tar_bytes, tiff_bytes, write, zip_bytes


def listed(name: str, **options: Any) -> list[Example]:
    module = plugins.load("data.sources", name)
    return list(module.examples(config.options(module.Options, options, "data")))


def section(name: str, **options: Any) -> Data:
    return Data.model_validate({"source": name, "options": options, "levels": [16], "max_rejected_share": 0.9})


def read(name: str, example: Example, **options: Any) -> bytes:
    return reading.read(section(name, **options), example)


def refused(name: str, **options: Any) -> dict[str, str]:
    """Key -> reason, of the inputs that prepare would reject."""
    photos = [plan.inspect(example, section(name, **options)) for example in listed(name, **options)]
    return {photo.key: photo.reason for photo in photos if photo.reason}


@pytest.fixture(params=["file", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A folder on this machine, and one in a store that is read by ranges."""
    if request.param == "file":
        yield str(tmp_path / "place")
    else:
        uri = f"memory://containers-{tmp_path.name}"
        yield uri
        storage.remove(uri, recursive=True)


def put(place: str, files: dict[str, bytes]) -> str:
    for name, data in files.items():
        storage.write_bytes(storage.join(place, name), data)
    return place


# --- archives


@pytest.mark.parametrize("name", ["a.zip", "stored.zip", "a.tar", "a.tar.gz", "a.tgz", "a.tar.bz2", "a.tar.xz"])
def test_every_member_is_read_as_it_was_put_in(photos: Path, place: str, name: str) -> None:
    members = {f"train/deep/photo {index}.png": data for index, data in enumerate(contents(photos))}
    others = {"README.md": b"text", ".hidden.png": b"x", "__MACOSX/photo.png": b"x"}
    every = [*members.items(), *others.items()]
    if name.endswith("zip"):
        data = zip_bytes(every, zipfile.ZIP_STORED if name == "stored.zip" else zipfile.ZIP_DEFLATED)
    else:
        data = tar_bytes(every, {".tar": "w", "r.gz": "w:gz", ".tgz": "w:gz", ".bz2": "w:bz2", "r.xz": "w:xz"}[name[-4:]])
    put(place, {name: data})
    for uri in (storage.join(place, name), place, storage.join(place, "*")):
        found = listed("archive", uri=uri)
        assert len(found) == 14 and {example.split for example in found} == {"train"}
        for example in reversed(found):
            assert read("archive", example, uri=uri) == members[example.member]
    assert [example.key for example in listed("archive", uri=storage.join(place, name))] == sorted(key[:-4] for key in members)


HOSTILE = ["../out.png", "a/../../out.png", "/etc/out.png", "C:\\out.png", "..\\out.png", "\\out.png"]


@pytest.mark.parametrize("make", [tar_bytes, zip_bytes])
def test_members_that_lead_outside_are_rejected_and_nothing_is_written(photos: Path, tmp_path: Path, make: Any) -> None:
    data = contents(photos)
    every = [(name, data[index]) for index, name in enumerate(HOSTILE)] + [("..good/x..png", data[8]), ("b/..c.png", data[9])]
    write(tmp_path / "in", {"a.zip" if make is zip_bytes else "a.tar": make(every)})
    found = refused("archive", uri=str(tmp_path / "in"))
    assert len(found) == 6 and set(found.values()) == {"leads outside its archive"}
    assert sorted(path.name for path in tmp_path.rglob("*")) in (["a.zip", "in"], ["a.tar", "in"])


def test_links_and_other_kinds_are_rejected(photos: Path, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind in (("soft.png", tarfile.SYMTYPE), ("hard.png", tarfile.LNKTYPE), ("pipe.png", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        info = tarfile.TarInfo("good.png")
        info.size = len(contents(photos)[0])
        tar.addfile(info, io.BytesIO(contents(photos)[0]))
    write(tmp_path, {"a.tar": buffer.getvalue()})
    assert refused("archive", uri=str(tmp_path / "a.tar")) == {"soft": "link", "hard": "link", "pipe": "not a file"}

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        link = zipfile.ZipInfo("soft.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("good.png", contents(photos)[0])
        archive.writestr(zipfile.ZipInfo("packed.png"), contents(photos)[1], zipfile.ZIP_LZMA)
    write(tmp_path, {"a.zip": buffer.getvalue()})
    assert refused("archive", uri=str(tmp_path / "a.zip")) == {"soft": "link", "packed": "unsupported compression"}


def test_a_zip_that_lies_about_its_sizes_gives_no_more_than_it_says(photos: Path, tmp_path: Path) -> None:
    """A bomb: 64 MiB of zeros that the directory calls 100 bytes, and a member that it calls larger than any picture."""
    bomb = bytearray(zip_bytes([("bomb.png", bytes(2**26)), ("good.png", contents(photos)[0])]))
    at = bomb.rindex(b"PK\x01\x02", 0, bomb.rindex(b"good.png") - 60)
    assert bomb[at + 46 : at + 54] == b"bomb.png"
    bomb[at + 24 : at + 28] = (100).to_bytes(4, "little")
    write(tmp_path, {"a.zip": bytes(bomb)})
    assert refused("archive", uri=str(tmp_path / "a.zip")) == {"bomb": "corrupt"}
    bomb[at + 24 : at + 28] = (2**31).to_bytes(4, "little")
    write(tmp_path, {"a.zip": bytes(bomb)})
    assert refused("archive", uri=str(tmp_path / "a.zip")) == {"bomb": "too large"}


def test_damage_inside_a_member_is_that_members_alone(photos: Path, tmp_path: Path) -> None:
    data = bytearray(zip_bytes([("a.png", contents(photos)[0]), ("b.png", contents(photos)[1])]))
    data[60] ^= 0xFF
    write(tmp_path, {"a.zip": bytes(data)})
    assert refused("archive", uri=str(tmp_path / "a.zip")) == {"a": "corrupt"}


@pytest.mark.parametrize("cut", [100, 700, 2000, -1024, -600])
@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.zip"])
def test_a_cut_archive_is_bad_input_and_not_a_shorter_one(photos: Path, tmp_path: Path, name: str, cut: int) -> None:
    members = [(f"{index}.png", data) for index, data in enumerate(contents(photos))]
    whole = zip_bytes(members) if name == "a.zip" else tar_bytes(members, "w:gz" if name.endswith("gz") else "w")
    if name == "a.tar" and cut < 0:
        whole = whole.rstrip(b"\0") + bytes(512 + -len(whole.rstrip(b"\0")) % 512)
        cut = -512  # the end mark itself
    write(tmp_path, {name: whole[:cut]})
    with pytest.raises(BadInput, match=r"is no whole|ends or is damaged") as error:
        listed("archive", uri=str(tmp_path / name))
    assert "copy it again" in error.value.do


def test_a_changed_archive_is_read_anew(photos: Path, tmp_path: Path) -> None:
    data = contents(photos)
    for kind in ("a.tar", "a.tar.gz", "a.zip"):
        for first, second in ((data[0], data[1]), (data[1], data[0] + data[2])):
            members = [("a.png", first), ("b.png", second)]
            write(tmp_path, {kind: zip_bytes(members) if kind == "a.zip" else tar_bytes(members, "w:gz" if kind.endswith("gz") else "w")})
            assert [read("archive", example, uri=str(tmp_path / kind)) for example in listed("archive", uri=str(tmp_path / kind))] == [
                first,
                second,
            ]


def test_a_shardset_from_an_archive_equals_one_from_the_folder(photos: Path, tmp_path: Path) -> None:
    """Keys are the same, so are the bytes: where a photo was read from leaves no trace in the shards."""
    write(tmp_path, {"a.zip": zip_bytes([(path.name, path.read_bytes()) for path in photos.iterdir()])})
    made = [
        shards.build(str(tmp_path / name), section(name, uri=uri), listed(name, uri=uri), fingerprint="f")
        for name, uri in (("folder", str(photos)), ("archive", str(tmp_path / "a.zip")))
    ]
    assert made[0].manifest["shards"] == made[1].manifest["shards"]


def test_an_archive_that_changes_while_prepare_runs(photos: Path, tmp_path: Path) -> None:
    members = [(path.name, path.read_bytes()) for path in sorted(photos.iterdir())]
    uri = str(tmp_path / "a.tar")
    write(tmp_path, {"a.tar": tar_bytes(members)})

    def mapper(function: Any, items: Any, on_done: Any) -> list[Any]:
        if function is shards.make_shard:
            write(tmp_path, {"a.tar": tar_bytes(members[1:] + members[:1])})
            storage.remove(storage.join(str(tmp_path / "out"), levels.FOLDER), recursive=True)  # so that it is read again
        return shards.in_process(function, items, on_done)

    with pytest.raises(BadInput, match="changed while prepare ran"):
        shards.build(str(tmp_path / "out"), section("archive", uri=uri), listed("archive", uri=uri), fingerprint="f", mapper=mapper)


# --- webdataset


def test_shards_by_folder_pattern_and_braces(photos: Path, place: str, tmp_path: Path) -> None:
    source_trees.webdataset(photos, tmp_path / "tree")
    put(place, {path.name: path.read_bytes() for path in (tmp_path / "tree").iterdir()})
    data = contents(photos)
    for uri, count in (
        (place, 9),
        (f"{place}/train-*.tar", 6),
        (f"{place}/train-{{000000..000001}}.tar", 6),
        (f"{place}/{{train,val}}-000000.tar", 6),
    ):
        found = listed("webdataset", uri=uri, attributes=["caption"])
        assert len(found) == count
        for example in found:
            number = int(example.key[-6:])
            assert read("webdataset", example, uri=uri) == data[number]
            assert (example.label, example.attributes) == (number % 3, {"caption": f"photo {number:06d}"})
            assert example.split == ("train" if "train" in example.key else "val")
    with pytest.raises(BadInput, match=r"no shard .*train-000002\.tar"):
        listed("webdataset", uri=f"{place}/train-{{000000..000003}}.tar")
    assert {example.split for example in listed("webdataset", uri=place, split="test")} == {"test"}


def test_our_own_shards_are_a_source(photos: Path, tmp_path: Path) -> None:
    """Samples with several images need to be told which; the library that others use writes what we read."""
    data = section("folder", uri=str(photos)).model_copy(update={"levels": (16, 32)})
    made = shards.build(str(tmp_path / "made"), data, listed("folder", uri=str(photos)), fingerprint="f")
    with pytest.raises(BadInput, match=r"set data\.options\.extension"):
        listed("webdataset", uri=made.uri)
    found = listed("webdataset", uri=made.uri, extension="32.png")
    assert len(found) == 14 and {example.split for example in found} == {"train", "val", "test"}
    assert images.decode(read("webdataset", found[0], uri=made.uri)).shape == (32, 32, 3)


def test_what_the_webdataset_library_writes(photos: Path, tmp_path: Path) -> None:
    import webdataset

    data = contents(photos)
    with webdataset.TarWriter(str(tmp_path / "x.tar")) as writer:  # type: ignore[no-untyped-call]
        for index, item in enumerate(data):
            writer.write({"__key__": f"{index:03d}", "png": item, "cls": index, "json": {"author": "A"}})
    found = listed("webdataset", uri=str(tmp_path / "x.tar"), attributes=["author"])
    assert [(example.label, example.attributes["author"]) for example in found] == [(index, "A") for index in range(14)]
    assert [read("webdataset", example, uri=str(tmp_path)) for example in found] == data


def test_samples_without_image_or_with_a_wrong_label(photos: Path, tmp_path: Path) -> None:
    data = contents(photos)[0]
    members = [("a.png", data), ("b.cls", b"1"), ("c.png", data), ("c.cls", b"cat"), ("d.png", data), ("d.json", b"{")]
    write(tmp_path, {"x.tar": tar_bytes(members)})
    expected = {"x/b": "no image in the sample", "x/c": "label that is no number"}
    assert refused("webdataset", uri=str(tmp_path / "x.tar")) == expected
    assert refused("webdataset", uri=str(tmp_path / "x.tar"), attributes=["a"])["x/d"] == "damaged .json member"


# --- lmdb


def test_lmdb_values_sizes_and_holes(photos: Path, tmp_path: Path) -> None:
    lmdb = pytest.importorskip("lmdb")
    options = source_trees.lmdb(photos, tmp_path / "db")
    found = listed("lmdb", **options)
    assert [example.key for example in found] == [f"hr_128_{index:05d}" for index in range(14)]
    assert [read("lmdb", example, **options) for example in found] == contents(photos)
    assert listed("lmdb", uri=str(tmp_path / "db" / "data.mdb"))[0].member == "hr_128_00000"

    with lmdb.open(str(tmp_path / "db"), map_size=2**24) as environment, environment.begin(write=True) as transaction:
        transaction.delete(b"hr_128_00003")
        transaction.put(b"hr_64_00000", contents(photos)[5])
    with pytest.raises(BadInput, match="hr values of 64, 128 pixels"):
        listed("lmdb", **options)
    assert refused("lmdb", **options, resolution=128) == {"hr_128_00003": "missing"}
    (only, *rest) = [
        example for example in listed("lmdb", **options, resolution=64) if not refused("lmdb", **options, resolution=64).get(example.key)
    ]
    assert read("lmdb", only, **options) == contents(photos)[5] and not rest


def test_an_lmdb_is_read_by_several_threads(photos: Path, tmp_path: Path) -> None:
    options = source_trees.lmdb(photos, tmp_path / "db")
    found = listed("lmdb", **options)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(10):
            listed("lmdb", **options)  # closes the file: the threads meet it closed
            assert list(pool.map(lambda example: read("lmdb", example, **options), found)) == contents(photos)


def test_celebahq_from_an_lmdb(photos: Path, tmp_path: Path) -> None:
    options = {**source_trees.lmdb(photos, tmp_path / "db"), "numbers": [0, 13]}
    found = listed("celebahq", **options)
    assert [example.key for example in found] == [f"{index:05d}" for index in range(14)]
    assert {example.split for example in found} == {"train"}
    assert [read("celebahq", example, **options) for example in found] == contents(photos)


def test_celebahq_arrays_of_the_original_release(photos: Path, tmp_path: Path) -> None:
    pictures = [images.decode(data) for data in contents(photos)]
    for index, picture in enumerate(pictures):
        np.save(tmp_path / f"imgHQ{index:05d}.npy", picture.transpose(2, 0, 1)[None])
    options = {"uri": str(tmp_path), "numbers": [0, 13]}
    found = listed("celebahq", **options)
    assert all((images.decode(read("celebahq", example, **options)) == pictures[index]).all() for index, example in enumerate(found))


def test_an_lmdb_that_is_none(tmp_path: Path) -> None:
    lmdb = pytest.importorskip("lmdb")
    with pytest.raises(BadInput, match=r"no data\.mdb in"):
        listed("lmdb", uri=str(tmp_path))
    with pytest.raises(BadInput, match="on this machine"):
        listed("lmdb", uri="gs://bucket/db")
    write(tmp_path / "broken", {"data.mdb": b"not a database at all" * 1000})
    with pytest.raises(BadInput, match="does not open"):
        listed("lmdb", uri=str(tmp_path / "broken"))
    with lmdb.open(str(tmp_path / "other")) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"some_key", b"x")
    with pytest.raises(BadInput, match="'some_key'") as error:
        listed("lmdb", uri=str(tmp_path / "other"))
    assert "hr_128_00001" in error.value.allowed


# --- parquet


def test_parquet_rows_labels_and_splits(photos: Path, place: str, tmp_path: Path) -> None:
    source_trees.parquet(photos, tmp_path / "tree")
    put(place, {f"data/{path.name}": path.read_bytes() for path in (tmp_path / "tree" / "data").iterdir()})
    found = listed("parquet", uri=place)
    assert [example.split for example in found] == ["test"] * 4 + ["train"] * 10
    assert [example.label for example in found] == [*range(4), *range(6), *range(4)]
    data = contents(photos)
    assert [read("parquet", example, uri=place) for example in found] == data[10:] + data[:10]
    assert len(listed("parquet", uri=f"{place}/**/train-*.parquet")) == 10
    assert {example.label for example in listed("parquet", uri=place, label="")} == {None}


def test_parquet_of_plain_bytes_and_rows_without_them(photos: Path, tmp_path: Path) -> None:
    data = contents(photos)
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    rows = [{"bytes": data[0], "path": None}, {"bytes": None, "path": "b.png"}, None]
    write(tmp_path, {})
    pyarrow.parquet.write_table(pyarrow.table({"image": pyarrow.array(rows, image), "label": [0, 1, -1]}), tmp_path / "a.parquet")
    assert refused("parquet", uri=str(tmp_path / "a.parquet")) == {"a/00000001": "no bytes in the row", "a/00000002": "negative label"}
    pyarrow.parquet.write_table(pyarrow.table({"picture": data[:2], "author": ["A", "B"], "label": ["x", "y"]}), tmp_path / "b.parquet")
    uri = str(tmp_path / "b.parquet")
    found = listed("parquet", uri=uri, image="picture", label=None, attributes=["author"])
    assert [(read("parquet", example, uri=uri, image="picture"), example.attributes) for example in found] == [
        (data[0], {"author": "A"}),
        (data[1], {"author": "B"}),
    ]
    for options, message in (
        ({}, "with columns picture, author, label"),
        ({"image": "picture"}, "column label of string"),
        ({"image": "picture", "label": "", "attributes": ["title"]}, "no column title"),
    ):
        with pytest.raises(BadInput, match=message):
            listed("parquet", uri=uri, **options)
    (tmp_path / "b.parquet").write_bytes((tmp_path / "b.parquet").read_bytes()[:-20])
    with pytest.raises(BadInput, match="is no whole parquet file"):
        listed("parquet", uri=uri)


# --- stacks


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.dtype(">u2")])
@pytest.mark.parametrize(
    ("axes", "shape"), [("NHWC", (3, 8, 10, 4)), ("NCHW", (3, 4, 8, 10)), ("NHW", (3, 8, 10)), ("HWC", (8, 10, 4)), (None, (8, 10))]
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_numpy_slices_are_exact(place: str, tmp_path: Path, dtype: Any, axes: Any, shape: Any, order: Any) -> None:
    array = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, endpoint=True).astype(dtype, order=order)
    np.save(tmp_path / "a.npy", array)
    np.savez_compressed(tmp_path / "b.npz", one=array)
    put(place, {name: (tmp_path / name).read_bytes() for name in ("a.npy", "b.npz")})
    slices = array if axes and axes[0] == "N" else array[None]
    expected = slices[..., None] if slices.ndim == 3 else slices.transpose(0, 2, 3, 1) if axes == "NCHW" else slices
    found = listed("stack", uri=place, axes=axes)
    assert len(found) == 2 * len(expected)
    channels, bits = expected.shape[-1], 8 * expected.dtype.itemsize
    for index, example in enumerate(found):
        data = read("stack", example, uri=place, axes=axes)
        assert (images.decode(data, channels=channels, bits=bits) == expected[index % len(expected)]).all()


def test_arrays_that_hold_no_images(tmp_path: Path) -> None:
    picture = np.zeros((1, 20, 20, 3), np.uint8)
    np.save(tmp_path / "float.npy", np.zeros((2, 8, 8), np.float32))
    np.save(tmp_path / "five.npy", np.zeros((1, 1, 1, 1, 1), np.uint8))
    np.save(tmp_path / "pickle.npy", np.array([{}], object), allow_pickle=True)
    np.savez(tmp_path / "mixed.npz", good=picture, bad=np.zeros(3, np.uint8))
    write(tmp_path, {"text.npy": b"text", "text.tif": b"text", "text.npz": b"text"})
    np.save(tmp_path / "cut.npy", np.concatenate([picture, picture]))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-1])
    assert refused("stack", uri=str(tmp_path)) == {
        "float.npy": "unsupported mode",
        "five.npy": "unsupported shape",
        "pickle.npy": "pickled objects",
        "mixed.npz/bad": "unsupported shape",
        "text.npy": "corrupt",
        "text.npz": "corrupt",
        "text.tif": "not an image",
        "cut/000001": "truncated",
    }


@pytest.mark.parametrize(
    "options", [{}, {"compression": "tiff_lzw"}, {"compression": "tiff_deflate"}, {"compression": "packbits"}, {"big_tiff": True}]
)
@pytest.mark.parametrize("kind", ["colour", "grey", "grey 16"])
def test_tiff_pages_are_exact(place: str, options: Any, kind: str) -> None:
    shape = (3, 30, 41, 3) if kind == "colour" else (3, 30, 41)
    pages = (
        np.random.default_rng(0)
        .integers(0, 65536 if kind == "grey 16" else 256, shape)
        .astype(np.uint16 if kind == "grey 16" else np.uint8)
    )
    uri = put(place, {"a.tif": tiff_bytes(pages, **options)})
    found = listed("stack", uri=uri)
    assert [example.key for example in found] == ["a/000000", "a/000001", "a/000002"]
    for page, example in zip(pages, found, strict=True):
        data = read("stack", example, uri=uri)
        assert images.header(data).frames == 1
        decoded = images.decode(data, channels=3 if kind == "colour" else 1, bits=16 if kind == "grey 16" else 8)
        assert (decoded.reshape(page.shape) == page).all()


@pytest.mark.filterwarnings("ignore")  # Pillow warns of most of them
def test_damaged_tiffs_are_refused_and_end(tmp_path: Path) -> None:
    """Any byte of the directories may be wrong: no crash, no endless ring, and every input is accounted for."""
    whole = tiff_bytes(np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8))
    generator = np.random.default_rng(1)
    for case in range(150):
        data = bytearray(whole)
        for at in generator.integers(0, len(data), 3):
            data[at] = generator.integers(0, 256)
        (tmp_path / "a.tif").write_bytes(bytes(data[: len(data) if case % 2 else int(generator.integers(8, len(data)))]))
        found = listed("stack", uri=str(tmp_path / "a.tif"))
        assert found
        for example in found:
            try:
                if not example.reason:
                    images.decode(read("stack", example, uri=str(tmp_path / "a.tif")))
            except BadImage as error:
                assert error.reason
