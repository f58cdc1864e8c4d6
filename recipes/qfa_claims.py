"""QFA's claims C5 and C8, and what each stabiliser is worth, on one data set for one seed; tables of all seeds so far.

    python recipes/qfa_claims.py --data PATH --out runs/qfa-claims --seed 0 --part quantizers [model, training options]
    python recipes/qfa_claims.py --out runs/qfa-claims --part quantizers --summarise results/NAME.csv

quantizers   C5: the same training with BatchQuant, with LSQ step sizes and with running ranges for activations.
stabilisers  one option of QFA changed at a time, and combinations.
uniform      C8: one supernet of bit-widths 2, 3, 4, 8 (32 in its first stage) on the largest architecture, against the
             same architecture trained at one bit-width alone for as many steps (with float in its first stage too),
             and in float.

Every variant starts from the same float supernet. Accuracies are of uniform bit-widths (the largest and random
architectures) and of random mixed subnets fixed by the seed, on the validation split, by which defaults are chosen, and
on the test split, which chooses nothing. A run whose loss is not finite counts as diverged. Every part resumes.
"""

import shutil
import statistics
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from tables import over_seeds, publish

from oncequant.arch import FLOAT_BITS, Arch
from oncequant.data import Data, eval_batches, native_size
from oncequant.files import read_json, write_json
from oncequant.measure import ask, calibrated_subnet
from oncequant.methods import qfa
from oncequant.models import build_network, extract_subnet
from oncequant.models.mobilenet_v3 import MobileNetV3Config
from oncequant.network import Network
from oncequant.run_folder import Run, RunSettings, device_name
from oncequant.sandwich import train_supernet
from oncequant.settings import ModelOptions, suited
from oncequant.supernet_file import load_supernet, save_supernet
from oncequant.train import TrainingError

VARIANTS = {  # changes of the paper's training, whose offsets are learned to the end
    "quantizers": {
        "batchquant": {},
        "lsq": {"activations": "lsq"},
        "running": {"activations": "running"},
    },
    "stabilisers": {
        "batchquant": {},
        "depthwise-3": {"depthwise_floor": 3},
        "step-lr": {"step_size_lr": 0.1},
        "zero-offsets": {"learned_offsets": 0.5},
        "zero-offsets, depthwise-3": {"learned_offsets": 0.5, "depthwise_floor": 3},
    },
    "uniform": {"one supernet": {"bits": (2, 3, 4, 8), "space": "precision"}},
}


@dataclass(frozen=True)
class Options:
    """One seed of the experiment; the seed is --seed."""

    out: Path
    part: Literal["quantizers", "stabilisers", "uniform"] = "quantizers"
    data: str = "digits"
    max_train: int | None = None
    only: tuple[str, ...] = ()
    """Variants to run; default all of the part."""
    random_archs: int = 5
    """Random architectures at uniform bits, beside the largest."""
    mixed: int = 12
    """Random subnets of mixed precision."""
    model: Annotated[ModelOptions, tyro.conf.arg(name="")] = field(default_factory=ModelOptions)
    training: Annotated[qfa.Config, tyro.conf.arg(name="")] = field(
        default_factory=lambda: qfa.Config(optimizer="adamw", float_sandwich=True)  # defaults when this was published
    )
    summarise: Path | None = None
    """Only write this CSV from the seeds found in `out`."""


def main(options: Options) -> None:
    """Run one seed, or summarise."""
    if options.summarise:
        return summarise(options.out, options.part, options.summarise)
    base = replace(options.training, learned_offsets=1.0)
    network = suited("qfa", options.model, native_size(options.data))
    preset = network.preset
    model = network.config(2, 1)
    settings = RunSettings(options.data, preset, model, "qfa", {}, base.seed, 0.15, 0.2, None, options.max_train)
    data = settings.load_data("cpu")
    model = network.config(len(data.classes), data.channels)
    out = options.out / f"seed{base.seed}"
    for name, changes in VARIANTS[options.part].items():
        if options.only and name not in options.only:
            continue
        cfg = replace(base, **changes)
        if trained(cfg, model, data, out, name):
            rows = measure_variant(cfg, model, data, out / name, options)
        else:
            rows = [dict(kind="diverged", top1=None)]
        publish_rows(out / f"{name}.json", rows, data, cfg, preset)
        if options.part == "uniform":
            dedicated(cfg, model, data, out, preset)
    summarise(options.out, options.part, None)


def trained(cfg: qfa.Config, model: MobileNetV3Config, data: Data, out: Path, name: str, only=None) -> bool:
    """Train a variant from the float supernet that all share; whether its loss stayed finite."""
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    shared = out / f"float-{cfg.space}.safetensors"
    if shared.exists() and not (folder / "float.safetensors").exists():
        copy(shared, folder / "float.safetensors")
    try:
        qfa.train(cfg, Run(folder, model, data), only)
    except TrainingError as error:
        print(error)
        return False
    finally:
        if (folder / "float.safetensors").exists() and not shared.exists():
            copy(folder / "float.safetensors", shared)
    return True


def copy(source: Path, target: Path) -> None:
    """Whole or not at all, since what is there is taken for finished."""
    shutil.copy(source, target.with_suffix(".part"))
    target.with_suffix(".part").replace(target)


