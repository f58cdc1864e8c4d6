"""A run folder as pictures, CSV files and one page that needs neither network nor library.

Everything is made from the files of the run, so the report of a half-finished run shows what there is. Fronts, layer
tables and axes are worked out here; `report_page.html` and `report_page.js` only draw the numbers put into them.
Files hold fractions, people read percent.
"""

import base64
import html
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from oncequant.arch import FLOAT_BITS, LayerSpec
from oncequant.checkpoint import load_space
from oncequant.cost import Cost, layer_macs, shown_costs, weight_bytes
from oncequant.family import ElasticConfig, with_bits
from oncequant.files import RECORDS, FileError, read_lines, read_object, read_records, write_atomically, write_csv
from oncequant.models import config_from_json, space_of
from oncequant.report_distribution import draw_distribution, sharpening
from oncequant.report_mixed import bits_by_role, draw_bits, draw_predictions, mixed_stages
from oncequant.run_folder import commands_of
from oncequant.search.pareto import hypervolume, pareto_front
from oncequant.space import SearchSpace

# stage -> colour on light, colour on dark, marker (as matplotlib names it). Paul Tol's "high contrast" colours can be
# told apart by colour-blind readers and in grey. Stages not named here (mixed precision) take the spare ones.
STYLES = {
    "float": ("#555555", "#bbbbbb", "D"),
    "8bit": ("#117755", "#66cc99", "X"),
    "4bit": ("#004488", "#77aaff", "o"),
    "3bit": ("#c98a00", "#eebb44", "s"),
    "2bit": ("#bb5566", "#ff8899", "^"),
}
SPARE_STYLES = (("#663399", "#bb99ee", "v"), ("#117788", "#55ccdd", "P"), ("#7a5c00", "#d8c060", "X"))
AXES = ("bitops", "weight_bytes")  # costs that every record must have: sections and pictures are about them
LOSS_POINTS = 300  # per stage; longer curves are averaged in bins


class ReportError(ValueError):
    """The folder cannot be reported; the message names the path and what is wrong or missing."""


@dataclass(frozen=True)
class Run:
    """What the files of a run folder say; a list is empty where its file is not there yet."""

    folder: Path
    info: dict[str, Any]
    metrics: list[dict]
    measurements: list[dict]
    family: list[dict]
    exports: list[dict]
    predictions: dict[str, Any] | None = None
    """What an accuracy predictor said before subnets were measured, and how good it is."""
    distribution: dict[str, Any] | None = None
    """How DNAS's distribution over precisions sharpened."""

    @property
    def costs(self) -> list[Cost]:
        """The costs that tables and pictures show."""
        return shown_costs(record["costs"] for record in [*self.measurements, *self.family])

    @property
    def stages(self) -> list[str]:
        """Names of the stages: float, then falling bits, then others as they come."""
        known = list(STYLES)
        names = dict.fromkeys(record["stage"] for record in [*self.metrics, *self.measurements, *self.family])
        return sorted(names, key=lambda name: known.index(name) if name in known else len(known))


def write_report(run_dir: Path) -> Path:
    """Write index.html, pictures and CSV files to `run_dir/report`; returns the page. Raises ReportError."""
    run = read_run(Path(run_dir))
    data = page_data(run)
    folder = run.folder / "report"
    folder.mkdir(exist_ok=True)
    for name in ("metrics", "measurements", "family", "exports"):
        if records := getattr(run, name):
            rows = [{k: v for k, v in (r | r.get("costs", {})).items() if k != "costs"} for r in records]
            write_csv(folder / f"{name}.csv", rows)  # each cost has a column
    if data["points"] or data["family"]:
        draw_pareto(data, folder / "pareto.png")
    if data["curves"]:
        draw_training(data, folder / "training.png")
    if any(item["stage"] in mixed_stages(data) for item in data["family"]):
        draw_bits(data, _panels, folder / "bits.png", _save)
    if run.predictions and run.predictions["points"]:
        draw_predictions(run.predictions, _panels, folder / "predictor.png", _save)
    if run.distribution:
        draw_distribution(run.distribution, _panels, folder / "distribution.png", _save)
    pictures = {name: folder / f"{name}.png" for name in ("predictor", "distribution")}
    shown = {name: base64.b64encode(path.read_bytes()).decode() for name, path in pictures.items() if path.exists()}
    write_atomically(folder / "index.html", page_html(data | {"pictures": shown}).encode())
    return folder / "index.html"


