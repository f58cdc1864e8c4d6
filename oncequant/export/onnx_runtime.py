"""ONNX Runtime as the judge of `model.onnx`: sessions, kernels, times, and whether differences are rounding."""

import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor

from oncequant.export.graph import Graph
from oncequant.export.onnx_writer import codes_name
from oncequant.export.simulate import float_parameters, float_values
from oncequant.onnx_session import session

NEAR_TIE = 1e-3  # of a step: farther from a rounding boundary, summation order cannot change a code
NEAR_EQUAL = 1e-5  # of the largest logit: logits this close have no order in float32


def run_onnx(runtime, pixels: Tensor) -> Tensor:  # (N, C, R, R) -> (N, classes)
    """Logits of raw pixels."""
    return torch.from_numpy(runtime.run(["logits"], {"pixels": pixels.numpy()})[0])


def kernel_counts(onnx_path: Path) -> tuple[int, int]:
    """(integer, float) convolutions and linear layers in ONNX Runtime's optimised model."""
    with tempfile.TemporaryDirectory() as temporary:
        saved = Path(temporary) / "optimised.onnx"
        session(onnx_path, save_optimised=saved)
        ops = Counter(node.op_type for node in onnx.load(saved).graph.node)
    integer = ops["QLinearConv"] + ops["QGemm"]
    return integer, sum(n for op, n in ops.items() if op in ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul"))


def latencies_ms(graph: Graph, *paths: Path, rounds: int = 15, repeats: int = 10) -> list[float]:
    """Median milliseconds per image of each file, one image and one thread; the files take turns."""
    image = np.full((1, graph.channels, graph.resolution, graph.resolution), 127, np.float32)
    sessions = [session(path) for path in paths]
    times: list[list[float]] = [[] for _ in paths]
    for _ in range(rounds):
        for runtime, seen in zip(sessions, times):
            for repeat in range(repeats + 2):
                start = time.perf_counter()
                runtime.run(None, {"pixels": image})
                if repeat >= 2:  # the first two refill the caches
                    seen.append((time.perf_counter() - start) * 1e3)
    return [statistics.median(seen) for seen in times]


# -- are differences rounding?


def near_ties(graph: Graph, onnx_path: Path, pixels: Tensor, images: Tensor) -> int:
    """Number of `images` (indices into the batch) whose first differing codes, unfused ONNX Runtime against torch, are
    near ties.

    Both compute the same float network and differ in summation order. An image counts if, at the first quantizer
    where any code differs, all differences are one level and the value lies within `NEAR_TIE` steps of a rounding
    boundary; everything behind it follows. Without a differing code, the two largest logits must be `NEAR_EQUAL`.
    The whole batch is computed again: torch sums in another order for one image than for many.
    """
    if not len(images):
        return 0
    model = onnx.load(onnx_path)
    names = {node.name: codes_name(node) for node in graph.nodes if node.grid}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names.values())
    runtime = session(model.SerializeToString(), optimise=False)
    theirs = dict(zip(names, runtime.run(list(names.values()), {"pixels": pixels.numpy()})))
    values: dict[str, Tensor] = {}  # of `images`
    undecided, explained = torch.ones(len(images), dtype=torch.bool), 0
    for node, value in float_values(graph, pixels, float_parameters(graph)):
        values[node.name] = value[images]
        if node.grid is None:
            continue
        source = values[node.inputs[0]]
        gaps = torch.from_numpy(theirs[node.name][images.numpy()].astype(np.float32)) - node.grid.quantize(source)
        for i in undecided.nonzero().flatten():
            if gaps[i].any():
                undecided[i] = False
                scaled = (source[i] / node.grid.step)[gaps[i] != 0]
                distance = (scaled - scaled.floor() - 0.5).abs()
                explained += bool(gaps[i].abs().max() == 1 and distance.max() < NEAR_TIE)
    for logits in values[graph.nodes[-1].name][undecided]:
        first, second = logits.topk(2).values
        explained += bool(first - second < NEAR_EQUAL * logits.abs().max())
    return explained
