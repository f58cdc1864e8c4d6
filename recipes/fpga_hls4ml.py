"""An exported residual network through hls4ml, compiled by g++, against the integer simulator.

    pip install "oncequant[fpga]" hls4ml==1.3.0
    python recipes/fpga_hls4ml.py runs/digits/exports/2bit-S out

The folder needs the format `package`. hls4ml wants inputs' steps that are powers of two and no zero points, as
`oncequant run --power-of-two-steps` makes them; others are rounded here, in the graph, which costs accuracy: then what
is compared is arithmetic. A network for digits compiles in minutes.
"""

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import hls4ml
import numpy as np
import torch
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.transformation.channels_last import ConvertToChannelsLastAndClean
from qonnx.util.cleanup import cleanup_model

from oncequant.export.graph import Grid, Node
from oncequant.export.package import load_package
from oncequant.export.qonnx_writer import write_qonnx
from oncequant.export.simulate import run_integer

PRECISION = "fixed<56,20>"  # of scales, biases and sums that are not on a grid


def with_powers_of_two(node: Node) -> Node:
    """Its grid with the nearest power of two as step, and with zero as its lowest or its middle code."""
    if node.grid is None:
        return node
    middle = 2 ** (node.grid.bits - 1)
    step = 2.0 ** round(np.log2(node.grid.step))
    return replace(node, grid=Grid(step, 0 if node.grid.zero_point < middle / 2 else middle, node.grid.bits))


def prepared(path: Path) -> ModelWrapper:
    """The file with channels last, as hls4ml 1.3.0 can read it."""
    model = cleanup_model(ModelWrapper(str(path)), extract_conv_bias=True)
    model = cleanup_model(model.transform(ConvertToChannelsLastAndClean()))
    for node in model.graph.node:  # hls4ml has no batch dimension in constants
        if node.op_type in ("Add", "Mul", "Sub"):
            for name in node.input:
                value = model.get_initializer(name)
                if value is not None and value.ndim == 4:
                    model.set_initializer(name, value.reshape(-1))
    for node in list(model.graph.node):
        if node.op_type == "GlobalAveragePool":
            _with_channels_last(model, node)
    return model


def _with_channels_last(model: ModelWrapper, pool) -> None:
    """Leave out the transposition before it: hls4ml's kernel always has channels last, and so do the next layers."""
    transpose = model.find_producer(pool.input[0])
    channels = model.get_tensor_shape(pool.input[0])[1]
    pool.input[0] = transpose.input[0]
    model.graph.node.remove(transpose)
    node = pool
    while node.op_type != "Flatten":
        model.set_tensor_shape(node.output[0], [1, 1, 1, channels])
        node = model.find_consumer(node.output[0])


def main(folder: Path, out: Path) -> None:
    """Convert, compile, compare."""
    handlers = importlib.import_module("hls4ml.converters.onnx_to_hls").layer_handlers
    parse = handlers["GlobalAveragePool"]
    # it takes a shape with channels last for one with channels first
    handlers["GlobalAveragePool"] = lambda node, names, shapes, graph: parse(
        node, names, [[shapes[0][i] for i in (0, 3, 1, 2)]], graph
    )
    graph = load_package(folder).graph
    graph = replace(graph, nodes=tuple(map(with_powers_of_two, graph.nodes)))
    out.mkdir(parents=True, exist_ok=True)
    write_qonnx(graph, out / "network.qonnx.onnx")
    model = prepared(out / "network.qonnx.onnx")
    settings = hls4ml.utils.config.config_from_onnx_model(
        model, granularity="name", backend="Vitis", default_precision=PRECISION
    )
    network = hls4ml.converters.convert_from_onnx_model(
        model, output_dir=str(out / "hls"), io_type="io_stream", backend="Vitis", hls_config=settings
    )
    network.compile()
    shape = (100, graph.channels, graph.resolution, graph.resolution)
    pixels = torch.randint(256, shape, generator=torch.Generator().manual_seed(0)).float()
    theirs = network.predict(np.ascontiguousarray(pixels.numpy())).reshape(len(pixels), -1)
    ours = run_integer(graph, pixels).numpy()
    error = np.abs(theirs - ours).max(1)
    close, same = (error < 2**-20).sum(), (theirs.argmax(1) == ours.argmax(1)).sum()
    print(f"{folder.name}, {len(pixels)} random pictures: equal logits (to 2^-20) on {close}, equal answers on {same}")
    print(f"largest difference {error.max():.2g}, largest logit {np.abs(ours).max():.2g}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