def measure_variant(
    cfg: qfa.Config, model: MobileNetV3Config, data: Data, folder: Path, options: Options
) -> list[dict]:
    """Validation and test top-1 of uniform and mixed subnets."""
    supernet, calibration = load_supernet(folder, "mixed"), cfg.calibration(data)
    space, rng = supernet.space, np.random.default_rng(cfg.seed)
    reference = qfa.mixed_precision(replace(cfg, depthwise_floor=2), model)[1]  # the same draws for all variants
    drawn = [reference.sample(rng) for _ in range(options.random_archs + options.mixed)]
    rows = []

    def record(kind: str, net: Network, arch: Arch) -> None:
        for fold in (True, False) if cfg.activations != "lsq" else (True,):  # LSQ has no zero points
            subnet = calibrated_subnet(net, arch, calibration, fold)
            split = {"top1": data.test, "validation": data.validation}
            top1 = {key: ask(subnet, arch, eval_batches(data, part)).accuracy.top1 for key, part in split.items()}
            rows.append(dict(kind=kind + ("" if fold else ", not folded"), arch=dict(net.space.brief(arch))) | top1)

    for bits in cfg.bits:
        for arch in [space.largest(), *(drawn[: options.random_archs] if cfg.space == "full" else ())]:
            record(f"{bits} bits", supernet, qfa.with_uniform_bits(space, arch, bits))
    if cfg.space == "full":
        for arch in drawn[options.random_archs :]:
            allowed = {k: v if v in space.choices[k] else min(space.choices[k]) for k, v in arch.items()}
            record("mixed", supernet, Arch(allowed))
    else:  # the last stage's weights without quantizers
        config, whole = qfa.mixed_precision(cfg, model, with_float=True)
        net = build_network(config, whole)
        net.load_state_dict(supernet.state_dict())
        record("32 bits", net, qfa.with_uniform_bits(whole, whole.largest(), FLOAT_BITS))
    return rows


def dedicated(cfg: qfa.Config, model: MobileNetV3Config, data: Data, out: Path, preset: str) -> None:
    """The largest architecture at one bit-width alone, from the same float supernet, for as many steps."""
    calibration = cfg.calibration(data)
    for bits in (*cfg.bits, FLOAT_BITS):
        name = f"dedicated-{bits}"
        alone = replace(cfg, mixed_subnets=0, bits=(bits,) if bits < FLOAT_BITS else cfg.bits)
        if bits == FLOAT_BITS:
            train_float_longer(alone, model, data, out, name)
        if bits == FLOAT_BITS or trained(alone, model, data, out, name):
            net = load_supernet(out / name, "mixed")
            arch = net.space.largest()
            subnet = calibrated_subnet(net, arch, calibration)
            top1 = {
                k: ask(subnet, arch, eval_batches(data, getattr(data, s))).accuracy.top1
                for k, s in (("top1", "test"), ("validation", "validation"))
            }
            rows = [dict(kind=f"{bits} bits", arch=dict(net.space.brief(arch))) | top1]
        else:
            rows = [dict(kind="diverged", top1=None)]
        publish_rows(out / f"{name}.json", rows, data, alone, preset)


def train_float_longer(cfg: qfa.Config, model: MobileNetV3Config, data: Data, out: Path, name: str) -> None:
    """The largest architecture goes on in float, by the same steps and with the same teacher as at a bit-width."""
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "float.safetensors").exists():
        copy(out / f"float-{cfg.space}.safetensors", folder / "float.safetensors")
    calibration, before = cfg.calibration(data), "float"
    for stage in ("mixed-float", "mixed"):
        if not (folder / f"{stage}.safetensors").exists():
            supernet = load_supernet(folder, before)
            net = extract_subnet(supernet, supernet.space.largest())
            teacher = qfa.Teacher(load_supernet(folder, "float"), net.space.choices["resolution"], calibration)
            step = qfa.training_step(net, teacher, cfg, cfg.loss(data), is_last=False)
            train_supernet(net, step, cfg, data, folder, stage)
            save_supernet(folder, stage, net)
        before = stage


def publish_rows(path: Path, rows: list[dict], data: Data, cfg: qfa.Config, preset: str) -> None:
    """What was measured and on what."""
    about = dict(data=data.name, train=len(data.train), test=len(data.test), preset=preset, seed=cfg.seed)
    about |= dict(device=device_name(data.device), steps={s: cfg.schedule(s, data).steps for s in qfa.stages(cfg)})
    write_json(path, dict(about=about, rows=rows))


def summarise(out: Path, part: str, csv_path: Path | None) -> None:
    """Mean over architectures for each seed, then mean and standard deviation over seeds; spread over architectures."""
    names = list(VARIANTS[part]) + [f"dedicated-{bits}" for bits in (2, 3, 4, 8, FLOAT_BITS)] * (part == "uniform")
    table = []
    for name in names:
        groups: dict[str, dict[int, list[dict]]] = defaultdict(lambda: defaultdict(list))
        diverged = 0
        for path in sorted(out.glob(f"seed*/{name}.json")):
            found = read_json(path)
            for row in found["rows"]:
                if row["top1"] is None:
                    diverged += 1
                else:
                    groups[row["kind"]][found["about"]["seed"]].append(row)
        for kind, seeds in groups.items():
            row = dict(variant=name, subnets=kind)
            row |= over_seeds({seed: [r["top1"] for r in rows] for seed, rows in seeds.items()})
            spreads = [statistics.pstdev([100 * r["top1"] for r in rows]) for rows in seeds.values()]
            row["std_over_architectures"] = round(statistics.mean(spreads), 2)
            validation = over_seeds({seed: [r["validation"] for r in rows] for seed, rows in seeds.items()})
            table.append(row | dict(validation_percent=validation["top1_percent"], diverged=diverged))
        if diverged and not groups:
            table.append(dict(variant=name, subnets="none", diverged=diverged))
    publish(table, csv_path)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
