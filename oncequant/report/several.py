"""Several runs on one page: their fronts on common axes, their chosen networks in one table.

A series of the page is a stage of a run. Its colour tells the run, its marker the stage.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from oncequant.report.contents import AXES, Contents, ReportError
from oncequant.report.sections import exports_data, page_data, top1_axis
from oncequant.search.pareto import hypervolume

# colours on light and on dark, a run each; they can be told apart by colour-blind readers
COLOURS = (
    ("#004488", "#77aaff"), ("#bb5566", "#ff8899"), ("#117755", "#66cc99"), ("#c08400", "#eebb44"),
    ("#663399", "#bb99ee"), ("#117788", "#55ccdd"), ("#555555", "#bbbbbb"), ("#7a5c00", "#d8c060"),
)  # fmt: skip


def combined_data(runs: Sequence[Contents]) -> dict[str, Any]:
    """What the page's script reads, see `sections.page_data`, of several runs. Raises ReportError if none of them has
    measured networks, or if there are more than can be told apart."""
    if len(runs) > len(COLOURS):
        raise ReportError(f"{len(runs)} runs: at most {len(COLOURS)} can be told apart on one page")
    names, parts = run_names(runs), [page_data(run) for run in runs]
    titles = [title for title in parts[0]["costs"] if all(title in part["costs"] for part in parts)]
    choices = list(dict.fromkeys(choice for part in parts for choice in part["choices"]))
    stages: list[dict[str, str]] = []
    rows: list[tuple] = []
    points: list[dict[str, Any]] = []
    family: list[dict[str, Any]] = []
    fronts: list[list[list[int]]] = [[] for _ in titles]
    for name, part, (light, dark) in zip(names, parts, COLOURS):
        columns = [part["costs"].index(title) for title in titles]
        arches = [part["choices"].index(choice) if choice in part["choices"] else None for choice in choices]
        items, start = {}, (len(stages), len(rows))
        for kind in ("points", "family"):
            items[kind] = [_moved(item, columns, arches, *start) for item in part[kind]]
        for front, column in zip(fronts, columns):
            front += [[i + len(points) for i in one] for one in part["fronts"][column]]
        points += items["points"]
        family += [item | {"name": f"{name}/{item['name']}"} for item in items["family"]]
        rows += part["rows"]
        for stage in part["stages"]:
            both = {"name": f"{name}/{stage['name']}", "label": f"{name}: {stage['label']}"}
            stages.append(stage | both | {"light": light, "dark": dark})
    if not points and not family:
        raise ReportError(f"no network has been measured yet in {', '.join(str(run.folder) for run in runs)}")
    on_fronts = [points[i]["top1"] for by_stage in fronts for front in by_stage for i in front]
    exports = [(f"{name}/{one.name}", one.found) for name, run in zip(names, runs) for one in run.exports]
    return parts[0] | {
        "run": {"method": f"{len(runs)} runs", "data": {}, "commands": []},
        "runs": _runs_table(names, runs),
        "stages": stages,
        "costs": titles,
        "cost": min(parts[0]["cost"], len(titles) - 1),
        "choices": choices,
        "rows": rows,
        "points": points,
        "fronts": fronts,
        "family": family,
        "exports": exports_data([name for name, _ in exports], [found for _, found in exports]),
        "top1_axis": top1_axis(on_fronts + [item["top1"] for item in family]),
        **dict.fromkeys(("searchers", "curves", "bits_by_role"), []),
        **dict.fromkeys(("predictions", "comparison", "distribution", "answers")),
    }


def _moved(
    item: dict[str, Any], columns: Sequence[int], arches: Sequence[int | None], stage: int, row: int
) -> dict[str, Any]:
    """A point or a chosen network with the costs of these columns and the choices of all runs, behind so many stages
    and rows of other runs."""
    return item | {
        "stage": item["stage"] + stage,
        "costs": [item["costs"][i] for i in columns],
        "arch": [None if i is None else item["arch"][i] for i in arches],
        "layers": [i + row for i in item["layers"]],
    }


def run_names(runs: Sequence[Contents]) -> list[str]:
    """What runs are called: their folders' names, or as much of their paths as tells them apart. Raises ReportError
    for a run that is named twice."""
    paths = [run.folder.resolve().parts for run in runs]
    if len(set(paths)) < len(paths):
        raise ReportError(f"{', '.join(str(run.folder) for run in runs)}: name every run once")
    length = next(n for n in range(1, 1 + max(map(len, paths))) if len({path[-n:] for path in paths}) == len(paths))
    return ["/".join(path[-length:]) for path in paths]


def _runs_table(names: Sequence[str], runs: Sequence[Contents]) -> dict[str, Any]:
    """Columns, rows and a note on what can be compared."""
    volumes = hypervolumes(runs)
    rows = []
    for name, run, by_cost in zip(names, runs, volumes):
        data = run.info.get("data", {})
        seconds = {row.stage: row.time_s for row in run.metrics if row.time_s is not None}
        best = max([m.top1 for m in run.measurements] + [m.top1_validation for m in run.family], default=None)
        counts = [f"{data[split]:,}" for split in ("train", "validation", "test") if split in data]
        trained = f"{sum(seconds.values()) / 60:.0f} min" if seconds else "–"
        rows.append(
            [name, str(run.info.get("method", "")), str(run.info.get("model", {}).get("preset") or "–")]
            + [str(data.get("name", "–")), " / ".join(counts), str(run.info.get("seed", "–")), trained]
            + [str(len(run.measurements)), "–" if best is None else f"{100 * best:.2f} %"]
            + ["–" if by_cost.get(cost) is None else f"{by_cost[cost]:.3f}" for cost in AXES]
        )
    columns = [
        "Run",
        "Method",
        "Preset",
        "Data",
        "Images: training / validation / test",
        "Seed",
        "Training",
        "Measured",
        "Best validation top-1",
    ]
    columns += ["Volume, BitOPs", "Volume, packed weights"]
    return {"columns": columns, "rows": rows, "note": _note(runs)}


def hypervolumes(runs: Sequence[Contents]) -> list[dict[str, float]]:
    """Of each run, by cost: what the front of all its stages covers of the box over the logarithm of the cost and the
    error, between the best and the worst of all networks of all fronts."""
    found: list[dict[str, float]] = [{} for _ in runs]
    for cost in AXES:
        values = [
            np.array([(np.log(m.costs[cost]), 1 - m.top1) for m in run.measurements if cost in m.costs]).reshape(-1, 2)
            for run in runs
        ]
        every = np.concatenate(values)
        if not len(every):
            continue
        low, extent = every.min(0), np.ptp(every, axis=0)
        for one, own in zip(found, values):
            if len(own):
                one[cost] = hypervolume((own - low) / np.where(extent > 0, extent, 1), (1, 1))
    return found


def _note(runs: Sequence[Contents]) -> str:
    """Whether accuracies can be compared."""
    tests = {str(run.info.get("data", {}).get("digests", {}).get("test")) for run in runs}
    checks = {str(run.info.get("data", {}).get("digests", {}).get("validation")) for run in runs}
    if len({tuple(run.info.get("data", {}).get("classes", ())) for run in runs}) > 1:
        return "These runs tell different classes apart: their accuracies cannot be compared."
    if len(tests) > 1:
        return "These runs have different test images: differences of accuracy may be those of the images."
    if len(checks) > 1:
        return "The test images are the same, the validation images are not: compare test accuracies."
    return "All have the same validation and test images."
