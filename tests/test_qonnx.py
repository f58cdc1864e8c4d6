"""The format `qonnx`: what its nodes say, and that qonnx computes it on grids of all kinds."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from small_export import digits, lowered, nano4, subnet_of

from oncequant.export.format import Exported
from oncequant.export.graph import Grid
from oncequant.export.lower import network_input
from oncequant.export.qonnx import FILE, FORMAT
from oncequant.export.verify import verify
from oncequant.models.resnet import ResNetConfig

pytestmark = pytest.mark.usefixtures("one_thread_and_quickly_compiled")


def judged(subnet, graph, folder):
    FORMAT.write(graph, folder)
    images, labels = digits(subnet.config.image_channels)
    return verify(subnet, Exported(graph, graph, folder), [(images[:30], labels[:30])], ["qonnx"]).judgements["qonnx"]


def quantizers(folder):
    """Of the file: name of the output -> (node, scale, zero point, bits)."""
    graph = onnx.load(folder / FILE).graph
    values = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    nodes = [node for node in graph.node if node.op_type == "Quant"]
    return {node.output[0]: (node, *(values[name] for name in node.input[1:])) for node in nodes}


def test_quantizers_have_the_bits_and_grids_of_the_network(tmp_path):
    _, _, graph = nano4()
    FORMAT.write(graph, tmp_path)
    found, model = quantizers(tmp_path), onnx.load(tmp_path / FILE).graph
    values = {each.name: numpy_helper.to_array(each) for each in model.initializer}
    layers = {node.output[0]: node for node in model.node if node.op_type == "Conv"}
    for node in graph.nodes:
        if node.grid:
            _, scale, zero, bits = found[node.name]
            signed = node.grid.zero_point == 2 ** (node.grid.bits - 1)
            assert (scale, bits) == (np.float32(node.grid.step), node.grid.bits)
            assert zero == (0 if signed else node.grid.zero_point)
        if node.op == "conv":
            quantizer, scale, zero, bits = found[layers[node.name].input[1]]
            assert bits == node.weights.bits and zero == 0
            codes = values[quantizer.input[0]] / scale
            assert np.array_equal(np.rint(codes), node.weights.weight.numpy())


@pytest.mark.parametrize("zero_point", [0, 3, 6, 15])
def test_zero_points_of_learned_grids_hold(zero_point, tmp_path):
    """As QFA folds them: any code can be that of zero."""
    subnet, _, graph = nano4()
    moved = [
        replace(node, grid=replace(node.grid, zero_point=zero_point)) if node.grid and node.grid.bits == 4 else node
        for node in graph.nodes
    ]
    found = judged(subnet, replace(graph, nodes=tuple(moved)), tmp_path)
    assert found.problems == () and found.equal_images + found.near_tie_images == 30


def test_steps_that_are_powers_of_two_are_exact_in_float(tmp_path):
    """Sums of such numbers have no rounding. Zero points are even: where they are added before rounding, ties stay."""
    shape = dict(stage_blocks=(1, 1), stage_widths=(8, 12), resolutions=(16,), precisions=(203,), projections=True)
    subnet, arch = subnet_of(ResNetConfig(**shape, edge_bits=8, weight_quantizer="lsq", act_quantizer="lsq"))
    graph = lowered(subnet, arch)

    def nearest(step):
        return 2.0 ** torch.as_tensor(step).abs().log2().round()

    def exact(node):
        if node.grid:
            grid = Grid(nearest(node.grid.step).item(), node.grid.zero_point // 2 * 2, node.grid.bits)
            return replace(node, grid=grid)
        return replace(node, weights=replace(node.weights, scale=nearest(node.weights.scale))) if node.weights else node

    found = judged(subnet, replace(graph, nodes=tuple(map(exact, graph.nodes))), tmp_path)
    assert found.problems == () and found.equal_images == 30


def test_a_code_that_is_wrong_once_is_found(tmp_path, monkeypatch):
    """One quantizer of the file is moved by a hundredth of a step."""
    subnet, _, graph = nano4()
    name = next(node.name for node in graph.nodes if node.grid and node.grid.bits == 4)
    moved = [
        replace(node, grid=replace(node.grid, step=node.grid.step * 1.01)) if node.name == name else node
        for node in graph.nodes
    ]
    FORMAT.write(replace(graph, nodes=tuple(moved)), tmp_path)
    images, labels = digits(1)
    found = verify(subnet, Exported(graph, graph, tmp_path), [(images[:30], labels[:30])], ["qonnx"])
    assert "not explained by rounding" in found.problems[0]


def test_the_cleaned_file_is_the_same_network(tmp_path):
    """All tools clean it up first."""
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.transformation.infer_shapes import InferShapes
    from qonnx.util.cleanup import cleanup_model

    subnet, _, graph = nano4()
    FORMAT.write(graph, tmp_path)
    model = ModelWrapper(onnx.load(tmp_path / FILE))
    cleaned = cleanup_model(ModelWrapper(onnx.load(tmp_path / FILE)), override_inpsize=1, extract_conv_bias=True)
    image = {"pixels": network_input(graph, digits(1)[0][:1]).numpy()}
    before = execute_onnx(model.transform(InferShapes()), image)["logits"]
    (after,) = execute_onnx(cleaned, {cleaned.graph.input[0].name: image["pixels"]}).values()
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4)
