"""A user's network, any torch module, written down as the steps of `oncequant.models.own`.

`torch.export` traces it in evaluation mode, which leaves a short list of operators for networks such as those of
torchvision and timm. What is not on the list is refused by name. At the end the steps are computed with the module's
weights: where the logits are not the module's, it is refused, too.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from oncequant.models.own import FAMILY, IMAGES, OwnConfig, Step, first_and_last, to_text
from oncequant.models.trace_layers import LAYERS
from oncequant.models.trace_shapes import RESHAPES, SHAPES, regrouped
from oncequant.models.trace_steps import Call, Dealt, Given, Map, Steps, TraceError
from oncequant.network import Network

SAME = "contiguous", "clone", "alias", "detach", "lift_fresh_copy", "to"  # operators that change no number
IGNORED = "_assert_tensor_metadata", "_assert_scalar", "sym_size"
TOLERANCE = 1e-3  # of the largest logit: the same network, summed in another order
BLOCK_LAYERS = 3  # that a block has at least, where the network can be cut


@dataclass(frozen=True, eq=False)
class OwnNetwork:
    """A traced network: what `new_run` takes as `model`."""

    config: OwnConfig
    """What run folders keep: it is data, without code."""
    weights: Mapping[str, Tensor]
    """Those that training starts from, by the names of `oncequant.network.Network`."""


def own_network(module: nn.Module, example_input: Tensor, trained: bool = False) -> OwnNetwork:
    """A convolutional network of your own, whose layers are to get bit-widths.

    Args:
        module: takes images (N, C, S, S), normalised, and returns logits (N, classes). It is not changed.
        example_input: such images; their size S is the resolution of the network. Their values do not matter.
        trained: its weights are trained: the float stage takes them as they are.

    Raises TraceError (a ValueError) naming the module and the operation that cannot be quantized, and what could be
    used instead.
    """
    if not isinstance(module, nn.Module):
        raise TraceError(f"a network is a torch.nn.Module, not a {type(module).__name__}")
    if not isinstance(example_input, Tensor) or example_input.dim() != 4 or len({*example_input.shape[2:]}) > 1:
        raise TraceError("the example is a tensor of square images, (N, channels, size, size)")
    channels, size = example_input.shape[1:3]
    module = deepcopy(module).cpu().float().eval()
    images = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    try:
        program = torch.export.export(module, (images,))
    except Exception as error:  # torch.export has many kinds
        text = str(error).strip().splitlines() or [type(error).__name__]
        raise TraceError(f"torch.export cannot trace the network: {text[0]}") from error
    written, result = _written(program)
    if not isinstance(result, Map) or result.size != 1 or not result.flat:
        raise TraceError("the network does not return logits (N, classes) alone; flatten, and leave out other results")
    steps = _ended(list(written.steps.values()), result)
    weights = {name: tensor.detach().clone().contiguous() for name, tensor in written.weights.items()}
    first, last = first_and_last(steps)
    if f"{last}.bias" not in weights:  # a classifier has one
        weights[f"{last}.bias"] = torch.zeros(result.channels)
        steps = [replace(step, bias=True) if step.name == last else step for step in steps]
    description = to_text(channels, size, blocks_of(steps))
    config = OwnConfig(
        result.channels, channels, resolutions=(size,), network=description, edge_bits=8, trained=trained
    )
    known = {f"{step.name}." for step in steps if step.op == "layer"}
    weights = {name: tensor for name, tensor in weights.items() if any(name.startswith(each) for each in known)}
    found = OwnNetwork(replace(config, weights=digest(weights)), weights)
    _check_logits(found, module, images)
    return found


def digest(weights: Mapping[str, Tensor]) -> str:
    """Sixteen letters that tell weights from others."""
    found = hashlib.sha256()
    for name in sorted(weights):
        found.update(name.encode() + weights[name].contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


@torch.no_grad()
def _check_logits(found: OwnNetwork, module: nn.Module, images: Tensor) -> None:
    """Raise TraceError if the steps compute something else than the module."""
    net = float_network(found)
    expected, logits = module(images), net(images, net.space.largest())
    difference = (logits - expected).abs().max().item()
    if not difference <= TOLERANCE * max(1e-6, expected.abs().max().item()):
        raise TraceError(
            f"the traced network computes other logits than the module, {difference:.3g} apart: does its result depend "
            "on something else than the images?"
        )


def float_network(found: OwnNetwork) -> Network:
    """The traced network in float with its weights, in evaluation mode."""
    net = Network(found.config, FAMILY.space(found.config))
    net.load_state_dict(found.weights)
    return net.eval()


# -- the exported module


def _written(program: torch.export.ExportedProgram) -> tuple[Steps, Any]:
    """The steps of an exported module, and what it returns."""
    signature, tensors = program.graph_signature, {**program.state_dict, **program.constants}
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    names |= dict(signature.inputs_to_lifted_tensor_constants)
    steps, values = Steps(_step_name), dict[torch.fx.Node, Any]()
    for node in program.graph.nodes:
        if node.op == "placeholder":
            if node.name in names:
                values[node] = Given(names[node.name], tensors[names[node.name]])
            else:
                shape = node.meta["val"].shape
                values[node] = Map(IMAGES, shape[1], shape[2])
        elif node.op == "call_function":
            values[node] = _result(steps, node, values)
            if _operator(node).endswith("_"):  # works in place: who reads its argument from now on, reads its result
                values[node.args[0]] = values[node]
        elif node.op == "output":
            results = [values.get(each) for each in node.args[0]]
    return steps, results[0] if len(results) == 1 else None


def _operator(node: torch.fx.Node) -> str:
    """The name of an operator: conv2d, relu_, ..."""
    return getattr(node.target, "_opname", getattr(node.target, "__name__", str(node.target)))


def _result(steps: Steps, node: torch.fx.Node, values: Mapping[torch.fx.Node, Any]) -> Any:
    """What an operator makes of its arguments."""
    op = _operator(node)
    op = op if op.startswith("_") else op.removesuffix("_")

    def value(argument: Any) -> Any:
        if isinstance(argument, (list, tuple)):
            return [value(each) for each in argument]
        return values[argument] if isinstance(argument, torch.fx.Node) else argument

    if op in IGNORED:
        return None
    if op == "getitem":
        source, place = map(value, node.args)
        return source[place]
    schema = getattr(node.target, "_schema", None)
    given = list(node.args)
    if schema is None:
        raise TraceError(f"{op} of Python numbers is not an operation that can be quantized")
    a = {each.name: value(given[i]) if i < len(given) else value(node.kwargs.get(each.name, each.default_value))
         for i, each in enumerate(schema.arguments)}  # fmt: skip
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    where = str(stack[-1][0]) if stack else ""
    made = node.meta.get("val")
    shape = tuple(made.shape) if isinstance(made, Tensor) else ()
    sources = [argument for argument in node.args if isinstance(argument, torch.fx.Node)]
    call = Call(op, where, a, shape, bool(sources) and len(sources[0].users) == 1)
    if op in SAME:
        return call.first
    if isinstance(call.first, Dealt) and op in (*RESHAPES, "transpose", "permute"):
        return regrouped(steps, call)
    write = LAYERS.get(op) or SHAPES.get(op)
    if write is None:
        raise call.refused("is not an operation that can be quantized")
    if not isinstance(call.first, (Map, list)):
        raise call.refused("reads something else than what is made of the images")
    result = write(steps, call)
    is_pixel = isinstance(result, Map) and result.size == 1 and math.prod(shape[1:]) == result.channels
    if isinstance(result, Map) and result.shape != shape[1:] and not is_pixel:
        raise call.refused(f"makes {shape} of images, which is not understood")
    return result


def _step_name(module: str) -> str:
    """The name of a step for that of a module: names without a dot, and those that torch has itself, are changed."""
    head, *rest = module.split(".")
    if not rest or hasattr(Network, head) or head in ("config", "space", "pixels"):
        head, rest = "net", [head, *rest]
    return ".".join(part + "_" if hasattr(nn.ModuleDict, part) else part for part in (head, *rest))


# -- steps


def _ended(steps: Sequence[Step], result: Map) -> list[Step]:
    """The steps that the result needs. The last one is a linear layer, or a mean: both leave one pixel."""
    needed = {result.name}
    for step in reversed(steps):
        if step.name in needed:
            needed.update(step.inputs)
    kept = [step for step in steps if step.name in needed]
    if not any(step.op == "layer" and not step.norm_only for step in kept):
        raise TraceError("the network has no layer")
    last = kept[-1]
    usual = (last.padding, last.stride, last.dilation, last.groups) == (0, 1, 1, 1)
    if last.op == "mean" or last.op == "layer" and usual and not last.norm_only:
        return kept
    return [*kept, Step("net.logits", "mean", (last.name,))]


def blocks_of(steps: Sequence[Step]) -> list[Step]:
    """The steps with their blocks: what lies between two places where the network has one map only, with some layers.

    The first and the last layer lie in none.
    """
    first, last = first_and_last(steps)
    last_use = {name: i for i, step in enumerate(steps) for name in step.inputs}
    order = {step.name: i for i, step in enumerate(steps)}
    made, block, layers = [], 1, 0
    for i, step in enumerate(steps):
        alive = [name for name, end in last_use.items() if end >= i and (name == IMAGES or order[name] < i)]
        if len(alive) == 1 and step.op == "layer" and layers >= BLOCK_LAYERS:
            block, layers = block + 1, 0
        layers += step.op == "layer"
        outside = order[step.name] <= order[first] or order[step.name] >= order[last]
        made.append(replace(step, block="" if outside else f"block{block}"))
    return made
