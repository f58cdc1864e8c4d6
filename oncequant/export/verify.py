"""Export one subnet and prove on images that the files do what the trained network does.

`export_network` writes `model.onnx`, the package (`model.safetensors`, `model.json`) and `verification.json`. The
accuracy to report for a deployed network is `top1_deployed`: ONNX Runtime with all optimisations on the written file.
"""

import platform
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor

from oncequant.arch import Arch
from oncequant.calibrate import Batches
from oncequant.export.graph import Graph
from oncequant.export.lower import lower, network_input
from oncequant.export.onnx_writer import codes_name, write_onnx
from oncequant.export.package import DESCRIPTION, TENSORS, load_package, write_package
from oncequant.export.simulate import float_parameters, float_values, run_integer
from oncequant.files import write_json
from oncequant.network import Network

NEAR_TIE = 1e-3  # of a step: farther from a rounding boundary, summation order cannot change a code
NEAR_EQUAL = 1e-5  # of the largest logit: logits this close have no order in float32
FLOAT_LAYER_TOLERANCE = 0.002  # share of images; float convolutions differ between libraries in summation order
GRID_TOLERANCE = 0.02  # share of images that the 8-bit grids between layers may cost, beside chance
PACKING_LIMIT = 1.10  # packed bytes of low-bit weights over params * bits / 8


class VerificationError(RuntimeError):
    """The written files do not do what the trained network does; the message lists the findings."""


@dataclass(frozen=True)
class Verification:
    """What was measured on the written files. `problems` is empty if they can be trusted."""

    images: int
    top1_plain: float
    """The trained subnet in PyTorch, before the 8-bit grids between layers."""
    top1_deployed: float
    """ONNX Runtime with all optimisations: integer kernels."""
    top1_simulated: float
    """The integer simulator."""
    top1_package: float
    """The package loaded into PyTorch."""
    plain_differences: int
    """Images whose answer differs between ONNX Runtime with all optimisations and the trained subnet in PyTorch: what
    the 8-bit grids between layers do."""
    argmax_differences: int
    """Images whose answer differs between ONNX Runtime without optimisation and the package."""
    near_tie_differences: int
    """Those of them that begin with codes one level apart within `NEAR_TIE` of a rounding boundary."""
    simulator_argmax_differences: int
    """Images whose answer differs between ONNX Runtime with all optimisations and the integer simulator."""
    simulator_bit_equal_images: int
    """Images with bit-equal logits in the same comparison."""
    onnx_bytes: int
    package_bytes: int
    float_onnx_bytes: int
    """The same architecture in float."""
    ideal_bytes: float
    """Sum over layers of weights x bits / 8."""
    low_bit_bytes: int
    """Packed weights of the layers below 8 bits."""
    low_bit_ideal_bytes: float
    integer_layers: int
    """Convolutions and linear layers on integer kernels in ONNX Runtime's optimised model."""
    float_layers: int
    latency_ms: float
    """ONNX Runtime, one image, one thread, median."""
    float_latency_ms: float
    problems: tuple[str, ...] = ()


def export_network(
    subnet: Network,
    arch: Arch,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    classes: tuple[str, ...],
    image_size: int,
    calibration: Batches,
    test: Batches,
    out_dir: Path,
    keep_float: bool = False,
) -> Verification:
    """Write a calibrated static subnet in both formats and verify the files on the test split.

    Args: as `lower`, and
        test: (normalised images (N, C, S, S), labels (N,)) of the images to verify on.
        out_dir: folder of the files; created if missing, existing files are replaced one by one, atomically.
        keep_float: also leave `float.onnx`, the same architecture in float.

    Raises FileError if a file cannot be written, VerificationError (after writing `verification.json`) if the files
    disagree with the trained network.
    """
    out_dir = Path(out_dir)
    graph = lower(subnet, arch, mean, std, classes, image_size, calibration)
    write_onnx(graph, out_dir / "model.onnx")
    write_package(graph, out_dir)
    with tempfile.TemporaryDirectory() as temporary:
        float_path = (out_dir if keep_float else Path(temporary)) / "float.onnx"
        write_onnx(lower(subnet, arch, mean, std, classes, image_size, (), as_float=True), float_path)
        result = verify(subnet, graph, out_dir / "model.onnx", out_dir, float_path, test)
    write_json(out_dir / "verification.json", asdict(result))
    if result.problems:
        raise VerificationError(f"{out_dir} cannot be trusted: {'; '.join(result.problems)}")
    return result


