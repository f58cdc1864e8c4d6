"""A supernet's subnets beside networks made by hand for the same budgets."""

from collections.abc import Callable, Sequence

from .cells import Read, Row, fixed, kb, markdown, millions, percent, where

Line = tuple[str, Callable[[Row], str]]


def by_budget(rows: Sequence[Row], budget: Line, supernet: Sequence[Line], by_hand: Sequence[Line]) -> str:
    """A column for each budget; lines are a name and what to show of a network."""
    head, lines = [budget[0]], []
    head += [budget[1](row) for row in where(rows, way="supernet")]
    for way, wanted in (("supernet", supernet), ("hand-made", by_hand)):
        networks = where(rows, way=way)
        lines += [[name, *map(cell, networks)] for name, cell in wanted]
    return markdown(head, lines)


def top1(row: Row) -> str:
    """Test top-1 in percent."""
    return percent(row, "top1_test")


def bitops(row: Row) -> str:
    """Millions of bit operations."""
    return millions(row, digits=0)


def cifar10_hand_made(read: Read) -> str:
    """Budgets of bit operations."""
    rows = read("cifar10-jpeg75_hand-made_cpu_202611")
    shown = [("kB of packed weights", kb), ("test top-1 %", top1)]
    first = {row["arch"]: row["budget"] for row in reversed(rows)}  # a network of several budgets was trained once

    def seconds(row: Row) -> str:
        return fixed(row.number("seconds"), 0) if row["budget"] == first[row["arch"]] else "the same"

    return by_budget(
        rows,
        ("budget, M BitOPs", lambda row: millions(row, "budget", 0)),
        [("supernet: M BitOPs", bitops), *shown],
        [("by hand: M BitOPs", bitops), *shown[:1], ("seconds that it took", seconds), *shown[1:]],
    )


def cifar10_hand_made_bytes(read: Read) -> str:
    """Budgets of bytes."""
    shown = [("M BitOPs", bitops), ("test top-1 %", top1)]
    return by_budget(
        read("cifar10-jpeg75_hand-made-bytes_cpu_202611"),
        ("budget, kB", lambda row: kb(row, "budget")),
        [("supernet: kB of packed weights", kb), *shown],
        [("by hand: kB of packed weights", kb), *shown],
    )


def handed_out(rows: Sequence[Row], way: str) -> list[Row]:
    """For each budget, rising, the most accurate network on validation images of those that fit, as `oncequant compare`
    counts them."""
    found: list[Row] = []
    for row in where(rows, way=way):
        keeps = found and found[-1].number("top1_validation") > row.number("top1_validation")
        found.append(found[-1] if keeps else row)
    return found


def cifar10_hand_made_hour(read: Read) -> str:
    """Budgets of bytes, from the default run; what each way hands out."""
    rows = read("cifar10-jpeg75_hand-made-hour_cpu_202611")
    supernet, by_hand = (handed_out(rows, way) for way in ("supernet", "hand-made"))
    lines = [
        ["supernet: kB of packed weights", *map(kb, supernet)],
        ["M BitOPs", *map(bitops, supernet)],
        ["test top-1 %", *map(top1, supernet)],
        ["by hand: kB of packed weights", *map(kb, by_hand)],
        ["M BitOPs", *map(bitops, by_hand)],
        ["test top-1 %", *map(top1, by_hand)],
        ["the widest that fits: test top-1 %", *map(top1, where(rows, way="hand-made"))],
    ]
    return markdown(["budget, kB", *(kb(row, "budget") for row in where(rows, way="supernet"))], lines)
