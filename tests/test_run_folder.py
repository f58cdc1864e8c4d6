"""The run folder: commands are kept, one works in it at a time, and files that are not ours are named."""

import errno
import fcntl
import json
import re
import shutil
from unittest.mock import Mock

import pytest
import torch
from commands import call, fails

from oncequant import run_folder
from oncequant.files import read_json, read_lines, write_json
from oncequant.records import read_exports, read_metrics


def test_every_command_that_changes_a_run_is_kept(digits_run, monkeypatch, capsys):
    call(monkeypatch, "search", digits_run, "--budget", "params<=100k", "--evaluations", "3")
    call(monkeypatch, "search", digits_run, "--budget", "params<=100k", "--evaluations", "3")
    call(monkeypatch, "evaluate", digits_run, "largest")
    kept = [record["command"] for record in read_lines(digits_run / "commands.jsonl")]
    assert kept[0] == read_json(digits_run / "run.json")["command"] and "evaluate" not in " ".join(kept)
    assert kept[-1].startswith("oncequant search") and "'params<=100k'" in kept[-1] and kept[-1] != kept[-2]
    capsys.readouterr()
    call(monkeypatch, "info", digits_run)
    assert kept[-1] in capsys.readouterr().out
    call(monkeypatch, "report", digits_run)
    page = (digits_run / "report" / "index.html").read_text()
    assert json.loads(page.split("const DATA = ")[1].split(";</script>")[0])["run"]["commands"] == kept


def test_a_run_of_an_older_version_keeps_its_first_command(digits_run, tmp_path, monkeypatch, capsys):
    shutil.copy(digits_run / "run.json", tmp_path)
    line = read_lines(digits_run / "commands.jsonl")[0] | {"command": "oncequant export x"}
    (tmp_path / "commands.jsonl").write_text(json.dumps(line) + "\n")
    call(monkeypatch, "info", tmp_path)
    lines = " ".join(capsys.readouterr().out.split())
    assert read_json(digits_run / "run.json")["command"] in lines and "then: oncequant export x" in lines


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("run.json", "[]", "should hold a JSON object"),
        ("run.json", '{"settings": {}}', "lacks 'data'"),
        ("run.json", '{"settings": [], "data": {}, "date": "", "device": "", "command": ""}', "settings"),
        ("family.json", "{}", "should hold a JSON list"),
        ("family.json", '[{"name": "4bit-S"}]', "record 1: 'stage' is missing"),
        ("family.json", "[1]", "record 1: not a JSON object"),
    ],
)
def test_files_that_are_json_but_not_ours_are_named(digits_run, tmp_path, monkeypatch, capsys, name, content, says):
    for file in ("run.json", "family.json"):
        shutil.copy(digits_run / file, tmp_path)
    (tmp_path / name).write_text(content)
    message = fails(monkeypatch, capsys, "info", tmp_path)
    assert name in message and says in message


def test_one_command_at_a_time_works_in_a_folder(digits_run, monkeypatch, capsys):
    monkeypatch.setattr(run_folder, "LOCK_SECONDS", 0.1)
    before = read_lines(digits_run / "commands.jsonl")
    with (digits_run / ".lock").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        for command in (["search", digits_run], ["export", digits_run]):
            assert f"{digits_run}: another oncequant command works in this" in fails(monkeypatch, capsys, *command)
        call(monkeypatch, "info", digits_run)
    assert read_lines(digits_run / "commands.jsonl") == before
    call(monkeypatch, "export", digits_run, "float-max")


def test_file_systems_without_locks_are_used_without(digits_run, tmp_path, monkeypatch, capsys):
    shutil.copy(digits_run / "run.json", tmp_path)
    for error in (OSError(errno.ENOLCK, "No locks available"), NotImplementedError("no flock")):
        monkeypatch.setattr(run_folder.FileLock, "acquire", Mock(side_effect=error))
        with run_folder.writing(tmp_path, "oncequant a", torch.device("cpu")):
            assert "no locks on this file system" in " ".join(capsys.readouterr().out.split())
    monkeypatch.setattr(run_folder.FileLock, "acquire", Mock(side_effect=PermissionError(errno.EACCES, "no")))
    with pytest.raises(OSError, match=r"cannot write .*\.lock"):
        with run_folder.writing(tmp_path, "oncequant a", torch.device("cpu")):
            pass


def test_a_line_that_a_full_disk_cut_off_is_mended(digits_run, tmp_path):
    shutil.copy(digits_run / "run.json", tmp_path)
    path = tmp_path / "commands.jsonl"
    for torn in ("", '{"comm', "{" + "x" * 200_000):
        with path.open("a") as file:
            file.write(torn)
        for command in ("oncequant a", "oncequant b"):
            with run_folder.writing(tmp_path, command, torch.device("cpu")):
                pass
    assert run_folder.commands_of(tmp_path)[1:] == ["oncequant a", "oncequant b"] * 3
    assert path.read_text().count("\n") == 6


def test_a_folder_of_an_older_version_goes_on(digits_run, tmp_path, monkeypatch, capsys):
    """Its dates and times lie in the files of results."""
    run = tmp_path / "run"
    shutil.copytree(digits_run, run)
    write_json(run / "run.json", {**read_json(run / "run.json"), "date": "2026-11-01"})
    times = {(row.get("stage"), row.get("step")): row.get("time_s") for row in read_lines(run / "times.jsonl")}
    rows = [{**row, "time_s": times[row["stage"], row["step"]]} for row in read_lines(run / "metrics.jsonl")]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{**row, **read_json(run / row["folder"] / "times.json")} for row in read_json(run / "exports.json")]
    write_json(run / "exports.json", rows)
    for path in [run / "times.jsonl", *run.glob("exports/*/times.json")]:
        path.unlink()
    call(monkeypatch, "info", run)
    assert "made 2026-11-01 on" in " ".join(capsys.readouterr().out.split())
    name, other = rows[0]["name"], rows[1]["name"]
    call(monkeypatch, "export", run, name)
    call(monkeypatch, "report", run)
    found = {one.name: one.found for one in read_exports(run)}
    assert found[other]["latency_ms"] == rows[1]["latency_ms"] and found[name]["latency_ms"] > 0
    assert "latency_ms" not in next(row for row in read_json(run / "exports.json") if row["name"] == name)
    last = read_metrics(run)[-1]
    page = (run / "report" / "times.html").read_text()
    assert f"<td>{last.time_s:.1f}</td>" in page and "2026-11-01" in page
    assert not re.search("2026-11-01|latency_ms|time_s", (run / "report" / "index.html").read_text())


def test_a_report_that_is_made_again_is_equal(digits_run, tmp_path, monkeypatch):
    shutil.copytree(digits_run, tmp_path / "run")
    contents = []
    for _ in range(2):
        call(monkeypatch, "report", tmp_path / "run")
        contents.append({path.name: path.read_bytes() for path in (tmp_path / "run" / "report").iterdir()})
    assert contents[0] == contents[1] and "index.html" in contents[0]
