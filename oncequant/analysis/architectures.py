"""Findings about architectures: what fewer bits cost, which architectures stand them, whether rankings stay."""

from itertools import combinations

import numpy as np

from oncequant.analysis.charts import Series, intervals, scatter
from oncequant.analysis.factors import MORE, WHOLE, WIDTHS, Factor, cost_of, factors_of
from oncequant.analysis.finding import (
    LEAST,
    OQAT,
    Finding,
    Table,
    agreement,
    cells,
    decided,
    listed,
    shown,
    sided,
)
from oncequant.analysis.probes import Answered, Design, Uniform, largest_of
from oncequant.analysis.statistics import (
    intervals_of,
    log_odds,
    partial_effects,
    points_per_log_odds,
    rank_agreement,
    standardised,
)
from oncequant.arch import FLOAT_BITS
from oncequant.intervals import (
    CONFIRMED,
    Interval,
    crossed_interval,
    difference_on_images,
    share_interval,
    verdict,
)

COMPUTE, ACCURACY = "equal compute", "equal accuracy"


def accuracy(design: Design, answers: Answered) -> Finding:
    """What fewer bits cost the same architectures."""
    title, reference = "What fewer bits cost", design.reference
    rows, table = [], []
    words: list[str] = []
    base, images = answers.uniform[reference], next(iter(answers.largest.values())).size
    for one in design.uniforms:
        right = answers.uniform[one]
        loss = _difference(right, base).scaled(100)
        line = {"bits": one.bits, "networks": len(right), "images": images, "top1": round(float(right.mean()), 6)}
        if one == reference:
            rows.append({**line, "reference": True})
            table.append([one.label, str(len(right)), f"{100 * right.mean():.2f} %", "reference"])
            continue
        rows.append({**line, "reference": False, **cells(loss)})
        table.append([one.label, str(len(right)), f"{100 * right.mean():.2f} %", shown(loss)])
        change = decided(loss, "are more accurate than", "are less accurate than", "may be as accurate as")
        words.insert(0, f"At {one.label} the same architectures {change} at {reference.label}: {shown(loss)} points.")
    tables = [
        Table(
            f"Mean top-1 of the same random architectures, and its difference to {reference.label} in points",
            ["Bits", "Networks", "Top-1", "Difference (interval)"],
            table,
        ),
        largest_table(design, answers),
    ]
    costs = cost_of([design.arch_at(arch, reference) for arch in design.archs], _space(design), "macs")
    series = []
    for one in design.uniforms[1:]:
        apart = 100 * (answers.uniform[one].mean(1) - base.mean(1))
        series.append(Series(one.label, one.bits, np.stack([costs, apart], axis=1), np.empty((0, 2))))
    picture = ""
    if series and len(design.archs) > 1:
        picture = scatter(
            series, "MACs", f"points against {reference.label}", f"Difference of top-1 to {reference.label}, against "
            f"MACs: a mark for each architecture and bit-width. {' '.join(words)}", log_x=True, zero=True,
        )  # fmt: skip
    if len({one.stage for one in design.uniforms}) > 1:
        words.append(
            "Each bit-width has a supernet of its own, which goes on from that of the bit-width before. So a "
            "difference is of bits and of longer training together."
        )
    if len(design.uniforms) < 2:
        words = ["Only one bit-width is trained, so that nothing can be compared."]
    return Finding("accuracy", title, words, (), picture, tables, {"accuracy": rows})


def _difference(right: np.ndarray, base: np.ndarray) -> Interval:
    """Mean difference in accuracy between two bit-widths, (networks, images) each; of one architecture alone over
    images."""
    if len(right) == 1:
        return difference_on_images(right[0], base[0])
    return crossed_interval(right.astype(int) - base.astype(int))


def largest_table(design: Design, answers: Answered) -> Table:
    """The largest network at each bit-width against the first, in float where that is trained."""
    uniforms, rows = largest_of(design), []
    for one in uniforms:
        right = answers.largest[one]
        low, high = share_interval(float(right.mean()), len(right))
        apart = "–" if one == uniforms[0] else shown(
            difference_on_images(right, answers.largest[uniforms[0]]).scaled(100)
        )  # fmt: skip
        rows.append([one.label, f"{100 * right.mean():.2f} % ({100 * low:.2f} to {100 * high:.2f})", apart])
    return Table(
        "The largest network alone, with the interval over images",
        ["Bits", "Top-1 (interval)", f"Difference to {uniforms[0].label} (interval)"],
        rows,
    )


