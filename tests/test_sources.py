"""What `oncequant.data` promises of folders of images and of data sets in Python."""

import time

import datasets
import numpy as np
import pytest
import torch
from pictures import arrays, picture, rows_of, surroundings, write_folder  # noqa: F401 - surroundings is a fixture
from PIL import Image
from torch.utils.data import ConcatDataset, IterableDataset, Subset, TensorDataset, random_split

from oncequant.data import DataError, load_data, native_size, sources, tables, train_batches
from oncequant.data.sources import open_source


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


def test_the_names_of_classes_are_found_behind_parts_of_a_data_set():
    whole = arrays(60)
    whole.classes = ["red", "blue", "green"]
    parts = random_split(whole, [40, 20], torch.Generator().manual_seed(0))
    for train in (parts[0], Subset(parts[0], range(30)), ConcatDataset([whole, whole])):
        data = load_data((train, parts[1], None), size=16)
        assert data.classes == ("red", "blue", "green")
    i = next(i for i in range(20) if parts[1][i][1] == 1)
    assert data.validation.labels[i] == 1


@pytest.mark.parametrize("names", [None, [], ()])
def test_no_names_are_no_names(names):
    train = arrays(30)
    train.classes = names
    assert load_data((train, None, None), size=16).classes == ("0", "1", "2")


@pytest.mark.parametrize("kind", [torch.tensor, np.float32, float, np.int8, lambda i: torch.tensor(float(i)), np.array,
                                  lambda i: torch.tensor([i])])  # fmt: skip
def test_labels_may_be_any_whole_number(kind):
    train = [(picture(i), kind(i % 3)) for i in range(30)]
    assert load_data((train, None, None), size=12).classes == ("0", "1", "2")


@pytest.mark.parametrize("kind", [bool, np.bool_, lambda i: torch.tensor(bool(i))])
def test_labels_may_be_true_and_false(kind):
    train = [(picture(i), kind(i % 2)) for i in range(30)]
    assert len(load_data((train, None, None), size=12).classes) == 2


@pytest.mark.parametrize("label", [0.5, float("nan"), torch.tensor(1.5), torch.tensor([0, 1]), np.float64(2.7), [1]])
def test_other_labels_are_named(label):
    with pytest.raises(DataError, match="row 1 of the train split: label .* is no class"):
        load_data(([(picture(0), 0), (picture(1), label)], None, None), size=12)


def test_tables_of_the_library_datasets_are_python_data_sets():
    features = datasets.Features(img=datasets.Image(), y=datasets.ClassLabel(names=["cat", "dog"]))
    table = datasets.Dataset.from_dict({"img": [picture(i) for i in range(12)], "y": [0, 1] * 6}, features)
    data = load_data((table, None, table), size=12)
    assert data.classes == ("cat", "dog") and len(data.test) == 12


@pytest.mark.parametrize("source", [
    "./a", "../a", "/a", "~/a", "a/", "a/b/c", "there/b", "a.zip", "a/b.csv", "a/b.tar.gz", "cat.png", "C:\\a", "a b",
])  # fmt: skip
def test_a_path_is_never_asked_of_the_hub(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there" / "bees").mkdir(parents=True)
    monkeypatch.setattr(tables, "load_hub", pytest.fail)
    monkeypatch.setattr(sources, "load_hub", pytest.fail)
    with pytest.raises(DataError, match="nothing is there"):
        open_source(source)
    with pytest.raises(DataError, match="there is bees"):
        open_source("there/bee")
    with pytest.raises(DataError, match="is empty"):
        open_source("")


@pytest.mark.parametrize("name", ["pets.zip", "pets.tar", "pets.tar.gz", "pets.7z"])
def test_archives_are_to_be_unpacked(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=f"{name}: is an archive; unpack it"):
        open_source(str(tmp_path / name))


def test_without_a_network_the_hub_fails_soon(monkeypatch):
    monkeypatch.setattr(tables, "_hub_answers", lambda name: False)
    before, start = datasets.config.HF_HUB_OFFLINE, time.monotonic()
    with pytest.raises(DataError, match="no-such-org/no-such-set.*hub") as caught:
        open_source("no-such-org/no-such-set")
    assert "\n" not in str(caught.value) and time.monotonic() - start < 10
    assert datasets.config.HF_HUB_OFFLINE == before
