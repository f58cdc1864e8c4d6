"""An error of a command is one line that names the cause, and ends all processes."""

import shutil

import pytest
import torch
from commands import call, fails

from oncequant import cli
from oncequant.options import Info


def test_errors_keep_what_looks_like_markup(tmp_path, monkeypatch, capsys):
    assert "[old]" in fails(monkeypatch, capsys, "search", tmp_path / "run [old]")


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["evaluate", "RUN", "nonsense"], "nonsense"),
        (["evaluate", "RUN", "largest", "--stage", "5bit"], "stages in this run are 2bit, 4bit, float"),
        (["export", "RUN", "9bit-XL"], "4bit-"),
        (["search", "NOWHERE"], "run.json"),
        (["report", "NOWHERE"], "NOWHERE"),
        (["train", "--data", "NOWHERE/x/y", "--run", "NEW"], "accepted are"),
        (["train", "--bit-schedule", "2", "4", "--run", "NEW"], "--bit-schedule"),
        (["cost", "NOWHERE/archs.jsonl"], "archs.jsonl"),
    ],
)
def test_errors_are_one_line_that_names_the_cause(digits_run, tmp_path, monkeypatch, capsys, arguments, named):
    places = {"RUN": str(digits_run), "NEW": str(tmp_path / "new")}
    arguments = [places.get(a, a.replace("NOWHERE", str(tmp_path / "nowhere"))) for a in arguments]
    message = fails(monkeypatch, capsys, *arguments)
    assert message.startswith("error:") and named.replace("NOWHERE", "nowhere") in message
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("error, says", [
    (KeyError("of the program"), "Traceback"),
    (torch.OutOfMemoryError("GPU memory is full"), "error: GPU memory is full (training needs less"),
])  # fmt: skip
def test_any_error_of_one_of_several_processes_ends_it_at_once(monkeypatch, capsys, error, says):
    def handler(options):
        raise error

    ended = []
    monkeypatch.setitem(cli.HANDLERS, Info, handler)
    monkeypatch.setattr("os._exit", ended.append)
    with pytest.raises(type(error) if isinstance(error, KeyError) else SystemExit):
        call(monkeypatch, "info")  # alone: the way out that Python has
    assert not ended
    capsys.readouterr()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit):
        call(monkeypatch, "info")
    assert ended == [1] and says in capsys.readouterr().err


def test_info_of_an_unfinished_run_says_what_is_missing_and_what_goes_on(digits_run, tmp_path, monkeypatch, capsys):
    run = tmp_path / "a run"
    run.mkdir()
    for name in ("run.json", "commands.jsonl", "float.safetensors"):
        shutil.copy(digits_run / name, run)
    call(monkeypatch, "info", run)
    shown = capsys.readouterr().out
    assert "not trained yet: 4bit, 2bit" in shown and "this goes on: oncequant run" in shown and "top-1" not in shown
    for name in ("4bit", "2bit"):
        shutil.copy(digits_run / f"{name}.safetensors", run)
    call(monkeypatch, "info", run)
    assert f"oncequant search '{run}'" in capsys.readouterr().out
    call(monkeypatch, "info", digits_run)
    assert "not trained yet" not in (shown := capsys.readouterr().out) and "4bit-" in shown
