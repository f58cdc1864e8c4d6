"""README's table: what came out so far."""

from collections.abc import Callable, Sequence
from statistics import mean

from .cells import Read, Row, fixed, joined, kb, markdown, one, percent
from .networks import BITS, SIZES, exact, seeds_of, smallest


def sizes_of(rows: Sequence[Row], stage: str) -> list[Row]:
    """S, M and L of a stage."""
    return [one(rows, network=f"{stage}-{size}") for size in SIZES]


def means_of(rows: Sequence[Row], stage: str) -> list[str]:
    """Top-1 of the files and kB of S, M and L, means over seeds, a cell each."""
    seeds = [sizes_of(some, stage) for some in seeds_of(rows)]
    top1 = joined(fixed(100 * mean(row.number("top1_deployed") for row in same), 1) for same in zip(*seeds))
    return [top1, joined(fixed(mean(row.number("weight_bytes") for row in same) / 1000, 0) for same in zip(*seeds))]


def figures(rows: Sequence[Row], top1: str = "top1_deployed", cost: Callable[[Row], str] = kb) -> list[str]:
    """Top-1 and kB of networks, a cell each."""
    return [joined(percent(row, top1, 1) for row in rows), joined(map(cost, rows))]


def what_came_out(read: Read) -> str:
    """A line for each method, bit-width and data set."""
    default, hour, deep = (read(f"cifar10-jpeg75_oqat-{name}_cpu_202611") for name in ("default", "hour", "deep"))
    dnas = one(read("cifar10-jpeg75_dnas-weight_bytes_cpu_202611"), network="MA")
    qfa, board = read("cifar10-jpeg75_qfa_cpu_202611"), read("cifar10-jpeg75_oqat-board_cpu_202611")
    made = [row for row in read("cifar10-jpeg75_hand-made_cpu_202611") if row["way"] == "supernet"]
    some = made[:: len(made) // 2]  # the least, the middle and the most of the budgets
    budgets = joined(fixed(row.number("budget") / 1e6, 0) for row in some)
    digits = [smallest(read("digits_oqat-growing_cpu_202611"), stage) for stage in BITS]
    means = joined(fixed(mean(exact(row, "top1_deployed") for row in seeds), 1) for seeds in digits)
    mobile, mixed = "OQAT, MobileNetV3", "QFA at 16 and 20 px, S / M / L"
    sml, cifar = "S / M / L", "CIFAR-10"
    lines = [
        [f"{mobile}, float", "32", cifar, *figures([one(default, network="float-max")]), "5.5 h for these",
         "`recipes/oqat_cifar10_default.sh`"],
        [f"{mobile}, {sml}", "4", cifar, *figures(sizes_of(default, "4bit")), "ten networks", ""],
        [f"{mobile}, {sml}", "3", cifar, *figures(sizes_of(default, "3bit")), "", ""],
        [f"{mobile}, {sml}", "2", cifar, *figures(sizes_of(default, "2bit")), "", ""],
        ["DNAS at 16 px, most accurate", "0 to 32, mixed", cifar, fixed(dnas.number("top1_percent"), 1), kb(dnas),
         "0.5 h", "`recipes/dnas_cifar10.sh`"],
        [mixed, "2 to 4, mixed", cifar, *figures(sizes_of(qfa, "mixed")), "short", "`recipes/qfa_cifar10.sh`"],
        [f"OQAT, defaults, {sml}", "4", cifar, *means_of(hour, "4bit"), f"an hour, mean of {len(seeds_of(hour))} seeds",
         "`recipes/oqat_cifar10_hour.sh`"],
        [f"OQAT, defaults, {sml}", "3", cifar, *means_of(hour, "3bit"), "for ten networks", ""],
        [f"OQAT, defaults, {sml}", "2", cifar, *means_of(hour, "2bit"), "", ""],
        ["OQAT, `resnet-cifar-deep`, L", "4 / 3 / 2", cifar,
         *figures([one(deep, network=f"{stage}-L") for stage in BITS]), "54 min for ten networks",
         "`recipes/oqat_cifar10_hour.sh`"],
        ["OQAT, `--target cortex-m4 --stem-bits 4`: 64 kB of RAM, 128 kB of flash, in C",
         joined(row["bits"] for row in board), cifar,
         *figures(board, "top1_c"), "95 min without AMX", "`recipes/oqat_cifar10_board.sh`"],
        [f"OQAT, residual, under {budgets} M BitOPs", "4", cifar, *figures(some, "top1_test"), "57 min of one core",
         "`recipes/hand_made.sh`"],
        ["OQAT, defaults, S", "4 / 3 / 2", "digits", means, joined(kb(seeds[0], digits=1) for seeds in digits),
         "3 min for ten networks", "`recipes/muon_digits.sh`"],
    ]  # fmt: skip
    return markdown(["method", "bits", "data", "top-1 %", "kB", "training", "recipe"], lines)
