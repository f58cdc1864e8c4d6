"""Architectures and bit-widths as numbers: the columns of the analysis."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from oncequant.analysis.probes import part_of
from oncequant.arch import Arch
from oncequant.cost import COSTS, bitops, layer_macs
from oncequant.space import SearchSpace

MORE = {  # kind of choice -> what it is called, and networks that have more of it
    "resolution": ("image size", "larger images"),
    "depth": ("depth", "deeper networks"),
    "width": ("width", "wider networks"),
    "expand_ratio": ("width inside blocks", "wider blocks"),
    "kernel_size": ("kernel size", "larger kernels"),
}
WIDTHS = ("width", "expand_ratio")  # of the kinds above, those that make networks wider, the first that there is
WHOLE = "all"
GROUPS = {"role": "role of layers", "part": "part of the network"}  # what layers are put together by
MOST_PARTS = 8
HIGHEST = 8  # bit-widths above, as float's, count as this


@dataclass(frozen=True)
class Factor:
    """One property of architectures."""

    kind: str
    """Last word of the names of its choices."""
    part: str
    """The group of blocks that it is of, or WHOLE."""

    @property
    def label(self) -> str:
        """For people."""
        name = MORE.get(self.kind, (self.kind.replace("_", " "), ""))[0]
        return name if self.part == WHOLE else f"{name}, {self.part}"


def factors_of(archs: Sequence[Arch], space: SearchSpace) -> tuple[list[Factor], np.ndarray]:
    """The properties in which architectures differ, and their values (n, k): means over the choices of a kind whose
    blocks are there, of the whole network and of each group of blocks."""
    rows: list[dict[Factor, float]] = []
    for arch in archs:
        found: dict[Factor, list[int]] = {}
        for name, value in arch.items():
            gate, (place, _, kind) = space.gate(name), name.rpartition(".")
            if kind.endswith("_bits") or (gate is not None and arch[gate[0]] < gate[1]):
                continue
            for part in dict.fromkeys((WHOLE, part_of(place) or WHOLE)):
                found.setdefault(Factor(kind, part), []).append(value)
        rows.append({factor: float(np.mean(values)) for factor, values in found.items()})
    factors = [factor for factor in dict.fromkeys(key for row in rows for key in row) if all(factor in r for r in rows)]
    values = np.array([[row[factor] for factor in factors] for row in rows]).reshape(len(rows), len(factors))
    differs = np.ptp(values, axis=0) > 0 if len(rows) else np.zeros(len(factors), bool)
    kept = [i for i, factor in enumerate(factors) if differs[i]]
    order = {kind: i for i, kind in enumerate(MORE)}
    kept.sort(key=lambda i: (factors[i].part != WHOLE, order.get(factors[i].kind, len(order)), factors[i].part))
    return [factors[i] for i in kept], values[:, kept]


def whole_factors(archs: Sequence[Arch], space: SearchSpace) -> tuple[list[Factor], np.ndarray]:
    """`factors_of` without those of groups of blocks."""
    factors, values = factors_of(archs, space)
    kept = [i for i, factor in enumerate(factors) if factor.part == WHOLE]
    return [factors[i] for i in kept], values[:, kept]


def cost_of(archs: Sequence[Arch], space: SearchSpace, cost: str) -> np.ndarray:
    """A cost by name of complete architectures (n,)."""
    return np.array([float(COSTS[cost](space.layers(arch))) for arch in archs])


@dataclass(frozen=True)
class Bits:
    """The bit-widths of some layers of a network."""

    by: str
    """One of GROUPS."""
    name: str
    what: str
    """"weights" or "inputs"."""

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.what} of {self.name.replace('_', ' ')}"


def bits_of(archs: Sequence[Arch], space: SearchSpace, by: str) -> tuple[list[Bits], np.ndarray]:
    """Mean bit-widths (n, k) of the layers of each role, or of each part, whose bits are chosen; only those in which
    the architectures differ. A group without layers in a network has the mean of the others there."""
    chosen, parts = layers_with_choices(space), chosen_parts(space)
    columns: dict[Bits, np.ndarray] = {}
    for number, arch in enumerate(archs):
        here: dict[Bits, list[int]] = {}
        for name, spec in space.layers(arch).items():
            for what, bits in (("weights", spec.weight_bits), ("inputs", spec.act_bits)):
                if spec.present and (name, what) in chosen:
                    group = spec.role if by == "role" else parts[name]
                    here.setdefault(Bits(by, group, what), []).append(min(bits, HIGHEST))
        for key, values in here.items():
            columns.setdefault(key, np.full(len(archs), np.nan))[number] = np.mean(values)
    keys = [key for key, column in columns.items() if np.nanmax(column) > np.nanmin(column)]
    filled = [np.where(np.isnan(columns[key]), np.nanmean(columns[key]), columns[key]) for key in keys]
    return keys, np.array(filled).reshape(len(keys), len(archs)).T


def prices_of(archs: Sequence[Arch], space: SearchSpace, keys: Sequence[Bits]) -> np.ndarray:
    """What a bit more in all layers of a group costs: by how much the logarithm of BitOPs rises, (n, k)."""
    chosen, parts = layers_with_choices(space), chosen_parts(space)
    rows = []
    for arch in archs:
        own, layers = dict.fromkeys(keys, 0.0), space.layers(arch)
        for name, spec in layers.items():
            for what, other in (("weights", spec.act_bits), ("inputs", spec.weight_bits)):
                for by in ("role", "part") if (name, what) in chosen else ():
                    key = Bits(by, spec.role if by == "role" else parts[name], what)
                    if key in own:
                        own[key] += layer_macs(spec) * other
        rows.append(np.array(list(own.values())) / bitops(layers))
    return np.array(rows)


def layers_with_choices(space: SearchSpace) -> set[tuple[str, str]]:
    """(layer, "weights" or "inputs") of all bit-widths that differ between architectures of a space, whatever kind of
    choice decides them."""
    specs = space.layers_batch(space.sample_codes(np.random.default_rng(0), 64))
    found = set()
    for name, spec in specs.items():
        for what, bits in (("weights", spec.weight_bits), ("inputs", spec.act_bits)):
            there = np.broadcast_to(bits, 64)[np.broadcast_to(spec.present, 64) > 0]
            if len(there) and np.ptp(there) > 0:
                found.add((name, what))
    return found


def chosen_parts(space: SearchSpace) -> Mapping[str, str]:
    """The part of the network of each layer whose bits are chosen: its group of blocks; where there are too many parts,
    a run of neighbours."""
    chosen = {layer for layer, _ in layers_with_choices(space)}
    layers = [name for name in space.layers(space.largest()) if name in chosen]
    names = {layer: part_of(layer) for layer in layers}
    if len(set(names.values())) <= MOST_PARTS:
        return names
    chunks = np.array_split(np.arange(len(layers)), MOST_PARTS)
    runs = {int(i): f"layers {chunk[0] + 1} to {chunk[-1] + 1}" for chunk in chunks for i in chunk}
    return {layer: runs[i] for i, layer in enumerate(layers)}
