"""Search spaces: which choices there are, and the vector view that search needs.

A `SearchSpace` is a value: an ordered mapping of choices, and the function that turns an architecture into a
`Plan`. `codes` are the architecture as indices into the allowed values, one column per choice with more than
one value; inactive genes (blocks beyond the depth) are kept at 0 by `canonical`, so that equal networks are equal.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

import numpy as np

from oncequant.arch import Arch, Number
from oncequant.plan import Node, Plan, Rows


class ArchError(ValueError):
    """An architecture does not belong to the space; the message names the choice and its allowed values."""


@dataclass(frozen=True)
class SearchSpace:
    """Allowed values of every choice, and the network that a selection of them describes.

    `describe(values)` is the Plan of choice values (ints, or NumPy vectors for a batch, see oncequant.plan).
    `gate(name)` names the choice and the least value of it that make the choice `name` matter: for a choice of block 3
    of stage 1 it is `("stage1.depth", 3)`; None means always.
    """

    choices: Mapping[str, tuple[int, ...]]
    describe: Callable[[Mapping[str, Number]], Plan] = field(repr=False)
    gate: Callable[[str], tuple[str, int] | None] = field(repr=False)

    @cached_property
    def free(self) -> tuple[str, ...]:
        """Names of the choices with more than one value that some depth can switch on: the columns of `codes`."""

        def reachable(gate: tuple[str, int] | None) -> bool:
            return gate is None or max(self.choices[gate[0]]) >= gate[1]

        return tuple(name for name, values in self.choices.items() if len(values) > 1 and reachable(self.gate(name)))

    @cached_property
    def cardinalities(self) -> np.ndarray:
        """Number of values of each free choice, shape (len(free),)."""
        return np.array([len(self.choices[name]) for name in self.free], dtype=np.int64)

    # -- one architecture

    def complete(self, arch: Mapping[str, int]) -> Arch:
        """Fill in choices with a single value and check the rest.

        Genes of absent blocks may be left out (they are set to their first value). Raises ArchError.
        """
        if unknown := [name for name in arch if name not in self.choices]:
            raise ArchError(f"unknown choice {unknown[0]!r}; the choices of this space are: {', '.join(self.choices)}")
        values = {}
        for name, allowed in self.choices.items():
            gate = self.gate(name)
            inactive = gate is not None and arch.get(gate[0], self.choices[gate[0]][0]) < gate[1]
            value = arch.get(name, allowed[0] if len(allowed) == 1 or inactive else None)
            if value is None:
                raise ArchError(f"choice {name!r} is missing; allowed values: {list(allowed)}")
            if value not in allowed:
                raise ArchError(f"{name} = {value} is not allowed; allowed values: {list(allowed)}")
            values[name] = value
        return Arch(values)

    def brief(self, arch: Arch) -> Arch:
        """The architecture without single-valued choices and without choices of absent blocks (as files hold it)."""

        def active(gate: tuple[str, int] | None) -> bool:
            return gate is None or arch[gate[0]] >= gate[1]

        return Arch({name: arch[name] for name in self.free if active(self.gate(name))})

    def plan(self, arch: Mapping[str, Number]) -> Plan:
        """Layers and operations of an architecture; those of the last few are kept, since batches share them."""
        return _described(self.describe, arch) if isinstance(arch, Arch) else self.describe(arch)

    def layers(self, arch: Mapping[str, Number]) -> Plan:
        """LayerSpec of every layer; absent ones have `present` 0. It is the Plan, since some costs read operations."""
        return self.plan(arch)

    def smallest(self) -> Arch:
        """Every choice at its smallest value."""
        return Arch({name: min(values) for name, values in self.choices.items()})

    def largest(self) -> Arch:
        """Every choice at its largest value."""
        return Arch({name: max(values) for name, values in self.choices.items()})

    def sample(self, rng: np.random.Generator) -> Arch:
        """Every free choice drawn uniformly and independently."""
        return self.decode(self.sample_codes(rng, 1)[0])

    def restrict(self, values: Mapping[str, int | Iterable[int]]) -> "SearchSpace":
        """The space with some choices narrowed; `restrict(arch)` is the one-point space of `arch`. Raises ArchError."""
        choices = dict(self.choices)
        for name, kept in values.items():
            kept = (kept,) if isinstance(kept, int) else tuple(sorted(kept))
            if name not in choices or not kept or not set(kept) <= set(choices[name]):
                raise ArchError(f"cannot restrict {name!r} to {list(kept)}; allowed: {list(choices.get(name, ()))}")
            choices[name] = kept
        return replace(self, choices=choices)

    # -- many architectures

    def encode(self, arch: Mapping[str, int]) -> np.ndarray:
        """Codes of one architecture, shape (len(free),), int64."""
        return np.array([self.choices[name].index(arch[name]) for name in self.free], dtype=np.int64)

    def decode(self, codes: np.ndarray) -> Arch:
        """Inverse of `encode`."""
        values = {name: allowed[0] for name, allowed in self.choices.items()}
        values.update((name, self.choices[name][int(code)]) for name, code in zip(self.free, codes))
        return Arch(values)

    def decode_batch(self, codes: np.ndarray) -> dict[str, Number]:
        """Values by choice: vectors of shape (n,) for free choices, ints for the others. `codes` is (n, len(free))."""
        values: dict[str, Number] = {name: allowed[0] for name, allowed in self.choices.items()}
        for column, name in enumerate(self.free):
            values[name] = np.asarray(self.choices[name], dtype=np.int64).take(codes[:, column])
        return values

    def layers_batch(self, codes: np.ndarray) -> Plan:
        """LayerSpecs whose numeric fields are vectors over the architectures of `codes` (n, len(free))."""
        rows = Rows(len(codes), lambda i: self.plan(self.decode(codes[i])), self._nodes)
        return replace(self.describe(self.decode_batch(codes)), rows=rows)

    @cached_property
    def _nodes(self) -> dict[bytes, tuple[Node, ...]]:
        """Of architectures by which layers they have, as far as somebody asked."""
        return {}

    def sample_codes(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """`n` uniform architectures, shape (n, len(free))."""
        return self.canonical(rng.integers(0, self.cardinalities, size=(n, len(self.free))))

    def mutate_codes(self, codes: np.ndarray, probability: float, rng: np.random.Generator) -> np.ndarray:
        """Redraw every gene with the given probability; shape (n, len(free)) in and out."""
        redraw = rng.random(codes.shape) < probability
        return self.canonical(np.where(redraw, rng.integers(0, self.cardinalities, size=codes.shape), codes))

    def canonical(self, codes: np.ndarray) -> np.ndarray:
        """Copy of `codes` (n, len(free)) with the genes of absent blocks set to 0."""
        codes = codes.copy()
        for column, gate_column, threshold in self._gated_columns:
            codes[codes[:, gate_column] < threshold, column] = 0
        return codes

    @cached_property
    def _gated_columns(self) -> list[tuple[int, int, int]]:
        """(column, column of its gate, least index of the gate's value that activates it)."""
        position = {name: column for column, name in enumerate(self.free)}
        gated = []
        for name, column in position.items():
            gate = self.gate(name)
            if gate is not None and gate[0] in position:
                threshold = next(i for i, v in enumerate(self.choices[gate[0]]) if v >= gate[1])
                gated.append((column, position[gate[0]], threshold))
        return gated

    def size(self) -> int:
        """Number of different networks, in closed form.

        Choices without a gate multiply. A gate (a depth) contributes the sum over its values of the product of the
        choices that this value switches on.
        """
        ungated = 1
        gated: dict[str, list[tuple[int, int]]] = {}
        for name, values in self.choices.items():
            gate = self.gate(name)
            if gate is None:
                ungated *= len(values)
            else:
                gated.setdefault(gate[0], []).append((gate[1], len(values)))
        for gate_name, members in gated.items():
            total = 0
            for gate_value in self.choices[gate_name]:
                product = 1
                for least, count in members:
                    product *= count if gate_value >= least else 1
                total += product
            ungated = ungated // len(self.choices[gate_name]) * total
        return ungated


@lru_cache(maxsize=64)
def _described(describe: Callable[[Mapping[str, Number]], Plan], arch: Arch) -> Plan:
    return describe(arch)
