"""Several runs on one page: their fronts on common axes, their chosen networks in one table.

A series of the page is a stage of a run. Its colour tells the run, its marker the stage.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from oncequant.export.formats import latency_keys
from oncequant.intervals import Interval
from oncequant.report.contents import Contents, ReportError
from oncequant.report.effort import Effort, effort_by_hand, effort_of
from oncequant.report.sections import exports_data, page_data, top1_axis
from oncequant.report.volumes import chosen_volumes, measured_volumes, volume_costs
from oncequant.search.measurements import R, with_costs

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
    names, runs = run_names(runs), with_all_tables(runs)
    parts = [_part(run) for run in runs]
    titles = list(dict.fromkeys(title for part in parts for title in part["costs"]))
    choices = list(dict.fromkeys(choice for part in parts for choice in part["choices"]))
    stages: list[dict[str, str]] = []
    rows: list[tuple] = []
    points: list[dict[str, Any]] = []
    family: list[dict[str, Any]] = []
    fronts: list[list[list[int]]] = [[] for _ in titles]
    for name, part, (light, dark) in zip(names, parts, COLOURS):
        columns = [part["costs"].index(title) if title in part["costs"] else None for title in titles]
        arches = [part["choices"].index(choice) if choice in part["choices"] else None for choice in choices]
        items, start = {}, (len(stages), len(rows))
        for kind in ("points", "family"):
            items[kind] = [_moved(item, columns, arches, *start) for item in part[kind]]
        for front, column in zip(fronts, columns):
            own = [[] for _ in part["stages"]] if column is None else part["fronts"][column]
            front += [[i + len(points) for i in one] for one in own]
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
        "runs": {"tables": [runs_table(names, runs), volumes_table(names, runs)], "note": _note(runs)},
        "stages": stages,
        "costs": titles,
        "cost": titles.index(parts[0]["costs"][parts[0]["cost"]]),
        "choices": choices,
        "rows": rows,
        "points": points,
        "fronts": fronts,
        "family": family,
        "exports": exports_data([name for name, _ in exports], [found for _, found in exports]),
        "top1_axis": top1_axis(on_fronts + [item["top1"] for item in family]),
        **dict.fromkeys(("searchers", "curves", "bits_by_role"), []),
        **dict.fromkeys(("predictions", "comparison", "distribution", "advice", "answers")),
    }


def with_all_tables(runs: Sequence[Contents]) -> list[Contents]:
    """The runs, their networks with the costs of each other's tables as far as these have the layers."""
    tables = {name: cost for run in runs for name, cost in run.known_costs.items() if cost.partial}

    def more(run: Contents, records: Sequence[R]) -> list[R]:
        return [with_costs(record, run.spaces[record.stage], tables) for record in records]

    return [
        replace(
            run,
            known_costs=tables | run.known_costs,
            measurements=more(run, run.measurements),
            family=more(run, run.family),
            by_hand=more(run, run.by_hand),
        )
        for run in runs
    ]


def _part(run: Contents) -> dict[str, Any]:
    """The data of one run, with its networks made by hand, and with measured latencies as costs of those that are
    exported."""
    data = page_data(replace(run, family=[*run.family, *run.by_hand]))
    found = {one.name: one.found for one in run.exports}
    for key, title in latency_keys().items():
        latencies = [found.get(item["name"], {}).get(key) for item in data["family"]]
        if any(latencies):
            data["costs"].append(title)
            data["fronts"].append([[] for _ in data["stages"]])  # only chosen networks are exported
            for item in data["points"]:
                item["costs"].append(None)
            for item, latency in zip(data["family"], latencies):
                item["costs"].append(latency)
    return data


def _moved(
    item: dict[str, Any], columns: Sequence[int | None], arches: Sequence[int | None], stage: int, row: int
) -> dict[str, Any]:
    """A point or a chosen network with the costs of these columns and the choices of all runs, behind so many stages
    and rows of other runs."""
    return item | {
        "stage": item["stage"] + stage,
        "costs": [None if i is None else item["costs"][i] for i in columns],
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


def runs_table(names: Sequence[str], runs: Sequence[Contents]) -> dict[str, Any]:
    """A row for each run, and for the networks made by hand beside it; what training took."""
    columns = ["Run", "Method", "Preset", "Data", "Images: training / validation / test", "Seed"]
    columns += ["Training images seen", "Hours by the clock", "Core hours", "Measured", "Best validation top-1"]
    rows = []
    for name, run in zip(names, runs):
        data, effort = run.info.get("data", {}), effort_of(run)
        best = max([m.top1 for m in run.measurements] + [m.top1_validation for m in run.family], default=None)
        counts = [f"{data[split]:,}" for split in ("train", "validation", "test") if split in data]
        about = [str(data.get("name", "–")), " / ".join(counts), str(run.info.get("seed", "–"))]
        measured = [str(len(run.measurements)), "–" if best is None else f"{100 * best:.2f} %"]
        preset = str(run.info.get("model", {}).get("preset") or "–")
        rows.append([name, str(run.info.get("method", "")), preset, *about, *_texts(effort), *measured])
        if run.by_hand:
            best = max(m.top1_validation for m in run.by_hand)
            measured = [str(len(run.by_hand)), f"{100 * best:.2f} %"]
            rows.append([f"{name}, by hand", "compare", "–", *about, *_texts(effort_by_hand(run)), *measured])
    caption = (
        "Training images: each subnet of a step counts. Core hours: hours by the clock times processes times threads"
    )
    caption += " of each; the time of processors is not recorded."
    return {"caption": caption, "columns": columns, "rows": rows}


def _texts(effort: Effort) -> list[str]:
    hours = [None if effort.seconds is None else effort.seconds / 3600, effort.core_hours]
    return ["–" if effort.images is None else f"{effort.images:,}", *("–" if h is None else f"{h:.3f}" for h in hours)]


def volumes_table(names: Sequence[str], runs: Sequence[Contents]) -> dict[str, Any]:
    """A row for each run, and for the networks made by hand beside it: hypervolumes over every common cost."""
    costs = volume_costs(runs)
    measured = [measured_volumes(runs, cost.name) for cost in costs]
    chosen = [chosen_volumes(runs, cost.name) for cost in costs]
    rows = []
    for i, (name, run) in enumerate(zip(names, runs)):
        tested = [by_cost[i][0] for by_cost in chosen]
        rows.append([name, *map(_text, tested), *(_text(by_cost[i]) for by_cost in measured)])
        if run.by_hand:
            rows.append([f"{name}, by hand", *(_text(by_cost[i][1]) for by_cost in chosen), *["–"] * len(costs)])
    columns = ["Run", *(f"Chosen, {cost.label}" for cost in costs), *(f"Measured, {cost.label}" for cost in costs)]
    caption = (
        "Volume: how much of the box over error and the logarithm of a cost, between the best and the worst network of "
        "all runs, the networks of a run cover. More is better. Chosen: the chosen networks on the test images; in "
        "brackets the interval with 95 %, by drawing test images anew, of runs that kept the answers to them. "
        "Measured: all measured networks on the validation images, by which they were looked for; it is too good "
        "(most where there are few images) and has no interval."
    )
    return {"caption": caption, "columns": columns, "rows": rows}


def _text(volume: Interval | float | None) -> str:
    if isinstance(volume, Interval):
        return volume.text(3)
    return "–" if volume is None else f"{volume:.3f}"


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
