"""A `Graph` as one ONNX file that runs on integer kernels.

Built node by node with `onnx.helper`: `torch.onnx.export` writes fake quantization as float arithmetic with float
weights. Weights below 8 bits are bit planes that integer Div and Mod unpack to INT8 when a runtime loads the file
(constant folding), because runtimes run INT4 and INT2 tensors in float or not at all. Activations of b bits are UINT8
with an integer Clip. Opset 21, IR 10: onnxruntime 1.24 and later read it, OpenVINO too.

On x86 CPUs without VNNI, kernels add two u8 x s8 products in 16 bits. Codes below 8 bits are kept small enough for that
(`lower`); for layers with 8-bit weights and inputs (stem, classifier, squeeze-and-excite) set the session option
`session.x64quantprecision` to "1" there.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from oncequant.arch import FLOAT_BITS
from oncequant.export.graph import Graph, Node, Weights, grid_of, scale_of, weights_of
from oncequant.export.packing import pack
from oncequant.export.simulate import table_of
from oncequant.files import write_atomically
from oncequant.grids import TABLED
from oncequant.plan import POOL
from oncequant.version import package_version

OPSET, IR_VERSION = 21, 10
SAME_IN_ONNX = {
    "relu": "Relu",
    "hardswish": "HardSwish",
    "mean": "GlobalAveragePool",
    "multiply": "Mul",
    "add": "Add",
    "sigmoid": "Sigmoid",
}


def write_onnx(graph: Graph, path: Path) -> None:
    """Write `graph` atomically. Input `pixels` (N, C, R, R) float32 0..255, output `logits` (N, classes).

    The caller resizes images to the resolution R; normalisation is part of the network. Raises FileError if the file
    cannot be written.
    """
    model = onnx_model(graph)
    onnx.checker.check_model(model, full_check=True)
    write_atomically(Path(path), model.SerializeToString())


def onnx_model(graph: Graph) -> onnx.ModelProto:
    """The model in memory; see `write_onnx`."""
    return assembled(Builder(graph), "N", {"": OPSET})


def assembled(build: "Builder", batch: int | str, opsets: dict[str, int]) -> onnx.ModelProto:
    """What a builder makes of its graph's nodes, as a model of operators of these domains.

    Architecture, classes and preprocessing are in `metadata_props`.
    """
    graph = build.graph
    for node in graph.nodes[1:]:
        build.node(node)
    shape: list[str | int | None] = [batch, graph.channels, graph.resolution, graph.resolution]
    model = helper.make_model(
        helper.make_graph(
            build.nodes,
            "oncequant",
            [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, len(graph.classes)])],
            list(build.initializers.values()),
        ),
        opset_imports=[helper.make_opsetid(*each) for each in opsets.items()],
        ir_version=IR_VERSION,
        producer_name="oncequant",
        producer_version=package_version(),
    )
    bits = sorted({node.weights.bits for node in graph.nodes if node.weights})
    helper.set_model_props(
        model,
        {
            "oncequant.version": package_version(),
            "oncequant.arch": graph.arch.to_json(),
            "oncequant.classes": json.dumps(graph.classes),
            "oncequant.mean": json.dumps(graph.mean),
            "oncequant.std": json.dumps(graph.std),
            "oncequant.image_size": json.dumps(graph.image_size),
            "oncequant.weight_bits": json.dumps(bits),
        },
    )
    return model


def codes_name(node: Node) -> str:
    """Name in the ONNX file of the UINT8 codes of a `quantize` node."""
    grid = grid_of(node)
    return f"{node.name}.u{grid.bits if grid.bits < 8 or grid.top == 255 else 'top'}"


class Builder:
    """Collects ONNX nodes and initializers; a graph node's value has the graph node's name."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.by_name, self.readers = graph.by_name(), graph.consumers()
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def add(self, op: str, inputs: list[str], output: str, **attributes) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def short(self) -> str:
        """A name for a value that only the next node reads; names are a good part of a small network's file."""
        return f"t{len(self.nodes)}"

    def constant(self, name: str, value: npt.ArrayLike) -> str:
        """An initializer; equal names share it."""
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def node(self, node: Node) -> None:
        name, inputs = node.name, list(node.inputs)
        match node.op:
            case "normalise":
                mean, std = (np.array(v, np.float32).reshape(-1, 1, 1) for v in (self.graph.mean, self.graph.std))
                gain = self.constant("gain", np.float32(1) / (np.float32(255) * std))
                self.add("Mul", [inputs[0], gain], "pixels.scaled")
                self.add("Sub", ["pixels.scaled", self.constant("offset", mean / std)], name)
            case "quantize":
                self.quantize(node)
            case "conv" | "linear":
                self.layer(node)
            case "hardsigmoid":
                self.add("HardSigmoid", inputs, name, alpha=1 / 6, beta=0.5)
            case "relu6":
                limits = [self.constant(f"float{bound}", np.float32(bound)) for bound in (0, 6)]
                self.add("Clip", [*inputs, *limits], name)
            case op if op in TABLED and self.is_looked_up(node):
                pass  # by the quantizers that read it
            case "silu":
                self.add("Mul", [*inputs, self.add("Sigmoid", inputs, self.short())], name)
            case "maxpool":
                kernel, stride, before, after = node.window or POOL
                pads = [before] * 2 + [after] * 2
                self.add("MaxPool", inputs, name, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=pads)
            case "subsample":
                self.add("MaxPool", inputs, name, kernel_shape=[1, 1], strides=[2, 2])
            case "pad_channels":
                before, after = node.channels or (0, 0)
                self.pad(node, [0, before, 0, 0, 0, after, 0, 0])
            case "pad":
                left, right, top, bottom = node.window or (0, 0, 0, 0)
                self.pad(node, [0, 0, top, left, 0, 0, bottom, right])
            case "slice":
                first, last = node.channels or (0, 0)
                ends = [self.constant(f"i{i}", np.array([i], np.int64)) for i in (first, last, 1)]
                self.add("Slice", [*inputs, *ends], name)
            case "shuffle":
                groups, each = node.channels or (1, 1)
                order = np.arange(groups * each, dtype=np.int64).reshape(groups, each).T.reshape(-1)
                self.add("Gather", [*inputs, self.constant(f"shuffle{groups}x{each}", order)], name, axis=1)
            case "concat":
                self.add("Concat", inputs, name, axis=1)
            case "flatten":
                self.add("Flatten", inputs, "logits" if node is self.graph.nodes[-1] else name)
            case _:
                self.add(SAME_IN_ONNX[node.op], inputs, name)

    def quantize(self, node: Node) -> None:
        grid, name = grid_of(node), node.name
        step = self.constant(f"{name}.s", np.float32(grid.step))
        zero = self.constant(f"zero{grid.zero_point}", np.uint8(grid.zero_point))
        if self.is_looked_up(source := self.by_name[node.inputs[0]]):
            codes = self.looked_up(node, source)
        else:
            codes = self.add("QuantizeLinear", [node.inputs[0], step, zero], f"{name}.u8")
            if grid.top < 255:
                largest = self.constant(f"max{grid.top}", np.uint8(grid.top))
                codes = self.add("Clip", [codes, "", largest], codes_name(node))
        self.add("DequantizeLinear", [codes, step, zero], name)

    def is_looked_up(self, node: Node) -> bool:
        """Whether quantizers alone read this node, and look its results up by the codes that it reads."""
        on_grid = node.op in TABLED and self.by_name[node.inputs[0]].op == "quantize"
        return on_grid and all(reader.op == "quantize" for reader in self.readers[node.name])

    def looked_up(self, node: Node, source: Node) -> str:
        """Name of the codes of a quantizer behind `source`."""
        before = self.by_name[source.inputs[0]]
        table = grid_of(node).quantize(table_of(source.op, grid_of(before)))
        codes = self.add("Cast", [codes_name(before)], self.short(), to=TensorProto.INT32)
        entries = self.constant(f"{node.name}.table", table.numpy().astype(np.uint8))
        return self.add("Gather", [entries, codes], codes_name(node))

    def pad(self, node: Node, pads: list[int]) -> None:
        name = "pads" + ".".join(map(str, pads))
        self.add("Pad", [*node.inputs, self.constant(name, np.array(pads, np.int64))], node.name)

    def layer(self, node: Node) -> None:
        weights, name = weights_of(node), node.name
        operands = [node.inputs[0], self.weight(node), self.constant(f"{name}.b", weights.bias.numpy())]
        if not weights.is_integer and self.by_name[node.inputs[0]].op == "quantize":
            # an identity: between two quantizers ORT would quantize float weights and biases on its own
            operands[0] = self.add("LeakyRelu", operands[:1], self.short(), alpha=1.0)
        if weights.is_integer:
            # computed in the file as `simulate.bias_scale` does: runtimes insist on exactly this product
            unit = self.add("Mul", [f"{node.inputs[0]}.s", f"{name}.ws"], self.short())
            operands[2] = self.add("DequantizeLinear", [operands[2], unit], self.short(), axis=0)
        if node.op == "linear":
            self.add("Gemm", operands, "logits" if node is self.graph.nodes[-1] else name, transB=1)
        else:
            self.conv(node, operands)

    def conv(self, node: Node, operands: list[str], **attributes) -> None:
        weights = weights_of(node)
        k = weights.weight.shape[-1]
        shape = dict(pads=[weights.pad] * 4, strides=[weights.stride] * 2, group=weights.groups, kernel_shape=[k, k])
        if weights.dilation > 1:
            attributes["dilations"] = [weights.dilation] * 2
        self.add("Conv", operands, node.name, **shape, **attributes)

    def weight(self, node: Node) -> str:
        """Name of the float weight."""
        name, weights = node.name, weights_of(node)
        codes = weights.weight.numpy()
        if weights.bits == FLOAT_BITS:
            return self.constant(f"{name}.w", codes)
        if weights.bits == 8:
            source = self.constant(f"{name}.w", codes)
        else:
            source = self.unpacked(name, weights)
        operands = [source, self.constant(f"{name}.ws", scale_of(weights).numpy())]
        # ORT's QGemm insists on a zero point; weights of float layers get a wrong one on x86 CPUs without VNNI
        if node.op == "linear" or not weights.is_integer:
            operands.append(self.constant(f"{name}.wz", np.zeros(len(codes), np.int8)))
        return self.add("DequantizeLinear", operands, self.short(), axis=0)

    def unpacked(self, name: str, weights: Weights) -> str:
        """Nodes that turn bit planes into INT8 codes times 2^shift.

        They work on int32 because OpenVINO computes uint8 BitShift and BitwiseAnd wrongly.
        """
        codes, bits, shift = weights.unsigned_codes().numpy(), weights.bits, weights.shift + weights.odd
        # the code is unsigned - 2^(bits - 1), or if odd 2 unsigned - (2^bits - 1); times 2^shift
        half = (2**bits - 1) << weights.shift if weights.odd else 2 ** (bits - 1) << shift
        planes = pack(codes, bits)[:, :, None]  # (bits, ceil(n / 8), 1)
        place = np.array([[[1 << plane << shift]] for plane in range(bits)], np.int32)
        steps: list[tuple[str, list[str], dict[str, Any]]] = [
            ("Cast", [self.constant(f"{name}.w", planes)], dict(to=TensorProto.INT32)),
            ("Div", [self.constant("powers", (1 << np.arange(8)).astype(np.int32))], {}),  # (bits, ceil(n / 8), 8)
            ("Mod", [self.constant("two", np.int32(2))], {}),
            ("Mul", [self.constant(f"place{bits}.{shift}", place)], {}),
            ("ReduceSum", [self.constant("first", np.array([0], np.int64))], dict(keepdims=0)),
            ("Sub", [self.constant(f"half{half}", np.int32(half))], {}),
        ]
        if codes.size % 8:
            end = self.constant(f"{name}.n", np.array([codes.size], np.int64))
            steps += [
                ("Reshape", [self.constant("all", np.array([-1], np.int64))], {}),
                ("Slice", [self.constant("start", np.array([0], np.int64)), end], {}),
            ]
        steps += [
            ("Reshape", [self.constant("x".join(map(str, codes.shape)), np.array(codes.shape, np.int64))], {}),
            ("Cast", [], dict(to=TensorProto.INT8)),
        ]
        value: list[str] = []
        for op, operands, attributes in steps:
            value = [self.add(op, [*value, *operands], self.short(), **attributes)]
        return value[0]
