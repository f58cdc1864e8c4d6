"""What training steps compute in, where it is left open: bfloat16 if this machine is faster in it, else float32.

Processors with matrix units for bfloat16 train dense convolutions about twice as fast in it; where it is emulated it is
ten times slower. So the heaviest dense convolution of the network is timed in both, and the heaviest depthwise one, if
there is one, for which bfloat16 does nothing (docs/log.md).
"""

import math
import time
from collections.abc import Callable
from typing import Literal

import torch
from torch.nn import functional as F

from oncequant.arch import LayerSpec
from oncequant.family import NetworkConfig
from oncequant.models import space_of
from oncequant.progress import console

Precision = Literal["float32", "bfloat16"]

IMAGES = {"cpu": 16, "cuda": 256}  # a GPU is not busy with fewer
REPEATS = 9
GAIN = 1.2  # bfloat16 has to be so many times as fast, since it rounds


def faster(model: NetworkConfig, device: torch.device) -> Precision:
    """The type in which the convolutions with the most multiply-accumulates of the largest network are faster, forwards
    and backwards; says so on the console. The result depends on the machine, so a run keeps it."""
    space = space_of(model)
    kinds: dict[bool, list[LayerSpec]] = {}  # depthwise or not
    for layer in space.layers(space.largest()).values():
        kinds.setdefault(layer.depthwise, []).append(layer)
    heaviest = [max(layers, key=lambda spec: spec.weights * spec.out_size**2) for layers in kinds.values()]
    seconds = {
        name: sum(timed(layer, getattr(torch, name), device) for layer in heaviest) for name in ("float32", "bfloat16")
    }
    chosen: Precision = "bfloat16" if GAIN * seconds["bfloat16"] < seconds["float32"] else "float32"
    times = ", ".join(f"{1000 * value:.1f} ms in {name}" for name, value in seconds.items())
    console.print(f"training computes in {chosen}: convolutions take {times} (--precision)", soft_wrap=True)
    return chosen


def timed(layer: LayerSpec, dtype: torch.dtype, device: torch.device) -> float:
    """Seconds of a convolution of `IMAGES` images, forwards and backwards, on one thread: the least of several after a
    first one; infinite where the device cannot compute it in this type. Several threads wait for each other, and where
    other jobs run that is all one would measure."""
    shape = IMAGES[device.type], layer.in_channels, layer.in_size, layer.in_size
    x = torch.zeros(shape, dtype=dtype, device=device).to(memory_format=torch.channels_last).requires_grad_()
    size = layer.out_channels, layer.group_channels, layer.kernel_size, layer.kernel_size
    weight = torch.zeros(size, dtype=dtype, device=device, requires_grad=True)

    def step() -> None:
        y = F.conv2d(x, weight, **layer.conv)
        y.backward(torch.zeros_like(y))

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        step()
        return min(_seconds(step, device) for _ in range(REPEATS))
    except RuntimeError:
        return math.inf
    finally:
        torch.set_num_threads(threads)


def _seconds(step: Callable[[], None], device: torch.device) -> float:
    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    start = now()
    step()
    return now() - start
