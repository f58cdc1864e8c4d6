"""Elastic layers: slice by `LayerSpec`, quantize, compute.

`ElasticConv` is every layer with weights in this package; a linear layer is a 1x1 convolution on a 1x1 map. It holds
the weights of the largest layer; the LayerSpec passed to `forward` says which part is used, the `Pass` how. Nothing of
either is kept inside a module.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oncequant.arch import FLOAT_BITS, LayerSpec
from oncequant.conv import conv2d, quantized_conv2d
from oncequant.distributed import AllSum, world_size
from oncequant.join import Normalized, Reader, batch_norm_statistics, can_join
from oncequant.quantizers import INPUT_QUANTIZERS, WEIGHT_QUANTIZERS
from oncequant.quantizers.functional import activate
from oncequant.quantizers.quantizer import Ask, Quantizer


@dataclass(frozen=True)
class Quantizers:
    """What the quantizers of one layer are."""

    weight_bits: tuple[int, ...]
    act_bits: tuple[int, ...]
    per_bits: bool = False
    """Parameters of their own for each bit-width and kernel size, else one for all."""
    activations: str = "lsq"
    """One of INPUT_QUANTIZERS."""
    weights: str = "lsq"
    """One of WEIGHT_QUANTIZERS."""

    def slots(self, bits: tuple[int, ...], kernel_sizes: tuple[int, ...]) -> dict[tuple[int, int], int] | None:
        """Slot by (bit-width, kernel size), None if one serves all."""
        pairs = [(b, k) for b in sorted(bits) if b < FLOAT_BITS for k in sorted(kernel_sizes)]
        return {pair: slot for slot, pair in enumerate(pairs)} if self.per_bits else None


class Observer:
    """Looks on at a forward pass; each method may be overridden. Nothing it gets may be changed."""

    def inputs(self, layer: "ElasticConv", x: Tensor, spec: LayerSpec, activation: str | None) -> None:
        """Called before a layer computes, with the arguments of its `forward`."""

    def range(self, quantizer: Quantizer, images: int, found: Tensor) -> None:
        """The range (2,) that a quantizer has taken from a batch of so many images."""

    def statistics(self, norm: "ElasticBatchNorm", images: int, mean: Tensor, variance: Tensor) -> None:
        """Mean and biased variance (C,) by which a batch norm normalises a batch of so many images."""


@dataclass(frozen=True)
class Pass:
    """How one forward pass computes. The default: a network alone, in the type of its images; in training mode with
    the statistics of the batch, in evaluation with stored ones."""

    shared: "SharedWeights | None" = None
    """Weights that several subnets of a step use."""
    compute: torch.dtype | None = None
    """Type of what passes between the layers; by default that of the images."""
    mixture: Mapping[str, Tensor] | None = None
    """By choice, the share of each of its values, (K,): what the choice decides is mixed (DNAS)."""
    recompute: bool = False
    """Activation checkpointing: blocks keep only their inputs for the backward pass of a training step."""
    sync_norms: bool = False
    """Batch norm in training takes its statistics from the batch of all processes, which have equal parts."""
    sync_ranges: bool = False
    """Ranges in training are those of the batch of all processes."""
    batch_norms: bool = False
    """Batch norm takes its statistics from the batch in evaluation mode, too."""
    batch_ranges: bool = False
    """Ranges are taken from the batch in evaluation mode, too."""
    observer: Observer | None = None


ALONE = Pass()


class Quantized(NamedTuple):
    """The input of a layer, activated and quantized as it asks for (`ElasticConv.reads`)."""

    x: Tensor
    dtype: torch.dtype
    """Of the layer's result."""

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W)"""
        return self.x.shape


class ElasticConv(nn.Module):
    """Convolution with elastic channels and kernel, quantized weights and input, and batch norm.

    Args:
        largest: the layer at its largest; `role`, `stride`, `bias`, ... are fixed, channels and kernel are maxima.
        kernel_sizes: ascending kernel sizes; a smaller kernel is the centre of the next larger one times a learned
            matrix shared by all channels, starting at the identity (OFA, 1908.09791).
        quantizers: what its quantizers are; None if it has none.
    """

    def __init__(self, largest: LayerSpec, kernel_sizes: tuple[int, ...], quantizers: Quantizers | None):
        super().__init__()
        kernel = max(kernel_sizes)
        self.weight = nn.Parameter(torch.empty(largest.out_channels, largest.group_channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(largest.out_channels)) if largest.bias else None
        self.kernel_transforms = nn.ParameterDict({str(k): nn.Parameter(torch.eye(k * k)) for k in kernel_sizes[:-1]})
        self.norm = ElasticBatchNorm(largest.out_channels, largest.norm_eps) if largest.batch_norm else None
        self.weight_quantizer: Quantizer | None = None
        self.act_quantizer: Quantizer | None = None
        self.weight_slots = self.act_slots = None
        if quantizers is not None:
            self.weight_slots = quantizers.slots(quantizers.weight_bits, kernel_sizes)
            self.act_slots = quantizers.slots(quantizers.act_bits, kernel_sizes)
            channels = largest.out_channels
            self.weight_quantizer = WEIGHT_QUANTIZERS[quantizers.weights](_count(self.weight_slots), channels)
            self.act_quantizer = INPUT_QUANTIZERS[quantizers.activations](_count(self.act_slots), channels)
        if largest.role == "classifier":
            nn.init.kaiming_uniform_(self.weight, a=5**0.5)  # U(+-1/sqrt(fan_in)), as the official code
            if self.bias is None:
                raise ValueError("a classifier needs bias=True in its family's description")
            nn.init.uniform_(self.bias, -(largest.in_channels**-0.5), largest.in_channels**-0.5)
        else:
            nn.init.normal_(self.weight, std=(2 / (kernel * kernel * largest.out_channels)) ** 0.5)  # "he_fout"

    def forward(  # (N, C_in, H, W) -> (N, C_out, H', W')
        self,
        x: Tensor | Quantized,
        spec: LayerSpec,
        activation: str | None,
        how: Pass = ALONE,
        defer_norm: bool = False,
    ) -> Tensor:
        """The layer that `spec` describes, applied to activation(x); activation is relu, hardswish or None.

        With `defer_norm` its batch norm is left to what reads the result. With x in bfloat16 the convolution and the
        result are, too, except that depthwise convolutions of 5x5 and more on the CPU, which would be slower, are
        computed in float32.
        """
        if how.observer is not None and not isinstance(x, Quantized):
            how.observer.inputs(self, x, spec, activation)
        weight = self.quantized_weight(spec) if how.shared is None else how.shared.weight(self, spec)
        y = self._convolved(x, spec, weight, activation, how)
        return y if self.norm is None or defer_norm else self.norm(y, how)

    def mixed(
        self, x: Tensor, specs: Sequence[LayerSpec], mask: Tensor, activation: str | None, how: Pass = ALONE
    ) -> Tensor:
        """sum_k mask[k] conv_k(activation(x)), then batch norm, where conv_k has the bit-widths of specs[k].

        A convolution is linear in its weights, so layers with equal inputs are one convolution with the sum of their
        weights: one for each bit-width of the input.
        """
        if how.observer is not None:
            how.observer.inputs(self, x, specs[-1], activation)
        branches: dict[int, tuple[LayerSpec, Tensor]] = {}
        for share, spec in zip(mask.unbind(), specs):
            weight = share * self.quantized_weight(spec)
            before = branches.get(spec.act_bits)
            branches[spec.act_bits] = spec, weight if before is None else before[1] + weight
        parts = [
            self._convolved(x, spec, weight, activation, how, has_bias=i == 0)  # it is added once
            for i, (spec, weight) in enumerate(branches.values())
        ]
        y = sum(parts[1:], parts[0])
        return y if self.norm is None else self.norm(y, how)

    def _convolved(
        self,
        x: Tensor | Quantized,
        spec: LayerSpec,
        weight: Tensor,
        activation: str | None,
        how: Pass,
        has_bias: bool = True,
    ) -> Tensor:
        """The convolution of the quantized activation(x) with `weight`, and the bias."""
        bias = None if self.bias is None or not has_bias else _first(self.bias, spec.out_channels)
        dtype = computed_in(x.x if isinstance(x, Quantized) else x, spec, x.dtype)
        weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        if isinstance(x, Quantized):
            return conv2d(x.x, weight, bias, spec.conv).to(x.dtype)
        quantizer = self.act_quantizer
        if spec.act_bits == FLOAT_BITS or quantizer is None:
            return conv2d(activate(x, activation).to(dtype), weight, bias, spec.conv).to(x.dtype)
        x, ask = quantizer.prepare(x, self.ask(spec, activation, how))
        return quantized_conv2d(x, quantizer.grid(x, ask), weight, bias, spec.conv).to(x.dtype)

    def reads(self, value: Normalized, spec: LayerSpec, activation: str | None, how: Pass, alone: bool) -> Reader:
        """What it takes of activation(batch_norm(value)), or, if that is not `alone`, of a sum with it."""
        quantizer = self.act_quantizer
        if spec.act_bits == FLOAT_BITS or quantizer is None or quantizer.needs_result:
            return Reader()
        if quantizer.needs_extremes and not alone:
            return Reader()  # it would need those of the sum
        x, ask = quantizer.prepare(value.z, self.ask(spec, activation, how, value.statistics))
        return Reader(quantizer.grid(x, ask), computed_in(value.z, spec, value.z.dtype))

    def ask(
        self, spec: LayerSpec, activation: str | None = None, how: Pass = ALONE, statistics: Tensor | None = None
    ) -> Ask:
        """What the quantizer of this layer's input is asked for, in the forward pass `how` of the layer `spec`."""
        return Ask(
            spec.act_bits,
            spec.signed_input,
            slot_of(self.act_slots, spec.act_bits, spec.kernel_size),
            activation,
            statistics,
            self.training or how.batch_ranges,
            world_size(),
            how.sync_ranges,
            None if how.observer is None else how.observer.range,
        )

    def ask_of_weight(self, spec: LayerSpec) -> Ask:
        """What the quantizer of this layer's weights is asked for."""
        return Ask(spec.weight_bits, True, slot_of(self.weight_slots, spec.weight_bits, spec.kernel_size))

    def norm_to_defer(self, x: Tensor, how: Pass) -> "ElasticBatchNorm | None":
        """The batch norm, if it may be left to what reads this layer's result, of an input x.

        In training steps only, on the CPU, where that saves time and memory; the result differs by rounding.
        """
        usual = self.training and torch.is_grad_enabled() and not (how.sync_norms or how.observer)
        if not usual or self.norm is None:
            return None
        return self.norm if can_join(x, None, self.norm.weight, self.norm.bias) else None

    def quantized_weight(self, spec: LayerSpec, all_channels: bool = False) -> Tensor:
        """`sliced_weight`, fake-quantized."""
        weight = self.sliced_weight(spec, all_channels)
        if spec.weight_bits == FLOAT_BITS or self.weight_quantizer is None:
            return weight
        return self.weight_quantizer(weight, self.ask_of_weight(spec))

    def sliced_weight(self, spec: LayerSpec, all_channels: bool = False) -> Tensor:  # (C_out, C_in / groups, K, K)
        """The first output and input channels, or all of them; kernel reduced step by step to the spec's size."""
        weight = self.weight if all_channels else _part(self.weight, spec)
        for kernel in sorted((int(k) for k in self.kernel_transforms), reverse=True):
            if kernel >= spec.kernel_size:
                centre = _centre(weight, kernel).flatten(2)  # (C_out, C_in / groups, kernel^2)
                weight = F.linear(centre, self.kernel_transforms[str(kernel)]).unflatten(2, (kernel, kernel))
        return weight

    @torch.no_grad()
    def copy_sliced(self, source: "ElasticConv", spec: LayerSpec) -> None:
        """Become the static layer `spec` of `source` (weights, step sizes, statistics)."""
        self.weight.copy_(source.sliced_weight(spec))
        if self.bias is not None and source.bias is not None:
            self.bias.copy_(source.bias[: spec.out_channels])
        if self.norm is not None and source.norm is not None:
            for mine, theirs in zip(self.norm.tensors(), source.norm.tensors()):
                mine.copy_(theirs[: spec.out_channels])
        if self.weight_quantizer and source.weight_quantizer and spec.weight_bits < FLOAT_BITS:
            slot = slot_of(source.weight_slots, spec.weight_bits, spec.kernel_size)
            self.weight_quantizer.copy_slot(source.weight_quantizer, slot, spec.out_channels)
        if self.act_quantizer and source.act_quantizer and spec.act_bits < FLOAT_BITS:
            slot = slot_of(source.act_slots, spec.act_bits, spec.kernel_size)
            self.act_quantizer.copy_slot(source.act_quantizer, slot, spec.out_channels)


