"""Spaces in which layers can have every bit-width: of `oncequant cost`, and of what `oncequant profile` times."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from oncequant.arch import FLOAT_BITS, SKIP, pair
from oncequant.family import WIDTHS, NetworkConfig
from oncequant.limits import check_ranges
from oncequant.models import PRESETS, space_of
from oncequant.run_folder import read_settings
from oncequant.settings import BITS, CLASSES, ModelOptions
from oncequant.space import SearchSpace


@dataclass(frozen=True)
class AllBits:
    """A space in which every bit-width can be chosen, and those of architectures that do not name them."""

    preset: str = "imagenet"
    """Kind and size of the networks."""
    run: Path | None = None
    """Run folder whose network is meant, your own perhaps, instead of a preset."""
    width: float = 1.0
    """Multiplies all channel counts, 1.2 in OQA's larger space."""
    bits: int = FLOAT_BITS
    """Bit-width of weights and activations that an architecture does not name."""
    edge_bits: int = FLOAT_BITS
    """The same for the first convolution and the classifier; weights of the former may have fewer in a run."""
    se_bits: int = FLOAT_BITS
    """Bit-width of squeeze-and-excite."""
    num_classes: int | None = None
    """Classes. Default: the preset's."""

    def __post_init__(self) -> None:
        """Refuse impossible numbers before any work."""
        check_ranges(self, width=WIDTHS, num_classes=CLASSES, **dict.fromkeys(("bits", "edge_bits", "se_bits"), BITS))


def space_of_all_bits(of: AllBits) -> tuple[SearchSpace, dict[str, int]]:
    """The space of a network in which every bit-width can be chosen, also of the edges; and, by choice, the bit-widths
    that an architecture has which does not name them. Raises ValueError if a bit-width is none of 1 to 8 and 32."""
    base: Any = PRESETS[of.preset] if of.run is None else read_settings(of.run).model
    every = tuple(sorted({*range(1, 9), FLOAT_BITS}))
    known = {field.name for field in fields(base)}
    if "weight_bits" not in known:
        raise ValueError(f"{of.run} is a run of a method that decides the bit-widths of weights and inputs together")
    own = {name: getattr(of, name) for name in ("width", "se_bits") if name in known}
    if of.run is not None:
        own = {"width": base.width, **({"se_bits": of.se_bits} if "se_bits" in known else {})}
    config = replace(base, num_classes=of.num_classes or base.num_classes, weight_bits=every, act_bits=every, **own)
    space = space_of(config)
    edges = {name: of.edge_bits for name, bits in space.choices.items() if name.endswith("_bits") and len(bits) == 1}
    if of.edge_bits != FLOAT_BITS and "stem_bits" in known:
        edges["stem.weight_bits"] = min(of.edge_bits, max(base.stem_bits, of.bits))
    space = replace(space, choices={**space.choices, **{name: every for name in edges}})
    return space, {name: of.bits for name in space.choices if name.endswith("_bits")} | edges


def config_of_bits(
    options: ModelOptions, bits: tuple[int, ...], num_classes: int | None, image_channels: int | None
) -> NetworkConfig:
    """The configuration in which every layer's weights and inputs can have every one of `bits`, inputs from 2, and
    blocks of DNAS's networks be left out; edges have their own. Raises ValueError for impossible options."""
    if options.preset == "auto" or options.network or options.weights or options.trained:
        raise ValueError(f"preset: give one of {', '.join(PRESETS)}; networks of your own cannot be timed")
    base = PRESETS[options.preset]
    inputs = tuple(b for b in bits if b >= 2) or bits  # files hold no others
    config: Any = options.config(num_classes or base.num_classes, image_channels or base.image_channels)
    if hasattr(config, "precisions"):
        return replace(config, precisions=(SKIP, *(pair(weight, act) for weight in bits for act in inputs)))
    return replace(config, weight_bits=bits, act_bits=inputs, steps_per_bits=True)