def read_run(folder: Path) -> Run:
    """Read a run folder; only run.json must be there. Raises ReportError."""
    if not (folder / "run.json").is_file():
        expected = f"run.json and, as the run goes on, {', '.join(RECORDS)}"
        raise ReportError(f"{folder} is not a run folder: it has no run.json; expected in it: {expected}")
    try:
        info = read_object(folder / "run.json")
        info["commands"] = commands_of(folder)
        _, metrics, measurements, family, exports = (_read_records(folder / name) for name in RECORDS)
        known = (folder / "predictor.json").exists()
        predictions = read_object(folder / "predictor.json", "points", "kendall_tau", "rmse") if known else None
        distribution = _read_distribution(folder)
    except FileError as error:
        raise ReportError(str(error)) from error
    for record in family:  # each network that DNAS trained is a stage of its own
        record["stage"] = re.sub("^samples/.*", "samples", record["stage"])
    chosen = {entry["name"]: entry["arch"] for entry in family}
    # a name may stand for another network after a new search
    exports = [row for row in exports if row.get("arch") is None or row["arch"] == chosen.get(row["name"])]
    return Run(folder, info, metrics, measurements, family, exports, predictions, distribution)


def _read_distribution(folder: Path) -> dict[str, Any] | None:
    rows = read_lines(folder / "distribution.jsonl")
    if not rows or not (folder / "search.safetensors").exists():
        return None
    return sharpening(rows, load_space(folder, "search")[1].choices)


def _read_records(path: Path) -> list[dict]:
    records = read_records(path)
    for number, record in enumerate(records, start=1):
        if missing := [cost for cost in AXES if cost not in record.get("costs", AXES)]:
            raise ReportError(f"{path}: record {number} lacks {missing[0]!r}")
    return records


# -- what the page and the pictures draw


def page_data(run: Run) -> dict[str, Any]:
    """Everything that the page's script reads; lists are referred to by index to keep the page small."""
    stages, costs = run.stages, [cost.name for cost in run.costs]
    records = [*run.measurements, *run.family]
    rows, tables = layer_tables(run, records)
    choices = list(dict.fromkeys(name for record in records for name in record["arch"]))
    items = [
        {
            "stage": stages.index(record["stage"]),
            "top1": record["top1"] if "top1" in record else record["top1_validation"],
            "costs": [record["costs"][cost] for cost in costs],
            "arch": [record["arch"].get(name) for name in choices],
            "layers": table,
        }
        for record, table in zip(records, tables)
    ]
    points = [item | {"searcher": record["searcher"]} for item, record in zip(items, run.measurements)]
    chosen = zip(items[len(points) :], run.family)
    more = ("top1_test", "top1_predicted", "top1_before_folding")
    family = [item | {"name": r["name"]} | {k.removeprefix("top1_"): r.get(k) for k in more} for item, r in chosen]
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
        "exports": run.exports,
        "searchers": compare_searchers(run),
        "curves": training_curves(run),
        "top1_axis": top1_axis(on_fronts + [f["top1"] for f in family]),
    }
    by_role = bits_by_role(data, costs.index("bitops"))
    return data | {"bits_by_role": by_role, "predictions": run.predictions, "distribution": run.distribution}


def stage_styles(stages: list[str]) -> list[dict[str, str]]:
    """Name, label, colours and marker of every stage."""
    spare = iter(SPARE_STYLES * len(stages))
    styles = [STYLES[stage] if stage in STYLES else next(spare) for stage in stages]
    labels = [re.sub(r"(\d+)bit", r"\1 bit", stage) for stage in stages]
    keys = ("name", "label", "light", "dark", "marker")
    return [dict(zip(keys, (stage, label, *style))) for stage, label, style in zip(stages, labels, styles)]


