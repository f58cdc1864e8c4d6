"""What `oncequant.data` promises of its sources: every kind of image, and clear errors."""

import re
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from pictures import arrays, picture, rows_of, same, surroundings, write_folder  # noqa: F401 - surroundings is a fixture
from PIL import Image
from torch.utils.data import IterableDataset, TensorDataset

from oncequant import data as module
from oncequant.data import (
    DataError,
    eval_batches,
    load_data,
    native_size,
    train_batches,
)

# ------------------------------------------------------------------ sources


def test_digits():
    data = load_data("digits", size=8)
    assert (data.name, data.channels, data.flip, len(data.classes)) == ("digits", 1, False, 10)
    assert len(data.train) + len(data.validation) + len(data.test) == 1797
    pixels = data.train.images(torch.arange(len(data.train)))
    assert pixels.shape[1:] == (1, 8, 8) and pixels.max() == 255 and len(pixels.unique()) == 17
    bigger = load_data("digits", size=16, flip=True, max_train=30)
    assert bigger.flip and bigger.train.images(torch.tensor([3])).shape == (1, 1, 16, 16)


def test_native_size_is_the_median_shorter_side(tmp_path):
    write_folder(tmp_path, count=3, size=(30, 20))
    picture(0, size=(500, 400)).save(tmp_path / "cat" / "big.png")
    assert native_size(str(tmp_path)) == 20
    assert native_size("digits") == 8
    assert native_size((arrays(9, size=16), None, None)) == 16


def test_two_classes_of_twenty_images_are_enough(tmp_path):
    write_folder(tmp_path / "pets", classes=("dog", "cat"))
    data = load_data(str(tmp_path / "pets"), size=12)
    assert (data.name, data.classes, data.channels, data.size, data.flip) == ("pets", ("cat", "dog"), 3, 12, True)
    assert (len(data.train), len(data.validation), len(data.test)) == (26, 6, 8)
    images, labels = next(train_batches(data, 16, seed=0))
    assert images.shape == (16, 3, 12, 12) and labels.dtype == torch.int64
    # images of the size asked for are kept to the last bit
    originals = {np.asarray(Image.open(f)).transpose(2, 0, 1).tobytes() for f in tmp_path.rglob("*.png")}
    assert set(rows_of(data.train)) | set(rows_of(data.validation)) | set(rows_of(data.test)) == originals


def test_a_class_may_be_called_train(tmp_path):
    assert load_data(str(write_folder(tmp_path, classes=("bus", "train"))), size=12).classes == ("bus", "train")


@pytest.mark.parametrize("names", [("Train", "Test"), ("training", "testing"), ("TRAIN", "Val", "test")])
def test_splits_are_known_by_other_spellings(tmp_path, names):
    for name in names:
        write_folder(tmp_path / name, classes=("dog", "cat"))
    data = load_data(str(tmp_path), size=12)
    assert data.classes == ("cat", "dog") and len(data.test) == 40
    assert len(data.validation) == (40 if len(names) == 3 else 6)


def test_folders_beside_splits_are_named(tmp_path, capsys):
    for name in ("train", "test"):
        write_folder(tmp_path / name, classes=("dog", "cat"))
    assert load_data(str(tmp_path), size=12) and not capsys.readouterr().out
    write_folder(tmp_path / "raw", classes=("bird",))
    assert load_data(str(tmp_path), size=12).classes == ("cat", "dog")
    assert "raw left out" in " ".join(capsys.readouterr().out.split())


def test_a_data_set_without_length_is_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            yield picture(0), 0

    with pytest.raises(DataError, match="train split is a Stream: use a map-style data set"):
        load_data((Stream(), None, None), size=12)


def test_hidden_files_other_files_and_depth_do_not_matter(tmp_path):
    write_folder(tmp_path)
    before = load_data(str(tmp_path), size=12).fingerprint
    (tmp_path / "cat" / ".hidden.png").write_bytes(b"")
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "loose.png").write_bytes(b"")
    (tmp_path / ".git").mkdir()
    (tmp_path / "cat" / ".thumbnails").mkdir()
    picture(5).save(tmp_path / "cat" / ".thumbnails" / "x.png")
    assert load_data(str(tmp_path), size=12).fingerprint == before
    (tmp_path / "cat" / "deeper").mkdir()
    picture(77).save(tmp_path / "cat" / "deeper" / "x.PNG")
    data = load_data(str(tmp_path), size=12)
    assert len(data.train) + len(data.validation) + len(data.test) == 41


