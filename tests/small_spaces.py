"""Search spaces, budgets and measurements for the tests of searching."""

import itertools
from dataclasses import replace

import numpy as np

from oncequant.cost import COSTS, Budget
from oncequant.family import with_bits
from oncequant.models import space_of
from oncequant.models.mobilenet_v3 import PRESETS
from oncequant.records import Measurement
from oncequant.search.measurements import all_costs

NANO = space_of(with_bits(PRESETS["nano"], 4))
MIXED = space_of(replace(PRESETS["nano"], weight_bits=(2, 3, 4), act_bits=(2, 4, 8), edge_bits=8, se_bits=8))
IMAGENET = space_of(with_bits(PRESETS["imagenet"], 4))
# 216 architectures: few enough to know the optimum
SMALL = NANO.restrict(
    {f"stage{s}.depth": 1 for s in (1, 2, 3)} | {"stage1.block1.kernel_size": 3, "stage1.block1.expand_ratio": (2, 4)}
)
ALL_SMALL = SMALL.canonical(np.array(list(itertools.product(*map(range, SMALL.cardinalities)))))
ONE_POINT = NANO.restrict(NANO.smallest())


def budget(space, share, cost="bitops"):
    """A budget at a share (0 to 1) of the way from the smallest to the largest architecture, in log cost."""
    low, high = (COSTS[cost](space.layers(arch)) for arch in (space.smallest(), space.largest()))
    return Budget(COSTS[cost], low * (high / low) ** share)


def measurement(arch, top1, **costs):
    return Measurement(NANO.brief(arch), top1, costs or all_costs(NANO, arch), "4bit", "test")
