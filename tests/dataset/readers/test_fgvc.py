"""Readers: official counts on the real lists, every layout in small, and a clear word for each defect."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image
from scipy.io import savemat

from dcal.config import register
from dcal.dataset.files import common_folder, name_below
from dcal.dataset.readers import fgvc, fgvc_mat
from dcal.dataset.record import Catalog, DataError, Part
from dcal.utils.errors import UserError
from dcal.utils.paths import config_dir


def counts(catalog: Catalog) -> dict[str, int]:
    return {split: len(records) for split, records in catalog.splits.items()}


def check(catalog: Catalog) -> None:
    """Labels are contiguous, every class is trained on, and no image is listed twice."""
    labels = {record.label for record in catalog.splits["train"]}
    assert labels == set(range(catalog.num_classes))
    records = [record for records in catalog.splits.values() for record in records]
    assert {record.label for record in records} == labels
    assert len({record.path for record in records}) == len(records)


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)


class TestRealLists:
    def test_cub(self, data_root: Path) -> None:
        catalog = fgvc.read_cub(data_root / "annotations" / "CUB_200_2011")
        check(catalog)
        assert counts(catalog) == catalog.protocol["official_images"] == {"train": 5994, "test": 5794}
        assert catalog.num_classes == 200
        assert catalog.class_names[0] == "001.Black_footed_Albatross"
        first = catalog.splits["test"][0]
        assert first.path.parts[-2:] == ("001.Black_footed_Albatross", "Black_Footed_Albatross_0046_18.jpg")
        assert first.box == (60.0, 27.0, 325.0, 304.0)
        assert Part("beak", 312.0, 182.0) in first.parts
        assert all(0 < len(record.parts) <= 15 for record in catalog.splits["train"])

    def test_subsets_of_cub(self, data_root: Path) -> None:
        # cub10: lists of all 11 788 images beside an images.txt of 543; cub100: half the species, no parts
        ten = fgvc.read_cub(data_root / "cub10")
        hundred = fgvc.read_cub(data_root / "cub100" / "CUB_200_2011")
        for catalog in (ten, hundred):
            check(catalog)
            assert all(record.path.is_file() for record in catalog.splits["train"])
        assert (counts(ten), ten.num_classes) == ({"train": 300, "test": 243}, 10)
        assert (counts(hundred), hundred.num_classes) == ({"train": 2999, "test": 2903}, 100)
        for record in ten.splits["test"]:
            width, height = Image.open(record.path).size
            assert record.box is not None
            assert all(0 <= part.x <= width and 0 <= part.y <= height for part in record.parts)
            assert record.box[0] + record.box[2] <= width + 1 and record.box[1] + record.box[3] <= height + 1

    def test_a_swapped_split_is_noticed(self, data_root: Path, tmp_path: Path) -> None:
        source = data_root / "cub100" / "CUB_200_2011"
        for file in source.glob("*.txt"):
            text = file.read_text()
            if file.name == "train_test_split.txt":
                text = text.replace(" 0\n", " x\n").replace(" 1\n", " 0\n").replace(" x\n", " 1\n")
            (tmp_path / file.name).write_text(text)
        with pytest.raises(DataError, match=r"train_test_split\.txt.*swapped"):
            fgvc.read_cub(tmp_path)

    def test_cars(self, data_root: Path, caplog: pytest.LogCaptureFixture) -> None:
        catalog = fgvc_mat.read_cars(data_root / "annotations" / "stanford_cars")
        check(catalog)
        assert counts(catalog) == {"train": 8144}
        assert "cars_test_annos_withlabels.mat" in caplog.text
        assert catalog.class_names[13] == "Audi TTS Coupe 2012"
        assert catalog.splits["train"][0].box == (38.0, 115.0, 531.0, 260.0)
        assert catalog.splits["train"][0].label == 13

    def test_aircraft(self, data_root: Path) -> None:
        root = data_root / "annotations" / "fgvc-aircraft-2013b"
        catalog = fgvc.read_aircraft(root)
        check(catalog)
        assert counts(catalog) == catalog.protocol["official_images"] == {"train": 6667, "test": 3333}
        assert catalog.num_classes == 100
        split = fgvc.read_aircraft(root, official_val=True)
        check(split)
        assert counts(split) == split.protocol["official_images"] == {"train": 3334, "val": 3333, "test": 3333}


@pytest.fixture
def cub(tmp_path: Path) -> Path:
    """A copy with two of three species present, ids that start at 5, and a box and parts for one image."""
    root = tmp_path / "CUB_200_2011"
    (root / "parts").mkdir(parents=True)
    rows = {
        "images.txt": "5 003.C/c 1.jpg\n6 003.C/c2.jpg\n7 001.A/a1.jpg\n8 001.A/a2.jpg",
        "classes.txt": "1 001.A\n2 002.B\n3 003.C",
        "image_class_labels.txt": "5 3\n6 3\n7 1\n8 1\n9 2\n10 2",
        "train_test_split.txt": "5 1\n6 0\n7 0\n8 1\n9 1",
        "bounding_boxes.txt": "5 1.0 2.0 3.0 4.5",
        "parts/parts.txt": "1 beak\n2 left wing",
        "parts/part_locs.txt": "5 1 10.0 11.5 1\n5 2 0.0 0.0 0\n99 1 1.0 1.0 1",
    }
    for name, text in rows.items():
        (root / name).write_text(text + "\n")
    return root


def test_cub_is_joined_by_id(cub: Path) -> None:
    catalog = fgvc.read_cub(cub)
    check(catalog)
    assert catalog.class_names == ["001.A", "003.C"]
    assert [(r.path.name, r.label) for r in catalog.splits["train"]] == [("c 1.jpg", 1), ("a2.jpg", 0)]
    assert [(r.path.name, r.label) for r in catalog.splits["test"]] == [("c2.jpg", 1), ("a1.jpg", 0)]
    assert catalog.splits["train"][0].box == (1.0, 2.0, 3.0, 4.5)
    assert catalog.splits["train"][0].parts == (Part("beak", 10.0, 11.5),)
    assert fgvc.read_cub(cub.parent).splits == catalog.splits  # the folder above does as well


def test_cub_in_other_notation_reads_the_same(cub: Path) -> None:
    expected = fgvc.read_cub(cub)
    for file in cub.rglob("*.txt"):  # comma-separated, Windows line ends, byte order mark
        lines = file.read_text().splitlines()
        if file.name in ("images.txt", "classes.txt", "parts.txt"):
            lines = [line.replace(" ", ",", 1) for line in lines]
        else:
            lines = [line.replace(" ", ",") for line in lines]
        file.write_bytes(("\ufeff" + "\r\n".join(lines)).encode())
    assert fgvc.read_cub(cub) == expected


@pytest.mark.parametrize(
    "name", ["images.txt", "classes.txt", "image_class_labels.txt", "train_test_split.txt", "parts/parts.txt"]
)
def test_cub_without_a_text_file_is_refused(cub: Path, name: str) -> None:
    (cub / name).unlink()
    with pytest.raises(DataError, match=name):
        fgvc.read_cub(cub)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("images.txt", "7 001.A/a1.jpg", "5 001.A/a1.jpg", r"images\.txt: line 3 .* repeats an id"),
        ("images.txt", "7 001.A/a1.jpg", "7", r"images\.txt: line 3 \('7'\) has no value"),
        ("images.txt", "7 ", "70 ", r"image_class_labels\.txt: has no entry for image 70"),
        ("train_test_split.txt", "7 0\n", "", r"train_test_split\.txt: has no entry for image 7"),
        ("train_test_split.txt", "7 0", "7 2", r"image 7 has '2'"),
        ("image_class_labels.txt", "7 1\n8 1", "7 0\n8 0", "class '0'.*list of classes"),
        ("image_class_labels.txt", "5 3\n6 3", "5 2\n6 2", r"003\.C/c 1\.jpg into class '002\.B'; do images"),
        ("image_class_labels.txt", "8 1", "8 3", r"001\.A/a2\.jpg into class '003\.C'"),
        ("train_test_split.txt", "8 1", "8 0", "class '1' has images in other splits, but none in 'train'"),
        ("bounding_boxes.txt", "4.5", "", r"bounding_boxes\.txt: image 5.*four numbers"),
        ("parts/part_locs.txt", "5 2 0.0", "5 3 0.0 1.0 1\n5 2 0.0", r"part_locs\.txt: line 2"),
        ("parts/part_locs.txt", "5 1 10.0 11.5 1", "5 7 10.0 11.5 1", r"part_locs\.txt: line 1"),
    ],
)
def test_defects_of_cub_are_named(cub: Path, name: str, old: str, new: str, message: str) -> None:
    text = (cub / name).read_text()
    assert old in text
    (cub / name).write_text(text.replace(old, new))
    with pytest.raises(DataError, match=message):
        fgvc.read_cub(cub)


READERS = [
    fgvc.read_cub, fgvc.read_nabirds, fgvc.read_aircraft, fgvc.read_image_folder, fgvc.read_csv,
    fgvc_mat.read_cars, fgvc_mat.read_dogs, fgvc_mat.read_flowers, fgvc_mat.read_pets,
]  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
def test_a_wrong_root_is_named(reader: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dataset\.root is not set"):
        reader(None)
    for root in (tmp_path / "missing", tmp_path):
        with pytest.raises(DataError, match=rf"dataset\.root={root}"):
            reader(root)


def test_nabirds(cub: Path) -> None:
    (cub / "hierarchy.txt").write_text("1 20\n2 20\n3 21\n20 0\n21 0\n")
    (cub / "classes.txt").write_text("0 Birds\n1 A a\n2 B\n3 C\n20 Ducks\n21 Owls and kin\n")
    assert fgvc.read_nabirds(cub).class_names == ["A a", "C"]
    assert fgvc.read_nabirds(cub, level=1).class_names == ["Ducks", "Owls and kin"]
    assert fgvc.read_nabirds(cub, level=5).class_names == ["A a", "C"]
    with pytest.raises(UserError, match=r"dataset\.reader\.level=0"):
        fgvc.read_nabirds(cub, level=0)


def test_aircraft(tmp_path: Path) -> None:
    lists = {
        "train": "01 707\n",
        "val": "2 DC 3\n",
        "trainval": "01 707\n2 DC 3\n",
        "test": "3 DC 3\n4 707\n",
    }
    (tmp_path / "data").mkdir()
    for part, text in lists.items():
        (tmp_path / "data" / f"images_family_{part}.txt").write_text(text)
    (tmp_path / "data" / "images_box.txt").write_text("3 1 2 10 20\n")
    catalog = fgvc.read_aircraft(tmp_path, level="family")
    check(catalog)
    assert catalog.class_names == ["707", "DC 3"]
    assert catalog.splits["train"][0].path == tmp_path / "data" / "images" / "01.jpg"
    assert catalog.splits["test"][0].box == (0.0, 1.0, 10.0, 19.0)
    with pytest.raises(DataError, match="class 'DC 3' has images in other splits"):
        fgvc.read_aircraft(tmp_path, level="family", official_val=True)
    with pytest.raises(UserError, match=r"dataset\.reader\.level='make': choose one of variant, family"):
        fgvc.read_aircraft(tmp_path, level="make")


def test_image_folder(tmp_path: Path) -> None:
    for name in ("train/b/2.jpg", "train/b/deep/1.PNG", "train/a/x.jpeg", "val/a/y.jpg", "test/b/z.webp"):
        picture(tmp_path / name)
    (tmp_path / "train" / "a" / "Thumbs.db").touch()
    (tmp_path / "train" / "notes.txt").touch()
    for hidden in ("train/.ipynb_checkpoints/1.jpg", "train/a/.ipynb_checkpoints/2.jpg", "train/a/._x.jpeg"):
        picture(tmp_path / hidden)
    catalog = fgvc.read_image_folder(tmp_path)
    check(catalog)
    assert catalog.class_names == ["a", "b"]
    assert [(r.path.name, r.label) for r in catalog.splits["train"]] == [
        ("x.jpeg", 0),
        ("2.jpg", 1),
        ("1.PNG", 1),
    ]
    assert counts(catalog) == {"train": 3, "val": 1, "test": 1}
    shutil.rmtree(tmp_path / "test")
    assert counts(fgvc.read_image_folder(tmp_path)) == {"train": 3, "test": 1}
    picture(tmp_path / "val" / "c" / "new.jpg")
    with pytest.raises(DataError, match="class 'c' has images in other splits"):
        fgvc.read_image_folder(tmp_path)
    shutil.rmtree(tmp_path / "val")
    with pytest.raises(DataError, match=r"expected images in train/<class>/.*found some in train"):
        fgvc.read_image_folder(tmp_path)


def test_one_class_is_none(tmp_path: Path) -> None:
    for split in ("train", "test"):
        picture(tmp_path / split / "photos" / "1.jpg")
    with pytest.raises(DataError, match="one class, 'photos': there is nothing to tell apart"):
        fgvc.read_image_folder(tmp_path)


def write_csv(file: Path, *rows: tuple[str, ...]) -> Path:
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    return file


def test_csv(tmp_path: Path) -> None:
    rows = [("10", "train"), ("9", "train"), ("9", "val"), ("10", "test")]
    body = [(",", label, f"i/{n}.jpg", split) for n, (label, split) in enumerate(rows)]
    table = [("extra", "label", "path", "split"), *body]
    file = write_csv(tmp_path / "my.csv", *table)
    catalog = fgvc.read_csv(file)
    check(catalog)
    assert catalog.class_names == ["9", "10"]  # numbers in their own order
    assert catalog.splits["train"][0].path == tmp_path / "i" / "0.jpg"
    assert catalog.splits["val"][0].label == 0
    assert fgvc.read_csv(tmp_path) == catalog
    write_csv(tmp_path / "second.csv", *table)
    with pytest.raises(DataError, match="exactly one"):
        fgvc.read_csv(tmp_path)


def test_a_csv_may_name_images_below_its_folder_and_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [("path", "label", "split"), ("i/1.jpg", "a", "train"), ("i/2.jpg", "b", "train")]
    (tmp_path / "set").mkdir()
    write_csv(tmp_path / "set" / "my.csv", *rows, (str(tmp_path / "other" / "3.jpg"), "a", "test"))
    paths = [record.path for records in fgvc.read_csv("set").splits.values() for record in records]
    folder = common_folder(paths)
    assert folder == tmp_path
    assert [name_below(folder, path) for path in paths] == ["set/i/1.jpg", "set/i/2.jpg", "other/3.jpg"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("path", "class", "split")], r"my\.csv: column label is missing"),
        ([("path;label;split",)], r"my\.csv: column path, label, split is missing"),
        ([("path", " label", "split"), ("a.jpg", " x", "trian")], "line 2: path 'a.jpg', label 'x', split 'trian'"),
        ([("path", "label", "split"), (), ("a.jpg", "x", "")], "line 3: .*split ''"),
        ([("path", "label", "split"), ("a.jpg", "x", "training")], "2.*split 'training'.*train, val"),
        ([("path", "label", "split"), ("a.jpg", "", "train")], "line 2.*label ''"),
        ([("path", "label", "split"), ("a.jpg", "x", "train")], "no row with split 'test'"),
    ],
)  # fmt: skip
def test_defects_of_csv_are_named(tmp_path: Path, rows: list[tuple[str, ...]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        fgvc.read_csv(write_csv(tmp_path / "my.csv", *rows))


def test_a_table_from_an_old_spreadsheet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "my.csv").write_bytes("path,label,split\na.jpg,Blaumeise männlich,train\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"my\.csv: is no UTF-8 text .*save the table as UTF-8"):
        fgvc.read_csv(tmp_path)


def car(number: int, name: str, **more: Any) -> dict[str, Any]:
    return {"bbox_x1": 1, "bbox_y1": 2, "bbox_x2": 10, "bbox_y2": 20, "class": number, "fname": name, **more}


def test_cars_in_both_layouts(tmp_path: Path) -> None:
    names = ["Audi", "BMW", "Fiat"]
    devkit, single = tmp_path / "a" / "devkit", tmp_path / "b"
    devkit.mkdir(parents=True)
    single.mkdir()
    savemat(devkit / "cars_meta.mat", {"class_names": names})
    savemat(devkit / "cars_train_annos.mat", {"annotations": [car(3, "1.jpg"), car(1, "2.jpg")]})
    savemat(tmp_path / "a" / "cars_test_annos_withlabels.mat", {"annotations": [car(3, "1.jpg")]})
    old = [car(3 - n % 2 * 2, "", relative_im_path=f"car_ims/{n}.jpg", test=int(n == 2)) for n in range(3)]
    savemat(single / "cars_annos.mat", {"annotations": old, "class_names": names})
    catalog, other = fgvc_mat.read_cars(tmp_path / "a"), fgvc_mat.read_cars(single)
    check(catalog)
    check(other)
    assert catalog.class_names == ["Audi", "Fiat"]
    assert catalog.splits["train"][0].path == tmp_path / "a" / "cars_train" / "1.jpg"
    assert catalog.splits["test"][0].path == tmp_path / "a" / "cars_test" / "1.jpg"
    assert catalog.splits["test"][0].box == (0.0, 1.0, 10.0, 19.0)
    assert (other.class_names, counts(other)) == (["Audi", "Fiat"], {"train": 2, "test": 1})
    assert other.splits["test"][0].path == single / "car_ims" / "2.jpg"
    (devkit / "cars_train_annos.mat").write_bytes(b"not a matrix")
    with pytest.raises(DataError, match=r"cars_train_annos\.mat: cannot be read as a MATLAB file"):
        fgvc_mat.read_cars(tmp_path / "a")


def test_dogs_flowers_and_pets(tmp_path: Path) -> None:
    dogs = {"train": ["n02-Pug/n02_1.jpg", "n01-Akita/n01_1.jpg"], "test": ["n01-Akita/n01_2.jpg"]}
    for split, files in dogs.items():
        savemat(tmp_path / f"{split}_list.mat", {"file_list": [[f] for f in files], "labels": [[1]] * len(files)})
    catalog = fgvc_mat.read_dogs(tmp_path)
    check(catalog)
    assert catalog.class_names == ["n01-Akita", "n02-Pug"]
    assert catalog.splits["test"][0].path == tmp_path / "Images" / "n01-Akita" / "n01_2.jpg"

    savemat(tmp_path / "setid.mat", {"trnid": [[2, 1]], "valid": [[3]], "tstid": [[4, 5]]})
    savemat(tmp_path / "imagelabels.mat", {"labels": [[10, 9, 10, 9, 9]]})
    catalog = fgvc_mat.read_flowers(tmp_path)
    check(catalog)
    assert (catalog.class_names, counts(catalog)) == (["9", "10"], {"train": 3, "test": 2})
    assert [(r.path.name, r.label) for r in catalog.splits["train"]][:2] == [
        ("image_00002.jpg", 0), ("image_00001.jpg", 1),
    ]  # fmt: skip
    assert counts(fgvc_mat.read_flowers(tmp_path, official_val=True)) == {"train": 2, "val": 1, "test": 2}

    (tmp_path / "annotations").mkdir()
    lines = "# a comment\nAbyssinian_10 1 1 1\nbasset_hound_1 2 2 1\n"
    (tmp_path / "annotations" / "trainval.txt").write_text(lines)
    (tmp_path / "annotations" / "test.txt").write_text("basset_hound_2 2 2 1\n")
    catalog = fgvc_mat.read_pets(tmp_path)
    check(catalog)
    assert catalog.class_names == ["Abyssinian", "basset_hound"]
    assert catalog.splits["test"][0].path == tmp_path / "images" / "basset_hound_2.jpg"


def test_the_folder_option_makes_batches(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for number in range(4):
            picture(tmp_path / split / "ab"[number % 2] / f"{number}.jpg")
    register()
    overrides = [
        "dataset=image_folder",
        f"dataset.root={tmp_path}",
        "dataset.image_size=[32,24]",
        "dataset.resize=[40,40]",
    ]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = compose("train", overrides)
    data = instantiate(config.dataset)
    (batch,) = list(data.train_loader(4, 1, 0, 0))
    assert batch["image"].shape == (4, 3, 32, 24)
    assert sorted(batch["label"].tolist()) == [0, 0, 1, 1]
