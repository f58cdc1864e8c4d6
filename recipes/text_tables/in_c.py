"""Networks in C: on this processor, on emulated microcontrollers, for a board."""

from collections.abc import Sequence

from .cells import Read, Row, fixed, joined, kb, markdown, millions, percent

METHODS = {"oqat": "OQAT", "qfa": "QFA", "dnas": "DNAS"}
RUNTIMES = "onnx", "openvino", "litert"
FAMILIES = {"elastic_resnet": "residual", "mobilenet_v3": "MobileNetV3", "resnet": "ResNet-20"}


def whole(row: Row, column: str) -> str:
    """A whole number with commas."""
    return fixed(row.number(column), 0)


def for_a_board(rows: Sequence[Row]) -> str:
    """What networks in C really take."""
    lines = []
    for row in rows:
        sizes = ("ram_bytes", "c_arena_bytes", "cortex_m4_stack_bytes", "flash_bytes", "cortex_m4_flash_bytes")
        lines.append([
            row["bits"], percent(row, "top1_test"), percent(row, "top1_c"), f"{millions(row, 'macs')} M",
            *(whole(row, column) for column in sizes), f"{millions(row, 'cortex_m4_instructions')} M",
        ])  # fmt: skip
    return markdown([
        "bits", "test", "test, in C", "MACs", "`ram_bytes`", "arena", "stack", "`flash_bytes`",
        "`text` of arm-none-eabi-size", "instructions",
    ], lines)  # fmt: skip


def cifar10_cortex_m4(read: Read) -> str:
    """OQAT's networks for a board."""
    return for_a_board(read("cifar10-jpeg75_oqat-cortex-m4_cpu_202611"))


def cifar10_cortex_m4_hour(read: Read) -> str:
    """Those of the run of an hour, by one command."""
    return for_a_board(read("cifar10-jpeg75_oqat-cortex-m4-hour_cpu_202611"))


def cifar10_board(read: Read) -> str:
    """Those of a run for a board from the start, by one command."""
    return for_a_board(read("cifar10-jpeg75_oqat-board_cpu_202611"))


def mlperf_tiny(read: Read) -> str:
    """Networks of a benchmark for boards, the one for CIFAR-10 as C of ours, and ours for a board."""
    lines = []
    for row in read("mlperf-tiny_typed_202611"):
        name = f"MLPerf Tiny, {row['task']}: {row['network']}"
        lines.append([name, "8", "", row["parameter_kb"], "", "", f"goal {row['quality_goal']}"])
    for row in read("mlperf-tiny_resnet8_202611"):
        lines.append([
            "its ResNet-8 as C of ours", row["bits"], f"{millions(row, 'macs')} M", kb(row, digits=1),
            kb(row, "flash_bytes", 1), kb(row, "ram_bytes", 1), "not trained",
        ])  # fmt: skip
    for row in read("cifar10-jpeg75_oqat-cortex-m4_cpu_202611"):
        lines.append([
            "OQAT, for 64 kB of RAM and 128 kB of flash", row["bits"], f"{millions(row, 'macs')} M", kb(row, digits=1),
            kb(row, "cortex_m4_flash_bytes", 1), kb(row, "c_arena_bytes", 1), f"{percent(row, 'top1_c')} %",
        ])  # fmt: skip
    head = ["network", "bits", "MACs", "weights, kB", "flash, kB", "RAM, kB", "top-1"]
    return markdown(head, lines)


def c_backends(rows: Sequence[Row]) -> str:
    """Networks of all methods on three emulated cores."""
    lines = []
    for row in rows:
        steps = joined(millions(row, f"cortex-{core}_instructions", 2) for core in ("m4", "m7", "m3"))
        sizes = [kb(row, column, 1) for column in ("c_arena_bytes", "cortex_m4_flash_bytes")]
        name = f"{METHODS[row['method']]}, {FAMILIES[row['family']]}"
        lines.append([name, row["network"], percent(row, "top1_c"), *sizes, steps])
    head = ["", "network", "test, in C", "arena kB", "M4: flash kB", "M instructions of M4 / M7 / M3"]
    return markdown(head, lines)


