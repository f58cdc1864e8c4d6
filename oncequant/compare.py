"""What else one could do than take subnets from a quantized supernet: the baselines all three papers argue against.

A deployment is a network for one budget of BitOPs at one bit-width. Four ways to come to N of them:

supernet             OQAT: search the b-bit supernet for each budget; no training
nas-then-quantize    search the float supernet for each budget, fine-tune the winner alone at b bits from its weights;
                     only of runs whose float stage has trained subnets (`float_sandwich`)
search-then-retrain  search the b-bit supernet, train the winner alone from scratch, in float and then at b bits
uniform              no search: the hand-scaled network that fits, with one depth, kernel, ratio and resolution for all
                     blocks, trained from scratch likewise

Every way counts the images that its training has seen, once for each subnet of a step: supernets once, networks that
are trained alone each time. All come from one run of OQAT, whose supernets and measurements they share.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from rich.table import Table

from oncequant import distributed
from oncequant.arch import Arch
from oncequant.cost import COSTS, Budget, bitops, readable
from oncequant.files import FileError, write_csv, write_json
from oncequant.measure import Judge
from oncequant.methods import oqat
from oncequant.models import extract_subnet
from oncequant.network import Network
from oncequant.progress import track
from oncequant.records import Measurement, Metrics, read_records
from oncequant.run_folder import Run
from oncequant.search.family import search_by_measuring
from oncequant.search.measurements import MeasurementFile
from oncequant.search.pareto import best_under
from oncequant.space import SearchSpace
from oncequant.supernet_file import load_supernet, save_supernet
from oncequant.train import TrainingOptions

Way = Literal["supernet", "nas-then-quantize", "search-then-retrain", "uniform"]


@dataclass(frozen=True)
class Deployment:
    """One network for one budget."""

    way: str
    budget: float
    """BitOPs."""
    bitops: float
    top1_validation: float
    top1_test: float
    images: int
    """Training images seen for this network alone."""
    arch: dict[str, int]


def compare(
    cfg: TrainingOptions,
    run: Run,
    bits: int,
    deployments: int,
    ways: Sequence[Way] | None = None,
    evaluations: int | None = None,
) -> tuple[list[Deployment], list[dict[str, Any]]]:
    """Make so many deployments at `bits` in every way, by default all that the run allows, for budgets evenly spaced in
    log BitOPs; and `totals`. Writes `compare.json`, and the deployments as `compare.csv`.

    Needs the float and the b-bit supernet of a run. Networks trained alone are in its folder `compare`; what is there
    is not trained again. Raises FileError if the run has no such supernet, ValueError for impossible numbers.
    """
    if not isinstance(cfg, oqat.Config):
        raise ValueError(f"{run.folder} is no run of OQAT, whose supernets are compared")
    if bits not in cfg.bit_schedule:
        raise ValueError(f"bits {bits}: {run.folder} holds bit-widths {', '.join(map(str, cfg.bit_schedule))}")
    ways = allowed_ways(cfg) if ways is None else tuple(dict.fromkeys(ways))
    if deployments < 1 or not ways:
        raise ValueError("deployments is at least 1, ways at least one")
    if foreign := set(ways) - set(allowed_ways(cfg)):
        raise ValueError(f"{foreign.pop()} takes subnets of a float supernet: train the run with --float-sandwich")
    stage, run_dir, data = oqat.stage_name(bits), run.folder, run.data
    supernets = {name: load_supernet(run_dir, name, data.device) for name in ("float", stage)}
    shared = shared_images(cfg, run_dir, bits)
    space, judge = supernets[stage].space, Judge(data, cfg.calibration(data))
    options = oqat.SearchOptions(evaluations=evaluations or oqat.SearchOptions.evaluations)
    how = options.searcher, options.evaluations, options.budgets, options.front
    for name, supernet in supernets.items():
        if name == "float" and "nas-then-quantize" not in ways:
            continue
        memory = MeasurementFile(run_dir / "measurements.jsonl", name)
        search_by_measuring(supernet, memory, *how, judge, cfg.seed)
    measured = distributed.from_main(lambda: read_records(run_dir / "measurements.jsonl", Measurement))
    found = {name: [m for m in measured if m.stage == name] for name in supernets}
    costs = [m.costs["bitops"] for m in found[stage]]
    budgets = np.geomspace(min(costs), max(costs), deployments + 1)[1:]
    hand_scaled = uniform_archs(space)

    def winner(way: str, budget: Budget) -> Arch:
        """The architecture of a deployment, in the b-bit space."""
        if way == "uniform":
            return [arch for arch, cost in hand_scaled if cost <= budget.limit][-1]  # the smallest of all is among them
        name = "float" if way == "nas-then-quantize" else stage
        return space.complete(best_under(found[name], [budget], space).arch)

    def network(way: str, arch: Arch) -> tuple[Network, int]:
        """The deployed network of an architecture, trained alone if need be, and the images that took."""
        if way == "supernet":
            return supernets[stage], 0
        folder = run_dir / "compare" / way / hashlib.sha256(arch.to_json().encode()).hexdigest()[:12]
        distributed.from_main(lambda: folder.mkdir(parents=True, exist_ok=True))
        only = {name: value for name, value in arch.items() if not name.endswith("_bits")}
        alone = replace(cfg, bit_schedule=(bits,), random_subnets=0)
        if way == "nas-then-quantize" and not distributed.from_main((folder / "float.safetensors").exists):
            in_float = supernets["float"].space.complete(only)
            distributed.from_main(lambda: save_supernet(folder, "float", extract_subnet(supernets["float"], in_float)))
        oqat.train(alone, replace(run, folder=folder), only)
        return load_supernet(folder, stage, data.device), sum(training_images(folder).values())

    rows: list[Deployment] = []
    with track("compare", len(ways) * deployments) as bar:
        for way, limit in product(ways, budgets):
            budget = Budget(COSTS["bitops"], float(limit))
            arch = winner(way, budget)
            net, images = network(way, arch)
            validation, test = judge.validation(net, arch), judge.test(net, arch)
            cost = float(bitops(space.layers(arch)))
            rows.append(Deployment(way, float(limit), cost, validation, test, images, dict(space.brief(arch))))
            bar(len(rows), {"top1": validation})
    about: dict[str, Any] = dict(bits=bits, totals=totals(rows, shared), deployments=[asdict(row) for row in rows])
    distributed.from_main(lambda: write_json(run_dir / "compare.json", about))
    distributed.from_main(lambda: write_csv(run_dir / "compare.csv", about["deployments"]))
    return rows, about["totals"]


def allowed_ways(cfg: oqat.Config) -> tuple[Way, ...]:
    """The ways that a run with these options can be compared with."""
    return tuple(way for way in get_args(Way) if way != "nas-then-quantize" or cfg.float_sandwich)


def totals(rows: Sequence[Deployment], shared: Mapping[str, int]) -> list[dict[str, Any]]:
    """For 1, 10, 40 deployments, as far as there are so many: mean accuracy, and images that training has seen in all.

    One deployment is that of the middle budget, ten are spread evenly. An architecture that wins under several budgets
    is trained once. `shared` are the images of the supernets that a way needs.
    """
    table = []
    for way in dict.fromkeys(row.way for row in rows):
        own = [row for row in rows if row.way == way]
        for count in sorted({n for n in (1, 10, 40) if n <= len(own)} | {len(own)}):
            places = (
                np.linspace(0, len(own) - 1, count + 2)[1:-1] if count == 1 else np.linspace(0, len(own) - 1, count)
            )
            some = [own[round(place)] for place in places]
            alone = {tuple(row.arch.items()): row.images for row in some}
            entry = dict(way=way, deployments=count, images=shared[way] + sum(alone.values()), networks=len(alone))
            for key in ("top1_validation", "top1_test", "bitops"):
                entry["mean_bitops" if key == "bitops" else key] = float(np.mean([getattr(row, key) for row in some]))
            table.append(entry)
    return table


def shared_images(cfg: oqat.Config, run_dir: Path, bits: int) -> dict[str, int]:
    """Images seen by the supernets that each way starts from. Raises FileError if one was trained elsewhere."""
    images = training_images(run_dir)
    needed = ["float", *(oqat.stage_name(b) for b in cfg.bit_schedule if b >= bits)]
    if missing := [stage for stage in needed if stage not in images]:
        raise FileError(
            f"{run_dir / 'metrics.jsonl'} does not say how {', '.join(missing)} was trained: taken over from another "
            "run? compare counts training images, so it needs a run that has trained every stage itself"
        )
    every = sum(images[stage] for stage in needed)
    return {
        "supernet": every,
        "nas-then-quantize": images["float"],
        "search-then-retrain": every,
        "uniform": 0,
    }


def training_images(run_dir: Path) -> dict[str, int]:
    """By stage, the images that training has seen, once for each subnet of a step. Raises FileError."""
    last = {row.stage: row.values for row in read_records(run_dir / "metrics.jsonl", Metrics)}
    if not last or any("images" not in values for values in last.values()):
        raise FileError(f"{run_dir / 'metrics.jsonl'} does not count training images: a run of an older version?")
    return {stage: int(values["images"]) for stage, values in last.items()}


def uniform_archs(space: SearchSpace) -> list[tuple[Arch, float]]:
    """Architectures whose blocks are all alike, with their BitOPs, cheapest first."""
    kinds: dict[str, list[str]] = {}
    for name in space.free:
        kinds.setdefault(name.rpartition(".")[2], []).append(name)
    archs = []
    for values in product(*(sorted({v for name in names for v in space.choices[name]}) for names in kinds.values())):
        chosen = {name: value for value, names in zip(values, kinds.values()) for name in names}
        if all(value in space.choices[name] for name, value in chosen.items()):
            archs.append(space.smallest().replace(**chosen))
    costs = [float(bitops(space.layers(arch))) for arch in archs]
    return sorted(zip(archs, costs), key=lambda pair: pair[1])


def totals_table(rows: Sequence[Mapping[str, Any]], bits: int) -> Table:
    """What `totals` found, for people."""
    table = Table(
        "way", "deployments", "training images", "networks", "validation %", "test %", "BitOPs",
        title=f"Networks of {bits} bits at equal budgets: means over deployments",
    )  # fmt: skip
    for row in rows:
        means = [f"{100 * row[key]:.2f}" for key in ("top1_validation", "top1_test")]
        counts = str(row["deployments"]), readable(row["images"]), str(row["networks"])
        table.add_row(row["way"], *counts, *means, readable(row["mean_bitops"]))
    return table
