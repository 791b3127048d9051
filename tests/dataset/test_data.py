"""Loading: damage is found and named, chance does not depend on workers, a cache only saves time."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from dcal.dataset import cache as cache_module
from dcal.dataset.data import Data, ImageDataset
from dcal.dataset.decode import read_image, rgb_pixels
from dcal.dataset.record import Catalog, DataError, Record
from dcal.dataset.sampler import Draw
from dcal.dataset.transform import eval_transform, train_transform
from dcal.utils.errors import UserError

AUGMENT = {"flip": 0.5, "pad": 2, "erase": 0.5}
SIZES = {"image_size": [24, 16], "resize": [32, 20]}


def pixels(seed: int, height: int = 40, width: int = 50) -> np.ndarray:
    """A smooth random image, as JPEG keeps it."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """Five classes of six training images and two test images."""
    splits: dict[str, list[Record]] = {"train": [], "test": []}
    for number in range(40):
        path = tmp_path / f"{number:02}.jpg"
        Image.fromarray(pixels(number)).save(path)
        splits["train" if number < 30 else "test"].append(Record(path, number % 5, camera=number // 10))
    return Catalog("tiny", splits, list("abcde"))


def make_data(catalog: Catalog, **options: Any) -> Data:
    return Data(catalog, **{**SIZES, "augment": AUGMENT, **options})


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def epoch(data: Data, workers: int = 0, instances: int = 1, number: int = 0) -> list[dict[str, Any]]:
    loader = data.train_loader(4, instances, 7, workers)
    loader.batch_sampler.seek(number)  # type: ignore[union-attr]
    return list(loader)


def same(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) for a, b in zip(one, other, strict=True)
    )


def test_a_batch(catalog: Catalog) -> None:
    batch = epoch(make_data(catalog))[0]
    assert batch.keys() == {"image", "label", "camera", "view", "index"}
    assert batch["image"].shape == (4, 3, 24, 16)
    assert batch["image"].dtype == torch.uint8
    records = [catalog.splits["train"][index] for index in batch["index"]]
    assert batch["label"].tolist() == [record.label for record in records]
    assert batch["camera"].tolist() == [record.camera for record in records]


def test_evaluation_sees_every_image_once_on_any_number_of_ranks(catalog: Catalog) -> None:
    data = make_data(catalog)
    (single,) = list(data.eval_loader("test", 16, 0))
    assert single["index"].tolist() == list(range(10))
    shares = [list(data.eval_loader("test", 3, 0, rank, 3)) for rank in range(3)]
    indices = torch.cat([batch["index"] for batches in shares for batch in batches])
    assert sorted(indices.tolist()) == list(range(10))


@pytest.mark.parametrize("instances", [1, 2])
def test_batches_do_not_depend_on_the_number_of_workers(catalog: Catalog, instances: int) -> None:
    data = make_data(catalog)
    alone = epoch(data, 0, instances)
    assert same(alone, epoch(data, 2, instances))
    assert not same(alone, epoch(data, 0, instances, number=1))


def test_loading_leaves_the_global_generator_alone(catalog: Catalog) -> None:
    data = make_data(catalog)
    before = torch.get_rng_state()
    epoch(data)
    list(data.eval_loader("test", 4, 0))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_a_cache_changes_nothing(catalog: Catalog, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    plain, cached = make_data(catalog), make_data(catalog, cache=kind)
    assert same(epoch(plain), epoch(cached))
    for file in tmp_path.glob("*.jpg"):  # from now on, all there is is in the cache
        size, times = file.stat().st_size, file.stat()
        file.write_bytes(bytes(size))
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert same(epoch(cached, 0), epoch(cached, 2))
    if kind == "disk":
        assert same(epoch(cached), epoch(make_data(catalog, cache=kind)))  # found again


def build(arguments: tuple[list[Path], Path, Path]) -> int:
    """One of several processes that want the same cache; notes each decoded image."""
    paths, folder, log = arguments
    resize = eval_transform([32, 20], [32, 20])

    def load(path: Path) -> np.ndarray:
        with log.open("a") as stream:
            stream.write("x")
        return resize(image=read_image(path))["image"]

    cache = cache_module.PixelCache("disk", paths, load, (32, 20), folder, "full")
    return int(sum(int(cache.get(index).sum()) for index in range(len(paths))))  # type: ignore[union-attr]


def test_a_disk_cache_knows_how_it_was_decoded(catalog: Catalog, tmp_path: Path) -> None:
    train, transform = catalog.splits["train"], eval_transform([10, 12], [10, 12])
    for decode in ("full", "scaled", "full"):
        plain = ImageDataset(train, transform, decode=decode)
        cached = ImageDataset(train, transform, decode=decode, cache="disk", cache_dir=tmp_path)
        assert torch.equal(plain[0]["image"], cached[0]["image"])
    assert len(list(tmp_path.glob("*.npy"))) == 2


def test_two_processes_build_one_disk_cache(catalog: Catalog, tmp_path: Path) -> None:
    paths = [record.path for record in catalog.splits["train"]]
    arguments = (paths, tmp_path / "cache", tmp_path / "log")
    with get_context("fork").Pool(2) as pool:
        sums = pool.map(build, [arguments] * 2, chunksize=1)
    assert sums[0] == sums[1]
    assert len((tmp_path / "log").read_text()) == len(paths)
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 1


def test_a_cache_that_does_not_fit_is_refused(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda _: type("usage", (), {"free": 1000}))
    with pytest.raises(UserError, match=r"dataset\.cache='disk'.*GiB"):
        ImageDataset(catalog.splits["train"], eval_transform(**SIZES), cache="disk", cache_dir=tmp_path)


def test_memory_for_all_splits_and_processes_is_looked_for_before_the_first_is_filled(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    need = 40 * 32 * 20 * 3
    monkeypatch.setattr("dcal.dataset.data.available_memory", lambda: 2 * need)
    make_data(catalog, cache="ram").train_loader(4, 1, 7, 0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "29400")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"dataset\.cache='ram': .* in each of 2 processes"):
        make_data(catalog, cache="ram").train_loader(4, 1, 7, 0)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    make_data(catalog, cache="ram").train_loader(4, 1, 7, 0)  # which waits for what the first process says


def cached_on_disk(catalog: Catalog, folder: Path) -> ImageDataset:
    return ImageDataset(catalog.splits["train"], eval_transform(**SIZES), cache="disk", cache_dir=folder)


@pytest.mark.parametrize("byte", ["pixel", "flag", "checksum"])
def test_a_flipped_bit_in_a_disk_cache_is_noticed_and_changes_nothing(
    catalog: Catalog, tmp_path: Path, caplog: pytest.LogCaptureFixture, byte: str
) -> None:
    folder = tmp_path / byte
    expected = cached_on_disk(catalog, folder)[1]["image"].clone()
    (file,) = folder.glob("*.npy")
    row = 32 * 20 * 3 + cache_module.TRAILER
    place = file.stat().st_size - 30 * row + row + {"pixel": 100, "flag": row - 5, "checksum": row - 1}[byte]
    content = bytearray(file.read_bytes())
    content[place] ^= 0x80
    file.write_bytes(content)
    damaged = cached_on_disk(catalog, folder)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(damaged[1]["image"], expected)
        assert torch.equal(damaged[1]["image"], expected)
    assert [record.getMessage().count(str(file)) for record in caplog.records] == [1], "said once"


def test_a_disk_cache_that_was_cut_short_is_named_and_built_again(
    catalog: Catalog, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = cached_on_disk(catalog, tmp_path / "c")[1]["image"].clone()
    (file,) = (tmp_path / "c").glob("*.npy")
    whole = file.read_bytes()
    for content in (whole[:1000], b"", b"no array at all", whole[: len(whole) // 2]):
        file.write_bytes(content)
        with caplog.at_level(logging.WARNING):
            assert torch.equal(cached_on_disk(catalog, tmp_path / "c")[1]["image"], expected)
        assert str(file) in caplog.text and "building it again" in caplog.text
        assert file.read_bytes() == whole
        caplog.clear()


def test_a_disk_that_is_full_is_an_error_before_anything_is_written(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(cache_module, "_fill", lambda *_: pytest.fail("its space is not reserved"))
    with pytest.raises(UserError, match=r"dataset\.cache='disk': .*No space left on device.*XDG_CACHE_HOME"):
        cached_on_disk(catalog, tmp_path / "c")
    assert not list((tmp_path / "c").glob("*.npy")) and not list((tmp_path / "c").glob("*.part"))


def test_space_is_reserved_where_the_system_has_no_call_for_it(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = cached_on_disk(catalog, tmp_path / "a")[1]["image"].clone()
    monkeypatch.delattr(os, "posix_fallocate")
    assert torch.equal(cached_on_disk(catalog, tmp_path / "b")[1]["image"], expected)
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as file:
        file.write(b"header")
        file.truncate(1_000_000)
    assert sparse.stat().st_blocks < 100
    cache_module._reserve(sparse)
    assert sparse.stat().st_blocks * 512 >= 990_000 and sparse.read_bytes() == b"header" + bytes(999_994)


class TestDecoding:
    @pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "gif", "webp"])
    def test_as_pillow_does(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(pixels(0)).save(path)
        expected = np.asarray(Image.open(path).convert("RGB")).astype(int)
        assert np.abs(read_image(path) - expected).max() <= 3  # JPEG decoders differ by rounding

    @pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "P", "1", "LA"])
    def test_all_colour_modes_become_rgb(self, tmp_path: Path, mode: str) -> None:
        path = tmp_path / ("a.jpg" if mode in ("L", "CMYK") else "a.png")
        Image.fromarray(pixels(0)).convert(mode).save(path)
        result = read_image(path)
        assert result.shape == (40, 50, 3)
        assert np.abs(result - np.asarray(Image.open(path).convert("RGB")).astype(int)).max() <= 3

    def test_16_bits_are_scaled_not_clipped(self, tmp_path: Path) -> None:
        grey = pixels(0)[..., 0]
        for suffix in ("png", "tif"):
            Image.fromarray(grey * np.uint16(257)).save(tmp_path / f"a.{suffix}")
            assert np.array_equal(read_image(tmp_path / f"a.{suffix}"), np.stack([grey] * 3, 2))
        cv2.imwrite(str(tmp_path / "a.png"), pixels(0)[..., ::-1] * np.uint16(257))
        assert np.array_equal(read_image(tmp_path / "a.png"), pixels(0))
        Image.fromarray(grey / np.float32(255)).save(tmp_path / "a.tiff")
        with pytest.raises(DataError, match=r"a\.tiff: has 32 bits per pixel"):
            read_image(tmp_path / "a.tiff")

    def test_a_16_bit_image_in_memory_is_scaled_as_its_file_is(self, tmp_path: Path) -> None:
        grey = np.linspace(0, 65535, 12 * 10).reshape(12, 10).astype(np.uint16)
        path = tmp_path / "deep.png"
        Image.fromarray(grey).save(path)
        assert np.array_equal(rgb_pixels(Image.fromarray(grey), "one"), read_image(path))
        with pytest.raises(DataError, match=r"^one: has 32 bits"):
            rgb_pixels(Image.fromarray(grey.astype(np.float32)), "one")

    def test_a_wrong_extension_does_not_matter(self, tmp_path: Path) -> None:
        Image.fromarray(pixels(0)).save(tmp_path / "a.png")
        (tmp_path / "a.png").rename(tmp_path / "a.jpg")
        assert np.array_equal(read_image(tmp_path / "a.jpg"), pixels(0))

    def test_exif_orientation_is_ignored(self, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(pixels(0)).save(tmp_path / "a.jpg", exif=exif)
        assert read_image(tmp_path / "a.jpg").shape == (40, 50, 3)

    def test_bytes_after_the_end_are_harmless(self, tmp_path: Path) -> None:
        Image.fromarray(pixels(0)).save(tmp_path / "a.jpg")
        expected = read_image(tmp_path / "a.jpg")
        with (tmp_path / "a.jpg").open("ab") as stream:
            stream.write(b"trailer" * 20)
        assert np.abs(read_image(tmp_path / "a.jpg") - expected.astype(int)).max() <= 3

    @pytest.mark.parametrize("suffix", ["jpg", "png"])
    @pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.95])
    @pytest.mark.parametrize("filled", [False, True])
    def test_truncated_files_are_named(self, tmp_path: Path, suffix: str, kept: float, filled: bool) -> None:
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(pixels(0, 200, 300)).save(path)
        data = path.read_bytes()
        path.write_bytes(data[: int(kept * len(data))].ljust(len(data) * filled, b"\0"))
        with pytest.raises(DataError, match=rf"a\.{suffix}: (is|cannot)"):
            read_image(path)

    @pytest.mark.parametrize(
        ("cover", "divisor"), [((105, 10), 1), ((104, 152), 2), ((60, 40), 2), ((52, 76), 4), ((9, 9), 8)]
    )
    def test_large_jpegs_at_a_fraction(self, tmp_path: Path, cover: tuple[int, int], divisor: int) -> None:
        path = tmp_path / "a.jpg"
        Image.fromarray(pixels(0, 208, 304)).save(path, quality=95)
        part, size = read_image(path, cover), (304 // divisor, 208 // divisor)
        assert part.shape == (*size[::-1], 3) and part.shape >= (*cover, 3)
        expected = np.asarray(Image.open(path).resize(size, Image.Resampling.BOX)).astype(int)
        assert np.abs(part - expected).mean() < 1
        Image.fromarray(pixels(0, 208, 304)).save(tmp_path / "a.png")
        assert read_image(tmp_path / "a.png", cover).shape == (208, 304, 3)

    @pytest.mark.parametrize("error", [RuntimeError, NotImplementedError, IndexError, KeyError, OverflowError])
    def test_whatever_a_decoder_raises_on_damaged_bytes_is_a_damaged_image(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
    ) -> None:
        path = tmp_path / "an avif by content.jpg"
        Image.new("RGB", (8, 8)).save(path, format="GIF")

        def convert(*_: object) -> None:
            raise error("Invalid data")

        monkeypatch.setattr(Image.Image, "convert", convert)
        with pytest.raises(DataError, match=r"an avif by content\.jpg: is damaged"):
            read_image(path)

    def test_no_image_and_no_file(self, tmp_path: Path) -> None:
        (tmp_path / "a.jpg").write_text("<html>404</html>")
        for name in ("a.jpg", "missing.jpg"):
            with pytest.raises(DataError, match=rf"{name}: (is no image|cannot be read)"):
                read_image(tmp_path / name)


class TestDamage:
    @pytest.fixture(params=[0, 2])
    def workers(self, request: pytest.FixtureRequest) -> Iterator[int]:
        yield request.param

    @pytest.mark.parametrize("kind", ["none", "ram"])
    def test_is_one_clear_error(self, catalog: Catalog, workers: int, kind: str) -> None:
        truncate(catalog.splits["train"][3].path)
        with pytest.raises(DataError) as caught:
            epoch(make_data(catalog, cache=kind), workers)
        message = str(caught.value)
        assert "03.jpg: is damaged" in message and "dataset.on_bad_image=skip" in message
        assert "Traceback" not in message and "worker" not in message

    @pytest.mark.parametrize("instances", [1, 2])
    def test_is_replaced_in_training(
        self, catalog: Catalog, workers: int, instances: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        truncate(catalog.splits["train"][3].path)
        data = make_data(catalog, on_bad_image="skip")
        loader = data.train_loader(4, instances, 0, workers)
        intact = make_data(catalog).train_loader(4, instances, 0, 0).batch_sampler
        drawn = [draw.index for batch in intact for draw in batch]  # type: ignore[union-attr]
        with caplog.at_level(logging.WARNING):
            batches = list(loader) + list(loader)
        assert [len(batch["index"]) for batch in batches] == [4] * 2 * len(loader)
        got = [int(index) for batch in batches[: len(loader)] for index in batch["index"]]
        assert 3 in drawn
        assert got == [8 if index == 3 else index for index in drawn]  # 8 is the next image of the class
        assert list(loader.skipped) == [str(catalog.splits["train"][3].path)]
        assert sum("03.jpg" in message for message in caplog.messages) == 1

    def test_is_left_out_and_counted_in_evaluation(self, catalog: Catalog, workers: int) -> None:
        for index in (0, 1, 2, 7):  # 0 to 2 are a whole batch
            truncate(catalog.splits["test"][index].path)
        catalog.splits["test"].insert(0, catalog.splits["test"].pop())
        data = make_data(catalog, on_bad_image="skip")
        loader = data.eval_loader("test", 3, workers)
        for _ in range(2):
            batches = list(loader)
            assert torch.cat([batch["index"] for batch in batches]).tolist() == [0, 4, 5, 6, 7, 9]
            assert all(len(batch["image"]) == len(batch["label"]) for batch in batches)
        assert len(loader.skipped) == 4
        assert data.eval_loader("test", 3, workers) is loader

    @pytest.mark.parametrize("split", ["train", "test"])
    def test_of_everything_is_an_error(self, catalog: Catalog, workers: int, split: str) -> None:
        for record in catalog.splits[split]:
            truncate(record.path)
        data = make_data(catalog, on_bad_image="skip")
        loader = data.train_loader(4, 1, 0, workers) if split == "train" else data.eval_loader("test", 4, workers)
        with pytest.raises(DataError, match="all"):
            list(loader)


class TestSplits:
    def test_val_fraction_is_stratified_and_disjoint(self, catalog: Catalog) -> None:
        data = make_data(catalog, val_fraction=0.3)
        train, val = data.records("train"), data.records("val")
        assert sorted(train + val, key=str) == sorted(catalog.splits["train"], key=str)
        for label in range(5):
            assert [sum(record.label == label for record in split) for split in (train, val)] == [4, 2]
        assert data.records("test") == catalog.splits["test"]
        assert make_data(catalog, val_fraction=0.3).records("val") == val
        single = Catalog("tiny", {**catalog.splits, "train": catalog.splits["train"][:5]}, list("abcde"))
        with pytest.raises(UserError, match=r"dataset\.val_fraction=0\.3: every class of tiny has one training image"):
            make_data(single, val_fraction=0.3)

    def test_train_fraction_keeps_every_class_and_is_nested(self, catalog: Catalog) -> None:
        subsets = [set(make_data(catalog, train_fraction=f).records("train")) for f in (0.01, 0.5, 0.9, 1.0)]
        assert [len(subset) for subset in subsets] == [5, 15, 25, 30]
        assert {record.label for record in subsets[0]} == set(range(5))
        assert subsets[0] < subsets[1] < subsets[2] < subsets[3]

    def test_label_noise_is_a_fixed_share_of_training_alone(self, catalog: Catalog) -> None:
        def wrong(share: float, **more: Any) -> dict[Path, int]:
            data = make_data(catalog, label_noise=share, **more)
            assert data.records("test") == catalog.splits["test"] and data.class_names == catalog.class_names
            if more:  # held out before the noise: as clean as without it
                assert data.records("val") == make_data(catalog, **more).records("val")
            return {r.path: r.label for r in data.records("train") if r.label != truth[r.path]}

        truth = {record.path: record.label for record in catalog.splits["train"]}
        some, more = wrong(0.2), wrong(0.7)
        assert [len(wrong(0.0)), len(some), len(more), len(wrong(0.2, val_fraction=0.4))] == [0, 6, 21, 4]
        assert some.items() < more.items() and some == wrong(0.2)
        assert set(wrong(0.97).values()) == set(range(5))
        with pytest.raises(UserError, match=r"dataset\.label_noise=0\.5: tiny has one class"):
            one = {split: [replace(r, label=0) for r in records] for split, records in catalog.splits.items()}
            make_data(Catalog("tiny", one, ["a"]), label_noise=0.5)

    def test_val_ids_are_other_people(self, tmp_path: Path) -> None:
        (tmp_path / "a.jpg").touch()
        records = [
            Record(tmp_path / "a.jpg", label, camera, view=image)
            for label in range(12) for camera in range(3) for image in range(1 + (label > 3))
        ]  # fmt: skip
        splits = {"train": records, "query": records[:1], "gallery": records[1:]}
        data = make_data(Catalog("people", splits, [f"p{label:02}" for label in range(12)]), val_ids=5)
        train, query, gallery = (data.records(name) for name in ("train", "val_query", "val_gallery"))
        assert len(train) + len(query) + len(gallery) == len(records)
        assert data.num_classes == 7 == len({record.label for record in train}) == max(r.label for r in train) + 1
        held = {record.label for record in query}
        assert len(held) == 5 and min(held) > 3 and {record.label for record in gallery} == held
        assert set(data.class_names).isdisjoint(f"p{label:02}" for label in held)
        assert len(query) == len({(record.label, record.camera) for record in query}) == 15
        assert {record.view for record in query} == {0}
        for wanted in query:  # every query has a match under another camera
            assert any(r.label == wanted.label and r.camera != wanted.camera for r in gallery)
        blind = [replace(record, camera=-1) for record in records if record.label or record.camera == 0]
        splits = {"train": blind, "query": blind[:1], "gallery": blind[1:]}
        data = make_data(Catalog("people", splits, list("abcdefghijkl")), val_ids=11)  # all but 0, seen once
        query, gallery = data.records("val_query"), data.records("val_gallery")
        assert data.class_names == ["a"] and len(query) == 11 and len(gallery) == len(blind) - 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache": "rom"}, r"dataset\.cache='rom': did you mean ram\? \(one of none, ram, disk\)"),
        ({"cache": "foo"}, r"dataset\.cache='foo': choose one of none, ram, disk"),
        (
            {"on_bad_image": "skp"},
            r"dataset\.on_bad_image='skp': did you mean skip\? \(one of error, skip\)",
        ),
        ({"val_fraction": 1.0}, r"dataset\.val_fraction=1\.0"),
        ({"train_fraction": 0.0}, r"dataset\.train_fraction=0\.0"),
        ({"label_noise": 1.0}, r"dataset\.label_noise=1\.0"),
        ({"decode": "half"}, r"dataset\.decode='half': .*one of full, scaled"),
        ({"val_ids": 3}, r"dataset\.val_ids=3: tiny is no Re-ID set; use dataset\.val_fraction"),
        ({"val_ids": -1}, r"dataset\.val_ids=-1"),
        ({"image_size": [64, 64]}, r"dataset\.image_size=\[64, 64\]"),
    ],
)
def test_bad_options_are_named(catalog: Catalog, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_data(catalog, **options)


def test_missing_images_and_splits_are_named(catalog: Catalog) -> None:
    with pytest.raises(UserError, match="no split 'val': tiny has train, test"):
        make_data(catalog).records("val")
    with pytest.raises(DataError, match=r"04\.jpg: its label is 4, but the 4 classes of tiny count from 0"):
        make_data(replace(catalog, class_names=list("abcd")))
    catalog.splits["test"][0].path.unlink()
    with pytest.raises(DataError, match=r"30\.jpg: no such file.*dataset\.root=somewhere"):
        make_data(catalog, root="somewhere")
    catalog.splits["test"].clear()
    with pytest.raises(DataError, match=r"split 'test' has no images.*dataset\.root"):
        make_data(catalog)


def test_a_draw_decides_the_image(catalog: Catalog) -> None:
    dataset = ImageDataset(catalog.splits["train"], train_transform(**SIZES, augment=AUGMENT))
    first = dataset[Draw(3, 11)]["image"]
    assert not torch.equal(first, dataset[Draw(3, 12)]["image"])
    assert torch.equal(first, dataset[Draw(3, 11)]["image"])
