"""Claims C1 to C8 of docs/claims.md, judged by the one rule of oncequant/intervals.py."""

import math
from collections.abc import Sequence

from oncequant.intervals import CONFIRMED, Interval, mean_interval, seeds_interval, verdict

from .cells import MARGIN, Read, Row, difference, fixed, markdown, mean_and_std, one, where

TAU = 0.85  # Kendall tau of C6
HEAD = ["claim", "data", "compared", "measured", "difference, 95 % interval", "bound", "verdict"]


def judged(
    name: str, data: str, what: str, measured: str, found: Interval, bound: float = 0.0, digits: int = 2
) -> list:
    """A line of the table: the claim is that the value is above `bound`."""
    text = f"{fixed(found.value, digits)}, one seed" if math.isinf(found.low) else found.text(digits)
    return [name, data, what, measured, text, f"> {bound:g}", verdict(found, bound)]


def two(name: str, data: str, what: str, ours: Row, other: Row, bound: float = 0.0) -> list[str]:
    """A line of the difference between two rows of means over seeds."""
    return judged(name, data, what, f"{mean_and_std(ours)} / {mean_and_std(other)}", difference(ours, other), bound)


def oqat_lines(rows: Sequence[Row], data: str) -> list[list[str]]:
    """C1, C2 and C3."""
    inherited, direct = one(rows, claim="C1", way="inherited 4-3-2"), one(rows, claim="C1", way="direct")
    calibrated, whole = (one(rows, claim="C2", way=w) for w in ("4 -> 3, calibration only", "direct 3-bit training"))
    lines = [
        two("C1", data, "2 bits: inherited / direct", inherited, direct),
        two("C2", data, "3 bits: only calibrated / trained", calibrated, whole),
    ]
    for bits in (4, 3, 2):
        both = (one(rows, claim="C3", bits=bits, way=way) for way in ("from the supernet", "trained alone"))
        lines.append(two("C3", data, f"{bits} bits: from the supernet / trained alone", *both, -MARGIN))
    return lines


def c4_line(read: Read) -> list[str]:
    """C4: forty budgets."""
    rows = where(read("cifar10-jpeg75_oqat-compare_cpu_202611"))
    means = {}
    for way in ("supernet", "nas-then-quantize", "search-then-retrain", "uniform"):
        values = [row.number("top1_test") for row in where(rows, way=way)]
        means[way] = 100 * sum(values) / len(values)
    ours = means.pop("supernet")
    best = max(means, key=lambda way: means[way])
    measured = f"{fixed(ours)} / {fixed(means[best])}"
    found = seeds_interval([ours - means[best]])
    return judged("C4", "CIFAR-10", "40 budgets, 2 bits: supernet / best other way", measured, found)


def c5_lines(read: Read) -> list[list[str]]:
    """C5: BatchQuant against other quantizers of activations."""
    lines = []
    for data, name in (("digits", "digits"), ("cifar10-jpeg75", "CIFAR-10")):
        rows = read(f"{data}_qfa-quantizers_cpu_202611")
        for subnets in ("2 bits", "mixed"):
            ours = one(rows, variant="batchquant", subnets=subnets)
            for variant, title in (("running", "running ranges"), ("lsq", "step sizes of LSQ")):
                what = f"{subnets}: BatchQuant / {title}"
                if any(row["subnets"] == "none" for row in where(rows, variant=variant)):
                    row = one(rows, variant=variant, subnets="none")
                    text = f"{mean_and_std(ours)} / diverged in {row['diverged']} of {ours['seeds']} seeds"
                    lines.append(["C5", name, what, text, "", "", CONFIRMED])
                else:
                    lines.append(two("C5", name, what, ours, one(rows, variant=variant, subnets=subnets)))
    return lines


def c6_lines(read: Read) -> list[list[str]]:
    """C6: Kendall tau of the predictor from 2,000 pairs."""
    lines = []
    for data, name in (("digits", "digits"), ("cifar10-jpeg75", "CIFAR-10")):
        row = one(read(f"{data}_qfa-predictor_cpu_202611"), model="ours", pairs=2000)
        spread, seeds = float(row["std_over_seeds"] or 0), int(row["seeds"])
        found = mean_interval(row.number("kendall_tau"), spread, seeds)
        tau = f"{row['kendall_tau']}, noise ceiling {row['ceiling']}"
        lines.append(judged("C6", name, "Kendall tau from 2,000 pairs", tau, found, TAU, digits=3))
    return lines


def c7_lines(read: Read) -> list[list[str]]:
    """C7: DNAS's two networks against float."""
    rows = read("cifar10-jpeg75_dnas-weight_bytes_cpu_202611")
    whole, lines = one(rows, network="float"), []
    for network, bound in (("MA", 0.0), ("ME", -1.0)):
        row = one(rows, network=network)
        what = f"{network}, {fixed(row.number('times_smaller'), 1)} times smaller / float"
        lines.append(two("C7", "CIFAR-10", what, row, whole, bound))
    return lines


def c8_lines(read: Read) -> list[list[str]]:
    """C8: one supernet of all bit-widths against networks of one each."""
    lines = []
    for data, name in (("digits", "digits"), ("cifar10-jpeg75", "CIFAR-10")):
        rows = read(f"{data}_qfa-uniform_cpu_202611")
        for bits in (2, 3, 4, 8):
            ours = one(rows, variant="one supernet", subnets=f"{bits} bits")
            alone = one(rows, variant=f"dedicated-{bits}", subnets=f"{bits} bits")
            lines.append(two("C8", name, f"{bits} bits: one supernet / a network alone", ours, alone, -MARGIN))
    return lines


def all_claims(read: Read) -> str:
    """Every claim on every data set that it was measured on."""
    lines = [
        *oqat_lines(read("digits_oqat-claims_cpu_202611"), "digits"),
        *oqat_lines(read("cifar10-jpeg75_oqat-claims_cpu_202611"), "CIFAR-10"),
        *oqat_lines(read("cifar10-jpeg75_resnet-oqat-claims_cpu_202611"), "CIFAR-10, residual"),
        c4_line(read),
        *c5_lines(read),
        *c6_lines(read),
        *c7_lines(read),
        *c8_lines(read),
    ]
    return markdown(HEAD, sorted(lines, key=lambda line: line[0]))
