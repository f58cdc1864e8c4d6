"""Networks that runs have chosen: S, M and L of each bit-width, over seeds or of one seed."""

import statistics
from collections.abc import Callable, Sequence

from .cells import Read, Row, TableError, fixed, joined, kb, markdown, millions, one, over_seeds, percent, where

SIZES = ("S", "M", "L")
Cell = Callable[[Row], str]


def validation(row: Row) -> str:
    """Validation top-1 of a network in percent."""
    return percent(row, "top1_validation")


def test(row: Row) -> str:
    """Test top-1 of a network in percent."""
    return percent(row, "top1_test")


def deployed(row: Row) -> str:
    """Test top-1 of a network's file in percent."""
    return percent(row, "top1_deployed")


def weights(row: Row) -> str:
    """`weight_bytes` of a network in kB."""
    return kb(row, "weight_bytes", 1)


def files(row: Row) -> str:
    """The ONNX file of a network in kB."""
    return kb(row, "onnx_bytes")


BITS = {"4bit": "4 bits", "3bit": "3 bits", "2bit": "2 bits"}
COLUMNS: dict[str, Cell] = {
    "validation": validation, "test": test, "test, integer file": deployed,
    "M BitOPs": millions, "`weight_bytes`, kB": weights, "ONNX file, kB": files,
}  # fmt: skip


def by_size(rows: Sequence[Row], stages: dict[str, str]) -> str:
    """The float network and S / M / L of each stage (name in the file: in the table), of every seed."""
    seeds, lines = seeds_of(rows), []
    for some in seeds:
        of = f", seed {some[0]['seed']}" if len(seeds) > 1 else ""
        lines.append([f"float, largest{of}", *(cell(one(some, network="float-max")) for cell in COLUMNS.values())])
        for stage, name in stages.items():
            three = [one(some, network=f"{stage}-{size}") for size in SIZES]
            lines.append([f"{name} S / M / L{of}", *(joined(map(cell, three)) for cell in COLUMNS.values())])
    return markdown(["", *COLUMNS], lines)


def cifar10_oqat_networks(read: Read) -> str:
    """The run at a small scale."""
    return by_size(read("cifar10-jpeg75_oqat_cpu_202611"), BITS)


def cifar10_oqat_default(read: Read) -> str:
    """The default run of MobileNetV3."""
    return by_size(read("cifar10-jpeg75_oqat-default_cpu_202611"), BITS)


def cifar10_oqat_hours(read: Read) -> str:
    """Residual networks in two hours of one core."""
    return by_size(read("cifar10-jpeg75_oqat-hours_cpu_202611"), BITS)


def cifar10_oqat_hour(read: Read) -> str:
    """The default run in an hour of two cores."""
    return by_size(read("cifar10-jpeg75_oqat-hour_cpu_202611"), BITS)


def cifar10_oqat_longer(read: Read) -> str:
    """Before groups had two blocks and the largest counted a quarter, a third longer."""
    return by_size(read("cifar10-jpeg75_oqat-longer_cpu_202611"), BITS)


def cifar10_oqat_deep(read: Read) -> str:
    """Larger residual networks in an hour of two cores."""
    return by_size(read("cifar10-jpeg75_oqat-deep_cpu_202611"), BITS)


def within_budgets(rows: Sequence[Row]) -> str:
    """The most accurate networks within budgets, of every seed."""
    by_network: dict[str, list[Row]] = {}
    for row in rows:
        by_network.setdefault(row["network"], []).append(row)
    lines = []
    for name, some in by_network.items():
        cells = [joined(map(cell, some)) for cell in (validation, test, millions, weights)]
        lines.append([name.partition("-")[2], some[0]["bits"], *cells])
    return markdown(["budget", "bits", "validation", "test", "M BitOPs", "`weight_bytes`, kB"], lines)


def cifar10_oqat_hour_budgets(read: Read) -> str:
    """Those of the default run."""
    return within_budgets(read("cifar10-jpeg75_oqat-hour-budgets_cpu_202611"))


def cifar10_oqat_board_budgets(read: Read) -> str:
    """Those of the run for a board."""
    return within_budgets(read("cifar10-jpeg75_oqat-board-budgets_cpu_202611"))


def cifar10_qfa_networks(read: Read) -> str:
    """The run of QFA at a small scale."""
    return by_size(read("cifar10-jpeg75_qfa_cpu_202611"), {"mixed": "mixed"})


