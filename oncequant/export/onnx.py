"""The format `onnx`: one file `model.onnx` for ONNX Runtime, and what it takes to trust it.

It is judged twice. Without optimisation, ONNX Runtime must give the answers of the graph in float, but for near ties.
With all optimisations, on integer kernels, it must give the answers of the integer simulator. The accuracy to report
for a deployed network is that of the file with all optimisations, `top1_deployed` in files.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from oncequant.export.format import Batch, Common, Exported, Format, Row, text
from oncequant.export.graph import Graph

FILE = "model.onnx"
FLOAT_LAYER_TOLERANCE = 0.002  # share of images; float convolutions differ between libraries in summation order
GRID_TOLERANCE = 0.02  # share of images that the 8-bit grids between layers may cost, beside chance


@dataclass(frozen=True)
class OnnxJudgement:
    """What was found of `model.onnx`."""

    bytes: int
    float_bytes: int
    """The same architecture in float."""
    top1: float
    """With all optimisations: integer kernels."""
    plain_differences: int
    """Images whose answer differs between ONNX Runtime with all optimisations and the trained subnet in PyTorch: what
    the 8-bit grids between layers do."""
    argmax_differences: int
    """Images whose answer differs between ONNX Runtime without optimisation and the graph in float."""
    near_tie_differences: int
    """Those among `argmax_differences` that begin with codes one level apart, both near a rounding boundary."""
    simulator_argmax_differences: int
    """Images whose answer differs between ONNX Runtime with all optimisations and the integer simulator."""
    simulator_bit_equal_images: int
    """Images with bit-equal logits in the same comparison."""
    integer_layers: int
    """Convolutions and linear layers on integer kernels in ONNX Runtime's optimised model."""
    float_layers: int
    latency_ms: float
    """ONNX Runtime, one image, one thread, median."""
    float_latency_ms: float
    problems: tuple[str, ...] = ()


def write(graph: Graph, folder: Path) -> None:
    """Write `model.onnx`."""
    from oncequant.export.onnx_writer import write_onnx

    write_onnx(graph, folder / FILE)


def read(exported: Exported) -> Callable[[Batch], Counter[str]]:
    """Two sessions of the file, without optimisation and with all of it."""
    import torch

    from oncequant.export.onnx_runtime import near_ties, run_onnx
    from oncequant.onnx_session import session

    path = exported.folder / FILE
    unfused, fused = session(path, optimise=False, threads=torch.get_num_threads()), session(path)

    def count(batch: Batch) -> Counter[str]:
        logits, floats = run_onnx(fused, batch.pixels), batch.floats.argmax(1)
        answers, simulated = logits.argmax(1), batch.simulated.argmax(1)
        differing = (run_onnx(unfused, batch.pixels).argmax(1) != floats).nonzero().flatten()
        return Counter(
            correct=int((answers == batch.labels).sum()),
            plain=int((answers != batch.plain.argmax(1)).sum()),
            argmax=len(differing),
            near_tie=near_ties(exported.graph, path, batch.pixels, differing),
            simulator=int((answers != simulated).sum()),
            bit_equal=int((logits == batch.simulated).all(1).sum()),
        )

    return count


def judge(exported: Exported, counts: Counter[str], common: Common) -> OnnxJudgement:
    """Size, kernels and speed too. What must hold is in docs/export.md."""
    from oncequant.export.onnx_runtime import kernel_counts, latencies_ms
    from oncequant.export.onnx_writer import write_onnx

    path, graph = exported.folder / FILE, exported.graph
    with TemporaryDirectory() as temporary:
        float_path = Path(temporary) / "float.onnx"
        write_onnx(exported.float_graph, float_path)
        float_bytes = float_path.stat().st_size
        latency_ms, float_latency_ms = latencies_ms(graph, path, float_path)
    integer_layers, float_layers = kernel_counts(path)
    found = OnnxJudgement(
        bytes=path.stat().st_size,
        float_bytes=float_bytes,
        top1=counts["correct"] / common.images,
        plain_differences=counts["plain"],
        argmax_differences=counts["argmax"],
        near_tie_differences=counts["near_tie"],
        simulator_argmax_differences=counts["simulator"],
        simulator_bit_equal_images=counts["bit_equal"],
        integer_layers=integer_layers,
        float_layers=float_layers,
        latency_ms=latency_ms,
        float_latency_ms=float_latency_ms,
    )
    return replace(found, problems=tuple(_problems(found, graph, common)))


