"""Interpreters of a `Graph`: what runtimes compute, in torch.

`run_float` is the graph as written (quantize, dequantize, float convolution): ONNX Runtime without optimisation.
`run_integer` is what ONNX Runtime's fused kernels compute (QLinearConv, QLinearAdd, QLinearMul,
QLinearGlobalAveragePool, QGemm): integer accumulators and one rounding per operation, bit for bit where no float
convolution is involved. The formulas of the fused kernels were found by comparing all pairs of codes on x86-64 (FMA).
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from oncequant.export.graph import Graph, Grid, Node, Weights, grid_of, scale_of, weights_of
from oncequant.grids import ELEMENTWISE, TABLED
from oncequant.operations import moved

Parameters = Mapping[str, tuple[Tensor, Tensor]]  # node name -> dequantized weight (C_out, C_in / groups, K, K), bias
AnyValue = TypeVar("AnyValue")


@dataclass(frozen=True)
class _Codes:
    """A tensor on a grid; codes are whole numbers in float32."""

    codes: Tensor
    grid: Grid


@dataclass(frozen=True)
class _Fused:
    """An operation on codes that waits for the quantizer of its output, with which kernels fuse it."""

    node: Node
    inputs: list[_Codes]


_Value = Tensor | _Codes | _Fused


def run_float(graph: Graph, pixels: Tensor, parameters: Parameters | None = None) -> Tensor:
    """Logits (N, classes) of raw pixels (N, C, R, R), every operation in float32.

    `parameters` saves dequantizing the weights in every call (`float_parameters(graph)`).
    """
    for _, value in float_values(graph, pixels, parameters or float_parameters(graph)):
        logits = value
    return logits


def float_values(graph: Graph, pixels: Tensor, parameters: Parameters) -> Iterator[tuple[Node, Tensor]]:
    """Every node and its float value, in order."""
    yield from _walk(graph, lambda node, inputs: _float_value(graph, node, inputs or [pixels], parameters))


def float_parameters(graph: Graph) -> dict[str, tuple[Tensor, Tensor]]:
    """Dequantized weight and bias of every convolution."""
    return {n.name: (n.weights.float_weight(), _float_bias(graph, n, n.weights)) for n in graph.nodes if n.weights}


def run_integer(graph: Graph, pixels: Tensor, follow: Callable[[Node, Tensor], Tensor] | None = None) -> Tensor:
    """Logits (N, classes) as integer kernels compute them, from raw pixels (N, C, R, R).

    `follow(node, codes)` sees the codes of each quantizer, and returns those to go on with: another runtime's, to
    compare each of its steps by itself.
    """
    weights = {n.name: n.weights for n in graph.nodes if n.weights and not n.weights.is_integer}
    parameters = {name: (layer.float_weight(), layer.bias) for name, layer in weights.items()}
    readers = graph.consumers()

    def value(node: Node, inputs: list[_Value]) -> _Value:
        if node.op == "quantize":
            codes = _requantize(inputs[0], grid_of(node))
            return _Codes(follow(node, codes) if follow else codes, grid_of(node))
        fusible = node.op in ("add", "multiply", "mean") or (node.weights and node.weights.is_integer)
        fused = [reader.op for reader in readers[node.name]] in (["quantize"], [])  # nobody reads the classifier
        on_grids = [v for v in inputs if isinstance(v, _Codes)]
        if fusible and fused and len(on_grids) == len(inputs):
            return _Fused(node, on_grids)
        if node.op in TABLED and isinstance(x := inputs[0], _Codes):
            return table_of(node.op, x.grid)[x.codes.long()]
        return _float_value(graph, node, [_as_float(v) for v in inputs] or [pixels], parameters)

    for _, result in _walk(graph, value):
        logits = result
    return _as_float(logits)


# -- float


def _walk(graph: Graph, evaluate: Callable[[Node, list[AnyValue]], AnyValue]) -> Iterator[tuple[Node, AnyValue]]:
    """(node, evaluate(node, values of its inputs)) in order; a value is dropped after its last reader."""
    readers = Counter(name for node in graph.nodes for name in node.inputs)
    values: dict[str, AnyValue] = {}
    for node in graph.nodes:
        values[node.name] = result = evaluate(node, [values[name] for name in node.inputs])
        readers.subtract(node.inputs)
        for name in {*node.inputs, node.name}:
            if readers[name] <= 0:
                values.pop(name, None)
        yield node, result


def _float_value(graph: Graph, node: Node, inputs: list[Tensor], parameters: Parameters) -> Tensor:
    x = inputs[0]
    match node.op:
        case "pixels":
            return x.contiguous(memory_format=torch.channels_last)  # for convolutions the faster order
        case "normalise":
            return graph.normalise(x)
        case "quantize":
            return grid_of(node).dequantize(grid_of(node).quantize(x))
        case "conv":
            weights, (weight, bias) = weights_of(node), parameters[node.name]
            return F.conv2d(x, weight, bias, weights.stride, weights.pad, weights.dilation, weights.groups)
        case "linear":
            return F.linear(x, *parameters[node.name])
        case "flatten":
            return x.flatten(1)
        case op if op in ELEMENTWISE:
            return elementwise(op, x)
    return moved(node.op, inputs, node.channels, node.window)


def elementwise(op: str, x: Tensor) -> Tensor:
    """One of ELEMENTWISE of every number."""
    match op:
        case "relu":
            return F.relu(x)
        case "relu6":
            return x.clamp(0, 6)
        case "hardsigmoid":
            return _hard_sigmoid(x)
        case "hardswish":
            return _hard_sigmoid(x).mul_(x)
        case "sigmoid":
            return torch.sigmoid(x)
        case "silu":
            return x * torch.sigmoid(x)
    raise ValueError(f"{op!r} is no operation on single numbers")


def table_of(op: str, grid: Grid) -> Tensor:  # (256,) float32
    """`elementwise` of all codes of a grid; behind its last code that of the last one.

    Runtimes look up what they would compute otherwise: torch itself rounds one number in a row otherwise than another.
    """
    return elementwise(op, grid.dequantize(torch.arange(256.0).clamp(max=grid.top)))


def _hard_sigmoid(x: Tensor) -> Tensor:
    """ONNX's form, clip(x / 6 + 1/2, 0, 1); torch's relu6(x + 3) / 6 rounds differently."""
    return (x * x.new_tensor(1 / 6)).add_(0.5).clamp_(0, 1)


def _float_bias(graph: Graph, node: Node, weights: Weights) -> Tensor:
    source = graph.by_name()[node.inputs[0]]
    if not weights.is_integer:
        return weights.bias
    if source.grid is None:  # an average pooling whose input has no grid yet; its bias is zero
        return weights.bias.float()
    return weights.bias.float() * bias_scale(weights, source.grid)


def bias_scale(weights: Weights, grid: Grid) -> Tensor:  # (C_out,) float32
    """Value of one unit of the integer accumulator and bias, for an input on `grid`; `weights` are integers."""
    scale = scale_of(weights)
    return scale.new_tensor(grid.step) * scale


# -- integer


def _as_float(value: _Value) -> Tensor:
    """What a float operation reads."""
    if isinstance(value, _Codes):
        return value.grid.dequantize(value.codes)
    if isinstance(value, _Fused):  # only the classifier has a float output (QGemm)
        weights, x = weights_of(value.node), value.inputs[0]
        return _accumulate(weights, x) * bias_scale(weights, x.grid)
    return value


def _requantize(value: _Value, grid: Grid) -> Tensor:
    """Codes on `grid` of an operation's output."""
    if not isinstance(value, _Fused):
        return grid.quantize(_as_float(value))
    a = value.inputs[0]
    step = a.codes.new_tensor(grid.step)
    step_a, zero_a, zero = a.codes.new_tensor(a.grid.step), a.grid.zero_point, grid.zero_point
    match value.node.op:
        case "conv":
            weights = weights_of(value.node)
            ratio = bias_scale(weights, a.grid) / step
            codes = _accumulate(weights, a).mul_(ratio.view(1, -1, 1, 1)).round_().add_(zero)
        case "mean":
            size = a.codes.shape[-1] * a.codes.shape[-2]
            total = (a.codes - zero_a).double().sum((2, 3), keepdim=True).float()
            codes = (total * (step_a / (step * size))).round() + zero
        case "multiply":
            b = value.inputs[1]
            ratio = step_a * b.codes.new_tensor(b.grid.step) / step
            codes = ((a.codes - zero_a) * (b.codes - b.grid.zero_point) * ratio + zero).round()
        case "add":
            b = value.inputs[1]
            ratio_a, ratio_b, offset = (term.to(a.codes) for term in addition(a.grid, b.grid, grid))
            codes = _fma(ratio_a, a.codes, _fma(ratio_b, b.codes, offset)).round()
    return codes.clamp_(0, grid.top)


