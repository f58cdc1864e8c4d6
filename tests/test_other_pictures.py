"""Measuring on pictures that are not the run's."""

import json
import shutil

import numpy as np
import pytest
import torch
from commands import call, fails, image_folder
from PIL import Image

import oncequant as oq
from oncequant.data import DataError, eval_batches, load_data, other_images

CONFIG = oq.oqat.Config(bit_schedule=(4,), epochs=1, float_epochs=1, min_steps=8, batch_size=32, calibration_images=32)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder of the images, run) of three classes; the one network under a budget is exported as C."""
    place = tmp_path_factory.mktemp("other")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    source = image_folder(place / "images", 3, 20, 12)
    run = oq.new_run(CONFIG, source, place / "run", preset="resnet-nano", width=0.5, resolutions=(8,), depths=(1,))
    oq.train_run(CONFIG, run)
    (_, chosen) = oq.search_run(CONFIG, run, "bitops<=9M", evaluations=3)
    oq.export_run(CONFIG, run, chosen.name, formats=("package", "c"))
    yield source, run, chosen.name
    torch.set_num_threads(threads)


def measured(monkeypatch, capsys, *words):
    capsys.readouterr()
    call(monkeypatch, "evaluate", *words)
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def saved(split, classes, root):
    """The pictures of a split as class folders; resized they are what they are."""
    for i, (pixels, label) in enumerate(zip(split.images(torch.arange(len(split))), split.labels.tolist())):
        folder = root / classes[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{i:03}.png")
    return root


def test_pictures_elsewhere_are_measured_as_those_of_the_run(made, tmp_path, monkeypatch, capsys):
    _, run, name = made
    own = measured(monkeypatch, capsys, run.folder, name)
    other = saved(run.data.validation, run.data.classes, tmp_path / "other")
    found = measured(monkeypatch, capsys, run.folder, name, "--data", other)
    assert found["top1"] == pytest.approx(own["top1"]) and found["images"] == own["images"]
    assert (found["data"], found["split"]) == ("other", "all") and found["classes"] == list(run.data.classes)
    assert "note" not in found and found["bitops"] == own["bitops"]
    in_python = oq.evaluate_run(CONFIG, run, name, data=str(other))
    assert in_python == found
    rows = [(image, run.data.classes[label]) for image, label in zip(run.data.validation.pixels, own_labels(run))]
    assert oq.evaluate_run(CONFIG, run, name, data=(rows, None, None))["top1"] == found["top1"]
    assert oq.evaluate_run(CONFIG, run, name, data=run.data) == own


def own_labels(run):
    return run.data.validation.labels.tolist()


def test_the_runs_pictures_in_another_place_are_its_own(made, tmp_path, monkeypatch, capsys):
    source, run, name = made
    shutil.copytree(source, tmp_path / "moved")
    for words in ([], ["--split", "test"], ["--split", "train"]):
        there = measured(monkeypatch, capsys, run.folder, name, "--data", tmp_path / "moved", *words)
        assert there == measured(monkeypatch, capsys, run.folder, name, *words) and "data" not in there


def test_some_of_the_classes_are_enough_and_the_result_says_so(made, tmp_path, monkeypatch, capsys):
    _, run, name = made
    image_folder(tmp_path / "some", 2, 5, 30)
    found = measured(monkeypatch, capsys, run.folder, name, "--data", tmp_path / "some")
    assert found["classes"] == ["class0", "class1"] and found["images"] == 10
    assert found["note"] == "2 of the run's 3 classes are there; the network may answer any of the 3"
    shutil.rmtree(tmp_path / "some" / "class0")  # one class alone is measured, too
    one = oq.evaluate_run(CONFIG, run, name, data=tmp_path / "some")
    assert one["classes"] == ["class1"] and one["images"] == 5


def test_splits_of_other_pictures(made, tmp_path, monkeypatch, capsys):
    _, run, name = made
    image_folder(tmp_path / "parts" / "train", 3, 4, 12)
    image_folder(tmp_path / "parts" / "test", 3, 2, 12)
    every = measured(monkeypatch, capsys, run.folder, name, "--data", tmp_path / "parts")
    test = measured(monkeypatch, capsys, run.folder, name, "--data", tmp_path / "parts", "--split", "test")
    assert every["splits"] == {"train": 12, "test": 6} and every["images"] == 18
    assert (test["split"], test["splits"], test["images"]) == ("test", {"test": 6}, 6)
    words = ["evaluate", run.folder, name, "--data", tmp_path / "parts", "--split", "validation"]
    assert "no validation split with labels, only train, test" in fails(monkeypatch, capsys, *words)
    shutil.rmtree(tmp_path / "parts" / "train")  # a test split alone
    assert oq.evaluate_run(CONFIG, run, name, data=tmp_path / "parts")["images"] == 6


def test_classes_that_the_run_does_not_have_are_named(made, tmp_path, monkeypatch, capsys):
    _, run, name = made
    source = image_folder(tmp_path / "strange", 3, 3, 12)
    (source / "class1").rename(source / "zebra")
    shutil.copytree(source / "class0", source / "class3")
    message = fails(monkeypatch, capsys, "evaluate", run.folder, name, "--data", source)
    assert "does not know 'class3', 'zebra'; its classes are 'class0', 'class1', 'class2'" in message
    numbers = [(np.zeros((12, 12, 3), np.uint8), i) for i in range(3)]
    with pytest.raises(DataError, match="does not know '0', '1', '2'"):
        oq.evaluate_run(CONFIG, run, name, data=(numbers, None, None))
    hidden = [(image, -1) for image, _ in numbers]
    with pytest.raises(DataError, match="no labelled images"):
        oq.evaluate_run(CONFIG, run, name, data=(hidden, None, None))
    grey = load_data(
        ([(image[..., 0], f"class{i}") for i in range(3) for image in [numbers[0][0]] * 9], None, None), size=8
    )
    with pytest.raises(DataError, match="8 px with 1 channels, the run's 8 px with 3 channels"):
        oq.evaluate_run(CONFIG, run, name, data=grey)
    message = fails(monkeypatch, capsys, "evaluate", run.folder, name, "--data", tmp_path / "nowhere")
    assert "nowhere" in message


def test_numbers_are_matched_where_neither_has_names():
    every = [(np.full((8, 8), i, np.uint8), i % 10) for i in range(60)]
    rows = [(np.full((8, 8), 20 * i, np.uint8), i) for i in (7, 2, 7)]
    found = other_images((rows, None, None), load_data((every, None, None), size=8))
    assert found.classes == ("2", "7") and found.parts["train"].labels.tolist() == [7, 2, 7]
    ((images, labels),) = eval_batches(found.like, found.parts["train"])
    assert images.shape == (3, 1, 8, 8) and labels.tolist() == [7, 2, 7]


@pytest.mark.compiler
def test_exported_c_is_measured_without_the_runs_pictures(made, tmp_path, monkeypatch, capsys):
    source, run, name = made
    other = saved(run.data.validation, run.data.classes, tmp_path / "other")
    own = measured(monkeypatch, capsys, run.folder, name, "--compiled")
    found = measured(monkeypatch, capsys, run.folder, name, "--data", other, "--compiled")
    assert found["top1"] == pytest.approx(own["top1"]) and found["compiled_ms"] > 0
    source.rename(source.with_name("gone"))
    try:
        again = measured(monkeypatch, capsys, run.folder, name, "--data", other, "--compiled")
        assert again["top1"] == found["top1"] and again["images"] == found["images"]
        message = fails(monkeypatch, capsys, "evaluate", run.folder, name, "--data", other)
        assert "statistics of a subnet are estimated on its training images (not with --compiled)" in message
    finally:
        source.with_name("gone").rename(source)
