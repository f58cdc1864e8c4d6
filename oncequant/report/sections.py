"""What the page and the pictures draw: fronts, layer tables, axes, curves, bit-widths, the sharpening distribution.

All of it is plain data. The page's scripts and `pictures.py` only draw the numbers.
"""

import math
import re
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from oncequant.arch import FLOAT_BITS, LayerSpec
from oncequant.cost import layer_macs, weight_bytes
from oncequant.export.format import Row
from oncequant.export.formats import tables_by_format
from oncequant.records import Distribution, Measurement, Member, Metrics
from oncequant.report.advice import advice, validation_interval
from oncequant.report.contents import Contents, ReportError
from oncequant.report.mistakes import answers_data
from oncequant.search.pareto import hypervolume, pareto_front
from oncequant.space import SearchSpace

# stage -> colour on light, colour on dark, marker (as matplotlib names it). Paul Tol's "high contrast" colours can be
# told apart by colour-blind readers and in grey. Stages not named here (mixed precision) take the spare ones.
STYLES = {
    "float": ("#555555", "#bbbbbb", "D"),
    "8bit": ("#117755", "#66cc99", "X"),
    "4bit": ("#004488", "#77aaff", "o"),
    "3bit": ("#c08400", "#eebb44", "s"),
    "2bit": ("#bb5566", "#ff8899", "^"),
}
SPARE_STYLES = (("#663399", "#bb99ee", "v"), ("#117788", "#55ccdd", "P"), ("#7a5c00", "#d8c060", "X"))
LOSS_POINTS = 300  # per stage; longer curves are averaged in bins


def page_data(run: Contents) -> dict[str, Any]:
    """Everything that the page's script reads; lists are referred to by index to keep the page small."""
    stages, costs = stage_names(run), [cost.name for cost in run.costs]
    records: list[Measurement | Member] = [*run.measurements, *run.family]
    rows, tables = layer_tables(run, records)
    choices = list(dict.fromkeys(name for record in records for name in record.arch))
    items: list[dict[str, Any]] = [
        {
            "stage": stages.index(series(record.stage)),
            "top1": record.top1 if isinstance(record, Measurement) else record.top1_validation,
            "interval": validation_interval(
                run, record.top1 if isinstance(record, Measurement) else record.top1_validation
            ),
            "costs": [record.costs.get(cost) for cost in costs],
            "arch": [record.arch.get(name) for name in choices],
            "layers": table,
        }
        for record, table in zip(records, tables)
    ]
    points = [item | {"searcher": record.searcher} for item, record in zip(items, run.measurements)]
    chosen = zip(items[len(points) :], run.family)
    more = ["top1_test", "top1_predicted", "top1_before_folding", "metric"]
    more += ["balanced_test", "balanced_validation", "balanced_predicted"]
    family = [item | {"name": m.name} | {k.removeprefix("top1_"): getattr(m, k) for k in more} for item, m in chosen]
    fronts = [[_front(points, stage, cost) for stage in range(len(stages))] for cost in range(len(costs))]
    on_fronts = [points[i]["top1"] for by_stage in fronts for front in by_stage for i in front]
    data = {
        "run": run.info,
        "stages": stage_styles(stages),
        "costs": [cost.title for cost in run.costs],
        "cost": costs.index("weight_bytes"),  # of the picture, and of the page when it opens
        "choices": choices,
        "rows": rows,
        "points": points,
        "fronts": fronts,  # [cost][stage] -> indices of points, by rising cost
        "family": family,
        "advice": advice(run, costs),
        "answers": answers_data(run),
        "exports": exports_data([one.name for one in run.exports], [one.found for one in run.exports]),
        "searchers": compare_searchers(run),
        "curves": training_curves(run),
        "top1_axis": top1_axis(on_fronts + [f["top1"] for f in family]),
    }
    by_role = bits_by_role(data, costs.index("bitops"))
    distribution = sharpening(run.distribution, run.drawn_from)
    data |= {"bits_by_role": by_role, "distribution": distribution}
    return data | {"predictions": run.predictions, "comparison": run.comparison}


def exports_data(names: Sequence[str], found: Sequence[Row]) -> dict[str, Any]:
    """Names of exported networks, and tables of what was `found` of their files, by format."""
    tables = [table._asdict() | {"format": title} for title, table in tables_by_format(found).items()]
    return {"names": list(names), "tables": tables}


def stage_names(run: Contents) -> list[str]:
    """Names of the stages: float, then falling bits, then others as they come."""
    known = list(STYLES)
    records: list[Metrics | Measurement | Member] = [*run.metrics, *run.measurements, *run.family]
    names = dict.fromkeys(series(record.stage) for record in records)
    return sorted(names, key=lambda name: known.index(name) if name in known else len(known))


def series(stage: str) -> str:
    """The stages that are drawn as one: networks that were trained one by one have `SERIES/NAME`."""
    return stage.partition("/")[0]


