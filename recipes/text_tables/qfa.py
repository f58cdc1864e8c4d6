"""QFA: quantizers of activations, one supernet against one for each bit-width, stabilisers, the predictor."""

from collections.abc import Sequence

from .cells import Read, Row, fixed, markdown, mean_and_std, one, part, where

BITS = ("2 bits", "3 bits", "4 bits")


def by_subnets(rows: Sequence[Row], variant: str, subnets: Sequence[str]) -> list[str]:
    """Test top-1 of a variant's subnets, a cell for each kind."""
    return [mean_and_std(one(rows, variant=variant, subnets=kind)) for kind in subnets]


def quantizers(rows: Sequence[Row]) -> list[list[str]]:
    """Lines of claim C5 without the last cell; of a variant that diverged in all seeds without figures."""
    kinds = (*BITS, "mixed")
    lines = [
        ["BatchQuant", *by_subnets(rows, "batchquant", kinds)],
        [
            "BatchQuant, zero points not rounded",
            *by_subnets(rows, "batchquant", [f"{kind}, not folded" for kind in kinds]),
        ],
        ["LSQ, a step size for each bit-width", *by_subnets(rows, "lsq", kinds)],
    ]
    lost = any(row["subnets"] == "none" for row in where(rows, variant="running"))
    return [*lines, ["running ranges", *([""] * len(kinds) if lost else by_subnets(rows, "running", kinds))]]


def digits_qfa_quantizers(read: Read) -> str:
    """Claim C5 on digits."""
    rows = read("digits_qfa-quantizers_cpu_202611")
    last = [
        "" if variant is None else fixed(one(rows, variant=variant, subnets="mixed").number("std_over_architectures"))
        for variant in ("batchquant", None, "lsq", "running")
    ]
    lines = [[*line, cell] for line, cell in zip(quantizers(rows), last, strict=True)]
    return markdown(["activations", *BITS, "mixed", "spread over mixed subnets"], lines)


def cifar10_qfa_quantizers(read: Read) -> str:
    """Claim C5 on CIFAR-10."""
    rows = read("cifar10-jpeg75_qfa-quantizers_cpu_202611")
    seeds = where(rows, variant="lsq")[0]["seeds"]
    last = [
        "" if variant is None else f"{where(rows, variant=variant)[0]['diverged']} of {seeds}"
        for variant in ("batchquant", None, "lsq", "running")
    ]
    lines = [[*line, cell] for line, cell in zip(quantizers(rows), last, strict=True)]
    return markdown(["activations", *BITS, "mixed", "diverged"], lines)


def uniform(rows: Sequence[Row]) -> str:
    """Claim C8."""
    kinds = (*BITS, "8 bits", "32 bits")
    alone = [mean_and_std(one(rows, variant=f"dedicated-{kind.split()[0]}")) for kind in kinds]
    ours = by_subnets(rows, "one supernet", kinds)
    lines = [
        ["one supernet of all bit-widths", *ours],
        ["a network of one bit-width each, trained alone", *alone],
    ]
    return markdown(["", *kinds], lines)


def digits_qfa_uniform(read: Read) -> str:
    """Claim C8 on digits."""
    return uniform(read("digits_qfa-uniform_cpu_202611"))


def cifar10_qfa_uniform(read: Read) -> str:
    """Claim C8 on CIFAR-10."""
    return uniform(read("cifar10-jpeg75_qfa-uniform_cpu_202611"))


def stabilisers(rows: Sequence[Row], names: dict[str, str]) -> str:
    """Validation top-1, by which the default was chosen."""
    lines = []
    for variant, name in names.items():
        kinds = [one(rows, variant=variant, subnets=kind) for kind in (*BITS, "mixed")]
        lines.append([name, *(fixed(row.number("validation_percent")) for row in kinds)])
    return markdown(["", *BITS, "mixed"], lines)


def digits_qfa_stabilisers(read: Read) -> str:
    """Each alone."""
    names = {
        "batchquant": "none (the paper's training)",
        "zero-offsets": "offsets zero in the second half, `--learned-offsets 0.5`",
        "chain": "chain distillation †",
        "depthwise-3": "3-bit floor for depthwise weights, `--depthwise-floor 3`",
        "kurtosis": "kurtosis, weight 0.015 †",
        "dampening": "dampening, weight 0.1 †",
        "step-lr": "a tenth of the learning rate for quantizers, `--step-size-lr 0.1`",
        "tied": "step sizes tied at the start †",
    }
    return stabilisers(read("digits_qfa-stabilisers_cpu_202611"), names)


def cifar10_qfa_stabilisers(read: Read) -> str:
    """Combinations."""
    names = {
        "batchquant": "none (the paper's training)",
        "depthwise-3": "3-bit floor for depthwise weights",
        "zero-offsets": "offsets zero in the second half",
        "zero-offsets, depthwise-3": "the same and the 3-bit floor",
        "zero-offsets, chain": "the same and chain distillation †",
        "zero-offsets, kurtosis": "the same and kurtosis †",
    }
    return stabilisers(read("cifar10-jpeg75_qfa-stabilisers_cpu_202611"), names)


PREDICTORS = {
    "ours": "ours",
    "ridge": "ridge on encoding and costs",
    "perceptron": "perceptron 600-600-600, official training",
}


def predictors(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Claim C6: the numbers of pairs, and lines of Kendall tau; that of BitOPs alone needs no pairs."""

    def tau(row: Row) -> str:
        spread = row["std_over_seeds"]
        return part(row.number("kendall_tau")) + (f" +- {part(float(spread))}" if spread else "")

    pairs = [row["pairs"] for row in where(rows, model="ours")]
    lines = [[name, *(tau(row) for row in where(rows, model=model))] for model, name in PREDICTORS.items()]
    lines.append(["BitOPs alone", tau(where(rows, model="bitops")[0]), *[""] * (len(pairs) - 1)])
    return ["pairs", *(fixed(float(count), 0) for count in pairs)], lines


def digits_qfa_predictor(read: Read) -> str:
    """Claim C6 on digits."""
    return markdown(*predictors(read("digits_qfa-predictor_cpu_202611")))


def cifar10_qfa_predictor(read: Read) -> str:
    """Claim C6 on CIFAR-10, against test images, too."""
    rows = read("cifar10-jpeg75_qfa-predictor_cpu_202611")
    head, lines = predictors(rows)
    test = [part(row.number("test_tau")) for row in where(rows, model="ours")]
    return markdown(head, [*lines, ["ours, against test", *test]])


def qfa_layers(read: Read) -> str:
    """Which layers take which bits, beside the authors' published networks."""
    rows = read("cifar10-jpeg75_qfa-layers_typed_202611")
    lines = []
    for layer in dict.fromkeys(row["layer"] for row in rows):
        cells = [layer]
        for where_from in ("here", "published"):
            row = one(rows, layer=layer, networks=where_from)
            shares = " / ".join(row[f"share_of_{bits}_bits_percent"] for bits in (2, 3, 4))
            cells += [fixed(row.number("mean_bits")), shares]
        lines.append(cells)
    return markdown(["", "here", "", "published", ""], lines)
