"""What one section of the page is made of, and the words for intervals and verdicts."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from oncequant.intervals import CONFIRMED, REFUTED, UNDECIDED, Interval, verdict

OQAT = "OQAT (https://arxiv.org/abs/2010.04354)"
QFA = "QFA (https://arxiv.org/abs/2105.08952)"
DNAS = "DNAS (https://arxiv.org/abs/1812.00090)"
LEAST = 20  # networks below which no finding is made


@dataclass(frozen=True)
class Table:
    """A table of the page; all cells are text."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Finding:
    """A section of the page: picture, finding in words, and what the paper says."""

    key: str
    title: str
    sentences: Sequence[str] = ()
    """What was found, the answer first."""
    paper: Sequence[str] = ()
    """What the paper says, and whether this agrees."""
    picture: str = ""
    """HTML."""
    tables: Sequence[Table] = ()
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """By name of a CSV file."""


def decided(interval: Interval, more: str, less: str, undecided: str) -> str:
    """One of three texts, by the verdict on "above 0"."""
    return {CONFIRMED: more, REFUTED: less, UNDECIDED: undecided}[verdict(interval)]


def agreement(interval: Interval, claims_more: bool = True) -> str:
    """Whether a measured effect agrees with a paper that says it is above 0, or below it."""
    claim = interval if claims_more else Interval(-interval.value, -interval.high, -interval.low)
    return decided(
        claim,
        "This run agrees.",
        "This run says the opposite.",
        "This run does not decide it.",
    )


def sided(effects: Iterable[tuple[str, Interval]]) -> tuple[list[str], list[str]]:
    """Names and intervals, as text, of the effects that are decided to be above 0, and of those below."""
    found: dict[str, list[str]] = {CONFIRMED: [], REFUTED: [], UNDECIDED: []}
    for name, effect in effects:
        found[verdict(effect)].append(f"{name} {shown(effect)}")
    return found[CONFIRMED], found[REFUTED]


def shown(interval: Interval, digits: int = 2, sign: bool = True) -> str:
    """Such as `+1.25 (+0.31 to +2.19)`; a dash where nothing is known."""
    if not all(map(math.isfinite, (interval.value, interval.low, interval.high))):
        return "–"
    mark = "+" if sign else ""
    return f"{interval.value:{mark}.{digits}f} ({interval.low:{mark}.{digits}f} to {interval.high:{mark}.{digits}f})"


def cells(interval: Interval) -> dict[str, Any]:
    """Columns of a CSV file."""
    ends = {"value": interval.value, "low": interval.low, "high": interval.high}
    numbers = {key: round(value, 6) if math.isfinite(value) else "" for key, value in ends.items()}
    return {**numbers, "verdict": verdict(interval)}


def listed(words: Sequence[str]) -> str:
    """ "a, b and c"."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:]))) if words else ""
