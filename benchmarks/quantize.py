"""The fake-quantization function, forward and backward, against other ways to compute it and against its floor.

    GOMP_SPINCOUNT=2000 python benchmarks/quantize.py [--out results/NAME.csv]

Ours: `fake_quantize` and autograd; in a layer: the two functions that the layers' own backward passes call. Composite:
LSQ in plain differentiable PyTorch. Built-in: torch's learnable fake-quantization (another gradient, see docs/log.md).
Floor: reading and writing the same tensors once, a copy for the forward and an addition for the backward pass. With
Brevitas installed (`pip install brevitas`), its learned-scale quantizer too.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
import tyro
from rows import measured, save

from oncequant.allocator import keep_freed_memory
from oncequant.quantizers.functional import activate, fake_quantize, gradients, quantized


@dataclass(frozen=True)
class Options:
    """What to measure."""

    shapes: tuple[str, ...] = ("32x64x32x32", "64x16x12x12", "32x960x1x1")
    bits: int = 4
    repeats: int = 30
    passes: int = 7
    tune_allocator: bool = True
    """Keep freed memory, so that page faults do not hide the kernels."""
    out: Path | None = None


def composite(x: torch.Tensor, s: torch.Tensor, bits: int, activation: str | None) -> torch.Tensor:
    """LSQ, unsigned, by separate operations."""
    v = (activate(x, activation) / s.abs()).clamp(0, 2**bits - 1)
    return ((v.round() - v).detach() + v) * s.abs()


def built_in(x: torch.Tensor, s: torch.Tensor, bits: int, activation: str | None) -> torch.Tensor:
    """torch's own learnable fake-quantization."""
    zero = torch.zeros(1)
    h = activate(x, activation)
    return torch._fake_quantize_learnable_per_tensor_affine(h, s.reshape(1), zero, 0, 2**bits - 1, 1.0)


def fused(x: torch.Tensor, s: torch.Tensor, bits: int, activation: str | None) -> torch.Tensor:
    """Ours."""
    return fake_quantize(x, s, bits, False, activation=activation)


def brevitas() -> Callable | None:
    """Brevitas' unsigned quantizer with a learned scale, or None."""
    try:
        from brevitas.nn import QuantIdentity
        from brevitas.quant import Uint8ActPerTensorFloat
    except ImportError:
        return None
    layers = {}

    def apply(x, s, bits, activation):
        if bits not in layers:
            layers[bits] = QuantIdentity(Uint8ActPerTensorFloat, bit_width=bits)
            layers[bits].train()
        return layers[bits](activate(x, activation))

    return apply


def main(options: Options) -> None:
    """Measure and print a table."""
    if options.tune_allocator:
        keep_freed_memory()
    ways = {"ours": fused, "composite": composite, "built-in": built_in}
    if other := brevitas():
        ways["Brevitas"] = other
    rows = []
    for shape, activation in product(options.shapes, (None, "relu", "hardswish")):
        x = torch.randn(*map(int, shape.split("x"))).to(memory_format=torch.channels_last).requires_grad_()
        s, grad = torch.tensor(0.1, requires_grad=True), torch.randn_like(x)

        def floor(x=x, grad=grad) -> None:
            with torch.no_grad():
                y = x.clone()
                grad_x = x + grad
                del y, grad_x  # a training step, too, keeps the first until it has the second

        def in_layer(x=x, s=s, grad=grad, activation=activation) -> None:
            with torch.no_grad():
                y = quantized(x, s, None, options.bits, False, activation)
                gradients(x, grad, s, None, options.bits, False, activation, 1.0)
                del y

        def step(way: Callable, x=x, s=s, grad=grad, activation=activation) -> None:
            y = way(x, s, options.bits, activation)
            torch.autograd.grad(y, (x, s), grad, allow_unused=True)  # Brevitas has a scale of its own

        tasks = {"floor": floor, "ours, in a layer": in_layer}
        tasks |= {name: (lambda way=way, step=step: step(way)) for name, way in ways.items()}
        times: dict[str, list[float]] = {name: [] for name in tasks}
        for _ in range(options.passes + 1):
            for name, task in tasks.items():
                start = time.perf_counter()
                for _ in range(options.repeats):
                    task()
                times[name].append((time.perf_counter() - start) / options.repeats * 1e6)
        medians = {name: statistics.median(values[1:]) for name, values in times.items()}
        for name, value in medians.items():
            rows.append(
                measured(
                    shape=shape,
                    activation=activation or "none",
                    way=name,
                    forward_backward_us=round(value, 1),
                    over_floor=round(value / medians["floor"], 2),
                    threads=torch.get_num_threads(),
                )
            )
    save(rows, options.out)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