def addition(a: Grid, b: Grid, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    """(ratio_a, ratio_b, offset): in steps of `grid`, codes on `a` and `b` add up to ratio_a a + ratio_b b + offset."""
    step, step_a, step_b, zero_a = map(torch.tensor, (grid.step, a.step, b.step, float(a.zero_point)))
    ratio_a, ratio_b = step_a / step, step_b / step
    return ratio_a, ratio_b, grid.zero_point - _fma(ratio_a, zero_a, ratio_b * b.zero_point)


def _accumulate(weights: Weights, x: _Codes) -> Tensor:
    """The int32 accumulator with bias, rounded to float32 as kernels convert it."""
    weight, bias = weights.weight.float(), weights.bias
    centred = x.codes - x.grid.zero_point
    reach = max(x.grid.zero_point, x.grid.top - x.grid.zero_point)
    if weight.abs().flatten(1).sum(1).max().item() * reach >= 2**24:  # partial sums would not be exact in float32
        weight, centred = weight.double(), centred.double()
    if weight.dim() == 2:
        total = F.linear(centred, weight)
    else:
        total = F.conv2d(centred, weight, None, weights.stride, weights.pad, weights.dilation, weights.groups)
        bias = bias.view(1, -1, 1, 1)
    return total.int().mul_(2**weights.shift).add_(bias).float()


def _fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a * b + c with one rounding: in double the product is exact, and so is the sum of numbers this close."""
    return (a.double() * b.double() + c.double()).float()
