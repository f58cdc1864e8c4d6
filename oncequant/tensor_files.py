"""Files of tensors: safetensors with a checksum."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from oncequant.files import read_file, write_atomically

CHECKSUM = "sha256"  # in the metadata of a safetensors file


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file atomically; metadata is text by name. Equal tensors and metadata are equal bytes."""
    dense = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {**metadata, CHECKSUM: _checksum(dense, metadata)}
    write_atomically(path, _with_sorted_header(save_safetensors(dense, metadata)))


def _with_sorted_header(content: bytes) -> bytes:
    """The same safetensors file with its metadata by name: the library has them in a random order."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight bytes
    return len(text).to_bytes(8, "little") + text + content[start:]


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file. Raises FileError if it is missing, truncated or foreign."""

    def parse(content: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
        try:
            tensors = load_safetensors(content)
        except SafetensorError as error:
            raise ValueError(str(error)) from error
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = header.get("__metadata__", {})
        if metadata.pop(CHECKSUM, None) not in (None, _checksum(tensors, metadata)):  # older files have none
            raise ValueError("it was changed or damaged, its content does not match its checksum")
        return tensors, metadata

    return read_file(path, parse, "safetensors")


def _checksum(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    """SHA-256 of what a safetensors file holds: the format has no checksum of its own, and any bits are a number."""
    found = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
