"""Architectures per second of the vectorised costs, on the spaces of `imagenet` and `resnet-cifar`.

    python benchmarks/costs.py [--out results/NAME.csv]

Time starts from codes, so it includes decoding them and deriving all LayerSpecs; for `ram_bytes` and `flash_bytes` not
the structure of architectures with other layers than those before, which is found once (`first_seconds`, of the first
of the chunks).
"""

import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro
from rows import measured, save

from oncequant.cost import COSTS
from oncequant.family import with_bits
from oncequant.models import PRESETS, space_of


@dataclass(frozen=True)
class Options:
    """What to measure."""

    architectures: int = 200_000
    chunk: int = 8192
    """Architectures per call: small enough that the vectors stay in the cache."""
    out: Path | None = None


def main(options: Options) -> None:
    """Measure and print a table."""
    rows = []
    mixed = dict(weight_bits=(2, 3, 4), act_bits=(2, 3, 4))
    configs = {
        f"{name}, {label}": config
        for name in ("imagenet", "resnet-cifar")
        for label, config in (
            ("uniform 4 bits", with_bits(replace(PRESETS[name], edge_bits=8), 4)),
            ("mixed 2, 3, 4 bits", replace(PRESETS[name], edge_bits=8, **mixed)),
        )
    }
    for label, config in configs.items():
        space = space_of(config)
        codes = space.sample_codes(np.random.default_rng(0), options.architectures)
        for name, cost in COSTS.items():
            seconds = []
            start = time.perf_counter()
            cost(space.layers_batch(codes[: options.chunk]))
            first = time.perf_counter() - start
            for _ in range(3):
                start = time.perf_counter()
                for i in range(0, len(codes), options.chunk):
                    cost(space.layers_batch(codes[i : i + options.chunk]))
                seconds.append(time.perf_counter() - start)
            rate = options.architectures / statistics.median(seconds)
            rows.append(
                measured(
                    space=label,
                    cost=name,
                    first_seconds=round(first, 3),
                    architectures_per_second=round(rate),
                    numpy=np.__version__,
                )
            )
    save(rows, options.out)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
