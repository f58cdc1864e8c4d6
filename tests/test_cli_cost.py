"""`oncequant cost` and `info`, which need no run."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
from commands import call, fails

from oncequant.cost import COSTS
from oncequant.family import with_bits
from oncequant.models import space_of
from oncequant.models.mobilenet_v3 import PRESETS


def test_cost_command_reads_files_and_standard_input(tmp_path, monkeypatch, capsys):
    space = space_of(with_bits(replace(PRESETS["imagenet"], width=1.2), 3))
    archs = [space.sample(np.random.default_rng(i)) for i in range(3)]
    (tmp_path / "archs.jsonl").write_text("".join(space.brief(a).to_json() + "\n" for a in archs))
    call(monkeypatch, "cost", tmp_path / "archs.jsonl", "--width", "1.2", "--bits", "3")
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows == [{name: cost(space.layers(a)) for name, cost in COSTS.items()} for a in archs]
    command = [sys.executable, "-c", "from oncequant.cli import main; main()", "cost", "-", "--width", "1.2"]
    full = "".join(a.to_json() + "\n" for a in archs)  # bits written out: --bits does not matter
    done = subprocess.run(command, input=full, capture_output=True, text=True, check=True)
    assert [json.loads(line) for line in done.stdout.splitlines()] == rows


def test_cost_command_names_line_and_choice(tmp_path, monkeypatch, capsys):
    (tmp_path / "a.jsonl").write_text('{"resolution": 128}\n')
    assert "line 1" in fails(monkeypatch, capsys, "cost", tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_text('{"resolution": 128, "colour": 1}\n')
    assert "colour" in fails(monkeypatch, capsys, "cost", tmp_path / "b.jsonl")


def test_info_lists_presets(monkeypatch, capsys):
    call(monkeypatch, "info")
    out = capsys.readouterr().out
    assert "imagenet" in out and "bitops" in out
