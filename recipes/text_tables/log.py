"""Tables of docs/log.md and docs/export.md whose figures no recipe has written to a file."""

from collections.abc import Iterable

from .cells import Read, Row, fixed, joined, markdown


def percents(row: Row, networks: Iterable[str]) -> list[str]:
    """Top-1 of some networks, a cell each, empty where one was not measured."""
    return [row[f"{network}_percent"] and fixed(row.number(f"{network}_percent"), 1) for network in networks]


def six_networks(pixels: int) -> dict[str, str]:
    """The networks that recipes were compared by: name in a file, and in text; three quarters of the widths at so many
    pixels."""
    return {
        "smallest": "smallest", "thin_24": "thin 24", "resnet8_24": "ResNet-8 24", "resnet8_32": "32",
        f"three_quarters_{pixels}": "three quarters", "largest": "largest",
    }  # fmt: skip


def narrow_subnets(read: Read) -> str:
    """Which subnets a step trains: validation top-1 after equal CPU time."""
    networks = {
        "smallest": "smallest", "thin_24": "thin 24", "thin_32": "thin 32", "resnet8_24": "ResNet-8 24",
        "resnet8_28": "28", "resnet8_32": "32", "middle": "middle", "largest": "largest",
    }  # fmt: skip
    lines: list[list[str]] = []
    before = ""
    for row in read("cifar10-jpeg75_narrow-subnets_typed_202611"):
        name = f"**{row['subnets']}**" if row["subnets"].endswith("(now)") else row["subnets"]
        lines.append(["" if name == before else name, row["seed"], row["steps"], *percents(row, networks)])
        before = name
    return markdown(["third subnet of a step, and others", "seed", "steps", *networks.values()], lines)


def stage_lengths(read: Read) -> str:
    """How the quantized steps are shared among 4, 3 and 2 bits: validation top-1."""
    networks = six_networks(32)
    lines = []
    for row in read("cifar10-jpeg75_stage-lengths_typed_202611"):
        lines.append([row["stages"], row["later_rates"], row["bits"], row["steps"], *percents(row, networks)])
    return markdown(["steps at 4, 3, 2 bits", "rates at 3 and 2 bits", "bits", "steps", *networks.values()], lines)


def float_networks(read: Read) -> str:
    """What the largest network learns in float, by its shape and its optimiser: validation top-1."""
    lines = []
    for row in read("cifar10-jpeg75_float-networks_typed_202611"):
        found = fixed(row.number("validation_percent"), 1)
        lines.append([row["network"], row["change"], row["steps"], row["cpu_seconds"], found])
    return markdown(["channels of the groups", "otherwise", "steps", "CPU seconds", "top-1 %"], lines)


def sandwich_laws(read: Read) -> str:
    """What a step of the 4-bit stage trains: validation top-1 after about equal time."""
    networks = six_networks(28)
    lines = []
    for row in read("cifar10-jpeg75_sandwich-laws_typed_202611"):
        lines.append([row["step"], row["largest_network"], row["steps"], row["cpu_seconds"], *percents(row, networks)])
    return markdown(["a step trains", "largest network", "steps", "CPU seconds", *networks.values()], lines)


def full_length_laws(read: Read) -> str:
    """What the end of a 4-bit stage of full length trains: validation top-1."""
    columns = {
        "largest_percent": "largest",
        "smallest_percent": "smallest",
        "smallest_kb": "its kB",
        "within_45_kb_percent": "within 45 kB",
        "within_25_kb_percent": "within 25 kB",
        "front_mean_percent": "mean of 16 on the front",
    }
    lines = []
    for row in read("cifar10-jpeg75_full-length-laws_typed_202611"):
        numbers = [fixed(row.number(name), 1) if row[name] else "" for name in columns]
        lines.append([row["space"], row["last_steps"], *numbers])
    return markdown(["largest network", "steps", *columns.values()], lines)


def stem_bits(read: Read) -> str:
    """Supernets whose first convolutions have weights of so many bits: validation top-1."""
    lines = []
    for row in read("cifar10-jpeg75_stem-bits_typed_202611"):
        top1 = [fixed(row.number(f"{name}_percent"), 1) for name in ("largest", "smallest")]
        same = f"{row.number('random_percent'):.2f} of {row['random']}"
        difference = (
            f"{row.number('difference'):.2f} +- {row.number('standard_error'):.2f}" if row["difference"] else ""
        )
        costs = joined(fixed(row.number(f"{name}_mbitops"), 1) for name in ("largest", "smallest"))
        lines.append([row["bits"], row["stem_bits"], *top1, same, difference, costs])
    return markdown([
        "bits", "of the first convolution's weights", "largest", "smallest", "random networks, mean", "difference",
        "M BitOPs of largest / smallest",
    ], lines)  # fmt: skip


def simplifiers(read: Read) -> str:
    """What onnxsim and onnxslim make of exported files."""
    lines = []
    for row in read("simplifiers_typed_202611"):
        sizes = (fixed(row.number(f"{which}_kb"), 1) for which in ("exported", "onnxsim", "onnxslim"))
        lines.append([f"`{row['network']}`", *sizes])
    return markdown(["network, 2 bits", "exported, kB", "onnxsim, kB", "onnxslim, kB"], lines)
