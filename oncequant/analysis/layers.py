"""Findings about layers: what a bit more is worth in each role and part, and which bits the best networks have."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from oncequant.analysis.charts import intervals
from oncequant.analysis.factors import Bits, bits_of, layers_with_choices, prices_of
from oncequant.analysis.finding import DNAS, LEAST, QFA, Finding, Table, agreement, cells, decided, listed, shown
from oncequant.analysis.probes import Answered, Design
from oncequant.analysis.statistics import front_of, grouped_slopes, intervals_of, log_odds, points_per_log_odds
from oncequant.arch import FLOAT_BITS, SKIP
from oncequant.intervals import CONFIRMED, REFUTED, Interval, verdict
from oncequant.records import Measurement
from oncequant.report.contents import Contents
from oncequant.report.sections import page_data, shares_by_role

TENTH = float(np.log(1.1))  # one tenth more BitOPs, in their logarithm
QFA_MEANS = {  # of the 181 networks that QFA's authors published, as we count
    Bits("role", "expand", "weights"): 2.65, Bits("role", "depthwise", "weights"): 3.19,
    Bits("role", "project", "weights"): 2.74,
}  # fmt: skip


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
    for by in ("role", "part"):
        keys, values = bits_of(design.policies, space, by)
        if not keys or len(design.policies) < len(keys) + len(set(hosts)) + 10:
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
        about = "role of layers" if by == "role" else "part of the network"
        pictures.append(f"<p>By {about}:</p>")
        title = "points for a tenth more BitOPs, less the mean"
        drawn = [(key.label, lead, max(one.bits for one in design.uniforms)) for key, lead in zip(keys, leads)]
        pictures.append(intervals(drawn, title, f"What bits are worth, by {about}; the table has the numbers"))
        cells_of = [
            [key.label, shown(gain), shown(lead), _so(lead)] for key, gain, lead in zip(keys, gains, leads)
        ]  # fmt: skip
        caption = (
            f"By {about}: points that one bit more in all of its layers brings, and points for a tenth more BitOPs "
            "that are spent there, less what they bring when all layers share them"
        )
        tables.append(Table(caption, ["Layers", "A bit more (interval)", "Lead (interval)", "So"], cells_of))
        words.append(_in_words(about, dict(zip(keys, leads))))
    if not rows:
        return None
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
    more = [f"{key.label} ({shown(lead)})" for key, lead in leads.items() if verdict(lead) == CONFIRMED]
    less = [f"{key.label} ({shown(lead)})" for key, lead in leads.items() if verdict(lead) == REFUTED]
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


def along_the_front(run: Contents) -> Finding | None:
    """Which bits the layers of the best networks have; None where no bits are chosen."""
    data = page_data(run)
    shares, networks = data["bits_by_role"], "the front of validation top-1 and BitOPs of the search"
    pairs = [stage for stage, space in run.spaces.items() if any(name.endswith(".precision") for name in space.free)]
    if not shares and pairs:
        shares, networks = front_of_pairs(run, pairs[-1])
    if not shares:
        return None
    rows = [
        {
            "by": "front",
            "name": row["role"],
            "what": row["what"],
            "layers": row["layers"],
            "mean": round(row["mean"], 6),
        }
        | {f"share_{bits}": round(share, 6) for bits, share in row["shares"].items()}
        for row in shares
    ]
    widths = sorted({bits for row in shares for bits in row["shares"]})
    table = Table(
        f"Bit-widths of the layers of {networks}: share of the layers of each role",
        ["Role", "Of", "Layers", *(_bits(bits) for bits in widths), "Mean"],
        [
            [row["role"].replace("_", " "), row["what"], str(row["layers"])]
            + [f"{100 * row['shares'].get(bits, 0):.0f} %" for bits in widths]
            + [f"{row['mean']:.2f}"]
            for row in shares
        ],
    )
    ordered = sorted(shares, key=lambda row: -row["mean"])
    words = [
        f"Along {networks}, {ordered[0]['role'].replace('_', ' ')} {ordered[0]['what']} have the most bits "
        f"({ordered[0]['mean']:.2f} in the mean), {ordered[-1]['role'].replace('_', ' ')} {ordered[-1]['what']} the "
        f"fewest ({ordered[-1]['mean']:.2f}). These are counts of the networks that were found, without an interval."
    ]
    tables = [table]
    paper = _papers_of_front(shares, bool(pairs) and not data["bits_by_role"])
    if data["distribution"]:
        tables.append(expected_bits(data["distribution"]))
    return Finding("front_bits", "Which bits the best networks have", words, paper, "", tables, {"bits": rows})


def front_of_pairs(run: Contents, stage: str) -> tuple[list[dict[str, Any]], str]:
    """Shares of bits along the front of networks whose choices are pairs of bit-widths."""
    space = run.spaces[stage]
    own: Sequence[Measurement] = [m for m in run.measurements if m.stage == stage]
    cost = run.info.get("method_config", {}).get("cost", "weight_bytes")
    cost = cost if own and all(cost in m.costs for m in own) else "weight_bytes"
    if not own:
        return [], ""
    front = front_of(np.array([m.costs[cost] for m in own]), np.array([m.top1 for m in own]))
    layers = [
        (name, spec.role, int(spec.weight_bits), int(spec.act_bits))
        for i in front
        for name, spec in space.layers(space.complete(own[i].arch)).items()
        if spec.present
    ]
    label = next((each.title for each in run.costs if each.name == cost), cost)
    return shares_by_role(layers, layers_with_choices(space)), f"the {len(front)} networks on the front of {label}"


def expected_bits(distribution: dict[str, Any]) -> Table:
    """What the search has learned: of each choice its likeliest pair at the end, and that pair's probability."""
    last = np.array(distribution["tables"][-1])
    best = last.argmax(1)
    rows = [
        [name, distribution["candidates"][i], f"{100 * row[i]:.0f} %"]
        for name, i, row in zip(distribution["choices"], best, last)
    ]
    return Table(
        "At the end of the search, the likeliest candidate of each choice (W: bits of weights, A: bits of inputs)",
        ["Choice", "Candidate", "Probability"],
        rows,
    )


def _papers_of_front(shares: Sequence[dict[str, Any]], is_dnas: bool) -> list[str]:
    if is_dnas:
        return [
            f"{DNAS} keeps the first and the last layer in float. Of the layers between we know of no rule that it "
            "states, so nothing is compared."
        ]
    means = {Bits("role", row["role"], row["what"]): row["mean"] for row in shares}
    known = {key: value for key, value in QFA_MEANS.items() if key in means}
    if not known:
        return [f"{QFA} says something of depthwise layers and expansions alone; there are none here."]
    ours = ", ".join(f"{key.name} {means[key]:.2f}" for key in known)
    theirs = ", ".join(f"{key.name} {value:.2f}" for key, value in known.items())
    same = sorted(known, key=lambda key: means[key]) == sorted(known, key=lambda key: known[key])
    verdict_text = "The order is the same." if same else "The order is another one."
    return [f"Mean bits of weights in the networks of {QFA}, as we count: {theirs}. Here: {ours}. {verdict_text}"]


def _bits(bits: int) -> str:
    return {FLOAT_BITS: "float", SKIP: "left out"}.get(bits, f"{bits} bit")
