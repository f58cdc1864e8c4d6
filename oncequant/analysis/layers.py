"""The finding about what a bit more is worth in each role and part of a network."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from oncequant.analysis.charts import intervals
from oncequant.analysis.factors import GROUPS, HIGHEST, Bits, bits_of, prices_of
from oncequant.analysis.finding import LEAST, QFA, Finding, Table, agreement, cells, decided, listed, shown, sided
from oncequant.analysis.probes import Answered, Design
from oncequant.analysis.statistics import grouped_slopes, intervals_of, log_odds, points_per_log_odds
from oncequant.arch import FLOAT_BITS
from oncequant.intervals import Interval

PER_NUMBER = 2  # networks for each number that a regression estimates, or draws from them do not suffice
TENTH = float(np.log(1.1))  # one tenth more BitOPs, in their logarithm


def worth(design: Design, answers: Answered) -> Finding | None:
    """What a bit more is worth in each role and part of the network; None with too few networks."""
    if len(design.policies) < LEAST or design.policy_space is None:
        return None
    space = design.policy_space
    hosts = host_numbers(design)
    right = answers.policies
    points = log_odds(right) * points_per_log_odds(right)
    rows: list[dict[str, Any]] = []
    tables, pictures, words = [], [], []
    found: dict[Bits, Interval] = {}
    for by, about in GROUPS.items():
        keys, values = bits_of(design.policies, space, by)
        needed = PER_NUMBER * (len(keys) + len(set(hosts)))
        if not keys or len(design.policies) < needed:
            if keys:
                words.append(f"By {about}: {len(design.policies)} networks are too few. Give --evaluations {needed}.")
            continue
        prices = prices_of(design.policies, space, keys)

        def slopes(drawn: np.ndarray, values: np.ndarray = values, prices: np.ndarray = prices) -> np.ndarray:
            """Points a bit; points for a tenth more BitOPs, more than the same bits in all layers would bring."""
            gain = grouped_slopes(values[drawn], points[drawn], hosts[drawn])
            price = prices[drawn].mean(0)
            return np.concatenate([gain, TENTH * (gain / price - gain.sum() / price.sum())])

        both = intervals_of(slopes, len(design.policies))
        gains, leads = both[: len(keys)], both[len(keys) :]
        found |= dict(zip(keys, leads))
        for key, gain, lead in zip(keys, gains, leads):
            line = {"by": by, "name": key.name, "what": key.what, "networks": len(right), **cells(gain)}
            rows.append(line | {f"lead_{name}": value for name, value in cells(lead).items()})
        drawn = [(key.label, lead, HIGHEST) for key, lead in zip(keys, leads)]
        alternative = f"What bits are worth, by {about}; the table has the numbers"
        pictures.append(intervals(drawn, "points for a tenth more BitOPs, less the mean", alternative))
        texts = [[key.label, shown(gain), shown(lead), _so(lead)] for key, gain, lead in zip(keys, gains, leads)]
        caption = (
            f"By {about}: points that one bit more in all of its layers brings, and points for a tenth more BitOPs "
            "that are spent there, less what they bring when all layers share them"
        )
        tables.append(Table(caption, ["Layers", "A bit more (interval)", "Lead (interval)", "So"], texts))
        words.append(_in_words(about, dict(zip(keys, leads))))
    if design.lowers:
        high = max(one.bits for one in design.uniforms if one.bits != FLOAT_BITS)
        words.append(
            f"Layers were lowered from {high} to {high - 1} bits without training: their step sizes are doubled, and "
            "statistics are estimated again. What training would regain is not in it. A run of QFA says more."
        )
    return Finding(
        "worth", "Which layers should keep more bits", words, _papers(found), "".join(pictures), tables, {"bits": rows}
    )


def host_numbers(design: Design) -> np.ndarray:
    """Of each policy, the number of its architecture without bit-widths."""
    known: dict[tuple, int] = {}
    keys = [tuple((n, v) for n, v in arch.items() if not n.endswith("_bits")) for arch in design.policies]
    return np.array([known.setdefault(key, len(known)) for key in keys])


def _in_words(about: str, leads: Mapping[Bits, Interval]) -> str:
    more, less = sided((key.label, lead) for key, lead in leads.items())
    if not more and not less:
        return f"By {about}: no layers can be told to be worth more bits than others."
    parts = [f"keep more bits in {listed(more)}"] * bool(more) + [f"take bits from {listed(less)}"] * bool(less)
    return f"By {about}: at equal BitOPs {' and '.join(parts)}, in points for a tenth more BitOPs than the mean of all."


def _so(lead: Interval) -> str:
    return decided(lead, "worth more bits", "can have fewer", "undecided")


def _papers(leads: Mapping[Bits, Interval]) -> list[str]:
    """What QFA's networks say, and whether this agrees."""
    said = [
        f"The networks that the authors of {QFA} published have, as we count, mean bits of weights of 3.19 in "
        "depthwise layers, 2.74 in projections and 2.65 in expansions: the most in depthwise layers, the fewest in "
        "expansions."
    ]
    for role, most in (("depthwise", True), ("expand", False)):
        lead = leads.get(Bits("role", role, "weights"))
        text = f"{role.capitalize()} weights want {'more' if most else 'fewer'} bits than the mean."
        said.append(f"{text} {agreement(lead, most)}" if lead else f"{text} These networks have no such layers.")
    if not any(Bits("role", role, "weights") in leads for role in ("depthwise", "expand")):
        said[1:] = ["These networks have neither depthwise layers nor expansions, so this run cannot say."]
    return said
