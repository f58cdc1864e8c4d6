"""Time and peak memory of a supernet step: ours in float and quantized; the official code and Brevitas beside it.

    python benchmarks/step.py [--tune-allocator] [--out results/NAME.csv]
    PEER_OFA=path/to/once-for-all PEER_OQA=path/to/OQA python benchmarks/step.py --presets imagenet
    PEER_QFA=path/to/ml-batchquant python benchmarks/step.py --method qfa --presets imagenet --width 1.2

A step is forward, cross entropy and backward of one subnet, or of three by the sandwich rule, without optimiser and
data. `floor` is what nobody can be faster than with these libraries: the bare convolutions of the same subnets one by
one, forwards and backwards, in both precisions. Every setting runs in processes
of its own, for its peak memory; the settings of one line take turns within one run; ratios are to our float network in
the first precision. Memory is what the step adds to the process with the network and the images in place. Quantized is
what `oncequant run` trains by default: 4-bit blocks, 8-bit first convolution, classifier and squeeze-and-excite; the
official OQA keeps those in float. With --method qfa it is the mixed-precision supernet with BatchQuant, the largest
subnet at `bits`, random ones mixed. Random subnets are the same for our settings, others for the official code.
"""

import json
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
import peers
import torch
import tyro
from rows import measured, save
from torch import nn
from torch.nn import functional as F

from oncequant.allocator import keep_freed_memory
from oncequant.arch import Arch, LayerSpec, pair
from oncequant.elastic import Pass, SharedWeights
from oncequant.family import ElasticConfig, NetworkConfig, with_bits
from oncequant.measure import initialise_quantizers
from oncequant.methods import qfa
from oncequant.models import PRESETS, build_network, space_of
from oncequant.sandwich import sandwich_archs, sandwich_step
from oncequant.space import SearchSpace


@dataclass(frozen=True)
class Options:
    """What to measure."""

    presets: tuple[str, ...] = ("cifar", "imagenet")
    """Of any family; resnet20 and its like have one architecture."""
    sizes: tuple[int, ...] = (64,)
    subnets: tuple[str, ...] = ("max", "random")
    """Of max, min, random, and sandwich: largest, smallest and one random."""
    batch: int = 32
    method: Literal["oqat", "qfa"] = "oqat"
    width: float = 1.0
    bits: int = 4
    precisions: tuple[str, ...] = ("float32", "bfloat16")
    """Of our steps."""
    steps: int = 9
    passes: int = 3
    """Processes per setting; the median of their medians counts."""
    checkpoint_activations: bool = False
    """Ours compute the activations of blocks again, as `oncequant train --checkpoint-activations`."""
    tune_allocator: bool = False
    """Our processes keep freed memory, as `oncequant train --tune-allocator`."""
    out: Path | None = None
    one: str | None = None
    """Internal: measure one setting (JSON) in this process."""


def archs_of(space: SearchSpace, subnet: str, rng: np.random.Generator) -> list[Arch]:
    """The subnets of a step."""
    one = {"max": space.largest, "min": space.smallest, "random": lambda: space.sample(rng)}
    return sandwich_archs(space, 1, rng, always_smallest=True) if subnet == "sandwich" else [one[subnet]()]


def ours(
    method: str, preset: str, width: float, bits: int, precision: str, images: torch.Tensor, checkpoint: bool
) -> tuple[Callable[[list[Arch], torch.Tensor], object], nn.Module, float]:
    """(step of some subnets with labels, network, MiB before any pass)."""
    config = configuration(preset, width, bits, images)
    if method == "qfa" and bits < 32:
        widths = tuple(b for b in (2, 3, 4) if b <= bits)
        config, space = qfa.mixed_precision(qfa.Config(bits=widths), config)
        net = build_network(config, space).to(memory_format=torch.channels_last)
    else:
        net = build_network(config).to(memory_format=torch.channels_last)
    before = _memory_mib()
    if bits < 32:
        initialise_quantizers(net, images)
    net.train()
    how = Pass(compute=getattr(torch, precision), recompute=checkpoint)

    def step(archs: list[Arch], labels: torch.Tensor) -> None:
        if len(archs) > 1:
            sandwich_step(net, images, labels, archs, how=replace(how, shared=SharedWeights()))
        else:
            F.cross_entropy(net(images, archs[0], how), labels).backward()

    return step, net, before