def friendliness(design: Design, answers: Answered) -> Finding | None:
    """Which architectures lose least, at equal compute and at equal accuracy; None if there is nothing to compare."""
    lower = [one for one in design.uniforms[1:]]
    factors, values = factors_of(design.archs, _space(design))
    if len(design.archs) < LEAST or not lower or not factors:
        return None
    base = log_odds(answers.uniform[design.reference])
    macs = np.log(cost_of([design.arch_at(a, design.reference) for a in design.archs], _space(design), "macs"))
    effects: dict[tuple[Uniform, str, Factor], Interval] = {}
    for one in lower:
        right = answers.uniform[one]
        response = (log_odds(right) - base) * points_per_log_odds(right)
        for at, covariate in ((COMPUTE, macs), (ACCURACY, base)):

            def slopes(drawn: np.ndarray, covariate: np.ndarray = covariate, response: np.ndarray = response):
                return partial_effects(standardised(values)[drawn], covariate[drawn], response[drawn])

            for factor, effect in zip(factors, intervals_of(slopes, len(design.archs))):
                effects[one, at, factor] = effect
    rows = [
        {"bits": one.bits, "reference_bits": design.reference.bits, "at": at, "factor": factor.kind}
        | {"part": factor.part, "networks": len(design.archs), **cells(effect)}
        for (one, at, factor), effect in effects.items()
    ]
    lowest, whole = lower[-1], [factor for factor in factors if factor.part == WHOLE]
    picture = "".join(
        f"<p>At {at}:</p>"
        + intervals(
            [(factor.label, effects[lowest, at, factor], lowest.bits) for factor in whole],
            f"points per standard deviation, {lowest.label}",
            f"Effect of each property of architectures, at {at}, on what {lowest.label} lose against "
            f"{design.reference.label}, with its interval; the table has the numbers",
        )
        for at in (COMPUTE, ACCURACY)
        if any(np.isfinite(effects[lowest, at, factor].value) for factor in whole)
    )
    tables = [
        Table(
            f"At {at}: points that {one.label} lose less, against {design.reference.label}, for one standard deviation "
            "more of a property",
            ["Property", "Effect (interval)", "So"],
            [
                [factor.label, shown(effects[one, at, factor]), _so(factor, effects[one, at, factor])]
                for factor in (factors if one == lowest else whole)
            ],
        )
        for one in lower
        for at in (COMPUTE, ACCURACY)
    ]
    words = [_in_words(effects, lowest, at, whole) for at in (COMPUTE, ACCURACY)]
    words.append(
        f"Of the {len(effects)} intervals in the tables about {max(1, round(0.05 * len(effects)))} would leave out 0 "
        "by chance alone."
    )
    return Finding(
        "friendliness", "Which architectures stand few bits", words, _papers(effects, lowest, design.reference),
        picture, tables, {"effects": rows},
    )  # fmt: skip


def _in_words(effects: dict, lowest: Uniform, at: str, factors: list[Factor]) -> str:
    """The finding at equal compute or accuracy in one sentence."""
    names = [MORE.get(factor.kind, ("", f"more {factor.label}"))[1] for factor in factors]
    more, less = sided((name, effects[lowest, at, factor]) for name, factor in zip(names, factors))
    if not more and not less:
        return (
            f"At {at}, no property of architectures makes a difference at {lowest.label} that can be told from chance."
        )
    sentences = [f"At {at}, these lose less at {lowest.label}: {listed(more)}."] * bool(more)
    sentences += [f"At {at}, these lose more at {lowest.label}: {listed(less)}."] * bool(less)
    return f"{' '.join(sentences)} Numbers are points per standard deviation."


def _so(factor: Factor, effect: Interval) -> str:
    """What follows from an effect, in a few words."""
    name = MORE.get(factor.kind, ("", f"more {factor.label}"))[1]
    if not np.isfinite(effect.value):
        return "cannot be told apart from the other side of the comparison"
    return decided(effect, f"{name} lose less", f"{name} lose more", "undecided")


