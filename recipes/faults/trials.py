"""One trial: a command of oncequant, or a Python function, in a forked process with a fault in it.

The parent has imported everything once, so a trial starts at once. It computes nothing itself: threads do not outlive
a fork.
"""

import importlib
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from oncequant import cli

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
TICK = os.sysconf("SC_CLK_TCK")

Hook = Callable[[str], None]
"""Is told every operation on files under the folder before it happens, "rename run/x.json"; what it raises, the
operation raises."""


LATER = (  # imported when they are needed, by one command or the other
    "datasets", "matplotlib.pyplot", "onnx", "onnxruntime", "oncequant.report", "oncequant.export.compiled",
    "oncequant.export.cortex_m", "oncequant.export.onnx_runtime", "oncequant.export.onnx_writer",
    "oncequant.search.predicted", "pymoo.algorithms.moo.nsga2", "scipy.stats", "sklearn.datasets",
    "torch._dynamo", "torch.utils.tensorboard",
)  # fmt: skip


def import_all() -> None:
    """Import what trials need, and let Pillow look for its formats."""
    for name in LATER:
        importlib.import_module(name)
    Image.init()


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    status: int | None
    """Its exit status, minus the number of the signal that ended it, or None if it was stopped since it hung."""
    output: str
    errors: str
    cpu_s: float
    """Of the process and of all that it started and waited for."""

    @property
    def lines(self) -> list[str]:
        """What it said on standard error, without warnings of libraries."""
        return [line for line in self.errors.splitlines() if line.strip()]

    @property
    def has_traceback(self) -> bool:
        """Whether it failed in a way that is not for users."""
        return "Traceback (most recent call last)" in self.errors + self.output

    def is_one_line(self, name: str) -> bool:
        """Whether it refused with one error line with this text in it."""
        said = [line for line in self.lines if line.startswith("error:")]
        return self.status == 1 and not self.has_traceback and len(said) == 1 and name in said[0]

    @property
    def brief(self) -> str:
        """The last line of its errors, for a table."""
        return (self.lines or [""])[-1][:300]


def command(words: list[str]) -> Callable[[], None]:
    """A command of the command line as a function."""

    def call() -> None:
        sys.argv = ["oncequant", *words]
        cli.main()

    return call


@dataclass
class Counter:
    """A hook that only counts, in a file, as it is in another process."""

    path: Path
    seen: list[str] = field(default_factory=list)

    def __call__(self, operation: str) -> None:
        """Count one more."""
        self.seen.append(operation)
        with open(self.path, "a") as file:
            file.write(operation + "\n")


def forked(
    action: Callable[[], Any],
    folder: Path,
    hook: Hook | None = None,
    kill_at_cpu_s: float | None = None,
    limit_s: float = 300,
    before: Callable[[], None] | None = None,
) -> Ended:
    """Call `action` in a process of its own, that begins in `folder`, and in a process group of its own.

    With `kill_at_cpu_s` the group gets SIGKILL when the process has used so much of the processor. `before` is called
    first, in the new process, for limits.
    """
    outputs = [tempfile.TemporaryFile() for _ in ("output", "errors")]
    sys.stdout.flush(), sys.stderr.flush()
    process = os.fork()
    if not process:
        status = 1
        try:
            os.setsid()
            for number, file in enumerate(outputs, start=1):
                os.dup2(file.fileno(), number)
            os.chdir(folder)
            sys.argv = ["oncequant"]  # which files keep
            if hook:
                sys.addaudithook(_watch(hook, folder))
            if before:
                before()
            action()
            status = 0
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else bool(stop.code)
        except (ValueError, OSError) as error:  # what `cli.main` makes one line of; for functions called directly
            print(f"error: {error}", file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(status)
    ended = _wait(process, kill_at_cpu_s, limit_s)
    said = []
    for file in outputs:
        with file:
            file.seek(0)
            said.append(file.read().decode(errors="replace"))
    return Ended(ended[0], said[0], said[1], ended[1])


def _wait(process: int, kill_at_cpu_s: float | None, limit_s: float) -> tuple[int | None, float]:
    """Exit status and seconds of the processor."""
    began, hung = time.monotonic(), False
    while True:
        done, state, used = os.wait4(process, os.WNOHANG)
        if done:
            break
        hung = time.monotonic() - began > limit_s
        if hung or (kill_at_cpu_s is not None and _cpu_s(process) >= kill_at_cpu_s):
            _kill_group(process)
            _, state, used = os.wait4(process, 0)
            break
        time.sleep(0.002)
    _kill_group(process)  # whatever it has left behind
    return None if hung else os.waitstatus_to_exitcode(state), used.ru_utime + used.ru_stime


def _kill_group(process: int) -> None:
    try:
        os.killpg(process, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _cpu_s(process: int) -> float:
    """Of a process and of its children that have ended; 0 when it is just beginning."""
    try:
        values = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0.0
    return sum(map(int, values[11:15])) / TICK


def _watch(hook: Hook, folder: Path) -> Callable[[str, tuple], None]:
    """An audit hook that tells `hook` of what changes files under `folder`. TensorBoard's come from a thread of their
    own, so their place among the others is not the same twice: they are left out."""
    busy = False

    def audit(event: str, arguments: tuple) -> None:
        nonlocal busy
        if busy or event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.truncate"):
            return
        busy = True
        try:
            path = arguments[event == "os.rename"]  # a rename is known by its new name, the old one is chance
            if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITES):
                return
            if isinstance(path, int | type(None)):
                return
            place = os.path.abspath(os.fsdecode(path))
            if event == "os.mkdir" and os.path.isdir(place):  # nothing happens
                return
            if place.startswith(f"{folder}{os.sep}") and "tensorboard" not in place and not place.endswith(".lock"):
                hook(f"{event.removeprefix('os.')} {os.path.relpath(place, folder)}")
        finally:
            busy = False

    return audit


def end_at(number: int) -> Hook:
    """A hook that kills its own process group before the operation of this number, from 1."""
    left = number

    def hook(operation: str) -> None:
        nonlocal left
        left -= 1
        if not left:
            os.killpg(0, signal.SIGKILL)

    return hook


def full_from(number: int) -> Hook:
    """A hook by which the disk is full from the operation of this number on."""
    left = number

    def hook(operation: str) -> None:
        nonlocal left
        left -= 1
        if left <= 0 and not operation.startswith(("remove", "rename", "truncate")):
            raise OSError(28, os.strerror(28))

    return hook