def computed_in(x: Tensor, spec: LayerSpec, dtype: torch.dtype) -> torch.dtype:
    """The type of a convolution of x, where `dtype` passes between the layers."""
    slow_in_half = x.is_cpu and spec.groups > 1 and spec.kernel_size >= 5
    return torch.float32 if dtype == torch.bfloat16 and slow_in_half else dtype


class ElasticBatchNorm(nn.Module):
    """Batch norm over the first C channels of its parameters.

    Training uses the statistics of the batch and stores nothing; evaluation uses the stored ones, which belong to one
    subnet, set by `oncequant.measure.calibrate`, unless the `Pass` says otherwise.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor, how: Pass = ALONE) -> Tensor:  # (N, C, H, W)
        """Normalise with batch statistics in training, with the stored ones in evaluation."""
        c, of_batch = x.shape[1], self.training or how.batch_norms
        if how.sync_norms and self.training and world_size() > 1:
            return _batch_norm_of_all(x, self.weight[:c], self.bias[:c], self.eps)
        mean, variance = self.running_mean[:c], self.running_var[:c]
        if of_batch:  # they become those of the batch
            mean, variance = torch.zeros_like(mean), torch.ones_like(variance)
        weight, bias = _first(self.weight, c), _first(self.bias, c)
        y = F.batch_norm(x, mean, variance, weight, bias, of_batch, 1.0, self.eps)
        if of_batch:
            spare_constant_channels(x, (variance + self.eps).rsqrt(), self.eps)
        if of_batch and how.observer is not None:
            values = y.numel() // c  # of a channel; batch norm gives the unbiased variance
            how.observer.statistics(self, len(y), mean, variance * ((values - 1) / values))
        return y

    def of_batch(self, z: Tensor, extremes: bool = False) -> Normalized:
        """z (N, C, H, W), its weight and bias, and the statistics of the batch, with extremes if they are wanted."""
        weight, bias = _first(self.weight, z.shape[1]), _first(self.bias, z.shape[1])
        statistics = batch_norm_statistics(z, weight, bias, self.eps, extremes)
        spare_constant_channels(z, statistics[1], self.eps)
        return Normalized(z, weight, bias, statistics)

    def tensors(self) -> tuple[Tensor, ...]:
        """weight, bias, running_mean, running_var."""
        return self.weight, self.bias, self.running_mean, self.running_var


def _batch_norm_of_all(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Training batch norm of (N, C, H, W) with the statistics of all processes, which have equal N."""
    dtype, x = x.dtype, x.float()
    mean = AllSum.apply(x.mean((0, 2, 3))) / world_size()
    centred = x - mean[:, None, None]
    variance = AllSum.apply(centred.square().mean((0, 2, 3))) / world_size()
    inverse_std = (variance + eps).rsqrt()
    spare_constant_channels(x, inverse_std.detach(), eps)
    return (centred * (weight * inverse_std)[:, None, None] + bias[:, None, None]).to(dtype)


