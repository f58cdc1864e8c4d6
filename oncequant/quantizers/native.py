"""The compiled CPU kernels (kernels.c): built once per machine by the C compiler, called through ctypes.

A call costs about 2 microseconds, against 25 to 40 through torch.compile, and networks for small targets are made of
small layers; the build takes a second.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-shared", "-fPIC")
SOURCE = Path(__file__).with_name("kernels.c")
ACTIVATIONS = {None: 0, "relu": 1, "hardswish": 2}  # as the enum in kernels.c


class BuildError(RuntimeError):
    """No compiler, or it failed; the message says what it printed."""


@cache
def library() -> ctypes.CDLL:
    """The loaded kernels. Raises BuildError if they cannot be built."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if not compiler or shutil.which(compiler[0]) is None:
        raise BuildError(f"no C compiler: {' '.join(compiler)!r} is not on the PATH")
    key = hashlib.sha256("\n".join([SOURCE.read_text(), *FLAGS, *compiler, _cpu()]).encode()).hexdigest()[:16]
    try:
        path = _cache_folder() / f"kernels-{key}.so"
        if not path.exists():
            _build(compiler, path)
        loaded = ctypes.CDLL(str(path))
    except OSError as error:  # no space, no permission, not a library
        raise BuildError(f"kernels-{key}.so cannot be built or loaded: {error}") from error
    pointer, real, integer, long = ctypes.c_void_p, ctypes.c_float, ctypes.c_int, ctypes.c_long
    grid = [pointer, pointer, real, real, integer, integer]  # step, offset, q_min, q_max, binary, activation
    loaded.fake_quantize.argtypes = [pointer, pointer, long, *grid]
    loaded.fake_quantize_backward.argtypes = [pointer, pointer, pointer, long, *grid, real, pointer, pointer]
    loaded.fake_quantize.restype = loaded.fake_quantize_backward.restype = None
    return loaded


def _build(compiler: list[str], path: Path) -> None:
    """Compile to a file beside `path` and move it there, with OpenMP if the compiler knows it."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        built = Path(folder) / path.name
        for threads in (("-fopenmp",), ("-fopenmp-simd",), ()):
            command = [*compiler, *FLAGS, *threads, str(SOURCE), "-o", str(built), "-lm"]
            result = subprocess.run(command, capture_output=True, text=True)
            if result.returncode == 0:
                os.replace(built, path)
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
