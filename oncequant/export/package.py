"""The format `package`: two files without ONNX, `model.safetensors` (packed weights) and `model.json` (the rest).

JSON and safetensors hold data only, so loading a package from a stranger executes nothing. Everything in the JSON is
covered by one hash and the tensors by another: a package is complete and unchanged, or it is refused. It is judged by
loading it: the loaded graph must be the one that was written, and its answers must be those of that graph.
"""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from oncequant.arch import FLOAT_BITS, Arch
from oncequant.data.images import resize
from oncequant.export.format import Batch, Common, Exported, Format, text
from oncequant.export.graph import Graph, Grid, Node, Weights, scale_of, signed_codes
from oncequant.export.packing import pack, unpack
from oncequant.export.simulate import float_parameters, run_float
from oncequant.files import FileError, read_json, user_path, write_atomically
from oncequant.images import square, whole_image
from oncequant.tensor_files import read_tensors, write_tensors
from oncequant.version import package_version

VERSION = "oncequant package 2"
TENSORS, DESCRIPTION = "model.safetensors", "model.json"
HUB = "hf://"
TIES = 0.05  # share of images on which kernels of the same network may differ by rounding


class DeployedNetwork(nn.Module):
    """An exported network in plain PyTorch; `graph` holds architecture, classes and preprocessing."""

    def __init__(self, graph: Graph):
        super().__init__()
        self.graph = graph
        for i, (weight, bias) in enumerate(float_parameters(graph).values()):
            self.register_buffer(f"weight{i}", weight)
            self.register_buffer(f"bias{i}", bias)

    def forward(self, pixels: Tensor) -> Tensor:  # (N, C, R, R) -> (N, classes)
        """Logits of raw pixels 0..255 that the caller has resized to the network's resolution R (`graph.resolution`).

        Raises ValueError for another size or number of channels.
        """
        expected = (self.graph.channels, self.graph.resolution, self.graph.resolution)
        if pixels.dim() != 4 or tuple(pixels.shape[1:]) != expected:
            raise ValueError(f"expected images of shape (N, *{expected}), got {tuple(pixels.shape)}")
        names = [node.name for node in self.graph.nodes if node.weights]
        parameters = {n: (getattr(self, f"weight{i}"), getattr(self, f"bias{i}")) for i, n in enumerate(names)}
        return run_float(self.graph, pixels.float(), parameters)

    def prepare(self, image: Any) -> Tensor:  # (1, C, R, R)
        """What `forward` takes, of an image file, PIL image, array or tensor, as training saw it: upright, on white
        where transparent, its centre as a square of the training images' size, then at the network's resolution.

        Raises DataError or OSError if it is no image.
        """
        with whole_image(image) as opened:
            pixels = square(opened, self.graph.channels, self.graph.image_size)
        return resize(torch.from_numpy(pixels.copy())[None].float(), self.graph.resolution)


@dataclass(frozen=True)
class PackageJudgement:
    """What was found of a package."""

    bytes: int
    top1: float
    """The package loaded into PyTorch."""
    problems: tuple[str, ...] = ()


def write_package(graph: Graph, folder: Path) -> None:
    """Write both files, each atomically; the JSON last, so an interrupted write is refused by its hash."""
    folder = Path(folder)
    tensors, content = _contents(graph)
    write_tensors(folder / TENSORS, tensors, {"format": VERSION})
    hashes = {"tensors_sha256": _file_hash(folder / TENSORS), "content_sha256": _content_hash(content)}
    description = {"format": VERSION, **hashes, "content": content}
    write_atomically(folder / DESCRIPTION, json.dumps(description, separators=(",", ":")).encode())


def load_package(folder: Path | str) -> DeployedNetwork:
    """The network of a package, in evaluation mode; `hf://OWNER/NAME` is one on the Hugging Face hub, `hf://OWNER/NAME@REV`
    a branch, tag or commit of it. Raises FileError if it is missing, damaged, foreign or newer."""
    text = str(folder)
    folder = _from_hub(text.removeprefix(HUB)) if text.startswith(HUB) else user_path(folder)
    description = read_json(folder / DESCRIPTION)
    found = description.get("format") if isinstance(description, dict) else None
    if found != VERSION:
        raise FileError(f"{folder / DESCRIPTION} is not {VERSION!r} (its format is {found!r})")
    content = description.get("content")
    if _content_hash(content) != description.get("content_sha256"):
        raise FileError(f"{folder / DESCRIPTION} was changed or damaged: its content does not match its hash")
    tensors, metadata = read_tensors(folder / TENSORS)
    if metadata.get("format") != VERSION:
        raise FileError(f"{folder / TENSORS} is not {VERSION!r}")
    if _file_hash(folder / TENSORS) != description.get("tensors_sha256"):
        raise FileError(f"{folder / TENSORS} was changed or damaged: it does not match the hash in {DESCRIPTION}")
    try:
        nodes = tuple(_node_from_json(values, tensors) for values in content["nodes"])
        mean, std, classes = (tuple(content[key]) for key in ("mean", "std", "classes"))
        graph = Graph(nodes, Arch(content["arch"]), mean, std, classes, content["image_size"])
    except Exception as error:  # hashes are right, so another program made it; anything may be missing or misshapen
        raise FileError(f"{folder}: the package is inconsistent: {error}") from error
    return DeployedNetwork(graph).eval()


