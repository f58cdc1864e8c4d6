"""A network in C on a microcontroller, without one: cross-compiled and run under emulation.

Sizes are those of the object file, the stack is what the compiler says that functions use, and the emulator counts
instructions, which are not cycles. Debian has all tools: gcc-arm-none-eabi, libnewlib-arm-none-eabi, qemu-system-arm.
"""

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

TOOLS = ("arm-none-eabi-gcc", "arm-none-eabi-size", "qemu-system-arm")
FLAGS = ("-O2", "-mthumb", "-std=c99", "-ffp-contract=off")
LINKED = ("-nostartfiles", "--specs=nano.specs", "--specs=rdimon.specs")
SECONDS = 600
KERNELS = Path(__file__).parent / "kernels"


@dataclass(frozen=True)
class Core:
    """A core, and a board of the emulator that has it."""

    flags: tuple[str, ...]
    board: str


CORES = {
    "cortex-m3": Core(("-mcpu=cortex-m3", "-mfloat-abi=soft"), "mps2-an385"),
    "cortex-m4": Core(("-mcpu=cortex-m4", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"), "mps2-an386"),
    "cortex-m7": Core(("-mcpu=cortex-m7", "-mfloat-abi=hard", "-mfpu=fpv5-sp-d16"), "mps2-an500"),
}


class EmulationError(RuntimeError):
    """A tool failed; the message says what it printed."""


@dataclass(frozen=True)
class OnCore:
    """What a network takes on a core."""

    flash_bytes: int
    """Code and constants."""
    stack_bytes: int
    """The deepest chain of calls of the file's own functions; memcpy and the like are not counted."""
    instructions: int
    """Of one picture."""
    equal: bool
    """Whether the self-test found every logit equal to the last bit."""


def missing_tools() -> list[str]:
    """The tools that this machine lacks."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if not missing:  # the library is a package of its own
        found = subprocess.run([TOOLS[0], "--print-file-name=rdimon.specs"], capture_output=True, text=True).stdout
        missing = [] if Path(found.strip()).is_absolute() else ["newlib"]
    return missing


def emulate(folder: Path, core: str = "cortex-m4") -> OnCore:
    """Compile the C of an exported folder for a core and run it under emulation. Raises EmulationError."""
    flags, folder = (*FLAGS, *CORES[core].flags), Path(folder).resolve()
    with TemporaryDirectory() as name:
        work = Path(name)
        _run([TOOLS[0], *flags, "-fstack-usage", "-c", str(folder / "network.c"), "-o", "network.o"], work)
        code, data, bss = map(int, _run([TOOLS[1], "network.o"], work).splitlines()[1].split()[:3])
        if data or bss:
            raise EmulationError(f"{folder / 'network.c'} has variables: {data} + {bss} bytes")
        files = [str(path) for path in (folder / "network_test.c", KERNELS / "emulated.c")]
        layout = ["-T", str(KERNELS / "emulated.ld")]
        _run([TOOLS[0], *flags, f"-I{folder}", "network.o", *files, *LINKED, *layout, "-o", "test.elf"], work)
        machine = ["-M", CORES[core].board, "-nographic", "-icount", "shift=0"]
        machine += ["-semihosting-config", "enable=on,target=native", "-kernel", "test.elf"]
        printed = _run([TOOLS[2], *machine], work, fails=True)
        usage = [line.split("\t") for line in (work / "network.su").read_text().splitlines()]
    counted = re.search(r"(\d+) thousand instructions", printed)
    tested = re.search(r"(\d+) of (\d+) pictures equal", printed)
    if not counted or not tested:
        raise EmulationError(f"{core} printed {printed.strip()[-300:]!r}")
    own = {place.rsplit(":", 1)[-1]: int(size) for place, size, _ in usage}
    return OnCore(code, _deepest(own), 1000 * int(counted[1]), tested[1] == tested[2])


CALLS = {  # of kernels/layers.h
    "network_run": (
        "from_pixels",
        "layer",
        "depthwise",
        "add",
        "multiply",
        "mean",
        "lookup",
        "maxpool",
        "pool",
        "join",
        "slice_channels",
        "shuffle_channels",
        "subsample",
        "pad_channels",
    ),
    "layer": ("make_column", "block_dots"),
    "make_column": ("gather",),
    "block_dots": ("leftover_dots",),
    "depthwise": ("unpack_weights",),
}


def _deepest(own: dict[str, int], function: str = "network_run") -> int:
    """Stack of a function and of the deepest that it calls; `own` are the bytes of each. Inlined ones have none."""
    named = {name.split(".")[0]: size for name, size in own.items()}
    return named.get(function, 0) + max([_deepest(own, called) for called in CALLS.get(function, ())], default=0)


def _run(command: Sequence[str], folder: Path, fails: bool = False) -> str:
    """What a command prints. Raises EmulationError if it fails, unless it may."""
    nothing = subprocess.DEVNULL
    try:
        done = subprocess.run(command, cwd=folder, stdin=nothing, capture_output=True, text=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EmulationError(f"{command[0]}: {error}") from error
    if done.returncode and not fails:
        raise EmulationError(f"{' '.join(command)}: {done.stderr.strip()[-500:]}")
    return done.stdout