def spare_constant_channels(x: Tensor, inverse_std: Tensor, eps: float) -> None:
    """Let the gradient by x (N, C, H, W) pass as if its standard deviation were 1 where its variance is below `eps`.

    `inverse_std` (C,) is what a training batch norm of x multiplies by. At few bits all weights or inputs of a channel
    may be on level zero. To normalise what is constant would multiply its gradient by 1 / sqrt(eps) = 316, and once
    more in each layer behind; the norm of the whole gradient would be that of this channel (docs/log.md).
    """
    constant = inverse_std > (2 * eps) ** -0.5
    if x.requires_grad and (not x.is_cpu or bool(constant.any())):  # not to wait for a GPU
        factor = torch.where(constant, eps**0.5, 1.0).to(x.dtype)[:, None, None]
        x.register_hook(lambda grad: grad * factor)


class SharedWeights:
    """The weights of one training step, transformed and quantized once for all its subnets.

    Every subnet gets slices of one tensor per layer, kernel size and bit-width, where its gradient accumulates;
    `backward` passes the sums on, once, to the quantizers and parameters.
    """

    def __init__(self):
        self._made: dict[tuple[ElasticConv, int, int], tuple[Tensor, Tensor]] = {}  # (with history, leaf)

    def weight(self, layer: ElasticConv, spec: LayerSpec) -> Tensor:  # (C_out, C_in / groups, K, K)
        """The layer's quantized weight, as `ElasticConv.quantized_weight(spec)`."""
        key = (layer, spec.kernel_size, spec.weight_bits)
        if key not in self._made:
            whole = layer.quantized_weight(spec, all_channels=True)
            self._made[key] = whole, whole.detach().requires_grad_(whole.requires_grad)
        return _part(self._made[key][1], spec)

    def backward(self) -> None:
        """Add the gradients of all subnets so far to those of the parameters."""
        used = [(whole, leaf.grad) for whole, leaf in self._made.values() if leaf.grad is not None]
        torch.autograd.backward([whole for whole, _ in used], [grad for _, grad in used])
        self._made.clear()


def slot_of(slots: Mapping[tuple[int, int], int] | None, bits: int, kernel_size: int) -> int | None:
    """Which parameters of a quantizer serve this bit-width and kernel size."""
    return None if slots is None else slots[bits, kernel_size]


def _count(slots: Mapping | None) -> int | None:
    return None if slots is None else len(slots)


def _first(tensor: Tensor, n: int, dim: int = 0) -> Tensor:
    """The first n along `dim`; the tensor itself where these are all, since the gradient of a slice is a copy."""
    return tensor if tensor.shape[dim] == n else tensor.narrow(dim, 0, n)


def _part(weight: Tensor, spec: LayerSpec) -> Tensor:
    """The first output and input channels that `spec` has."""
    return _first(_first(weight, spec.out_channels), spec.group_channels, 1)


def _centre(weight: Tensor, kernel: int) -> Tensor:
    """The central kernel x kernel window of (..., K, K)."""
    start = (weight.shape[-1] - kernel) // 2
    return weight[..., start : start + kernel, start : start + kernel]
