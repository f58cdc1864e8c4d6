"""What `oncequant.data` promises of folders: splits are never learned as classes, and what is left out is said."""

import pytest
from pictures import counts, picture, surroundings  # noqa: F401 - surroundings is a fixture

from oncequant.data import DataError, Reading, load_data
from oncequant.data.names import split_of, splits_of
from oncequant.data.sources import open_source


def write(root, *folders, count=3):
    """A few pictures in each folder."""
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            picture(1000 * len(folder) + i).save(root / folder / f"{i}.png")
    return root


def pets(*names):
    return [f"{name}/{pet}" for name in names for pet in ("cat", "dog")]


def test_words_tell_the_split():
    names = {
        "train": "train training tr trn Train TRAIN train_set training_set TrainingSet trainset train-images "
        "imgs_train train2017 01_train seg_train cifar10-train-00000-of-00002 train.part1 traindata "
        "trainval train_val X_train",
        "validation": "val valid validation dev evaluation val2017 ValidSet val_imgs dev-set eval",
        "test": "test testing tst test_set holdout hold-out hold_out HoldOut test1 private_test testing_images",
    }
    for split, texts in names.items():
        assert {text: split_of(text) for text in texts.split()} == dict.fromkeys(texts.split(), split)
    for text in ("bullet train", "test tube", "training shoes", "eval board", "latest", "invalid", "restrained", "data",
                 "train_test_split", "contest", "steam-train", "testimony", "7"):  # fmt: skip
        assert split_of(text) is None, text
    assert splits_of(["pets_train", "pets_test", "bullet train"]) == {"pets_train": "train", "pets_test": "test"}


@pytest.mark.parametrize("train, test", [
    ("training_set", "test_set"), ("seg_train/seg_train", "seg_test/seg_test"), ("Train", "hold-out"),
    ("dataset/images_train", "dataset/images_testing"), ("birds_train", "birds_test"), ("train2017", "test2017"),
    ("TrainImages", "TestImages"), ("archive/train/images", "archive/test/images"),
])  # fmt: skip
def test_folders_of_splits_are_no_classes(tmp_path, train, test):
    found, _ = counts(write(tmp_path, *pets(train, test)))
    assert found == {"train": {"cat": 3, "dog": 3}, "test": {"cat": 3, "dog": 3}}


@pytest.mark.parametrize("classes", [
    ("bus", "train"), ("bullet train", "steam train"), ("test tube", "train"), ("training shoes", "eval board", "dev"),
    ("valid", "invalid"), ("tr", "en", "de"),
])  # fmt: skip
def test_a_class_may_be_called_like_a_split(tmp_path, classes):
    assert set(counts(write(tmp_path, *classes))[0]["train"]) == set(classes)


@pytest.mark.parametrize("folders, words", [
    (pets("fold1", "fold2"), r"fold1 and fold2 hold folders of the same names \(cat, dog\)"),
    (pets("color", "grayscale"), "look like splits or folds"),
    (pets("amazon/images", "dslr/images"), "amazon and dslr hold"),
    (["set_a/cat", "set_b/cat"], r"same names \(cat\)"),
    (["cat", "dog", *pets("test")], "test holds folders with the names of its siblings"),
    (["train/steam", "train/electric", "bus/city", "car"], "train looks like a split, but .*bus, car"),
    ([*pets("train"), *pets("extra")], "--layout splits to leave these out"),
    (["cat/train", "cat/test", "dog"], "cat: holds splits"),
    (["cat/train", "cat/test", "cat/raw stuff", "dog/train", "dog/test"], "cat: holds splits"),
    ([*pets("train/a", "train/b"), *pets("test")], "train: a and b hold"),
    (pets("test", "testing", "train"), "test and testing name the same split, test"),
    (["images", "test"], "images, test tell splits, not classes"),
    (["train", "test"], "train: holds no class folders"),
    (pets("val"), "no train split, only val"),
])  # fmt: skip
def test_what_looks_like_splits_or_folds_is_refused(tmp_path, folders, words):
    with pytest.raises(DataError, match=words) as caught:
        counts(write(tmp_path, *folders, count=1))
    assert "\n" not in str(caught.value)


