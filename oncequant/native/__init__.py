"""The compiled CPU kernels: built once per machine by the C compiler, called through ctypes.

quantize.c is fake-quantization, normalize.c the statistics of batch norm, join.c batch norm, sum, activation and
fake-quantization in one, range.c the range of BatchQuant, depthwise.c the weight gradient of depthwise convolutions. A
call costs about 2 microseconds, against 25 to 40 through torch.compile, and networks for small targets are made of
small layers; the build takes three seconds.

The environment variable ONCEQUANT_KERNELS chooses: auto (default) uses PyTorch where the kernels cannot be built or do
not apply, with compiled a missing compiler is an error, with eager they are not used.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-shared", "-fPIC")
SOURCES = tuple(
    Path(__file__).with_name(f"{name}.c") for name in ("quantize", "normalize", "join", "range", "depthwise")
)
HEADERS = tuple(Path(__file__).with_name(name) for name in ("grid.h", "rows.h"))
MAX_READERS = 4  # as in join.c
ACTIVATIONS = {None: 0, "relu": 1, "hardswish": 2}  # as the enum in grid.h


class Options(ctypes.Structure):
    """The struct of this name in grid.h."""

    _fields_ = [
        ("q_min", ctypes.c_float),
        ("q_max", ctypes.c_float),
        ("binary", ctypes.c_int),
        ("activation", ctypes.c_int),
        ("x_is_bf16", ctypes.c_int),
        ("y_is_bf16", ctypes.c_int),
    ]


class Reader(ctypes.Structure):
    """The struct of this name in join.c."""

    _fields_ = [
        ("y", ctypes.c_void_p),
        ("step", ctypes.c_void_p),
        ("offset", ctypes.c_void_p),
        ("options", Options),
        ("grad_scale", ctypes.c_float),
        ("grad_step", ctypes.c_void_p),
        ("grad_offset", ctypes.c_void_p),
    ]


class BuildError(RuntimeError):
    """No compiler, or it failed; the message says what it printed."""


@cache
def choice() -> str:
    """The value of ONCEQUANT_KERNELS, read once per process. Raises ValueError for an unknown one."""
    value = os.environ.get("ONCEQUANT_KERNELS", "auto")
    if value not in ("auto", "compiled", "eager"):
        raise ValueError(f"ONCEQUANT_KERNELS={value!r}: use auto, compiled or eager")
    return value


@cache
def available() -> bool:
    """Whether the kernels are to be used and could be built. Raises BuildError where they must be and cannot."""
    if choice() == "eager":
        return False
    try:
        library()
    except BuildError as error:
        if choice() == "compiled":
            raise
        warnings.warn(f"layers run eagerly (slower): {error}", stacklevel=2)
        return False
    return True


@cache
def library() -> ctypes.CDLL:
    """The loaded kernels. Raises BuildError if they cannot be built."""
    threads = [[*FLAGS, *one, "-lm"] for one in (["-fopenmp"], ["-fopenmp-simd"], [])]  # what the compiler knows
    path = built("kernels", SOURCES, HEADERS, threads)
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        raise BuildError(f"{path.name} cannot be loaded: {error}") from error
    pointer, real, integer, long = ctypes.c_void_p, ctypes.c_float, ctypes.c_int, ctypes.c_long
    grid: list[Any] = [pointer, pointer, ctypes.POINTER(Options)]  # step size, offset
    loaded.fake_quantize.argtypes = [pointer, pointer, long, *grid]
    loaded.fake_quantize_backward.argtypes = [pointer, pointer, pointer, long, *grid, real, pointer, pointer]
    loaded.depthwise_weight_gradient.argtypes = [pointer, pointer, pointer, *[long] * 6, integer, integer]
    loaded.batch_norm_statistics.argtypes = [pointer, integer, long, long, pointer, pointer, real, pointer, integer]
    parts: list[Any] = [long, long, pointer, pointer, integer, integer, ctypes.POINTER(Reader), integer]
    loaded.join.argtypes = [pointer, pointer, *parts]
    loaded.join_backward.argtypes = [pointer, pointer, pointer, pointer, *parts, pointer]
    loaded.channel_extremes.argtypes = [pointer, integer, long, long, pointer, pointer]
    loaded.mean_range.argtypes = [pointer, pointer, long, pointer, pointer, integer, pointer]
    loaded.range_grid.argtypes = [pointer, pointer, pointer, long, ctypes.POINTER(Options), *[pointer] * 3]
    for name in (
        *("fake_quantize", "fake_quantize_backward"),
        *("depthwise_weight_gradient", "mean_range", "range_grid"),
    ):
        getattr(loaded, name).restype = None  # the others say whether there was memory
    return loaded


def missing_compiler() -> str:
    """Why nothing can be compiled, or ""."""
    command = _compiler()
    if command and shutil.which(command[0]) is not None:
        return ""
    return f"no C compiler: {' '.join(command)!r} is not on the PATH (the environment variable CC names another)"


def built(
    name: str,
    sources: Sequence[Path],
    headers: Sequence[Path],
    choices: Sequence[Sequence[str]],
    places: Sequence[str] = (),
) -> Path:
    """A shared library of C files, by the first choice of flags that works; kept, and compiled once per machine.

    `places` are flags that say where files are, which is not what is compiled.

    Raises BuildError.
    """
    if missing := missing_compiler():
        raise BuildError(missing)
    parts = [*(file.read_text() for file in (*headers, *sources)), *choices[0], *_compiler(), _cpu()]
    file = f"{name}-{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()[:16]}.so"
    try:
        path = _cache_folder() / file
        if not path.exists():
            _build(sources, [[*places, *flags] for flags in choices], path)
    except OSError as error:  # no space, no permission
        raise BuildError(f"{file} cannot be built: {error}") from error
    return path


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CC", "cc"))


def _build(sources: Sequence[Path], choices: Sequence[Sequence[str]], path: Path) -> None:
    """Compile to a file beside `path` and move it there."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        output = Path(folder) / path.name
        for flags in choices:  # libraries come behind the files that need them
            command = [*_compiler(), *map(str, sources), *flags, "-o", str(output)]
            result = subprocess.run(command, capture_output=True, text=True)
            if result.returncode == 0:
                os.replace(output, path)
                return
    raise BuildError(f"{' '.join(command)}: {result.stderr.strip()[-500:]}")


def _cache_folder() -> Path:
    """Where built kernels are kept: the user's cache folder, or a temporary one where that cannot be written."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "oncequant"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):  # RuntimeError: nobody knows the home folder
        pass
    return Path(tempfile.mkdtemp(prefix="oncequant-"))


def _cpu() -> str:
    """What -march=native depends on; home folders are shared between machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
    except OSError:
        return platform.platform() + platform.processor()