def bare_convolutions(
    space: SearchSpace, archs: list[Arch], images: int, dtype: torch.dtype
) -> list[Callable[[], None]]:
    """Forward and backward pass of each convolution of some subnets, channels last; the first needs no gradient of its
    input. Linear layers are 1x1 convolutions."""

    def one(spec: LayerSpec, is_first: bool) -> Callable[[], None]:
        shape = images, spec.in_channels, spec.in_size, spec.in_size
        x = torch.randn(shape).to(dtype, memory_format=torch.channels_last).requires_grad_(not is_first)
        kernel = spec.out_channels, spec.group_channels, spec.kernel_size, spec.kernel_size
        weight = torch.randn(kernel).to(dtype).requires_grad_()
        conv = dict(stride=spec.stride, padding=spec.kernel_size // 2, groups=spec.groups)
        grad = torch.ones_like(F.conv2d(x, weight, **conv))

        def run() -> None:
            F.conv2d(x, weight, **conv).backward(grad)
            x.grad = weight.grad = None

        return run

    specs = [spec for arch in archs for spec in space.layers(arch).values() if spec.present]
    return [one(spec, spec.role == "stem") for spec in specs]


def configuration(preset: str, width: float, bits: int, images: torch.Tensor) -> NetworkConfig:
    """A preset for images (N, C, S, S), quantized as by default: learned steps, 8-bit edges and squeeze-and-excite."""
    base, shape = PRESETS[preset], dict(image_channels=images.shape[1], resolutions=(images.shape[-1],), edge_bits=8)
    if not isinstance(base, ElasticConfig):  # DNAS's, whose blocks choose pairs of bit-widths
        return replace(base, precisions=(pair(bits, bits),), weight_quantizer="lsq", act_quantizer="lsq", **shape)
    squeeze = {"se_bits": 8} if hasattr(base, "se_bits") else {}
    return with_bits(replace(base, width=width, **shape, **squeeze), bits)


def measure(
    code: str,
    method: str,
    width: float,
    preset: str,
    subnet: str,
    bits: int,
    precision: str,
    size: int,
    batch: int,
    steps: int,
    tune: bool,
    checkpoint: bool,
) -> dict[str, float]:
    """Median step time in ms, CPU time on one thread, and peak memory in MiB of this process."""
    if tune and code in ("ours", "floor"):
        assert keep_freed_memory()
    torch.manual_seed(0)
    random.seed(0)
    images, labels = torch.randn(batch, 3, size, size), torch.randint(0, 10, (batch,))
    rng, before = np.random.default_rng(0), _memory_mib()
    if code == "floor":
        space = space_of(configuration(preset, width, 32, images))

        def prepare() -> Callable[[], object]:
            every = bare_convolutions(space, archs_of(space, subnet, rng), batch, getattr(torch, precision))
            return lambda: [convolution() for convolution in every]

    elif code == "ours":
        step, net, before = ours(method, preset, width, bits, precision, images, checkpoint)

        def prepare() -> Callable[[], object]:
            net.zero_grad(set_to_none=True)
            return partial(step, archs_of(net.space, subnet, rng), labels)

    else:
        if code == "Brevitas":
            net, set_subnet = peers.brevitas(configuration(preset, width, bits, images)), lambda largest: None
            forward = partial(net, images, net.space.largest())
        else:
            net, set_subnet = peers.supernet(code, bits, width, images)
            forward = partial(net, images)
        before = _memory_mib()

        def prepare() -> Callable[[], object]:
            set_subnet(subnet == "max")
            net.zero_grad(set_to_none=True)
            return lambda: F.cross_entropy(forward(), labels).backward()

    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times = []
    for _ in range(steps + 2):
        run = prepare()
        start = clock()
        run()
        times.append(1000 * (clock() - start))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"ms": statistics.median(times[2:]), "mib": peak - before, "process_mib": peak}


def _memory_mib() -> float:
    """Resident memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main(options: Options) -> None:
    """Measure all settings and print a table."""
    if options.one:
        print(json.dumps(measure(**json.loads(options.one))))
        return
    rows = []
    for preset, size, subnet in product(options.presets, options.sizes, options.subnets):
        settings = [("ours", bits, precision) for precision in options.precisions for bits in (32, options.bits)]
        settings += [("floor", 32, precision) for precision in options.precisions if options.method == "oqat"]
        others = peers.available(preset, subnet, options.method, options.width)
        settings += [(name, 32 if name == "OFA" else options.bits, "float32") for name in others]
        found = {setting: [] for setting in settings}
        for _ in range(options.passes):
            for code, bits, precision in settings:
                values = dict(code=code, preset=preset, subnet=subnet, bits=bits, precision=precision, size=size)
                values |= dict(
                    method=options.method,
                    width=options.width,
                    batch=options.batch,
                    steps=options.steps,
                    tune=options.tune_allocator,
                )
                values |= dict(checkpoint=options.checkpoint_activations)
                command = [sys.executable, __file__, "--one", json.dumps(values)]
                environment = {"GOMP_SPINCOUNT": "2000", **os.environ}  # as the command line does
                result = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
                output = result.stdout
                found[code, bits, precision].append(json.loads(output.splitlines()[-1]))
        medians = {
            setting: {key: statistics.median(r[key] for r in results) for key in results[0]}
            for setting, results in found.items()
        }
        base = medians["ours", 32, options.precisions[0]]
        floors = {precision: found["ms"] for (code, _, precision), found in medians.items() if code == "floor"}
        for (code, bits, precision), median in medians.items():
            rows.append(
                measured(
                    code=f"official {code}" if code in ("OFA", "OQA", "QFA") else code,
                    method=options.method,
                    width=options.width,
                    preset=preset,
                    subnet=subnet,
                    size=size,
                    batch=options.batch,
                    bits=bits,
                    precision=precision,
                    checkpoint_activations=options.checkpoint_activations and code == "ours",
                    tuned_allocator=options.tune_allocator and code in ("ours", "floor"),
                    ms=round(median["ms"], 1),
                    mib=round(median["mib"]),
                    process_mib=round(median["process_mib"]),
                    time_over_floor=round(median["ms"] / floors[precision], 3) if precision in floors else "",
                    time_over_our_float=round(median["ms"] / base["ms"], 3),
                    memory_over_our_float=round(median["mib"] / base["mib"], 3),
                    process_memory_over_our_float=round(median["process_mib"] / base["process_mib"], 3),
                )
            )
    save(rows, options.out)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
