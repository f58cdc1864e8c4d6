"""What the operations between layers compute, in torch: for networks that train and for deployed ones alike.

Activations are not here. Deployed networks compute some of them in ONNX's form, which rounds otherwise.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from oncequant.plan import POOL, Window


def moved(op: str, inputs: list[Tensor], channels: tuple[int, int] | None, window: Window | None) -> Tensor:
    """The result of an operation on maps (N, C, H, W); `channels` and `window` are those of a `plan.Node`.

    Raises ValueError for an operation that is not here.
    """
    x = inputs[0]
    first, second = channels or (0, 0)
    match op:
        case "mean":
            return x.mean((2, 3), keepdim=True)
        case "multiply":
            return x * inputs[1]
        case "add":
            return x + inputs[1]
        case "concat":
            return torch.cat(inputs, 1)
        case "subsample":
            return x[:, :, ::2, ::2]
        case "pad_channels":
            return F.pad(x, (0, 0, 0, 0, first, second))
        case "slice":
            return x[:, first:second]
        case "shuffle":
            return x.unflatten(1, (first, second)).transpose(1, 2).flatten(1, 2)
        case "pad":
            return F.pad(x, window or (0, 0, 0, 0))
        case "maxpool" | "avgpool":
            return _pooled(op, x, window or POOL)
    raise ValueError(f"{op!r} is no operation between layers")


def _pooled(op: str, x: Tensor, window: Window) -> Tensor:
    kernel, stride, before, after = window
    if before != after or before > kernel // 2:  # torch pads alike on both sides, and not farther
        x = F.pad(x, (before, after, before, after), value=-torch.inf if op == "maxpool" else 0.0)
        before = 0
    return F.max_pool2d(x, kernel, stride, before) if op == "maxpool" else F.avg_pool2d(x, kernel, stride, before)
