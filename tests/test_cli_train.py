"""`oncequant train`: what cannot work is refused before training, and finished stages are not trained again."""

import shutil
from pathlib import Path

import pytest
from commands import DIGITS, DIGITS_TRAINING, QUICK, SMALL, call, fails, image_folder

from oncequant import cli, run_folder, runs
from oncequant.files import read_json, read_lines, write_json
from oncequant.methods import oqat


def test_options_of_another_method_are_refused(tmp_path, monkeypatch, capsys):
    for words, option in [
        (["train", "qfa", "--bit-schedule", "4"], "--bit-schedule"),
        (["train", "--bits", "2"], "--bits"),
        (["train", "dnas", "--sync-batch-norm"], "--sync-batch-norm"),
        (["train", "dnas", "--preset", "nano"], "nano"),
        (["train", "--preset", "resnet20"], "resnet20"),
        (["train", "dnas", "--depths", "2"], "--depths"),
        (["run", "--population", "50"], "--population"),
        (["run", "dnas", "--front", "macs"], "--front"),
        (["run", "dnas", "--evaluations", "5"], "--evaluations"),
    ]:
        assert option in fails(monkeypatch, capsys, *words, "--run", tmp_path / "run", status=2)
    assert not (tmp_path / "run").exists()


def test_impossible_options_of_a_method_are_refused(tmp_path, monkeypatch, capsys):
    for words, says in [
        (["train", "qfa", "--bits", "9"], "use bit-widths from 1 to 8"),
        (["train", "qfa", "--preset", "nano", "--no-signed-activations"], "an option of activations lsq alone"),
        (["run", "qfa", "--bits", "1"], "files hold 2 bits"),
    ]:
        assert says in fails(monkeypatch, capsys, *words, "--run", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_same_command_again_changes_nothing(digits_run, monkeypatch):
    names = ["float.safetensors", "2bit.safetensors", "measurements.jsonl"]
    before = {name: (digits_run / name).read_bytes() for name in names}
    call(monkeypatch, "run", "--run", digits_run, *DIGITS)
    assert before == {name: (digits_run / name).read_bytes() for name in before}


def test_another_command_in_the_same_folder_is_refused(digits_run, monkeypatch, capsys):
    message = fails(monkeypatch, capsys, "train", "--run", digits_run, "--max-train", "100", *SMALL)
    assert "other settings" in message and "max_train" in message


def test_only_options_that_differ_are_named_and_finished_stages_can_be_taken_over(
    digits_run, tmp_path, monkeypatch, capsys
):
    options = [*DIGITS_TRAINING, "--lr", "1e-3"]
    message = fails(monkeypatch, capsys, "train", "--run", digits_run, *options)
    assert "lr (there 0.003, now 0.001)" in message and "epochs" not in message
    (tmp_path / "run").mkdir()
    shutil.copy(digits_run / "float.safetensors", tmp_path / "run")  # the advice after a loss that is not finite
    call(monkeypatch, "train", "--run", tmp_path / "run", *options)
    assert {row["stage"] for row in read_lines(tmp_path / "run" / "metrics.jsonl")} == {"4bit", "2bit"}


@pytest.mark.parametrize(
    "options, named",
    [
        (["--kernel-sizes", "4"], "--kernel-sizes"),
        (["--depths", "0", "1"], "depths"),
        (["--width", "0"], "width"),
        (["--resolutions", "1", "2"], "resolutions"),
        (["--depths", "2", "2"], "every value once"),
        (["--calibration-images", "1"], "--calibration-images"),
    ],
)
def test_impossible_model_options_are_refused(tmp_path, monkeypatch, capsys, options, named):
    assert named in fails(monkeypatch, capsys, "train", "--run", tmp_path / "run", *options)
    assert not (tmp_path / "run").exists()


def test_an_unwritable_folder_is_a_clear_error(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("not a folder")
    message = fails(monkeypatch, capsys, "run", "--run", tmp_path / "file" / "run", *QUICK, *SMALL)
    assert "cannot write" in message and "run.json" in message


def test_a_run_folder_among_the_images_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(image_folder(tmp_path / "images", 2, 20, 12))
    assert "runs/images" in fails(monkeypatch, capsys, "train", "--data", ".")
    assert {path.name for path in (tmp_path / "images").iterdir()} == {"class0", "class1"}
    (tmp_path / "images" / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "images" / "sub")
    assert "--run" in fails(monkeypatch, capsys, "run", "--data", "..", "--run", "here")
    (tmp_path / "images" / "sub").rmdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").rename(tmp_path / "train")  # beside its splits a run folder is in nobody's way
    _, found = runs.prepare(oqat.Config(), runs.DataOptions(data="."))
    assert found.folder == Path("runs") / tmp_path.name and found.data.classes == ("class0", "class1")
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    _, found = runs.prepare(oqat.Config(), runs.DataOptions(data="link"))
    assert found.folder == Path("runs/link")


def test_digits_are_the_bundled_ones_whatever_lies_here(tmp_path, monkeypatch):
    image_folder(tmp_path / "digits", 2, 20, 48)
    monkeypatch.chdir(tmp_path)
    _, found = runs.prepare(oqat.Config())
    where = run_folder.read_settings(found.folder).data
    assert (where, found.data.name, len(found.data.classes)) == ("digits", "digits", 10)
    _, found = runs.prepare(oqat.Config(), runs.DataOptions(data="./digits", run=tmp_path / "run"))
    assert run_folder.read_settings(found.folder).data == str(tmp_path / "digits") and len(found.data.classes) == 2


def test_a_broken_image_is_refused_before_the_run_folder_is_made(tmp_path, monkeypatch, capsys):
    source = image_folder(tmp_path / "images", 2, 500, 12)
    (source / "class1" / "77.png").write_bytes(b"no image")
    options = ["--data", source, "--run", tmp_path / "run", "--resident-gib", "0"]
    message = fails(monkeypatch, capsys, "train", *options)
    assert "class1/77.png: cannot be read as an image" in message and not (tmp_path / "run").exists()


def test_images_much_larger_than_the_network_sees_are_mentioned(tmp_path, capsys):
    for size, says in ((450, True), (40, False)):
        source = image_folder(tmp_path / f"images{size}", 2, 5, size)
        runs.prepare(oqat.Config(), runs.DataOptions(data=str(source), run=tmp_path / f"run{size}"))
        assert (f"images of {size} px are scaled to 224 px" in " ".join(capsys.readouterr().out.split())) == says


def test_missing_packages_are_named_before_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "find_spec", lambda name: None if name == "matplotlib" else name)
    message = fails(monkeypatch, capsys, "run", "--run", tmp_path / "run")
    assert "(matplotlib)" in message and "oncequant[all]" in message and not (tmp_path / "run").exists()


def test_an_option_that_an_old_folder_does_not_know_is_noted(digits_run, tmp_path, monkeypatch):
    for file in ("float.safetensors", "4bit.safetensors", "2bit.safetensors"):
        shutil.copy(digits_run / file, tmp_path)
    run = read_json(digits_run / "run.json")
    for place in (run, run["settings"]):
        del place["method_config"]["calibration_images"]
    write_json(tmp_path / "run.json", run)
    options = ["--epochs", "1", "--float-epochs", "1", "--min-steps", "6", "--random-subnets", "1", *SMALL]
    options += ["--max-train", "200", "--resolutions", "8", "10", "--bit-schedule", "4", "2", "--float-sandwich"]
    call(monkeypatch, "train", "--run", tmp_path, *options, "--calibration-images", "50")
    found = read_json(tmp_path / "run.json")
    assert (
        found["settings"]["method_config"]["calibration_images"] == 50 == found["method_config"]["calibration_images"]
    )
    assert found["command"] == run["command"] and found["settings"]["method_config"].keys() == {
        *run["settings"]["method_config"],
        "calibration_images",
    }
