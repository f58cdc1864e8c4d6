"""A network of the user's own from a Python file, which is run."""

import importlib.util
import sys
from pathlib import Path

import torch
from torch import nn

from oncequant.files import FileError, user_path
from oncequant.models.import_resnet import read_standard
from oncequant.models.trace import OwnNetwork, own_network
from oncequant.progress import console


def place_of_network(text: str) -> tuple[Path, str]:
    """File and function of `FILE.py:function`. Raises ValueError for another form."""
    path, _, function = text.rpartition(":")
    if not path.endswith(".py") or not function.isidentifier():
        raise ValueError(f"network {text!r}: write FILE.py:function, where the function returns a torch.nn.Module")
    return user_path(path), function


def network_of_file(text: str, size: int, seed: int, weights: str | None = None, trained: bool = False) -> OwnNetwork:
    """The network that a function of the user's file makes, traced.

    Args:
        text: `FILE.py:function`. The function takes nothing and returns a module, or a module and example images.
        size: of the images in pixels, where there is no example.
        seed: of random weights.
        weights: file with a state dict, .safetensors or as torch.save writes it, read without executing code.
        trained: see `own_network`.

    Raises ValueError (with TraceError) and FileError, naming the file.
    """
    path, function = place_of_network(text)
    made = _called(path, function, seed)
    module, example = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(module, nn.Module):
        kind = type(module).__name__
        raise ValueError(f"{path}: {function}() returns a {kind}; let it return a torch.nn.Module, or one and images")
    if weights is not None:
        _load(module, user_path(weights), trained)
    if example is None:
        convolutions = [each.in_channels for each in module.modules() if isinstance(each, nn.Conv2d)]
        example = torch.zeros(1, (convolutions or [3])[0], size, size)
    return own_network(module, example, trained)


def _called(path: Path, function: str, seed: int) -> object:
    """What the function returns. Its folder is searched for imports, as Python does when it runs the file."""
    if not path.is_file():
        raise FileError(f"{path} does not exist")
    console.print(f"running {function}() of {path}", soft_wrap=True)
    name = f"oncequant_network_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # the name ends with .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where classes of the file look for themselves
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
        if not callable(maker := getattr(module, function, None)):
            known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
            raise ValueError(f"{path} has no function {function}; it has {', '.join(known) or 'none'}")
        torch.manual_seed(seed)
        return maker()
    except FileError:
        raise
    except Exception as error:  # the user's code may raise anything
        if isinstance(error, ValueError) and str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path}: {function}() failed: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.parent.resolve()))


def _load(module: nn.Module, path: Path, trained: bool) -> None:
    """Weights from a file. Those of the last layer may be for other classes: then that keeps its random ones."""
    state = {name.removeprefix("module."): tensor for name, tensor in read_standard(path).items()}
    own = {name: tensor for name, tensor in module.state_dict().items() if not name.endswith("num_batches_tracked")}
    state = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    for name in (*state, *own):
        if (name in state) != (name in own):
            raise FileError(f"{path} {'has' if name in state else 'lacks'} {name}, the network does not fit it")
    other = [name for name, tensor in own.items() if state[name].shape != tensor.shape]
    modules = {name.rpartition(".")[0] for name in other}
    if len(modules) > 1 or modules and modules != {list(own)[-1].rpartition(".")[0]} or other and trained:
        shapes = f"{tuple(state[other[0]].shape)}, the network's is {tuple(own[other[0]].shape)}"
        raise FileError(f"{path}: {other[0]} has shape {shapes}")
    if other:
        console.print(
            f"{path}: {len(state) - len(other)} tensors are taken; {modules.pop()} starts anew", soft_wrap=True
        )
    module.load_state_dict({name: tensor for name, tensor in state.items() if name not in other}, strict=False)
