"""What `oncequant.data` promises of parquet files and of data sets on the hub."""

from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pictures import counts, picture, surroundings, write_folder  # noqa: F401 - surroundings is a fixture

from oncequant.data import DataError, Reading, load_data
from oncequant.data.rows import decode
from oncequant.data.sources import open_source


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
        ("labels", number, dict(fine=(number, [0, 1, 0] * 3))),
        ("images", number, dict(other=(datasets.Image(), [encoded(picture(0))] * 9))),
        ("floats", datasets.Value("float32"), dict(other=(datasets.Value("float32"), [0.0, 1.0, 0.0] * 3))),
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


def write_rows(path: Path, **columns) -> Path:
    """Twelve pictures and some columns, with the types that pyarrow gives them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    n = len(next(iter(columns.values())))
    pictures = {} if "image" in columns else {"image": [encoded(picture(i)) for i in range(n)]}
    pq.write_table(pa.table({**pictures, **columns}), path)
    return path


FINE, COARSE = [i % 3 for i in range(12)], [i % 2 for i in range(12)]
THREE, TWO = {0: 4, 1: 4, 2: 4}, {0: 6, 1: 6}


@pytest.mark.parametrize("files", [
    ["data.parquet"], ["anything.parquet"], ["default/train/0000.parquet"], ["cifar/train/0.parquet"],
    ["cifar/train/0.parquet", "cifar/train/1.parquet"],
    ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"], ["part-0.parquet", "part-1.parquet"],
    ["data/0000.parquet"], ["default/partial-train/0000.parquet"], ["training/a.parquet"], ["mnist_train.parquet"],
])  # fmt: skip
def test_parquet_lies_where_people_put_it(tmp_path, files):
    for file in files:
        write_rows(tmp_path / file, label=FINE)
    assert counts(tmp_path)[0] == {"train": {label: 4 * len(files) for label in range(3)}}


def test_parquet_of_all_splits_and_several_files(tmp_path):
    for split in ("train", "validation", "test"):
        for i in range(2):
            write_rows(tmp_path / "default" / split / f"000{i}.parquet", label=COARSE)
    assert counts(tmp_path)[0] == dict.fromkeys(("train", "validation", "test"), {0: 12, 1: 12})
    write_rows(tmp_path / "other" / "train" / "0000.parquet", label=COARSE)
    with pytest.raises(DataError, match="default, other hold a data set each"):
        counts(tmp_path)


def test_the_cache_of_the_hub(tmp_path):
    cache = tmp_path / "hub" / "datasets--me--pets"
    for snapshot, labels in (("abc", FINE), ("def", COARSE)):
        write_rows(cache / "snapshots" / snapshot / "data" / "train-0.parquet", label=labels)
    with pytest.raises(DataError, match="give one of its snapshots"):
        counts(cache)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("def")
    found, notes = counts(cache)
    assert found == {"train": TWO} and "snapshot def" in notes
    with pytest.raises(DataError, match="is the hub's cache; give one.*datasets--me--pets"):
        counts(tmp_path / "hub")
    write_folder(tmp_path / "datasets--me--folder" / "snapshots" / "abc" / "train")
    assert counts(tmp_path / "datasets--me--folder")[0] == {"train": {"cat": 20, "dog": 20}}


@pytest.mark.parametrize("labels, expected", [
    ([i % 2 == 0 for i in range(12)], {True: 6, False: 6}),
    ([float(i % 3) for i in range(12)], THREE),
    (pa.array(COARSE, pa.uint8()), TWO),
    (pa.array(["cat", "dog"] * 6, pa.large_string()), {"cat": 6, "dog": 6}),
    ([str(i % 3) for i in range(12)], {"0": 4, "1": 4, "2": 4}),
])  # fmt: skip
def test_labels_of_any_kind(tmp_path, labels, expected):
    assert counts(write_rows(tmp_path / "train.parquet", label=labels).parent)[0] == {"train": expected}
    data = load_data(str(tmp_path), size=12)
    assert data.classes == tuple(sorted(map(str, expected)))


@pytest.mark.parametrize("labels, words", [
    ([None, *COARSE[1:]], "1 of 12 rows have no label in column 'label'"),
    ([float("nan"), float("nan"), *map(float, COARSE[2:])], "2 of 12 rows have no label"),
    (["", "", "", *["a", "b", "c"] * 3], "3 of 12 rows have no label"),
    ([i / 12 for i in range(12)], "0 columns, not 1, may hold labels"),
])  # fmt: skip
def test_labels_that_are_none(tmp_path, labels, words):
    with pytest.raises(DataError, match=words):
        counts(write_rows(tmp_path / "train.parquet", label=labels).parent)


@pytest.mark.parametrize("columns, expected, words", [
    (dict(fine_label=FINE, coarse_label=COARSE), THREE, "'fine_label' is taken for the labels, not coarse_label"),
    (dict(coarse_class=COARSE, fine_class=FINE), THREE, "'fine_class' is taken"),
    (dict(Label=COARSE, idx=list(range(12))), TWO, ""),
    (dict(CLASS=COARSE, id=FINE), TWO, ""),
    (dict(**{"": list(range(12))}, kind=FINE), THREE, ""),
    (dict(breed_id=COARSE, breed=["pug", "lab"] * 6), {"pug": 6, "lab": 6}, "'breed' is taken"),
    (dict(kind=FINE, width=[12] * 12, caption=[f"picture {i}" for i in range(12)]), THREE, ""),
    (dict(target=COARSE, colour=FINE), TWO, "'target' is taken"),
])  # fmt: skip
def test_the_column_of_labels(tmp_path, columns, expected, words):
    found, notes = counts(write_rows(tmp_path / "train.parquet", **columns).parent)
    assert found == {"train": expected} and words in notes


def test_columns_can_be_given(tmp_path):
    masks = [encoded(picture(100 + i)) for i in range(12)]
    images = [encoded(picture(i)) for i in range(12)]
    write_rows(tmp_path / "train.parquet", image=images, mask=masks, size=FINE, colour=COARSE)
    with pytest.raises(DataError, match="2 columns, not 1, may hold labels.*'size': int64.*with --label-column"):
        counts(tmp_path)
    found, notes = counts(tmp_path, label_column="size")
    assert found == {"train": THREE} and "'image' is taken for the images, not mask" in notes
    assert counts(tmp_path, label_column="colour")[0] == {"train": TWO}
    records = open_source(str(tmp_path), Reading(image_column="mask", label_column="size")).splits["train"]
    assert records.rows[3][records.image]["bytes"] == masks[3]["bytes"]
    for wrong, words in (
        (dict(label_column="hue"), "'hue' is not there"),
        (dict(image_column="size"), "'size' holds"),
    ):
        with pytest.raises(DataError, match=f"{words}.*'size': int64"):
            counts(tmp_path, **{"label_column": "size", **wrong})


@pytest.mark.parametrize("names, chosen", [
    (("image", "mask"), "image"), (("segmentation", "img"), "img"), (("left", "picture_right"), "picture_right"),
    (("depth", "Photo"), "Photo"),
])  # fmt: skip
def test_the_column_of_pictures(tmp_path, names, chosen):
    columns = {name: [encoded(picture(i)) for i in range(12)] for name in names}
    pq.write_table(pa.table({**columns, "label": FINE}), tmp_path / "train.parquet")
    source = open_source(str(tmp_path))
    assert source.splits["train"].image == chosen and f"{chosen!r} is taken" in source.notes[0]


def test_plain_bytes_and_paths_are_pictures(tmp_path):
    content = [encoded(picture(i))["bytes"] for i in range(12)]
    write_rows(tmp_path / "bytes" / "train.parquet", image=content, label=COARSE)
    folder = write_folder(tmp_path / "paths" / "pictures", ("all",), count=12).parent
    names = [f"pictures/all/{i:03}.png" for i in range(12)]
    write_rows(folder / "train.parquet", image=names, label=COARSE)
    write_rows(folder / "test.parquet", image=names[:3], label=COARSE[:3])
    for place in (tmp_path / "bytes", folder):
        records = open_source(str(place)).splits["train"]
        decoded = decode(records, torch.arange(12), 3, 12)
        assert all(np.array_equal(decoded[i].permute(1, 2, 0), picture(i)) for i in range(12))
    assert counts(folder)[0] == {"train": TWO, "test": {0: 2, 1: 1}}


@pytest.mark.parametrize("pixels", [[[0, 1, 2, 3]] * 12, [[[0, 1], [2, 3]]] * 12])
def test_lists_of_pixels_are_refused(tmp_path, pixels):
    write_rows(tmp_path / "train.parquet", image=pixels, label=COARSE)
    with pytest.raises(DataError, match="holds pixels as numbers.*'image'"):
        counts(tmp_path)


def test_a_test_split_without_labels_is_left_out(tmp_path):
    write_rows(tmp_path / "train.parquet", label=FINE)
    for labels in (dict(other=FINE), dict(label=[None] * 12)):
        write_rows(tmp_path / "test.parquet", **labels)
        found, notes = counts(tmp_path)
        assert found == {"train": THREE} and "the test split is left out" in notes


def test_a_parquet_file_can_be_given(tmp_path):
    path = write_rows(tmp_path / "odd.parquet", label=FINE)
    assert counts(path)[0] == {"train": THREE}