def _papers(effects: dict, lowest: Uniform, reference: Uniform) -> list[str]:
    """What OQAT says, and whether this agrees."""
    claims = [("depth", COMPUTE, False, "shallower networks"), ("resolution", COMPUTE, True, "larger images")]
    known = {factor.kind for _, _, factor in effects if factor.part == WHOLE}
    width = next((kind for kind in WIDTHS if kind in known), WIDTHS[0])
    claims.append((width, ACCURACY, True, "wider networks"))
    said = [f"{OQAT} fitted a friendliness factor to about 20,000 networks of MobileNetV3 on ImageNet."]
    if reference.bits != FLOAT_BITS:
        said.append(f"It compares with float. Here {reference.label} stand for it.")
    for kind, at, claims_more, name in claims:
        where = "equal accuracy in float" if at == ACCURACY else at
        text = f"At {where}, {name} quantize better."
        if kind not in known:
            said.append(f"{text} These networks have no choice of it, so this run cannot say.")
            continue
        effect = effects[lowest, at, Factor(kind, WHOLE)]
        said.append(f"{text} {agreement(effect, claims_more)}")
    return said


def ranking(design: Design, answers: Answered) -> Finding | None:
    """Whether the best architecture of one bit-width is the best of another; None with too few networks."""
    if len(design.archs) < LEAST or len(design.uniforms) < 2:
        return None
    rows, table, drawn = [], [], []
    images = next(iter(answers.largest.values())).size
    for one, other in combinations(design.uniforms, 2):
        agree = rank_agreement(answers.uniform[one], answers.uniform[other])
        corrected, ceiling, seen = intervals_of(agree, len(design.archs))
        pair = f"{one.label} and {other.label}"
        rows.append(
            {"first_bits": one.bits, "second_bits": other.bits, "networks": len(design.archs), "images": images}
            | {"seen": cells(seen)["value"], "ceiling": cells(ceiling)["value"], **cells(corrected)}
            | {"verdict": f"rankings differ: {verdict(_apart(corrected))}"}
        )
        known = np.isfinite(corrected.value)
        numbers = [f"{part.value:.3f}" if known else "–" for part in (seen, ceiling)]
        table.append([pair, *numbers, shown(corrected, 3, sign=False)])
        drawn.append((pair, corrected, other.bits))
    first, last = design.uniforms[0], design.uniforms[-1]
    corrected, place = next((c, i) for i, (pair, c, _) in enumerate(drawn) if pair == f"{first.label} and {last.label}")
    lost = _apart(corrected)
    if not np.isfinite(corrected.value):
        words = ["These images are too few to rank these networks: two halves of them do not agree."]
    else:
        differ = "differ" if verdict(lost) == CONFIRMED else "cannot be told apart"
        words = [
            f"The rankings at {first.label} and at {last.label} {differ}: their rank correlation is "
            f"{shown(corrected, 3, sign=False)}, corrected for the noise of {images:,} images. "
            f"Equal rankings would show {table[place][2]} with so many images; {table[place][1]} is seen."
        ]
    accuracies = [answers.uniform[one].mean(1) for one in (first, last)]
    picture = scatter(
        [Series(f"{last.label} against {first.label}", last.bits, 100 * np.stack(accuracies, 1), np.empty((0, 2)))],
        f"top-1 (%) at {first.label}", f"top-1 (%) at {last.label}",
        f"Top-1 of each architecture at {last.label} against {first.label}. {words[0]}",
    )  # fmt: skip
    paper = [
        f"{OQAT} reports two networks of like MACs and like accuracy in float that differ by 5 points "
        "at 2 bits. So an architecture has to be chosen for its bit-width.",
        agreement(lost),
    ]
    caption = (
        "Spearman's rank correlations between bit-widths: as seen, the ceiling that noise sets, and corrected for it "
        "(1: equal rankings; it can exceed 1 by chance)"
    )
    tables = [Table(caption, ["Bit-widths", "Seen", "Ceiling", "Corrected (interval)"], table)]
    return Finding("ranking", "Whether the ranking stays", words, paper, picture, tables, {"correlations": rows})


def _apart(correlation: Interval) -> Interval:
    """What a correlation lacks to 1."""
    return Interval(1 - correlation.value, 1 - correlation.high, 1 - correlation.low)


def _space(design: Design):
    assert design.spaces is not None
    return design.spaces[design.reference.stage]
