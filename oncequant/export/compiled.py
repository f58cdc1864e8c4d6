"""A network in C, compiled for this machine and called from Python."""

import ctypes
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from oncequant.answers import Answers, answered, answers_of
from oncequant.data import Data, eval_batches
from oncequant.data.images import resize
from oncequant.data.splits import Split
from oncequant.export.c import FILES, check_files
from oncequant.files import FileError, user_path
from oncequant.memory import ALIGNMENT
from oncequant.native import BuildError, built

FLAGS = ("-std=c99", "-O3", "-march=native", "-ffp-contract=off", "-shared", "-fPIC")
ROUNDS, REPEATS = 15, 10  # of the latency
BATCH_C = Path(__file__).parent / "kernels" / "batch.c"


class CompiledNetwork:
    """The compiled network of an exported folder; calls from several threads are safe."""

    def __init__(self, library: Path, threads: int):
        loaded = ctypes.CDLL(str(library))
        self._run = loaded.network_batch
        self._run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]
        self._run.restype = None
        numbers = list((ctypes.c_int32 * 4).in_dll(loaded, "network_numbers"))
        self.resolution, self.channels, count, self.arena_bytes = numbers
        names = (ctypes.c_char_p * count).in_dll(loaded, "network_class_names")
        self.classes = tuple((name or b"").decode() for name in names)
        self.threads = threads

    def __call__(self, pixels: Tensor) -> Tensor:  # (N, C, R, R) uint8 -> (N, classes) float32
        """Logits of raw pixels at the network's resolution. Raises ValueError for another shape or type."""
        expected = (self.channels, self.resolution, self.resolution)
        if pixels.dim() != 4 or tuple(pixels.shape[1:]) != expected or pixels.dtype != torch.uint8:
            shape = f"{tuple(pixels.shape)} {pixels.dtype}"
            raise ValueError(f"expected images of shape (N, *{expected}) and type torch.uint8, got {shape}")
        images, logits = self._buffers(pixels)
        size = -(-max(1, len(images)) // self.threads)
        parts = [self._call(images[i : i + size], logits[i : i + size]) for i in range(0, len(images), size)]
        if len(parts) > 1:
            with ThreadPoolExecutor(self.threads) as pool:
                list(pool.map(lambda part: part(), parts))
        else:
            for part in parts:
                part()
        return torch.from_numpy(logits)

    def prepared(self, pixels: Tensor) -> Callable[[], None]:
        """A function that classifies these images on its caller's thread, in buffers that are there: for timing."""
        return self._call(*self._buffers(pixels))

    def milliseconds(self) -> float:
        """The median time of one image on this thread."""
        size = self.channels, self.resolution, self.resolution
        run = self.prepared(torch.full((1, *size), 127, dtype=torch.uint8))
        times = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            for _ in range(REPEATS):
                run()
            times.append((time.perf_counter() - start) / REPEATS * 1e3)
        return statistics.median(times)

    def _buffers(self, pixels: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Images with channels last, and room for their logits."""
        images = np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy())
        return images, np.empty((len(images), len(self.classes)), np.float32)

    def _call(self, images: np.ndarray, logits: np.ndarray) -> Callable[[], None]:
        arena = np.empty(self.arena_bytes + ALIGNMENT, np.uint8)
        start = arena.ctypes.data + -arena.ctypes.data % ALIGNMENT
        numbers = images.ctypes.data, logits.ctypes.data, len(images), start

        def run() -> None:
            assert arena.size and images.size and logits.size  # they live as long as this function
            self._run(*numbers)

        return run


def load_compiled(folder: Path | str, threads: int | None = None) -> CompiledNetwork:
    """Compile the C of an exported folder for this machine; a network that was compiled before is loaded only.

    Args:
        threads: that share the images of a call; default as many as PyTorch uses.

    Raises FileError if a file is missing or damaged, BuildError without a compiler or if it fails.
    """
    folder = user_path(folder)
    check_files(folder)
    sources = [folder / "network.c", BATCH_C]
    path = built("network", sources, [folder / "network.h"], [FLAGS], ["-iquote", str(folder)])
    try:
        return CompiledNetwork(path, threads or torch.get_num_threads())
    except OSError as error:
        raise BuildError(f"{path} cannot be loaded: {error}") from error


def evaluate_compiled(folder: Path, data: Data, split: Split) -> tuple[Answers, float]:
    """What the C of an exported folder answers, and the milliseconds of an image on one thread of this machine.

    Raises FileError if there is no C, or it cannot be compiled.
    """
    if not (folder / FILES[0]).exists():
        raise FileError(f"{folder} has no C: `oncequant export` with --formats c writes that of chosen subnets")
    try:
        network = load_compiled(folder)
    except BuildError as error:
        raise FileError(f"{folder / FILES[0]} cannot be compiled: {error}") from error
    batches = []
    for images, labels in eval_batches(data, split):
        pixels = data.raw(resize(images.cpu(), network.resolution)).round().clamp(0, 255)
        batches.append(answered(network(pixels.to(torch.uint8)), labels.cpu()))
    return answers_of(batches, len(data.classes)), network.milliseconds()
