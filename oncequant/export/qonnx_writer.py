"""A `Graph` as QONNX: ONNX in float, with `Quant` nodes that put tensors on their grids. For tools that build FPGAs.

https://github.com/fastmachinelearning/qonnx. The format has floats only, so a weight takes four bytes in the file at
any bit-width. Nodes that unpack codes would be folded by the tools' first step, but it takes minutes for that: it
infers all shapes again for each node.
"""

from pathlib import Path

import numpy as np
import onnx

from oncequant.arch import FLOAT_BITS
from oncequant.export.graph import Graph, Node, Weights, grid_of, scale_of, weights_of
from oncequant.export.onnx_writer import Builder, assembled
from oncequant.export.simulate import float_parameters
from oncequant.files import write_atomically

OPSET = 14  # the first with HardSwish; tools prefer old ones
DOMAIN = "qonnx.custom_op.general"


def write_qonnx(graph: Graph, path: Path) -> None:
    """Write `graph` atomically. Input `pixels` (1, C, R, R) float32 0..255, output `logits` (1, classes).

    Raises FileError if the file cannot be written.
    """
    model = assembled(_QuantBuilder(graph), 1, {"": OPSET, DOMAIN: 1})
    onnx.checker.check_model(model)
    write_atomically(Path(path), model.SerializeToString())


class _QuantBuilder(Builder):
    """The layers and quantizers in QONNX's form; all other nodes are the same."""

    def __init__(self, graph: Graph):
        super().__init__(graph)
        self.biases = {name: bias for name, (_, bias) in float_parameters(graph).items()}

    def quantize(self, node: Node) -> None:
        grid = grid_of(node)
        step, source = self.constant(f"{node.name}.s", np.float32(grid.step)), node.inputs[0]
        if grid.most is not None:  # which `Quant` does not have
            largest = self.constant(f"{node.name}.max", np.float32((grid.most - grid.zero_point) * grid.step))
            source = self.add("Clip", [source, "", largest], self.short())
        if grid.zero_point == 2 ** (grid.bits - 1):  # the same grid without a zero point, which few tools take
            self.quant(source, step, 0, grid.bits, True, node.name)
        else:
            self.quant(source, step, grid.zero_point, grid.bits, False, node.name)

    def is_looked_up(self, node: Node) -> bool:
        """Values are in float here, not looked up."""
        return False

    def quant(self, source: str, step: str, zero: float, bits: int, signed: bool, output: str) -> str:
        zero_point = self.constant(f"z{zero}", np.float32(zero))
        inputs = [source, step, zero_point, self.constant(f"bits{bits}", np.float32(bits))]
        return self.add("Quant", inputs, output, domain=DOMAIN, signed=int(signed), narrow=0, rounding_mode="ROUND")

    def layer(self, node: Node) -> None:
        weight = self.weight(node)
        bias = self.constant(f"{node.name}.b", self.biases[node.name].numpy())
        if node.op == "conv":
            self.conv(node, [node.inputs[0], weight, bias], dilations=[weights_of(node).dilation] * 2)  # hls4ml insists
        else:
            output = "logits" if node is self.graph.nodes[-1] else node.name
            self.add("Add", [self.add("MatMul", [node.inputs[0], weight], self.short()), bias], output)

    def weight(self, node: Node) -> str:
        weights, linear = weights_of(node), node.op == "linear"
        values = weights.float_weight().numpy()
        floats = self.constant(f"{node.name}.w", np.ascontiguousarray(values.T) if linear else values)  # MatMul's order
        if weights.bits == FLOAT_BITS:
            return floats
        steps = _steps(weights).reshape((1, -1) if linear else (-1, 1, 1, 1))
        if not weights.odd:
            return self.quant(floats, self.constant(f"{node.name}.ws", steps), 0, weights.bits, True, self.short())
        if weights.bits == 1:
            scale = self.constant(f"{node.name}.ws", steps)
            return self.add("BipolarQuant", [floats, scale], self.short(), domain=DOMAIN)
        # the odd numbers are every second one, and zero is in the middle between two
        twice, zero = self.constant(f"{node.name}.ws", 2 * steps), (2**weights.bits - 1) / 2
        return self.quant(floats, twice, zero, weights.bits, False, self.short())


def _steps(weights: Weights) -> np.ndarray:  # (C_out,) float32
    """Values of one unit of the codes; of channels that are empty the smallest there is, as `Quant` divides by it."""
    steps = scale_of(weights).numpy() * np.float32(2**weights.shift)
    return np.where(steps == 0, np.finfo(np.float32).tiny, steps)
