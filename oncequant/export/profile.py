"""A cost table of this machine: the microseconds of every layer of a search space, in the format C on one thread.

Each layer's kernel is timed alone (`timing.py`). A network takes more than its layers: pixels become codes, codes are
looked up on another grid, maps are added, multiplied, averaged, and the call itself takes time. So a few networks are
timed whole, in the same rounds, and least squares of relative errors say what to add:

    us(layer) = factor x us(kernel) + per_element x elements of its output + per_network, for the classifier

To time those operations too, and charge each to the layer beside it, ranked networks no better than the factor alone,
where layers are nearly all of the time; where AMX makes them fast, the factor alone ranks worse (docs/log.md).
"""

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import lsq_linear

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

WHOLE = 15  # networks that are timed whole: with 9 predictions were a tenth less exact (docs/log.md)
LEAST = 0.5, 0.0, 0.0  # factor, per_element and per_network: few networks on a busy machine may say anything
IMAGES = 4  # random ones, of which grids are made; no time depends on them


@dataclass(frozen=True)
class Profiled:
    """What a profile has measured."""

    rows: int
    factor: float
    """Of the kernels' times."""
    per_element: float
    """us for each element of a layer's output."""
    per_network: float
    """us, in the classifier's row."""
    spread: float
    """The most that a network that was timed whole is away from the sum over its rows, as a share."""
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
    parts = {key: np.array(_parts(key, us[layer_call(key)])) for key in keys}
    layers = [[key for spec in supernet.space.layers(arch).values() for key in keys_of(spec)[0]] for arch in whole]
    sums = np.array([sum(parts[key] for key in own) for own in layers]) / np.array(times[len(calls) :])[:, None]
    weights = lsq_linear(sums, np.ones(len(whole)), bounds=(LEAST, np.inf)).x
    factor, per_element, per_network = map(float, weights)
    device = device_name(torch.device("cpu")).rpartition(",")[0]
    about = f"{device}, one thread; cc {' '.join(FLAGS)}; oncequant {package_version()}, {datetime.now(UTC):%Y-%m-%d}"
    write_table(path, {key: float(parts[key] @ weights) for key in keys}, "us", [about])
    unfinished.unlink(missing_ok=True)
    spread = float(np.abs(sums @ weights - 1).max())
    return Profiled(len(keys), factor, per_element, per_network, spread, len(whole))


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


def _parts(key: Key, us: float) -> tuple[float, int, bool]:
    """What the time of a layer is put together from."""
    role, _, c_out, _, stride, size, *_ = key
    return us, ((size - 1) // stride + 1) ** 2 * c_out, role == "classifier"


def _check_integer(keys: Iterable[Key]) -> None:
    """Raise ValueError for a layer that integer kernels do not run."""
    for key in keys:
        if FLOAT_BITS in key[-2:]:
            raise ValueError(f"layers in float have no kernel in C: {describe(key)}; use 8 bits or less for all layers")
        if key[-1] < 2:
            raise ValueError(f"inputs of one bit have no kernel in C: {describe(key)}; use --bits from 2")
