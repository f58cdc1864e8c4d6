"""A user's own convolutional network as a family: its layers are as they are, their bit-widths are to be chosen.

`oncequant.models.trace` writes a network down as a list of `Step`s, which a configuration keeps as JSON. So a run
needs the user's code once only. OQAT and QFA train `OwnConfig`, DNAS `OwnPairsConfig`, which decides the bit-widths of
weights and inputs of a layer together.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from typing import Any, ClassVar

from oncequant.arch import FLOAT_BITS, FLOAT_PAIR, Number
from oncequant.family import RESOLUTIONS, ElasticConfig, Family, check_common, check_pairs
from oncequant.limits import check_ranges
from oncequant.plan import Plan, PlanBuilder, Value, Window

IMAGES = "images"


@dataclass(frozen=True)
class Step:
    """One operation of a network of fixed widths, on the results of earlier ones."""

    name: str
    """As the user's module is called, where there is one; of its result, too."""
    op: str
    """An operation of `plan.Node`: layer, relu, add, ..."""
    inputs: tuple[str, ...]
    """Names of earlier steps, or `images`."""
    block: str = ""
    """What is computed together, see oncequant.plan."""
    out: int = 0
    """Of a layer: its channels."""
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    bias: bool = False
    norm: float | None = None
    """Of a layer with batch norm: what that adds to the variance."""
    norm_only: bool = False
    """Of a layer: it is a batch norm behind no layer, a convolution of single pixels and channels."""
    signed: bool = False
    """Of a layer: numbers below zero matter in its input."""
    channels: tuple[int, int] | None = None
    """Of slice and shuffle."""
    window: Window | None = None
    """Of pools and pad."""
    rate: float = 0.0
    """Of dropout."""


def to_text(channels: int, size: int, steps: Iterable[Step]) -> str:
    """A network for images of so many channels and pixels as JSON, without what is as usual."""
    usual = {field.name: field.default for field in fields(Step)}
    rows = [{k: v for k, v in asdict(step).items() if v != usual[k]} for step in steps]
    return json.dumps({"channels": channels, "size": size, "steps": rows}, separators=(",", ":"))


@lru_cache(maxsize=16)
def from_text(text: str) -> tuple[int, int, tuple[Step, ...]]:
    """Inverse of `to_text`: channels and size of the images, and the steps. Raises ValueError."""
    try:
        values = json.loads(text)
        rows: list[dict[str, Any]]
        rows = [{k: tuple(v) if isinstance(v, list) else v for k, v in row.items()} for row in values["steps"]]
        steps = tuple(Step(**row) for row in rows)
        if not any(step.op == "layer" and not step.norm_only for step in steps):
            raise ValueError("there is no layer")
        return int(values["channels"]), int(values["size"]), steps
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"network: not the description of a network ({error})") from error


# one layer, so that a configuration without a network can be made
_LEAST = to_text(
    3, 32, [Step("pool", "mean", (IMAGES,)), Step("net.fc", "layer", ("pool",), out=10, bias=True, signed=True)]
)


@dataclass(frozen=True)
class OwnConfig(ElasticConfig):
    """A network of the user's own, whose layers have bit-widths of their own. Widths and depths are the network's."""

    network: str = _LEAST
    """Its steps as JSON (`to_text`)."""
    weights: str = ""
    """Digest of the weights that training starts from, which the run folder has; "": random ones."""
    trained: bool = False
    """These weights are those of the float stage, without training."""
    fixed: ClassVar[dict[str, Any]] = {"width": 1.0, "kernel_sizes": (3,), "expand_ratios": (1,), "depths": (1,)}

    def __post_init__(self) -> None:
        """Refuse impossible options, naming the field and its allowed values."""
        ElasticConfig.__post_init__(self)
        for name, value in self.fixed.items():
            if getattr(self, name) != value:
                raise ValueError(f"{name}: a network of your own has its own; leave it out")
        check_network(self)


