"""The time of kernel calls in the C of `kernels/`, compiled for this machine, on one thread.

The kernels take sizes at run time, so one small file is compiled for all calls, and kept (`oncequant.native`). Calls
take turns: a round times each once, so that a machine that becomes slower is slower for all of them, and of the rounds
medians are taken. It is the processor's time: what other processes take in between does not count. Rounds are noted in
a file as they end; a process that was killed goes on with it.
"""

import ctypes
import hashlib
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch

from oncequant.export.c_writer import kernel_text
from oncequant.export.compiled import FLAGS, CompiledNetwork
from oncequant.export.graph import Grid, Weights
from oncequant.export.program import Map, Step, scratch_bytes
from oncequant.export.stack import Sizes, stack_constants
from oncequant.files import append_line, read_lines
from oncequant.native import BuildError, built
from oncequant.progress import track

OPS = "depthwise", "conv", "linear"  # as the enum in kernels/profile.c
ROUNDS = 51
VISIT_NS = 50_000  # a call is repeated until a visit takes so long: reading the clock takes time too
LINE = 64  # bytes of a cache line, on which compilers align large tables: words that lie across two are slow
SPARE = 256  # bytes behind buffers: kernels read whole words


@dataclass(frozen=True)
class Call:
    """One kernel call: what its time depends on."""

    op: str
    """One of OPS."""
    bits: int
    """Of the weights."""
    in_bits: int
    """Of the input: sums of products of few bits are added up in 16 bits for longer."""
    size: int
    """Height = width of the input."""
    channels: int
    kernel: int
    stride: int
    out_size: int
    out_channels: int


class _Call(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int32) for name in Call.__dataclass_fields__]


class _Memory(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("weights", "bias", "ratio", "arena", "logits")]


class Kernels:
    """The compiled kernels, and memory for a set of calls. Raises BuildError."""

    def __init__(self, calls: Sequence[Call]):
        bits = sorted({call.bits for call in calls})  # those alone, as in networks
        source = PREAMBLE + f"#define NETWORK_BITS(CASE) {' '.join(f'CASE({b})' for b in bits)}\n"
        sizes = [
            Sizes(
                c.kernel,
                c.kernel // 2,
                c.stride,
                c.size,
                c.channels,
                c.out_size,
                c.bits,
                c.op == "depthwise",
                c.out_channels,
            )
            for c in calls
        ]
        source += f"{stack_constants(sizes)}\n{kernel_text()}\n{_profile_c()}"
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "profile.c"
            file.write_text(source)
            self.path = built("profile", [file], [], [FLAGS])
        try:
            self._time: Any = ctypes.CDLL(str(self.path)).profile_time
        except OSError as error:
            raise BuildError(f"{self.path} cannot be loaded: {error}") from error
        self._time.argtypes = [ctypes.POINTER(_Call), ctypes.POINTER(_Memory), ctypes.c_int32]
        self._time.restype = ctypes.c_int64
        rng = np.random.default_rng(0)
        # at most a byte a weight, and both sides padded to whole words of all lanes
        weights = max((c.out_channels + 32) * (c.kernel**2 * c.channels + 128) for c in calls)
        outputs = max(c.out_channels for c in calls) + SPARE
        maps = max(max(c.size**2 * c.channels, c.out_size**2 * c.out_channels) for c in calls)
        self._buffers: dict[str, np.ndarray] = {  # random codes; nothing is a denormal number
            "weights": _random(rng, weights),
            "bias": np.zeros(outputs, np.int32),
            "ratio": np.full(outputs, 1e-4, np.float32),
            "arena": _random(rng, 2 * maps + max(map(_scratch, calls))),
            "logits": np.zeros(outputs, np.float32),
        }
        places = {name: buffer.ctypes.data for name, buffer in self._buffers.items()}
        self._memory = _Memory(**{name: place + -place % LINE for name, place in places.items()})

    def nanoseconds(self, call: Call, repeats: int) -> int:
        """Of so many calls, after one more."""
        numbers = _Call(OPS.index(call.op), *astuple(call)[1:])
        return int(self._time(ctypes.byref(numbers), ctypes.byref(self._memory), repeats))


Visit = Callable[[int], float]
"""Nanoseconds of the processor that so many repetitions take."""


def network_visit(network: CompiledNetwork) -> Visit:
    """Repetitions of one image in a whole network."""
    shape = network.channels, network.resolution, network.resolution
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, *shape), dtype=np.uint8))
    prepared = {}

    def visit(repeats: int) -> float:
        if repeats not in prepared:
            prepared[repeats] = network.prepared(image.repeat(repeats, 1, 1, 1))
        network.prepared(image)()  # refills the caches
        start = time.thread_time_ns()
        prepared[repeats]()
        return time.thread_time_ns() - start

    return visit


def microseconds(visits: Sequence[Visit], of: str, unfinished: Path, rounds: int = ROUNDS) -> list[float]:
    """The median time of one repetition of each; they take turns.

    `unfinished` keeps the rounds of what `of` describes, until the caller removes it. Raises FileError.
    """
    key = hashlib.sha256(of.encode()).hexdigest()
    taken = [row["us"] for row in read_lines(unfinished) if row.get("of") == key][:rounds]
    repeats = [max(1, min(10_000, round(VISIT_NS / max(1, visit(1))))) for visit in visits]
    with track("profile", rounds, len(taken)) as bar:
        for done in range(len(taken) + 1, rounds + 1):
            taken.append([visit(count) / count / 1e3 for visit, count in zip(visits, repeats)])
            append_line(unfinished, {"of": key, "us": [round(us, 4) for us in taken[-1]]})
            bar(done, {})
    return [float(us) for us in np.median(np.array(taken), axis=0)]


PREAMBLE = """\
#define _POSIX_C_SOURCE 199309L /* clock_gettime */
#include <float.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

"""


def _profile_c() -> str:
    return (resources.files("oncequant.export") / "kernels" / "profile.c").read_text()


def _random(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.integers(0, 256, count + SPARE, dtype=np.uint8)


def _scratch(call: Call) -> int:
    """Bytes of a kernel's own memory, as `place` plans it."""
    is_depthwise, grid = call.op == "depthwise", Grid(1.0, 0, 8)
    shape = call.out_channels, 1 if is_depthwise else call.channels, call.kernel, call.kernel
    groups = call.channels if is_depthwise else 1
    empty = torch.empty(shape, dtype=torch.int8)
    weights = Weights(empty, torch.zeros(1), None, call.bits, stride=call.stride, groups=groups)
    op = "conv" if is_depthwise else call.op
    maps = {"x": Map(call.size, call.channels, grid), "y": Map(call.out_size, call.out_channels, grid)}
    return scratch_bytes(Step(op, "", ("x",), "y", weights), maps) + SPARE
