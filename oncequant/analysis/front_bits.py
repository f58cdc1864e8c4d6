"""The finding about the bit-widths that the layers of the best networks of mixed precision have."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from oncequant.analysis.charts import intervals
from oncequant.analysis.factors import GROUPS, HIGHEST, Bits, layers_with_choices
from oncequant.analysis.finding import DNAS, QFA, Finding, Table, agreement, cells, decided, listed, shown, sided
from oncequant.analysis.probes import part_of
from oncequant.analysis.statistics import intervals_of
from oncequant.arch import FLOAT_BITS
from oncequant.intervals import Interval
from oncequant.report.contents import Contents
from oncequant.report.sections import Layers, mixed_fronts, page_data, shares_by_role

FEWEST = 5  # networks from which an interval is made
QFA_MEANS = {  # of the 181 networks that QFA's authors published, as we count
    "depthwise": 3.19, "project": 2.74, "expand": 2.65,
}  # fmt: skip


def front_bits(run: Contents) -> Finding | None:
    """Which bits the layers of the best networks have; None where no bits are chosen."""
    data = page_data(run)
    title = "the search's front of top-1 and BitOPs"
    fronts = mixed_fronts(data, [cost.name for cost in run.costs].index("bitops"))
    networks = [net for front, _ in fronts for net in front]
    chosen = {one for _, own in fronts for one in own}
    if not networks:
        networks, chosen = networks_of_pairs(run)
        title = "the networks that the search drew and trained"
    if not networks:
        return None
    rows: list[dict[str, Any]] = []
    tables, pictures, words = [], [], []
    leads: dict[Bits, Interval] = {}
    for by, about in GROUPS.items():
        named = [[(n, r if by == "role" else part_of(n), w, a) for n, r, w, a in net] for net in networks]
        shares = shares_by_role([layer for net in named for layer in net], chosen)
        if len(shares) < 2:
            continue
        own = lead_of(named, chosen, [Bits(by, row["role"], row["what"]) for row in shares])
        leads |= own
        for row, (key, lead) in zip(shares, own.items()):
            line = {"by": f"{by} on the front", "name": key.name, "what": key.what, "networks": len(networks)}
            line |= {"layers": row["layers"], "mean": round(row["mean"], 6), **cells(lead)}
            rows.append(line | {f"share_{bits}": round(share, 6) for bits, share in row["shares"].items()})
        tables.append(_table(f"By {by}: bit-widths of the layers of {title}", shares, own))
        bars = [(key.label, lead, HIGHEST) for key, lead in own.items()]
        pictures.append(
            intervals(bars, "bits more than the mean", f"Bits by {about}, on {title}; the table has the numbers")
        )
        words.append(_in_words(about, title, len(networks), own))
    if data["distribution"]:
        tables.append(likeliest(data["distribution"]))
    if not words:
        words = [f"All layers of {title} whose bits are chosen have one role, so that there is nothing to compare."]
    paper = _papers(leads, is_dnas=not fronts)
    return Finding(
        "front_bits", "Which bits the best networks have", words, paper, "".join(pictures), tables, {"bits": rows}
    )


def networks_of_pairs(run: Contents) -> tuple[list[Layers], set[tuple[str, str]]]:
    """The layers of all networks whose choices are pairs of bit-widths, and whose bits are chosen, as `mixed_fronts`.
    All of them, not their front alone: DNAS trains few, and draws them where accuracy and cost are good."""
    stages = [stage for stage, space in run.spaces.items() if any(n.endswith(".precision") for n in space.free)]
    own = [m for m in run.measurements if m.stage in stages]
    if not own:
        return [], set()
    space = run.spaces[own[-1].stage]
    return [
        [
            (name, spec.role, int(spec.weight_bits), int(spec.act_bits))
            for name, spec in space.layers(space.complete(one.arch)).items()
            if spec.present
        ]
        for one in own
        if one.stage == own[-1].stage
    ], layers_with_choices(space)


def lead_of(networks: Sequence[Layers], chosen: set[tuple[str, str]], keys: Sequence[Bits]) -> dict[Bits, Interval]:
    """By how many bits the layers of a group are above the mean of all layers of their network, in the mean of the
    networks; the interval is over networks. Bit-widths above HIGHEST count as that."""
    table = np.full((len(networks), len(keys)), np.nan)
    for number, net in enumerate(networks):
        found: dict[tuple[str, str], list[int]] = {}
        for name, group, *bits in net:
            for what, width in zip(("weights", "inputs"), bits):
                if (name, what) in chosen:
                    found.setdefault((group, what), []).append(min(width, HIGHEST))
        every = [width for widths in found.values() for width in widths]
        for column, key in enumerate(keys):
            if own := found.get((key.name, key.what)):
                table[number, column] = np.mean(own) - np.mean(every)
    if len(networks) < FEWEST:
        return {key: Interval(float(np.nanmean(c)), -np.inf, np.inf) for key, c in zip(keys, table.T)}

    def means(drawn: np.ndarray) -> np.ndarray:
        rows = table[drawn]
        there = ~np.isnan(rows)
        return np.where(there, rows, 0).sum(0) / np.where(there.any(0), there.sum(0), np.nan)

    return dict(zip(keys, intervals_of(means, len(networks))))


def _in_words(about: str, title: str, count: int, leads: dict[Bits, Interval]) -> str:
    if count < FEWEST:
        most = max(leads, key=lambda key: leads[key].value)
        return (
            f"By {about}: on {title} {most.label} have the most bits. They are {count} of mixed bit-widths, too few "
            "for an interval."
        )
    more, less = sided((key.label, lead) for key, lead in leads.items())
    if not more and not less:
        return f"By {about}: on {title} no layers can be told to have more bits than the mean of their network."
    parts = [f"more bits than the mean are in {listed(more)}"] * bool(more)
    parts += [f"fewer are in {listed(less)}"] * bool(less)
    return f"By {about}: on {title} {'; '.join(parts)}."


def _table(caption: str, shares: Sequence[dict[str, Any]], leads: dict[Bits, Interval]) -> Table:
    widths = sorted({bits for row in shares for bits in row["shares"]})
    rows = [
        [key.label, str(row["layers"])]
        + [f"{100 * row['shares'].get(bits, 0):.0f} %" for bits in widths]
        + [f"{row['mean']:.2f}", shown(lead), decided(lead, "more bits", "fewer bits", "undecided")]
        for row, (key, lead) in zip(shares, leads.items())
    ]
    names = ["float" if bits == FLOAT_BITS else f"{bits} bit" for bits in widths]
    return Table(caption, ["Layers", "Count", *names, "Mean", "Less the mean of all (interval)", "So"], rows)


def likeliest(distribution: dict[str, Any]) -> Table:
    """What the search has learned: of each choice its likeliest pair at the end, and that pair's probability."""
    last = np.array(distribution["tables"][-1])
    best = last.argmax(1)
    rows = [
        [name, distribution["candidates"][i], f"{100 * row[i]:.0f} %"]
        for name, i, row in zip(distribution["choices"], best, last)
    ]
    caption = "At the end of the search, the likeliest candidate of each choice (W: bits of weights, A: bits of inputs)"
    return Table(caption, ["Choice", "Candidate", "Probability"], rows)


def _papers(leads: dict[Bits, Interval], is_dnas: bool) -> list[str]:
    """What the paper says of roles, and whether this agrees."""
    if is_dnas:
        return [
            f"{DNAS} keeps the first and the last layer in float. Of the layers between we know of no rule that it "
            "states, so nothing is compared."
        ]
    means = ", ".join(f"{role} {mean}" for role, mean in QFA_MEANS.items())
    said = [f"Mean bits of weights in the networks that the authors of {QFA} published, as we count: {means}."]
    for role, most in (("depthwise", True), ("expand", False)):
        text = f"{role.capitalize()} weights have {'more' if most else 'fewer'} bits than the mean there."
        lead = leads.get(Bits("role", role, "weights"))
        said.append(f"{text} {agreement(lead, most) if lead else 'There are no such layers here.'}")
    return said
