"""`--devices` and torchrun: results of one process, one line an error, and no process left behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import call, fails
from PIL import Image
from processes import finish, free_port, oncequant

from oncequant.tensor_files import read_tensors

TINY_OPTIONS = (
    "--data digits --resolutions 8 --depths 1 --kernel-sizes 3 --expand-ratios 2 3 --width 0.5 --max-train 120 "
    "--batch-size 16 --epochs 1 --float-epochs 1 --min-steps 24 --bit-schedule 4 --calibration-images 64 "
    "--precision float32"  # which is faster changes from run to run for networks this small
).split()


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """(folder, output) of a training in two processes that nothing disturbs."""
    folder = tmp_path_factory.mktemp("calm") / "run"
    return folder, finish(oncequant("train", *TINY_OPTIONS, "--run", folder, "--devices", 2))


def test_devices_shares_training_and_search_and_prints_once(calm, tmp_path, monkeypatch):
    folder, output = calm
    shutil.copytree(folder, tmp_path / "run")
    assert output.count("digits: preset") == 1 and output.count("train 4bit: 24/24") == 1
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        ".lock", "run.json", "commands.jsonl", "times.jsonl", "metrics.jsonl", "tensorboard", "float.safetensors",
        "4bit.safetensors", "images.npz",
    }  # fmt: skip
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    finish(oncequant("search", tmp_path / "run", "--evaluations", 4, "--devices", 2))
    call(monkeypatch, "search", tmp_path / "copy", "--evaluations", 4)
    for name in ("measurements.jsonl", "family.json"):  # the result does not depend on the number of processes
        assert (tmp_path / "run" / name).read_text() == (tmp_path / "copy" / name).read_text()


def test_errors_of_several_processes_are_one_line(tmp_path):
    process = oncequant("train", "--data", tmp_path / "nothing", "--devices", 2)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1 and errors.count("error:") == 1 and "nothing" in errors


BROKEN_IN_THE_SECOND = """
from oncequant import cli, distributed
from oncequant.data import DataError, batches

whole = batches._Pixels.__getitem__

def part(self, batch):
    if distributed.rank():
        raise DataError("image 7 is broken")
    return whole(self, batch)

batches._Pixels.__getitem__ = part
cli.main()
"""


def test_an_error_of_one_process_alone_is_printed_and_ends_all(tmp_path):
    """Its training images are broken; those of the main process are not."""
    for i in range(40):
        folder = tmp_path / "images" / "train" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((16, 16, 3), 6 * i, np.uint8)).save(folder / f"{i}.png")
    options = ["--data", tmp_path / "images", "--run", tmp_path / "run", "--resident-gib", "0", "--resolutions", "16"]
    (tmp_path / "broken.py").write_text(BROKEN_IN_THE_SECOND)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2"}
    environment["MASTER_PORT"] = str(free_port())
    command = [sys.executable, str(tmp_path / "broken.py"), "train", *map(str, options)]
    places = [{**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    pipes = dict(stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    processes = [subprocess.Popen(command, env=place, **pipes) for place in places]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert all(process.returncode for process in processes)
    assert "error: process 1: image 7 is broken" in errors[1]


def workers_of(process):
    listed = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    return [int(pid) for pid in listed]


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


def test_a_killed_rank_is_survived_under_torchrun(calm, tmp_path):
    """torchrun starts all ranks again; they go on from the checkpoint, to the weights of an undisturbed run."""
    options = ["train", *TINY_OPTIONS, "--checkpoint-seconds", "0", "--run", tmp_path / "killed"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=2"]
    process = oncequant(*options, torchrun=torchrun)
    wait_for(tmp_path / "killed" / "float.resume.pt", process)
    os.kill(workers_of(process)[-1], signal.SIGKILL)
    finish(process)
    lines = [json.loads(line) for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in lines if row["stage"] == "4bit"][-1] == 24
    for stage in ("float", "4bit"):
        whole, killed = (read_tensors(run / f"{stage}.safetensors")[0] for run in (calm[0], tmp_path / "killed"))
        assert whole.keys() == killed.keys() and all(torch.equal(whole[name], killed[name]) for name in whole)


def test_no_process_outlives_a_killed_launcher(tmp_path):
    process = oncequant("train", *TINY_OPTIONS, "--min-steps", "5000", "--run", tmp_path / "run", "--devices", 2)
    wait_for(tmp_path / "run" / "metrics.jsonl", process)
    workers = workers_of(process)
    assert len(workers) == 2
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("devices", ["0", "-1"])
def test_impossible_numbers_of_processes_are_refused(devices, monkeypatch, capsys):
    assert f"--devices {devices}" in fails(monkeypatch, capsys, "train", "--devices", devices)