@torch.no_grad()
def verify(
    subnet: Network, graph: Graph, onnx_path: Path, package: Path, float_onnx_path: Path, test: Batches
) -> Verification:
    """Compare the trained subnet, both files and the simulator on every test image; measure size and speed.

    Answers of ONNX Runtime without optimisation and of the package may differ only by near ties. With all
    optimisations ONNX Runtime must give the simulator's answers, on every image if all layers are integer; with float
    layers `FLOAT_LAYER_TOLERANCE` of them may differ.
    """
    network = load_package(package)
    plain_device = next(subnet.parameters()).device
    unfused, fused = session(onnx_path, optimise=False, threads=torch.get_num_threads()), session(onnx_path)
    correct, count = Counter(), Counter()
    for images, labels in test:
        pixels, labels = network_input(graph, images.cpu()), labels.cpu()
        logits = {
            "plain": subnet(graph.normalise(pixels.to(plain_device)), graph.arch).cpu(),
            "package": network(pixels),
            "simulated": run_integer(graph, pixels),
            "deployed": run_onnx(fused, pixels),
            "unfused": run_onnx(unfused, pixels),
        }
        answers = {name: values.argmax(1) for name, values in logits.items()}
        correct.update({name: (answer == labels).sum().item() for name, answer in answers.items()})
        count["images"] += len(labels)
        differing = (answers["unfused"] != answers["package"]).nonzero().flatten()
        count["argmax"] += len(differing)
        count["plain"] += (answers["plain"] != answers["deployed"]).sum().item()
        count["near_tie"] += near_ties(network.graph, onnx_path, pixels, differing)
        count["simulator"] += (answers["simulated"] != answers["deployed"]).sum().item()
        count["bit_equal"] += (logits["simulated"] == logits["deployed"]).all(1).sum().item()
    if not count["images"]:
        raise ValueError("there are no test images")
    latency_ms, float_latency_ms = latencies_ms(graph, onnx_path, float_onnx_path)
    layers = [node.weights for node in graph.nodes if node.weights]
    packed = [w for w in layers if w.bits < 8]
    integer_layers, float_layers = kernel_counts(onnx_path)
    result = Verification(
        images=count["images"],
        **{f"top1_{n}": correct[n] / count["images"] for n in ("plain", "deployed", "simulated", "package")},
        plain_differences=count["plain"],
        argmax_differences=count["argmax"],
        near_tie_differences=count["near_tie"],
        simulator_argmax_differences=count["simulator"],
        simulator_bit_equal_images=count["bit_equal"],
        onnx_bytes=onnx_path.stat().st_size,
        package_bytes=sum((Path(package) / name).stat().st_size for name in (TENSORS, DESCRIPTION)),
        float_onnx_bytes=float_onnx_path.stat().st_size,
        ideal_bytes=sum(w.weight.numel() * w.bits / 8 for w in layers),
        low_bit_bytes=sum(w.bits * -(-w.weight.numel() // 8) for w in packed),
        low_bit_ideal_bytes=sum(w.weight.numel() * w.bits / 8 for w in packed),
        integer_layers=integer_layers,
        float_layers=float_layers,
        latency_ms=latency_ms,
        float_latency_ms=float_latency_ms,
    )
    return replace(result, problems=tuple(_problems(result, sum(w.is_integer for w in layers), len(layers))))


def _problems(result: Verification, expected_integer: int, layers: int) -> Iterable[str]:
    if unexplained := result.argmax_differences - result.near_tie_differences:
        yield (
            f"ONNX Runtime without optimisation and the package answer differently on {unexplained} of "
            f"{result.images} images, not explained by rounding"
        )
    tolerance = 0 if expected_integer == layers else FLOAT_LAYER_TOLERANCE * result.images
    if result.simulator_argmax_differences > tolerance:
        yield (
            f"ONNX Runtime with all optimisations and the integer simulator answer differently on "
            f"{result.simulator_argmax_differences} of {result.images} images"
        )
    lost, chance = (result.top1_plain - result.top1_deployed) * result.images, 3 * result.plain_differences**0.5
    if lost > GRID_TOLERANCE * result.images + chance:
        yield (
            f"the file answers {lost:.0f} of {result.images} images less correctly than the trained network, more than "
            "the 8-bit grids between its layers explain"
        )
    if result.integer_layers != expected_integer:
        yield f"ONNX Runtime runs {result.integer_layers} layers on integer kernels, {expected_integer} are quantized"
    if result.low_bit_bytes > PACKING_LIMIT * result.low_bit_ideal_bytes:
        yield f"weights below 8 bits take {result.low_bit_bytes} bytes, {result.low_bit_ideal_bytes:.0f} are ideal"


# -- ONNX Runtime


def session(source: Path | bytes, optimise: bool = True, save_optimised: Path | None = None, threads: int = 1):
    """A CPU `onnxruntime.InferenceSession` of a file or serialized model."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    if lacks_vnni():
        options.add_session_config_entry("session.x64quantprecision", "1")  # exact sums, a quarter slower
    options.log_severity_level = 3  # it warns that an optimised model fits this machine only
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
    if save_optimised is not None:
        options.optimized_model_filepath = str(save_optimised)
    source = source if isinstance(source, bytes) else str(source)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def lacks_vnni() -> bool:
    """Whether this is an x86 CPU (on Linux) whose kernels may saturate 16-bit sums of u8 x s8 products."""
    cpuinfo = Path("/proc/cpuinfo")
    return platform.machine() in ("x86_64", "AMD64") and cpuinfo.exists() and "vnni" not in cpuinfo.read_text()


def run_onnx(runtime, pixels: Tensor) -> Tensor:  # (N, C, R, R) -> (N, classes)
    """Logits of raw pixels."""
    return torch.from_numpy(runtime.run(["logits"], {"pixels": pixels.numpy()})[0])


def kernel_counts(onnx_path: Path) -> tuple[int, int]:
    """(integer, float) convolutions and linear layers in ONNX Runtime's optimised model."""
    with tempfile.TemporaryDirectory() as temporary:
        saved = Path(temporary) / "optimised.onnx"
        session(onnx_path, save_optimised=saved)
        ops = Counter(node.op_type for node in onnx.load(saved).graph.node)
    integer = ops["QLinearConv"] + ops["QGemm"]
    return integer, sum(n for op, n in ops.items() if op in ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul"))


def latencies_ms(graph: Graph, *paths: Path, rounds: int = 15, repeats: int = 10) -> list[float]:
    """Median milliseconds per image of each file, one image and one thread; the files take turns."""
    image = np.full((1, graph.channels, graph.resolution, graph.resolution), 127, np.float32)
    sessions = [session(path) for path in paths]
    times: list[list[float]] = [[] for _ in paths]
    for _ in range(rounds):
        for runtime, seen in zip(sessions, times):
            for repeat in range(repeats + 2):
                start = time.perf_counter()
                runtime.run(None, {"pixels": image})
                if repeat >= 2:  # the first two refill the caches
                    seen.append((time.perf_counter() - start) * 1e3)
    return [statistics.median(seen) for seen in times]


# -- are differences rounding?


def near_ties(graph: Graph, onnx_path: Path, pixels: Tensor, images: Tensor) -> int:
    """Number of `images` (indices into the batch) whose first differing codes, unfused ONNX Runtime against torch, are
    near ties.

    Both compute the same float network and differ in summation order. An image counts if, at the first quantizer
    where any code differs, all differences are one level and the value lies within `NEAR_TIE` steps of a rounding
    boundary; everything behind it follows. Without a differing code, the two largest logits must be `NEAR_EQUAL`.
    The whole batch is computed again: torch sums in another order for one image than for many.
    """
    if not len(images):
        return 0
    model = onnx.load(onnx_path)
    names = {node.name: codes_name(node) for node in graph.nodes if node.grid}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names.values())
    runtime = session(model.SerializeToString(), optimise=False)
    theirs = dict(zip(names, runtime.run(list(names.values()), {"pixels": pixels.numpy()})))
    values: dict[str, Tensor] = {}  # of `images`
    undecided, explained = torch.ones(len(images), dtype=torch.bool), 0
    for node, value in float_values(graph, pixels, float_parameters(graph)):
        values[node.name] = value[images]
        if node.grid is None:
            continue
        source = values[node.inputs[0]]
        gaps = torch.from_numpy(theirs[node.name][images.numpy()].astype(np.float32)) - node.grid.quantize(source)
        for i in undecided.nonzero().flatten():
            if gaps[i].any():
                undecided[i] = False
                scaled = (source[i] / node.grid.step)[gaps[i] != 0]
                distance = (scaled - scaled.floor() - 0.5).abs()
                explained += bool(gaps[i].abs().max() == 1 and distance.max() < NEAR_TIE)
    for logits in values[graph.nodes[-1].name][undecided]:
        first, second = logits.topk(2).values
        explained += bool(first - second < NEAR_EQUAL * logits.abs().max())
    return explained
