"""What else one could do than take subnets from a quantized supernet: the baselines all three papers argue against.

A deployment is a network for one budget of BitOPs, or of packed weights, at one bit-width. Ways to come to N of them:

supernet             OQAT: search the b-bit supernet for each budget; no training
nas-then-quantize    search the float supernet for each budget, fine-tune the winner alone at b bits from its weights;
                     only of runs whose float stage has trained subnets (`float_sandwich`)
search-then-retrain  search the b-bit supernet, train the winner alone from scratch, in float and then at b bits
uniform              no search: the hand-scaled network that fits, with one depth, kernel, ratio and resolution for all
                     blocks, trained from scratch likewise
hand-made            no search, no supernet: the widest ResNet-8 that fits (oncequant.hand_made), trained alone for an
                     N-th of the time that the supernets of the first way and their search took; a network that is the
                     widest for several budgets gets the time of all of them
hand-made-whole      one of them, the widest within the middle budget, trained for the whole of this time

Every way counts the images that its training has seen, once for each subnet of a step: supernets once, networks that
are trained alone each time. All come from one run of OQAT, whose supernets and measurements they share.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
from rich.table import Table

from oncequant import distributed
from oncequant.arch import Arch
from oncequant.cost import COSTS, Budget, Cost, bitops, find_cost, readable, weight_bytes
from oncequant.family import ElasticConfig
from oncequant.files import FileError, read_object, write_csv, write_json
from oncequant.hand_made import HandMade, hand_made, train_for
from oncequant.limits import check_ranges
from oncequant.measure import Judge
from oncequant.methods import oqat
from oncequant.models import extract_subnet
from oncequant.models.own_weights import copy_weights
from oncequant.network import Network
from oncequant.progress import console, track
from oncequant.records import Measurement, read_metrics
from oncequant.run_folder import Run
from oncequant.search.family import search_by_measuring
from oncequant.search.measurements import MeasurementFile
from oncequant.search.pareto import best_under, hypervolume
from oncequant.space import SearchSpace
from oncequant.supernet_file import load_supernet, save_supernet
from oncequant.train import TrainingOptions

Way = Literal["supernet", "nas-then-quantize", "search-then-retrain", "uniform", "hand-made", "hand-made-whole"]
FRONTS = ("bitops", "weight_bytes")


@dataclass(frozen=True)
class Deployment:
    """One network for one budget."""

    way: str
    budget: float
    """Of BitOPs, of bytes of packed weights, or of what a table measures."""
    bitops: float
    weight_bytes: float
    top1_validation: float
    top1_test: float
    images: int
    """Training images seen for this network alone."""
    seconds: float
    """Of training for this network alone."""
    arch: dict[str, int]
    """Choices, or the channels of the groups of a network that is made by hand."""


@dataclass(frozen=True)
class Effort:
    """What training took."""

    images: int = 0
    seconds: float = 0.0

    def __add__(self, other: "Effort") -> "Effort":
        return Effort(self.images + other.images, self.seconds + other.seconds)


@dataclass(frozen=True)
class CompareOptions:
    """Options of `oncequant compare`."""

    bits: int = 2
    """Bit-width of all networks, one that the run has trained."""
    deployments: int = 10
    """Budgets, spread over what the supernet reaches of the cost of the front."""
    ways: tuple[Way, ...] | None = None
    """Which of these to compare; default all that the run allows. Each of the hand-made ones takes as long as the run's
    own training."""
    evaluations: int | None = None
    """Subnets measured per supernet; default 60."""
    front: str = "bitops"
    """Cost of the budgets, along which subnets are searched and networks are scaled: bitops, weight_bytes, or a table
    of --costs, which has no layers of networks in float or made by hand."""

    def __post_init__(self) -> None:
        """Refuse impossible numbers before any work."""
        check_ranges(self, bits=(2, 8), deployments=(1, 1000), evaluations=(1, 1_000_000))


def compare(
    cfg: TrainingOptions,
    run: Run,
    bits: int,
    deployments: int,
    ways: Sequence[Way] | None = None,
    evaluations: int | None = None,
    front: str = "bitops",
) -> dict[str, Any]:
    """Make so many deployments at `bits` in every way, by default all that the run allows, for budgets evenly spaced in
    the log of the cost `front` (bitops, weight_bytes or a table), along which subnets are searched. Returns what it
    writes as `compare.json`: they, `totals`, `hypervolumes` and `differences`. `compare.csv` has the deployments, too.

    Needs the float and the b-bit supernet of a run. Networks trained alone are in its folder `compare`; what is there
    is not trained again. Raises FileError if the run has no such supernet, ValueError for impossible numbers.
    """
    if not isinstance(cfg, oqat.Config) or not isinstance(run.model, ElasticConfig):
        raise ValueError(f"{run.folder} is no run of OQAT, whose supernets are compared")
    if bits not in cfg.bit_schedule:
        raise ValueError(f"bits {bits}: {run.folder} holds bit-widths {', '.join(map(str, cfg.bit_schedule))}")
    costs = run.costs
    cost = find_cost(front, costs)
    if front not in FRONTS and not cost.partial:
        raise ValueError(f"front {front}: use {', '.join(FRONTS)}, or a table of --costs")
    ways = allowed_ways(cfg, cost) if ways is None else tuple(dict.fromkeys(ways))
    if deployments < 1 or not ways:
        raise ValueError("deployments is at least 1, ways at least one")
    if foreign := set(ways) - set(allowed_ways(cfg, cost)):
        if cost.partial:
            raise ValueError(f"{foreign.pop()}: the table of {cost} lacks layers of networks in float or made by hand")
        raise ValueError(f"{foreign.pop()} takes subnets of a float supernet: train the run with --float-sandwich")
    stage, run_dir, data = oqat.stage_name(bits), run.folder, run.data
    supernets = {name: load_supernet(run_dir, name, data.device) for name in ("float", stage)}
    shared = shared_effort(cfg, run_dir, bits)
    space, judge = supernets[stage].space, Judge(data, cfg.calibration(data))
    options = oqat.SearchOptions()
    how = options.searcher, evaluations or oqat.EVALUATIONS, options.budgets, front
    for name, supernet in supernets.items():
        if name == "float" and "nas-then-quantize" not in ways:
            continue
        memory = MeasurementFile(run_dir / "measurements.jsonl", name, supernet.space, costs)
        search_by_measuring(supernet, memory, *how, judge, cfg.seed)

    def read(name: str) -> list[Measurement]:
        """What was measured of a stage."""
        return MeasurementFile(run_dir / "measurements.jsonl", name, supernets[name].space, costs).read()

    found = {name: distributed.from_main(partial(read, name)) for name in supernets}
    spent = [m.costs[front] for m in found[stage]]
    budgets = [float(limit) for limit in np.geomspace(min(spent), max(spent), deployments + 1)[1:]]
    hand_scaled = uniform_archs(space, cost)
    made = [] if cost.partial else hand_made(run.model, bits, cost)
    by_hand = {limit: [one for one in made if one.cost(cost) <= limit][-1:] for limit in budgets}  # none or the widest
    counts = Counter(one[0].widths for one in by_hand.values() if one)
    parts = sum(counts.values())  # of the time; budgets for which no network is small enough get none
    if parts < deployments and any(way.startswith("hand-made") for way in ways):
        console.print(f"no network made by hand is small enough for {deployments - parts} of {deployments} budgets")

    def winner(way: str, budget: Budget) -> Arch:
        """The architecture of a deployment, in the b-bit space."""
        if way == "uniform":
            within = [arch for arch, spent in hand_scaled if spent <= budget.limit]  # the smallest of all is among them
            return within[-1]
        name = "float" if way == "nas-then-quantize" else stage
        return space.complete(best_under(found[name], [budget], space).arch)

    def network(way: str, arch: Arch) -> tuple[Network, Effort]:
        """The deployed network of an architecture, trained alone if need be, and what that took."""
        if way == "supernet":
            return supernets[stage], Effort()
        folder = run_dir / "compare" / way / hashlib.sha256(arch.to_json().encode()).hexdigest()[:12]
        distributed.from_main(lambda: folder.mkdir(parents=True, exist_ok=True))
        distributed.from_main(partial(copy_weights, run_dir, folder))
        only = {name: value for name, value in arch.items() if not name.endswith("_bits")}
        alone = replace(cfg, bit_schedule=(bits,), random_subnets=0)
        if way == "nas-then-quantize" and not distributed.from_main((folder / "float.safetensors").exists):
            in_float = supernets["float"].space.complete(only)
            distributed.from_main(lambda: save_supernet(folder, "float", extract_subnet(supernets["float"], in_float)))
        oqat.train(alone, replace(run, folder=folder), only)
        return load_supernet(folder, stage, data.device), sum(training_effort(folder).values(), Effort())

    def network_by_hand(one: HandMade, part: int) -> tuple[Network, Effort]:
        """A network made by hand, trained for so many of all `parts` of the time that our way took."""
        whole = shared["supernet"].seconds + search_seconds(judge, supernets[stage], len(found[stage]), run_dir / stage)
        seconds, name = whole * part / parts, "-".join(map(str, one.widths))
        folder = run_dir / "compare" / "hand-made" / f"{name}-{bits}bit-{seconds:.0f}s"
        distributed.from_main(lambda: folder.mkdir(parents=True, exist_ok=True))
        train_for(replace(cfg, bit_schedule=(bits,)), Run(folder, one.model, data), seconds)
        return load_supernet(folder, stage, data.device), sum(training_effort(folder).values(), Effort())

    rows: list[Deployment] = []
    with track("compare", len(ways) * deployments) as bar:
        for way, limit in product(ways, budgets):
            if not way.startswith("hand-made"):
                arch = winner(way, Budget(cost, limit))
                (net, effort), known = network(way, arch), dict(space.brief(arch))
            elif by_hand[limit] and (way == "hand-made" or limit == budgets[middle(deployments)]):
                one = by_hand[limit][0]
                net, effort = network_by_hand(one, counts[one.widths] if way == "hand-made" else parts)
                arch, known = one.arch, {f"stage{s}": width for s, width in enumerate(one.widths, start=1)}
            else:  # none fits
                continue
            validation, test = judge.validation(net, arch).top1, judge.test(net, arch).accuracy.top1
            specs = net.space.layers(arch)
            size = float(bitops(specs)), float(weight_bytes(specs))
            rows.append(Deployment(way, limit, *size, validation, test, effort.images, effort.seconds, known))
            bar(len(rows), {"top1": validation})
    about: dict[str, Any] = dict(
        bits=bits,
        front=front,
        totals=totals(rows, shared),
        hypervolumes=hypervolumes(rows),
        against_supernet=differences(rows),
        deployments=[asdict(row) for row in rows],
    )
    distributed.from_main(lambda: write_json(run_dir / "compare.json", about))
    distributed.from_main(lambda: write_csv(run_dir / "compare.csv", about["deployments"]))
    return about


def middle(count: int) -> int:
    """Index of the middle one of so many budgets."""
    return round((count - 1) / 2)


def search_seconds(judge: Judge, supernet: Network, measured: int, stage: Path) -> float:
    """About what a search of `stage` (RUN/4bit) took that measured so many subnets: as if each had been the largest.
    Timed once."""
    path = stage.parent / "compare" / f"search-{stage.name}-{measured}.json"
    if not distributed.from_main(path.exists):
        judge.validation(supernet, supernet.space.smallest())  # the first is slower
        start = time.monotonic()
        judge.validation(supernet, supernet.space.largest())
        seconds = measured * (time.monotonic() - start) / distributed.world_size()
        distributed.from_main(lambda: write_json(path, {"seconds": seconds}))
    return distributed.from_main(lambda: cast(float, read_object(path, "seconds")["seconds"]))


def hypervolumes(rows: Sequence[Deployment]) -> dict[str, dict[str, float]]:
    """By way and cost: the volume over test error and the cost that its networks dominate, as a share of the box from
    nothing to the worst of all ways. One network alone is no front, so `hand-made-whole` is left out."""
    rows = [row for row in rows if row.way != "hand-made-whole"]
    found: dict[str, dict[str, float]] = {way: {} for way in dict.fromkeys(row.way for row in rows)}
    for cost in ("bitops", "weight_bytes"):
        points = np.array([[getattr(row, cost), 1 - row.top1_test] for row in rows]).reshape(-1, 2)
        worst = np.maximum(points.max(axis=0, initial=0.0), 1e-9)
        for way, volumes in found.items():
            volumes[cost] = hypervolume(points[[row.way == way for row in rows]] / worst, (1.0, 1.0))
    return found


def differences(rows: Sequence[Deployment]) -> dict[str, dict[str, float]]:
    """By other way: at how many of its budgets the supernet's network is at least as accurate on the test images, and
    its mean lead there. Every way hands out the best that it has for a budget, see `handed_out`."""
    ours = {row.budget: row.top1_test for row in handed_out(rows, "supernet")}
    found = {}
    for way in dict.fromkeys(row.way for row in rows if ours and row.way != "supernet"):
        leads = [ours[row.budget] - row.top1_test for row in handed_out(rows, way)]
        at_least = sum(lead >= 0 for lead in leads)
        found[way] = dict(budgets=len(leads), at_least=at_least, mean_lead=float(np.mean(leads)))
    return found


def handed_out(rows: Sequence[Deployment], way: str) -> list[Deployment]:
    """The network of each budget, rising: the most accurate one on validation images of those that were made for it and
    for smaller ones. Who has made them all deploys that one."""
    found: list[Deployment] = []
    for row in sorted((row for row in rows if row.way == way), key=lambda row: row.budget):
        keeps = found and found[-1].top1_validation > row.top1_validation
        found.append(replace(found[-1], budget=row.budget) if keeps else row)
    return found


def allowed_ways(cfg: oqat.Config, cost: Cost = COSTS["bitops"]) -> tuple[Way, ...]:
    """The ways that a run with these options can be compared with, at budgets of a cost."""
    excluded: tuple[str, ...] = () if cfg.float_sandwich else ("nas-then-quantize",)
    if cost.partial:  # a table of the layers of the run's low-bit supernets
        excluded = ("nas-then-quantize", "hand-made", "hand-made-whole")
    return tuple(way for way in get_args(Way) if way not in excluded)


def totals(rows: Sequence[Deployment], shared: Mapping[str, Effort]) -> list[dict[str, Any]]:
    """For 1, 10, 40 deployments, as far as there are so many: mean accuracy of what is handed out (`handed_out`), and
    what training took in all.

    One deployment is that of the middle budget, ten are spread evenly. An architecture that wins under several budgets
    is trained once. Networks made by hand are counted all together, since each has its share of one time. `shared` is
    what the supernets took that a way needs.
    """
    table = []
    for way in dict.fromkeys(row.way for row in rows):
        own = [row for row in rows if row.way == way]
        fewer = set() if way.startswith("hand-made") else {n for n in (1, 10, 40) if n <= len(own)}
        for count in sorted(fewer | {len(own)}):
            places = [middle(len(own))] if count == 1 else np.linspace(0, len(own) - 1, count).round().astype(int)
            some = [own[place] for place in places]
            alone = {tuple(row.arch.items()): Effort(row.images, row.seconds) for row in some}
            whole = sum(alone.values(), shared[way])
            entry = dict(way=way, deployments=count, **asdict(whole), networks=len(alone))
            deployed = handed_out(some, way)
            for key in ("top1_validation", "top1_test", "bitops"):
                mean = float(np.mean([getattr(row, key) for row in deployed]))
                entry["mean_bitops" if key == "bitops" else key] = mean
            table.append(entry)
    return table


def shared_effort(cfg: oqat.Config, run_dir: Path, bits: int) -> dict[str, Effort]:
    """What the supernets took that each way starts from. Raises FileError if one was trained elsewhere."""
    needed = ["float", *(oqat.stage_name(b) for b in cfg.bit_schedule if b >= bits)]
    effort = training_effort(run_dir, needed)
    every = sum((effort[stage] for stage in needed), Effort())
    starts = {"supernet": every, "nas-then-quantize": effort["float"], "search-then-retrain": every}
    return {way: starts.get(way, Effort()) for way in get_args(Way)}


def training_effort(run_dir: Path, needed: Sequence[str] = ()) -> dict[str, Effort]:
    """By stage, the images that training has seen, once for each subnet of a step, and its seconds with validation.
    Raises FileError, also if one of the stages `needed` was trained elsewhere."""
    last = {row.stage: row for row in read_metrics(run_dir)}
    if not last or any("images" not in row.values for row in last.values()):
        raise FileError(f"{run_dir / 'metrics.jsonl'} does not count training images: a run of an older version?")
    if missing := [stage for stage in needed if stage not in last]:
        raise FileError(
            f"{run_dir / 'metrics.jsonl'} does not say how {', '.join(missing)} was trained: taken over from another "
            "run? compare counts training images, so it needs a run that has trained every stage itself"
        )
    if untimed := [stage for stage, row in last.items() if row.time_s is None]:
        raise FileError(f"{run_dir / 'times.jsonl'} does not say how long {', '.join(untimed)} was trained")
    return {stage: Effort(int(row.values["images"]), row.time_s or 0.0) for stage, row in last.items()}


def uniform_archs(space: SearchSpace, cost: Cost) -> list[tuple[Arch, float]]:
    """Architectures whose blocks are all alike, with what they cost, cheapest first."""
    kinds: dict[str, list[str]] = {}
    for name in space.free:
        kinds.setdefault(name.rpartition(".")[2], []).append(name)
    archs = []
    for values in product(*(sorted({v for name in names for v in space.choices[name]}) for names in kinds.values())):
        chosen = {name: value for value, names in zip(values, kinds.values()) for name in names}
        if all(value in space.choices[name] for name, value in chosen.items()):
            archs.append(space.smallest().replace(**chosen))
    costs = [float(cost(space.layers(arch))) for arch in archs]
    return sorted(zip(archs, costs), key=lambda pair: pair[1])


def totals_table(rows: Sequence[Mapping[str, Any]], bits: int) -> Table:
    """What `totals` found, for people."""
    table = Table(
        "way", "deployments", "training images", "seconds", "networks", "validation %", "test %", "BitOPs",
        title=f"Networks of {bits} bits at equal budgets: means over deployments",
    )  # fmt: skip
    for row in rows:
        means = [f"{100 * row[key]:.2f}" for key in ("top1_validation", "top1_test")]
        counts = str(row["deployments"]), readable(row["images"]), f"{row['seconds']:.0f}", str(row["networks"])
        table.add_row(row["way"], *counts, *means, readable(row["mean_bitops"]))
    return table


def fronts_table(found: Mapping[str, Any]) -> Table:
    """What `hypervolumes` and `differences` found, for people."""
    table = Table(
        "way", "hypervolume over BitOPs", "over packed weights", "supernet at least as accurate", "its mean lead",
        title="Fronts on the test images: error and cost, as a share of the box up to the worst",
    )  # fmt: skip
    for way in dict.fromkeys([*found["hypervolumes"], *found["against_supernet"]]):
        volumes, against = found["hypervolumes"].get(way), found["against_supernet"].get(way)
        shares = [f"{volumes[cost]:.3f}" for cost in ("bitops", "weight_bytes")] if volumes else ["", ""]
        lead = []
        if against:
            lead = [f"{against['at_least']} of {against['budgets']}", f"{100 * against['mean_lead']:+.2f}"]
        table.add_row(way, *shares, *lead)
    return table
