"""Mixed precision as choices of a space: one bit-width for all layers, and subnets to learn a predictor from."""

from collections.abc import Mapping

import numpy as np

from oncequant.arch import Arch
from oncequant.space import SearchSpace

DRAWN = 32  # architectures that are drawn at once


def bit_choices(space: SearchSpace) -> list[str]:
    """Names of the choices of bit-widths that are open."""
    return [name for name in space.free if name.endswith("_bits")]


def open_bits(space: SearchSpace) -> list[int]:
    """The bit-widths that some layer can choose from."""
    return sorted({bits for name in bit_choices(space) for bits in space.choices[name]})


def with_uniform_bits(space: SearchSpace, arch: Mapping[str, int], bits: int) -> Arch:
    """The architecture with one bit-width everywhere, or the least above it that a layer allows."""
    names = bit_choices(space)
    return Arch({**arch, **{name: min(b for b in space.choices[name] if b >= bits) for name in names}})


def learning_codes(space: SearchSpace, rng: np.random.Generator, n: int) -> np.ndarray:
    """`n` different architectures to learn the predictor from, (n, genes): uniform, and half of the official mixture.

    The mixture: with probability 0.4 the highest resolution, with 0.3 all blocks, with 0.3 one bit-width for all
    layers, independently; otherwise uniform. It covers the ends, where uniform draws of many choices never come. The
    first rows for a larger `n` are those for a smaller one, so that there can be more later.
    """
    column = {name: i for i, name in enumerate(space.free)}
    found: dict[bytes, np.ndarray] = {}
    for _ in range(100 + 2 * n // DRAWN):  # where there are few architectures, more draws than needed
        codes = space.sample_codes(rng, DRAWN)
        for row in codes[1::2]:
            if rng.random() < 0.4 and "resolution" in column:
                row[column["resolution"]] = len(space.choices["resolution"]) - 1
            deepest, one_width = rng.random() < 0.3, rng.random() < 0.3
            for name, i in column.items():
                if deepest and name.endswith(".depth"):
                    row[i] = len(space.choices[name]) - 1
            if one_width and bit_choices(space):
                row[:] = space.encode(with_uniform_bits(space, space.decode(row), int(rng.choice(open_bits(space)))))
        for row in space.canonical(codes):
            found.setdefault(row.tobytes(), row)
        if len(found) >= n:
            break
    return np.array(list(found.values())[:n])
