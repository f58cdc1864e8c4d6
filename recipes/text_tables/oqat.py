"""OQAT: options, claims C1 to C4, searchers, number formats, processes, weights to start from."""

from collections.abc import Sequence

from oncequant.intervals import verdict

from .cells import MARGIN, Read, Row, difference, fixed, joined, markdown, mean_and_std, millions, one, part, where

STAGES = {"float": "float", "4bit": "4 bits", "3bit": "3 bits", "2bit": "2 bits"}


def by_stage(rows: Sequence[Row], stages: Sequence[str], **cells: object) -> list[str]:
    """A cell for each stage."""
    return [mean_and_std(one(rows, stage=stage, **cells)) for stage in stages]


def digits_oqat_options(read: Read) -> str:
    """Differences 1 and 2 of docs/oqat.md."""
    names = {
        "default": "default: signed after linear bottlenecks, 8-bit edges and squeeze-and-excite",
        "unsigned": "unsigned activations everywhere (the official quantizer)",
        "float-edges": "float first convolution, classifier, squeeze-and-excite (as official)",
    }
    rows, stages = read("digits_oqat-options_cpu_202611"), list(STAGES)[1:]
    lines = []
    for options, name in names.items():
        last = one(rows, options=options, stage="2bit")
        cost = f"{millions(last, 'largest_bitops', 2)} M, {fixed(last.number('largest_weight_bytes') / 1000, 1)} kB"
        lines.append([name, *by_stage(rows, stages, options=options), cost])
    return markdown(["", *(STAGES[s] for s in stages), "BitOPs, bytes of the largest at 2 bits"], lines)


def claims(rows: Sequence[Row]) -> str:
    """C1 to C3: what each claim says is better, what it is compared with, and what follows."""
    inherited, direct = one(rows, claim="C1", way="inherited 4-3-2"), one(rows, claim="C1", way="direct")
    ways = "4 -> 3, calibration only", "4 -> 3, fine-tuned", "direct 3-bit training"
    calibrated, tuned, whole = (one(rows, claim="C2", way=way) for way in ways)
    archs = f", {direct['architectures']} architectures"
    pairs = [
        (f"C1, 2 bits{archs}", "inherited 4 -> 3 -> 2", inherited, "direct from float, equal steps", direct),
        (f"C2, 3 bits{archs}", "4 -> 3, calibration only", calibrated, "direct from float, equal steps", whole),
        ("C2, 3 bits", "4 -> 3, calibration only", calibrated, "4 -> 3, fine-tuned", tuned),
    ]
    for bits in (32, 4, 3, 2):
        ours = one(rows, claim="C3", bits=bits, way="from the supernet")
        name = "C3, float" if bits == 32 else f"C3, {bits} bits"
        name += f", {ours['architectures']} random architectures" if bits == 32 else ""
        other = one(rows, claim="C3", bits=bits, way="trained alone")
        pairs.append((name, "from the supernet", ours, "trained alone", other))
    lines = []
    for name, first, ours, second, other in pairs:
        apart, bound = difference(ours, other), -MARGIN if name.startswith("C3") else 0.0
        values = mean_and_std(ours), mean_and_std(other)
        lines.append([name, f"{first} / {second}", joined(values), apart.text(), verdict(apart, bound)])
    float_net, four = (one(rows, claim="front", bits=bits) for bits in (32, 4))
    both = joined([mean_and_std(float_net), mean_and_std(four)])
    lines.append([f"for comparison{archs}", "float / 4-bit supernet", both, "", ""])
    seeds = direct["seeds"]
    top1 = f"test top-1, mean +- standard deviation over {seeds} seeds"
    return markdown(
        ["claim", "", top1, "difference, 95 % interval", "verdict"],
        lines,
    )


def digits_oqat_claims(read: Read) -> str:
    """C1 to C3 on digits."""
    return claims(read("digits_oqat-claims_cpu_202611"))


def cifar10_oqat_claims(read: Read) -> str:
    """C1 to C3 on CIFAR-10."""
    return claims(read("cifar10-jpeg75_oqat-claims_cpu_202611"))


def cifar10_oqat_searchers(read: Read) -> str:
    """Hypervolumes, and in how many runs they are above random search's."""
    names = {"random": "random search", "coarse_to_fine": "coarse to fine (OQAT's, default)", "nsga2": "NSGA-II"}
    rows = read("cifar10-jpeg75_oqat-searchers_cpu_202611")
    lines = []
    for searcher, name in names.items():
        cells = [name]
        for stage in list(STAGES)[1:]:
            row = one(rows, stage=stage, searcher=searcher)
            for split in ("validation", "test"):
                values = [part(row.number(f"{column}_{split}")) for column in ("hypervolume", "std")]
                better = "" if searcher == "random" else f", {row[f'better_than_random_{split}']}"
                cells.append(" +- ".join(values) + better)
        lines.append(cells)
    head = [text for stage in list(STAGES)[1:] for text in (f"{STAGES[stage]}: validation", "test")]
    return markdown(["", *head], lines)


