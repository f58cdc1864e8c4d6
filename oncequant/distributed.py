"""Several processes that train one network, started by `torchrun` or by `oncequant ... --devices N`.

In a single process every function here does nothing or just calls its argument, so callers need not ask. All processes
run the same program: they see different parts of each batch, and the main one (rank 0) writes the files. Run folders
must be on a file system that all hosts see.
"""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # noqa: F401 - imported later it would keep the process group of then for ever
from torch import Tensor, nn
from torch.distributed.constants import default_pg_timeout

from oncequant.cpu import cores

Item = TypeVar("Item")
Result = TypeVar("Result")


def rank() -> int:
    """Number of this process, from 0."""
    return int(os.environ.get("RANK", "0")) if was_launched() else 0


def world_size() -> int:
    """Number of processes that work together: 1 before `join` and after `leave`."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes files and prints."""
    return rank() == 0


def was_launched() -> bool:
    """Whether torchrun or `launch` started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def join(device: torch.device) -> None:
    """Join the other processes, if there are any, to work on CPUs or on one GPU each."""
    if not was_launched():
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if parent := os.environ.get("ONCEQUANT_PARENT"):
        end_with(int(parent))
    if sys.platform == "linux" and os.environ.get("MASTER_ADDR") in ("127.0.0.1", "localhost"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a host's own name need not resolve
    store, number, processes = next(dist.rendezvous("env://"))
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=own_part(store, number, processes), rank=number, world_size=processes)
    if sys.platform == "linux":
        os.register_at_fork(before=wait_for_threads)  # a loader worker starts as a copy of this process


def own_part(
    store: dist.Store, number: int, processes: int, patience: float = default_pg_timeout.total_seconds()
) -> dist.Store:
    """The part of `store` that belongs to the processes started together with this one, number `number` of `processes`.

    torchrun keeps one store for all its restarts. Addresses that ended processes left there would be taken for those of
    the new ones, which then wait for each other without end. So each process calls under a name of its own, and the
    main one answers every caller with its name, again if it was an old call, until all have confirmed. Raises
    RuntimeError if one does not within `patience` seconds, by default what the store waits for anything.
    """
    name = uuid.uuid4().hex
    if number:
        store.set(f"call/{number}", name)
        answer = store.get(f"answer/{name}").decode()
        store.set(f"confirm/{answer}/{number}", "")
        return dist.PrefixStore(answer, store)
    deadline = time.monotonic() + patience
    for other in range(1, processes):
        while not store.check([f"confirm/{name}/{other}"]):
            if time.monotonic() > deadline:
                raise RuntimeError(f"process {other} of {processes} did not join in {patience:g} s")
            store.set(f"answer/{store.get(f'call/{other}').decode()}", name)
            time.sleep(0.01)
    return dist.PrefixStore(name, store)


def wait_for_threads(patience: float = 1.0) -> None:
    """Wait until all other threads of this process sleep, or for `patience` seconds. Linux only.

    A process forked while another thread holds a lock gets the lock but not the thread, and waits for it without end.
    Gloo's threads let go of tensors just after a joint operation has returned; for that they take the lock of Python's
    list of threads, which Python before 3.11.10 needs in the new process (python/cpython#112275).
    """
    mine, deadline = str(threading.get_native_id()), time.monotonic() + patience
    while time.monotonic() < deadline:
        others = [Path("/proc/self/task", thread, "stat") for thread in os.listdir("/proc/self/task") if thread != mine]
        with contextlib.suppress(OSError):  # a thread has ended: look again
            if all(other.read_text().rpartition(") ")[2].startswith("S") for other in others):
                return
        time.sleep(0.001)


def leave() -> None:
    """End the joint work, all processes at once; what follows is the main process's alone. Not after an error: others
    may be waiting in the middle of it."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def launch(processes: int, arguments: Sequence[str], device: torch.device) -> int:
    """Run `python -m oncequant *arguments` in so many processes on this machine; the first failure ends all.

    Returns the exit status. Processes on the CPU share its cores. Unlike torchrun this never starts a process again, so
    that a mistake of the user is one line, and all end with the one that launched them.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    common |= {"LOCAL_WORLD_SIZE": str(processes), "ONCEQUANT_PARENT": str(os.getpid())}
    if device.type == "cpu":
        common.setdefault("OMP_NUM_THREADS", str(max(1, cores() // processes)))
    started = []
    try:
        for number in range(processes):
            environment = {**common, "RANK": str(number), "LOCAL_RANK": str(number)}
            started.append(subprocess.Popen([sys.executable, "-m", "oncequant", *arguments], env=environment))
        while any(process.poll() is None for process in started):
            if any(process.returncode for process in started):
                break
            time.sleep(0.1)
        for number, process in enumerate(started):
            if (status := process.poll()) is not None and status < 0:
                print(f"error: process {number} was ended by signal {-status}", file=sys.stderr)
        return int(any(process.returncode for process in started))
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait()


def from_main(function: Callable[[], Result]) -> Result:
    """The main process's result of `function`, in every process; an error of it is raised in every process."""
    if world_size() == 1:
        return function()
    message: list[Any] = [None, None]
    if is_main():
        try:
            message[0] = function()
        except Exception as error:  # of any kind: the others wait for an answer, and raise the same
            message[1] = error
    dist.broadcast_object_list(message, device=torch.device("cpu"))
    if message[1] is not None:
        raise message[1]
    return message[0]


def shared_map(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """[function(item) for item in items], every process doing its share; all get all results, in order."""
    processes = world_size()
    mine = [function(item) for item in items[rank() :: processes]]
    if processes == 1:
        return mine
    parts: list[list[Result]] = [[] for _ in range(processes)]
    dist.all_gather_object(parts, mine)
    return [parts[i % processes][i // processes] for i in range(len(items))]


def mean(value: Tensor) -> float:
    """Mean over processes of a 0-dim tensor."""
    if world_size() == 1:
        return float(value)
    total = value.detach().cpu().double()
    dist.all_reduce(total)
    return float(total) / world_size()


@torch.no_grad()
def broadcast_state(net: nn.Module) -> None:
    """Give every process the main one's parameters and buffers."""
    if world_size() > 1:
        for tensor in net.state_dict().values():
            dist.broadcast(tensor, 0)


@torch.no_grad()
def average_gradients(net: nn.Module) -> None:
    """Mean over processes of every gradient, by one reduction. A parameter that no process used keeps none.

    Which parameters were used is settled on the CPU, so that a GPU is not waited for.
    """
    if world_size() == 1:
        return
    parameters = [p for p in net.parameters() if p.requires_grad]
    used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8)
    dist.all_reduce(used, dist.ReduceOp.MAX)
    parameters = [p for p, by_any in zip(parameters, used.tolist()) if by_any]
    if not parameters:
        return
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([grad.flatten() for grad in grads])
    dist.all_reduce(flat)
    flat /= world_size()
    for parameter, grad, mean in zip(parameters, grads, flat.split([grad.numel() for grad in grads])):
        parameter.grad = grad.copy_(mean.view(grad.shape))


class AllSum(torch.autograd.Function):
    """Sum over processes, (...) -> (...); so is its gradient."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        """The sum, in every process."""
        total = x.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        """The sum of the processes' gradients."""
        return AllSum.apply(grad)


def end_with(parent: int) -> None:
    """From now on this process ends when the one that launched it is gone, killed perhaps."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        print("the process that launched this one has ended", file=sys.stderr)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
