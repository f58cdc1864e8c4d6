"""A trained static subnet to a `Graph`.

Three steps: write the training graph down with batch norm folded; find the tensors that integer kernels need on an
8-bit grid and that training left in float (before h-swish, on both sides of a residual addition, around
squeeze-and-excite); calibrate those grids on images. The last step is ordinary post-training quantization of
intermediate tensors; its cost in accuracy is what `verify` reports as plain against deployed.
"""

import math
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from oncequant.arch import FLOAT_BITS, Arch, LayerSpec
from oncequant.data.images import resize
from oncequant.elastic import ElasticConv
from oncequant.export.graph import HAVE_CHANNELS, Graph, Grid, Node, Weights
from oncequant.export.simulate import float_parameters, float_values
from oncequant.grids import Blank, blanks, grid_owners, needs_grid, with_quantizers
from oncequant.measure import Batches
from oncequant.network import Network, elastic_layers
from oncequant.plan import POOL
from oncequant.quantizers.functional import integer_range


def lower(
    subnet: Network,
    arch: Arch,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    classes: tuple[str, ...],
    image_size: int,
    calibration: Batches,
    as_float: bool = False,
) -> Graph:
    """The deployed form of a static subnet with calibrated batch norm.

    Args:
        subnet: as `extract_subnet` and `calibrate` leave it; on any device, the graph is on CPU.
        arch: complete, all choices of the subnet's space.
        mean, std: per channel, of pixels in [0, 1]: how the images of `calibration` were normalised.
        classes: class names in label order.
        image_size: side S of the images before they are resized to the architecture's resolution.
        calibration: (normalised images (N, C, S, S), labels); labels are not read. A few hundred images suffice.
        as_float: ignore all quantizers: the float network of the same architecture.

    Raises ValueError for bit-widths outside 1..8 and 32 of weights and 2..8 and 32 of inputs, step sizes that were
    never initialised, and no images.
    """
    plain = _training_graph(subnet, arch, (mean, std, classes, image_size), as_float)
    kinds = [layer.act_quantizer for _, layer in elastic_layers(subnet) if layer.act_quantizer is not None]
    powers_of_two = not as_float and bool(kinds) and all(kind.is_power_of_two for kind in kinds)
    return _with_grids(plain, _grids(plain, needs_grid(plain.nodes), calibration, powers_of_two))


def network_input(graph: Graph, images: Tensor) -> Tensor:  # (N, C, S, S) -> (N, C, R, R)
    """Raw pixels 0..255 at the graph's resolution, of normalised images: what every exported network is fed."""
    return graph.pixels(resize(images, graph.resolution)).contiguous()


# -- the training graph, batch norm folded


def _training_graph(subnet: Network, arch: Arch, preprocessing: tuple, as_float: bool) -> Graph:
    plan, layers = subnet.space.plan(arch), dict(elastic_layers(subnet))
    specs = {
        name: replace(spec, weight_bits=FLOAT_BITS, act_bits=FLOAT_BITS) if as_float else spec
        for name, spec in plan.layers.items()
    }
    grids = {
        node.name: _input_grid(node.name, layers[node.name], specs[node.name])
        for node in plan.nodes
        if node.op == "layer"
    }
    nodes = []
    for blank in blanks(plan.nodes, lambda layer: grids[layer] is None):
        name, op, weights, window = blank.name, blank.op, None, blank.window
        if op in ("conv", "linear"):
            weights = _folded(name, layers[name], specs[name], grids[name])
            if op == "linear":
                weights = replace(weights, weight=weights.weight.flatten(1))
        elif op == "avgpool":
            op, weights, window = "conv", _averaging(blank, not any(grids.values())), None
        channels = blank.channels if op in HAVE_CHANNELS else None
        nodes.append(Node(name, op, blank.inputs, grids.get(blank.grid), weights, channels, window))
    mean, std, classes, image_size = preprocessing
    return Graph(tuple(nodes), arch, tuple(mean), tuple(std), tuple(classes), image_size)


