"""The pictures of a report, by matplotlib: each is a figure of a part of the page's data (`sections.page_data`)."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oncequant.answers import METRICS
from oncequant.files import write_atomically
from oncequant.report.contents import ReportError
from oncequant.report.sections import ACT_BITS, NAME, WEIGHT_BITS, mixed_stages, stretch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_pictures(data: dict[str, Any], layer_names: Sequence[str], folder: Path) -> dict[str, bytes]:
    """Write a PNG file for everything that there is in `data`; what is in them, by name without ".png".

    `layer_names` are those of all networks, in network order. Raises ReportError without matplotlib, FileError.
    """
    mixed = [item for item in data["family"] if item["stage"] in mixed_stages(data)]
    pictures: dict[str, tuple[Any, Callable[[], Figure]]] = {  # what it needs, and the figure
        "pareto": (data["points"] or data["family"], lambda: pareto(data)),
        "training": (data["curves"], lambda: training(data)),
        "bits": (mixed, lambda: bits_of_layers(mixed, data["rows"], layer_names)),
        "predictor": ((data["predictions"] or {}).get("points"), lambda: predictions(data["predictions"])),
        "distribution": (data["distribution"], lambda: distribution(data["distribution"])),
        "compare": (data["comparison"], lambda: comparison(data["comparison"])),
    }
    drawn = {}
    for name, (needed, figure) in pictures.items():
        if needed:
            content = io.BytesIO()
            figure().savefig(content, format="png")
            drawn[name] = content.getvalue()
            write_atomically(folder / f"{name}.png", drawn[name])
    return drawn


def pareto(data: dict[str, Any]) -> "Figure":
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
    return figure


def training(data: dict[str, Any]) -> "Figure":
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
    return figure


def bits_of_layers(chosen: Sequence[dict[str, Any]], rows: Sequence[tuple], layer_names: Sequence[str]) -> "Figure":
    """Bits of weights and inputs of every layer of the networks `chosen`."""
    names = {rows[i][NAME] for item in chosen for i in item["layers"]}
    order = [name for name in layer_names if name in names]
    figure, panels = _panels(10, 1.2 + 1.5 * len(chosen), len(chosen))
    for axes, item in zip(panels, chosen):
        own = {rows[i][NAME]: rows[i] for i in item["layers"]}
        for column, label, style in ((WEIGHT_BITS, "weights", "o"), (ACT_BITS, "inputs", "x")):
            bits = [min(own[name][column], 9) if name in own else np.nan for name in order]
            axes.plot(bits, range(len(order)), style, markersize=4, label=label)
        axes.set(xlabel="bits", xlim=(0.5, 9.5), xticks=(1, 2, 3, 4, 6, 8))
        axes.set_title(item["name"], fontsize=7)
        axes.set_yticks(range(len(order)), order if axes is panels[0] else [""] * len(order), fontsize=5)
        axes.invert_yaxis()
    panels[0].legend(frameon=False, fontsize=7)
    figure.set_size_inches(10, 2 + 0.09 * len(order))
    return figure


def predictions(found: dict[str, Any]) -> "Figure":
    """Predicted against measured validation accuracy of subnets that the predictor had not seen."""
    figure, (axes,) = _panels(5, 4.6, 1)
    points = found["points"]
    for name in dict.fromkeys(point["searcher"] for point in points):
        own = [point for point in points if point["searcher"] == name]
        x, y = ([100 * point[key] for point in own] for key in ("predicted", "measured"))
        axes.plot(x, y, "o", markersize=3, alpha=0.6, label=name)
    ends = [100 * point[key] for point in points for key in ("predicted", "measured")]
    axes.plot([min(ends), max(ends)], [min(ends), max(ends)], color="#888888", linewidth=0.8)
    metric = METRICS.get(found.get("metric", "top1"), "accuracy")
    axes.set(xlabel=f"predicted {metric} (%)", ylabel=f"measured validation {metric} (%)")
    quality = f"Kendall tau {found['kendall_tau']:.2f}, error {100 * found['rmse']:.2f} points"
    axes.set_title(f"{quality}, {found['pairs']} measured", fontsize=9)
    axes.legend(frameon=False, fontsize=7)
    return figure


def distribution(found: dict[str, Any]) -> "Figure":
    """Probabilities of every candidate of every choice at five moments, and the mean entropy over all."""
    figure, panels = _panels(12, 1.5 + 0.16 * len(found["choices"]), 1 + len(found["tables"]))
    for axes, step, table in zip(panels, found["times"], found["tables"]):
        axes.imshow(table, aspect="auto", cmap="cividis", vmin=0, vmax=1)
        axes.set_title(f"step {step}", fontsize=8)
        axes.set_xticks(range(len(found["candidates"])), found["candidates"], rotation=90, fontsize=6)
        axes.set_yticks(range(len(found["choices"])), found["choices"] if axes is panels[0] else [], fontsize=6)
        axes.grid(False)
    panels[-1].plot(found["steps"], found["entropy"], color="#004488")
    panels[-1].set_title("entropy of a choice (bits)", fontsize=8)
    panels[-1].set(xlabel="step", ylim=(0, None))
    return figure


def comparison(found: dict[str, Any]) -> "Figure":
    """Test top-1 against BitOPs and packed weights of networks made in every way."""
    figure, panels = _panels(10, 3.8, 2)
    for axes, cost, title in zip(panels, ("bitops", "weight_bytes"), ("BitOPs", "packed weights (bytes)")):
        for way, marker in zip(dict.fromkeys(row["way"] for row in found["deployments"]), "os^vDP"):
            own = sorted((row[cost], 100 * row["top1_test"]) for row in found["deployments"] if row["way"] == way)
            axes.plot(*zip(*own), marker, label=way, markersize=5, alpha=0.8, linestyle="-", linewidth=0.8)
        axes.set(xscale="log", xlabel=title, ylabel="test top-1 (%)")
    panels[0].legend(frameon=False, fontsize=7.5)
    return figure


def _panels(width: float, height: float, count: int) -> "tuple[Figure, Sequence[Axes]]":
    """A figure of so many inches and panels, side by side, in the style of all pictures."""
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