def test_files_left_out_are_counted_once(tmp_path, capsys):
    write_folder(tmp_path)
    for name in ("a.heic", "b.HEIC", "notes"):
        (tmp_path / "cat" / name).write_bytes(b"")
    picture(0).save(tmp_path / "dog" / "from_a_browser.jfif", "jpeg")
    data = load_data(str(tmp_path), size=12)
    assert len(data.train) + len(data.validation) + len(data.test) == 41
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("left out") == 1
    assert shown.endswith("no images by their names are left out: 2 .heic, 1 without suffix")
    native_size(str(tmp_path))
    assert not capsys.readouterr().out


def test_links_are_followed_but_not_in_circles(tmp_path):
    write_folder(tmp_path / "set")
    (tmp_path / "elsewhere").mkdir()
    picture(77).save(tmp_path / "elsewhere" / "x.png")
    cats = tmp_path / "set" / "cat"
    (cats / "circle").symlink_to(cats, target_is_directory=True)
    (cats / "more").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (cats / "up").symlink_to(tmp_path / "set", target_is_directory=True)
    (cats / "again").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    data = load_data(str(tmp_path / "set"), size=12)
    assert len(data.train) + len(data.validation) + len(data.test) == 41


def test_a_test_folder_without_labels_counts_as_missing(tmp_path, capsys):
    write_folder(tmp_path / "train")
    (tmp_path / "test").mkdir()
    picture(0).save(tmp_path / "test" / "unknown.png")
    data = load_data(str(tmp_path), size=12)
    assert len(data.test) == 8 and data.classes == ("cat", "dog")
    assert "test left out: its images are in no class folders" in " ".join(capsys.readouterr().out.split())


def test_names_that_are_not_utf8_are_named(tmp_path):
    write_folder(tmp_path)
    picture(0).save(bytes(tmp_path / "cat") + b"/\xe4.png", "png")
    with pytest.raises(DataError, match=r"cat/\\udce4\.png'.*not in UTF-8; rename it"):
        load_data(str(tmp_path), size=12)


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


@pytest.mark.parametrize("convert", [
    lambda image: image,
    lambda image: np.asarray(image),
    lambda image: np.asarray(image).transpose(2, 0, 1),
    lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1),
    lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255,
    lambda image: np.asarray(image).astype(np.float64) / 255,
    lambda image: np.asarray(image).astype(np.uint16) * 257,
])  # fmt: skip
def test_python_datasets_may_hold_any_kind_of_image(convert):
    train = [(convert(picture(i)), np.int64(i % 2)) for i in range(12)]
    test = [(convert(picture(99)), torch.tensor(1))]
    data = load_data((train, train, test), size=12)
    assert (len(data.train), len(data.validation), len(data.test), data.channels) == (12, 12, 1, 3)
    assert np.array_equal(data.test.images(torch.tensor([0]))[0].permute(1, 2, 0), picture(99))
    assert data.classes == ("0", "1") and data.test.labels.tolist() == [1]


def test_tensors_are_channels_first_and_arrays_channels_last_where_both_are_possible():
    array = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)
    for image, expected in [(array, array[:, :3].transpose(2, 0, 1)), (torch.from_numpy(array), None)]:
        if expected is None:
            expected = array[:, :3]  # three channels of 4 x 3 pixels, of which 3 x 3 are kept
        rows = [(image, 0), (image, 1)]
        assert np.array_equal(load_data((rows, rows, rows), size=3).test.images(torch.tensor([0]))[0], expected)


def test_the_fingerprint_is_of_labels_and_pixels():
    train, labels = arrays(12), torch.arange(12) % 3
    other_labels, other_pixels = TensorDataset(train.tensors[0], labels.flip(0)), arrays(12)
    other_pixels.tensors[0][0, 0, 0, 0] ^= 255
    prints = [load_data((t, train, train), size=16).fingerprint for t in (train, train, other_labels, other_pixels)]
    assert prints[0] == prints[1] and len(set(prints)) == 3


def test_the_images_of_a_python_dataset_are_not_changed():
    image = picture(0, size=(8, 12))
    image.getexif()[0x0112] = 6
    load_data(([(image, i % 2) for i in range(12)], None, None), size=8)
    assert image.size == (8, 12) and image.getexif()[0x0112] == 6


def test_python_datasets_may_name_their_classes():
    train = arrays(30)
    train.classes = ["red", "blue", "green"]
    assert load_data((train, None, None), size=16).classes == ("red", "blue", "green")
    train.classes = ["red", "blue"]
    with pytest.raises(DataError, match="red, blue"):
        load_data((train, None, None), size=16)


