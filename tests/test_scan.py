"""Every picture is looked at once, before work, wherever it lies; the cache spares later commands the decoding."""

import io
import multiprocessing
import os
import re
import shutil
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pictures import arrays, picture, rows_of, surroundings, write_folder  # noqa: F401 - surroundings is a fixture
from PIL import Image

from oncequant.data import DataError, ResidentSplit, UnreadablePictures, cache, load_data, scan, train_batches
from oncequant.data.rows import FileTable


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """A cache of each test, and pictures that are old enough to be believed."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("ONCEQUANT_CACHE", str(folder))
    monkeypatch.setattr(cache, "RACE_NS", -(10**12))
    return folder


@pytest.fixture
def decoded(monkeypatch):
    """Counts the pictures that are decoded."""
    seen = []
    inner = scan.square
    monkeypatch.setattr(scan, "square", lambda *args: seen.append(args[0].size) or inner(*args))
    return seen


def split_folder(root, count=6, **kwargs):
    for number, split in enumerate(("train", "val", "test")):
        write_folder(root / split, count=count, **kwargs)
        for i, file in enumerate(sorted((root / split).rglob("*.png"))):
            picture(10_000 * number + i, **kwargs).save(file)
    return root


def load(folder, streaming=False, **kwargs):
    return load_data(str(folder), size=12, resident_limit_bytes=0 if streaming else 10**9, **kwargs)


def saved(kind, image=None, **options):
    (image or picture(0, size=(64, 64))).save(buffer := io.BytesIO(), kind, **options)
    return bytearray(buffer.getvalue())


def damaged(kind):
    if kind == "cut JPEG":
        return saved("JPEG")[:-300]
    if kind == "PNG with zeros in its middle":
        content = saved("PNG")
        content[2000:2048] = bytes(48)
        return content
    if kind == "PNG with a wrong checksum":
        content = saved("PNG")
        content[content.find(b"IDAT") + 5 + 2000] ^= 1
        return content
    if kind == "PNG without its end":
        return saved("PNG")[:-14]
    if kind == "cut GIF":
        return saved("GIF")[:1500]
    if kind == "cut WebP":
        return saved("WEBP", lossless=True)[:800]
    if kind == "cut TIFF":
        return saved("TIFF")[:3000]
    return {"empty": b"", "text": b"<html>404</html>", "header alone": saved("PNG")[:40]}[kind]


KINDS = ("cut JPEG", "PNG with zeros in its middle", "PNG with a wrong checksum",
         "PNG without its end", "cut GIF", "cut WebP", "cut TIFF", "empty", "text", "header alone")  # fmt: skip


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_damaged_pictures_of_any_split_are_found_before_training_and_all_at_once(tmp_path, split, streaming):
    folder = split_folder(tmp_path)
    for kind in KINDS:
        path = folder / split / "dog" / f"{kind}.jpg"
        path.write_bytes(damaged(kind))
        with pytest.raises(DataError, match=re.escape(f"{kind}.jpg: cannot be read as an image")) as caught:
            load(folder, streaming)
        assert "take it away" in str(caught.value) and "\n" not in str(caught.value)
        path.rename(folder / f"{kind}.kept")
    for kind in KINDS:
        (folder / f"{kind}.kept").rename(folder / split / "dog" / f"{kind}.jpg")
    with pytest.raises(UnreadablePictures, match=rf"{len(KINDS) - 1} more .*PNG with zeros.*, \.\.\.") as caught:
        load(folder, streaming)
    assert (~caught.value.found.rows["whole"]).sum() == len(KINDS)


def test_what_is_whole_is_not_refused(tmp_path):
    folder = split_folder(tmp_path)
    (folder / "test" / "dog" / "a.jpg").write_bytes(saved("JPEG") + b"\0\0 a comment behind its end")
    (folder / "test" / "dog" / "b.png").write_bytes(saved("PNG") + b"behind its end")
    (folder / "test" / "dog" / "c.webp").write_bytes(saved("WEBP"))
    assert len(load(folder).test) == 15


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_second_command_decodes_nothing_and_sees_the_same(tmp_path, streaming, mode, decoded):
    folder = split_folder(tmp_path, mode=mode)
    first = load(folder, streaming)
    assert len(decoded) == 36
    second, without = load(folder, streaming), load(folder, streaming, cache=False)
    assert len(decoded) == 72  # the last one decodes again
    for data in (second, without):
        assert isinstance(data.train, ResidentSplit) != streaming
        assert (data.fingerprint, data.mean, data.std, data.channels) == (
            first.fingerprint, first.mean, first.std, first.channels
        )  # fmt: skip
        for split in ("train", "validation", "test"):
            assert rows_of(getattr(data, split)) == rows_of(getattr(first, split))
        assert data.pictures.digests() == first.pictures.digests()
    batches = [next(train_batches(data, 8, seed=3, crop="resized"))[0] for data in (first, second)]
    assert torch.equal(*batches)  # random crops are of the originals


def test_other_seeds_and_parts_share_what_is_decoded(tmp_path, decoded):
    write_folder(tmp_path, count=20)
    load(tmp_path, seed=0)
    for seed in (1, 2):
        data, other = load(tmp_path, seed=seed), load(tmp_path, seed=seed, cache=False)
        assert rows_of(data.train) == rows_of(other.train)
    load(tmp_path, max_train=10)
    assert len(decoded) == 40 * 3


def test_only_changed_and_new_pictures_are_decoded_again(tmp_path, decoded):
    folder = split_folder(tmp_path)
    load(folder)
    picture(77).save(folder / "train" / "cat" / "003.png")
    picture(78).save(folder / "train" / "cat" / "new.png")
    (folder / "train" / "dog" / "001.png").touch()  # another time, the same content
    (folder / "test" / "dog" / "001.png").unlink()
    decoded.clear()
    data = load(folder)
    assert len(decoded) == 2
    expected = load(folder, cache=False)
    assert rows_of(data.train) == rows_of(expected.train) and data.fingerprint == expected.fingerprint
    decoded.clear()
    load(folder)
    assert not decoded


def test_a_file_changed_at_the_moment_it_was_read_is_not_believed(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "RACE_NS", 2 * 10**9)
    folder = split_folder(tmp_path, mode="L")
    path = folder / "test" / "dog" / "001.png"
    status = path.stat()
    Image.fromarray(np.full((12, 12), 7, np.uint8)).save(path, "BMP")
    load(folder)
    Image.fromarray(np.full((12, 12), 9, np.uint8)).save(path, "BMP")  # as many bytes
    os.utime(path, ns=(time.time_ns(), status.st_mtime_ns))
    os.utime(path, ns=(time.time_ns(), status.st_mtime_ns))
    assert load(folder).test.images(torch.arange(12))[7].unique().tolist() == [9]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "fault", ["table cut", "table flipped", "pixels cut", "pixels flipped", "pixels gone", "not ours"]
)
def test_a_damaged_cache_is_noticed_and_made_anew(tmp_path, own_cache, fault, streaming, decoded):
    folder = split_folder(tmp_path)
    whole = load(folder, streaming)
    (table,), (pixels,) = own_cache.glob("*.npz"), own_cache.glob("*.npy")
    path = table if "table" in fault or fault == "not ours" else pixels
    content = bytearray(path.read_bytes())
    if "flipped" in fault:
        content[content.find(whole.pictures.rows["hash"][3].tobytes()) if path == table else len(content) // 2] ^= 255
    path.write_bytes(b"hello" if fault == "not ours" else content[: len(content) // 2] if "cut" in fault else content)
    if "gone" in fault:
        path.unlink()
    decoded.clear()
    data = load(folder, streaming)
    assert rows_of(data.train) == rows_of(whole.train) and rows_of(data.test) == rows_of(whole.test)
    if not streaming:
        assert 1 <= len(decoded) <= 36
        decoded.clear()
        load(folder)
        assert not decoded


def test_a_full_disk_costs_a_note_and_leaves_nothing(tmp_path, own_cache, monkeypatch, capsys):
    folder = split_folder(tmp_path)
    expected = rows_of(load(folder, cache=False).train)
    for streaming in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr(cache.os, "fsync", full)
            assert rows_of(load(folder, streaming).train) == expected
        with monkeypatch.context() as patch:
            patch.setattr(cache.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
            assert rows_of(load(folder, streaming).train) == expected
        said = " ".join(capsys.readouterr().out.split())
        assert said.count("are not kept for later commands") == 2 and "No space left" in said and "50%" in said
        assert not list(own_cache.glob("*.npy")) and not list(own_cache.glob(".*"))
    monkeypatch.setenv("ONCEQUANT_CACHE", str(folder / "train" / "cat" / "000.png"))  # a file
    assert rows_of(load(folder).train) == expected
    assert "are not kept" in capsys.readouterr().out


def full(handle):
    raise OSError(28, "No space left on device")


def test_without_cache_nothing_is_written(tmp_path, own_cache):
    load(split_folder(tmp_path), cache=False)
    load_data((arrays(30), None, None), size=8)
    assert not list(own_cache.iterdir())


def again(folder, go, results):
    go.wait()
    results.put(rows_of(load(folder).train))


def test_two_processes_at_once(tmp_path, own_cache, decoded):
    folder = split_folder(tmp_path, count=12)
    context = multiprocessing.get_context("fork")
    go, results = context.Event(), context.Queue()
    processes = [context.Process(target=again, args=(folder, go, results)) for _ in range(3)]
    for process in processes:
        process.start()
    go.set()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    decoded.clear()
    assert all(rows == rows_of(load(folder).train) for rows in found)
    assert not decoded


def test_entries_that_nobody_uses_are_removed(tmp_path, own_cache):
    for name in ("a", "b"):
        load(split_folder(tmp_path / name))
    other = own_cache / "notes.txt"
    other.write_text("mine")
    first = set(own_cache.glob("*.np[zy]"))
    for file in (*first, other):
        os.utime(file, (0, time.time() - 40 * 86400))
    load(tmp_path / "b")  # in use again
    load(split_folder(tmp_path / "c"))
    assert len(list(own_cache.glob("*.npz"))) == len(list(own_cache.glob("*.npy"))) == 2 and other.exists()


def test_parquet_is_cached_by_what_it_is_made_of(tmp_path, decoded):
    import datasets

    def write(seed):
        columns = {"image": [{"bytes": bytes(saved("PNG", picture(seed + i))), "path": None} for i in range(24)]}
        table = datasets.Dataset.from_dict({**columns, "label": [i % 2 for i in range(24)]})
        shutil.rmtree(tmp_path / "set", ignore_errors=True)
        (tmp_path / "set").mkdir()
        table.to_parquet(tmp_path / "set" / "train.parquet")

    write(0)
    first = load(tmp_path / "set")
    assert rows_of(load(tmp_path / "set").train) == rows_of(first.train) and len(decoded) == 24
    write(100)
    second = load(tmp_path / "set")
    assert len(decoded) == 48 and not set(rows_of(second.train)) & set(rows_of(first.train))


def test_progress_is_shown_soon_where_decoding_takes_long(tmp_path, monkeypatch, capsys):
    folder = split_folder(tmp_path, count=40)
    monkeypatch.setattr(scan, "SECONDS_TO_BAR", 0)
    monkeypatch.setattr(scan, "BLOCK", 64)
    load(folder)
    assert re.search(r"read images: 240/240, \d+ s, 0 s left", capsys.readouterr().out)
    load(folder)
    assert not capsys.readouterr().out


def test_large_pictures_are_named_and_too_large_ones_refused(tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000_000)
    folder = split_folder(tmp_path)
    large = folder / "test" / "dog" / "large.png"
    Image.new("1", (4000, 3000)).save(large)  # above the first limit, below the second
    load(folder)
    assert not [warning for warning in recwarn if "DecompressionBomb" in str(warning.category)]
    Image.new("1", (7000, 3000)).save(large)
    with pytest.raises(DataError, match=r"large\.png: larger than 20 megapixels.*scale it down"):
        load(folder)


def test_a_table_of_files_answers_like_one_of_datasets():
    paths, labels = [f"a/ü{i}.png" for i in range(200)], [i % 3 for i in range(200)]
    table = FileTable.of(paths, labels)
    assert len(table) == 200 and table["image"] == paths and table[:] == {"image": paths, "label": labels}
    assert table[7] == {"image": paths[7], "label": 1} and table[-1]["image"] == paths[-1]
    assert table[[0, 5, 199]] == {"image": [paths[i] for i in (0, 5, 199)], "label": [0, 2, 1]}
    assert table.select_columns("label")[:2] == {"label": [0, 1]}
