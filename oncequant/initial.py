"""Weights that a supernet starts from: of another run, of an OFA checkpoint, or of a standard residual network."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from oncequant.files import FileError, read_object, user_path
from oncequant.models.import_ofa import our_key
from oncequant.models.import_resnet import read_standard, standard_keys
from oncequant.models.own_weights import start_from as take_own
from oncequant.network import Network
from oncequant.progress import console
from oncequant.supernet_file import load_supernet

LEAST_SHARE = 0.5  # of the network's numbers without its last layer; below that it is another network


def start_float(supernet: Network, folder: Path, init: str | None, classes: Sequence[str]) -> None:
    """Weights for a supernet before its float stage: those that the run folder has for a network of the user's own, and
    those of `init`, if that is given; says what was taken."""
    take_own(supernet, folder)
    if init:
        console.print(start_from(supernet, init, classes), soft_wrap=True)


@torch.no_grad()
def start_from(net: Network, place: str, classes: Sequence[str] = ()) -> str:
    """Copy into `net` what fits of the weights in `place`, a run folder or a file, by name and shape. The first layer
    may have other image channels. The last one starts anew if it has another number of classes, or those of a run
    that are not called `classes`. Quantizers keep what they have. Returns a line on what was taken.

    Raises FileError if nothing readable is there, or if less than half of the network's numbers fit.
    """
    given, left, taken, numbers, fitting = weights_of(place), [], 0, 0, 0
    if (run := user_path(place) / "run.json").is_file():
        if read_object(run, "data")["data"].get("classes", []) != list(classes):
            given = {name: tensor for name, tensor in given.items() if not name.startswith("classifier.")}
    for name, target in net.state_dict().items():
        if "_quantizer." in name:  # estimated from what it quantizes
            continue
        key = next((key for key in (name, *standard_keys(name)) if key in given), None)
        fitted = None if key is None else _fitted(given[key], target, name.startswith("stem."))
        is_last = name.startswith("classifier.")
        numbers += 0 if is_last else target.numel()
        if fitted is None:
            left.append(name if key is None else f"{name} ({_shape(given[key])} there, {_shape(target)} here)")
            continue
        target.copy_(fitted)
        taken += 1
        fitting += 0 if is_last else target.numel()
    if fitting < LEAST_SHARE * numbers:
        more = f" and {len(left) - 3} more" if len(left) > 3 else ""
        raise FileError(
            f"{place}: only {taken} of {taken + len(left)} tensors fit this network; missing or of another shape: "
            f"{', '.join(left[:3])}{more}. Use the --preset and --width that these weights are of"
        )
    anew = f"; these start anew: {', '.join(left)}" if left else ""
    return f"weights of {place}: {taken} of {taken + len(left)} tensors taken{anew}"


def weights_of(place: str) -> Mapping[str, Tensor]:
    """Tensors in a run folder, of its float supernet, or in a file; those of OFA by our names. Raises FileError."""
    path = user_path(place)
    if path.is_dir():
        return load_supernet(path, "float").state_dict()
    state = {name.removeprefix("module."): tensor for name, tensor in read_standard(path).items()}
    state = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    if "first_conv.conv.weight" not in state:
        return state
    try:
        return {our_key(name): tensor for name, tensor in state.items()}
    except ValueError as error:
        raise FileError(f"{path}: {error}") from error


def _fitted(tensor: Tensor, target: Tensor, is_first: bool) -> Tensor | None:
    """The tensor in the shape of `target`; None if it is another layer's. Weights of the first layer are summed for
    grey images, and a third of them taken for each colour."""
    if tensor.dim() == 2 and target.dim() == 4:
        tensor = tensor[:, :, None, None]
    if tensor.shape == target.shape:
        return tensor
    if is_first and tensor.dim() == 4 and tensor[:, :1].shape == target[:, :1].shape:
        if target.shape[1] == 1:
            return tensor.sum(1, keepdim=True)
        if tensor.shape[1] == 1:
            return tensor.expand_as(target) / target.shape[1]
    return None


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a number"