def _input_grid(name: str, layer: ElasticConv, spec: LayerSpec) -> Grid | None:
    """The grid of a layer's input with codes from 0, as in evaluation."""
    if spec.act_bits == FLOAT_BITS:
        return None
    _check_bits(name, "input", spec.act_bits)
    assert layer.act_quantizer is not None
    grid = layer.act_quantizer.grid(torch.zeros(1, 1), layer.ask(spec)._replace(of_batch=False))
    step = _checked_steps(name, "input", grid.step_size).item()
    offset = 0.0 if grid.offset is None else grid.offset.item()
    if offset != round(offset):
        raise ValueError(f"{name}: the zero point of its input is {offset}, not a whole number: fold offsets first")
    return Grid(step, round(offset) - integer_range(spec.act_bits, spec.signed_input)[0], spec.act_bits)


def _folded(name: str, layer: ElasticConv, spec: LayerSpec, grid: Grid | None) -> Weights:
    """Weights and bias of a layer in evaluation mode; integer if the input is on a grid."""
    # torch picks its kernel by strides; `contiguous` would keep channels_last strides where a dimension is 1
    weight = layer.sliced_weight(spec).detach().cpu().clone(memory_format=torch.contiguous_format)
    gain, bias = torch.ones(len(weight), dtype=torch.float64), torch.zeros(len(weight), dtype=torch.float64)
    if layer.bias is not None:
        bias = layer.bias[: len(weight)].detach().cpu().double()
    if layer.norm is not None:
        norm = [tensor[: len(weight)].detach().cpu().double() for tensor in layer.norm.tensors()]
        gamma, beta, running_mean, running_var = norm
        gain = gamma / (running_var + layer.norm.eps).sqrt()
        bias = beta + (bias - running_mean) * gain
    shape = dict(stride=spec.stride, groups=spec.groups, padding=spec.padding, dilation=spec.dilation)
    if spec.weight_bits == FLOAT_BITS:
        return Weights((weight * gain.view(-1, 1, 1, 1)).float(), bias.float(), None, **shape)
    _check_bits(name, "weight", spec.weight_bits)
    assert layer.weight_quantizer is not None
    codes, steps, odd = deepcopy(layer.weight_quantizer).cpu().levels(weight, layer.ask_of_weight(spec))
    codes, step = codes.to(torch.int8), _checked_steps(name, "weight", steps)
    shape["odd"] = odd
    if grid is None:
        return Weights(codes, bias.float(), (step * gain).float(), spec.weight_bits, **shape)
    # One less with 8-bit inputs, where two products of full-range codes overflow the int16 of CPUs without VNNI; 8-bit
    # weights and odd ones of 7 bits have none to spare (docs/export.md).
    shift = max(0, 8 - spec.weight_bits - odd - (grid.bits == 8))
    scale = (step * gain / 2**shift).float()
    weak = bias.abs() > 2**30 * grid.step * scale.double().abs()  # the bias swamps the weights and overflows
    weak |= scale == 0
    if weak.any():
        if not odd:
            codes[weak] = 0
        unit = 2**29 if odd else 2**20  # odd codes, which have no zero, count for next to nothing
        scale[weak] = (bias.abs().clamp_min(1e-6) / grid.step / unit).float()[weak]
    unit = torch.tensor(grid.step) * scale  # float32, as runtimes multiply it
    reach = codes.abs().sum((1, 2, 3), dtype=torch.int64) * 2 ** (shift + grid.bits)
    if reach.max() >= 2**30:
        raise ValueError(f"{name}: {codes[0].numel()} inputs per output overflow a 32-bit accumulator")
    return Weights(codes, (bias / unit.double()).round().int(), scale, spec.weight_bits, shift, **shape)


