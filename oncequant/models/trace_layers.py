"""Layers, activations and sums of a traced network: one function for each operator of torch."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from oncequant.models.trace_steps import Call, Given, Map, Steps


def conv2d(steps: Steps, c: Call) -> Map:
    """A convolution of any groups, with a square kernel."""
    check_parameters(steps, c)
    weight: Given = c.a["weight"]
    kernel, padding = tuple(weight.tensor.shape[2:]), c.a["padding"]
    if isinstance(padding, str):
        reach = [d * (k - 1) for k, d in zip(kernel, c.a["dilation"] * 2)]
        padding = [0, 0] if padding == "valid" else [r // 2 for r in reach]
    numbers = {"kernel": kernel, "stride": c.a["stride"], "padding": padding, "dilation": c.a["dilation"]}
    for name, pair in numbers.items():
        if len(set(pair)) > 1:
            raise c.refused(f"has the {name} {tuple(pair)}; use one number")
    options = {name: int(pair[0]) for name, pair in numbers.items()}
    return layer(steps, c, weight.tensor, groups=c.a["groups"], **options)


def linear(steps: Steps, c: Call) -> Map:
    """A convolution as large as the map."""
    check_parameters(steps, c)
    if not c.x.flat or len(c.shape) != 2:
        raise c.refused("is not behind a flattened map; flatten before it")
    kernel = c.a["weight"].tensor.unflatten(1, (c.x.channels, c.x.size, c.x.size))
    return replace(layer(steps, c, kernel, kernel=c.x.size), flat=True)


def check_parameters(steps: Steps, c: Call) -> None:
    """Raise TraceError for weights that are no parameters of one module, which nothing else uses."""
    weight, bias = c.a["weight"], c.a["bias"]
    if not isinstance(weight, Given) or not isinstance(bias, Given | None):
        raise c.refused("has weights that are computed; use a module whose weights are parameters")
    if steps.rename(weight.name.rpartition(".")[0]) in steps.steps:
        raise c.refused(f"uses {weight.name} a second time; give each layer weights of its own")


def layer(steps: Steps, c: Call, weight: Tensor, **options: Any) -> Map:
    """A layer with its weights (out, in / groups, K, K)."""
    bias, module, out = c.a["bias"], c.a["weight"].name.rpartition(".")[0], len(weight)
    name = steps.add(module, "layer", [c.x], out=out, bias=bias is not None, signed=c.x.signed, **options)
    steps.weights[f"{name}.weight"] = weight
    if bias is not None:
        steps.weights[f"{name}.bias"] = bias.tensor
    reach = options.get("dilation", 1) * (options["kernel"] - 1) + 1
    size = (c.x.size + 2 * options.get("padding", 0) - reach) // options.get("stride", 1) + 1
    return Map(name, out, size)


def batch_norm(steps: Steps, c: Call) -> Map:
    """Part of the layer before it, else a layer of single pixels and channels."""
    if not isinstance(c.a["running_mean"], Given):
        raise c.refused("has no running statistics; use track_running_stats=True")
    if c.x.flat and c.x.size > 1:
        raise c.refused("is behind a flattened map; use BatchNorm2d before flattening")
    before, name = steps.steps.get(c.x.name), c.x.name
    if before is not None and before.op == "layer" and before.norm is None and c.alone:
        steps.steps[name] = replace(before, norm=float(c.a["eps"]))
    else:
        module = c.a["running_mean"].name.rpartition(".")[0]
        options: dict[str, Any]
        options = dict(out=c.x.channels, groups=c.x.channels, norm=float(c.a["eps"]), norm_only=True, signed=c.x.signed)
        name = steps.add(module, "layer", [c.x], **options)
        steps.weights[f"{name}.weight"] = torch.ones(c.x.channels, 1, 1, 1)
    usual = {"weight": torch.ones(c.x.channels), "bias": torch.zeros(c.x.channels)}
    for part in ("weight", "bias", "running_mean", "running_var"):
        steps.weights[f"{name}.norm.{part}"] = c.a[part].tensor if isinstance(c.a[part], Given) else usual[part]
    return replace(c.x, name=name, signed=True)


# -- between layers


def elementwise(steps: Steps, c: Call) -> Map:
    """h-swish and SiLU reach a little below zero, which is given up for a finer grid."""
    return replace(c.x, name=steps.between(c, c.op, c.x), signed=False)


def hardtanh(steps: Steps, c: Call) -> Map:
    """ReLU6 only."""
    return clamped(steps, c, c.a["min_val"], c.a["max_val"])


def clamp(steps: Steps, c: Call) -> Map:
    """ReLU and ReLU6."""
    return clamped(steps, c, c.a["min"], c.a["max"])


def clamped(steps: Steps, c: Call, low: float | None, high: float | None) -> Map:
    """Of numbers between bounds."""
    if (low, high) not in ((0, 6), (0, None)):
        raise c.refused(f"between {low} and {high} is not an operation that can be quantized")
    name = steps.between(c, "relu" if high is None else "relu6", c.x)
    return replace(c.x, name=name, signed=False)


def dropout(steps: Steps, c: Call) -> Map:
    """In training steps."""
    return replace(c.x, name=steps.between(c, "dropout", c.x, rate=float(c.a["p"]))) if c.a["p"] else c.x


def add(steps: Steps, c: Call) -> Map:
    """Of two maps of one shape."""
    other = c.a["other"]
    if not isinstance(other, Map) or c.a.get("alpha", 1) != 1:
        raise c.refused("of a number or a parameter; use a Conv2d or BatchNorm2d with a bias")
    if (other.channels, other.size) != (c.x.channels, c.x.size):
        raise c.refused(f"of maps of different shapes, {c.x.shape} and {other.shape}")
    return replace(c.x, name=steps.between(c, "add", c.x, other), signed=c.x.signed or other.signed)


def mul(steps: Steps, c: Call) -> Map:
    """Of two maps of one shape, or of a map and one pixel."""
    other = c.a["other"]
    if not isinstance(other, Map):
        raise c.refused("by a number or a parameter; use a BatchNorm2d")
    x, other = (c.x, other) if c.x.size >= other.size else (other, c.x)
    if other.channels != x.channels or other.size not in (1, x.size):
        raise c.refused(f"of maps of shapes that do not fit, {x.shape} and {other.shape}")
    return replace(x, name=steps.between(c, "multiply", x, other), signed=x.signed or other.signed)


def cat(steps: Steps, c: Call) -> Map:
    """Of channels."""
    x = c.a["tensors"]
    if c.a["dim"] not in (1, 1 - len(c.shape)) or not all(isinstance(each, Map) for each in x):
        raise c.refused("of something else than channels of maps")
    if len({each.size for each in x}) > 1 or any(each.flat and each.size > 1 for each in x):
        raise c.refused("of maps of different sizes, or of flattened ones")
    if len(x) == 1:
        return x[0]
    channels, signed = sum(each.channels for each in x), any(each.signed for each in x)
    return replace(x[0], name=steps.between(c, "concat", *x), channels=channels, signed=signed)


LAYERS: Mapping[str, Callable[[Steps, Call], Any]] = {
    "conv2d": conv2d,
    "linear": linear,
    "batch_norm": batch_norm,
    **dict.fromkeys(("relu", "relu6", "hardswish", "hardsigmoid", "silu", "sigmoid"), elementwise),
    "hardtanh": hardtanh,
    "clamp": clamp,
    "dropout": dropout,
    "add": add,
    "mul": mul,
    "cat": cat,
}