def stage_styles(stages: list[str]) -> list[dict[str, str]]:
    """Name, label, colours and marker of every stage."""
    spare = iter(SPARE_STYLES * len(stages))
    styles = [STYLES[stage] if stage in STYLES else next(spare) for stage in stages]
    labels = [re.sub(r"(\d+)bit", r"\1 bit", stage) for stage in stages]
    keys = ("name", "label", "light", "dark", "marker")
    return [dict(zip(keys, (stage, label, *style))) for stage, label, style in zip(stages, labels, styles)]


def _front(points: list[dict], stage: int, cost: int) -> list[int]:
    own = [i for i, point in enumerate(points) if point["stage"] == stage and point["costs"][cost] is not None]
    values = np.array([(points[i]["costs"][cost], 1 - points[i]["top1"]) for i in own]).reshape(-1, 2)
    return [own[k] for k in pareto_front(values)]


def layer_tables(run: Contents, records: Sequence[Measurement | Member]) -> tuple[list[tuple], list[list[int]]]:
    """(different layer rows, per record the indices of its rows): most rows are shared by many architectures."""
    rows: dict[tuple, int] = {}

    def row_of(name: str, s: LayerSpec) -> tuple:
        shape = (name, s.role, s.in_channels, s.out_channels, s.kernel_size, s.stride, s.out_size)
        return (*shape, s.weight_bits, s.act_bits, layer_macs(s), weight_bytes({name: s}))

    tables = []
    for record in records:
        space = run.spaces[record.stage]
        try:
            specs = space.layers(space.complete(record.arch))
        except ValueError as error:
            raise ReportError(f"{run.folder}: invalid architecture of stage {record.stage}: {error}") from error
        present = [row_of(name, spec) for name, spec in specs.items() if spec.present]
        tables.append([rows.setdefault(row, len(rows)) for row in present])
    return list(rows), tables


def compare_searchers(run: Contents) -> list[dict]:
    """Where a stage has several searchers: measurements, best top-1, hypervolume of each one's points for every cost.

    Hypervolume is over log cost and top-1, as a share of the box between the best and the worst values that any
    searcher of the stage measured, so that all have the same reference.
    """
    rows, costs = [], [cost.name for cost in run.costs]
    for index, stage in enumerate(stage_names(run)):
        here = [m for m in run.measurements if m.stage == stage]
        names = list(dict.fromkeys(m.searcher for m in here))
        values = np.array([[*np.log([m.costs.get(c, np.nan) for c in costs]), 1 - m.top1] for m in here])
        for name in names if len(names) > 1 else ():
            low, extent = values.min(axis=0), np.ptp(values, axis=0)
            own = (values[[m.searcher == name for m in here]] - low) / np.where(extent > 0, extent, 1)
            known = ~np.isnan(own).any(axis=0)  # float networks have no cost of a table
            shares = [hypervolume(own[:, [k, -1]], (1, 1)) if known[k] else None for k in range(len(costs))]
            best = max(m.top1 for m in here if m.searcher == name)
            rows.append({"stage": index, "searcher": name, "measured": len(own), "best": best, "shares": shares})
    return rows


def training_curves(run: Contents) -> list[dict]:
    """Per stage the curves of metrics.jsonl; steps go on from stage to stage, long loss curves are averaged in bins."""
    curves, start = [], 0
    for index, stage in enumerate(stage_names(run)):
        by_step = {m.step: m for m in run.metrics if m.stage == stage}
        lines = [by_step[step] for step in sorted(by_step)]
        losses = [(start + m.step, m.values["loss"]) for m in lines if "loss" in m.values]
        size = math.ceil(len(losses) / LOSS_POINTS) or 1
        curve = {"loss": [np.mean(losses[i : i + size], axis=0).tolist() for i in range(0, len(losses), size)]}
        for net in ("largest", "smallest"):
            # a network alone has one top-1; of a distribution the likeliest network has one
            keys = (f"top1_{net}", *(("top1", "top1_likely") if net == "largest" else ()))
            curve[net] = [(start + m.step, m.values[key]) for m in lines for key in keys if key in m.values]
        if lines:
            curves.append({"stage": index, **curve})
            start += lines[-1].steps
    return curves


def stretch(top1: float) -> float:
    """Height of a top-1: minus the square root of the error, so that 98 and 99 % stay apart beside 80 %."""
    return -math.sqrt(max(0.0, 1 - top1))


def top1_axis(values: Sequence[float]) -> dict[str, Any]:
    """Range of the stretched axis around `values` and its ticks: tens of percent first, finer where there is room."""
    low, high = stretch(min(values, default=0)), stretch(max(values, default=1))
    margin = 0.06 * (high - low) or 0.02
    low, high = low - margin, high + margin
    ticks: dict[float, str] = {}  # height -> label
    for step in (100, 50, 20, 10, 5, 2, 1):  # tenths of a percent
        for tick in range(0, 1001, step) if step >= 10 or len(ticks) < 5 else ():
            at = stretch(tick / 1000)
            if low <= at <= high and all(abs(at - other) > (high - low) / 14 for other in ticks):
                ticks[at] = f"{tick / 10:g} %"
    if not ticks:  # values so close that no tenth of a percent lies between them
        ticks = {stretch(value): f"{100 * value:.3f} %" for value in (min(values), max(values))}
    return {"low": low, "high": high, "ticks": sorted(ticks.items())}


