"""A cost table of this machine: the microseconds of every layer of a search space, in the format C on one thread.

Each kernel call is timed alone (`timing.py`). A network takes more than its layers: pixels become codes, codes are
looked up on another grid, maps are added, multiplied, averaged. Which of these calls stand beside which layer is seen
in the programs of architectures that together have every layer, in every shape. A call is charged to the layer whose
output it works on, or else to the one whose input it makes. So a layer's number is its own time and that of its
neighbours, and a network takes the sum over its layers.

    us(layer) = factor x (us(kernel) + mean over programs with this shape of the sum of us(call) charged to it)

The factor is what a few whole networks take, in the same rounds, over what their kernels take alone. It is near 1, less
where the compiler makes copies of kernels for the sizes of a small network.
"""

import tempfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import mean, median

import numpy as np
import torch

from oncequant.arch import FLOAT_BITS, Arch
from oncequant.cost_table import Key, check_name, describe, keys_of, layer_rows, layer_variants, write_table
from oncequant.export.c import write_c
from oncequant.export.compiled import FLAGS, CompiledNetwork, load_compiled
from oncequant.export.graph import Graph
from oncequant.export.lower import lower
from oncequant.export.program import PIXELS, Program, Step, program
from oncequant.export.timing import ROUNDS, Call, Kernels, Visit, microseconds, network_visit
from oncequant.family import NetworkConfig
from oncequant.files import FileError, package_version
from oncequant.measure import calibrated_subnet, initialise_quantizers
from oncequant.models import build_network, extract_subnet, space_of
from oncequant.native import BuildError, missing_compiler
from oncequant.network import Network, elastic_layers
from oncequant.progress import track
from oncequant.run_folder import device_name
from oncequant.space import SearchSpace

CANDIDATES, TIMES = 2000, 3  # architectures of which programs are chosen; programs that have a shape, at least
WHOLE = 5  # networks that are timed whole
IMAGES = 4  # random ones, of which grids are made; no time depends on them


@dataclass(frozen=True)
class Profiled:
    """What a profile has measured."""

    rows: int
    calls: int
    """Different ones of kernels."""
    factor: float
    """Of the time of whole networks over that of their kernels alone."""
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
    if lacks := missing_compiler():
        raise ValueError(lacks)
    keys = [tuple(row.values()) for row in layer_rows(space_of(config))]
    _check_integer(keys)
    supernet = random_supernet(config)
    own = {key: layer_call(key) for key in keys}
    beside = charges_by_shape(supernet)
    calls = list(
        dict.fromkeys([*own.values(), *(call for lists in beside.values() for each in lists for call in each)])
    )
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

    alone = {key: us[own[key]] + mean(sum(us[c] for c in each) for each in beside[_shape(key)]) for key in keys}
    sums = [sum(alone[k] for spec in supernet.space.layers(a).values() for k in keys_of(spec)[0]) for a in whole]
    factors = [taken / sum_ for taken, sum_ in zip(times[len(calls) :], sums)]
    factor = median(factors)
    device = device_name(torch.device("cpu")).rpartition(",")[0]
    about = f"{device}, one thread; cc {' '.join(FLAGS)}; oncequant {package_version()}, {datetime.now(UTC):%Y-%m-%d}"
    write_table(path, {key: factor * number for key, number in alone.items()}, "us", [about])
    unfinished.unlink(missing_ok=True)
    return Profiled(len(own), len(calls), factor, max(abs(one / factor - 1) for one in factors), len(whole))


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


def random_graph(supernet: Network, arch: Arch, in_brief: bool = False) -> Graph:
    """The deployed form of an architecture; its 8-bit grids are calibrated on random images.

    `in_brief`, batch norm is not, and one image must do: the kernel calls are the same, in less time.
    """
    images, channels = _images(supernet)[: 1 if in_brief else IMAGES], supernet.config.image_channels
    calibration = [(images, torch.zeros(len(images)))]
    subnet = extract_subnet(supernet, arch) if in_brief else calibrated_subnet(supernet, arch, calibration)
    classes = tuple(map(str, range(supernet.config.num_classes)))
    about = (0.5,) * channels, (0.25,) * channels, classes, images.shape[-1]
    return lower(subnet, arch, *about, calibration)


