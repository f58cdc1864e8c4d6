"""Graphs of random operations, sizes, weights and grids, for the kernels in C."""

import numpy as np
import torch
from small_export import CLASSES

from oncequant.arch import Arch
from oncequant.export.c_writer import self_test_pictures
from oncequant.export.graph import Graph, Grid, Node, Weights
from oncequant.export.simulate import float_parameters, float_values


def random_graph(seed):
    """A residual graph of random sizes, whose grids and weights are random too."""
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    nodes = [Node("pixels", "pixels"), Node("normalised", "normalise", ("pixels",))]
    channels, size = int(rng.integers(1, 4)), int(rng.integers(5, 12))
    resolution, first = size, channels

    def quantize(name, grid=None):
        """On a grid that fits what pictures give; now and then too small, or with any zero point."""
        bits = int(rng.integers(4, 9))
        low, high = (-1.7, 1.7) if name == "normalised" else extent(nodes, name, first, resolution)
        low, high, fits = min(low, 0.0), max(high, 1e-3), rng.uniform(0.7, 1.1)
        step = float(np.float32((high - low) * fits / (2**bits - 1)))
        zero = int(rng.integers(0, 2**bits)) if rng.random() < 0.1 else round(-low * fits / step)
        grid = grid or Grid(step, min(zero, 2**bits - 1), bits)
        nodes.append(Node(f"{name}.q{len(nodes)}", "quantize", (name,), grid=grid))
        return nodes[-1].name

    def layer(op, source, outputs, kernel, stride=1, groups=1, padding=None, dilation=1):
        bits, name = int(rng.integers(1, 9)), f"{op}{len(nodes)}"
        shape = (outputs, channels // groups) + ((kernel, kernel) if op == "conv" else ())
        odd = bits == 1 or rng.random() < 0.3 and bits < 8
        low, high = (0, 2**bits) if odd else (-(2 ** (bits - 1)), 2 ** (bits - 1))
        codes = torch.randint(low, high, shape, generator=generator)
        codes = (2 * codes - 2**bits + 1 if odd else codes).to(torch.int8)
        before = next(node.grid for node in nodes if node.name == source)
        reach = int(2 ** (bits + before.bits) * np.sqrt(np.prod(shape[1:])) / 8) + 1
        bias = torch.randint(-reach, reach, (outputs,), generator=generator, dtype=torch.int32)
        scale = (torch.rand(outputs, generator=generator) - 0.2) / (reach * before.step)
        shift = int(rng.integers(0, 3))
        weights = Weights(codes, bias, scale, bits, shift, stride, groups, odd, padding, dilation)
        nodes.append(Node(name, op, (source,), weights=weights))
        return name

    source = quantize("normalised")
    for _ in range(rng.integers(1, 4)):
        kernel, stride, outputs = int(rng.choice([1, 3, 5, 7, size])), int(rng.integers(1, 3)), int(rng.integers(1, 20))
        padding, dilation = int(rng.choice([0, kernel // 2, kernel - 1])), int(rng.choice([1, 1, 2]))
        if size + 2 * padding < dilation * (kernel - 1) + 1:  # the kernel would reach beyond the map
            padding, dilation = kernel // 2, 1
        groups = int(rng.choice([n for n in range(1, channels + 1) if channels % n == 0]))
        outputs = -(-outputs // groups) * groups
        before = source
        source = quantize(layer("conv", source, outputs, kernel, stride, groups, padding, dilation))
        channels, size = outputs, (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        if rng.random() < 0.5:
            source = quantize(layer("conv", source, channels, 3, 1, channels))
        branch, branch_size = quantize(layer("conv", source, channels, 1)), size
        nodes.append(Node(f"sum{len(nodes)}", "add", (branch, source)))
        source = quantize(nodes[-1].name)
        if rng.random() < 0.5:
            nodes.append(Node(f"swish{len(nodes)}", str(rng.choice(["hardswish", "relu"])), (source,)))
            source = quantize(nodes[-1].name)
        if rng.random() < 0.3 and size > 1:
            nodes.append(Node(f"pool{len(nodes)}", "maxpool", (source,)))
            source, size = quantize(nodes[-1].name), (size + 1) // 2
        if rng.random() < 0.3:
            nodes.append(Node(f"product{len(nodes)}", "multiply", (source, branch if size == branch_size else source)))
            source = quantize(nodes[-1].name)
        if rng.random() < 0.3:
            around = tuple(int(n) for n in rng.integers(0, 3, 2))
            nodes.append(Node(f"pad{len(nodes)}", "pad", (source,), window=(*around, *around[::-1])))
            source, size = quantize(nodes[-1].name), size + sum(around)
        assert before != source
    nodes.append(Node("mean", "mean", (source,)))
    gate = quantize("mean")
    nodes.append(Node("gated", "multiply", (source, gate)))
    nodes.append(Node("mean2", "mean", (quantize("gated"),)))
    last = quantize("mean2")
    nodes.append(Node("flat", "flatten", (last,)))
    layer("linear", quantize("flat", nodes[-2].grid), 10, 1)
    arch = Arch({"resolution": resolution})
    return Graph(tuple(nodes), arch, (0.5,) * first, (0.3,) * first, CLASSES, 16)


def extent(nodes, name, channels, resolution):
    """The least and the largest value of a node on the pictures of the self-test."""
    last = Node("last", "linear", (name,), weights=Weights(torch.zeros(10, 1), torch.zeros(10), None))
    arch = Arch({"resolution": resolution})
    graph = Graph((*nodes, last), arch, (0.5,) * channels, (0.3,) * channels, CLASSES, 16)
    for node, value in float_values(graph, self_test_pictures(graph).float(), float_parameters(graph)):
        if node.name == name:
            return value.min().item(), value.max().item()
