"""What is measured on images without gradients: first step sizes, a subnet's statistics and zero points, its answers.

The supernet is never modified: a subnet is extracted, calibrated, and asked.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from oncequant.answers import Accuracy, Answers, answered, answers_of
from oncequant.arch import FLOAT_BITS, Arch, LayerSpec
from oncequant.data import Data, Split, eval_batches
from oncequant.elastic import ElasticBatchNorm, ElasticConv, Observer, Pass
from oncequant.models import extract_subnet
from oncequant.network import Network, elastic_layers
from oncequant.quantizers.functional import activate
from oncequant.quantizers.quantizer import Quantizer

RANGE_BATCHES = 8  # from which activation ranges are estimated
LOOK_IMAGES = 2000  # validation images that training looks at on its way
LOOK_STATISTICS = 500  # training images for the statistics of a subnet then
NORM_IMAGES = 250  # least images of a batch from which batch norm is estimated: fewer, larger batches are faster

Batches = Iterable[tuple[Tensor, Tensor]]  # normalised images (N, C, S, S), labels (N,)


@torch.no_grad()
def initialise_quantizers(supernet: Network, images: Tensor) -> None:
    """First parameters of all quantizers, such as LSQ's s = 2 mean|v| / sqrt(q_max), from what the largest subnet
    computes on `images` (N, C, S, S)."""
    training = supernet.training
    supernet.train()
    try:
        supernet(images, supernet.space.largest(), Pass(observer=_Initialiser()))
    finally:
        supernet.train(training)


class _Initialiser(Observer):
    """Initialises every slot of a layer's quantizers when its inputs come by."""

    def inputs(self, layer: ElasticConv, x: Tensor, spec: LayerSpec, activation: str | None) -> None:
        """The slots of inputs get these; those of weights the weights at their kernel size."""
        if layer.weight_quantizer is None or layer.act_quantizer is None:
            return
        inputs = activate(x, activation)
        for bits, kernel in _slots(layer.act_slots, spec.act_bits, spec.kernel_size):
            layer.act_quantizer.initialise(inputs, layer.ask(replace(spec, act_bits=bits, kernel_size=kernel)))
        for bits, kernel in _slots(layer.weight_slots, spec.weight_bits, spec.kernel_size):
            one = replace(spec, weight_bits=bits, kernel_size=kernel)
            layer.weight_quantizer.initialise(layer.sliced_weight(one, all_channels=True), layer.ask_of_weight(one))


def _slots(slots: Mapping[tuple[int, int], int] | None, bits: int, kernel: int) -> list[tuple[int, int]]:
    """(bits, kernel size) of every slot of a quantizer; where one serves all, what is used, if it is quantized."""
    if slots is not None:
        return list(slots)
    return [(bits, kernel)] if bits < FLOAT_BITS else []


@torch.no_grad()
def calibrate(subnet: Network, arch: Arch, batches: Batches, fold: bool = True) -> None:
    """Estimate the activation ranges and then the batch-norm statistics of a static subnet; leaves it in evaluation.

    Ranges are means over `RANGE_BATCHES` batches, as large as given, because the range of a batch grows with its size;
    every layer uses those of the batch meanwhile. Then, with `fold`, zero points are rounded to whole numbers, as
    integer kernels need. Batch norm is estimated last, with these ranges: means over batches (weighted by images, at
    least `NORM_IMAGES` each where there are so many) of mean and biased variance. Raises ValueError without batches.
    """
    batches, specs = list(batches), subnet.space.layers(arch)
    if not batches:
        raise ValueError("there are no calibration images")
    asks = {
        layer.act_quantizer: layer.ask(specs[name])
        for name, layer in elastic_layers(subnet)
        if layer.act_quantizer is not None and layer.act_quantizer.is_settled
        if specs[name].present and specs[name].act_bits < FLOAT_BITS
    }
    subnet.eval()  # without dropout
    if asks:
        seen = _Recorder()
        for images, _ in batches[:RANGE_BATCHES]:
            subnet(images, arch, Pass(batch_norms=True, batch_ranges=True, observer=seen))
        for quantizer, ask in asks.items():
            quantizer.settle(seen.ranges[quantizer], ask, fold)
    seen = _Recorder()
    for images, _ in _merged(batches, NORM_IMAGES):
        subnet(images, arch, Pass(batch_norms=True, observer=seen))
    for norm, found in seen.norms.items():
        total = sum(count for count, _, _ in found)
        norm.running_mean.copy_(_weighted([(count, mean) for count, mean, _ in found], total))
        norm.running_var.copy_(_weighted([(count, variance) for count, _, variance in found], total))


