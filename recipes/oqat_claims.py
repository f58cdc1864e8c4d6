"""OQAT's claims C1, C2 and C3 on one data set, for one seed; tables of all seeds so far.

    python recipes/oqat_claims.py --data PATH --out runs/claims --seed 0 [model and training options]
    python recipes/oqat_claims.py --out runs/claims --summarise results/NAME.csv

C1  2 bits by inheritance (float -> 4 -> 3 -> 2) against direct 2-bit training (float -> 2), equal total steps.
C2  3 bits by calibration only (4-bit weights, steps doubled, batch norm re-estimated) against complete 3-bit training.
C3  subnets taken from the supernets against the same architectures trained alone by the same stages and steps.

The float supernet is shared by the three ways to lower bits. Accuracies are on the test split, which chooses nothing
here: architectures are the largest, the smallest and random ones fixed by the seed. Every part resumes after a kill.
"""

import shutil
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from tables import over_seeds, publish

from oncequant.arch import Arch
from oncequant.data import calibration_batches, eval_batches, native_size
from oncequant.family import with_bits
from oncequant.files import read_json, write_json
from oncequant.measure import measure
from oncequant.methods import oqat
from oncequant.models import build_network, space_of
from oncequant.network import Network
from oncequant.run_folder import Run, RunSettings, device_name
from oncequant.schedule import Schedule
from oncequant.settings import ModelOptions, suited
from oncequant.supernet_file import load_supernet


@dataclass(frozen=True)
class Options:
    """One seed of the experiment; the seed is --seed."""

    out: Path
    data: str = "digits"
    max_train: int | None = None
    random_archs: int = 10
    """Random architectures over which C1 and C2 average, beside the largest and the smallest."""
    alone: int = 5
    """Architectures trained alone (C3)."""
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
    cfg = replace(options.training, bit_schedule=(4, 3, 2))
    network = suited("oqat", options.model, native_size(options.data))
    preset = network.preset
    model = network.config(2, 1)
    settings = RunSettings(options.data, preset, model, "oqat", {}, cfg.seed, 0.15, 0.2, None, options.max_train)
    data = settings.load_data("cpu")
    model = network.config(len(data.classes), data.channels)
    out = options.out / f"seed{cfg.seed}"
    out.mkdir(parents=True, exist_ok=True)

    calibration = calibration_batches(data, cfg.calibration_images, 250, cfg.seed)
    test = list(eval_batches(data, data.test))
    space = space_of(with_bits(model, 2))
    rng = np.random.default_rng(cfg.seed)
    archs = [space.largest(), space.smallest(), *(space.sample(rng) for _ in range(options.random_archs))]
    archs = [space.brief(arch) for arch in archs]  # without bits: the same networks at every bit-width

    def accuracies(supernet: Network, which: list[Arch]) -> list[float]:
        return [measure(supernet, supernet.space.complete(arch), calibration, test).accuracy.top1 for arch in which]

    rows = []

    def record(claim: str, way: str, bits: int, which: list[Arch], top1: list[float]) -> None:
        for arch, value in zip(which, top1):
            rows.append(dict(claim=claim, way=way, bits=bits, seed=cfg.seed, arch=arch.to_json(), top1=value))

    oqat.train(cfg, Run(out / "inherit", model, data))
    inherited = {stage: load_supernet(out / "inherit", stage) for stage in oqat.stages(cfg)}
    record("front", "supernet", 32, archs, accuracies(inherited["float"], archs))
    record("front", "supernet", 4, archs, accuracies(inherited["4bit"], archs))

    direct = {}
    for bits, stages in ((2, 3), (3, 2)):  # as many steps as 4 -> 3 -> 2 and 4 -> 3 took
        folder = out / f"direct{bits}"
        folder.mkdir(exist_ok=True)
        shutil.copy(out / "inherit" / "float.safetensors", folder)
        as_many = sum(cfg.schedule(stage, data).steps for stage in oqat.stages(cfg)[1 : 1 + stages])
        longer = replace(cfg, bit_schedule=(bits,), epochs=1, min_steps=as_many)
        oqat.train(longer, Run(folder, model, data))
        direct[bits] = load_supernet(folder, f"{bits}bit")
    record("C1", "inherited 4-3-2", 2, archs, accuracies(inherited["2bit"], archs))
    record("C1", "direct", 2, archs, accuracies(direct[2], archs))

    calibrated = build_network(with_bits(model, 3))
    oqat.inherit_bits(inherited["4bit"], calibrated, data, cfg)
    record("C2", "4 -> 3, calibration only", 3, archs, accuracies(calibrated, archs))
    record("C2", "4 -> 3, fine-tuned", 3, archs, accuracies(inherited["3bit"], archs))
    record("C2", "direct 3-bit training", 3, archs, accuracies(direct[3], archs))

    for number, arch in enumerate(archs[2 : 2 + options.alone]):
        folder = out / f"alone{number}"
        oqat.train(replace(cfg, random_subnets=0), Run(folder, model, data), only=arch)
        for stage, bits in (("float", 32), ("4bit", 4), ("3bit", 3), ("2bit", 2)):
            record("C3", "from the supernet", bits, [arch], accuracies(inherited[stage], [arch]))
            record("C3", "trained alone", bits, [arch], accuracies(load_supernet(folder, stage), [arch]))
    about = dict(
        data=data.name, train=len(data.train), test=len(data.test), preset=preset, device=device_name(data.device)
    )
    schedules: dict[str, Schedule] = {stage: cfg.schedule(stage, data) for stage in oqat.stages(cfg)}
    about["steps"] = {stage: schedule.steps for stage, schedule in schedules.items()}
    write_json(out / "claims.json", dict(about=about, rows=rows))
    summarise(options.out, None)


def summarise(out: Path, csv_path: Path | None) -> None:
    """Mean over architectures for each seed, then mean and standard deviation over seeds."""
    groups: dict[tuple, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(out.glob("seed*/claims.json")):
        for row in read_json(path)["rows"]:
            groups[row["claim"], row["bits"], row["way"]][row["seed"]].append(row["top1"])
    rows = [dict(claim=c, bits=bits, way=way) | over_seeds(top1) for (c, bits, way), top1 in groups.items()]
    publish(rows, csv_path)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
