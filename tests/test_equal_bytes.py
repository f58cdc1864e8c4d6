"""Equal commands write equal bytes: a whole run twice, in two processes and two folders."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from oncequant.tensor_files import read_tensors, write_tensors

SCRIPT = """
import numpy as np, torch
torch.set_num_threads(1)
import oncequant as oq
from oncequant import train

rng = np.random.default_rng(0)
rows = [(rng.integers(0, 128, (8, 8), dtype=np.uint8) + 12 * (i % 10), i % 10) for i in range(160)]
config = oq.oqat.Config(bit_schedule=(4,), epochs=1, float_epochs=1, min_steps=3, batch_size=32, calibration_images=32,
                        precision="float32")
run = oq.new_run(config, (rows, None, None), "run", preset="resnet-nano", width=0.5, resolutions=(8,), depths=(1,))
oq.train_run(config, run)
oq.search_run(config, run, evaluations=3)
oq.search_run(config, run, "bitops<=5M", evaluations=3, metric="balanced")
oq.export_run(config, run, "4bit-L", formats=("onnx", "package", "c"))
oq.report_run(run)

def killed(*arguments):
    save(*arguments)
    raise KeyboardInterrupt

save, train._save_checkpoint = train._save_checkpoint, killed
often = oq.oqat.Config(**{**config.to_json(), "checkpoint_seconds": 0})
stopped = oq.new_run(often, (rows, None, None), "stopped", preset="nano", width=0.5)
try:
    oq.train_run(often, stopped)
except KeyboardInterrupt:
    pass
"""


def may_differ(path: Path) -> bool:
    """What run_folder.py lists."""
    return path.stem == "times" or "tensorboard" in path.parts


@pytest.mark.compiler
def test_two_equal_runs_are_equal_files(tmp_path):
    processes = []
    for number in ("1", "2"):
        place = tmp_path / number
        place.mkdir()
        paths = os.pathsep.join(sys.path)
        environment = {**os.environ, "PYTHONHASHSEED": number, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
        command = [sys.executable, "-c", SCRIPT]
        processes.append(subprocess.Popen(command, cwd=place, env=environment, stdout=subprocess.DEVNULL))
    assert [process.wait(300) for process in processes] == [0, 0]
    first, second = (
        {path.relative_to(tmp_path / n): path for path in (tmp_path / n).rglob("*") if path.is_file()} for n in "12"
    )
    kept = {path for path in first if not may_differ(path)}
    assert kept == {path for path in second if not may_differ(path)}
    different = [str(path) for path in sorted(kept) if first[path].read_bytes() != second[path].read_bytes()]
    assert different == []
    names = {path.name for path in kept}
    assert names >= {"float.safetensors", "float.resume.pt", "run.json", "commands.jsonl", "metrics.jsonl"}
    assert names >= {"measurements.jsonl", "family.json", "exports.json", "verification.json", "model.safetensors"}
    assert names >= {"model.json", "model.onnx", "network.c", "network.h", "index.html", "exports.csv", "pareto.png"}
    assert "confusion.csv" in names and any(path.parent.name == "answers" for path in kept)
    times = {str(path) for path in first if path.stem == "times"}
    assert times >= {"run/times.jsonl", "run/exports/4bit-L/times.json", "run/report/times.html"}


def test_metadata_in_any_order_are_equal_bytes(tmp_path):
    import torch

    tensors = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor([1, 2], dtype=torch.int8)}
    metadata = {f"key {i}": f"{'ä' * i}" for i in range(9)}
    contents = set()
    for turn in range(9):
        names = [*list(metadata)[turn:], *list(metadata)[:turn]]
        write_tensors(tmp_path / "file", tensors, {name: metadata[name] for name in names})
        contents.add((tmp_path / "file").read_bytes())
    assert len(contents) == 1
    found, about = read_tensors(tmp_path / "file")
    assert about == metadata and all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