def _images(supernet: Network) -> torch.Tensor:
    size = max(supernet.config.resolutions)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(IMAGES, supernet.config.image_channels, size, size, generator=generator)


def covering(space: SearchSpace) -> list[Arch]:
    """Few architectures that together have every layer of the space in every shape, `TIMES` times where it can be."""
    codes, known = [space.sample_codes(np.random.default_rng(0), CANDIDATES)], set()
    for _, every, spec in layer_variants(space):  # those have every shape
        keys, place = keys_of(spec)
        for i, key in enumerate(keys):
            if _shape(key) not in known:
                known.add(_shape(key))
                codes.append(every[np.broadcast_to(place, len(every)) == i][:1])
    candidates = np.concatenate(codes)
    columns = {shape: column for column, shape in enumerate(known)}
    has = np.zeros((len(candidates), len(columns)), bool)
    for spec in space.layers_batch(candidates).values():
        keys, place = keys_of(spec)
        at = np.array([columns[_shape(key)] for key in keys] or [0])
        present = np.broadcast_to(place >= 0, len(has))
        has[present, at[np.broadcast_to(place, len(has))[present]]] = True
    wanted, chosen = np.minimum(has.sum(0), TIMES), []
    while wanted.any():
        best = int((has & (wanted > 0)).sum(1).argmax())
        wanted = np.maximum(wanted - has[best], 0)
        has[best] = False
        chosen.append(space.decode(candidates[best]))
    return chosen


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


def charges_by_shape(supernet: Network) -> dict[Key, list[list[Call]]]:
    """For every shape of a layer, the calls that are charged to it in each of a few programs that have it."""
    found: dict[Key, list[list[Call]]] = defaultdict(list)
    archs = covering(supernet.space)
    with track("programs", len(archs)) as bar:
        for done, arch in enumerate(archs, start=1):
            plan, specs = program(random_graph(supernet, arch, in_brief=True)), supernet.space.layers(arch)
            for name, calls in charges(plan).items():
                found[_shape(keys_of(specs[name])[0][0])].append(calls)
            bar(done, {})
    return found


def charges(plan: Program) -> dict[str, list[Call]]:
    """By layer, the calls that are no layers and are charged to it."""
    layers = [i for i, step in enumerate(plan.steps) if step.weights is not None]
    charged: dict[str, list[Call]] = {plan.steps[i].name: [] for i in layers}
    for i, step in enumerate(plan.steps):
        if step.weights is None:
            before = [plan.steps[j] for j in layers if j < i][-1:]
            after = [plan.steps[j] for j in layers if j > i][:1]
            call = operation_call(step, plan)
            work = max(call.size**2 * call.channels, call.out_size**2 * call.out_channels)
            made = [one for one in before if plan.maps[one.output].bytes == work]
            read = [one for one in after if plan.maps[one.inputs[0]].bytes == work]
            charged[[*made, *read, *before, *after][0].name].append(call)
    return charged


def operation_call(step: Step, plan: Program) -> Call:
    """The kernel call of a step without weights."""
    after = plan.maps[step.output]
    before = after if step.inputs[0] == PIXELS else plan.maps[step.inputs[0]]
    return Call(step.op, 0, 8, before.size, before.channels, 0, 0, after.size, after.channels)


def _shape(key: Key) -> Key:
    """A layer without its bit-widths."""
    return key[:-2]


def _check_integer(keys: Iterable[Key]) -> None:
    """Raise ValueError for a layer that integer kernels do not run."""
    for key in keys:
        if FLOAT_BITS in key[-2:]:
            raise ValueError(f"layers in float have no kernel in C: {describe(key)}; use 8 bits or less for all layers")
        if key[-1] < 2:
            raise ValueError(f"inputs of one bit have no kernel in C: {describe(key)}; use --bits from 2")
