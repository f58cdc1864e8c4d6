"""What is estimated from images without gradients: first step sizes, a subnet's statistics, whole zero points."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from oncequant.arch import FLOAT_BITS, Arch
from oncequant.elastic import ElasticBatchNorm, elastic_layers
from oncequant.models import Network
from oncequant.quantizers.batchquant import BatchQuant
from oncequant.quantizers.functional import activate
from oncequant.quantizers.lsq import LSQ

RANGE_BATCHES = 8  # from which activation ranges are estimated
NORM_IMAGES = 250  # least images of a batch from which batch norm is estimated: fewer, larger batches are faster

Batches = Iterable[tuple[Tensor, Tensor]]  # normalised images (N, C, S, S), labels (N,)


@torch.no_grad()
def initialise_quantizers(supernet: Network, images: Tensor, tied: bool = False) -> None:
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
def calibrate(subnet: Network, arch: Arch, batches: Batches, fold: bool = True) -> None:
    """Estimate the activation ranges and then the batch-norm statistics of a static subnet; leaves it in evaluation.

    Ranges are means over `RANGE_BATCHES` batches, as large as given, because the range of a batch grows with its size;
    every layer uses those of the batch meanwhile. Then, with `fold`, zero points are rounded to whole numbers, as
    integer kernels need. Batch norm is estimated last, with these ranges: means over batches (weighted by images, at
    least `NORM_IMAGES` each where there are so many) of mean and biased variance.
    """
    batches, specs = list(batches), subnet.space.layers(arch)
    quantizers = {
        layer.act_quantizer: specs[name]
        for name, layer in elastic_layers(subnet)
        if isinstance(layer.act_quantizer, BatchQuant) and specs[name].present and specs[name].act_bits < FLOAT_BITS
    }
    norms = [module for module in subnet.modules() if isinstance(module, ElasticBatchNorm)]
    subnet.eval()  # without dropout
    if quantizers:
        for quantizer in quantizers:
            quantizer.train().observed = []
        for norm in norms:
            norm.train()
        for images, _ in batches[:RANGE_BATCHES]:
            subnet(images, arch)
        for quantizer, spec in quantizers.items():
            total = sum(count for count, _ in quantizer.observed)
            quantizer.range.copy_(sum(count * found for count, found in quantizer.observed) / total)
            quantizer.eval().observed = None
            if fold:
                quantizer.fold_offset(spec.act_bits, spec.signed_input)
    _calibrate_norms(subnet, arch, norms, _merged(batches, NORM_IMAGES))


def _calibrate_norms(subnet: Network, arch: Arch, norms: list[ElasticBatchNorm], batches: Batches) -> None:
    seen: dict[ElasticBatchNorm, list] = {norm: [] for norm in norms}

    def record(norm: ElasticBatchNorm, inputs: tuple[Tensor], output: Tensor) -> None:
        values = output.numel() // output.shape[1]  # of a channel; batch norm stores the unbiased variance
        biased = norm.running_var * ((values - 1) / values)
        seen[norm].append((len(output), norm.running_mean.clone(), biased))

    hooks = [norm.register_forward_hook(record) for norm in norms]
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
    for norm, found in seen.items():
        total = sum(count for count, _, _ in found)
        norm.running_mean.copy_(sum(count * mean for count, mean, _ in found) / total)
        norm.running_var.copy_(sum(count * variance for count, _, variance in found) / total)


def _merged(batches: Sequence[tuple[Tensor, Tensor]], images: int) -> Iterator[tuple[Tensor, None]]:
    """Neighbouring batches together until they have so many images; a small rest goes with the last."""
    parts: list[list[Tensor]] = [[]]
    for batch, _ in batches:
        if sum(map(len, parts[-1])) >= images:
            parts.append([])
        parts[-1].append(batch)
    if len(parts) > 1 and sum(map(len, parts[-1])) < images // 2:
        rest = parts.pop()
        parts[-1] += rest
    for part in parts:
        yield (torch.cat(part) if len(part) > 1 else part[0]), None
