"""What a report says of DNAS: how the distribution over precisions sharpened while it was searched."""

from pathlib import Path
from typing import Any

import numpy as np

from oncequant.arch import FLOAT_BITS


def precision_label(value: int) -> str:
    """ "W4 A8" for 408, "W4" for float inputs."""
    weight_bits, act_bits = divmod(value, 100)
    if value == 0:
        return "left out"
    if weight_bits == FLOAT_BITS:
        return "float" if act_bits == FLOAT_BITS else f"A{act_bits}"
    return f"W{weight_bits}" + (f" A{act_bits}" if act_bits < FLOAT_BITS else "")


def sharpening(rows: list[dict[str, Any]], candidates: dict[str, tuple[int, ...]]) -> dict[str, Any] | None:
    """What page and picture draw of `distribution.jsonl`; None if there is none.

    `candidates` by choice. The mean entropy is in bits; a certain choice has none.
    """
    if not rows:
        return None
    names = list(rows[-1]["probabilities"])
    if not names:
        return None
    tables = np.array([[row["probabilities"][name] for name in names] for row in rows])  # (times, choices, candidates)
    entropy = -(tables * np.log2(tables.clip(1e-12))).sum(2).mean(1)
    return {
        "choices": [name.removesuffix(".precision") for name in names],
        "candidates": [precision_label(value) for value in candidates[names[0]]],
        "steps": [row["step"] for row in rows],
        "entropy": entropy.tolist(),
        "times": [rows[i]["step"] for i in _moments(len(rows))],
        "tables": tables[_moments(len(rows))].tolist(),
    }


def draw_distribution(found: dict[str, Any], panels, path: Path, save) -> None:
    """Probabilities of every candidate of every block at five moments, and the mean entropy over all."""
    figure, axes = panels(12, 1.5 + 0.16 * len(found["choices"]), 1 + len(found["tables"]))
    for ax, step, table in zip(axes, found["times"], found["tables"]):
        ax.imshow(table, aspect="auto", cmap="cividis", vmin=0, vmax=1)
        ax.set_title(f"step {step}", fontsize=8)
        ax.set_xticks(range(len(found["candidates"])), found["candidates"], rotation=90, fontsize=6)
        ax.set_yticks(range(len(found["choices"])), found["choices"] if ax is axes[0] else [], fontsize=6)
        ax.grid(False)
    axes[-1].plot(found["steps"], found["entropy"], color="#004488")
    axes[-1].set_title("entropy of a choice (bits)", fontsize=8)
    axes[-1].set(xlabel="step", ylim=(0, None))
    save(figure, path)


def _moments(count: int) -> list[int]:
    return sorted({round(i) for i in np.linspace(0, count - 1, 5)})
