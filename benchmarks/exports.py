"""Latency of exported networks in ONNX Runtime: integer over float, batch 1 and 32, 1 and 2 threads.

    python benchmarks/exports.py [--out results/NAME.csv]

Networks have random weights, which costs the same: ONNX Runtime's 8-bit kernels do not look at values. Files are those
of `oncequant export`; the float file is the same architecture. The two take turns; medians.
"""

import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import tyro
from rows import measured, save

from oncequant.export.lower import lower
from oncequant.export.onnx_writer import write_onnx
from oncequant.family import with_bits
from oncequant.measure import calibrate, initialise_quantizers
from oncequant.models import build_network, extract_subnet
from oncequant.models.mobilenet_v3 import PRESETS
from oncequant.onnx_session import session


@dataclass(frozen=True)
class Options:
    """What to measure."""

    presets: tuple[str, ...] = ("nano", "cifar", "imagenet")
    bits: int = 4
    batches: tuple[int, ...] = (1, 32)
    threads: tuple[int, ...] = (1, 2)
    seconds: float = 2.0
    """Time per setting."""
    out: Path | None = None


def export(preset: str, bits: int, folder: Path) -> dict[str, Path]:
    """Integer and float files of the preset's largest network at its highest resolution."""
    torch.manual_seed(0)
    config = with_bits(replace(PRESETS[preset], edge_bits=8, se_bits=8), bits)
    supernet = build_network(config).to(memory_format=torch.channels_last)
    arch, size = supernet.space.largest(), max(config.resolutions)
    images = torch.randn(16, config.image_channels, size, size)
    initialise_quantizers(supernet, images)
    subnet = extract_subnet(supernet, arch)
    calibrate(subnet, arch, [(images, None)])
    about = (0.5,) * config.image_channels, (0.25,) * config.image_channels, tuple(map(str, range(config.num_classes)))
    about = (*about, size)
    paths = {name: folder / f"{name}.onnx" for name in ("integer", "float")}
    write_onnx(lower(subnet, arch, *about, [(images, None)]), paths["integer"])
    write_onnx(lower(subnet, arch, *about, (), as_float=True), paths["float"])
    return paths


def medians_ms(paths: dict[str, Path], pixels: np.ndarray, threads: int, seconds: float) -> dict[str, float]:
    """Median milliseconds of a run of each file; they take turns."""
    sessions = {name: session(path, threads=threads) for name, path in paths.items()}
    times: dict[str, list[float]] = {name: [] for name in paths}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["float"]) < 20:
        for name, runtime in sessions.items():
            for repeat in range(4):
                start = time.perf_counter()
                runtime.run(None, {"pixels": pixels})
                if repeat:  # the first refills the caches
                    times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(seen) for name, seen in times.items()}


def main(options: Options) -> None:
    """Measure and print a table."""
    rows = []
    for preset in options.presets:
        config = PRESETS[preset]
        with tempfile.TemporaryDirectory() as folder:
            paths = export(preset, options.bits, Path(folder))
            for batch, threads in product(options.batches, options.threads):
                shape = batch, config.image_channels, max(config.resolutions), max(config.resolutions)
                found = medians_ms(paths, np.full(shape, 127, np.float32), threads, options.seconds)
                rows.append(
                    measured(
                        preset=preset,
                        bits=options.bits,
                        batch=batch,
                        threads=threads,
                        integer_ms=round(found["integer"], 3),
                        float_ms=round(found["float"], 3),
                        integer_over_float=round(found["integer"] / found["float"], 2),
                        integer_kb=round(paths["integer"].stat().st_size / 1000, 1),
                        float_kb=round(paths["float"].stat().st_size / 1000, 1),
                        onnxruntime=onnxruntime.__version__,
                    )
                )
    save(rows, options.out)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
