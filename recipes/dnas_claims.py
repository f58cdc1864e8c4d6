"""DNAS (claim C7) beside uniform bit-widths and random architectures of equal cost, one seed; a table of all seeds.

    python recipes/dnas_claims.py --data PATH --out runs/dnas-claims --seed 0 [training options] [--cost bitops]
    python recipes/dnas_claims.py --out runs/dnas-claims --summarise results/NAME.csv [--picture docs/NAME.png]

float    the network in float
MA, ME   the most accurate and the most efficient of DNAS's samples, chosen on the validation split
sample   every sample; these are in NAME-networks.csv, which has every network of every seed, and in the picture alone
uniform  one precision for all blocks, with LSQ, trained as long; at MA's or ME's cost: between the two nearest of them,
         linear in the logarithm of the cost
random   drawn uniformly among the architectures that cost within 3 percent what MA or ME does, trained as long

Everything trains from scratch for as many steps as the float network. Training images are counted, for MA and ME those
of the search and of all samples. The test split chooses nothing. Resumes.
"""

import statistics
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from tables import over_seeds, publish

from oncequant.arch import pair as precision
from oncequant.compare import training_effort
from oncequant.cost import COSTS
from oncequant.data import Data, eval_batches
from oncequant.files import read_json, write_csv, write_json
from oncequant.from_scratch import train_alone
from oncequant.measure import measure
from oncequant.methods import dnas
from oncequant.models import space_of
from oncequant.models.resnet import PRESETS, ResNetConfig
from oncequant.records import Sample, read_records
from oncequant.run_folder import Run, RunSettings, device_name
from oncequant.search.budget import cost_batch
from oncequant.search.pareto import pareto_front
from oncequant.supernet_file import load_supernet

UNIFORM = {"weight_bytes": [(1, 32), (2, 32), (3, 32), (4, 32)], "bitops": [(2, 2), (3, 3), (4, 4), (8, 8)]}


@dataclass(frozen=True)
class Options:
    """One seed of the experiment; the seed is --seed."""

    out: Path
    data: str = "digits"
    preset: str = "resnet20"
    resolution: int = 32
    edge_bits: int = 32
    """First convolution and classifier, float as in the paper."""
    max_train: int | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    training: Annotated[dnas.Config, tyro.conf.arg(name="")] = field(default_factory=dnas.Config)
    summarise: Path | None = None
    """Only write this CSV, and that of all networks, from the seeds found in `out`."""
    picture: Path | None = None
    """With `summarise`: draw accuracy against the cost that was searched."""


def main(options: Options) -> None:
    """Run one seed, or summarise."""
    if options.summarise:
        return summarise(options.out, options.summarise, options.picture)
    cfg = options.training
    model = replace(PRESETS[options.preset], resolutions=(options.resolution,), edge_bits=options.edge_bits)
    settings = RunSettings(
        options.data, options.preset, model, "dnas", {}, cfg.seed, 0.15, 0.2, None, options.max_train
    )
    data = settings.load_data(options.device)
    model = replace(model, num_classes=len(data.classes), image_channels=data.channels)
    out = options.out / f"seed{cfg.seed}"
    out.mkdir(parents=True, exist_ok=True)
    dnas.train(cfg, Run(out, model, data))
    family = {member.name: member for member in dnas.choose(cfg, dnas.SearchOptions(), Run(out, model, data))}
    rows = [row(name, data, cfg, out, member.stage) for name, member in family.items()]
    samples = [row("sample", data, cfg, out, sample.stage) for sample in read_records(out / "samples.json", Sample)]
    searched = training_effort(out)["search"].images + sum(one["images"] for one in samples)
    rows = [one if one["name"] == "float" else one | dict(images=searched) for one in rows] + samples
    for pair in UNIFORM[cfg.cost]:
        lsq = replace(cfg, weight_quantizer="lsq", act_quantizer="lsq", precisions=(precision(*pair),))
        config = lsq.supernet_model(model)
        rows.append(trained(f"uniform-{pair[0]}", lsq, config, space_of(config), data, out))
    config = cfg.supernet_model(model)
    for draw, name in enumerate(("MA", "ME")):
        arch = of_equal_cost(config, cfg, family[name].costs[cfg.cost], draw)
        rows.append(trained(f"random-{name}", cfg, config, space_of(config).restrict(arch), data, out))
    about = dict(data=data.name, train=len(data.train), test=len(data.test), preset=options.preset, seed=cfg.seed)
    about |= dict(resolution=options.resolution, device=device_name(data.device), cost=cfg.cost)
    about |= dict(steps={stage: cfg.schedule(stage, data).steps for stage in ("float", "search")})
    write_json(out / "rows.json", dict(about=about, rows=rows))
    summarise(options.out)


def trained(name: str, cfg: dnas.Config, config: ResNetConfig, space, data: Data, out: Path) -> dict:
    """Train one network from scratch unless that is done, and measure it."""
    job = dnas.job(cfg, config, space, Run(out, config, data), name)
    if not job.is_done():
        train_alone(job, data)
    return row(name, data, cfg, out, name)


