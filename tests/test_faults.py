"""Kills, full disks, damaged inputs and huge pictures: a few trials of recipes/faults, and what the campaign found."""

import csv
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from small_training import small_fit

from oncequant.files import FileError, read_lines, remove_halves, write_atomically
from oncequant.records import Predictions, from_json
from oncequant.tensor_files import read_tensors, write_tensors

CAMPAIGN = Path(__file__).parent.parent / "recipes" / "faults" / "campaign.py"


def test_a_few_trials_of_the_campaign(tmp_path):
    table, trials = tmp_path / "faults.csv", dict(damages=7, kills=1, disks=1, bombs=1)
    words = [str(word) for name, count in trials.items() for word in (f"--{name}", count)]
    command = [sys.executable, str(CAMPAIGN), str(table), "--out", str(tmp_path / "out"), "--no-mount", *words]
    ended = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rows = list(csv.DictReader(table.open()))
    outcomes = {part: [row["outcome"] for row in rows if row["part"] == part] for part in ("kill", "disk", "memory")}
    assert outcomes == {"kill": ["equal"], "disk": ["equal"], "memory": ["refused"]} and len(rows) == 10
    assert "refused" in {row["outcome"] for row in rows if row["part"] == "damage"}


def test_a_flipped_bit_in_a_tensor_is_found_also_in_metadata(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"w": torch.arange(6.0), "none": torch.zeros(0), "step": torch.tensor(3)}, {"format": "x"})
    tensors, metadata = read_tensors(path)
    assert metadata == {"format": "x"} and torch.equal(tensors["w"], torch.arange(6.0))
    whole = path.read_bytes()
    assert whole.index(b'"format"') < whole.index(b'"sha256"')  # in order: a package has a hash of the whole file
    for place in (whole.index(b'"x"') + 1, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(FileError, match="a.safetensors is not a readable .* checksum"):
            read_tensors(path)


def test_a_flipped_bit_in_a_checkpoint_is_found(tmp_path):
    def step(images, labels, rng, done):
        if done >= 0.5:
            raise KeyboardInterrupt
        return torch.zeros(())

    with pytest.raises(KeyboardInterrupt):
        small_fit(tmp_path, step, steps=4)
    path = tmp_path / "s.resume.pt"
    damaged = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = max(archive.infolist(), key=lambda one: one.file_size).header_offset
    names = (int.from_bytes(damaged[start + at : start + at + 2], "little") for at in (26, 28))  # name and padding
    damaged[start + 30 + sum(names)] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(FileError, match="s.resume.pt is not a readable checkpoint"):
        small_fit(tmp_path, steps=4)


def test_half_files_of_a_kill_go_and_others_stay(tmp_path, monkeypatch):
    def killed(*paths):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        for name in ("family.json", "report/family.csv"):
            with pytest.raises(KeyboardInterrupt):
                write_atomically(tmp_path / name, b"{}")
    (tmp_path / ".mine").touch()
    assert len([path for path in tmp_path.rglob(".*")]) == 3
    remove_halves(tmp_path, but="report")
    assert [path.name for path in tmp_path.glob(".*")] == [".mine"] and list((tmp_path / "report").glob(".*"))
    remove_halves(tmp_path)
    assert not list((tmp_path / "report").glob(".*"))


def test_a_file_of_lines_that_is_something_else_is_named(tmp_path):
    path = tmp_path / "measurements.jsonl"
    for content in (b"\x80\x04pickle", b"[" * 100_000 + b"\n"):
        path.write_bytes(content)
        with pytest.raises(FileError, match="measurements.jsonl, line 1: not JSON"):
            read_lines(path)
    path.write_bytes(b'{"a": 1}\n\0\0\0')  # the machine stopped before the disk had the line
    assert read_lines(path) == [{"a": 1}]


@pytest.mark.parametrize("measured", ["0.5", float("nan"), 10**400, None])
def test_predictions_are_numbers(measured):
    point = {"searcher": "predicted", "predicted": 0.5, "measured": measured}
    with pytest.raises(ValueError, match="measured is"):
        from_json(Predictions, {"kendall_tau": 0.1, "rmse": 0.1, "points": [point]})
