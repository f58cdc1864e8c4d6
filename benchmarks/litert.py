"""A float graph as LiteRT runs it, in float and with 8 bits: for `c.py`, where TensorFlow and LiteRT are installed.

    pip install tensorflow-cpu ai-edge-litert

LiteRT has no way to write a file, so TensorFlow converts: after training, per channel, from random pictures, inputs are
bytes. Convolutions with stride pad as TensorFlow does, which moves maps by a pixel and costs the same. LiteRT computes
by XNNPACK on one thread.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from oncequant.export.graph import Graph, Node, weights_of


def litert_calls(graph: Graph) -> dict[str, Callable[[], Any]]:
    """One image by the files of a float graph."""
    return {f"litert_{kind}": call_of(converted(graph, kind == "integer")) for kind in ("integer", "float")}


def call_of(content: bytes) -> Callable[[], Any]:
    """The whole of a call: an image in, logits out."""
    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
    image = np.full(taken["shape"], 127, taken["dtype"])

    def call() -> Any:
        interpreter.set_tensor(taken["index"], image)
        interpreter.invoke()
        return interpreter.get_tensor(given["index"])

    return call


def converted(graph: Graph, is_integer: bool) -> bytes:
    """The file."""
    shape = 1, graph.resolution, graph.resolution, graph.channels

    @tf.function(autograph=False, input_signature=[tf.TensorSpec(shape, tf.float32)])
    def network(pixels: Any) -> Any:
        values: dict[str, Any] = {}
        for node in graph.nodes:
            inputs = [values[name] for name in node.inputs]
            values[node.name] = pixels if node.op == "pixels" else value(graph, node, inputs)
        return values[graph.nodes[-1].name]

    def images() -> Iterator[list[np.ndarray]]:
        rng = np.random.default_rng(0)
        for _ in range(32):
            yield [rng.uniform(0, 255, shape).astype(np.float32)]

    converter = tf.lite.TFLiteConverter.from_concrete_functions([network.get_concrete_function()])
    if is_integer:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = images
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = tf.uint8
    return converter.convert()


def value(graph: Graph, node: Node, inputs: list[Any]) -> Any:
    """What a node makes, channels last."""
    x = inputs[0]
    match node.op:
        case "normalise":
            mean, std = (np.array(values, np.float32) for values in (graph.mean, graph.std))
            return x * (1 / (255 * std)) - mean / std
        case "conv":
            layer = weights_of(node)
            weight, bias, strides = layer.float_weight().permute(2, 3, 1, 0).numpy(), layer.bias.numpy(), layer.stride
            if layer.groups > 1:
                y = tf.nn.depthwise_conv2d(x, weight.transpose(0, 1, 3, 2), (1, strides, strides, 1), "SAME")
            else:
                y = tf.nn.conv2d(x, weight, strides, "SAME")
            return tf.nn.bias_add(y, bias)
        case "linear":
            layer = weights_of(node)
            return tf.matmul(x, layer.float_weight().numpy().T) + layer.bias.numpy()
        case "flatten":
            return tf.reshape(x, (1, -1))
        case "relu":
            return tf.nn.relu(x)
        case "hardswish":
            return x * tf.nn.relu6(x + 3) * (1 / 6)
        case "hardsigmoid":
            return tf.nn.relu6(x + 3) * (1 / 6)
        case "add":
            return x + inputs[1]
        case "multiply":
            return x * inputs[1]
        case "mean":
            return tf.reduce_mean(x, (1, 2), keepdims=True)
        case "subsample":
            return x[:, ::2, ::2]
        case "pad_channels":
            return tf.pad(x, ((0, 0), (0, 0), (0, 0), node.channels))
        case "maxpool":
            kernel, stride, _, _ = node.window or (3, 2, 1, 1)
            return tf.nn.max_pool2d(x, kernel, stride, "SAME")
    raise ValueError(f"{node.name}: no operation of TensorFlow for {node.op}")
