"""What `oncequant.data` promises of parquet files and of data sets on the hub."""

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from pictures import picture, surroundings, write_folder  # noqa: F401 - surroundings is a fixture

from oncequant.data import DataError, load_data


def encoded(image, path="a.png"):
    from io import BytesIO

    image.save(buffer := BytesIO(), "png")
    return {"bytes": buffer.getvalue(), "path": path}


def write_parquet(root: Path, file: str, n: int, label, image=None, more=None) -> None:
    """`label`: a feature of `datasets`; `more`: name to (feature, values)."""
    values = [i % 3 for i in range(n)]
    if getattr(label, "dtype", "") == "string":
        values = [("ant", "bee", "cow")[v] for v in values]
    columns = {"pic": [encoded(picture(i)) for i in range(n)], "y": values}
    features = {"pic": image or datasets.Image(), "y": label}
    for name, (feature, column) in (more or {}).items():
        features[name], columns[name] = feature, column
    datasets.Dataset.from_dict(columns, datasets.Features(features)).to_parquet(root / file)


STRUCT = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}


@pytest.mark.parametrize("label, classes, image", [
    (datasets.ClassLabel(names=["cow", "ant", "unused", "bee"][:4]), ("cow", "ant", "unused"), None),
    (datasets.Value("int32"), ("0", "1", "2"), STRUCT),
    (datasets.Value("string"), ("ant", "bee", "cow"), None),
])  # fmt: skip
def test_parquet(tmp_path, label, classes, image):
    write_parquet(tmp_path, "train-00000-of-00002.parquet", 20, label, image)
    write_parquet(tmp_path, "train-00001-of-00002.parquet", 10, label, image)
    write_parquet(tmp_path, "test-00000-of-00001.parquet", 6, label, image)
    data = load_data(str(tmp_path), size=12)
    assert data.classes == classes and data.name == tmp_path.name  # the fourth ClassLabel has no image: left out
    assert len(data.train) + len(data.validation) == 30 and len(data.test) == 6
    for i in range(6):
        assert np.array_equal(data.test.images(torch.tensor([i]))[0].permute(1, 2, 0), picture(i))
    assert data.test.labels.tolist() == [0, 1, 2, 0, 1, 2]
    # a file that is written again is read again
    write_parquet(tmp_path, "test-00000-of-00001.parquet", 9, label, image)
    assert len(load_data(str(tmp_path), size=12).test) == 9


@pytest.mark.parametrize("train, test", [
    ("plain_text/train-00000-of-00001.parquet", "plain_text/test-00000-of-00001.parquet"),
    ("train/0000.parquet", "test/0000.parquet"),
    ("data/train-0.parquet", "data/test-0.parquet"),
])  # fmt: skip
def test_parquet_lies_where_the_hub_puts_it(tmp_path, train, test):
    for file, n in ((train, 30), (test, 6)):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        write_parquet(tmp_path, file, n, datasets.Value("int64"))
    data = load_data(str(tmp_path), size=12)
    assert len(data.train) + len(data.validation) == 30 and len(data.test) == 6


def test_two_data_sets_of_parquet_files_in_one_folder_are_refused(tmp_path):
    for name in ("fine", "coarse"):
        (tmp_path / name).mkdir()
        write_parquet(tmp_path / name, "train-0.parquet", 30, datasets.Value("int64"))
    with pytest.raises(DataError, match="coarse, fine hold a data set each"):
        load_data(str(tmp_path), size=12)


def test_a_table_beside_class_folders_is_no_data_set(tmp_path):
    write_folder(tmp_path)
    write_parquet(tmp_path, "metadata.parquet", 3, datasets.Value("int64"))
    write_parquet(tmp_path / "cat", "notes.parquet", 3, datasets.Value("int64"))
    assert load_data(str(tmp_path), size=12).classes == ("cat", "dog")
    write_folder(tmp_path / "new" / "train")
    write_parquet(tmp_path / "new" / "train", "metadata.parquet", 3, datasets.Value("int64"))
    assert load_data(str(tmp_path / "new"), size=12).classes == ("cat", "dog")


