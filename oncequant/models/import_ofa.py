"""Import published checkpoints of OFA and OQA supernets into our MobileNetV3.

Both spellings of the blocks are read, `blocks.N.mobile_inverted_conv.` (checkpoints) and `blocks.N.conv.` (newer OFA
code). OQA checkpoints hold step sizes `sw` and `sa` beside each quantized weight; they were trained with unsigned
activations everywhere and with float stem, classifier and squeeze-and-excite.
"""

import re
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from oncequant.arch import FLOAT_BITS
from oncequant.family import with_bits
from oncequant.files import FileError
from oncequant.models import build_network
from oncequant.models.mobilenet_v3 import PRESETS
from oncequant.network import Network

BLOCK_PARTS = {
    "inverted_bottleneck": "expand",
    "depth_conv": "depthwise",
    "point_linear": "project",
    "depth_conv.se.fc.reduce": "se_reduce",
    "depth_conv.se.fc.expand": "se_expand",
}
OUTER_PARTS = {
    "first_conv": "stem",
    "final_expand_layer": "final_expand",
    "feature_mix_layer": "feature_mix",
    "classifier": "classifier",
}
TENSORS = {  # last words of a published key -> ours
    r"(conv\.)*(linear\.)?weight": "weight",
    r"(linear\.)?bias": "bias",
    r"bn\.(bn\.)?(weight|bias|running_mean|running_var)": r"norm.\2",
    r"conv\.7to5_matrix": "kernel_transforms.5",
    r"conv\.5to3_matrix": "kernel_transforms.3",
    r"(conv\.)+sw": "weight_quantizer.step_size",
    r"(conv\.)+sa": "act_quantizer.step_size",
}


def read_published(path: Path, bits: int = FLOAT_BITS) -> Network:
    """The supernet of a published `.pth` file, read without executing code.

    Raises FileError if the file is damaged or is not such a checkpoint.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        state = content["state_dict"]
    except Exception as error:  # torch.load raises many kinds for damaged or hostile files
        raise FileError(f"{path} is not a readable checkpoint {{'state_dict': ...}}: {type(error).__name__}") from error
    try:
        return import_published(state, bits)
    except ValueError as error:
        raise FileError(f"{path}: {error}") from error


def import_published(state: dict[str, Tensor], bits: int = FLOAT_BITS) -> Network:
    """Our supernet with the weights of a published state dict.

    Args:
        state: tensors by published key; the width (1.0 or 1.2) is read off the first convolution.
        bits: bit-width of an OQA checkpoint; 32 for OFA.

    Raises:
        ValueError: a key is unknown, missing, or its tensor has another shape.
    """
    stem = state.get("first_conv.conv.weight")
    widths = {16: 1.0, 24: 1.2}
    if stem is None or stem.shape[0] not in widths:
        raise ValueError(
            "first_conv.conv.weight is missing or has neither 16 nor 24 filters: not an OFA or OQA w1.0/w1.2"
        )
    renamed = {our_key(key): tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}
    has_steps = any(key.endswith("step_size") for key in renamed)
    if has_steps != (bits < FLOAT_BITS):
        no_steps = f"no step sizes for {bits} bits: an OFA checkpoint"
        raise ValueError("this is an OQA checkpoint: give its bits" if has_steps else no_steps)
    if "classifier.linear.bias" not in state:
        raise ValueError("keys do not fit: classifier.linear.bias is missing")
    classes = len(state["classifier.linear.bias"])
    config = replace(PRESETS["imagenet"], width=widths[stem.shape[0]], num_classes=classes, signed_activations=False)
    supernet = build_network(with_bits(config, bits))
    ours = supernet.state_dict()
    for key, tensor in renamed.items():
        if key.endswith("step_size"):
            renamed[key] = tensor.abs().reshape(())  # only |s| is ever used
        elif key == "classifier.weight":
            renamed[key] = tensor[:, :, None, None]
    if different := set(ours) ^ set(renamed):
        raise ValueError(f"keys do not fit: {', '.join(sorted(different)[:5])}")
    for key, tensor in renamed.items():
        if tensor.shape != ours[key].shape:
            raise ValueError(f"{key} has shape {tuple(tensor.shape)}, expected {tuple(ours[key].shape)}")
    supernet.load_state_dict(renamed)
    return supernet


def our_key(key: str) -> str:
    """Our name of a published tensor. Raises ValueError for a key of another network."""
    part, _, tensor = key.partition(".")
    layer = OUTER_PARTS.get(part)
    if match := re.fullmatch(r"blocks\.(\d+)\.(?:mobile_inverted_conv|conv)\.(\w+(?:\.se\.fc\.\w+)?)\.(.+)", key):
        number, block_part, tensor = int(match[1]), match[2], match[3]
        stage, block = divmod(number - 1, 4)
        prefix = "block0" if number == 0 else f"stage{stage + 1}.block{block + 1}"
        layer = f"{prefix}.{BLOCK_PARTS[block_part]}" if block_part in BLOCK_PARTS else None
    for pattern, ours in TENSORS.items():
        if layer and (match := re.fullmatch(pattern, tensor)):
            return f"{layer}.{match.expand(ours)}"
    raise ValueError(f"unknown key {key!r}")