# -- mixed precision

NAME, ROLE, WEIGHT_BITS, ACT_BITS = 0, 1, 7, 8  # columns of a layer row
WHAT = {"weight_bits": "weights", "act_bits": "inputs"}  # whose bits a choice is of


def mixed_stages(data: dict[str, Any]) -> list[int]:
    """Stages in which bit-widths of layers are choices."""
    widths = [i for i, name in enumerate(data["choices"]) if name.endswith("_bits")]
    stages = range(len(data["stages"])) if widths else ()
    items = [*data["points"], *data["family"]]
    return [s for s in stages if any(item["arch"][i] for item in items if item["stage"] == s for i in widths)]


Layers = list[tuple[str, str, int, int]]
"""Of a network: names, roles, bits of weights, bits of inputs."""


def bits_by_role(data: dict[str, Any], cost: int) -> list[dict[str, Any]]:
    """Per role, and weights or inputs: the share of each bit-width and the mean, over the fronts of mixed precision."""
    fronts = mixed_fronts(data, cost)
    return [row for front, chosen in fronts for row in shares_by_role([one for net in front for one in net], chosen)]


def mixed_fronts(data: dict[str, Any], cost: int) -> list[tuple[list[Layers], set[tuple[str, str]]]]:
    """The networks of each front of mixed precision, and whose bits are chosen, see `shares_by_role`.

    `data` is the page's; `cost` the index of the cost axis of the fronts. Networks of one bit-width on them are left
    out, layers at the one bit-width they can have too, and everything if there is no mixed precision.
    """
    fronts, widths = [], {name: i for i, name in enumerate(data["choices"]) if name.endswith("_bits")}
    chosen = {(layer, WHAT[what]) for layer, _, what in (name.rpartition(".") for name in widths)}
    for stage in mixed_stages(data):
        front = [data["points"][i] for i in data["fronts"][cost][stage]]
        front = [point for point in front if len({point["arch"][i] for i in widths.values()} - {None}) > 1]
        rows = [[data["rows"][i] for i in point["layers"]] for point in front]
        fronts.append(([[(r[NAME], r[ROLE], r[WEIGHT_BITS], r[ACT_BITS]) for r in own] for own in rows], chosen))
    return fronts


def shares_by_role(layers: Layers, chosen: Collection[tuple[str, str]]) -> list[dict[str, Any]]:
    """Per role, and weights or inputs: the share of each bit-width and the mean over layers of some networks.

    Only bit-widths that are `chosen`, as (name, "weights" or
    "inputs"), count. Roles have the order of their last layers.
    """
    table = []
    roles = list(dict.fromkeys(role for _, role, *_ in reversed(layers)))[::-1]
    for role in roles:
        for what, column in (("weights", 2), ("inputs", 3)):
            bits = np.array([row[column] for row in layers if row[1] == role and (row[0], what) in chosen])
            if len(bits):
                shares = {int(b): float((bits == b).mean()) for b in sorted(set(bits))}
                table.append(dict(role=role, what=what, shares=shares, mean=float(bits.mean()), layers=len(bits)))
    return table


# -- the distribution over pairs of bit-widths


def pair_label(value: int) -> str:
    """ "W4 A8" for 408, "W4" for float inputs."""
    weight_bits, act_bits = divmod(value, 100)
    if value == 0:
        return "left out"
    if weight_bits == FLOAT_BITS:
        return "float" if act_bits == FLOAT_BITS else f"A{act_bits}"
    return f"W{weight_bits}" + (f" A{act_bits}" if act_bits < FLOAT_BITS else "")


def sharpening(rows: Sequence[Distribution], space: SearchSpace | None) -> dict[str, Any] | None:
    """How a distribution over the architectures of `space` sharpened while it was searched; None if there is none.

    The mean entropy is in bits; a certain choice has none.
    """
    names = list(rows[-1].probabilities) if rows else []
    if not names or space is None or not set(names) <= set(space.free):
        return None
    tables = np.array([[row.probabilities[name] for name in names] for row in rows])  # (times, choices, candidates)
    entropy = -(tables * np.log2(tables.clip(1e-12))).sum(2).mean(1)
    return {
        "choices": [name.removesuffix(".precision") for name in names],
        "candidates": [pair_label(value) for value in space.choices[names[0]]],
        "steps": [row.step for row in rows],
        "entropy": entropy.tolist(),
        "times": [rows[i].step for i in _moments(len(rows))],
        "tables": tables[_moments(len(rows))].tolist(),
    }


def _moments(count: int) -> list[int]:
    return sorted({round(i) for i in np.linspace(0, count - 1, 5)})