# ------------------------------------------------------------------ kinds of images


def one_image(tmp_path, image, name="x.png", size=8, colour=True, **save):
    """Load a folder in which `image` is the whole test split."""
    write_folder(tmp_path / "train", count=3, mode="RGB" if colour else "L", size=(size, size))
    (tmp_path / "test" / "cat").mkdir(parents=True)
    image.save(tmp_path / "test" / "cat" / name, **save)
    data = load_data(str(tmp_path), size=size)
    return data, data.test.images(torch.tensor([0]))[0]


def sixteen_bit():
    return Image.fromarray((np.arange(64, dtype=np.uint16) * 4 * 257).reshape(8, 8))


def test_16_bit_greyscale_is_scaled_not_clipped(tmp_path):
    data, pixels = one_image(tmp_path, sixteen_bit(), colour=False)
    assert data.channels == 1 and pixels.flatten().tolist() == list(range(0, 256, 4))


def test_32_bit_integers_and_floats(tmp_path):
    ramp = np.arange(0, 256, 4, dtype=np.float32).reshape(8, 8)
    for name, image in [("I", sixteen_bit().convert("I")), ("F", Image.fromarray(ramp / 255))]:
        assert image.mode == name
        _, pixels = one_image(tmp_path / name, image, "x.tiff", colour=False)
        assert pixels.flatten().tolist() == list(range(0, 256, 4))


@pytest.mark.parametrize("mode, name", [("LA", "x.png"), ("RGBA", "x.png"), ("P", "x.gif"), ("P", "x.png")])
def test_transparency_becomes_white(tmp_path, mode, name):
    if mode == "P":
        image = Image.new("P", (8, 8), 1)
        image.putpalette([0, 0, 0, 40, 50, 60])
        image.paste(0, (0, 0, 4, 8))  # transparent black on the left
        saved = dict(transparency=0)
    else:
        image, saved = Image.new("RGBA", (8, 8), (40, 40, 40, 255)), {}
        image.paste((0, 0, 0, 0), (0, 0, 4, 8))
        image = image.convert(mode)
    data, pixels = one_image(tmp_path, image, name, colour=mode != "LA", **saved)
    assert data.channels == (1 if mode == "LA" else 3)
    colours = {"LA": [40], "RGBA": [40, 40, 40], "P": [40, 50, 60]}[mode]
    assert pixels[:, :, :4].min() == 255 and pixels[:, 5, 5].tolist() == colours


def test_cmyk_becomes_rgb(tmp_path):
    _, pixels = one_image(tmp_path, Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "x.jpg", quality=95)
    red, green, blue = pixels.float().mean((1, 2))
    assert red > 240 and green < 15 and blue < 15


def test_one_colour_image_makes_the_set_a_colour_set(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "HEADER_SAMPLE", 1)  # a resident set looks at every header all the same
    write_folder(tmp_path, count=20, mode="L")
    assert load_data(str(tmp_path), size=12).channels == 1
    picture(0).save(tmp_path / "dog" / "007.png")
    data = load_data(str(tmp_path), size=12)
    assert data.channels == 3
    greys = [x for split in (data.train, data.validation, data.test) for x in split.images(torch.arange(len(split)))]
    assert sum(x[0].equal(x[1]) and x[0].equal(x[2]) for x in greys) == 39


def test_streaming_greyscale_is_decided_by_a_sample_and_the_rest_is_converted(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "HEADER_SAMPLE", 1)
    train = [(picture(i, mode="RGB" if i == 11 else "L"), i % 2) for i in range(12)]
    data = load_data((train, train, train), size=12, resident_limit_bytes=0)
    assert data.channels == 1 and data.train.images(torch.tensor([11])).shape == (1, 1, 12, 12)
    assert np.array_equal(data.train.images(torch.tensor([11]))[0, 0], picture(11).convert("L"))


@pytest.mark.parametrize("streaming", [False, True])
def test_mixed_sizes_are_scaled_on_the_shorter_side_and_centred(tmp_path, streaming):
    wide = Image.new("RGB", (64, 16), "red")
    wide.paste("blue", (24, 0, 40, 16))  # the square in the centre
    tall = Image.new("RGB", (5, 20), "red")
    tall.paste("blue", (0, 7, 5, 13))  # rows 7 to 12 are kept in full or not at all
    source = [(wide, 0), (tall, 1)] * 4
    data = load_data((source, source, source), size=8, resident_limit_bytes=0 if streaming else 10**9)
    for pixels in data.train.images(torch.arange(2))[:, :, 1:-1, 1:-1]:  # antialiasing mixes the border
        assert pixels[2].min() == 255 and pixels[0].max() == 0


