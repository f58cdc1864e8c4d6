"""Findings about fronts: where the best networks of each bit-width lie, and which bit-width pays at a budget."""

from collections.abc import Mapping, Sequence

import numpy as np

from oncequant.analysis.charts import Series, scatter
from oncequant.analysis.factors import Factor, cost_of, whole_factors
from oncequant.analysis.finding import LEAST, OQAT, Finding, Table, agreement, cells, decided, listed, shown, sided
from oncequant.analysis.probes import Answered, Design, Uniform
from oncequant.analysis.statistics import front_of, front_shift, intervals_of
from oncequant.arch import FLOAT_BITS
from oncequant.cost import COSTS, readable
from oncequant.intervals import CONFIRMED, REFUTED, UNDECIDED, Interval, difference_on_images, verdict
from oncequant.records import Measurement

BUDGETS = 6
AXES = ("weight_bytes", "bitops")
ALONE = "nothing else fits"
OUTCOMES = (CONFIRMED, REFUTED, UNDECIDED)


def location(design: Design, answers: Answered, searched: Sequence[Measurement]) -> Finding | None:
    """Where the front of each bit-width lies; None with too few networks. `searched` is what a search has measured."""
    space = (design.spaces or {})[design.reference.stage]
    factors, values = whole_factors(design.archs, space)
    if len(design.archs) < LEAST or len(design.uniforms) < 2 or not factors:
        return None
    macs = cost_of([design.arch_at(arch, design.reference) for arch in design.archs], space, "macs")
    accuracies = {one: answers.uniform[one].mean(1) for one in design.uniforms}
    high, low = design.uniforms[0], design.uniforms[-1]
    rows, table = [], []
    shifts: list[Interval] = []  # of the lowest bit-width at the end
    for one in design.uniforms:
        front = front_of(macs, accuracies[one])
        means = searched_front(design, one, searched)
        if one != high:
            shifts = intervals_of(front_shift(values, np.log(macs), accuracies[one], accuracies[high]), len(macs))
        for k, factor in enumerate(factors):
            mean = {"mean_of_front": values[front, k].mean(), "mean_of_all": values[:, k].mean()}
            line = {"bits": one.bits, "factor": factor.kind, "members": len(front)}
            line |= {key: round(float(value), 6) for key, value in mean.items()}
            line["mean_of_searched_front"] = round(float(means[factor]), 6) if factor in means else ""
            rows.append(line | ({} if one == high else {f"shift_{k}": v for k, v in cells(shifts[k]).items()}))
            text = f"{means[factor]:.2f}" if factor in means else "–"
            moved = "–" if one == high else shown(shifts[k])
            numbers = [f"{value:.2f}" for value in mean.values()]
            table.append([one.label, factor.label, *numbers, text, moved])
    more, less = sided((factor.label, shift) for factor, shift in zip(factors, shifts))
    changes = [f"a larger {text}" for text in more] + [f"a smaller {text}" for text in less]
    words = [
        f"At equal MACs the front of {low.label} has {listed(changes)} than that of {high.label}."
        if changes
        else f"At equal MACs no difference can be told between the fronts of {low.label} and {high.label}."
    ]
    paper = [f"{OQAT} finds the front of 2 bits shallower than that of 4 bits."]
    depth = next((shift for factor, shift in zip(factors, shifts) if factor.kind == "depth"), None)
    paper += ["These networks have no choice of depth, so this run cannot say."] if depth is None else [
        agreement(depth, claims_more=False)
    ]  # fmt: skip
    caption = (
        "Means over the front of accuracy and MACs of the random networks, over all of them, and over the front that "
        f"the search found; and what the front has more than that of {high.label} at equal MACs"
    )
    columns = ["Bits", "Property", "Front", "All random", "Front of the search", "More (interval)"]
    series = [
        Series(one.label, one.bits, np.stack([macs, 100 * accuracies[one]], 1), np.stack(
            [macs, 100 * accuracies[one]], 1)[front_of(macs, accuracies[one])])
        for one in design.uniforms
    ]  # fmt: skip
    about = f"Top-1 against MACs of the random networks, with a line along the front of each bit-width. {words[0]}"
    picture = scatter(series, "MACs", "top-1 (%)", about, log_x=True)
    tables = [Table(caption, columns, table)]
    return Finding("fronts", "Where the front of each bit-width lies", words, paper, picture, tables, {"fronts": rows})


def searched_front(design: Design, one: Uniform, searched: Sequence[Measurement]) -> dict[Factor, float]:
    """Means over the front that a search has measured at a bit-width; {} where it has measured little, and without
    properties in which its members are all alike."""
    space = (design.spaces or {})[one.stage]
    own = [m for m in searched if m.stage == one.stage]
    own = [m for m in own if len({m.arch[n] for n in m.arch if n.endswith("_bits")} - {one.bits}) == 0]
    if len(own) < LEAST:
        return {}
    costs = np.array([m.costs["bitops"] for m in own])
    front = front_of(costs, np.array([m.top1 for m in own]))
    factors, values = whole_factors([space.complete(own[i].arch) for i in front], space)
    return dict(zip(factors, values.mean(0)))