def _front(points: list[dict], stage: int, cost: int) -> list[int]:
    own = [i for i, point in enumerate(points) if point["stage"] == stage]
    values = np.array([(points[i]["costs"][cost], 1 - points[i]["top1"]) for i in own]).reshape(-1, 2)
    return [own[k] for k in pareto_front(values)]


def layer_tables(run: Run, records: list[dict]) -> tuple[list[tuple], list[list[int]]]:
    """(different layer rows, per record the indices of its rows): most rows are shared by many architectures."""
    rows: dict[tuple, int] = {}

    @cache
    def space_at(stage: str) -> SearchSpace:
        try:
            saved = "search" if stage == "samples" else stage
            if (run.folder / f"{saved}.safetensors").exists():
                return load_space(run.folder, saved)[1]
            config = config_from_json(run.info["model"]["config"])
        except (KeyError, TypeError, ValueError, FileError) as error:
            raise ReportError(f"{run.folder / 'run.json'}: model.config does not fit: {error!r}") from error
        bits = FLOAT_BITS if stage == "float" else int((re.match(r"(\d+)bit", stage) or "00")[1])
        if bits and isinstance(config, ElasticConfig):  # otherwise bits are choices of the space
            config = with_bits(config, bits)
        return space_of(config)

    def row_of(name: str, s: LayerSpec) -> tuple:
        shape = (name, s.role, s.in_channels, s.out_channels, s.kernel_size, s.stride, s.out_size)
        return (*shape, s.weight_bits, s.act_bits, layer_macs(s), weight_bytes({name: s}))

    tables = []
    for record in records:
        space = space_at(record["stage"])
        try:
            specs = space.layers(space.complete(record["arch"]))
        except ValueError as error:
            raise ReportError(f"{run.folder}: invalid architecture of stage {record['stage']}: {error}") from error
        present = [row_of(name, spec) for name, spec in specs.items() if spec.present]
        tables.append([rows.setdefault(row, len(rows)) for row in present])
    return list(rows), tables


def compare_searchers(run: Run) -> list[dict]:
    """Where a stage has several searchers: measurements, best top-1, hypervolume of each one's points for every cost.

    Hypervolume is over log cost and top-1, as a share of the box between the best and the worst values that any
    searcher of the stage measured, so that all have the same reference.
    """
    rows, costs = [], [cost.name for cost in run.costs]
    for index, stage in enumerate(run.stages):
        here = [m for m in run.measurements if m["stage"] == stage]
        names = list(dict.fromkeys(m["searcher"] for m in here))
        values = np.array([[*np.log([m["costs"][c] for c in costs]), 1 - m["top1"]] for m in here])
        for name in names if len(names) > 1 else ():
            low, extent = values.min(axis=0), np.ptp(values, axis=0)
            own = (values[[m["searcher"] == name for m in here]] - low) / np.where(extent > 0, extent, 1)
            shares = [hypervolume(own[:, [k, -1]], (1, 1)) for k in range(len(costs))]
            best = max(m["top1"] for m in here if m["searcher"] == name)
            rows.append({"stage": index, "searcher": name, "measured": len(own), "best": best, "shares": shares})
    return rows


def training_curves(run: Run) -> list[dict]:
    """Per stage the curves of metrics.jsonl; steps go on from stage to stage, long loss curves are averaged in bins."""
    curves, start = [], 0
    for index, stage in enumerate(run.stages):
        by_step = {m["step"]: m for m in run.metrics if m["stage"] == stage}
        lines = [by_step[step] for step in sorted(by_step)]
        losses = [(start + m["step"], m["loss"]) for m in lines if m.get("loss") is not None]
        size = math.ceil(len(losses) / LOSS_POINTS) or 1
        curve = {"loss": [np.mean(losses[i : i + size], axis=0).tolist() for i in range(0, len(losses), size)]}
        for net in ("largest", "smallest"):
            keys = (f"top1_{net}", *(("top1", "top1_likely") if net == "largest" else ()))  # the latter are DNAS's
            curve[net] = [(start + m["step"], m[key]) for m in lines for key in keys if m.get(key) is not None]
        if lines:
            curves.append({"stage": index, **curve})
            start += lines[-1].get("steps") or lines[-1]["step"]
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


