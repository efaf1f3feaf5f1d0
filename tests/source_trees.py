"""A small tree, made of generated photos, for each dataset plug-in: ``BUILD[name](photos, folder)`` gives the plug-in's options."""

import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from sr3_core import images
from sr3_core.data.sources import mvtb as mvtb_source

Options = dict[str, Any]


def contents(photos: Path) -> list[bytes]:
    """The generated photos, PNG files, in order."""
    return [path.read_bytes() for path in sorted(photos.iterdir())]


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def tar_bytes(members: Iterable[tuple[str, bytes]], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def zip_bytes(members: Iterable[tuple[str, bytes]], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


def mvtb(photos: Path, folder: Path) -> Options:
    data = contents(photos)
    names = [name for group in mvtb_source.PHOTOS.values() for name in group]
    others = ["lena.png", "wheres-wally.png", "tomato_14.png", "mosaic/aerial2-001.png", "rocks2-l.png", "58060.png", "seq/im.001.png"]
    return {"uri": str(write(folder, {name: data[index % len(data)] for index, name in enumerate([*names, *others])}))}


def ffhq(photos: Path, folder: Path) -> Options:
    data = contents(photos)
    numbers = [*range(59_996, 60_004)]
    write(folder, {f"images1024x1024/{number // 1000 * 1000:05d}/{number:05d}.png": data[number % 14] for number in numbers})
    return {"uri": str(folder), "numbers": [59_996, 60_003]}


def celebahq(photos: Path, folder: Path) -> Options:
    data = contents(photos)
    write(folder, {f"data1024x1024/{number:05d}.jpg": data[number % 14] for number in range(26_996, 27_004)})
    write(folder, {f"data128x128/{number:05d}.jpg": data[0] for number in range(26_996, 27_004)})
    return {"uri": str(folder), "numbers": [26_996, 27_003]}


def celeba_aligned(photos: Path, folder: Path) -> Options:
    write(folder, {f"img_align_celeba/{index:06d}.jpg": data for index, data in enumerate(contents(photos), 1)})
    lines = [f"{index:06d}.jpg {0 if index < 10 else 1 if index < 12 else 2}" for index in range(1, 15)]
    people = [f"{index:06d}.jpg {2880 + index // 2}" for index in range(1, 15)]
    (folder / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")
    (folder / "identity_CelebA.txt").write_text("\n".join(people) + "\n")
    return {"uri": str(folder)}


def div2k(photos: Path, folder: Path) -> Options:
    data = contents(photos)
    write(folder, {f"DIV2K_train_HR/{number:04d}.png": data[number - 797] for number in range(797, 801)})
    write(folder, {f"DIV2K_valid_HR/{number:04d}.png": data[number - 797] for number in range(801, 804)})
    return {"uri": str(folder), "numbers": [797, 803]}


def flickr2k(photos: Path, folder: Path) -> Options:
    data = contents(photos)
    write(folder, {f"Flickr2K/Flickr2K_HR/{number:06d}.png": data[number - 992] for number in range(998, 1004)})
    return {"uri": str(folder), "numbers": [998, 1003]}


def df2k(photos: Path, folder: Path) -> Options:
    first, second = div2k(photos, folder), flickr2k(photos, folder)
    return {"uri": str(folder), "div2k_numbers": first["numbers"], "flickr2k_numbers": second["numbers"]}


def imagenet(photos: Path, folder: Path) -> Options:
    data = contents(photos)
    for index, name in enumerate(("n01440764", "n01443537", "n02099601")):
        write(folder, {f"train/{name}/{name}_{number}.JPEG": data[3 * index + number] for number in range(3)})
    write(folder, {f"val/ILSVRC2012_val_{number:08d}.JPEG": data[9 + number] for number in range(1, 4)})
    rows = ["ImageId,PredictionString", "ILSVRC2012_val_00000001,n02099601 1 2 3 4", "ILSVRC2012_val_00000002,n01440764 1 2 3 4"]
    (folder / "LOC_val_solution.csv").write_text("\n".join([*rows, "ILSVRC2012_val_00000003,n01443537 1 2 3 4 n01443537 5 6 7 8"]))
    return {"uri": str(folder)}


def lmdb(photos: Path, folder: Path) -> Options:
    library = pytest.importorskip("lmdb", reason="the package lmdb is optional")
    with library.open(str(folder), map_size=2**24) as environment, environment.begin(write=True) as transaction:
        for index, data in enumerate(contents(photos)):
            for name in ("lr_16", "hr_128", "sr_16_128"):
                transaction.put(f"{name}_{index:05d}".encode(), data if name == "hr_128" else b"made anew")
        transaction.put(b"length", b"14")
    return {"uri": str(folder)}


def webdataset(photos: Path, folder: Path) -> Options:
    data = contents(photos)
    for shard, split in enumerate(("train-000000", "train-000001", "val-000000")):
        samples = []
        for index in range(3):
            key = f"{3 * shard + index:06d}"
            samples += [(f"{key}.png", data[3 * shard + index]), (f"{key}.cls", str(index).encode())]
            samples.append((f"{key}.json", json.dumps({"caption": f"photo {key}"}).encode()))
        write(folder, {f"{split}.tar": tar_bytes(samples)})
    return {"uri": str(folder), "attributes": ["caption"]}


def archive(photos: Path, folder: Path) -> Options:
    data = contents(photos)
    members = [(f"{'train' if index < 8 else 'test'}/photo {index}.png", item) for index, item in enumerate(data)]
    write(
        folder,
        {"first.zip": zip_bytes(members[:5]), "second.tar": tar_bytes(members[5:10]), "third.tar.gz": tar_bytes(members[10:], "w:gz")},
    )
    return {"uri": str(folder)}


def parquet(photos: Path, folder: Path) -> Options:
    data = contents(photos)
    (folder / "data").mkdir(parents=True)
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    for name, part in (("train-00000-of-00002", data[:6]), ("train-00001-of-00002", data[6:10]), ("test-00000-of-00001", data[10:])):
        rows = [{"bytes": item, "path": f"{index}.png"} for index, item in enumerate(part)]
        table = pyarrow.table({"image": pyarrow.array(rows, image), "label": pyarrow.array(range(len(part)), pyarrow.int64())})
        pyarrow.parquet.write_table(table, folder / "data" / f"{name}.parquet", row_group_size=4)
    return {"uri": str(folder)}


def stack(photos: Path, folder: Path) -> Options:
    arrays = np.stack([images.decode(item) for item in contents(photos)])
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "first.npy", arrays[:6])
    np.savez_compressed(folder / "second.npz", left=arrays[6:8], right=arrays[8:10])
    write(folder, {"third.tif": tiff_bytes(arrays[10:])})
    return {"uri": str(folder)}


def tiff_bytes(pages: Iterable[np.ndarray[Any, Any]], **options: Any) -> bytes:
    """A TIFF file of (H, W, 3) uint8, (H, W) uint8 or (H, W) uint16 pages, by Pillow."""
    from PIL import Image

    first, *rest = (Image.fromarray(page) for page in pages)
    buffer = io.BytesIO()
    first.save(buffer, "TIFF", save_all=True, append_images=rest, **options)
    return buffer.getvalue()


BUILD: dict[str, Callable[[Path, Path], Options]] = {
    "folder": lambda photos, folder: {"uri": str(photos)},
    "sample_photos": lambda photos, folder: {},
    **{function.__name__: function for function in (
        mvtb, ffhq, celebahq, celeba_aligned, div2k, flickr2k, df2k, imagenet, lmdb, webdataset, archive, parquet, stack,
    )},
}  # fmt: skip
