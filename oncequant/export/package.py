"""The deployed network as two files without ONNX: `model.safetensors` (packed weights) and `model.json` (the rest).

JSON and safetensors hold data only, so loading a package from a stranger executes nothing. Everything in the JSON is
covered by one hash and the tensors by another: a package is complete and unchanged, or it is refused.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from oncequant.arch import FLOAT_BITS, Arch
from oncequant.data.images import open_image, resize, square
from oncequant.export.graph import Graph, Grid, Node, Weights, signed_codes
from oncequant.export.packing import pack, unpack
from oncequant.export.simulate import float_parameters, run_float
from oncequant.files import FileError, package_version, read_json, read_tensors, write_atomically, write_tensors

FORMAT = "oncequant package 2"
TENSORS, DESCRIPTION = "model.safetensors", "model.json"


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
        with open_image(image) as opened:
            pixels = square(opened, self.graph.channels, self.graph.image_size)
        return resize(torch.from_numpy(pixels.copy())[None].float(), self.graph.resolution)


def write_package(graph: Graph, folder: Path) -> None:
    """Write both files, each atomically; the JSON last, so an interrupted write is refused by its hash."""
    tensors = {}
    for node in graph.nodes:
        if node.weights is None:
            continue
        name, weights = node.name, node.weights
        if weights.bits == FLOAT_BITS:
            tensors[f"{name}.weight"] = weights.weight
        else:
            tensors[f"{name}.planes"] = torch.from_numpy(pack(weights.unsigned_codes().numpy(), weights.bits))
            tensors[f"{name}.scale"] = weights.scale
        tensors[f"{name}.bias"] = weights.bias
    folder = Path(folder)
    write_tensors(folder / TENSORS, tensors, {"format": FORMAT})
    content = {
        "version": package_version(),
        "arch": dict(graph.arch),
        "classes": graph.classes,
        "mean": graph.mean,
        "std": graph.std,
        "image_size": graph.image_size,
        "nodes": [_node_to_json(node) for node in graph.nodes],
    }
    hashes = {"tensors_sha256": _file_hash(folder / TENSORS), "content_sha256": _content_hash(content)}
    description = {"format": FORMAT, **hashes, "content": content}
    write_atomically(folder / DESCRIPTION, json.dumps(description, separators=(",", ":")).encode())


def load_package(folder: Path) -> DeployedNetwork:
    """The network of a package, in evaluation mode. Raises FileError if it is missing, damaged, foreign or newer."""
    folder = Path(folder)
    description = read_json(folder / DESCRIPTION)
    found = description.get("format") if isinstance(description, dict) else None
    if found != FORMAT:
        raise FileError(f"{folder / DESCRIPTION} is not {FORMAT!r} (its format is {found!r})")
    content = description.get("content")
    if _content_hash(content) != description.get("content_sha256"):
        raise FileError(f"{folder / DESCRIPTION} was changed or damaged: its content does not match its hash")
    tensors, metadata = read_tensors(folder / TENSORS)
    if metadata.get("format") != FORMAT:
        raise FileError(f"{folder / TENSORS} is not {FORMAT!r}")
    if _file_hash(folder / TENSORS) != description.get("tensors_sha256"):
        raise FileError(f"{folder / TENSORS} was changed or damaged: it does not match the hash in {DESCRIPTION}")
    try:
        nodes = tuple(_node_from_json(values, tensors) for values in content["nodes"])
        mean, std, classes = (tuple(content[key]) for key in ("mean", "std", "classes"))
        graph = Graph(nodes, Arch(content["arch"]), mean, std, classes, content["image_size"])
    except Exception as error:  # hashes are right, so another program made it; anything may be missing or misshapen
        raise FileError(f"{folder}: the package is inconsistent: {error}") from error
    return DeployedNetwork(graph).eval()


def _node_to_json(node: Node) -> dict[str, Any]:
    values: dict[str, Any] = {"name": node.name, "op": node.op, "inputs": node.inputs}
    if node.grid is not None:
        values["grid"] = asdict(node.grid)
    if node.channels is not None:
        values["channels"] = node.channels
    if node.weights is not None:
        kept = {key: getattr(node.weights, key) for key in ("bits", "shift", "stride", "groups")}
        kept |= {"odd": True} if node.weights.odd else {}
        values["weights"] = {"shape": list(node.weights.weight.shape), **kept}
    return values


def _node_from_json(values: dict[str, Any], tensors: dict[str, Tensor]) -> Node:
    grid = Grid(**values["grid"]) if "grid" in values else None
    weights = _weights_from_json(values["name"], dict(values["weights"]), tensors) if "weights" in values else None
    channels = tuple(values["channels"]) if "channels" in values else None
    return Node(values["name"], values["op"], tuple(values["inputs"]), grid, weights, channels)


def _weights_from_json(name: str, values: dict[str, Any], tensors: dict[str, Tensor]) -> Weights:
    shape, bits = torch.Size(values.pop("shape")), values["bits"]
    bias = tensors[f"{name}.bias"]
    if bits == FLOAT_BITS:
        return Weights(tensors[f"{name}.weight"].reshape(shape), bias, None, **values)
    unsigned = torch.from_numpy(unpack(tensors[f"{name}.planes"].numpy(), shape.numel()))
    codes = signed_codes(unsigned, bits, values.get("odd", False)).reshape(shape)
    return Weights(codes, bias, tensors[f"{name}.scale"], **values)


def _content_hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
