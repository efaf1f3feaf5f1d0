"""Published data sets in their own layouts: splits, labels, groups, what is missing and what does not belong, and the errors."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sr3_core import config, plugins
from sr3_core.config import Data
from sr3_core.data import shards
from sr3_core.data.sources._base import Example
from sr3_core.errors import BadInput
from tests import source_trees
from tests.source_trees import contents, write


def build(name: str, photos: Path, tree: Path, **changes: Any) -> tuple[Any, Any]:
    """The plug-in and its options for the small tree, with some options changed."""
    module = plugins.load("data.sources", name)
    return module, config.options(module.Options, {**source_trees.BUILD[name](photos, tree), **changes}, "data")


def examples(name: str, photos: Path, tree: Path, **changes: Any) -> list[Example]:
    module, options = build(name, photos, tree, **changes)
    return list(module.examples(options))


def splits(found: list[Example]) -> dict[str, str | None]:
    return {example.key: example.split for example in found}


def reasons(found: list[Example]) -> dict[str, str]:
    return {example.key: example.reason for example in found if example.reason}


# --- by number


@pytest.mark.parametrize("held_out", ["val", "test"])
def test_ffhq_has_60000_for_training(photos: Path, tmp_path: Path, held_out: str) -> None:
    found = splits(examples("ffhq", photos, tmp_path, held_out=held_out))
    assert found == {f"{number:05d}": "train" if number < 60_000 else held_out for number in range(59_996, 60_004)}


def test_ffhq_with_its_json(photos: Path, tmp_path: Path) -> None:
    """The split follows the category, not the number; authors are kept; a photo that the JSON lacks is refused."""
    entry = {"image": {"face_landmarks": [[1.0, 2.0]]}, "metadata": {"author": "A", "license": "CC BY 2.0", "photo_url": "http://x/1"}}
    entries = {str(number): {"category": "validation" if number == 59_996 else "training", **entry} for number in range(59_996, 60_003)}
    (tmp_path / "ffhq-dataset-v2.json").write_text(json.dumps(entries))
    found = examples("ffhq", photos, tmp_path, metadata="ffhq-dataset-v2.json")
    assert splits(found)["59996"] == "val" and splits(found)["60002"] == "train"
    assert found[0].attributes == {"author": "A", "licence": "CC BY 2.0", "source": "http://x/1"}
    assert reasons(found) == {"60003": "not in the metadata"}
    with pytest.raises(BadInput, match="no metadata at"):
        examples("ffhq", photos, tmp_path, metadata="other.json")
    (tmp_path / "ffhq-dataset-v2.json").write_text("{")
    with pytest.raises(BadInput, match=r"ffhq-dataset-v2\.json"):
        examples("ffhq", photos, tmp_path, metadata="ffhq-dataset-v2.json")


def test_ffhq_thumbnails_and_flat_folders(photos: Path, tmp_path: Path) -> None:
    module = plugins.load("data.sources", "ffhq")
    for place in ("thumbnails/thumbnails128x128/00000", "flat"):
        write(tmp_path / place, {f"{number:05d}.png": data for number, data in enumerate(contents(photos))})
        options = module.Options(uri=str(tmp_path / place.split("/", maxsplit=1)[0]), numbers=(0, 13))
        assert [example.key for example in module.examples(options)] == [f"{number:05d}" for number in range(14)]


def test_div2k_as_published(photos: Path, tmp_path: Path) -> None:
    expected = {f"{number:04d}": "train" if number <= 800 else "val" for number in range(797, 804)}
    assert splits(examples("div2k", photos, tmp_path)) == expected
    assert splits(examples("div2k", photos, tmp_path / "above" / "DIV2K")) == expected
    module = plugins.load("data.sources", "div2k")
    assert splits(list(module.examples(module.Options(uri=str(tmp_path / "above"), numbers=(797, 803))))) == expected


@pytest.mark.parametrize("name", ["ffhq", "div2k", "flickr2k", "celebahq"])
def test_what_is_missing_and_what_does_not_belong_is_rejected_and_counted(photos: Path, tmp_path: Path, name: str) -> None:
    module, options = build(name, photos, tmp_path / "tree")
    files = sorted(path for path in (tmp_path / "tree").rglob("*") if path.is_file())
    (first, *_) = [path for path in files if "128x128" not in str(path)]
    before = list(module.examples(options))
    first.rename(first.with_name(f"notes{first.suffix}"))
    found = list(module.examples(options))
    assert len(found) == len(before) + 1
    assert list(reasons(found).values()) == ["not in the layout"]
    assert len(module.listing(options).splitlines()) == len(found)
    data = Data.model_validate(
        {"source": name, "options": options.model_dump(mode="json"), "levels": [16], "split": {"minimum": {}}, "max_rejected_share": 0.5}
    )
    made = shards.build(str(tmp_path / "out"), data, found, fingerprint="f")
    assert made.manifest["rejected"] == {"missing": 1, "not in the layout": 1}
    assert made.manifest["accepted"] == len(before) - 1


def test_flickr2k_is_split_as_novwaul_did(photos: Path, tmp_path: Path) -> None:
    found = splits(examples("flickr2k", photos, tmp_path))
    assert found == {f"{number:06d}": "test" if number <= 1000 else "train" for number in range(998, 1004)}
    assert set(splits(examples("flickr2k", photos, tmp_path, test=None)).values()) == {None}
    with_val = splits(examples("flickr2k", photos, tmp_path, test=[1, 998], val=[999, 999]))
    assert Counter(with_val.values()) == {"test": 1, "val": 1, "train": 4}
    module = plugins.load("data.sources", "flickr2k")
    for place in ("Flickr2K", "Flickr2K/Flickr2K_HR"):
        assert splits(list(module.examples(module.Options(uri=str(tmp_path / place), numbers=(998, 1003))))) == found


def test_df2k_is_both(photos: Path, tmp_path: Path) -> None:
    assert Counter(splits(examples("df2k", photos, tmp_path)).values()) == {"train": 4 + 3, "val": 3, "test": 3}
    assert Counter(splits(examples("df2k", photos, tmp_path, flickr2k_test=None)).values()) == {"train": 4 + 6, "val": 3}
    apart = {"uri": "", "div2k": str(tmp_path), "flickr2k": str(tmp_path / "Flickr2K" / "Flickr2K_HR")}
    assert len(examples("df2k", photos, tmp_path, **apart)) == 13


@pytest.mark.parametrize(
    ("name", "option", "numbers"),
    [
        ("div2k", "numbers", [803, 797]),
        ("div2k", "numbers", [0, 5]),
        ("div2k", "numbers", [1, 901]),
        ("ffhq", "numbers", [0, 70_000]),
        ("celebahq", "numbers", [-1, 5]),
        ("celeba_aligned", "numbers", [0, 5]),
        ("flickr2k", "val", [1, 2651]),
        ("df2k", "div2k_numbers", [1, 901]),
        ("df2k", "flickr2k_numbers", [5, 1]),
        ("df2k", "flickr2k_test", [0, 1]),
    ],
)
def test_numbers_out_of_order_or_range(photos: Path, tmp_path: Path, name: str, option: str, numbers: list[int]) -> None:
    with pytest.raises(BadInput, match=rf"data\.options\.{option}: \{numbers} must be \[first, last\] within"):
        examples(name, photos, tmp_path, **{option: numbers})


def test_df2k_needs_a_place_for_both(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no uri, which holds both"):
        examples("df2k", photos, tmp_path, uri="", div2k=str(tmp_path))


@pytest.mark.parametrize("name", ["mvtb", "ffhq", "celebahq", "celeba_aligned", "div2k", "flickr2k", "df2k", "imagenet"])
def test_a_folder_of_another_layout(photos: Path, tmp_path: Path, name: str) -> None:
    """One line: what was found, what the layout is, what to do."""
    write(tmp_path / "other" / "pictures", {"a.png": contents(photos)[0], "b.jpg": contents(photos)[1]})
    module = plugins.load("data.sources", name)
    with pytest.raises(BadInput) as error:
        list(module.examples(module.Options(uri=str(tmp_path / "other"))))
    assert "pictures" in error.value.got or "DIV2K" in error.value.allowed
    assert "\n" not in str(error.value) and error.value.do
    with pytest.raises(BadInput, match="does not exist"):
        module.listing(module.Options(uri=str(tmp_path / "missing")))


# --- by lists


def test_celebahq_takes_the_largest_folder_or_the_named_one(photos: Path, tmp_path: Path) -> None:
    found = examples("celebahq", photos, tmp_path)
    assert all("data1024x1024" in example.uri for example in found)
    assert Counter(splits(found).values()) == {"train": 4, "val": 4}
    assert all("data128x128" in example.uri for example in examples("celebahq", photos, tmp_path, folder="data128x128"))


def test_celebahq_split_as_celeba_or_as_lists(photos: Path, tmp_path: Path) -> None:
    numbers = range(26_996, 27_004)
    mapping = ["idx orig_idx orig_file", *(f"{number} {number + 100} {number + 101:06d}.jpg" for number in numbers)]
    (tmp_path / "CelebA-HQ-to-CelebA-mapping.txt").write_text("\n".join(mapping))
    (tmp_path / "list_eval_partition.txt").write_text("\n".join(f"{number + 101:06d}.jpg {number % 3}" for number in numbers))
    found = splits(examples("celebahq", photos, tmp_path, split="celeba"))
    assert found == {f"{number:05d}": ("train", "val", "test")[number % 3] for number in numbers}

    (tmp_path / "train.txt").write_text("\n".join(f"imgHQ{number:05d}.npy" for number in numbers if number % 2))
    (tmp_path / "held.txt").write_text("\n".join(f"{number:05d}" for number in numbers if number % 4 == 0))
    listed = examples("celebahq", photos, tmp_path, split="lists", lists={"train": "train.txt", "val": "held.txt"})
    assert Counter(splits(listed).values()) == {"train": 4, "val": 2, None: 2}
    assert reasons(listed) == {f"{number:05d}": "not in the lists of the split" for number in numbers if number % 4 == 2}
    with pytest.raises(BadInput, match="in the lists of two splits"):
        examples("celebahq", photos, tmp_path, split="lists", lists={"train": "train.txt", "val": "train.txt"})
    with pytest.raises(BadInput, match="no list at"):
        examples("celebahq", photos, tmp_path, split="lists", lists={"train": "nowhere.txt"})


def test_celeba_partition_and_identities(photos: Path, tmp_path: Path) -> None:
    found = examples("celeba_aligned", photos, tmp_path)
    assert Counter(splits(found).values()) == {"train": 9, "val": 2, "test": 3}
    assert not any("group" in example.attributes for example in found)

    grouped = examples("celeba_aligned", photos, tmp_path, identity="identity_CelebA.txt")
    where: dict[str, set[str | None]] = {}
    for example in grouped:
        if not example.reason:
            where.setdefault(example.attributes["group"], set()).add(example.split)
    assert all(len(parts) == 1 for parts in where.values())
    # by the lists person 2885 has 10 (val) and 11 (val), 2886 has 12 and 13 (test), 2884 has 8 and 9 (train): nobody crosses
    assert reasons(grouped) == {}
    lines = [f"{index:06d}.jpg {0 if index < 11 else 2}" for index in range(1, 15)]
    (tmp_path / "crossing.txt").write_text("\n".join(lines))
    module = plugins.load("data.sources", "celeba_aligned")
    options = module.Options(uri=str(tmp_path), partition="crossing.txt", identity="identity_CelebA.txt")
    assert reasons(list(module.examples(options))) == {"000010": "person of a held-out photo"}


def test_celeba_lists_as_csv_and_what_they_do_not_name(photos: Path, tmp_path: Path) -> None:
    options = source_trees.celeba_aligned(photos, tmp_path)
    rows = ["image_id,partition", *(f"{index:06d}.jpg,{index % 3}" for index in range(2, 16))]
    (tmp_path / "list_eval_partition.csv").write_text("\n".join(rows))
    module = plugins.load("data.sources", "celeba_aligned")
    found = list(module.examples(module.Options(**options, partition="list_eval_partition.csv")))
    assert splits(found)["000003"] == "train" and splits(found)["000004"] == "val" and splits(found)["000005"] == "test"
    assert reasons(found) == {"000001.jpg": "not in the partition list"}
    assert not Path(found[-2].uri).exists()  # 15 is in the list alone: prepare will call it missing
    (tmp_path / "list_eval_partition.csv").write_text("000001.jpg,0\n000002.jpg,7\n")
    with pytest.raises(BadInput, match="line 2 of"):
        list(module.examples(module.Options(**options, partition="list_eval_partition.csv")))


# --- by class


def test_imagenet_labels_are_places_of_sorted_classes(photos: Path, tmp_path: Path) -> None:
    found = {example.key: (example.split, example.label) for example in examples("imagenet", photos, tmp_path)}
    assert found["train/n02099601/n02099601_0"] == ("train", 2)
    assert found["val/ILSVRC2012_val_00000001"] == ("val", 2) and found["val/ILSVRC2012_val_00000003"] == ("val", 1)
    few = examples("imagenet", photos, tmp_path, classes=["n02099601", "n01443537"])
    assert {example.label for example in few} == {0, 1} and len(few) == 8
    with pytest.raises(BadInput, match="no class 'n0'"):
        examples("imagenet", photos, tmp_path, classes=["n0"])


@pytest.mark.parametrize(
    ("files", "options"),
    [
        ({"val.txt": "ILSVRC2012_val_00000001.JPEG 2\nILSVRC2012_val_00000002.JPEG 0\nILSVRC2012_val_00000003.JPEG 1\n"}, {}),
        (
            {"truth.txt": "1\n2\n3\n", "synsets.txt": "n02099601 golden retriever\nn01440764 tench\nn01443537 goldfish\n"},
            {"val_list": "truth.txt", "synsets": "synsets.txt"},
        ),
    ],
)
def test_imagenet_lists(photos: Path, tmp_path: Path, files: dict[str, str], options: dict[str, str]) -> None:
    _, given = build("imagenet", photos, tmp_path)
    (tmp_path / "LOC_val_solution.csv").unlink()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    module = plugins.load("data.sources", "imagenet")
    found = {example.key: example.label for example in module.examples(module.Options(uri=given.uri, **options))}
    assert [found[f"val/ILSVRC2012_val_{number:08d}"] for number in (1, 2, 3)] == [2, 0, 1]


def test_imagenet_devkit_as_it_is_published(photos: Path, tmp_path: Path) -> None:
    """The devkit's own numbers and its meta.mat, written with the fields that it has."""
    io = pytest.importorskip("scipy.io")
    np = pytest.importorskip("numpy")
    _, given = build("imagenet", photos, tmp_path)
    (tmp_path / "LOC_val_solution.csv").unlink()
    data = tmp_path / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n2\n3\n")
    fields = [("ILSVRC2012_ID", float), ("WNID", object), ("num_children", float)]
    rows = [(3, "n01443537", 0), (1, "n02099601", 0), (2, "n01440764", 0), (4, "n00000001", 3)]
    io.savemat(data / "meta.mat", {"synsets": np.array([tuple(row) for row in rows], fields)[:, None]})
    module = plugins.load("data.sources", "imagenet")
    with pytest.raises(BadInput, match="devkit's own class numbers"):
        list(module.examples(given))
    options = module.Options(uri=given.uri, synsets="ILSVRC2012_devkit_t12/data/meta.mat")
    found = {example.key: example.label for example in module.examples(options)}
    assert [found[f"val/ILSVRC2012_val_{number:08d}"] for number in (1, 2, 3)] == [2, 0, 1]