def test_the_layout_can_be_given(tmp_path):
    write(tmp_path / "folds", *pets("fold1", "fold2"))
    assert counts(tmp_path / "folds", layout="classes")[0] == {"train": {"fold1": 6, "fold2": 6}}
    write(tmp_path / "vehicles", "train/steam", "train/electric", "bus/city")
    assert counts(tmp_path / "vehicles", layout="classes")[0] == {"train": {"train": 6, "bus": 3}}
    found, notes = counts(tmp_path / "vehicles", layout="splits")
    assert found == {"train": {"steam": 3, "electric": 3}} and "bus left out" in notes
    with pytest.raises(DataError, match="no train split"):
        counts(write(tmp_path / "plain", "cat", "dog"), layout="splits")
    assert load_data(str(tmp_path / "folds"), size=8, reading=Reading(layout="classes")).classes == ("fold1", "fold2")


@pytest.mark.parametrize("splits", [("train", "test"), ("training", "val", "testing"), ("train_set", "dev")])
def test_splits_may_lie_in_class_folders(tmp_path, splits):
    found, notes = counts(write(tmp_path, *(f"{pet}/{split}" for pet in ("cat", "dog", "eel") for split in splits)))
    assert len(found) == len(splits) and all(found[s] == {"cat": 3, "dog": 3, "eel": 3} for s in found)
    assert "class folders hold the splits" in notes


@pytest.mark.parametrize("folder", ["images", "dataset/pets", "a/b/c"])
def test_a_folder_around_the_data_is_gone_through(tmp_path, folder):
    write(tmp_path, *pets(folder))
    (tmp_path / "docs").mkdir()
    found, notes = counts(tmp_path)
    assert found == {"train": {"cat": 3, "dog": 3}} and f"read is {folder}" in notes


def test_a_class_may_hold_folders(tmp_path):
    assert counts(write(tmp_path, "cat/images", "dog/images"))[0] == {"train": {"cat": 3, "dog": 3}}
    assert counts(write(tmp_path / "b", "cat/indoor", "cat/outdoor", "dog/outdoor"))[0]["train"] == {"cat": 6, "dog": 3}


@pytest.mark.parametrize("litter", ["__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found", "System Volume Information",
                                    ".ipynb_checkpoints"])  # fmt: skip
def test_what_programs_leave_is_no_class(tmp_path, litter):
    write(tmp_path, *pets("train"), f"train/{litter}", litter, f"train/cat/{litter}")
    found, notes = counts(tmp_path)
    assert found == {"train": {"cat": 3, "dog": 3}} and f"{litter} left out" in notes


def test_empty_class_folders_are_left_out(tmp_path):
    write(tmp_path, *pets("train", "val"), "train/eel")
    for folder in ("val/eel", "val/gnu/deep", "train/gnu"):
        (tmp_path / folder).mkdir(parents=True)
    found, notes = counts(tmp_path)
    assert found == {"train": {"cat": 3, "dog": 3, "eel": 3}, "validation": {"cat": 3, "dog": 3}}
    assert "val: eel, gnu left out, since no images are there" in notes and "train: gnu left out" in notes
    for pet in ("cat", "dog"):
        for file in (tmp_path / "train" / pet).iterdir():
            file.unlink()
    with pytest.raises(DataError, match="'cat' occurs in the validation split but not in the train split"):
        load_data(str(tmp_path), size=8)


def test_a_split_with_one_class_is_read_and_noted(tmp_path):
    write(tmp_path, *pets("train"), "val/cat")
    found, notes = counts(tmp_path)
    assert found["validation"] == {"cat": 3} and "of 2 classes only cat has pictures there" in notes


@pytest.mark.parametrize("test", ["test/unknown", "test/images", "test", "test/test", "seg_pred", "test1/to_predict"])
def test_a_test_folder_without_labels_is_left_out(tmp_path, test):
    found, notes = counts(write(tmp_path, *pets("train"), test))
    assert found == {"train": {"cat": 3, "dog": 3}} and "left out" in notes


def test_a_run_folder_among_the_classes_is_seen(tmp_path):
    write(tmp_path / "split", *pets("train", "test"))
    write(tmp_path / "flat", "cat", "dog")
    flat, split = (open_source(str(tmp_path / name)) for name in ("flat", "split"))
    assert flat.reads(tmp_path / "flat" / "run")
    assert not split.reads(tmp_path / "split" / "runs" / "a")
    assert split.reads(tmp_path / "split" / "train" / "run")


def test_pictures_of_a_run_beside_the_only_split_do_not_matter(tmp_path):
    write(tmp_path, *pets("train"), "runs/pets/report/pictures")
    assert counts(tmp_path)[0] == {"train": {"cat": 3, "dog": 3}}
