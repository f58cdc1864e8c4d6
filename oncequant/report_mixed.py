"""What a report says of mixed precision: bits by layer and by role, predicted against measured accuracy."""

from pathlib import Path
from typing import Any

import numpy as np

ROLES = ("expand", "depthwise", "project", "final_expand", "feature_mix")
NAME, ROLE, WEIGHT_BITS, ACT_BITS = 0, 1, 7, 8  # columns of a layer row


def bits_by_role(data: dict[str, Any], cost: int) -> list[dict[str, Any]]:
    """Per role, and weights or inputs: the share of each bit-width and the mean, over the fronts of mixed precision.

    `data` is the page's; `cost` the index of the cost axis of the fronts. Networks of one bit-width on them are left
    out, layers at the one bit-width they can have too, and everything if there is no mixed precision.
    """
    table, widths = [], [i for i, name in enumerate(data["choices"]) if name.endswith("_bits")]
    for stage in mixed_stages(data):
        front = [data["points"][i] for i in data["fronts"][cost][stage]]
        front = [point for point in front if len({point["arch"][i] for i in widths} - {None}) > 1]
        layers = [data["rows"][i] for point in front for i in point["layers"]]
        for role in ROLES:
            for what, column in (("weights", WEIGHT_BITS), ("inputs", ACT_BITS)):
                bits = np.array([row[column] for row in layers if row[ROLE] == role])
                if len(bits):
                    shares = {int(b): float((bits == b).mean()) for b in sorted(set(bits))}
                    table.append(dict(role=role, what=what, shares=shares, mean=float(bits.mean()), layers=len(bits)))
    return table


def mixed_stages(data: dict[str, Any]) -> list[int]:
    """Stages in which bit-widths of layers are choices."""
    stages = range(len(data["stages"])) if any(name.endswith("_bits") for name in data["choices"]) else ()
    widths = [i for i, name in enumerate(data["choices"]) if name.endswith("_bits")]
    items = [*data["points"], *data["family"]]
    return [s for s in stages if any(item["arch"][i] for item in items if item["stage"] == s for i in widths)]


def draw_bits(data: dict[str, Any], panels, path: Path, save) -> None:
    """Bits of weights and inputs of every layer of the chosen networks of mixed precision."""
    chosen = [item for item in data["family"] if item["stage"] in mixed_stages(data)]
    names = list(dict.fromkeys(data["rows"][i][NAME] for item in chosen for i in item["layers"]))
    order = sorted(names, key=lambda name: (_place(name), names.index(name)))
    figure, axes = panels(10, 1.2 + 1.5 * len(chosen), len(chosen))
    for ax, item in zip(axes, chosen):
        rows = {data["rows"][i][NAME]: data["rows"][i] for i in item["layers"]}
        for column, label, style in ((WEIGHT_BITS, "weights", "o"), (ACT_BITS, "inputs", "x")):
            bits = [min(rows[name][column], 9) if name in rows else np.nan for name in order]
            ax.plot(bits, range(len(order)), style, markersize=4, label=label)
        ax.set(xlabel="bits", xlim=(0.5, 9.5), xticks=(1, 2, 3, 4, 6, 8))
        ax.set_title(item["name"], fontsize=7)
        ax.set_yticks(range(len(order)), order if ax is axes[0] else [""] * len(order), fontsize=5)
        ax.invert_yaxis()
    axes[0].legend(frameon=False, fontsize=7)
    figure.set_size_inches(10, 2 + 0.09 * len(order))
    save(figure, path)


def _place(name: str) -> tuple[int, ...]:
    """Stem, blocks by stage and number, then the rest."""
    if name.startswith("stage"):
        return (1, *(int(part.strip("stageblock")) for part in name.split(".")[:2]))
    return (0,) if name.startswith(("stem", "block0")) else (2,)


def draw_predictions(predictions: dict[str, Any], panels, path: Path, save) -> None:
    """Predicted against measured validation top-1 of subnets that the predictor had not seen."""
    figure, (axes,) = panels(5, 4.6, 1)
    points = predictions["points"]
    for name in dict.fromkeys(point["searcher"] for point in points):
        own = [point for point in points if point["searcher"] == name]
        x, y = ([100 * point[key] for point in own] for key in ("predicted", "measured"))
        axes.plot(x, y, "o", markersize=3, alpha=0.6, label=name)
    ends = [100 * point[key] for point in points for key in ("predicted", "measured")]
    axes.plot([min(ends), max(ends)], [min(ends), max(ends)], color="#888888", linewidth=0.8)
    axes.set(xlabel="predicted top-1 (%)", ylabel="measured validation top-1 (%)")
    axes.set_title(
        f"Kendall tau {predictions['kendall_tau']:.2f}, error {100 * predictions['rmse']:.2f} points, "
        f"{predictions['pairs']} measured",
        fontsize=9,
    )
    axes.legend(frameon=False, fontsize=7)
    save(figure, path)
