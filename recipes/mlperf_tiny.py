"""What MLPerf Tiny's network for CIFAR-10 needs as C of ours: ResNet-8 of 16/32/64 channels at 32 px, at 8 to 2 bits.

    python recipes/mlperf_tiny.py results/mlperf-tiny_resnet8_202611.csv

Costs alone, without training: they are the generator's plan (docs/export.md), equal to what it writes.
"""

import sys
from dataclasses import replace
from pathlib import Path

from tables import publish

from oncequant.cost import COSTS
from oncequant.hand_made import hand_made
from oncequant.models import PRESETS
from oncequant.models.elastic_resnet import ElasticResNetConfig

WIDTHS = (16, 32, 64)


def main(out: Path) -> None:
    """Write a row a bit-width."""
    model = PRESETS["resnet-cifar"]
    assert isinstance(model, ElasticResNetConfig)
    rows = []
    for bits in (8, 4, 3, 2):
        made = hand_made(replace(model, resolutions=(32,), stem_stride=1, edge_bits=8), bits, COSTS["bitops"])
        one = next(one for one in made if one.widths == WIDTHS)
        costs = ("macs", "params", "bitops", "weight_bytes", "ram_bytes", "flash_bytes")
        rows.append({"bits": bits} | {cost: round(one.cost(COSTS[cost])) for cost in costs})
    publish(rows, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
