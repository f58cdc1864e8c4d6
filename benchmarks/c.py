"""Networks in C: latency beside ONNX Runtime on this machine, and what they take on a Cortex-M4.

    python benchmarks/c.py [--out results/NAME.csv]

Networks have random weights and calibrated grids. C, the integer ONNX file and the float file of the same architecture
take turns, one image and one thread; medians. On processors with AMX so does C without it. What a call from Python
costs is in all of them. Where OpenVINO is installed it runs both files too, and LiteRT its own of the same architecture
(`litert.py`). On processors with VNNI, `peak_share` is
the MACs of a second over those of a loop of nothing but VNNI instructions. A Cortex-M's instructions are counted under
emulation (`oncequant/export/cortex_m.py`), where its tools are installed.
"""

import ctypes
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import tyro
from rows import measured, save

from oncequant.arch import Arch
from oncequant.cost import macs
from oncequant.export import compiled
from oncequant.export.c import write_c
from oncequant.export.c_writer import sources
from oncequant.export.compiled import load_compiled
from oncequant.export.cortex_m import emulate, missing_tools
from oncequant.export.graph import Graph
from oncequant.export.lower import lower
from oncequant.export.onnx_writer import write_onnx
from oncequant.export.program import place, program
from oncequant.family import with_bits
from oncequant.measure import calibrated_subnet, initialise_quantizers
from oncequant.models import build_network
from oncequant.models.elastic_resnet import PRESETS as ELASTIC
from oncequant.models.mobilenet_v3 import PRESETS as MOBILE
from oncequant.models.resnet import PRESETS as RESNET
from oncequant.network import Network
from oncequant.onnx_session import session

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


def calls_of(folder: Path, graph: Graph, in_float: Graph) -> dict[str, Callable[[], Any]]:
    """One image by C, and by the integer and the float file in every runtime that is installed."""
    image = torch.full((1, graph.channels, graph.resolution, graph.resolution), 127, dtype=torch.uint8)
    integer, floating = (session(folder / f"{kind}.onnx") for kind in ("integer", "float"))
    feed = {"pixels": image.numpy().astype(np.float32)}
    calls: dict[str, Callable[[], Any]] = {"c": load_compiled(folder, 1).prepared(image)}
    if "amx_int8" in processor():
        with patch.object(compiled, "FLAGS", (*compiled.FLAGS, "-DNETWORK_NO_AMX")):
            calls["c_without_amx"] = load_compiled(folder, 1).prepared(image)
    calls["onnx_integer"] = lambda: integer.run(None, feed)
    calls["onnx_float"] = lambda: floating.run(None, feed)
    if find_spec("openvino"):
        import openvino

        core = openvino.Core()
        for kind in ("integer", "float"):
            options = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
            request = core.compile_model(folder / f"{kind}.onnx", "CPU", options).create_infer_request()
            calls[f"openvino_{kind}"] = partial(request.infer, feed)
    if find_spec("tensorflow") and find_spec("ai_edge_litert"):
        from litert import litert_calls

        calls |= litert_calls(in_float)
    return calls


PEAK = """
#include <immintrin.h>
#include <stdint.h>
void peak(int64_t rounds)
{
    __m512i sums[12] = {0};
    const __m512i a = _mm512_set1_epi8(1);
    for (int64_t i = 0; i < rounds; i++)
#pragma GCC unroll 12
        for (int j = 0; j < 12; j++) __asm__ volatile("vpdpbusd %1, %1, %0" : "+v"(sums[j]) : "v"(a));
}
"""


def processor() -> str:
    """What Linux says of it."""
    return Path("/proc/cpuinfo").read_text()


def peak_macs() -> float:
    """MACs in a second of nothing but VNNI instructions, 64 each; 0 without them."""
    if "avx512_vnni" not in processor():
        return 0.0
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "peak.c", Path(folder) / "peak.so"
        source.write_text(PEAK)
        subprocess.run(["cc", "-O2", "-march=native", "-shared", "-fPIC", source, "-o", library], check=True)
        run, rounds = ctypes.CDLL(str(library)).peak, 100_000
    run.argtypes = [ctypes.c_int64]
    times = []
    for _ in range(50):
        start = time.perf_counter()
        run(rounds)
        times.append(time.perf_counter() - start)
    return 12 * 64 * rounds / statistics.median(times)


def latencies(calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median milliseconds of each; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for call, seen in zip(calls.values(), times.values()):
            for repeat in range(REPEATS + 2):
                start = time.perf_counter()
                call()
                if repeat >= 2:  # the first two refill the caches
                    seen.append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(seen) for name, seen in times.items()}


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
                peak, times = peak_macs(), latencies(calls_of(folder, graph, in_float))
                row |= {f"{kind}_ms": round(ms, 4) for kind, ms in times.items()}
                row["float_over_c"] = round(times["onnx_float"] / times["c"], 2)
                if peak:
                    row["peak_share"] = round(1e3 * count / times["c"] / peak, 3)
                if not missing_tools():
                    core = emulate(folder)
                    row |= dict(m4_flash_bytes=core.flash_bytes, m4_stack_bytes=core.stack_bytes)
                    row |= dict(m4_instructions=core.instructions, m4_per_mac=round(core.instructions / count, 2))
                    row["m4_equal"] = core.equal
            rows.append(measured(**row))
    save(rows, options.out)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