def _weighted(values: Sequence[tuple[int, Tensor]], total: int) -> Tensor:
    """The mean of tensors by their numbers of images."""
    parts = [count * value for count, value in values]
    return sum(parts[1:], parts[0]) / total


class _Recorder(Observer):
    """Keeps the ranges and batch-norm statistics of every batch."""

    def __init__(self) -> None:
        self.ranges: dict[Quantizer, list[tuple[int, Tensor]]] = defaultdict(list)
        self.norms: dict[ElasticBatchNorm, list[tuple[int, Tensor, Tensor]]] = defaultdict(list)

    def range(self, quantizer: Quantizer, images: int, found: Tensor) -> None:
        """One more batch."""
        self.ranges[quantizer].append((images, found))

    def statistics(self, norm: ElasticBatchNorm, images: int, mean: Tensor, variance: Tensor) -> None:
        """One more batch."""
        self.norms[norm].append((images, mean, variance))


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


@torch.no_grad()
def ask(
    subnet: Network, arch: Arch, batches: Batches, stop: Callable[[int, int], bool] | None = None
) -> Answers | None:
    """What a calibrated subnet answers to images.

    `stop(correct, seen)` is asked after every batch; if it says so, the rest is left out and the result is None.
    Raises ValueError without images.
    """
    subnet.eval()
    batches_seen, correct, seen = [], 0, 0
    for images, labels in batches:
        batches_seen.append(answered(subnet(images, arch), labels))
        if stop:
            correct, seen = correct + int((batches_seen[-1][1] == labels).sum()), seen + len(labels)
            if stop(correct, seen):
                return None
    return answers_of(batches_seen, subnet.config.num_classes)


def calibrated_subnet(supernet: Network, arch: Arch, calibration: Batches, fold: bool = True) -> Network:
    """The static subnet of `arch` with its own batch-norm statistics and activation ranges, in evaluation mode.

    As it is deployed: with `fold`, zero points that training left between two levels are rounded.
    """
    subnet = extract_subnet(supernet, arch)
    calibrate(subnet, arch, calibration, fold)
    return subnet


def measure(supernet: Network, arch: Arch, calibration: Batches, batches: Batches, fold: bool = True) -> Answers:
    """What one subnet answers to the images of `batches`, without retraining. Raises ValueError without images."""
    found = ask(calibrated_subnet(supernet, arch, calibration, fold), arch, batches)
    assert found is not None  # nothing stops it
    return found


@dataclass(frozen=True)
class Judge:
    """What a subnet is worth, without retraining, as it is deployed, on the images of a split."""

    data: Data
    calibration: Batches
    """Training images from which a subnet's ranges and statistics are estimated; they can be read many times."""

    def validation(self, net: Network, arch: Arch, fold: bool = True) -> Accuracy:
        """By which searches choose. `fold`: see `calibrate`."""
        return measure(net, arch, self.calibration, eval_batches(self.data, self.data.validation), fold).accuracy

    def on(self, net: Network, arch: Arch, images: Split) -> Answers:
        """On the images of any split."""
        return measure(net, arch, self.calibration, eval_batches(self.data, images))

    def test(self, net: Network, arch: Arch) -> Answers:
        """Once for each network that is handed out."""
        return self.on(net, arch, self.data.test)

    def while_training(self) -> "Judge":
        """For looks on the way, which choose nothing: a random part of the validation images and of the others, the
        same at each look. All of them took a tenth of the time of training 42,500 images of 32 px for an hour."""
        batches, images = [], 0
        for batch in self.calibration:
            if images >= LOOK_STATISTICS:
                break
            batches.append(batch)
            images += len(batch[1])
        validation = self.data.validation
        if len(validation) > LOOK_IMAGES:
            drawn = torch.randperm(len(validation), generator=torch.Generator().manual_seed(0))
            validation = validation.subset(drawn[:LOOK_IMAGES].sort().values)
        return Judge(replace(self.data, validation=validation), batches)
