"""A run knows the pictures it was made with: what changed is told in one line, and a run can go on with other test
pictures."""

import json
import re
import shutil

import numpy as np
import pytest
from commands import call, fails
from pictures import picture, surroundings, write_folder  # noqa: F401 - surroundings is a fixture

from oncequant.data import load_data, read_pictures
from oncequant.files import FileError, read_json, write_json
from oncequant.methods import oqat
from oncequant.run_folder import read_settings
from oncequant.run_images import check_images
from oncequant.runs import new_run, open_run
from oncequant.settings import DataOptions

PLAIN = oqat.Config(bit_schedule=(4,), epochs=1, float_epochs=1, min_steps=2)


def make(tmp_path, carved=False):
    """A run that is not trained, and its pictures."""
    from oncequant.runs import prepare

    folder = tmp_path / "pictures"
    for number, split in enumerate(("train",) if carved else ("train", "val", "test")):
        root = write_folder(folder / split, count=12)
        for i, file in enumerate(sorted(root.rglob("*.png"))):
            picture(1000 * number + i).save(file)
    run = tmp_path / "run"
    prepare(PLAIN, DataOptions(data=str(folder), run=run), device="cpu")
    return folder, run


def refused(run, **options):
    with pytest.raises(FileError) as caught:
        open_run(run, device="cpu", **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_a_run_keeps_of_its_pictures_is_small_and_always_the_same(tmp_path):
    folder, run = make(tmp_path)
    kept = read_pictures(run / "images.npz")
    assert "test/dog/003.png" in kept.names and kept.classes == ("cat", "dog") and len(kept.names) == 72
    assert np.bincount(kept.rows["split"]).tolist() == [24, 24, 24]
    content = (run / "images.npz").read_bytes()
    assert kept.digests() == read_json(run / "run.json")["data"]["digests"] and len(content) < 72 * 100
    shutil.rmtree(run)
    for file in folder.rglob("*.png"):
        file.touch()
    from oncequant.runs import prepare

    prepare(PLAIN, DataOptions(data=str(folder), run=run), device="cpu")
    assert (run / "images.npz").read_bytes() == content


@pytest.mark.parametrize("split, name", [("train", "train"), ("val", "validation"), ("test", "test")])
def test_what_changed_is_told_by_split_with_names_and_ways(tmp_path, split, name):
    folder, run = make(tmp_path)
    cats = folder / split / "cat"
    (cats / "001.png").unlink()
    for number in ("003", "004", "005", "006"):
        picture(77 + int(number)).save(cats / f"{number}.png")
    picture(99).save(cats / "new.png")
    words = [f"{name} split:", f"1 gone ({split}/cat/001.png)", f"1 new ({split}/cat/new.png)"]
    words += [
        f"4 changed ({split}/cat/003.png, {split}/cat/004.png, {split}/cat/005.png, ...)",
        "--data",
        "new run folder",
    ]
    told = refused(run)
    assert all(word in told for word in words), told
    assert ("--changed-test" in told) == (split == "test")
    if split != "test":
        assert refused(run, changed_test=True) == told
    else:
        assert len(open_run(run, device="cpu", changed_test=True)[1].data.test) == 24


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_picture_that_breaks_later_is_told_as_such(tmp_path, split):
    folder, run = make(tmp_path)
    path = folder / split / "dog" / "002.png"
    content = path.read_bytes()
    path.write_bytes(content[:200])
    for options in ({}, {"changed_test": True}, {"cache": False}):
        assert f"1 cannot be read ({split}/dog/002.png)" in refused(run, **options)
    path.write_bytes(content)
    open_run(run, device="cpu")
    path.unlink()
    if split == "test":
        assert len(open_run(run, device="cpu", changed_test=True)[1].data.test) == 23


def test_every_command_tells_it(tmp_path, monkeypatch, capsys):
    folder, run = make(tmp_path)
    (folder / "test" / "dog" / "002.png").write_bytes(b"")
    train = ("train", "--data", folder, "--run", run, "--bit-schedule", "4", "--epochs", "1", "--float-epochs", "1")
    train += ("--min-steps", "2", "--device", "cpu")
    for command in (train, ("search", run), ("export", run), ("compare", run)):
        assert "test split: 1 cannot be read (test/dog/002.png)" in fails(monkeypatch, capsys, *command), command
    (folder / "test" / "dog" / "002.png").unlink()
    assert "test split: 1 gone (test/dog/002.png)" in fails(monkeypatch, capsys, *train)
    call(monkeypatch, *train, "--changed-test", "--no-cache")
    assert "test figures from now on are of other pictures" in " ".join(capsys.readouterr().out.split())
    assert "1 gone (test/dog/002.png)" in fails(monkeypatch, capsys, "evaluate", run, "largest")
    call(monkeypatch, "evaluate", run, "largest", "--split", "test", "--changed-test")
    shown = capsys.readouterr()
    assert json.loads(shown.out)["images"] == 23 and "images: 24 train, 24 validation, 23 test" in shown.err


def test_splits_that_are_held_out_would_move(tmp_path):
    folder, run = make(tmp_path, carved=True)
    rows = read_pictures(run / "images.npz")
    name = rows.names[int(np.flatnonzero(rows.rows["split"] == 2)[0])]
    path = folder / name
    content = path.read_bytes()
    path.unlink()
    told = refused(run, changed_test=True)
    assert f"test split: 1 gone ({name})" in told and "held out of the training images" in told
    assert "--changed-test" not in told
    path.write_bytes(content)
    open_run(run, device="cpu")
    picture(88).save(path)  # the splits stay
    assert f"1 changed ({name})" in refused(run)
    open_run(run, device="cpu", changed_test=True)


def test_classes_that_come_or_go_are_named(tmp_path):
    folder, run = make(tmp_path)
    write_folder(folder / "train", classes=("bird",), count=3)
    assert "new class bird" in refused(run)
    shutil.rmtree(folder / "train" / "bird")
    (folder / "train" / "dog").rename(folder / "train" / "hound")
    for split in ("val", "test"):
        (folder / split / "dog").rename(folder / split / "hound")
    assert "no class dog, new class hound" in refused(run)


def test_moved_pictures_are_the_same(tmp_path):
    folder, run = make(tmp_path)
    shutil.copytree(folder, tmp_path / "elsewhere")
    shutil.rmtree(folder)
    open_run(run, str(tmp_path / "elsewhere"), device="cpu")


def test_runs_without_the_table_are_told_as_before(tmp_path):
    folder, run = make(tmp_path)
    (run / "images.npz").unlink()
    values = read_json(run / "run.json")
    del values["data"]["digests"]
    write_json(run / "run.json", values)
    open_run(run, device="cpu")
    picture(88).save(folder / "train" / "cat" / "000.png")  # among the sample
    assert "was made of other images" in refused(run)


def test_a_damaged_table_is_named(tmp_path):
    folder, run = make(tmp_path)
    content = (run / "images.npz").read_bytes()
    (run / "images.npz").write_bytes(content[: len(content) // 2])
    open_run(run, device="cpu")  # the digests are in run.json
    (folder / "train" / "cat" / "000.png").unlink()
    assert "images.npz is damaged" in refused(run)


def test_other_settings_are_told_first(tmp_path):
    from oncequant.runs import prepare

    folder, run = make(tmp_path, carved=True)
    with pytest.raises(FileError, match=r"seed \(there 0, now 1\)"):
        prepare(oqat.Config(**{**PLAIN.__dict__, "seed": 1}), DataOptions(data=str(folder), run=run), device="cpu")
    assert read_settings(run).seed == 0


def test_python_data_is_compared_by_pixels(tmp_path):
    def rows(change=None):
        return [(np.asarray(picture(i if i != change else 500)), i % 2) for i in range(40)]

    data = load_data((rows(), None, rows()[:10]), size=12)
    run = new_run(PLAIN, data, tmp_path / "run", preset="resnet-nano", resolutions=(12,))
    check_images(run.folder, load_data((rows(), None, rows()[:10]), size=12))
    with pytest.raises(FileError, match=r"train split: 1 changed \(row 7 of the train split\)"):
        check_images(run.folder, load_data((rows(7), None, rows()[:10]), size=12))
    other = load_data((rows(), None, rows(7)[:10]), size=12)
    with pytest.raises(FileError, match=re.escape("test split: 1 changed (row 7 of the test split)")):
        check_images(run.folder, other)
    check_images(run.folder, other, changed_test=True)