def test_a_test_split_with_hidden_labels_counts_as_missing(tmp_path):
    write_parquet(tmp_path, "train.parquet", 30, datasets.Value("int64"))
    hidden = datasets.Dataset.from_dict({"pic": [encoded(picture(0))], "y": [-1]},
                                        datasets.Features(pic=datasets.Image(), y=datasets.Value("int64")))  # fmt: skip
    hidden.to_parquet(tmp_path / "test.parquet")
    data = load_data(str(tmp_path), size=12)
    assert len(data.test) == 6 and data.classes == ("0", "1", "2")


def test_columns_that_leave_a_choice_are_listed(tmp_path):
    number = datasets.Value("int64")
    for name, label, more in [
        ("labels", number, dict(fine=(number, [0] * 9))),
        ("images", number, dict(other=(datasets.Image(), [encoded(picture(0))] * 9))),
        ("floats", datasets.Value("float32"), {}),
    ]:
        (tmp_path / name).mkdir()
        write_parquet(tmp_path / name, "train.parquet", 9, label, more=more)
        with pytest.raises(DataError, match=f"'pic'.*'y'.*{''.join(more)}"):
            load_data(str(tmp_path / name), size=12)
    (tmp_path / "named").mkdir()
    write_parquet(tmp_path / "named", "train.parquet", 9, number, more=dict(label=(number, [5, 6, 7] * 3)))
    assert load_data(str(tmp_path / "named"), size=12).classes == ("5", "6", "7")


def test_a_broken_row_of_a_parquet_file_is_numbered(tmp_path):
    rows = [encoded(picture(i), f"{i}.png") for i in range(9)]
    rows[4] = {"bytes": b"not a picture", "path": "4.png"}
    features = datasets.Features(image=datasets.Image(decode=False), label=datasets.Value("int64"))
    table = datasets.Dataset.from_dict({"image": rows, "label": [0, 1, 2] * 3}, features)
    table.to_parquet(tmp_path / "train-0.parquet")
    with pytest.raises(DataError, match=r"row 4 of the train split.*4\.png"):
        load_data(str(tmp_path), size=12)


def test_parquet_folders_that_make_no_sense(tmp_path):
    write_parquet(tmp_path, "test-0.parquet", 9, datasets.Value("int64"))
    with pytest.raises(DataError, match=r"no train-\*\.parquet, only test-0\.parquet"):
        load_data(str(tmp_path), size=12)
    (tmp_path / "train-0.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=f"{tmp_path.name} cannot be loaded"):
        load_data(str(tmp_path), size=12)


@pytest.mark.parametrize("source", ["/no/such/folder", "./nowhere", "a/b/c"])
def test_a_path_that_is_not_there_is_no_hub_name(source, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(DataError, match=f"{source}: not a folder.*'digits'"):
        load_data(source, size=12)


def test_the_hub(monkeypatch):
    def hub(name, **_):
        if name != "me/pets":
            raise ConnectionError("no route to the hub")
        features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["cat", "dog"]))
        columns = {"image": [encoded(picture(i)) for i in range(12)], "label": [0, 1] * 6}
        table = datasets.Dataset.from_dict(columns, features)
        return datasets.DatasetDict(unlabelled=table, train=table, valid=table)

    monkeypatch.setattr(datasets, "load_dataset", hub)
    data = load_data("me/pets", size=12)
    assert (data.name, data.classes, len(data.validation)) == ("me/pets", ("cat", "dog"), 12)
    assert len(data.train) + len(data.test) == 12
    with pytest.raises(DataError, match="'me/pest'.*hub.*no route to the hub.*'digits'"):
        load_data("me/pest", size=12)


def test_the_missing_package_is_named(tmp_path, monkeypatch):
    write_parquet(tmp_path, "train.parquet", 12, datasets.Value("int32"))
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)  # how Python marks "cannot be imported"
    with pytest.raises(DataError, match=r'pip install "oncequant\[data\]"'):
        load_data(str(tmp_path), size=12)
    assert len(load_data("digits", size=8, max_train=20).train) == 20