def row(name: str, data: Data, cfg: dnas.Config, out: Path, stage: str) -> dict:
    """What a trained network reaches and costs."""
    net = load_supernet(out, stage, data.device)
    arch, calibration = net.space.largest(), cfg.calibration(data)
    top1 = {
        key: measure(net, arch, calibration, eval_batches(data, split)).accuracy.top1
        for key, split in (("top1", data.test), ("validation", data.validation))
    }
    costs = {cost: float(COSTS[cost](net.space.layers(arch))) for cost in ("weight_bytes", "bitops")}
    seen = training_effort((out / stage).parent)[Path(stage).name].images
    return dict(name=name, arch=dict(arch), images=seen) | top1 | costs


def of_equal_cost(config: ResNetConfig, cfg: dnas.Config, cost: float, draw: int) -> dict[str, int]:
    """A uniform draw among the architectures within 3 percent of a cost."""
    space, rng = space_of(config), np.random.default_rng([cfg.seed, 2, draw])
    for _ in range(1000):
        codes = space.sample_codes(rng, 4096)
        near = codes[np.abs(cost_batch(space, cfg.cost, codes) / cost - 1) < 0.03]
        if len(near):
            return space.decode(near[0])
    raise SystemExit(f"no architecture of {cfg.cost} {cost:g} in 4 million draws")


def summarise(out: Path, csv_path: Path | None = None, picture: Path | None = None) -> None:
    """Mean and standard deviation over seeds; costs as factors below the float network of the seed."""
    groups: dict[str, dict[int, dict]] = defaultdict(dict)
    networks = []
    for path in sorted(out.glob("seed*/rows.json")):
        found = read_json(path)
        seed, floats = found["about"]["seed"], next(r for r in found["rows"] if r["name"] == "float")
        for one in found["rows"]:
            factors = {c: floats[c] / one[c] for c in ("weight_bytes", "bitops")}
            networks.append(dict(network=one["name"], seed=seed, cost=found["about"]["cost"]) | one)
            if one["name"] != "sample":
                groups[one["name"]][seed] = one | dict(factors=factors, loss=floats["top1"] - one["top1"])
    for name in ("MA", "ME"):
        between = {seed: uniform_at(found, networks, seed) for seed, found in groups[name].items()}
        if all(between.values()):
            groups[f"uniform at {name}'s cost"] = between
    table = []
    for name, seeds in groups.items():
        entry = dict(network=name) | over_seeds({seed: [r["top1"]] for seed, r in seeds.items()})
        entry["points_below_float"] = round(100 * statistics.mean(r["loss"] for r in seeds.values()), 2)
        for cost, label in (("weight_bytes", "times_smaller"), ("bitops", "times_fewer_bitops")):
            entry[label] = round(statistics.mean(r["factors"][cost] for r in seeds.values()), 2)
            entry[cost] = round(statistics.mean(r[cost] for r in seeds.values()))
        if all("images" in r for r in seeds.values()):
            entry["million_training_images"] = round(statistics.mean(r["images"] for r in seeds.values()) / 1e6, 3)
        validation = over_seeds({seed: [r["validation"]] for seed, r in seeds.items()})
        table.append(entry | dict(validation_percent=validation["top1_percent"]))
    publish(table, csv_path)
    if csv_path:
        columns = ("network", "seed", "top1", "validation", "weight_bytes", "bitops", "arch")
        each = [{name: one[name] for name in columns} for one in networks]
        write_csv(csv_path.with_name(f"{csv_path.stem}-networks.csv"), each)
    if picture:
        draw(networks, picture)


def uniform_at(chosen: dict, networks: list[dict], seed: int) -> dict | None:
    """`chosen` with the accuracies that uniform networks of its seed would have at its cost; None outside of them."""
    own = [one for one in networks if one["seed"] == seed and one["network"].startswith("uniform")]
    cost = own[0]["cost"]
    own.sort(key=lambda one: one[cost])
    if not own[0][cost] <= chosen[cost] <= own[-1][cost]:
        return None
    where = np.log(chosen[cost]), np.log([one[cost] for one in own])
    between = {key: float(np.interp(*where, [one[key] for one in own])) for key in ("top1", "validation")}
    return (
        {k: v for k, v in chosen.items() if k != "images"}
        | between
        | dict(loss=chosen["loss"] + chosen["top1"] - between["top1"])
    )


def draw(networks: list[dict], path: Path) -> None:
    """Test accuracy against cost of every network but the float ones; a line through the most accurate of DNAS's."""
    from matplotlib.figure import Figure

    cost = networks[0]["cost"]
    label, unit = {"weight_bytes": ("kB of weights", 1e3), "bitops": ("million BitOPs", 1e6)}[cost]
    figure = Figure((7, 4.4), dpi=150, layout="constrained")
    axes = figure.subplots()
    kinds = {"sample": "DNAS, samples", "uniform": "uniform, LSQ", "random": "random, of the cost of MA or ME"}
    for (kind, text), mark in zip(kinds.items(), "os^"):
        own = [one for one in networks if one["network"].split("-")[0] == kind]
        axes.scatter([one[cost] / unit for one in own], [100 * one["top1"] for one in own], label=text, marker=mark)
    own = [one for one in networks if one["network"] == "sample"]
    front = [own[i] for i in pareto_front(np.array([[one[cost], 1 - one["top1"]] for one in own]))]
    axes.plot([one[cost] / unit for one in front], [100 * one["top1"] for one in front], linewidth=1)
    floats = [100 * one["top1"] for one in networks if one["network"] == "float"]
    axes.axhline(statistics.mean(floats), color="grey", linestyle=":", label="float, mean")
    axes.set(xscale="log", xlabel=label, ylabel="test top-1 (%)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6")
    axes.legend(frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
