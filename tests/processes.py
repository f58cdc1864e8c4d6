"""Several processes that train together, and the command line in a process of its own."""

import os
import subprocess
import sys
import traceback
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.multiprocessing as mp

from oncequant import distributed


@contextmanager
def pair():
    """Two processes that have joined each other: yields a function that calls function(rank, *args) in both. Starting
    them takes seconds, so tests share them."""
    context, port = mp.get_context("spawn"), free_port()
    pipes = [context.Pipe() for _ in range(2)]
    started = [
        context.Process(target=_joined, args=(r, port, there), daemon=True) for r, (_, there) in enumerate(pipes)
    ]
    for process in started:
        process.start()
    ends = [here for here, _ in pipes]

    def call(function, *args):
        for end in ends:
            end.send((function, args))
        failures = []
        for end in ends:  # one that failed may have left the other waiting
            assert end.poll(1 if failures else 200), "\n".join(["no answer", *failures])
            failures += filter(None, [end.recv()])
        if failures:
            kill()
        assert not failures, "\n".join(failures)

    def kill():
        for process in started:
            process.kill()
            process.join()

    try:
        yield call
        if all(process.is_alive() for process in started):
            call(_leave)
    finally:
        kill()


def _joined(rank, port, pipe):
    torch.set_num_threads(1)
    os.environ |= dict(
        RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank)
    )
    distributed.join(torch.device("cpu"))
    while True:
        function, args = pipe.recv()
        try:
            function(rank, *args)
            pipe.send(None)
        except BaseException:
            pipe.send(f"process {rank}: {traceback.format_exc()}")


def _leave(rank):
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