def _averaging(pool: Blank, as_float: bool) -> Weights:
    """An average pooling as a depthwise convolution, for which runtimes have exact kernels; its weights are ones."""
    (_, channels), (kernel, stride, before, after) = pool.channels or (0, 0), pool.window or POOL
    if before != after:
        raise ValueError(f"an average pooling that adds {before} and {after} pixels cannot be exported")
    shape: dict[str, Any] = dict(stride=stride, groups=channels, padding=before)
    scale = torch.full((channels,), 1 / kernel**2)
    ones, nothing = torch.ones(channels, 1, kernel, kernel), torch.zeros(channels)
    if as_float:
        return Weights(ones * scale[0], nothing, None, **shape)
    return Weights(ones.to(torch.int8), nothing.int(), scale, 8, **shape)


def _check_bits(name: str, what: str, bits: int) -> None:
    least = 1 if what == "weight" else 2
    if not least <= bits <= 8:
        raise ValueError(f"{name}: {what} bit-width {bits} cannot be exported; {least} to 8 and 32 can")


def _checked_steps(name: str, what: str, step_size: Tensor) -> Tensor:
    """Step sizes, () or (C_out,), as positive float64."""
    steps = step_size.detach().abs().cpu().double()
    if not ((steps > 0) & (steps < float("inf"))).all():
        raise ValueError(
            f"{name}: the step size of its {what} is {steps.tolist()}; was the quantizer ever initialised?"
        )
    return steps


# -- 8-bit grids between the layers


def _grids(graph: Graph, names: set[str], calibration: Batches, powers_of_two: bool) -> dict[str, Grid]:
    """The 8-bit grid of each named node over its range on the calibration images.

    Grids of least squared error gave the same accuracy on digits (2, 3, 4, 8 bits) and CIFAR-10 (4 bits).
    """
    ranges: dict[str, tuple[float, float]] = {}
    parameters = float_parameters(graph)
    with torch.no_grad():
        for images, _ in calibration if names else ():
            for node, value in float_values(graph, network_input(graph, images.cpu()), parameters):
                if node.name in names:
                    low, high = ranges.get(node.name, (0.0, 0.0))  # zero must be a code
                    ranges[node.name] = min(low, value.min().item()), max(high, value.max().item())
    if names and not ranges:
        raise ValueError("there are no calibration images")
    readers, nodes = graph.consumers(), graph.by_name()
    for name, (low, high) in ranges.items():
        if nodes[name].op in ("hardsigmoid", "sigmoid"):
            low, high = 0.0, 1.0
        if all(reader.op in ("hardswish", "hardsigmoid") for reader in readers[name]):
            low = max(low, -3.0)  # both are constant below -3
        if all(reader.op == "hardsigmoid" for reader in readers[name]):
            high = min(high, 3.0)  # and this one above 3
        ranges[name] = low, high
    over = power_of_two_over if powers_of_two else grid_over
    grids = {name: over(low, high) for name, (low, high) in ranges.items()}
    return {name: grids[owner] for name, owner in grid_owners(graph.nodes, grids.keys()).items()}


def grid_over(low: float, high: float) -> Grid:
    """The 8-bit grid over [low, high], low <= 0 <= high; zero is exactly a code."""
    # A little wider: the range belongs to some channel's integers, and round ratios to their unit make ties common.
    spread = high - low if high - low > 1e-6 else 1.0  # of a dead map, for which kernels refuse the tiniest steps
    step = torch.tensor(1.001 * spread / 255).item()  # as float32
    return Grid(step, min(255, max(0, round(-low / step))), 8)


def power_of_two_over(low: float, high: float) -> Grid:
    """The 8-bit grid over [low, high], low <= 0 <= high, whose step is a power of two, and whose zero is its first or
    its middle code."""
    least, zero = (high / 255, 0) if low == 0 else (max(high / 127, -low / 128), 128)
    return Grid(2.0 ** math.ceil(math.log2(max(1.001 * least, 1e-8))), zero, 8)


def _with_grids(graph: Graph, grids: dict[str, Grid]) -> Graph:
    """Insert a quantizer behind each named node."""
    quantizers = {name: Node(f"{name}.q", "quantize", (name,), grid=grid) for name, grid in grids.items()}
    return replace(graph, nodes=tuple(with_quantizers(graph.nodes, quantizers)))