def _from_hub(place: str) -> Path:
    """The folder into which a package of the hub is copied. Raises FileError."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise FileError("reading from the hub needs one more package: pip install huggingface_hub") from error
    name, _, revision = place.partition("@")
    try:
        found = snapshot_download(name, revision=revision or None, allow_patterns=[TENSORS, DESCRIPTION])
    except Exception as error:  # network, authorisation, names: of several kinds, which tell what it is
        raise FileError(f"{HUB}{place} cannot be read: {' '.join(str(error).split())}") from error
    return Path(found)


def _contents(graph: Graph) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What a package holds of a graph: tensors, and what is JSON."""
    tensors = {}
    for node in graph.nodes:
        if node.weights is None:
            continue
        name, weights = node.name, node.weights
        if weights.bits == FLOAT_BITS:
            tensors[f"{name}.weight"] = weights.weight
        else:
            tensors[f"{name}.planes"] = torch.from_numpy(pack(weights.unsigned_codes().numpy(), weights.bits))
            tensors[f"{name}.scale"] = scale_of(weights)
        tensors[f"{name}.bias"] = weights.bias
    content = {
        "version": package_version(),
        "arch": dict(graph.arch),
        "classes": graph.classes,
        "mean": graph.mean,
        "std": graph.std,
        "image_size": graph.image_size,
        "nodes": [_node_to_json(node) for node in graph.nodes],
    }
    return tensors, content


def _node_to_json(node: Node) -> dict[str, Any]:
    values: dict[str, Any] = {"name": node.name, "op": node.op, "inputs": node.inputs}
    if node.grid is not None:
        values["grid"] = {key: value for key, value in asdict(node.grid).items() if value is not None}
    if node.channels is not None:
        values["channels"] = node.channels
    if node.window is not None:
        values["window"] = node.window
    if node.weights is not None:
        kept = {key: getattr(node.weights, key) for key in ("bits", "shift", "stride", "groups")}
        kept |= {"odd": True} if node.weights.odd else {}
        kept |= {"padding": node.weights.padding} if node.weights.padding is not None else {}
        kept |= {"dilation": node.weights.dilation} if node.weights.dilation > 1 else {}
        values["weights"] = {"shape": list(node.weights.weight.shape), **kept}
    return values


def _node_from_json(values: dict[str, Any], tensors: dict[str, Tensor]) -> Node:
    grid = Grid(**values["grid"]) if "grid" in values else None
    weights = _weights_from_json(values["name"], dict(values["weights"]), tensors) if "weights" in values else None
    channels, window = (tuple(values[key]) if key in values else None for key in ("channels", "window"))
    return Node(values["name"], values["op"], tuple(values["inputs"]), grid, weights, channels, window)


def _weights_from_json(name: str, values: dict[str, Any], tensors: dict[str, Tensor]) -> Weights:
    shape, bits = torch.Size(values.pop("shape")), values["bits"]
    bias = tensors[f"{name}.bias"]
    if bits == FLOAT_BITS:
        return Weights(tensors[f"{name}.weight"].reshape(shape), bias, None, **values)
    unsigned = torch.from_numpy(unpack(tensors[f"{name}.planes"].numpy(), shape.numel()))
    codes = signed_codes(unsigned, bits, values.get("odd", False)).reshape(shape)
    return Weights(codes, bias, tensors[f"{name}.scale"], **values)


def _text(content: Any) -> str:
    return json.dumps(content, sort_keys=True)


def _content_hash(content: Any) -> str:
    return hashlib.sha256(_text(content).encode()).hexdigest()


def _file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# -- the format


def read(exported: Exported) -> Callable[[Batch], Counter[str]]:
    """The loaded package. If it holds the graph to the last bit, its answers are those of the graph in float, which are
    known: then it runs on the first batch only, to show that it does."""
    network = load_package(exported.folder)
    known = _holds(network.graph, exported.graph)
    batches = itertools.count()

    @torch.no_grad()
    def count(batch: Batch) -> Counter[str]:
        first = next(batches) == 0
        answers = (network(batch.pixels) if first or not known else batch.floats).argmax(1)
        correct = int((answers == batch.labels).sum())
        if not (first and known):
            return Counter(correct=correct)
        return Counter(correct=correct, asked=len(answers), wrong=int((answers != batch.floats.argmax(1)).sum()))

    return count


def _holds(graph: Graph, other: Graph) -> bool:
    """Whether a package of the one is a package of the other."""
    found, written = _contents(graph), _contents(other)
    same = found[0].keys() == written[0].keys() and _text(found[1]) == _text(written[1])
    return same and all(torch.equal(tensor, written[0][name]) for name, tensor in found[0].items())


def judge(exported: Exported, counts: Counter[str], common: Common) -> PackageJudgement:
    """The package must hold the graph, whose answers other formats are compared with."""
    problems = []
    if not _holds(load_package(exported.folder).graph, exported.graph):
        problems.append("the package holds another network than the one that was written")
    if counts["wrong"] > TIES * counts["asked"]:
        problems.append(f"the package answers {counts['wrong']} of {counts['asked']} images otherwise than its graph")
    return PackageJudgement(
        bytes=sum((exported.folder / name).stat().st_size for name in (TENSORS, DESCRIPTION)),
        top1=counts["correct"] / common.images,
        problems=tuple(problems),
    )


FORMAT = Format(
    name="package",
    files=(TENSORS, DESCRIPTION),
    write=write_package,
    read=read,
    judge=judge,
    keys={"bytes": "package_bytes", "top1": "top1_package"},
    columns={
        "Package kB": lambda row: text(row.get("package_bytes"), lambda n: f"{n / 1000:.1f}"),
        "Package / ideal": lambda row: text(
            row.get("package_bytes"), lambda n: f"{n / row['ideal_bytes']:.2f}×" if row.get("ideal_bytes") else "–"
        ),
    },
    brief=("Package kB",),
)
