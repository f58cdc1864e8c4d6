"""DNAS: the networks of both costs, and claim C7 beside the paper."""

from collections.abc import Callable, Sequence

from .cells import Read, Row, fixed, kb, markdown, mean_and_std, millions, one

NAMES = {
    "float": "float",
    "MA": "DNAS, most accurate (MA)",
    "ME": "DNAS, most efficient (ME)",
    **{f"uniform-{bits}": f"uniform {bits} bits, LSQ" for bits in (1, 2, 3, 4, 8)},
    "random-MA": "random, MA's cost within 3 percent",
    "random-ME": "random, ME's cost within 3 percent",
    "uniform at MA's cost": "uniform LSQ, interpolated to MA's cost",
    "uniform at ME's cost": "uniform LSQ, interpolated to ME's cost",
}


def networks(rows: Sequence[Row], cost: Callable[[Row], str], factor: str, name: str) -> str:
    """All networks of one cost."""
    lines = []
    for row in rows:
        images = row["million_training_images"] or "–"
        below = fixed(row.number("points_below_float"))
        cells = (
            NAMES.get(row["network"], row["network"]),
            mean_and_std(row),
            below,
            cost(row),
            fixed(row.number(factor), 1),
            images,
        )
        lines.append(cells)
    return markdown(["", "test top-1", "points below float", name, "factor", "million training images"], lines)


def cifar10_dnas_bytes(read: Read) -> str:
    """Bytes of weights."""
    rows = read("cifar10-jpeg75_dnas-weight_bytes_cpu_202611")
    return networks(rows, lambda row: kb(row, digits=1) + " kB", "times_smaller", "weights")


def cifar10_dnas_bitops(read: Read) -> str:
    """Bit operations."""
    rows = read("cifar10-jpeg75_dnas-bitops_cpu_202611")
    return networks(rows, lambda row: millions(row) + " M", "times_fewer_bitops", "BitOPs")


def dnas_claim_c7(read: Read) -> str:
    """Beside the paper."""
    ours, paper = read("cifar10-jpeg75_dnas-weight_bytes_cpu_202611"), read("dnas_published_typed_202611")
    lines = []
    for network in ("float", "MA", "ME"):
        cells = [network]
        for row in (one(ours, network=network), one(paper, network=network)):
            smaller = "" if network == "float" else f"{fixed(row.number('times_smaller'), 1)} times smaller"
            cells += [mean_and_std(row), smaller]
        lines.append(cells)
    return markdown(["", "here", "", "paper", ""], lines)