def test_exif_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (32, 16), "red")
    image.paste("blue", (0, 0, 16, 16))  # blue left half; "rotate 90 degrees clockwise to view" puts it on top
    exif = Image.Exif()
    exif[0x0112] = 6
    _, pixels = one_image(tmp_path, image, "x.jpg", size=16, exif=exif, quality=95, subsampling=0)
    assert pixels[2, :7].min() > 200 and pixels[0, 9:].min() > 200


def test_big_jpegs_are_decoded_small_without_losing_detail(tmp_path):
    blocks = picture(3, size=(64, 48), mode="L").resize((640, 480), Image.Resampling.NEAREST).convert("RGB")
    _, pixels = one_image(tmp_path, blocks, "x.jpg", size=64, quality=95)
    whole = Image.open(tmp_path / "test" / "cat" / "x.jpg")
    exact = whole.resize((64, 64), Image.Resampling.BILINEAR, (80, 0, 560, 480))
    difference = pixels.permute(1, 2, 0).float() - torch.from_numpy(np.array(exact)).float()
    assert difference.abs().mean() < 6  # of about 60 from block to block


# ------------------------------------------------------------------ errors name what is wrong


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
        data = load_data(str(folder), size=12, resident_limit_bytes=0 if streaming else 10**9)
        for split in (data.train, data.validation, data.test):
            list(eval_batches(data, split))


@pytest.mark.parametrize("kind", ["empty", "truncated", "text"])
def test_broken_images_that_are_streamed_are_found_before_training(tmp_path, kind, monkeypatch):
    folder = write_folder(tmp_path / "set", count=200)
    whole = tmp_path / "whole.jpg"
    picture(0, size=(64, 64)).save(whole)
    (folder / "dog" / "000b.jpg").write_bytes(whole.read_bytes() + b"\0\0 a comment behind its end")
    picture(0).save(folder / "dog" / "000c.webp")
    module.check_images(load_data(str(folder), size=12, resident_limit_bytes=0))
    data = load_data(str(folder), size=12, resident_limit_bytes=0)
    row = next(int(r) for r in data.train.rows[1:] if "dog" in data.train.records.rows[int(r)]["image"])
    path = Path(data.train.records.rows[row]["image"])
    path.write_bytes(broken_files(tmp_path)[kind])
    with pytest.raises(DataError, match=path.name):
        module.check_images(data)
    module.check_images(load_data("digits", size=8, max_train=20))  # decoded already


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


def test_a_broken_row_of_a_parquet_file_is_numbered(tmp_path):
    rows = [encoded(picture(i), f"{i}.png") for i in range(9)]
    rows[4] = {"bytes": b"not a picture", "path": "4.png"}
    features = datasets.Features(image=datasets.Image(decode=False), label=datasets.Value("int64"))
    table = datasets.Dataset.from_dict({"image": rows, "label": [0, 1, 2] * 3}, features)
    table.to_parquet(tmp_path / "train-0.parquet")
    with pytest.raises(DataError, match=r"row 4 of the train split.*4\.png"):
        load_data(str(tmp_path), size=12)


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
        ("empty", lambda root: (root / "train" / "eel").mkdir(), r"train.eel: this class folder holds no images"),
        ("deep", lambda root: (root / "train" / "eel" / "deep").mkdir(parents=True), r"train.eel: this class"),
        ("extra", only_in_test, "'okapi' occurs in the test split but not in the train split"),
        ("no_train", no_train, "no train split, only validation"),
        ("one", lambda root: (root / "train" / "cat").rename(root / "train" / ".cat"), "at least 2 classes.*'dog'"),
        ("flat", flat, "flat.train: holds no class folders"),
        ("twice", lambda root: [(root / split).mkdir() for split in ("val", "valid")], "train, val, valid"),
    ]:
        with pytest.raises(DataError, match=words):
            load_data(folder(name, change), size=12)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="nothing: holds no class folders.*'digits'"):
        load_data(str(tmp_path / "nothing"), size=12)


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
    write_folder(tmp_path, count=4)
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)  # how Python marks "cannot be imported"
    with pytest.raises(DataError, match=r'pip install "oncequant\[data\]"'):
        load_data(str(tmp_path), size=12)
    assert len(load_data("digits", size=8, max_train=20).train) == 20
