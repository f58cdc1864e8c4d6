"""What is estimated from images without gradients: first step sizes, a subnet's statistics, whole zero points."""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from oncequant.arch import FLOAT_BITS, Arch
from oncequant.elastic import ElasticBatchNorm
from oncequant.models.mobilenet_v3 import MobileNetV3, elastic_layers
from oncequant.quantizers.batchquant import BatchQuant
from oncequant.quantizers.functional import activate
from oncequant.quantizers.lsq import LSQ

Batches = Iterable[tuple[Tensor, Tensor]]  # normalised images (N, C, S, S), labels (N,)


@torch.no_grad()
def initialise_quantizers(supernet: MobileNetV3, images: Tensor, tied: bool = False) -> None:
    """LSQ's s = 2 mean|v| / sqrt(q_max) for every step size, from the largest subnet on `images` (N, C, S, S).

    With step sizes for each bit-width, `tied` estimates that of the widest and doubles it for every bit less. Scales
    and offsets of BatchQuant keep their start values.
    """

    def initialise(layer, arguments) -> None:
        x, spec, activation, *_ = arguments
        if layer.weight_quantizer is None:
            return
        inputs = activate(x, activation)
        weights = {
            kernel: layer.sliced_weight(replace(spec, kernel_size=kernel), all_channels=True)
            for kernel in {spec.kernel_size, *(kernel for _, kernel in layer.weight_slots or ())}
        }
        act_values = dict.fromkeys({spec.kernel_size, *(kernel for _, kernel in layer.act_slots or ())}, inputs)
        for quantizer, slots, bits, values, signed in (
            (layer.act_quantizer, layer.act_slots, spec.act_bits, act_values, spec.signed_input),
            (layer.weight_quantizer, layer.weight_slots, spec.weight_bits, weights, True),
        ):
            _initialise(quantizer, slots, bits, values, spec.kernel_size, signed, tied)

    hooks = [layer.register_forward_pre_hook(initialise) for _, layer in elastic_layers(supernet)]
    training = supernet.training
    supernet.train()
    try:
        supernet(images, supernet.space.largest())
    finally:
        supernet.train(training)
        for hook in hooks:
            hook.remove()


def _initialise(quantizer, slots, bits: int, values: dict[int, Tensor], largest: int, signed: bool, tied: bool) -> None:
    """Every slot of one quantizer; `values` by kernel size are what it will quantize."""
    if slots is None:
        if bits < FLOAT_BITS:
            quantizer.initialise(values[largest], bits, signed)
        return
    widest = max((bits for bits, _ in slots), default=0)
    for (bits, kernel), slot in sorted(slots.items(), reverse=True):  # the widest first
        if tied and isinstance(quantizer, LSQ) and bits < widest:
            quantizer.step_size[slot] = quantizer.step_size[slots[widest, kernel]] * 2 ** (widest - bits)
        else:
            quantizer.initialise(values[kernel], bits, signed, slot)


@torch.no_grad()
def calibrate(subnet: MobileNetV3, arch: Arch, batches: Batches, ranges: bool = True) -> None:
    """Re-estimate the batch-norm statistics of a static subnet, and with `ranges` its activation ranges.

    Every forward pass uses the statistics of its batch; the means over batches (weighted by images) of mean, biased
    variance and range are stored, as in the official OFA, OQA and QFA evaluation. Leaves it in evaluation mode.
    """
    norms = {module: [] for module in subnet.modules() if isinstance(module, ElasticBatchNorm)}
    quantizers = [module for module in subnet.modules() if isinstance(module, BatchQuant)]

    def record(norm: ElasticBatchNorm, inputs: tuple[Tensor], output: Tensor) -> None:
        values = output.numel() // output.shape[1]  # of a channel; batch norm stores the unbiased variance
        biased = norm.running_var * ((values - 1) / values)
        norms[norm].append((len(output), norm.running_mean.clone(), biased))

    hooks = [norm.register_forward_hook(record) for norm in norms]
    subnet.eval()  # without dropout
    for quantizer in quantizers:
        quantizer.train(ranges)
        quantizer.observed = [] if ranges else None
    try:
        for norm in norms:
            norm.train().store = True
        for images, _ in batches:
            subnet(images, arch)
    finally:
        for norm, hook in zip(norms, hooks):
            norm.store = False
            hook.remove()
        subnet.eval()
    for norm, seen in norms.items():
        total = sum(count for count, _, _ in seen)
        norm.running_mean.copy_(sum(count * mean for count, mean, _ in seen) / total)
        norm.running_var.copy_(sum(count * variance for count, _, variance in seen) / total)
    for quantizer in quantizers:
        if quantizer.observed:  # a layer may be in float in this subnet
            total = sum(count for count, _ in quantizer.observed)
            quantizer.range.copy_(sum(count * found for count, found in quantizer.observed) / total)
        quantizer.observed = None


@torch.no_grad()
def fold_offsets(subnet: MobileNetV3, arch: Arch, batches: Batches) -> float:
    """Make the zero points of a calibrated static subnet whole numbers, as integer kernels need.

    Rounding moves activations, so batch norm is calibrated again if anything moved. Returns the largest move, in steps
    of a grid.
    """
    specs = subnet.space.layers(arch)
    moves = [
        layer.act_quantizer.fold_offset(specs[name].act_bits, specs[name].signed_input)
        for name, layer in elastic_layers(subnet)
        if isinstance(layer.act_quantizer, BatchQuant) and specs[name].act_bits < FLOAT_BITS and specs[name].present
    ]
    moved = max(moves, default=0.0)
    if moved > 0:
        calibrate(subnet, arch, batches, ranges=False)
    return moved