def oqat_precision(read: Read) -> str:
    """Training in float32 and in bfloat16."""
    lines = []
    for data, name in (("digits", "digits"), ("cifar10-jpeg75", "CIFAR-10")):
        rows = read(f"{data}_oqat-precision_cpu_202611")
        archs = rows[0]["architectures"]
        lines.append([f"{name}, {archs} architectures, float32", *by_stage(rows, list(STAGES), options="default")])
        lines.append([f"{name}, bfloat16", *by_stage(rows, list(STAGES), options="bfloat16")])
    return markdown(["", *STAGES.values()], lines)


def digits_oqat_processes(read: Read) -> str:
    """Random architectures of two processes."""
    names = {"shared": "the same (default)", "independent": "each its own, `--independent-archs`"}
    rows = read("digits_oqat-processes_cpu_202611")
    return markdown(["", *STAGES.values()], [[n, *by_stage(rows, list(STAGES), way=w)] for w, n in names.items()])


def cifar10_init(read: Read) -> str:
    """A float stage from the weights of another run."""
    names = {"weights": "another run's weights (`--init`)", "nothing": "nothing"}
    rows, stages = read("cifar10-jpeg75_init_cpu_202611"), ["float", "4bit", "2bit"]
    lines = []
    for start, name in names.items():
        seconds = one(rows, start=start, stage="float")["training_cpu_seconds"]
        lines.append([name, *by_stage(rows, stages, start=start), seconds])
    return markdown(["start", *(STAGES[stage] for stage in stages), "CPU s"], lines)


def digits_imbalanced(read: Read) -> str:
    """Rare classes: weights and metric."""
    names = {
        ("none", "top1"): "defaults",
        ("balanced", "top1"): "`--class-weights balanced`",
        ("none", "balanced"): "`--metric balanced`",
        ("balanced", "balanced"): "both",
    }
    rows = read("digits_imbalanced_cpu_202611")
    figures = [(net, figure) for figure in ("balanced", "top1_as_in_training") for net in ("float-max", "4bit-L")]
    lines = []
    for (weights, metric), name in names.items():
        chosen = where(rows, class_weights=weights, metric=metric)
        lines.append([name, *(mean_and_std(one(chosen, network=net, figure=figure)) for net, figure in figures)])
    head = ["", "balanced accuracy, float", "4 bits, most accurate", "as frequent, float", "4 bits"]
    return markdown(head, lines)


def evenly(rows: Sequence[Row], count: int) -> list[Row]:
    """So many rows, spread evenly; of one the middle one: as `totals` of oncequant/compare.py counts."""
    if count == 1:
        return [rows[len(rows) // 2]]
    return [rows[round(place * (len(rows) - 1) / (count - 1))] for place in range(count)]


def cifar10_oqat_c4(read: Read) -> str:
    """Claim C4: means over the deployments for 1, 10 and 40 budgets."""
    shared = read("cifar10-jpeg75_oqat-compare-shared_typed_202611")
    names = {
        "supernet": "from the supernet",
        "nas-then-quantize": "NAS in float, then quantize",
        "search-then-retrain": "search, then retrain",
        "uniform": "uniform, hand-scaled",
    }
    lines = []
    for way, name in names.items():
        rows = where(read("cifar10-jpeg75_oqat-compare_cpu_202611"), way=way)
        cells: list[list[str]] = []
        for count in (1, 10, 40):
            picked = evenly(rows, count)
            alone = {row["arch"]: row.number("images") for row in picked}  # one that wins twice is trained once
            million = (one(shared, way=way).number("images") + sum(alone.values())) / 1e6
            means = [sum(row.number(c) for row in picked) / count for c in ("top1_validation", "top1_test", "bitops")]
            texts = fixed(100 * means[0]), fixed(100 * means[1]), fixed(means[2] / 1e6)
            cells.append([str(count), str(len(alone)), fixed(million), *texts])
        joint = [joined(column) for column in zip(*cells)]
        joint[2], joint[5] = f"{joint[2]} M", f"{joint[5]} M"
        lines.append([name, *joint])
    head = ["way", "deployments", "networks", "training images", "validation", "test", "mean BitOPs"]
    return markdown(head, lines)
