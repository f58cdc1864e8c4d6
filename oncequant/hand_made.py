"""The competitor: a network that one builds by hand, trained in float and then by LSQ for the seconds there are.

Its shape is MLPerf Tiny's ResNet-8 (https://arxiv.org/abs/2106.07597), a stem and three groups of one basic block, at a
width that is scaled to the budget. Everything else is the run's own: images, optimizers, schedules' form, kernels,
bits of the edges. So what `oncequant compare` finds is what sharing weights is worth, and nothing else.
"""

import math
from dataclasses import dataclass, replace
from typing import cast

from oncequant import distributed
from oncequant.arch import Arch
from oncequant.cost import Cost
from oncequant.family import ElasticConfig, with_bits
from oncequant.files import read_object, write_json
from oncequant.hours import rehearse
from oncequant.methods import oqat
from oncequant.models import space_of
from oncequant.models.elastic_resnet import ElasticResNetConfig
from oncequant.run_folder import Run
from oncequant.space import SearchSpace

WIDTHS = range(16, 257, 8)  # of the last group; the others have a quarter and a half of it; MLPerf's is 64


@dataclass(frozen=True)
class HandMade:
    """A network of one architecture at one bit-width."""

    model: ElasticResNetConfig
    """In float."""
    space: SearchSpace
    """At the bit-width; one architecture."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the groups."""
        return self.model.stage_widths

    @property
    def arch(self) -> Arch:
        """Its architecture."""
        return self.space.largest()

    def cost(self, cost: Cost) -> float:
        """What it costs."""
        return float(cost(self.space.layers(self.arch)))


def hand_made(model: ElasticConfig, bits: int, cost: Cost) -> list[HandMade]:
    """ResNet-8 at every width, least `cost` first, for the images and the largest resolution of a supernet."""
    made = []
    for widths in scaled_widths():
        config = ElasticResNetConfig(
            num_classes=model.num_classes,
            image_channels=model.image_channels,
            stem_width=0,
            stem_stride=model.stem_stride,
            stage_widths=widths,
            kernel_sizes=(3,),
            expand_ratios=(4,),
            depths=(1,),
            resolutions=model.resolutions,
            edge_bits=model.edge_bits,
            stem_bits=model.stem_bits,
            weight_quantizer=model.weight_quantizer,
        )
        space = space_of(with_bits(config, bits))
        made.append(HandMade(config, space.restrict({"resolution": max(model.resolutions)})))
    return sorted(made, key=lambda one: one.cost(cost))


def scaled_widths() -> list[tuple[int, int, int]]:
    """Channels of the groups at every width: about 1 : 2 : 4, rounded up or down to multiples of 8."""

    def rounded(value: float) -> list[int]:
        return sorted({max(8, 8 * math.floor(value / 8)), 8 * math.ceil(value / 8)})

    return [(first, second, last) for last in WIDTHS for first in rounded(last / 4) for second in rounded(last / 2)]


def train_for(cfg: oqat.Config, run: Run, seconds: float) -> None:
    """Train the one network `run.model` in float and at the bit-widths of `cfg`, at its largest resolution in the end,
    for so many seconds.

    The length of its schedules is found once by a rehearsal and kept in the folder, so that a training which was
    interrupted goes on with the same. Raises FileError if that file is damaged.
    """
    alone, path = replace(cfg, random_subnets=0, float_sandwich=False, duration=1.0), run.folder / "schedule.json"

    def kept() -> float | None:
        return cast(float, read_object(path, "duration")["duration"]) if path.exists() else None

    only = {"resolution": max(run.model.resolutions)}
    duration = distributed.from_main(kept)
    if duration is None:
        training = rehearse(alone, None, run, only=only).training
        found = float(f"{seconds / max(training, 1e-6):.3g}")
        duration = distributed.from_main(lambda: found)
        distributed.from_main(lambda: write_json(path, {"seconds": seconds, "duration": duration}))
    oqat.train(replace(alone, duration=duration), run, only)
