"""The format `qonnx`: one file `network.qonnx.onnx` for tools that build FPGAs, such as hls4ml and FINN.

It is judged by qonnx's own executor, in float: layer by layer, its codes must be those that the integer simulator makes
of the codes before, but for near ties of float32 sums.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from oncequant.export.format import Batch, Common, Exported, Format, text
from oncequant.export.graph import Graph, Node, grid_of
from oncequant.export.simulate import float_parameters, run_integer
from oncequant.files import FileError

FILE = "network.qonnx.onnx"
NEAR_TIE = 1e-3  # of a step: farther from a rounding boundary, float32 sums cannot change a code
CHUNK_NUMBERS, MOST_IMAGES = 2**26, 32  # computed at once; the executor keeps all tensors


@dataclass(frozen=True)
class QonnxJudgement:
    """What was found of the file."""

    bytes: int
    top1: float
    """In qonnx's executor, in float."""
    equal_images: int
    """Images with all codes at all quantizers equal to those of the integer simulator."""
    near_tie_images: int
    """Images where codes differ, first by one level, each near a rounding boundary."""
    different_answers: int
    """Images whose answer differs from that of the integer simulator."""
    problems: tuple[str, ...] = ()


def write(graph: Graph, folder: Path) -> None:
    """Write the file."""
    from oncequant.export.qonnx_writer import write_qonnx

    write_qonnx(graph, Path(folder) / FILE)


def read(exported: Exported) -> Callable[[Batch], Counter[str]]:
    """The file in qonnx's executor, each of its steps compared with the integer simulator."""
    graph, (model, rows) = exported.graph, _executable(exported.folder / FILE)

    @torch.no_grad()
    def count(batch: Batch) -> Counter[str]:
        parts = [_compared(graph, pixels, _values(graph, model, rows, pixels)) for pixels in batch.pixels.split(rows)]
        logits, equal, explained = (torch.cat(each) for each in zip(*parts))
        answers = logits.argmax(1)
        return Counter(
            correct=int((answers == batch.labels).sum()),
            equal=int((equal & explained).sum()),
            near_tie=int((explained & ~equal).sum()),
            unexplained=int((~explained).sum()),
            different=int((answers != batch.simulated.argmax(1)).sum()),
        )

    return count


def _executable(path: Path):
    """The file as qonnx executes it, for as many images at once as are small together; and how many."""
    import numpy as np
    import onnx
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.transformation.change_batchsize import ChangeBatchSize
    from qonnx.transformation.infer_shapes import InferShapes

    try:
        model = ModelWrapper(onnx.load(path))
        onnx.checker.check_model(model.model)
        model = model.transform(InferShapes())
        numbers = sum(int(np.prod(model.get_tensor_shape(node.output[0]))) for node in model.graph.node)
        rows = min(MOST_IMAGES, max(1, CHUNK_NUMBERS // numbers))
        return model.transform(ChangeBatchSize(rows)).transform(InferShapes()), rows
    except Exception as error:  # onnx and qonnx have many kinds
        raise FileError(f"qonnx cannot read {path}: {error}") from error


def _values(graph: Graph, model, rows: int, pixels: Tensor) -> dict[str, Tensor]:
    """What the file computes for each node of its graph, and `logits`, for up to `rows` images (N, C, R, R)."""
    from qonnx.core.onnx_exec import execute_onnx

    padded = torch.cat([pixels, pixels[:1].expand(rows - len(pixels), -1, -1, -1)])
    found = execute_onnx(model, {"pixels": padded.numpy()}, return_full_exec_context=True)
    names = [*(node.name for node in graph.nodes[1:-1]), "logits"]
    return {name: torch.from_numpy(found[name])[: len(pixels)] for name in names}


def _compared(graph: Graph, pixels: Tensor, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """(logits of the file, images with equal codes, images whose differences are rounding).

    The simulator computes each quantizer's codes from the file's own codes before it. So a difference is of one step
    alone, and if there is none, all codes are those of the simulator by itself.
    """
    equal, explained = torch.ones(2, len(pixels), dtype=torch.bool)

    def follow(node: Node, codes: Tensor) -> Tensor:
        grid = grid_of(node)
        theirs = (values[node.name] / grid.step).round() + grid.zero_point
        differs = theirs != codes
        scaled = values[node.inputs[0]] / grid.step
        near_tie = (scaled - scaled.floor() - 0.5).abs() < NEAR_TIE
        equal.logical_and_(~differs.flatten(1).any(1))
        explained.logical_and_((~differs | near_tie & ((theirs - codes).abs() == 1)).flatten(1).all(1))
        return theirs

    simulated, logits = run_integer(graph, pixels, follow), values["logits"]
    # two sums of K + 1 terms, each rounded: not farther apart than this
    last = graph.nodes[-1]
    x, (weight, bias) = values[last.inputs[0]].flatten(1), float_parameters(graph)[last.name]
    reach = (x.abs() @ weight.abs().T + bias.abs()) * 2**-24
    explained.logical_and_(((logits - simulated).abs() <= 2 * (x.shape[1] + 4) * reach).all(1))
    return logits, equal, explained


def judge(exported: Exported, counts: Counter[str], common: Common) -> QonnxJudgement:
    """Every code must follow from the codes before it."""
    problems = []
    if counts["unexplained"]:
        problems.append(
            f"qonnx and the integer simulator compute different codes or logits on {counts['unexplained']} of "
            f"{common.images} images, not explained by rounding"
        )
    return QonnxJudgement(
        bytes=(exported.folder / FILE).stat().st_size,
        top1=counts["correct"] / common.images,
        equal_images=counts["equal"],
        near_tie_images=counts["near_tie"],
        different_answers=counts["different"],
        problems=tuple(problems),
    )


FORMAT = Format(
    name="qonnx",
    files=(FILE,),
    write=write,
    read=read,
    judge=judge,
    default=False,
    packed=False,
    keys={
        "bytes": "qonnx_bytes",
        "top1": "top1_qonnx",
        "equal_images": "qonnx_equal_images",
        "near_tie_images": "qonnx_near_tie_images",
        "different_answers": "qonnx_different_answers",
    },
    columns={
        "QONNX top-1": lambda row: text(row.get("top1_qonnx"), "{:.2%}".format),
        "QONNX kB": lambda row: text(row.get("qonnx_bytes"), lambda n: f"{n / 1000:.1f}"),
        "QONNX / ideal": lambda row: text(row.get("qonnx_bytes"), lambda n: f"{n / row['ideal_bytes']:.2f}×"),
        "QONNX codes": lambda row: text(
            row.get("qonnx_equal_images"), lambda n: f"equal on {n} of {row.get('images', '?')}"
        ),
    },
    brief=("QONNX top-1", "QONNX kB"),
    notes="QONNX codes: images on which qonnx computes the codes of the integer simulator at every quantizer; on the "
    "others they differ where a float32 sum lies on a rounding boundary.",
    packages=("qonnx",),  # which needs onnx and onnxruntime
)