def budgets(design: Design, answers: Answered) -> Finding | None:
    """Which bit-width pays at a budget of bytes or of BitOPs; None with too few networks."""
    quantized = [one for one in design.uniforms if one.bits != FLOAT_BITS]
    if len(design.archs) < LEAST or len(quantized) < 2:
        return None
    lowest, rows, tables, words, series = quantized[-1], [], [], [], []
    for cost in AXES:
        costs = {
            one: cost_of([design.arch_at(a, one) for a in design.archs], (design.spaces or {})[one.stage], cost)
            for one in quantized
        }
        low, high = costs[lowest].min(), max(values.max() for values in costs.values())
        table: list[list[str]] = []
        open_ends: list[float] = []
        told: dict[str, list[str]] = {name: [] for name in (ALONE, *OUTCOMES)}
        for limit in np.geomspace(low, high, BUDGETS + 1)[1:]:
            best, size = best_of(answers, costs, limit), amount(cost, limit)
            row = [size, *(f"{100 * best[one][1].mean():.2f} %" if one in best else "–" for one in quantized)]
            line = {"cost": cost, "budget": round(float(limit), 1), "bits": lowest.bits}
            others = {one: found for one, found in best.items() if one != lowest}
            if not others:
                told[ALONE].append(size)
                rows.append(line | {"other_bits": "", "verdict": ALONE})
                table.append([*row, f"only {lowest.label} fit"])
                continue
            rival = max(others, key=lambda one: others[one][0])
            apart = difference_on_images(best[lowest][1], others[rival][1]).scaled(100)
            rows.append(line | {"other_bits": rival.bits, **cells(apart)})
            told[verdict(apart)].append(size)
            open_ends += [apart.low, apart.high] * (verdict(apart) == UNDECIDED)
            so = decided(apart, f"{lowest.label} pay", f"{rival.label} are better", "undecided")
            table.append([*row, f"{so}: {shown(apart)}"])
        name = COSTS[cost].label.lower() if cost == AXES[0] else COSTS[cost].label
        tables.append(
            Table(
                f"Best top-1 within a budget of {name}, and {lowest.label} against the best other bit-width in points",
                ["Budget", *(one.label for one in quantized), "So (interval)"],
                table,
            )
        )
        words.append(f"Budgets of {name}: {in_words(told, lowest.label)}{_bounds(lowest.label, open_ends)}.")
        if cost == AXES[0]:
            for one in quantized:
                accuracies = 100 * answers.uniform[one].mean(1)
                points = np.stack([costs[one], accuracies], 1)
                series.append(Series(one.label, one.bits, points, points[front_of(costs[one], accuracies / 100)]))
    picture = scatter(
        series, COSTS[AXES[0]].title, "top-1 (%)", "Top-1 against packed weights of the random networks at each "
        f"bit-width, with a line along each front. {words[0]}", log_x=True,
    )  # fmt: skip
    paper = [
        f"The networks that the authors of {OQAT} published, by BitOPs, as we count: 3 bits and 4 bits are close (69.0 "
        "and 68.9 % on ImageNet at 1.9 G, 70.5 and 71.3 % at 2.6 G), and 2 bits are behind (64.2 % at 1.8 G)."
    ]
    return Finding("budgets", "Which bit-width pays at a budget", words, paper, picture, tables, {"budgets": rows})


def amount(cost: str, limit: float) -> str:
    """A budget, for people: 12.3 kB, 4.5 M."""
    number = readable(limit, 3)
    spaced = f"{number[:-1]} {number[-1]}" if number[-1].isalpha() else f"{number} "
    return f"{spaced}B" if cost == AXES[0] else spaced.strip()


def in_words(told: Mapping[str, Sequence[str]], label: str) -> str:
    """What follows at which budgets."""
    texts = {
        ALONE: f"at {{}} only {label} fit",
        CONFIRMED: f"{label} pay at {{}}",
        REFUTED: "more bits are better at {}",
        UNDECIDED: "undecided at {}",
    }
    return "; ".join(text.format(listed(told[name])) for name, text in texts.items() if told[name])


def _bounds(label: str, ends: Sequence[float]) -> str:
    """What is known where it is undecided; `ends` are those of the intervals there."""
    if not ends:
        return ""
    return f", where {label} are at most {max(0, -min(ends)):.1f} points worse and {max(0, max(ends)):.1f} better"


def best_of(
    answers: Answered, costs: dict[Uniform, np.ndarray], limit: float
) -> dict[Uniform, tuple[float, np.ndarray]]:
    """Of each bit-width that has a network within the limit, the best one: the accuracy by which it is chosen, and its
    answers, (images,). Each half of the images is answered by the network that is best on the other half: else the
    bit-width with the noisier accuracies would win."""
    found = {}
    for one, own in costs.items():
        fits = np.flatnonzero(own <= limit * (1 + 1e-9))
        if len(fits):
            right = answers.uniform[one][fits]
            accuracies = right[:, ::2].mean(1), right[:, 1::2].mean(1)
            first, second = map(np.argmax, accuracies)
            judged = right[second].copy()
            judged[1::2] = right[first, 1::2]
            found[one] = float(accuracies[0][first] + accuracies[1][second]) / 2, judged
    return found
