"""Measure subnets: extract, calibrate batch norm, count correct answers. The supernet is never modified."""

from collections.abc import Iterable

import torch
from torch import Tensor

from oncequant.arch import Arch
from oncequant.elastic import ElasticBatchNorm
from oncequant.models.mobilenet_v3 import MobileNetV3, extract_subnet

Batches = Iterable[tuple[Tensor, Tensor]]  # normalised images (N, C, S, S), labels (N,)


@torch.no_grad()
def calibrate(subnet: MobileNetV3, arch: Arch, batches: Batches) -> None:
    """Re-estimate the batch-norm statistics of a static subnet; leaves it in evaluation mode.

    Every forward pass normalises with the statistics of its batch; the means over batches (weighted by images) of mean
    and biased variance are stored, as in the official OFA and OQA evaluation.
    """
    norms = {module: [] for module in subnet.modules() if isinstance(module, ElasticBatchNorm)}

    def record(norm: ElasticBatchNorm, inputs: tuple[Tensor], output: Tensor) -> None:
        values = output.numel() // output.shape[1]  # of a channel; batch norm stores the unbiased variance
        biased = norm.running_var * ((values - 1) / values)
        norms[norm].append((len(output), norm.running_mean.clone(), biased))

    hooks = [norm.register_forward_hook(record) for norm in norms]
    subnet.train()
    try:
        for norm in norms:
            norm.store = True
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


@torch.no_grad()
def accuracy(subnet: MobileNetV3, arch: Arch, batches: Batches) -> float:
    """Share of correct answers, in [0, 1], of a calibrated subnet."""
    subnet.eval()
    correct = total = 0
    for images, labels in batches:
        correct = correct + (subnet(images, arch).argmax(1) == labels).sum()
        total += len(labels)
    return float(correct) / total


def calibrated_subnet(supernet: MobileNetV3, arch: Arch, calibration: Batches) -> MobileNetV3:
    """The static subnet of `arch` with its own batch-norm statistics, in evaluation mode."""
    subnet = extract_subnet(supernet, arch)
    calibrate(subnet, arch, calibration)
    return subnet


def measure(supernet: MobileNetV3, arch: Arch, calibration: Batches, batches: Batches) -> float:
    """Top-1 in [0, 1] of one subnet on `batches`, without retraining."""
    return accuracy(calibrated_subnet(supernet, arch, calibration), arch, batches)