def seeds_of(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows of each seed."""
    return [where(rows, seed=seed) for seed in sorted({row["seed"] for row in rows})]


def stage_of(row: Row) -> str:
    """`4bit` of `4bit-S`."""
    return row["network"].partition("-")[0]


def of_stage(rows: Sequence[Row], stage: str) -> list[list[Row]]:
    """The networks of a stage, by seed. Raises TableError for a seed without one."""
    found = [[row for row in some if stage_of(row) == stage] for some in seeds_of(rows)]
    if not all(found):
        raise TableError(f"results/{rows[0].file} lacks networks of the stage {stage} for a seed")
    return found


def most_accurate(rows: Sequence[Row], stage: str) -> list[Row]:
    """For each seed the network of a stage that is most accurate on validation, the first in the file of equal ones."""
    return [max(some, key=lambda row: row.number("top1_validation")) for some in of_stage(rows, stage)]


def smallest(rows: Sequence[Row], stage: str) -> list[Row]:
    """For each seed the smallest network of a stage; where a seed has no S of its own, L is as small."""
    return [min(some, key=lambda row: row.number("weight_bytes")) for some in of_stage(rows, stage)]


def exact(row: Row, column: str) -> float:
    """A test accuracy in percent without the file's rounding to four decimals: a whole number of images is right."""
    share, images = row.number(column), row.number("test_images")
    return 100 * (share if column == "top1_validation" else round(share * images) / images)


def spread(rows: Sequence[Row], column: str = "top1_test") -> str:
    """Mean and standard deviation in percent, one row a seed; of one seed its value."""
    values = [exact(row, column) for row in rows]
    return over_seeds(values) if len(values) > 1 else fixed(values[0])


def digits_oqat_most_accurate(read: Read) -> str:
    """OQAT on digits, the former default."""
    rows = read("digits_oqat_cpu_202611")
    names = {"float": "float, largest", **BITS}
    chosen = {name: most_accurate(rows, stage) for stage, name in names.items()}
    lines = [[name, spread(three), str(len(three))] for name, three in chosen.items()]
    return markdown(["most accurate on validation", "test top-1", "seeds"], lines)


def digits_qfa_networks(read: Read) -> str:
    """The run of QFA on digits."""
    rows = read("digits_qfa_cpu_202611")
    names = {"float-max": "float, largest"} | {f"mixed-{size}": f"mixed {size}" for size in SIZES}
    lines = []
    for network, name in names.items():
        three = where(rows, network=network)
        accuracies = (spread(three, f"top1_{which}") for which in ("validation", "test", "deployed"))
        bitops = list(dict.fromkeys(millions(row, digits=2) for row in three))
        lines.append([name, *accuracies, joined(bitops)])
    return markdown(["", *list(COLUMNS)[:3], "M BitOPs of seeds 0, 1, 2, or of all"], lines)


def sizes(rows: Sequence[Row]) -> str:
    """From the least to the most `weight_bytes`."""
    found = sorted({row.number("weight_bytes") / 1000 for row in rows})
    if len(found) == 1:
        return f"{fixed(found[0], 1)} kB"
    return f"{fixed(found[0], 0)} to {fixed(found[-1], 0)} kB"


def digits_families(read: Read) -> str:
    """Residual networks beside MobileNetV3."""
    runs = {
        "OQAT, MobileNetV3": read("digits_families-oqat-nano_cpu_202611"),
        "OQAT, residual": read("digits_families-oqat-resnet-nano_cpu_202611"),
        "QFA, MobileNetV3": read("digits_qfa_cpu_202611"),
        "QFA, residual": read("digits_families-qfa-resnet-nano_cpu_202611"),
    }
    lines = [["float, largest", *(spread(where(rows, network="float-max")) for rows in runs.values())]]
    chosen = {
        "4 bits, most accurate on validation; mixed L": ("4bit", "mixed-L"),
        "3 bits, the same; mixed M": ("3bit", "mixed-M"),
        "2 bits, the same; mixed S": ("2bit", "mixed-S"),
    }
    for name, (stage, network) in chosen.items():
        cells = [name]
        for run, rows in runs.items():
            three = most_accurate(rows, stage) if run.startswith("OQAT") else where(rows, network=network)
            cells.append(f"{spread(three)}, {sizes(three)}")
        lines.append(cells)
    return markdown(["test top-1", *runs], lines)


def digits_muon(read: Read) -> str:
    """AdamW and Muon: the smallest networks, and the most accurate."""
    adamw = where(read("digits_families-oqat-resnet-nano_cpu_202611"), seed=0)
    muon = read("digits_oqat-muon_cpu_202611")
    typed = read("digits_oqat-muon-adamw_typed_202611")  # CPU seconds of all, and the run whose file was not kept
    lines = []
    for row in typed:
        cells = [row["run"]]
        rows = {"adamw": adamw, "muon-0": where(muon, seed=0), "muon": muon}.get(row["file"])
        for stage in BITS:
            if rows:
                two = (spread(smallest(rows, stage), column) for column in ("top1_validation", "top1_test"))
            else:
                two = (fixed(row.number(f"{stage}_smallest_{split}")) for split in ("validation", "test"))
            cells.append(", ".join(two))
        if rows:
            best = [most_accurate(rows, stage) for stage in BITS]
            means = [statistics.mean(exact(r, "top1_test") for r in three) for three in best]
        else:
            means = [row.number(f"{stage}_most_accurate_test") for stage in BITS]
        lines.append([*cells, joined(map(fixed, means)), row["cpu_seconds"]])
    head = [f"{name}, smallest ({sizes(smallest(muon, stage))})" for stage, name in BITS.items()]
    return markdown(["", *head, "most accurate on validation, 4 / 3 / 2 bits", "CPU s"], lines)


def photos_hands(read: Read) -> str:
    """A run on photographs."""
    lines = []
    for row in read("photos-hands_cpu_202611"):
        accuracies = [percent(row, column) for column in ("top1_validation", "top1_test", "top1_deployed")]
        lines.append([row["network"], *accuracies, millions(row, "macs"), millions(row), kb(row, digits=1)])
    return markdown(["", "validation", "test", "test, file", "M MACs", "M BitOPs", "packed weights, kB"], lines)


def digits_steps(read: Read) -> str:
    """Steps that are powers of two."""
    lines = []
    for kind, name in (("any", "any steps"), ("power-of-two", "powers of two")):
        rows = read(f"digits_steps-{kind}_cpu_202611")
        cells = [name]
        for stage in BITS:
            for networks in (smallest(rows, stage), where(rows, network=f"{stage}-L")):
                cells.append(spread(networks, "top1_deployed"))
        lines.append(cells)
    return markdown(["", *(text for name in BITS.values() for text in (f"{name} S", "L"))], lines)