@dataclass(frozen=True)
class OwnPairsConfig:
    """The same, where each layer chooses a pair of bit-widths, for DNAS."""

    num_classes: int = 10
    image_channels: int = 3
    resolutions: tuple[int, ...] = (32,)
    network: str = _LEAST
    weights: str = ""
    trained: bool = False
    precisions: tuple[int, ...] = (FLOAT_PAIR,)
    """100 x weight bits + input bits."""
    per_layer: bool = True
    """Every layer chooses a pair: such a network has no blocks."""
    projections: bool = False
    """Its shortcuts are its own."""
    edge_bits: int = FLOAT_BITS
    """Weights and inputs of the first and the last layer in a quantized network, 8 or 32."""
    weight_quantizer: str = "dorefa"
    act_quantizer: str = "pact"
    steps_per_bits: ClassVar[bool] = True
    can_skip: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse impossible options, naming the field and its allowed values."""
        check_pairs(self.precisions, self.can_skip)
        if self.projections or not self.per_layer:
            raise ValueError("projections and per_layer: a network of your own has its own shortcuts, and no blocks")
        check_ranges(self, resolutions=RESOLUTIONS)
        check_common(self)
        check_network(self)

    @property
    def is_float(self) -> bool:
        """No layer is quantized (edges follow the others)."""
        return self.precisions == (FLOAT_PAIR,)


AnyOwn = OwnConfig | OwnPairsConfig


def check_network(config: AnyOwn) -> None:
    """Raise ValueError if the network does not take images of this many channels, or of one of the resolutions."""
    channels, size, _ = from_text(config.network)
    if config.image_channels != channels:
        raise ValueError(f"the network takes images of {channels} channels, these have {config.image_channels}")
    for resolution in config.resolutions:
        if resolution != size and (why := _misfit(config, resolution)):
            raise ValueError(f"resolutions {resolution}: {why}; the network was traced with images of {size} px")


def _misfit(config: AnyOwn, resolution: int) -> str:
    """Why images of a resolution do not fit, or ""."""
    sizes: dict[str, Number] = {}
    plan = _described(config, resolution, lambda step: (FLOAT_BITS, FLOAT_BITS), sizes)
    for name, size in sizes.items():
        if size < 1:
            return f"{name} would make a map of {size} pixels"
    for node in plan.nodes:
        if node.op in ("add", "concat") and len({sizes[name] for name in node.inputs}) > 1:
            return f"{node.name} would put maps of different sizes together"
    return "" if sizes[plan.nodes[-1].name] == 1 else "the last layer would make more than one pixel"


def first_and_last(steps: Iterable[Step]) -> tuple[str, str]:
    """Names of the first and the last layer, the edges."""
    layers = [step.name for step in steps if step.op == "layer" and not step.norm_only]
    return layers[0], layers[-1]


def _free(config: AnyOwn) -> list[str]:
    """Layers whose bit-widths are chosen."""
    steps = from_text(config.network)[2]
    edges = first_and_last(steps)
    return [s.name for s in steps if s.op == "layer" and not s.norm_only and s.name not in edges]


def choices(config: OwnConfig) -> dict[str, tuple[int, ...]]:
    """`LAYER.weight_bits` and `LAYER.act_bits` of every layer; the edges and batch norms alone have `edge_bits`."""
    found: dict[str, tuple[int, ...]] = {"resolution": tuple(sorted(config.resolutions))}
    free, edge = _free(config), (FLOAT_BITS if config.is_float else config.edge_bits,)
    for step in from_text(config.network)[2]:
        if step.op == "layer":
            is_free = step.name in free
            found[f"{step.name}.weight_bits"] = tuple(sorted(config.weight_bits)) if is_free else edge
            found[f"{step.name}.act_bits"] = tuple(sorted(config.act_bits)) if is_free else edge
    return found


def describe(config: OwnConfig, values: Mapping[str, Number]) -> Plan:
    """The Plan of an architecture, or of a batch of them; `values` by choice name."""

    def bits(step: Step) -> tuple[Number, Number]:
        return values[f"{step.name}.weight_bits"], values[f"{step.name}.act_bits"]

    return _described(config, values["resolution"], bits)


def pair_choices(config: OwnPairsConfig) -> dict[str, tuple[int, ...]]:
    """`LAYER.precision` of every layer but the edges and batch norms alone."""
    return {"resolution": tuple(sorted(config.resolutions))} | {
        f"{name}.precision": tuple(sorted(config.precisions)) for name in _free(config)
    }


def describe_pairs(config: OwnPairsConfig, values: Mapping[str, Number]) -> Plan:
    """The same for pairs."""
    edge = FLOAT_BITS if config.is_float else config.edge_bits

    def bits(step: Step) -> tuple[Number, Number]:
        code = values.get(f"{step.name}.precision")
        return (edge, edge) if code is None else (code // 100, code % 100)

    return _described(config, values["resolution"], bits, choice=lambda step: f"{step.name}.precision")


def _described(
    config: AnyOwn,
    resolution: Number,
    bits: Callable[[Step], tuple[Number, Number]],
    sizes: dict[str, Number] | None = None,
    choice: Callable[[Step], str] | None = None,
) -> Plan:
    """The Plan of the steps with bit-widths by layer. `sizes` gets the height of every step's result."""
    build, steps = PlanBuilder(), from_text(config.network)[2]
    first, last = first_and_last(steps)
    free = set(_free(config)) if choice else set()
    known = {IMAGES: Value(IMAGES, config.image_channels, resolution)}
    for step in steps:
        inputs = [known[name] for name in step.inputs]
        x = inputs[0]
        if step.op == "layer":
            depthwise = step.groups == x.channels == step.out and step.groups > 1
            role = "classifier" if step.name == last else "stem" if step.name == first else "conv"
            known[step.name] = build.layer(
                x,
                step.name,
                "depthwise" if depthwise and role == "conv" else role,
                config.num_classes if step.name == last else step.out,
                bits(step),
                kernel_size=step.kernel,
                stride=step.stride,
                choice=choice(step) if choice and step.name in free else None,
                padding=None if step.padding == step.kernel // 2 else step.padding,
                dilation=step.dilation,
                grouped=1 if depthwise else step.groups,
                depthwise=depthwise,
                bias=step.bias,
                batch_norm=step.norm is not None,
                signed_input=step.signed,
                **({} if step.norm is None else {"norm_eps": step.norm}),
            )
        elif step.op == "dropout":
            known[step.name] = build.dropout(x, step.name, step.rate)
        else:
            known[step.name] = build.operation(step.op, step.name, *inputs, channels=step.channels, window=step.window)
    if sizes is not None:
        sizes.update({name: value.size for name, value in known.items()})
    plan, blocks = build.plan(), {step.name: step.block for step in steps}
    return replace(plan, nodes=tuple(node._replace(block=blocks[node.name]) for node in plan.nodes))


def pairs_of(config: OwnConfig) -> OwnPairsConfig:
    """The network as DNAS trains it."""
    shared = {"num_classes", "image_channels", "resolutions", "network", "weights", "trained", "edge_bits"}
    return OwnPairsConfig(**{name: getattr(config, name) for name in shared})


FAMILY = Family(OwnConfig, {}, choices, describe)
PAIRS_FAMILY = Family(OwnPairsConfig, {}, pair_choices, describe_pairs)
