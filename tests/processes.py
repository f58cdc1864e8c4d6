"""Several processes that train together, and the command line in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import torch
import torch.multiprocessing as mp

from oncequant import distributed


def in_processes(function, *args, processes=2):
    """Run function(rank, *args) in processes that have joined each other."""
    mp.spawn(_joined, (processes, free_port(), function, args), processes)


def _joined(rank, processes, port, function, args):
    torch.set_num_threads(1)
    os.environ |= dict(
        RANK=str(rank), WORLD_SIZE=str(processes), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank)
    )
    distributed.join(torch.device("cpu"))
    function(rank, *args)
    distributed.leave()
    # one that is left may need Python when there is none any more, which aborts the process
    threads = [Path(f"/proc/self/task/{thread}/comm").read_text() for thread in os.listdir("/proc/self/task")]
    assert not [name for name in threads if "gloo" in name]


def free_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def oncequant(*arguments, torchrun=()):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    program = [*torchrun, "-m", "oncequant", "--"] if torchrun else ["-m", "oncequant"]
    command = [sys.executable, *program, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return output
