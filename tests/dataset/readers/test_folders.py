"""Folders as they are in life: links in circles, hidden and dangling files, names in two forms, one flat folder."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from dcal.dataset.checks import check_catalog
from dcal.dataset.files import images_below
from dcal.dataset.readers.fgvc import read_csv, read_image_folder
from dcal.dataset.readers.reid_custom import read_identity_csv, read_identity_folder
from dcal.dataset.record import Catalog, DataError
from dcal.utils.errors import UserError

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


def fill(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode("utf-8", "surrogateescape"))
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return fill(tmp_path, *(f"{s}/{c}/{s}{c}{n}.jpg" for s in ("train", "test") for c in "ab" for n in range(2)))


def sizes(catalog: Catalog) -> dict[str, int]:
    return {split: len(records) for split, records in catalog.splits.items()}


def passed_over(catalog: Catalog) -> str:
    return "\n".join(check_catalog(catalog, None)[0])


def test_a_folder_in_order_needs_no_words(root: Path) -> None:
    assert passed_over(read_image_folder(root)) == ""


@pytest.mark.parametrize("target", [".", "..", "../..", "../b", "../../train", "/"])
def test_links_to_parents_siblings_and_itself_add_no_image(root: Path, target: str) -> None:
    if target == "../../train":  # another split: its images are there, and reported as training images
        (root / "test/a/link").symlink_to(target)
        assert "4 of the 8 images of split 'test' are also training images" in passed_over(read_image_folder(root))
        return
    for name in ("link", "other"):
        (root / "test/a" / name).symlink_to(target)
    catalog = read_image_folder(root)
    assert sizes(catalog) == {"train": 4, "test": 4}
    assert "2 link to a folder that was read before" in passed_over(catalog)


def test_what_is_passed_over_is_counted(root: Path) -> None:
    fill(root, "train/a/.hidden.jpg", "train/a/._b.jpg", "train/b/notes.txt", "train/b/x.heic")
    (root / "train/a/gone.jpg").symlink_to("nowhere")
    os.mkfifo(root / "train/b/pipe.jpg")
    fill(root, "train/loose.jpg", "train/README.txt", "train/.cache/1.jpg")
    (root / "train/moved").symlink_to("nowhere")
    for name in ("loop", "loop.jpg"):  # links to themselves
        (root / "train/b" / name).symlink_to(name)
    catalog = read_image_folder(root)
    assert sizes(catalog) == {"train": 4, "test": 4}
    words = (
        "3 dangling link, 3 hidden, 1 image beside the folders of the classes, 1 no regular file, "
        "1 of no image type (.heic), 1 of no image type (.txt), 1 of no image type (no suffix)"
    )
    assert words in passed_over(catalog)


def test_a_class_that_is_left_without_images_is_named(root: Path) -> None:
    (root / "train/c").mkdir()
    (root / "train/c/1.jpg").symlink_to("nowhere")
    (root / "train/d").mkdir()
    words = passed_over(read_image_folder(root))
    assert "2 folders in" in words and "'c' (1 dangling link), 'd' (empty)" in words


def test_an_unreadable_folder_is_counted(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = os.scandir

    def scandir(path: str | Path) -> object:
        if Path(path).name == "a":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    passed: Counter[str] = Counter()
    assert len(images_below(root / "train", passed)) == 2 and passed == {"unreadable folder": 1}


def test_identities_left_without_images_are_named(tmp_path: Path) -> None:
    root = fill(tmp_path, *(f"p{n}/{n}{k}.jpg" for n in range(4) for k in range(2)))
    (root / "p9").mkdir()
    assert "'p9' (empty)" in passed_over(read_identity_folder(root))


def test_two_unicode_forms_of_a_name_are_one_class(tmp_path: Path) -> None:
    root = fill(tmp_path, f"train/{COMPOSED}/1.jpg", "train/tea/2.jpg", f"test/{DECOMPOSED}/3.jpg")
    catalog = read_image_folder(root)
    assert catalog.class_names == [COMPOSED, "tea"] and [r.label for r in catalog.splits["test"]] == [0]
    fill(root, f"train/{DECOMPOSED}/4.jpg")
    assert sizes(read_image_folder(root)) == {"train": 3, "test": 1}
    table = root / "t.csv"
    rows = [f"train/{COMPOSED}/1.jpg,{COMPOSED},train", "train/tea/2.jpg,tea,train"]
    rows += [f"test/{DECOMPOSED}/3.jpg,{DECOMPOSED},test"]
    table.write_text("\n".join(["path,label,split", *rows]), encoding="utf-8")
    assert read_csv(table).class_names == [COMPOSED, "tea"]


def test_names_that_are_no_utf8_can_be_printed(tmp_path: Path) -> None:
    bad = os.fsdecode(b"z\xff")
    root = fill(tmp_path, f"train/{bad}/1.jpg", "train/b/2.jpg", f"test/{bad}/{bad}.jpg")
    catalog = read_image_folder(root)
    assert catalog.class_names == ["b", "z\\xff"]
    assert catalog.splits["test"][0].path.read_bytes()
    people = fill(tmp_path / "people", *(f"{bad}{n}/{k}{n}.jpg" for n in range(4) for k in range(2)))
    assert all(name.startswith("z\\xff") for name in read_identity_folder(people).class_names)


def test_a_flat_folder_is_split_by_class_and_always_alike(tmp_path: Path) -> None:
    root = fill(
        tmp_path, *(f"{c}/{c}{n}.jpg" for c, count in zip("abc", (10, 20, 2), strict=True) for n in range(count))
    )
    catalog = read_image_folder(root, 0.2)
    assert Counter(r.label for r in catalog.splits["test"]) == {0: 2, 1: 4, 2: 1}
    assert Counter(r.label for r in catalog.splits["train"]) == {0: 8, 1: 16, 2: 1}
    assert catalog.splits == read_image_folder(root, 0.2).splits
    test = {record.path for record in catalog.splits["test"]}
    assert test < {record.path for record in read_image_folder(root, 0.5).splits["test"]}
    assert passed_over(catalog) == ""


def test_a_flat_folder_asks_for_the_fraction_and_others_refuse_it(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds a, b\); if these are the classes, dataset.test_fraction=0.2"):
        read_image_folder(root / "train")
    with pytest.raises(UserError, match=r"dataset.test_fraction=0.2: .* is split already, it has train, test"):
        read_image_folder(root, 0.2)
    with pytest.raises(UserError, match=r"dataset.test_fraction=1.5: must be more than 0"):
        read_image_folder(root / "train", 1.5)
    (root / "train/a/traina0.jpg").unlink()
    with pytest.raises(DataError, match="one image cannot be split"):
        read_image_folder(root / "train", 0.5)


def test_a_table_that_went_through_a_spreadsheet(tmp_path: Path) -> None:
    rows = [("1.0", "3.0", "train"), ("2", "", "train"), ("12.0", "4.0", "query"), ("12", "5", "gallery")]
    rows += [("-1.0", "4", "gallery")]
    names = [f"{number}.jpg" for number in range(len(rows))]
    fill(tmp_path, *names)
    lines = [f"{name} , {one} ,{camera}, {split} " for name, (one, camera, split) in zip(names, rows, strict=True)]
    (tmp_path / "images.csv").write_text("\n".join([" path , id,camera , split", *lines]), encoding="utf-8-sig")
    catalog = read_identity_csv(tmp_path)
    assert [(r.label, r.camera) for r in catalog.splits["gallery"]] == [(12, 5), (-1, 4)]
    assert [(r.label, r.camera) for r in catalog.splits["query"]] == [(12, 4)]
    assert catalog.class_names == ["1", "2"] and catalog.protocol["gallery_junk"] == 1
