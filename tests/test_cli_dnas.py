"""DNAS from the command line."""

import json

import pytest
from commands import call, fails

from oncequant.files import read_json

SMALL = "--max-train 200 --min-steps 12 --float-epochs 1 --epochs 1 --samples 2 --jobs 1".split()


def test_command_line(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    call(monkeypatch, "run", "dnas", "--run", folder, "--cost", "bitops", *SMALL)
    rows = {row["name"]: row for row in read_json(folder / "exports.json")}
    assert set(rows) == {"float", "MA", "ME"} and not any(row["problems"] for row in rows.values())
    assert (folder / "report" / "distribution.png").exists()
    assert '"pictures":{"distribution":' in (folder / "report" / "index.html").read_text()
    page = (folder / "report" / "index.html").read_text()
    assert '"answers":{"classes":["0",' in page and '"name":"MA","top1":' in page
    assert '"candidates":["W1 A4","W2 A4","W3 A3","W4 A4","W8 A8","float"]' in page
    capsys.readouterr()
    call(monkeypatch, "info", folder)
    assert "stages trained: float, search of float, search" in capsys.readouterr().out
    call(monkeypatch, "evaluate", folder, "ME")
    evaluated = json.loads(capsys.readouterr().out)
    family = {entry["name"]: entry for entry in read_json(folder / "family.json")}
    assert evaluated["top1"] == family["ME"]["top1_validation"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("run dnas --budget weight_bytes<=100", "cannot be met"),
        ("run dnas --precisions 101 3232", "files hold inputs of 2 bits and more"),
        ("train dnas --init nowhere.pth", "nowhere.pth does not exist"),
    ],
)
def test_what_cannot_work_is_refused_before_training(arguments, text, tmp_path, monkeypatch, capsys):
    assert text in fails(monkeypatch, capsys, *arguments.split(), "--run", tmp_path)
    assert not list(tmp_path.iterdir())  # so that the mended command finds no other run there
