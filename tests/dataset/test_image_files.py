"""What `images=` names, and streaming over it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from PIL import Image

from dcal.dataset.image_files import find_images, image_loader, numbers_in
from dcal.dataset.record import DataError, Record
from dcal.utils.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """a.jpg, b.PNG, deep/er/c_c2.jpg, odd[1].jpg, and what is no image."""
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for number, name in enumerate(("a.jpg", "b.PNG", "deep/er/c_c2.jpg", "odd[1].jpg")):
        Image.new("RGB", (40 + number, 30), (60 * number, 0, 0)).save(tmp_path / name)
    (tmp_path / "Thumbs.db").write_bytes(b"no image")
    (tmp_path / "._a.jpg").write_bytes(b"of a Mac")
    return tmp_path


def names(folder: Path, spec: object) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in find_images(spec)]  # type: ignore[arg-type]


def test_folder_glob_list_and_several(folder: Path) -> None:
    everything = ["a.jpg", "b.PNG", "deep/er/c_c2.jpg", "odd[1].jpg"]
    assert names(folder, folder) == everything
    assert names(folder, str(folder / "*.jpg")) == ["a.jpg", "odd[1].jpg"]
    assert names(folder, str(folder / "**" / "*.jpg")) == ["a.jpg", "deep/er/c_c2.jpg", "odd[1].jpg"]
    assert names(folder, folder / "odd[1].jpg") == ["odd[1].jpg"]
    assert names(folder, [folder / "b.PNG", folder / "*.jpg", folder / "a.jpg"]) == ["a.jpg", "b.PNG", "odd[1].jpg"]
    assert names(folder, folder / "Thumbs.db") == ["Thumbs.db"]  # as said: whether it is one, the decoder knows
    (folder / "list.txt").write_text(f"\ufeffdeep/er/c_c2.jpg\n\n{folder / 'a.jpg'}\nmissing.jpg\n", encoding="utf-8")
    assert names(folder, folder / "list.txt") == ["a.jpg", "deep/er/c_c2.jpg", "missing.jpg"]


def test_links_to_folders_are_followed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "link").symlink_to(folder)
    assert len(find_images(other)) == 4


def test_links_in_circles_end(folder: Path) -> None:
    for name in ("self", "again"):
        (folder / "deep" / name).symlink_to(".")
        (folder / "deep" / "er" / name).symlink_to(folder)
    everything = ["a.jpg", "b.PNG", "deep/er/c_c2.jpg", "odd[1].jpg"]
    assert names(folder, folder) == everything
    assert names(folder, f"{folder}/**/*.jpg") == ["a.jpg", "deep/er/c_c2.jpg", "odd[1].jpg"]
    assert names(folder, f"{folder}/**") == ["Thumbs.db", *everything]
    assert names(folder, f"{folder}/**/er/*.jpg") == ["deep/er/c_c2.jpg"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nothing.jpg", "images=.*nothing.jpg: no such file or folder; give an image, a folder"),
        ("*.tiff", r"images=.*\*.tiff: matches no file"),
        ("empty", "images=.*empty: no image below this folder"),
        ("empty.txt", "images=.*empty.txt: lists no path"),
        ("binary.txt", "images=.*binary.txt: cannot be read as a list"),
    ],
)
def test_nothing_found_is_one_clear_error(folder: Path, spec: str, message: str) -> None:
    (folder / "empty").mkdir()
    (folder / "empty.txt").touch()
    (folder / "binary.txt").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(DataError, match=message):
        find_images(folder / spec)
    with pytest.raises(DataError, match="images is empty"):
        find_images([])


def test_loader_goes_on_without_damaged_files(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = [folder / "missing.jpg", *find_images(folder), folder / "Thumbs.db"]
    loader = image_loader(paths, (16, 8), (20, 10), batch_size=2)
    with caplog.at_level(logging.WARNING):
        batches = list(loader)
    assert torch.cat([batch["index"] for batch in batches]).tolist() == [1, 2, 3, 4]
    assert batches[0]["image"].shape == (1, 3, 16, 8)
    assert list(loader.skipped) == [str(folder / "missing.jpg"), str(folder / "Thumbs.db")]
    assert "Thumbs.db: is no image" in caplog.messages[1]
    assert "on_bad_image" not in caplog.text  # no remedy that a command on loose images does not have
    with pytest.raises(DataError, match=r"Thumbs.db: is no image.*all the others"):
        list(image_loader([folder / "Thumbs.db"], (16, 8), (20, 10), batch_size=2))
    (batch,) = image_loader([Record(folder / "a.jpg", 3, camera=5)], (16, 8), (20, 10), batch_size=2)
    assert (batch["label"].tolist(), batch["camera"].tolist()) == ([3], [5])


def test_numbers_in_names() -> None:
    paths = [Path("x_c9/0002_c1s1_000451_03.jpg"), Path("x_c9/-1_c3s2_1.jpg"), Path("x_c9/other.jpg")]
    assert numbers_in(paths, r"_c(\d+)", "camera") == [1, 3, -1]
    assert numbers_in(paths, r"^(-?\d+)_", "identity") == [2, -1, -1]
    assert numbers_in(paths, r"_c(\d+)/", "camera") == [9, 9, 9]
    for pattern, message in (
        ("(", "no regular expression"),
        (r"_c\d", "needs one group"),
        (r"_k(\d)", "found in none of 3 paths, e.g. not in x_c9/0002"),
        (r"_c(\w+)_", "must hold a number"),
    ):
        with pytest.raises(UserError, match=rf"^camera=.*{message}"):
            numbers_in(paths, pattern, "camera")