def _problems(found: OnnxJudgement, graph: Graph, common: Common) -> Iterator[str]:
    layers = [node.weights for node in graph.nodes if node.weights]
    expected_integer = sum(weights.is_integer for weights in layers)
    if unexplained := found.argmax_differences - found.near_tie_differences:
        yield (
            f"ONNX Runtime without optimisation and the graph answer differently on {unexplained} of {common.images} "
            "images, not explained by rounding"
        )
    tolerance = 0 if expected_integer == len(layers) else FLOAT_LAYER_TOLERANCE * common.images
    if found.simulator_argmax_differences > tolerance:
        yield (
            f"ONNX Runtime with all optimisations and the integer simulator answer differently on "
            f"{found.simulator_argmax_differences} of {common.images} images"
        )
    lost, chance = (common.top1_plain - found.top1) * common.images, 3 * found.plain_differences**0.5
    if lost > GRID_TOLERANCE * common.images + chance:
        yield (
            f"{FILE} answers {lost:.0f} of {common.images} images less correctly than the trained network, more than "
            "the 8-bit grids between its layers explain"
        )
    if found.integer_layers != expected_integer:
        yield f"ONNX Runtime runs {found.integer_layers} layers on integer kernels, {expected_integer} are quantized"


# -- tables


def _verified(row: Row) -> str:
    if row.get("argmax_differences") is None:
        return "not checked"
    ties = row.get("near_tie_differences", 0)
    if unexplained := row["argmax_differences"] - ties:
        return f"✗ differs on {unexplained} of {row.get('images', '?')}"
    return f"✓ all {row.get('images', '?')} images" + (f", {ties} ties" if ties else "")


def _speed_up(row: Row) -> str:
    ms, float_ms = row.get("latency_ms"), row.get("float_latency_ms")
    return f"{float_ms / ms:.2f}×" if ms and float_ms else "–"


def _ms(value: float) -> str:
    return f"{value:.3f} ms" if value < 1 else f"{value:.2f} ms"


def _same(row: Row) -> str:
    return text(row.get("plain_differences"), lambda n: f"{row['images'] - n} of {row['images']}")


def _integer_layers(row: Row) -> str:
    return text(row.get("integer_layers"), lambda n: f"{n} of {n + row.get('float_layers', 0)}")


FORMAT = Format(
    name="onnx",
    files=(FILE,),
    write=write,
    read=read,
    judge=judge,
    keys={
        "bytes": "onnx_bytes",
        "float_bytes": "float_onnx_bytes",
        "top1": "top1_deployed",
        "plain_differences": "plain_differences",
        "argmax_differences": "argmax_differences",
        "near_tie_differences": "near_tie_differences",
        "simulator_argmax_differences": "simulator_argmax_differences",
        "simulator_bit_equal_images": "simulator_bit_equal_images",
        "integer_layers": "integer_layers",
        "float_layers": "float_layers",
        "latency_ms": "latency_ms",
        "float_latency_ms": "float_latency_ms",
    },
    columns={
        "ONNX top-1": lambda row: text(row.get("top1_deployed"), "{:.2%}".format),
        "ONNX kB": lambda row: text(row.get("onnx_bytes"), lambda n: f"{n / 1000:.1f}"),
        "Float kB": lambda row: text(row.get("float_onnx_bytes"), lambda n: f"{n / 1000:.1f}"),
        "Integer layers": _integer_layers,
        "Verified": _verified,
        "Same as trained": _same,
    },
    times=("latency_ms", "float_latency_ms"),
    time_columns={
        "Latency": lambda row: text(row.get("latency_ms"), _ms),
        "Float latency": lambda row: text(row.get("float_latency_ms"), _ms),
        "Speed-up": _speed_up,
    },
    brief=("ONNX top-1", "ONNX kB", "Latency", "Float latency"),
    notes=(
        "ONNX top-1: that of the file on integer kernels. Speed-up: latency of the float network over that of the "
        "file. Verified: ONNX Runtime without optimisation gives the answers of the graph in float, but for codes on a "
        "rounding boundary (ties). Same as trained: images on which the file and the trained network, which lacks the "
        "file's 8-bit grids between layers, give the same answer."
    ),
    packages=("onnx", "onnxruntime"),
)
