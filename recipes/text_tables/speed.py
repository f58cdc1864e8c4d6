"""Steps of training beside official code, and latency from a table."""

from collections.abc import Sequence

from .cells import Read, Row, fixed, joined, markdown, one


def ratio(row: Row, column: str) -> str:
    """A ratio with two digits."""
    return fixed(row.number(column))


def ms(row: Row) -> str:
    """Milliseconds of a step."""
    return fixed(row.number("ms"), 1)


def ours(rows: Sequence[Row], **cells: object) -> tuple[Row, Row]:
    """Our step in float and quantized, in float32."""
    own = {"code": "ours", "precision": "float32", **cells}
    return one(rows, bits=32, **own), one(rows, bits=4, **own)


def halves(rows: Sequence[Row], **cells: object) -> str:
    """Our steps in bfloat16: float, 4 bits."""
    own = {"code": "ours", "precision": "bfloat16", **cells}
    return ", ".join(ms(one(rows, bits=bits, **own)) for bits in (32, 4))


def step(read: Read) -> str:
    """OQAT's step, 64 px."""
    rows, lines = read("step_cpu_202611"), []
    for preset in ("cifar", "imagenet"):
        for subnet in ("max", "random"):
            net = {"preset": preset, "subnet": subnet}
            plain, four = ours(rows, **net)
            codes = ("official OFA", "official OQA") if preset == "imagenet" else ()  # which has no other networks
            lines.append([
                f"{preset}, {subnet}", ms(plain), ms(four), ratio(four, "time_over_our_float"),
                ratio(four, "memory_over_our_float"), halves(rows, **net),
                joined(ms(one(rows, code=code, **net)) for code in codes),
            ])  # fmt: skip
    return markdown([
        "preset, subnet", "float ms", "4-bit ms", "time ratio (goal 1.15)", "memory ratio (goal 1.2)",
        "bfloat16: float, 4-bit", "official OFA float / OQA 4-bit ms",
    ], lines)  # fmt: skip


def step_tuned(read: Read) -> str:
    """OQAT's step of the largest imagenet network with a tuned allocator."""
    rows, lines = read("step-tuned_cpu_202611"), []
    for size in (64, 128):
        plain, four = ours(rows, size=size)
        memory = f"{ratio(four, 'memory_over_our_float')} ({ratio(four, 'process_memory_over_our_float')})"
        others = [ms(one(rows, code=code, size=size)) for code in ("official OFA", "official OQA", "Brevitas")]
        time = ratio(four, "time_over_our_float")
        lines.append([str(size), ms(plain), ms(four), time, memory, halves(rows, size=size), *others])
    return markdown([
        "px", "ms: our float", "our 4-bit", "ratio (goal 1.10)", "memory ratio (goal 1.15)", "bfloat16: float, 4-bit",
        "official OFA float", "official OQA 4-bit", "Brevitas 4-bit",
    ], lines)  # fmt: skip


def beside_qfa(rows: Sequence[Row], official: Row | None, **cells: object) -> list[str]:
    """A line's cells of our step, and of the official code's if there is one."""
    plain, low = ours(rows, **cells)
    ratios = [ratio(low, f"{what}_over_our_float") for what in ("time", "memory")]
    other = [ms(official), fixed(official.number("ms") / low.number("ms"), 1)] if official else ["", ""]
    return [ms(plain), ms(low), *ratios, *other]


QFA_HEAD = ["ratio (goal 1.15)", "memory ratio (goal 1.2)", "official QFA ms", "official / ours (goal 3.5)"]
SUBNETS = {"max": "max at 4 bits", "random": "random"}


def step_qfa_tuned(read: Read) -> str:
    """QFA's step with a tuned allocator."""
    rows, lines = read("step-qfa-tuned_cpu_202611"), []
    for size, subnet in ((64, "max"), (64, "random"), (128, "max")):
        net = {"size": size, "subnet": subnet}
        official = one(rows, code="official QFA", **net)
        lines.append([f"{size}, {SUBNETS[subnet]}", *beside_qfa(rows, official, **net)])
    return markdown(["px, subnet", "our float ms", "ours mixed ms", *QFA_HEAD], lines)


def step_xeon(read: Read) -> str:
    """Steps of both methods on another processor."""
    rows, lines = read("step-xeon_cpu_202611"), []
    for preset in ("cifar", "imagenet"):
        for subnet in ("max", "random"):
            cells = beside_qfa(rows, None, preset=preset, subnet=subnet)
            lines.append([f"4 bits, {preset}, 64, {subnet}", *cells])
    rows = read("step-qfa-xeon_cpu_202611")
    for place, (size, tuned) in enumerate(((64, False), (64, True), (128, False))):
        official = [row for row in rows if row["code"] == "official QFA"][place]  # its rows do not say `tuned`
        cells = beside_qfa(rows, official, size=size, tuned_allocator=tuned)
        lines.append([f"mixed, {size}, max at 4 bits{', tuned' if tuned else ''}", *cells])
    return markdown(["step, px, subnet", "our float ms", "ours quantized ms", *QFA_HEAD], lines)


def latency_fits(read: Read) -> str:
    """What is added to the times of kernels, by how many networks it was fitted."""
    lines = []
    for row in read("latency-fits_typed_202611"):
        pairs = [
            f"{fixed(row.number(f'tau_{i}'), 3)} / {fixed(100 * row.number(f'median_error_{i}'), 1)}" for i in (1, 2)
        ]
        lines.append([row["fitted"], row["networks"], *pairs])
    return markdown(["fitted", "networks", "first", "second"], lines)


def profile_amx(read: Read) -> str:
    """The same with AMX, where layers take less of the time."""
    return profile_rows(read("profile-amx_cpu_202611"))


def profile(read: Read) -> str:
    """Latency predicted from a table of layers."""
    return profile_rows(read("profile_cpu_202611"))


def profile_rows(rows: Sequence[Row]) -> str:
    """A line for each space."""
    lines = []
    for row in rows:
        taus = [fixed(row.number(f"kendall_tau{of}"), 3) for of in ("", "_of_macs", "_of_bitops")]
        errors = [f"{fixed(100 * row.number(error), 1)} %" for error in ("median_error", "p90_error")]
        times = f"{fixed(row.number('least_ms'), 3)} to {fixed(row.number('most_ms'), 3)}"
        seconds, factor = fixed(row.number("profile_seconds"), 0), fixed(row.number("factor"))
        lines.append([row["space"], row["rows"], seconds, factor, *taus, *errors, times])
    return markdown([
        "space", "layers", "profile (s)", "factor", "Kendall tau", "of MACs", "of BitOPs", "median error",
        "of 90 % at most", "ms",
    ], lines)  # fmt: skip
