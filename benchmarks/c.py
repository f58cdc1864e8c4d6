"""Networks in C: latency beside ONNX Runtime on this machine, and what they take on a Cortex-M4.

    python benchmarks/c.py [--out results/NAME.csv]

Networks have random weights and calibrated grids. C, the integer ONNX file and the float file of the same architecture
take turns, one image and one thread; medians. What a call from Python costs is in all three. Instructions are counted
under emulation (`oncequant/export/cortex_m.py`), where its tools are installed.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rows import measured, save

from oncequant.arch import Arch
from oncequant.cost import macs
from oncequant.export.c import write_c
from oncequant.export.c_writer import sources
from oncequant.export.compiled import load_compiled
from oncequant.export.cortex_m import emulate, missing_tools
from oncequant.export.graph import Graph
from oncequant.export.lower import lower
from oncequant.export.onnx_runtime import session
from oncequant.export.onnx_writer import write_onnx
from oncequant.export.program import place, program
from oncequant.family import with_bits
from oncequant.measure import calibrated_subnet, initialise_quantizers
from oncequant.models import build_network
from oncequant.models.elastic_resnet import PRESETS as ELASTIC
from oncequant.models.mobilenet_v3 import PRESETS as MOBILE
from oncequant.models.resnet import PRESETS as RESNET
from oncequant.network import Network

ROUNDS, REPEATS = 25, 5
CLASSES = tuple("0123456789")


@dataclass(frozen=True)
class Options:
    """What to measure."""

    bits: tuple[int, ...] = (4, 2)
    only: tuple[str, ...] = ()
    """Names of networks, such as nano-S; default all."""
    out: Path | None = None


def networks(bits: int) -> dict[str, tuple[Any, str]]:
    """By name, a configuration and which of its architectures."""
    edges = dict(edge_bits=8)
    found: dict[str, tuple[Any, str]] = {
        "resnet20": (replace(RESNET["resnet20"], precisions=(101 * bits,), **edges), "smallest")
    }
    for name, config in {**MOBILE, **ELASTIC}.items():
        if name in ("nano", "cifar", "resnet-nano", "resnet-cifar"):
            more = edges | ({"se_bits": 8} if name in MOBILE else {})
            found |= {f"{name}-S": (with_bits(replace(config, **more), bits), "smallest")}
            found |= {f"{name}-L": (with_bits(replace(config, **more), bits), "largest")}
    return found


def graphs(config: Any, which: str) -> tuple[Network, Arch, Graph, Graph]:
    """A network, its graph, and that of the same architecture in float."""
    torch.manual_seed(0)
    supernet = build_network(config)
    arch, size = getattr(supernet.space, which)(), max(config.resolutions)
    images = torch.randn(32, config.image_channels, size, size)
    initialise_quantizers(supernet, images)
    calibration = [(images, None)]
    subnet = calibrated_subnet(supernet, arch, calibration)
    about = (0.5,) * config.image_channels, (0.25,) * config.image_channels, CLASSES, size
    written = lower(subnet, arch, *about, calibration), lower(subnet, arch, *about, (), as_float=True)
    return subnet, arch, *written


def calls_of(folder: Path, graph: Graph) -> list[Callable[[], Any]]:
    """One image by C, by the integer file and by the float file."""
    image = torch.full((1, graph.channels, graph.resolution, graph.resolution), 127, dtype=torch.uint8)
    integer, in_float = (session(folder / f"{kind}.onnx") for kind in ("integer", "float"))
    feed = {"pixels": image.numpy().astype(np.float32)}
    run = load_compiled(folder, 1).prepared(image)
    return [run, lambda: integer.run(None, feed), lambda: in_float.run(None, feed)]


def latencies(calls: list[Callable[[], Any]]) -> list[float]:
    """Median milliseconds of each; they take turns."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(ROUNDS):
        for call, seen in zip(calls, times):
            for repeat in range(REPEATS + 2):
                start = time.perf_counter()
                call()
                if repeat >= 2:  # the first two refill the caches
                    seen.append((time.perf_counter() - start) * 1e3)
    return [statistics.median(seen) for seen in times]


def main(options: Options) -> None:
    """Measure every network and print the table."""
    torch.set_num_threads(1)
    rows = []
    for bits in options.bits:
        for name, (config, which) in networks(bits).items():
            if options.only and name not in options.only:
                continue
            subnet, arch, graph, in_float = graphs(config, which)
            count = int(macs(subnet.space.layers(arch)))
            placement = place(plan := program(graph))
            row = dict(network=name, bits=bits, macs=count, constant_bytes=sources(plan, placement)[1])
            row["arena_bytes"] = placement.bytes
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary)
                write_c(graph, folder)
                write_onnx(graph, folder / "integer.onnx")
                write_onnx(in_float, folder / "float.onnx")
                times = latencies(calls_of(folder, graph))
                row |= {f"{kind}_ms": round(ms, 4) for kind, ms in zip(("c", "onnx_integer", "onnx_float"), times)}
                row["float_over_c"] = round(times[2] / times[0], 2)
                if not missing_tools():
                    core = emulate(folder)
                    row |= dict(m4_flash_bytes=core.flash_bytes, m4_stack_bytes=core.stack_bytes)
                    row |= dict(m4_instructions=core.instructions, m4_per_mac=round(core.instructions / count, 2))
                    row["m4_equal"] = core.equal
            rows.append(measured(**row))
    save(rows, options.out)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
