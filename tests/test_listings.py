"""What `oncequant.data` promises of tables beside pictures: CSV, TSV, JSONL and parquet files that name them."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import surroundings  # noqa: F401 - surroundings is a fixture
from test_folders import counts, write

from oncequant.data import DataError, load_data

PETS = ("cat", "dog", "cat", "dog", "eel", "eel")


def table(path: Path, header: str, rows, separator=",") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [header, *(separator.join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def named(labels=PETS, form="{}.png"):
    return [(form.format(i), label) for i, label in enumerate(labels)]


@pytest.mark.parametrize("folder, name, header, form", [
    ("train", "train.csv", "id,label", "{}"),
    ("train", "labels.csv", "id,breed", "{}"),
    ("train_images", "trainLabels.csv", "image,level", "{}"),
    ("train", "train.csv", "file,label", "{}.png"),
    ("images", "labels.csv", "filename,class", "{}.png"),
    ("images", "data.csv", "path,Category", "images/{}.png"),
    ("", "labels.csv", "image_id,Target", "{}"),
    ("pictures/all", "labels.csv", "file,label", "./all/{}.png"),
    ("train", "annotations/train.csv", "file,label", "{}.png"),
    ("dataset/train", "dataset/train.csv", "file,label", "train/{}.png"),
    ("images", "labels.csv", "file,label", "images\\{}.png"),
])  # fmt: skip
def test_a_table_beside_pictures(tmp_path, folder, name, header, form):
    write(tmp_path, folder, count=6)
    table(tmp_path / name, header, named(form=form))
    table(tmp_path / "sample_submission.csv", header, named(["cat"] * 6))
    write(tmp_path, "test", count=6)
    found, notes = counts(tmp_path)
    assert found == {"train": {"cat": 2, "dog": 2, "eel": 2}}
    assert "6 pictures are left out, since no row names them" in notes and "sample_submission.csv left out" in notes


def test_each_row_has_its_picture(tmp_path):
    write(tmp_path, "images", count=12)
    labels = [("ant", "bee", "cow")[i % 3] for i in range(12)]
    table(tmp_path / "labels.csv", "file,label", reversed(named(labels)))
    source = load_data(str(tmp_path), size=12, resident_limit_bytes=0).train.records
    for row in source.rows:
        assert source.rows.features["label"] is not None
        assert row["label"] == labels[int(Path(row["image"]).stem)]


def test_leading_zeros_semicolons_and_tables_without_header(tmp_path):
    write(tmp_path, "images", count=6)
    for i in range(6):
        (tmp_path / "images" / f"{i}.png").rename(tmp_path / "images" / f"00{i}.png")
    expected = {"train": {"cat": 2, "dog": 2, "eel": 2}}
    path = table(tmp_path / "a.csv", "id;label", named(form="00{}"), ";")
    assert counts(tmp_path)[0] == expected
    path.unlink()
    path = table(tmp_path / "a.tsv", "id\tlabel", named(form="00{}"), "\t")
    assert counts(tmp_path)[0] == counts(path)[0] == expected
    path.unlink()
    table(tmp_path / "a.csv", "000.png,cat", named(form="00{}.png")[1:])
    assert counts(tmp_path)[0] == expected


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
@pytest.mark.parametrize("column", ["file_name", "image"])
def test_metadata_in_each_split_folder(tmp_path, kind, column):
    for split in ("train", "validation", "test"):
        write(tmp_path, f"data/{split}", count=6)
        rows = [{column: f"{i}.png", "label": label} for i, label in enumerate(PETS)]
        path = tmp_path / "data" / split / f"metadata.{kind}"
        if kind == "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        elif kind == "csv":
            table(path, f"{column},label", named())
        else:
            pq.write_table(pa.Table.from_pylist(rows), path)
    found, _ = counts(tmp_path)
    assert found == dict.fromkeys(("train", "validation", "test"), {"cat": 2, "dog": 2, "eel": 2})


@pytest.mark.parametrize("name, values", [
    ("split", ("train", "train", "test")), ("Set", ("Training", "Training", "hold-out")),
    ("partition", ("tr", "tr", "val")), ("Usage", ("Training", "Training", "PublicTest")),
])  # fmt: skip
def test_a_column_may_tell_the_splits(tmp_path, name, values):
    write(tmp_path, "images", count=6)
    rows = [(f"{i}.png", "cat" if i % 2 else "dog", values[i // 2]) for i in range(6)]
    found, notes = counts(table(tmp_path / "all.csv", f"file,label,{name}", rows))
    assert (
        set(found) == {"train", "validation" if "val" in values else "test"} and f"{name!r} tells the splits" in notes
    )
    assert found["train"] == {"cat": 2, "dog": 2}


def test_a_test_table_without_labels_is_left_out(tmp_path):
    write(tmp_path, "train", "test", count=6)
    table(tmp_path / "train.csv", "id,label", named(form="{}"))
    table(tmp_path / "test.csv", "id", [(i,) for i in range(6)])
    found, notes = counts(tmp_path)
    assert found == {"train": {"cat": 2, "dog": 2, "eel": 2}} and "test.csv left out: it has no column 'label'" in notes
    table(tmp_path / "test.csv", "id,label", named(form="{}"))
    assert set(counts(tmp_path)[0]) == {"train", "test"}


def test_pictures_that_are_not_there(tmp_path):
    write(tmp_path, "images", count=6)
    path = table(tmp_path / "labels.csv", "file,label", [*named(), ("gone.png", "cat"), ("lost.png", "dog")])
    found, notes = counts(tmp_path)
    assert found == {"train": {"cat": 2, "dog": 2, "eel": 2}} and "2 of 8 pictures" in notes
    assert "gone.png, lost.png" in notes
    table(path, "file,label", [(f"x{i}.png", label) for i, label in enumerate(PETS)])
    for source, reading in ((path, {}), (tmp_path, dict(image_column="file"))):
        with pytest.raises(DataError, match=r"labels\.csv.*'file'|holds no table that names pictures"):
            counts(source, **reading)


@pytest.mark.parametrize("header, rows, words", [
    ("file,size,hue", [(f"{i}.png", i % 3, i % 2) for i in range(6)], "2 columns.*'file': string, 'size'.*--label-col"),
    ("file,label", [*named(), ("0.png", "dog")], r"1 pictures have several labels in column 'label': 0\.png"),
    ("file,label", [*named(PETS[:5]), ("5.png", "")], "1 of 6 rows have no label in column 'label'"),
    ("file,score", [(f"{i}.png", i / 7) for i in range(6)], "0 columns, not 1, may hold labels"),
])  # fmt: skip
def test_tables_that_leave_a_choice_are_refused(tmp_path, header, rows, words):
    write(tmp_path, "images", count=6)
    with pytest.raises(DataError, match=words) as caught:
        counts(table(tmp_path / "labels.csv", header, rows).parent)
    assert "\n" not in str(caught.value)


def test_columns_can_be_given(tmp_path):
    write(tmp_path, "images", "masks", count=6)
    rows = [(f"images/{i}.png", f"masks/{i}.png", i % 3, i % 2) for i in range(6)]
    table(tmp_path / "labels.csv", "photograph,mask,size,colour", rows)
    assert counts(tmp_path, image_column="mask", label_column="size")[0]["train"] == {0: 2, 1: 2, 2: 2}
    assert counts(tmp_path, image_column="photograph", label_column="colour")[0]["train"] == {0: 3, 1: 3}
    for wrong in (dict(label_column="sise"), dict(image_column="size"), dict(image_column="nothing")):
        with pytest.raises(DataError, match=r"'sise'|'size'|'nothing'"):
            counts(tmp_path, **{"label_column": "size", **wrong})


def test_class_folders_and_a_table(tmp_path):
    write(tmp_path, "cat", "dog")
    rows = [(f"{pet}/{i}.png", pet) for pet in ("cat", "dog") for i in range(3)]
    table(tmp_path / "labels.csv", "file,label", rows)
    found, notes = counts(tmp_path)
    assert found == {"train": {"cat": 3, "dog": 3}} and "labels.csv left out" in notes
    table(tmp_path / "labels.csv", "file,label,split", [(*row, "test" if "2" in row[0] else "train") for row in rows])
    assert counts(tmp_path)[0] == {"train": {"cat": 2, "dog": 2}, "test": {"cat": 1, "dog": 1}}
    table(tmp_path / "labels.csv", "file,label", [(name, "even" if "1" in name else "odd") for name, _ in rows])
    with pytest.raises(DataError, match=r"labels\.csv tells other classes than the folders cat, dog"):
        counts(tmp_path)
    assert counts(tmp_path, layout="classes")[0] == {"train": {"cat": 3, "dog": 3}}
    assert counts(tmp_path, label_column="label")[0] == {"train": {"even": 2, "odd": 4}}
    table(tmp_path / "labels.csv", "width,height", [(12, 12)] * 3)  # names no pictures
    assert counts(tmp_path)[0] == {"train": {"cat": 3, "dog": 3}}


def test_numbered_parts_of_one_folder_are_no_classes(tmp_path):
    write(tmp_path, "part_1", "part_2")
    for i in range(3):
        (tmp_path / "part_2" / f"{i}.png").rename(tmp_path / "part_2" / f"{i + 3}.png")
    table(tmp_path / "metadata.csv", "image_id,dx,age", [(i, PETS[i], 40 + i % 2) for i in range(6)])
    with pytest.raises(DataError, match="--label-column"):
        counts(tmp_path)
    assert counts(tmp_path, label_column="dx")[0] == {"train": {"cat": 2, "dog": 2, "eel": 2}}


def test_two_tables_are_refused(tmp_path):
    write(tmp_path, "images", count=6)
    table(tmp_path / "a.csv", "file,label", named())
    table(tmp_path / "b.csv", "file,label", named(reversed(PETS)))
    with pytest.raises(DataError, match=r"several tables name train pictures: a\.csv, b\.csv; give one"):
        counts(tmp_path)
    assert counts(tmp_path / "a.csv")[0] == {"train": {"cat": 2, "dog": 2, "eel": 2}}


@pytest.mark.parametrize("name, text, words", [
    ("labels.csv", "label,pixel0,pixel1\n" + "1,2,3\n" * 4, "labels.csv"),
    ("fer.csv", "emotion,pixels\n" + f"1,{' '.join(['70'] * 48)}\n" * 4, "holds pixels as numbers.*pixels"),
    ("mnist.csv", ",".join(["label", *(f"pixel{i}" for i in range(100))]) + "\n" + ",".join("1" * 101) + "\n",
     "holds pixels as numbers"),
    ("broken.csv", "a,b\n1,2,3,4\n", "cannot be read as a table"),
    ("broken.jsonl", '{"a": 1\n', "cannot be read as a table"),
])  # fmt: skip
def test_tables_without_pictures_are_refused(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=words) as caught:
        counts(tmp_path / name)
    assert "\n" not in str(caught.value)
