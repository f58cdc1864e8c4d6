"""A cost table of this machine: the microseconds of every layer of a search space, in the format C on one thread.

Each layer's kernel is timed alone (`timing.py`). A network takes more than its layers: pixels become codes, codes are
looked up on another grid, maps are added, multiplied, averaged. That is 10 to 15 % more, in about the same proportion
in all networks of a space. So a few networks are timed whole, in the same rounds, and their time over that of their
layers is a factor for all layers:

    us(layer) = factor x us(kernel)

To time those operations too, and charge each to the layer beside it, ranked networks no better (docs/log.md).
"""

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch

from oncequant.arch import FLOAT_BITS, Arch
from oncequant.cost_table import Key, check_name, describe, keys_of, layer_rows, write_table
from oncequant.export.c import write_c
from oncequant.export.compiled import FLAGS, CompiledNetwork, load_compiled
from oncequant.export.graph import Graph
from oncequant.export.lower import lower
from oncequant.export.timing import ROUNDS, Call, Kernels, Visit, microseconds, network_visit
from oncequant.family import NetworkConfig
from oncequant.files import FileError
from oncequant.measure import calibrated_subnet, initialise_quantizers
from oncequant.models import build_network, space_of
from oncequant.native import BuildError, missing_compiler
from oncequant.network import Network, elastic_layers
from oncequant.run_folder import device_name
from oncequant.version import package_version

WHOLE = 9  # networks that are timed whole: of 5 the median was off by a tenth on a busy machine
IMAGES = 4  # random ones, of which grids are made; no time depends on them


@dataclass(frozen=True)
class Profiled:
    """What a profile has measured."""

    rows: int
    factor: float
    """Of the time of whole networks over that of the kernels of their layers."""
    spread: float
    """The most that one of these networks is away from it, as a share."""
    whole: int
    """How many."""


def profile(config: NetworkConfig, path: Path, rounds: int = ROUNDS) -> Profiled:
    """Write the table of all layers of the space of `config`, as `oncequant.cost_table` reads it, unit us.

    Killed at any time, the same call goes on. Raises ValueError before any work without a compiler, and for layers in
    float and others that integer kernels cannot run; FileError for a path that names no cost, or cannot be written.
    """
    check_name(path)
    if path.suffix != ".csv":
        raise FileError(f"{path}: a profile is CSV, so its name ends with .csv")
    if lacks := missing_compiler():
        raise ValueError(lacks)
    keys = [tuple(row.values()) for row in layer_rows(space_of(config))]
    _check_integer(keys)
    supernet = random_supernet(config)
    calls = list(dict.fromkeys(map(layer_call, keys)))
    rng = np.random.default_rng(0)
    whole = [supernet.space.sample(rng) for _ in range(WHOLE)]
    try:
        kernels = Kernels(calls)
        visits: list[Visit] = [partial(kernels.nanoseconds, call) for call in calls]
        visits += [network_visit(compiled(random_graph(supernet, arch))) for arch in whole]
    except BuildError as error:
        raise FileError(f"the kernels cannot be compiled: {error}") from error
    unfinished = path.with_name(f"{path.name}.unfinished")
    times = microseconds(visits, f"{kernels.path} {calls} {whole}", unfinished, rounds)
    us = dict(zip(calls, times))
    layers = [[layer_call(k) for spec in supernet.space.layers(a).values() for k in keys_of(spec)[0]] for a in whole]
    factors = [taken / sum(map(us.__getitem__, own)) for taken, own in zip(times[len(calls) :], layers)]
    factor = median(factors)
    device = device_name(torch.device("cpu")).rpartition(",")[0]
    about = f"{device}, one thread; cc {' '.join(FLAGS)}; oncequant {package_version()}, {datetime.now(UTC):%Y-%m-%d}"
    write_table(path, {key: factor * us[layer_call(key)] for key in keys}, "us", [about])
    unfinished.unlink(missing_ok=True)
    return Profiled(len(keys), factor, max(abs(one / factor - 1) for one in factors), len(whole))


# -- networks with random weights


def random_supernet(config: NetworkConfig) -> Network:
    """Random weights, and for every layer's input a grid of its own, as training leaves them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        supernet = build_network(config)
        initialise_quantizers(supernet, _images(supernet))
        for _, layer in elastic_layers(supernet):
            for parameter in layer.act_quantizer.parameters() if layer.act_quantizer else ():
                parameter.data.mul_(1 + 0.2 * torch.rand(()))
    return supernet


def random_graph(supernet: Network, arch: Arch) -> Graph:
    """The deployed form of an architecture; its 8-bit grids are calibrated on random images."""
    images, channels = _images(supernet), supernet.config.image_channels
    calibration = [(images, torch.zeros(len(images)))]
    subnet = calibrated_subnet(supernet, arch, calibration)
    classes = tuple(map(str, range(supernet.config.num_classes)))
    about = (0.5,) * channels, (0.25,) * channels, classes, images.shape[-1]
    return lower(subnet, arch, *about, calibration)


def _images(supernet: Network) -> torch.Tensor:
    size = max(supernet.config.resolutions)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(IMAGES, supernet.config.image_channels, size, size, generator=generator)


def compiled(graph: Graph) -> CompiledNetwork:
    """The network of a graph, for this machine. Raises CannotRun and BuildError."""
    with tempfile.TemporaryDirectory() as folder:
        write_c(graph, Path(folder))
        return load_compiled(folder, 1)


# -- calls


def layer_call(key: Key) -> Call:
    """The kernel call of a layer of a table."""
    role, c_in, c_out, kernel, stride, size, groups, bits, in_bits = key
    op = "linear" if role == "classifier" else "depthwise" if groups > 1 else "conv"
    return Call(op, bits, in_bits, size, c_in, kernel, stride, (size - 1) // stride + 1, c_out)


def _check_integer(keys: Iterable[Key]) -> None:
    """Raise ValueError for a layer that integer kernels do not run."""
    for key in keys:
        if FLOAT_BITS in key[-2:]:
            raise ValueError(f"layers in float have no kernel in C: {describe(key)}; use 8 bits or less for all layers")
        if key[-1] < 2:
            raise ValueError(f"inputs of one bit have no kernel in C: {describe(key)}; use --bits from 2")
