"""Graphs of architectures with random weights and grids that all differ, without a network: quick, of any size."""

import itertools
from dataclasses import replace

import numpy as np
import torch

from oncequant.arch import SKIP
from oncequant.export.graph import Graph, Grid, Node, Weights
from oncequant.family import ElasticConfig
from oncequant.grids import blanks, grid_owners, needs_grid, with_quantizers
from oncequant.models import PRESETS, space_of


def mixed(name, weight_bits=(1, 2, 3, 4, 5, 6, 7, 8), act_bits=(2, 3, 4, 5, 6, 7, 8), **options):
    """The space of a preset whose layers have these bit-widths, the edges 8."""
    config = PRESETS[name]
    known = {"se_bits": 8} if hasattr(config, "se_bits") else {}
    if isinstance(config, ElasticConfig):
        bits = dict(weight_bits=weight_bits, act_bits=act_bits)
    else:
        pairs = tuple(sorted(100 * w + int(a) for w, a in zip(weight_bits, np.resize(act_bits, len(weight_bits)))))
        bits = dict(precisions=(SKIP, *pairs))
    return space_of(replace(config, edge_bits=8, **known, **bits, **options))


def blank_graph(space, arch, rng):
    """A graph of an architecture all of whose layers are quantized."""
    plan, generator = space.plan(arch), torch.Generator().manual_seed(int(rng.integers(2**31)))

    # layers that read one map are at most three apart: their steps differ by half, so their tables do
    steps = itertools.cycle(0.02 * 1.06 ** ((7 * np.arange(30) + int(rng.integers(30))) % 30))

    def grid(bits, zero_point=0):
        return Grid(float(np.float32(next(steps))), zero_point, bits)

    learned = {
        name: grid(spec.act_bits, 2 ** (spec.act_bits - 1) if spec.signed_input else 0) for name, spec in plan.items()
    }
    nodes = []
    for blank in blanks(plan.nodes):
        weights = None
        if blank.op in ("conv", "linear"):
            weights = random_weights(plan[blank.name], blank.op, learned[blank.name], generator)
        nodes.append(Node(blank.name, blank.op, blank.inputs, learned.get(blank.grid), weights, blank.channels))
    owners = grid_owners(nodes, needs_grid(nodes))
    # so fine that no two layers that read one of them have the same table
    found = {owner: Grid(float(np.float32(next(steps) / 10)), 0, 8) for owner in owners.values()}
    quantizers = {name: Node(f"{name}.q", "quantize", (name,), grid=found[owner]) for name, owner in owners.items()}
    nodes = with_quantizers(nodes, quantizers)
    classes = tuple(map(str, range(plan["classifier"].out_channels)))
    channels = plan["stem"].in_channels
    return Graph(tuple(nodes), arch, (0.5,) * channels, (0.25,) * channels, classes, arch["resolution"])


def random_weights(spec, op, grid, generator):
    """Those of a layer; those of 1 bit are odd codes."""
    odd, bits, kernel = spec.weight_bits == 1, spec.weight_bits, spec.kernel_size
    shape = (spec.out_channels, spec.group_channels, kernel, kernel)
    codes = torch.randint(0, 2**bits, shape, generator=generator)
    codes = (2 * codes - 2**bits + 1 if odd else codes - 2 ** (bits - 1)).to(torch.int8)
    bias = torch.randint(-1000, 1000, shape[:1], generator=generator, dtype=torch.int32)
    scale = torch.rand(shape[0], generator=generator) * 0.01 + 0.01
    if op == "linear":
        return Weights(codes.flatten(1), bias, scale, bits, odd=odd)
    return Weights(codes, bias, scale, bits, 0, spec.stride, spec.groups, odd)
