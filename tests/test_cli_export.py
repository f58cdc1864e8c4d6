"""`oncequant export` and `evaluate`: networks by their name, or by an architecture in a file."""

import json
import shutil

import numpy as np
import pytest
from commands import DIGITS, call, fails, model_of

from oncequant import progress
from oncequant.family import with_bits
from oncequant.files import read_json
from oncequant.models import space_of


def test_a_failed_verification_does_not_stop_the_run(digits_run, monkeypatch, capsys):
    from oncequant.export import verify

    monkeypatch.setattr(verify, "_problems", lambda *_: ["made up"])
    message = fails(monkeypatch, capsys, "export", digits_run)
    family = [e["name"] for e in read_json(digits_run / "family.json")]
    rows = {row["name"]: row for row in read_json(digits_run / "exports.json")}
    assert set(family) == set(rows) and all(row["problems"] == ["made up"] for row in rows.values())
    assert message.count("cannot be trusted") == len(family)
    monkeypatch.undo()
    call(monkeypatch, "export", digits_run)


def test_verifying_files_shows_how_many_images_are_done(digits_run, monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    monkeypatch.setattr("oncequant.data.batches.EVALUATED_PIXELS", 1)  # as few at a time as there may be: 64
    call(monkeypatch, "export", digits_run, "float-max")
    images = next(row["images"] for row in read_json(digits_run / "exports.json") if row["name"] == "float-max")
    shown = [line.split(",")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("verify files")]
    assert (
        len(shown) > 2 and shown[0] == f"verify files: 64/{images}" and shown[-1] == f"verify files: {images}/{images}"
    )


def test_a_run_writes_the_formats_that_are_asked_for(digits_run, tmp_path, monkeypatch):
    run = shutil.copytree(digits_run, tmp_path / "run")
    call(monkeypatch, "run", "--run", run, *DIGITS, "--formats", "package")
    names = [entry["name"] for entry in read_json(run / "family.json")]
    assert names == [row["name"] for row in read_json(run / "exports.json")]
    for name in names:
        files = {path.name for path in (run / "exports" / name).iterdir()}
        assert "model.safetensors" in files and "model.onnx" not in files


def test_evaluate_prints_one_json_line(digits_run, monkeypatch, capsys):
    family = read_json(digits_run / "family.json")
    entry = next(e for e in family if e["stage"] == "2bit")
    call(monkeypatch, "evaluate", digits_run, entry["name"], "--split", "test")
    found = json.loads(capsys.readouterr().out)
    assert found["top1"] == entry["top1_test"] and found["stage"] == "2bit" and found["images"] > 300
    call(monkeypatch, "evaluate", digits_run, "smallest", "--stage", "4bit")
    assert json.loads(capsys.readouterr().out)["split"] == "validation"


def test_evaluate_runs_the_exported_c(digits_run, tmp_path, monkeypatch, capsys):
    digits_run = shutil.copytree(digits_run, tmp_path / "run")
    name = next(e for e in read_json(digits_run / "family.json") if e["stage"] == "2bit")["name"]
    for of in ("smallest", name):
        assert "export" in fails(monkeypatch, capsys, "evaluate", digits_run, of, "--compiled")
    call(monkeypatch, "export", digits_run, name, "--formats", "c")
    (row,) = (row for row in read_json(digits_run / "exports.json") if row["name"] == name)
    capsys.readouterr()
    call(monkeypatch, "evaluate", digits_run, name, "--compiled", "--split", "test")
    found = json.loads(capsys.readouterr().out)
    assert found["top1"] == row["top1_c"] and 0 < found["compiled_ms"] < 100 and found["ram_bytes"] > 0
    file = digits_run / "exports" / name / "network.c"
    file.write_text(file.read_text() + "/* changed */")
    assert "does not match its hash" in fails(monkeypatch, capsys, "evaluate", digits_run, name, "--compiled")


def test_an_architecture_in_a_file_is_measured_and_exported(digits_run, tmp_path, monkeypatch, capsys):
    space = space_of(with_bits(model_of(digits_run), 4))
    arch = space.sample(np.random.default_rng(5))
    file = tmp_path / "mine.json"
    file.write_text(space.brief(arch).to_json())
    call(monkeypatch, "export", digits_run, file, "smallest", "--stage", "4bit")
    rows = {row["name"]: row for row in read_json(digits_run / "exports.json")}
    assert rows["4bit-mine"]["problems"] == rows["4bit-smallest"]["problems"] == []
    entry = next(e for e in read_json(digits_run / "family.json") if e["name"] == "4bit-mine")
    assert entry["bits"] == 4 and entry["arch"] == dict(space.brief(arch))
    other = tmp_path / "other" / "mine.json"
    other.parent.mkdir()
    other.write_text(space.brief(space.largest()).to_json())
    shutil.copy(other, tmp_path / "S.json")
    for one in (other, tmp_path / "S.json"):
        assert "rename the file" in fails(monkeypatch, capsys, "export", digits_run, one, "--stage", "4bit")
    assert "--stage" in fails(monkeypatch, capsys, "export", digits_run, "4bit-mine", "--stage", "2bit")
    capsys.readouterr()
    call(monkeypatch, "evaluate", digits_run, file, "--stage", "4bit", "--split", "test")
    assert json.loads(capsys.readouterr().out)["top1"] == entry["top1_test"]


def test_export_by_one_of_several_processes_needs_no_others(digits_run, monkeypatch, capsys):
    monkeypatch.setattr(progress.console, "quiet", False)  # as it is again after this test
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    call(monkeypatch, "export", digits_run, "float-max")
    assert "float-max" in capsys.readouterr().out
    monkeypatch.setenv("RANK", "1")
    call(monkeypatch, "export", digits_run, "float-max")
    assert not capsys.readouterr().out


@pytest.mark.parametrize("text", ["[]", "3", '{"resolution": 8.0}', "{", '{"resolution": 9}'])
def test_a_file_that_is_no_architecture_is_refused(digits_run, tmp_path, monkeypatch, capsys, text):
    (tmp_path / "mine.json").write_text(text)
    for command in ("evaluate", "export"):
        message = fails(monkeypatch, capsys, command, digits_run, tmp_path / "mine.json")
        assert "mine.json" in message or "resolution = 9 is not allowed" in message
