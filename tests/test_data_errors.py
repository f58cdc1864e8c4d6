"""Errors of data name the image, row, class or folder that is wrong."""

import re

import pytest
import torch
from pictures import arrays, picture, surroundings, write_folder  # noqa: F401 - surroundings is a fixture

from oncequant.data import DataError, load_data, train_batches


def broken_files(tmp_path):
    whole = tmp_path / "whole.jpg"
    picture(0, size=(64, 64)).save(whole)
    return {"empty": b"", "truncated": whole.read_bytes()[:900], "text": b"<html>404</html>"}


@pytest.mark.parametrize("kind", ["empty", "truncated", "text"])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_broken_image_is_named(tmp_path, kind, streaming):
    folder = write_folder(tmp_path / "set")
    (folder / "dog" / "bad.jpg").write_bytes(broken_files(tmp_path)[kind])
    with pytest.raises(DataError, match=r"dog.bad\.jpg"):
        load_data(str(folder), size=12, resident_limit_bytes=0 if streaming else 10**9)


def test_a_loader_worker_names_the_broken_image_too(tmp_path):
    folder = write_folder(tmp_path / "set")
    data = load_data(str(folder), size=12, resident_limit_bytes=0)
    for file in folder.rglob("*.png"):
        file.write_bytes(b"")
    message = ""
    try:
        next(train_batches(data, 4, seed=0, workers=1))
    except DataError as error:
        message = str(error.with_traceback(None))  # a kept traceback keeps the loader, whose end then takes 5 seconds
    assert re.search(r"\d\d\d\.png: cannot be read as an image", message)


@pytest.mark.parametrize("image, words", [
    (torch.randn(3, 8, 8), r"\[0, 1\]"), (torch.zeros(3, 8, 8, dtype=torch.int64), "int64"),
    (torch.zeros(7, 8, 9), "shape"), ("nowhere.png", r"nowhere\.png"), (None, "NoneType"),
])  # fmt: skip
def test_a_python_image_that_makes_no_sense_is_named(image, words):
    good = torch.zeros(3, 8, 8)
    with pytest.raises(DataError, match=words) as caught:
        load_data(([(good, 0), (good, 1), (image, 1)], [(good, 0)], [(good, 0)]), size=8)
    assert "row 2 of the train split" in str(caught.value) or isinstance(image, str)


def test_python_sources_that_make_no_sense():
    good, image = arrays(30), torch.zeros(3, 8, 8)
    for source, words in [
        ((good, None), "not 2 things"),
        ((None, good, None), "no train split, only validation"),
        (([image] * 9, None, None), "row 0 of the train split is a Tensor"),
        (([(image, 0), (image, None)], None, None), "row 1 of the train split.*None"),
        (([(image, 0), (image, 0.5)], None, None), "row 1 of the train split.*0.5"),
        ([good, None, None], "not a list"),
        ((good, [], None), "validation split has no images"),
        (([(image, 0)] * 9, None, None), "at least 2 classes.*'0'"),
    ]:
        with pytest.raises(DataError, match=words):
            load_data(source, size=8)


def test_folders_that_make_no_sense(tmp_path):
    def folder(name, change):
        change(write_folder(tmp_path / name / "train", classes=("cat", "dog"), count=6).parent)
        return str(tmp_path / name)

    def only_in_test(root):
        write_folder(root / "test", classes=("cat", "okapi"), count=1)

    def no_train(root):
        (root / "train").rename(root / "val")

    def flat(root):
        (root / "train" / "cat").rename(root / "train" / ".cat")
        (root / "train" / "dog").rename(root / "train" / ".dog")

    for name, change, words in [
        ("extra", only_in_test, "'okapi' occurs in the test split but not in the train split"),
        ("no_train", no_train, "no train split, only val;"),
        ("one", lambda root: (root / "train" / "cat").rename(root / "train" / ".cat"), "at least 2 classes.*'dog'"),
        ("flat", flat, "flat: holds no class folders"),
        (
            "twice",
            lambda root: [write_folder(root / s) for s in ("val", "valid")],
            "val and valid name the same",
        ),
    ]:
        with pytest.raises(DataError, match=words):
            load_data(folder(name, change), size=12)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="nothing: holds no class folders.*'digits'"):
        load_data(str(tmp_path / "nothing"), size=12)