# -- writing


def page_html(data: dict[str, Any]) -> str:
    """The page with script and data inside."""
    here = Path(__file__).parent
    text = json.dumps(data, separators=(",", ":"))  # read as JavaScript, which knows NaN
    parts = {
        "title": html.escape(f"oncequant report: {data['run'].get('method', 'run')}"),
        "script": (here / "report_page.js").read_text(encoding="utf-8"),
        # a "</script>" in a class name must not end the element: inside strings these three can be written as escapes
        "data": text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e"),
    }
    page = (here / "report_page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], page)


def _panels(width: float, height: float, count: int):
    """(figure, panels side by side) in the style of all pictures."""
    try:
        from matplotlib.figure import Figure  # not pyplot: no global state, no display
    except ImportError as error:
        raise ReportError('the report draws with matplotlib: pip install "oncequant[report]"') from error
    figure = Figure((width, height), dpi=160, layout="constrained")
    panels = figure.subplots(1, count, squeeze=False)[0]
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
    return figure, panels


def draw_pareto(data: dict[str, Any], path: Path) -> None:
    """Validation top-1 against one cost, packed weights: all points, fronts, chosen networks."""
    figure, (axes,) = _panels(8, 5, 1)
    cost = data["cost"]
    for index, stage in enumerate(data["stages"]):
        style = {"color": stage["light"], "marker": stage["marker"]}
        points, chosen = ([item for item in data[key] if item["stage"] == index] for key in ("points", "family"))
        front = [data["points"][i] for i in data["fronts"][cost][index]]
        looks = (
            (points, {"linestyle": "", "markersize": 3, "alpha": 0.25, "markeredgewidth": 0}),
            (front, {"linewidth": 1.8, "markersize": 4, "label": stage["label"] if points or chosen else None}),
            (chosen, {"linestyle": "", "markersize": 9, "markeredgecolor": "black", "zorder": 4}),
        )
        for items, look in looks:
            axes.plot([i["costs"][cost] for i in items], [stretch(i["top1"]) for i in items], **style, **look)
        for item in chosen:
            name, at = item["name"].removeprefix(f"{stage['name']}-"), (item["costs"][cost], stretch(item["top1"]))
            axes.annotate(name, at, (-6, 5), textcoords="offset points", ha="right", weight="bold", zorder=5)
    axes.set(xscale="log", xlabel=data["costs"][cost], ylabel="Validation top-1 (stretched towards 100 %)")
    axes.set_title(
        "Measured networks (faint), best at each bit-width (line), chosen (outlined)", loc="left", fontsize=9
    )
    axis = data["top1_axis"]
    axes.set_ylim(axis["low"], axis["high"])
    axes.set_yticks(*zip(*axis["ticks"]))
    low, high = axes.get_xlim()
    round_costs = [m * 10**e for e in range(15) for m in (1, 2, 3, 5, 7)]
    axes.set_xticks([c for c in round_costs if low <= c <= high])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:,g} k")
    axes.minorticks_off()
    axes.legend(frameon=False, loc="lower right")
    _save(figure, path)


def _save(figure, path: Path) -> None:
    content = io.BytesIO()
    figure.savefig(content, format="png")
    write_atomically(path, content.getvalue())


def draw_training(data: dict[str, Any], path: Path) -> None:
    """Training loss, and validation top-1 of the largest and the smallest subnet, over all stages."""
    figure, (left, right) = _panels(10, 3.8, 2)
    for curve in data["curves"]:
        stage = data["stages"][curve["stage"]]
        style = {"color": stage["light"], "marker": stage["marker"], "markersize": 4}
        left.plot(*np.reshape(curve["loss"], (-1, 2)).T, color=stage["light"], label=stage["label"])
        for net, line in (("largest", "-"), ("smallest", "--")):
            steps, top1 = np.reshape(curve[net], (-1, 2)).T
            right.plot(steps, 100 * top1, line, label=f"{stage['label']}, {net}", **style)
    left.set(xlabel="step", ylabel="training loss")
    right.set(xlabel="step", ylabel="validation top-1 (%)")
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=7.5)
    _save(figure, path)
