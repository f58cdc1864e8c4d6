"""Latency from a cost table against latency as measured: random architectures, in C, on one core of this machine.

    taskset -c 0 python benchmarks/profile.py [--count 100] [--out results/NAME.csv]

Networks have random weights and calibrated grids. The table is profiled first; then every network is compiled, and all
take turns, one image at a time: medians over rounds of the time that the thread has the processor, so that other
processes do not count.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rows import measured, save
from scipy.stats import kendalltau

from oncequant.arch import Arch
from oncequant.cost import bitops, macs
from oncequant.cost_table import table_cost
from oncequant.export.graph import Graph
from oncequant.export.profile import compiled, profile, random_graph, random_supernet
from oncequant.export.timing import microseconds, network_visit
from oncequant.models import PRESETS

SPACES: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet-cifar, 4 bits": ("resnet-cifar", dict(weight_bits=(4,), act_bits=(4,))),
    "nano, 4 bits": ("nano", dict(weight_bits=(4,), act_bits=(4,), se_bits=8)),
    "resnet-cifar, mixed": ("resnet-cifar", dict(weight_bits=(2, 3, 4), act_bits=(2, 3, 4), steps_per_bits=True)),
}


@dataclass(frozen=True)
class Options:
    """What to measure."""

    count: int = 100
    """Architectures of each space."""
    only: tuple[str, ...] = ()
    """Names of spaces; default all."""
    out: Path | None = None


def milliseconds(graphs: list[Graph]) -> list[float]:
    """Median time of each network for one image; they take turns."""
    visits = []
    for graph in graphs:
        visits.append(network_visit(compiled(graph)))
        print(f"compiled {len(visits)} of {len(graphs)}", end="\r", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        return [us / 1e3 for us in microseconds(visits, "networks", Path(folder) / "rounds")]


def compare(name: str, count: int) -> dict[str, Any]:
    """Prediction against measurement on one space."""
    preset, bits = SPACES[name]
    config: Any = replace(PRESETS[preset], edge_bits=8, **bits)
    with tempfile.TemporaryDirectory() as folder:
        path, start = Path(folder) / "latency_us.csv", time.monotonic()
        found = profile(config, path)
        seconds, cost = time.monotonic() - start, table_cost(path)
    supernet, rng = random_supernet(config), np.random.default_rng(1)
    archs: list[Arch] = list(dict.fromkeys(supernet.space.sample(rng) for _ in range(2 * count)))[:count]
    predicted = np.array([float(cost(supernet.space.layers(arch))) / 1e3 for arch in archs])
    taken = np.array(milliseconds([random_graph(supernet, arch) for arch in archs]))
    ratio = predicted / taken

    def tau(values: Sequence[float] | np.ndarray) -> float:
        return round(float(kendalltau(values, taken).statistic), 4)

    return measured(
        space=name,
        networks=len(archs),
        **{key: round(value, 4) for key, value in asdict(found).items()},
        profile_seconds=round(seconds, 1),
        kendall_tau=tau(predicted),
        kendall_tau_of_macs=tau([macs(supernet.space.layers(arch)) for arch in archs]),
        kendall_tau_of_bitops=tau([bitops(supernet.space.layers(arch)) for arch in archs]),
        median_error=round(float(np.median(np.abs(ratio - 1))), 4),
        p90_error=round(float(np.quantile(np.abs(ratio - 1), 0.9)), 4),
        median_ratio=round(float(np.median(ratio)), 4),
        least_ms=round(float(taken.min()), 4),
        most_ms=round(float(taken.max()), 4),
    )


def main(options: Options) -> None:
    """Compare on every space and print the table."""
    torch.set_num_threads(1)
    save([compare(name, options.count) for name in options.only or SPACES], options.out)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
