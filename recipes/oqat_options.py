"""What options of the quantized network and of its training are worth: accuracy with each changed alone, for one seed.

    python recipes/oqat_options.py --data digits --out runs/options --seed 0
    python recipes/oqat_options.py --data digits --out runs/precision --seed 0 --changes bfloat16
    python recipes/oqat_options.py --out runs/options --summarise results/NAME.csv

Changes: the default (signed grid after linear bottlenecks, 8-bit edges, 8-bit squeeze-and-excite, float32); unsigned
everywhere (the official code); float first convolution, classifier and squeeze-and-excite (the official code too);
training steps in bfloat16. A change of the quantized network starts from the default's float supernet. Accuracy is the
mean test top-1 over the same architectures, costs are of the largest.
"""

import shutil
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from tables import over_seeds, publish

from oncequant.data import calibration_batches, eval_batches, load_data, native_size
from oncequant.files import read_json, write_json
from oncequant.measure import measure
from oncequant.methods import oqat
from oncequant.run_folder import Run
from oncequant.search.measurements import all_costs
from oncequant.settings import ModelOptions, suited
from oncequant.supernet_file import load_supernet

CHANGES_OF_THE_NETWORK = {
    "unsigned": {"signed_activations": False},
    "float-edges": {"edge_bits": 32, "se_bits": 32},
}
CHANGES_OF_TRAINING = {"bfloat16": {"precision": "bfloat16"}}


@dataclass(frozen=True)
class Options:
    """One seed of the experiment; the seed is --seed."""

    out: Path
    data: str = "digits"
    changes: tuple[Literal["unsigned", "float-edges", "bfloat16"], ...] = ("unsigned", "float-edges")
    """What to compare with the default."""
    random_archs: int = 10
    model: Annotated[ModelOptions, tyro.conf.arg(name="")] = field(default_factory=ModelOptions)
    training: Annotated[oqat.Config, tyro.conf.arg(name="")] = field(
        default_factory=lambda: oqat.Config(optimizer="adamw", float_sandwich=True)  # defaults when this was published
    )
    summarise: Path | None = None
    """Only write this CSV from the seeds found in `out`."""


def main(options: Options) -> None:
    """Run one seed, or summarise."""
    if options.summarise:
        return summarise(options.out, options.summarise)
    cfg = options.training
    network = suited("oqat", options.model, native_size(options.data))
    data = load_data(options.data, size=max(network.config(2, 1).resolutions), seed=cfg.seed)
    base = network.config(len(data.classes), data.channels)
    calibration = calibration_batches(data, cfg.calibration_images, 250, cfg.seed)
    test = list(eval_batches(data, data.test))
    rows = []
    for name in ("default", *options.changes):
        folder = options.out / f"seed{cfg.seed}" / name
        folder.mkdir(parents=True, exist_ok=True)
        if name in CHANGES_OF_THE_NETWORK and not (folder / "float.safetensors").exists():
            shutil.copy(folder.parent / "default" / "float.safetensors", folder)
        model = replace(base, **CHANGES_OF_THE_NETWORK.get(name, {}))
        oqat.train(replace(cfg, **CHANGES_OF_TRAINING.get(name, {})), Run(folder, model, data))
        for stage in oqat.stages(cfg)[name in CHANGES_OF_THE_NETWORK :]:  # their float stage is the default's
            supernet = load_supernet(folder, stage)
            space, rng = supernet.space, np.random.default_rng(cfg.seed)
            archs = [space.largest(), space.smallest(), *(space.sample(rng) for _ in range(options.random_archs))]
            top1 = [measure(supernet, arch, calibration, test).accuracy.top1 for arch in archs]
            rows.append(
                dict(options=name, stage=stage, seed=cfg.seed, top1=top1, costs=all_costs(space, space.largest()))
            )
    write_json(options.out / f"seed{cfg.seed}" / "options.json", rows)
    summarise(options.out, None)


def summarise(out: Path, csv_path: Path | None) -> None:
    """Mean over architectures for each seed, then mean and standard deviation over seeds."""
    groups: dict[tuple, dict[int, dict]] = defaultdict(dict)
    for path in sorted(out.glob("seed*/options.json")):
        for row in read_json(path):
            groups[row["stage"], row["options"]][row["seed"]] = row
    table = []
    for (stage, name), rows in groups.items():
        costs = next(iter(rows.values()))["costs"]
        largest = {f"largest_{cost}": round(costs[cost]) for cost in ("bitops", "weight_bytes")}
        statistics = over_seeds({seed: row["top1"] for seed, row in rows.items()})
        table.append(dict(stage=stage, options=name) | statistics | largest)
    publish(table, csv_path)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
