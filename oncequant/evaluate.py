"""Measuring one architecture: extract it, calibrate it, count correct answers. The supernet is never modified."""

from collections.abc import Callable

import torch

from oncequant.arch import Arch
from oncequant.calibrate import Batches, calibrate
from oncequant.models import extract_subnet
from oncequant.network import Network


@torch.no_grad()
def accuracy(
    subnet: Network, arch: Arch, batches: Batches, stop: Callable[[int, int], bool] | None = None
) -> float | None:
    """Share of correct answers, in [0, 1], of a calibrated subnet.

    `stop(correct, seen)` is asked after every batch; if it says so, the rest is left out and the result is None.
    """
    subnet.eval()
    correct = total = 0
    for images, labels in batches:
        correct = correct + (subnet(images, arch).argmax(1) == labels).sum()
        total += len(labels)
        if stop and stop(int(correct), total):
            return None
    return float(correct) / total


def calibrated_subnet(supernet: Network, arch: Arch, calibration: Batches, fold: bool = True) -> Network:
    """The static subnet of `arch` with its own batch-norm statistics and activation ranges, in evaluation mode.

    As it is deployed: with `fold`, zero points that training left between two levels are rounded.
    """
    subnet = extract_subnet(supernet, arch)
    calibrate(subnet, arch, calibration, fold)
    return subnet


def measure(supernet: Network, arch: Arch, calibration: Batches, batches: Batches, fold: bool = True) -> float:
    """Top-1 in [0, 1] of one subnet on `batches`, without retraining."""
    found = accuracy(calibrated_subnet(supernet, arch, calibration, fold), arch, batches)
    assert found is not None  # nothing stops it
    return found
