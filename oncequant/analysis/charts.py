"""Pictures of the page: SVG text, whose colours follow the page's, light or dark. The numbers are in tables, too."""

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from oncequant.intervals import UNDECIDED, Interval, verdict
from oncequant.report.sections import SPARE_STYLES, STYLES

WIDTH, HEIGHT = 350, 250  # of a picture: as wide as on a screen of 400 px, where text has 12 px
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 24, 40
ROW, LABELS = 24, 138  # of a picture of intervals: height of a row, width of the labels


@dataclass(frozen=True)
class Series:
    """Points of one bit-width."""

    label: str
    bits: int
    points: np.ndarray
    """(n, 2)."""
    line: np.ndarray
    """(m, 2), joined in their order."""


def colour(bits: int) -> str:
    """Of a bit-width, as the report has it."""
    light, dark, _ = STYLES.get("float" if bits == 32 else f"{bits}bit", SPARE_STYLES[bits % len(SPARE_STYLES)])
    return f"light-dark({light}, {dark})"


SHAPES: dict[str, Callable[[float, float, float], str]] = {  # as the report's page draws them
    "o": lambda x, y, r: f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0z",
    "s": lambda x, y, r: f"M{x - r:.1f} {y - r:.1f}h{2 * r}v{2 * r}h{-2 * r}z",
    "^": lambda x, y, r: f"M{x:.1f} {y - r:.1f}l{r} {2 * r}h{-2 * r}z",
    "D": lambda x, y, r: f"M{x:.1f} {y - 1.2 * r:.1f}l{1.2 * r} {1.2 * r}l{-1.2 * r} {1.2 * r}l{-1.2 * r} {-1.2 * r}z",
}


def mark(bits: int, x: float, y: float, r: float) -> str:
    """Path of the mark of a bit-width around a place."""
    style = STYLES.get("float" if bits == 32 else f"{bits}bit", SPARE_STYLES[bits % len(SPARE_STYLES)])
    return SHAPES.get(style[2], SHAPES["D"])(x, y, r)


def scatter(
    series: Sequence[Series], x_title: str, y_title: str, description: str, log_x: bool = False, zero: bool = False
) -> str:
    """Points and lines of some bit-widths. `log_x`: equal steps are equal factors; `zero`: a line at 0. All values are
    finite."""
    everything = np.concatenate([part for one in series for part in (one.points, one.line)])
    xs = np.log10(everything[:, 0]) if log_x else everything[:, 0]
    low, high = _around(xs), _around(np.append(everything[:, 1], 0.0) if zero else everything[:, 1])

    def px(x: float) -> float:
        at = math.log10(x) if log_x else x
        return LEFT + (at - low[0]) / (low[1] - low[0]) * (WIDTH - LEFT - RIGHT)

    def py(y: float) -> float:
        return HEIGHT - BOTTOM - (y - high[0]) / (high[1] - high[0]) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick in _ticks(*high):
        y = py(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(_text(LEFT - 6, y + 4, _number(tick), "end"))
    last = -math.inf
    for tick in _log_ticks(*low) if log_x else _ticks(*low):
        if px(tick) - last > 44:  # numbers must not touch
            last = px(tick)
            parts.append(f'<path class="grid" d="M{last:.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
            parts.append(_text(last, HEIGHT - BOTTOM + 16, _number(tick), "middle"))
    if zero:
        parts.append(f'<path class="zero" d="M{LEFT} {py(0):.1f}H{WIDTH - RIGHT}"/>')
    for one in series:
        places = "".join(mark(one.bits, px(x), py(y), 2.6) for x, y in one.points)
        parts.append(f'<path d="{places}" style="fill:{colour(one.bits)}" opacity=".55"/>')
        if len(one.line):
            line = "L".join(f"{px(x):.1f} {py(y):.1f}" for x, y in one.line)
            parts.append(f'<path d="M{line}" style="fill:none;stroke:{colour(one.bits)};stroke-width:2"/>')
    parts.append(_text(WIDTH - RIGHT, HEIGHT - 6, x_title, "end"))
    parts.append(_text(4, 13, y_title, "start"))
    return _svg(parts, HEIGHT, description) + legend([(one.label, one.bits) for one in series])


def intervals(rows: Sequence[tuple[str, Interval, int]], x_title: str, description: str, at: float = 0.0) -> str:
    """A row for each label, interval and bit-width; filled marks are decided: their intervals leave out `at`."""
    known = [(label, one, bits) for label, one, bits in rows if math.isfinite(one.low) and math.isfinite(one.high)]
    if not known:
        return ""
    ends = np.array([end for _, one, _ in known for end in (one.low, one.high)] + [at])
    low, high = _around(ends)
    height = TOP + ROW * len(known) + BOTTOM

    def px(x: float) -> float:
        return LABELS + (x - low) / (high - low) * (WIDTH - LABELS - RIGHT)

    parts, last = [], -math.inf
    for tick in _ticks(low, high):
        if px(tick) - last > 40:
            last = px(tick)
            parts.append(f'<path class="grid" d="M{last:.1f} {TOP - 8}V{height - BOTTOM}"/>')
            parts.append(_text(last, height - BOTTOM + 16, _number(tick), "middle"))
    parts.append(f'<path class="zero" d="M{px(at):.1f} {TOP - 8}V{height - BOTTOM}"/>')
    for number, (label, one, bits) in enumerate(known):
        y = TOP + ROW * (number + 0.5) - 4
        parts.append(_text(LABELS - 8, y + 4, label, "end"))
        parts.append(
            f'<path d="M{px(one.low):.1f} {y}H{px(one.high):.1f}" style="stroke:{colour(bits)};stroke-width:2"/>'
        )
        fill = "var(--card)" if verdict(one, at) == UNDECIDED else colour(bits)
        place = mark(bits, px(one.value), y, 4)
        parts.append(f'<path d="{place}" style="fill:{fill};stroke:{colour(bits)};stroke-width:1.5"/>')
    parts.append(_text(WIDTH - RIGHT, height - 6, x_title, "end"))
    return _svg(parts, height, description)


def legend(entries: Sequence[tuple[str, int]]) -> str:
    """Marks and names of bit-widths, as text below a picture."""
    items = "".join(
        f'<span><svg width="14" height="14" aria-hidden="true"><path d="{mark(bits, 7, 7, 4)}" '
        f'style="fill:{colour(bits)}"/></svg> {html.escape(label)}</span>'
        for label, bits in entries
    )
    return f'<p class="controls soft">{items}</p>'


def _svg(parts: Sequence[str], height: float, description: str) -> str:
    body = "\n".join(parts)
    label = html.escape(description, quote=True)
    return (
        f'<div class="chart"><svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">\n{body}\n</svg></div>'
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _around(values: np.ndarray) -> tuple[float, float]:
    """Ends of an axis, a little beyond the values."""
    low, high = float(values.min()), float(values.max())
    margin = 0.06 * (high - low) or 0.5
    return low - margin, high + margin


def _ticks(low: float, high: float) -> list[float]:
    steps = sorted(m * 10.0**e for m in (1, 2, 5) for e in range(-5, 12))
    step = next((s for s in steps if (high - low) / s <= 6), steps[-1])
    return [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Of an axis of logarithms to base 10."""
    found = [m * 10.0**e for e in range(math.floor(low), math.ceil(high) + 1) for m in (1, 2, 5)]
    return [tick for tick in found if low <= math.log10(tick) <= high]


def _number(value: float) -> str:
    for suffix, unit in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= unit:
            return f"{value / unit:g} {suffix}"
    return f"{round(value, 6):g}"