def test_imagenet_val_in_class_folders_and_missing_from_the_list(photos: Path, tmp_path: Path) -> None:
    _, given = build("imagenet", photos, tmp_path / "a")
    module = plugins.load("data.sources", "imagenet")
    (tmp_path / "a" / "val" / "ILSVRC2012_val_00000002.JPEG").unlink()
    found = {example.key: example for example in module.examples(given)}
    assert not Path(found["val/ILSVRC2012_val_00000002"].uri).exists() and found["val/ILSVRC2012_val_00000002"].label == 0
    (tmp_path / "a" / "LOC_val_solution.csv").unlink()
    with pytest.raises(BadInput, match="val photos without classes"):
        list(module.examples(given))
    for path in list((tmp_path / "a" / "val").iterdir()):
        (tmp_path / "a" / "val" / "n01443537").mkdir(exist_ok=True)
        path.rename(tmp_path / "a" / "val" / "n01443537" / path.name)
    assert {example.label for example in module.examples(given) if example.split == "val"} == {1}


# --- a package


def test_mvtb_groups_and_what_is_left_out(photos: Path, tmp_path: Path) -> None:
    found = examples("mvtb", photos, tmp_path)
    assert len(found) == 46
    groups = Counter(example.attributes["group"] for example in found)
    assert groups["mvtb campus"] == 25 and groups["mvtb flowers"] == 9 and groups["mvtb walls"] == groups["mvtb eiffel"] == 2
    assert not [example for example in found if any(word in example.key for word in ("lena", "wally", "tomato", "aerial", "rocks", "seq"))]
    assert all(len({example.split for example in found if example.attributes["group"] == group}) == 1 for group in groups)


def test_mvtb_without_and_with_its_package(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = plugins.load("data.sources", "mvtb")
    monkeypatch.setattr("sys.path", [path for path in __import__("sys").path if not (Path(path) / "mvtbdata").exists()])
    for ask in (lambda: list(module.examples(module.Options())), lambda: module.listing(module.Options())):
        with pytest.raises(BadInput, match="pip install mvtb-data"):
            ask()
    source_trees.mvtb(photos, tmp_path / "mvtbdata" / "images")
    write(tmp_path, {"mvtb_data-1.6.1.dist-info/METADATA": b"Metadata-Version: 2.1\nName: mvtb-data\nVersion: 1.6.1\n"})
    (tmp_path / "mvtbdata" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert len(list(module.examples(module.Options()))) == 46
    assert len(module.listing(module.Options()).splitlines()) == 46
