"""Time and peak memory of a supernet step, quantized over float.

    OMP_WAIT_POLICY=passive python benchmarks/step.py [--out results/NAME.csv]

A step is forward, cross entropy and backward of one subnet, without optimiser and data. Every setting runs in a process
of its own, for its peak memory; float and quantized alternate within one run. Peak memory is what the step adds to the
process with the network and the images in place. Quantized is what `oncequant run` trains by default: 4-bit blocks,
8-bit first convolution, classifier and squeeze-and-excite.
"""

import csv
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
import tyro
from torch.nn import functional as F

from oncequant.methods.oqat import initialise_step_sizes
from oncequant.models.mobilenet_v3 import PRESETS, MobileNetV3, with_bits
from oncequant.run_folder import device_name


@dataclass(frozen=True)
class Options:
    """What to measure."""

    presets: tuple[str, ...] = ("cifar", "imagenet")
    size: int = 64
    batch: int = 32
    bits: int = 4
    steps: int = 9
    passes: int = 3
    """Processes per setting; the median of their medians counts."""
    out: Path | None = None
    one: str | None = None
    """Internal: measure one setting (JSON) in this process."""


def measure(preset: str, subnet: str, bits: int, size: int, batch: int, steps: int) -> dict[str, float]:
    """Median step time in ms and peak memory in MiB of this process."""
    config = with_bits(replace(PRESETS[preset], resolutions=(size,), edge_bits=8, se_bits=8), bits)
    torch.manual_seed(0)
    net = MobileNetV3(config).to(memory_format=torch.channels_last)
    images = torch.randn(batch, config.image_channels, size, size)
    labels = torch.randint(0, config.num_classes, (batch,))
    if bits < 32:
        initialise_step_sizes(net, images)
    net.train()
    rng = np.random.default_rng(0)
    before = _memory_mib()
    times = []
    for _ in range(steps + 2):
        arch = net.space.largest() if subnet == "max" else net.space.sample(rng)
        start = time.perf_counter()
        net.zero_grad(set_to_none=True)
        F.cross_entropy(net(images, arch), labels).backward()
        times.append(1000 * (time.perf_counter() - start))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"ms": statistics.median(times[2:]), "mib": peak - before, "process_mib": peak}


def _memory_mib() -> float:
    """Resident memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main(options: Options) -> None:
    """Measure all settings and print a table."""
    if options.one:
        print(json.dumps(measure(**json.loads(options.one))))
        return
    rows = []
    for preset, subnet in product(options.presets, ("max", "random")):
        found = {32: [], options.bits: []}
        for _ in range(options.passes):
            for bits in found:
                setting = dict(
                    preset=preset, subnet=subnet, bits=bits, size=options.size, batch=options.batch, steps=options.steps
                )
                command = [sys.executable, __file__, "--one", json.dumps(setting)]
                output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                found[bits].append(json.loads(output.splitlines()[-1]))
        median = {
            bits: {key: statistics.median(r[key] for r in results) for key in results[0]}
            for bits, results in found.items()
        }
        low, full = median[options.bits], median[32]
        rows.append(
            {
                "preset": preset,
                "subnet": subnet,
                "size": options.size,
                "batch": options.batch,
                "bits": options.bits,
                "float_ms": round(full["ms"], 1),
                "quantized_ms": round(low["ms"], 1),
                "time_ratio": round(low["ms"] / full["ms"], 3),
                "float_mib": round(full["mib"]),
                "quantized_mib": round(low["mib"]),
                "memory_ratio": round(low["mib"] / full["mib"], 3),
                "process_memory_ratio": round(low["process_mib"] / full["process_mib"], 3),
                "load1": round(os.getloadavg()[0], 2),
                "device": device_name(torch.device("cpu")),
                "torch": torch.__version__,
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    if options.out:
        with options.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