def digits_c_backends(read: Read) -> str:
    """Trained on digits."""
    return c_backends(read("digits_c-backends_cpu_202611"))


def cifar10_c_methods(read: Read) -> str:
    """Trained on CIFAR-10."""
    return c_backends(read("cifar10-jpeg75_c-methods_cpu_202611"))


def c_vnni(read: Read) -> str:
    """With VNNI, beside ONNX Runtime and OpenVINO."""

    def milliseconds(row: Row, *columns: str) -> str:
        return joined(fixed(row.number(f"{column}_ms"), 4) for column in columns)

    lines = []
    for row in read("c-vnni_cpu_202611"):
        lines.append([
            row["network"], row["bits"], f"{millions(row, 'macs', 2)} M", milliseconds(row, "c"),
            milliseconds(row, "onnx_float", "onnx_integer"), milliseconds(row, "openvino_float", "openvino_integer"),
            fixed(row.number("float_over_c")), f"{percent(row, 'peak_share', 0)} %",
        ])  # fmt: skip
    return markdown([
        "network", "bits", "MACs", "C (ms)", "ONNX Runtime float / integer", "OpenVINO float / integer", "float over C",
        "of the VNNI peak",
    ], lines)  # fmt: skip


def c_amx(read: Read) -> str:
    """With AMX and without, beside ONNX Runtime."""
    lines = []
    for row in read("c-amx_cpu_202611"):
        times = (
            fixed(row.number(f"{column}_ms"), 4) for column in ("c", "c_without_amx", "onnx_float", "onnx_integer")
        )
        lines.append([
            row["network"], row["bits"], f"{millions(row, 'macs', 2)} M", *times, fixed(row.number("float_over_c")),
            f"{percent(row, 'peak_share', 0)} %",
        ])  # fmt: skip
    return markdown([
        "network", "bits", "MACs", "C (ms)", "C without AMX", "ONNX Runtime float", "integer", "float over C",
        "of the VNNI peak",
    ], lines)  # fmt: skip


def c_runtimes(read: Read) -> str:
    """Beside all runtimes, with the instructions of a Cortex-M4."""
    lines = []
    for row in read("c-runtimes_cpu_202611"):
        c = row.number("c_ms")
        others = [[row.number(f"{runtime}_{kind}_ms") for kind in ("float", "integer")] for runtime in RUNTIMES]
        without_amx = fixed(row.number("c_without_amx_ms"), 4)
        times = [joined(fixed(time, 4) for time in pair) for pair in others]
        ratios = [fixed(others[0][0] / c), fixed(min(min(pair) for pair in others) / c)]
        on_board = [fixed(row.number("m4_per_mac")), kb(row, "m4_flash_bytes", 1)]
        peak = f"{100 * row.number('peak_share'):.0f} %"
        macs = f"{millions(row, 'macs', 2)} M"
        lines.append([row["network"], row["bits"], macs, fixed(c, 4), without_amx, *times, *ratios, peak, *on_board])
    return markdown([
        "network", "bits", "MACs", "C (ms)", "without AMX", "ONNX Runtime float / integer", "OpenVINO",
        "LiteRT float / 8 bits",
        "ONNX float over C", "fastest other over C", "of the VNNI peak", "M4: instructions per MAC", "M4: flash kB",
    ], lines)  # fmt: skip


def c_avx2(read: Read) -> str:
    """With AVX2, and on an emulated Cortex-M4."""
    lines = []
    for row in read("c_cpu_202611"):
        times = joined(fixed(row.number(f"{column}_ms"), 3) for column in ("c", "onnx_integer", "onnx_float"))
        sizes = [kb(row, column, 1) for column in ("constant_bytes", "arena_bytes", "m4_flash_bytes")]
        ratios = [fixed(row.number(column)) for column in ("float_over_c", "m4_per_mac")]
        macs = f"{millions(row, 'macs', 2)} M"
        lines.append([row["network"], row["bits"], macs, times, ratios[0], *sizes, ratios[1]])
    return markdown([
        "network", "bits", "MACs", "C / ONNX int / ONNX float (ms)", "float over C", "constants kB", "arena kB",
        "M4: flash kB", "M4: instructions per MAC",
    ], lines)  # fmt: skip
