"""Random networks of a trained run, measured on validation images: what the analysis is made from.

What a search has measured is no fair sample: it looks where networks are good. So architectures are drawn at random
from the space, and the same ones are measured with all layers at each bit-width. A second sample has a few
architectures with random bit-widths in each layer, by which one sees what the bits of a role are worth.

Every network is a line of `probes.jsonl` before the next is measured, with the images it got right.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from oncequant.arch import FLOAT_BITS, Arch
from oncequant.data import Data, Split, eval_batches
from oncequant.data.splits import generator_of
from oncequant.family import ElasticConfig
from oncequant.files import FileError, read_object
from oncequant.measure import ask, calibrate
from oncequant.methods import METHODS
from oncequant.models import build_network, extract_subnet, space_of
from oncequant.network import Network, elastic_layers
from oncequant.progress import track
from oncequant.records import Probe, append_record, read_records
from oncequant.run_folder import Run, called_as, writing
from oncequant.runs import read_config
from oncequant.search.bits import bit_choices, open_bits, with_uniform_bits
from oncequant.space import SearchSpace
from oncequant.supernet_file import load_space, load_supernet
from oncequant.train import TrainingOptions

HOSTS = 4  # architectures whose layers get random bit-widths
DRAWN = 32  # architectures that are drawn at once
LOWEST = 2  # bit-width below which nothing is lowered


@dataclass(frozen=True)
class Uniform:
    """All layers at one bit-width, with the weights of a stage."""

    stage: str
    bits: int

    @property
    def label(self) -> str:
        """For people."""
        return "float" if self.bits == FLOAT_BITS else f"{self.bits} bits"


@dataclass(frozen=True)
class Design:
    """What is measured of a run; empty for one whose networks are trained one by one, as DNAS's."""

    uniforms: tuple[Uniform, ...] = ()
    """The reference first, then by falling bits."""
    archs: tuple[Arch, ...] = ()
    """Random ones, complete but for bit-widths; different."""
    largest: Arch | None = None
    """The largest one, likewise; in `float_stage` it is trained whatever else is."""
    policies: tuple[Arch, ...] = ()
    """Architectures with random bit-widths of their layers, complete in `policy_space`."""
    policy_stage: str = ""
    policy_space: SearchSpace | None = None
    spaces: Mapping[str, SearchSpace] | None = None
    """By stage."""
    float_is_trained: bool = False
    """Subnets have been trained in float, so that it is the reference."""
    lowers: bool = False
    """Bit-widths of policies are one lower than trained, by bit inheritance without training."""

    @property
    def reference(self) -> Uniform:
        """What other bit-widths are compared with."""
        return self.uniforms[0]

    def arch_at(self, arch: Mapping[str, int], uniform: Uniform) -> Arch:
        """An architecture with one bit-width everywhere, complete in the space of its stage."""
        assert self.spaces is not None
        space = self.spaces[uniform.stage]
        bits = {name: values[-1] for name, values in space.choices.items() if name not in arch}
        return space.complete(with_uniform_bits(space, {**arch, **bits}, uniform.bits))


def design_of(folder: Path, evaluations: int) -> Design:
    """What is to be measured of a run folder, the same at each call. Raises FileError if it has no quantized stage."""
    method, cfg = read_config(folder)
    stages = METHODS[method].stages(cfg)
    trained = [stage for stage in stages if (folder / f"{stage}.safetensors").exists()]
    loaded: dict[str, tuple[Any, SearchSpace]] = {stage: load_space(folder, stage) for stage in trained}
    if any(not isinstance(config, ElasticConfig) for config, _ in loaded.values()):
        return Design()
    spaces = {stage: space for stage, (_, space) in loaded.items()}
    # of stages with bit-widths to choose from the last one: those before it ease the start
    quantized = [
        stage
        for stage, (config, space) in loaded.items()
        if not config.is_float and (stage == stages[-1] or not bit_choices(space))
    ]
    if not quantized:
        raise FileError(
            f"{folder}: no quantized stage is trained yet; trained are {', '.join(trained) or 'none'} of "
            f"{', '.join(stages)}. `oncequant info {folder}` says how to go on"
        )
    uniforms = {
        Uniform(stage, bits) for stage in quantized for bits in open_bits(spaces[stage]) or loaded[stage][0].weight_bits
    }
    trains_float = "float" in spaces and bool(getattr(cfg, "float_sandwich", False))
    if trains_float:
        uniforms.add(Uniform("float", FLOAT_BITS))
    space, seed = spaces[quantized[0]], cfg.seed
    free = space.restrict({name: max(space.choices[name]) for name in bit_choices(space)})
    archs = tuple(draw(free, evaluations, np.random.default_rng([seed, 1])))
    names = [name for name in space.choices if not name.endswith("_bits")]
    archs = tuple(Arch({name: arch[name] for name in names}) for arch in archs)
    highest = max(uniforms - {Uniform("float", FLOAT_BITS)}, key=lambda uniform: uniform.bits)
    wider = policy_space(loaded, highest)
    policies: tuple[Arch, ...] = ()
    if wider is not None:
        policies = tuple(draw_policies(wider, archs[:HOSTS], evaluations, np.random.default_rng([seed, 2])))
    return Design(
        uniforms=tuple(sorted(uniforms, key=lambda uniform: -uniform.bits)),
        archs=archs,
        largest=Arch({name: space.largest()[name] for name in names}),
        policies=policies,
        policy_stage=highest.stage,
        policy_space=wider,
        spaces=spaces,
        float_is_trained=trains_float or any(uniform.bits == FLOAT_BITS for uniform in uniforms),
        lowers=not bit_choices(spaces[highest.stage]),
    )


def policy_space(loaded: Mapping[str, tuple[Any, SearchSpace]], highest: Uniform) -> SearchSpace | None:
    """The space in which the layers of a stage have bit-widths of their own: its own space, or for a stage of one
    bit-width one in which each layer can have one bit less. None if there is nothing below it."""
    config, space = loaded[highest.stage]
    if bit_choices(space):
        return space
    if highest.bits - 1 < LOWEST or highest.bits == FLOAT_BITS:
        return None
    lower = (highest.bits - 1, highest.bits)
    wider = space_of(replace(config, weight_bits=lower, act_bits=lower))
    return wider.restrict({name: values for name, values in space.choices.items() if not name.endswith("_bits")})


def draw(space: SearchSpace, count: int, rng: np.random.Generator) -> list[Arch]:
    """So many different uniform architectures, or all that are found of a small space. The first ones of more are
    the same."""
    found: dict[Arch, None] = {}
    for _ in range(100 + 2 * count // DRAWN):
        found.update(dict.fromkeys(space.decode(row) for row in space.sample_codes(rng, DRAWN)))
        if len(found) >= count:
            break
    return list(found)[:count]


def draw_policies(space: SearchSpace, hosts: Sequence[Arch], count: int, rng: np.random.Generator) -> Iterator[Arch]:
    """Architectures in turn, with random bit-widths. Each layer follows its role, its part of the network or neither,
    with equal chances: with layers that are all independent no two networks would differ much in any role."""
    layers, names = space.layers(space.largest()), bit_choices(space)
    for number in range(count):
        arch, shared = dict(hosts[number % len(hosts)]), dict[tuple[str, str], float]()
        for name in names:
            layer, _, what = name.rpartition(".")
            allowed = space.choices[name]
            keys = (layers[layer].role, what), (part_of(layer), what)
            for key in keys:
                shared.setdefault(key, rng.random())
            share = (*(shared[key] for key in keys), rng.random())[rng.integers(3)]
            arch[name] = allowed[int(share * len(allowed))]
        yield space.complete({**{n: v[0] for n, v in space.choices.items() if n not in arch}, **arch})


def part_of(layer: str) -> str:
    """The part of the network in which a layer is: its group of blocks, or itself."""
    return layer.partition(".block")[0]


# -- measuring


@dataclass(frozen=True)
class Answered:
    """Which images the networks of a design get right, (networks, images) each."""

    uniform: Mapping[Uniform, np.ndarray]
    """The random architectures."""
    largest: Mapping[Uniform, np.ndarray]
    """The largest architecture, (images,); in float too."""
    policies: np.ndarray


def answered(
    folder: Path, name: str, design: Design, images: int, opened: Callable[[], tuple[TrainingOptions, Run]]
) -> Answered:
    """The answers of all networks of a design to so many validation images, or to all if there are fewer.

    What `probes.jsonl` lacks is measured; `opened` gives the run with its images, and is called only then. Raises
    FileError, and what `opened` raises.
    """
    about = read_object(folder / "run.json", "data")["data"]
    images = min(images, int(about["validation"]))
    path, wanted = folder / "probes.jsonl", list(probes_of(design))
    known = {(probe.stage, probe.arch): probe for probe in read_records(path, Probe) if probe.images >= images}
    missing = [one for one in dict.fromkeys(wanted) if one not in known]
    if missing:
        cfg, run = opened()
        with writing(folder, called_as(), run.data.device):
            with track(f"analyse {name}", len(known) + len(missing), start=len(known)) as bar:
                for probe in measured(folder, design, missing, images, cfg, run):
                    append_record(path, probe)
                    known[probe.stage, probe.arch] = probe
                    bar(len(known), {"top1": float(right_of(probe, images).mean())})
    rows = iter([right_of(known[one], images) for one in wanted])
    uniform = {one: np.array([next(rows) for _ in design.archs]) for one in design.uniforms}
    largest = {one: next(rows) for one in largest_of(design)}
    return Answered(uniform, largest, np.array(list(rows)))


def largest_of(design: Design) -> list[Uniform]:
    """At which bit-widths the largest architecture is measured: in float too, where it always is trained."""
    assert design.spaces is not None
    floats = [Uniform("float", FLOAT_BITS)] if "float" in design.spaces else []
    return [*floats, *(one for one in design.uniforms if one.bits != FLOAT_BITS)]


def probes_of(design: Design) -> Iterator[tuple[str, Arch]]:
    """Stage and brief architecture of every network, in the order of `Answered`."""
    assert design.spaces is not None and design.largest is not None
    for uniform in design.uniforms:
        for arch in design.archs:
            yield uniform.stage, design.spaces[uniform.stage].brief(design.arch_at(arch, uniform))
    for uniform in largest_of(design):
        yield uniform.stage, design.spaces[uniform.stage].brief(design.arch_at(design.largest, uniform))
    for policy in design.policies:
        assert design.policy_space is not None
        yield design.policy_stage, design.policy_space.brief(policy)


def measured(
    folder: Path,
    design: Design,
    missing: Sequence[tuple[str, Arch]],
    images: int,
    cfg: TrainingOptions,
    run: Run,
) -> Iterator[Probe]:
    """Measure networks, one after the other. They are deployed as searches do it: sliced from the supernet, with
    statistics of their own."""
    data, calibration = run.data, cfg.calibration(run.data)
    split = first_images(data, images)
    for stage in dict.fromkeys(stage for stage, _ in missing):
        supernet = load_supernet(folder, stage, data.device)
        for arch in (arch for own, arch in missing if own == stage):
            subnet, complete = subnet_of(supernet, arch, design)
            calibrate(subnet, complete, calibration)
            answers = ask(subnet, complete, eval_batches(data, split))
            assert answers is not None  # nothing stops it
            right = (answers.labels == answers.predicted).numpy()
            yield Probe(stage, arch, images, np.packbits(right).tobytes().hex())


def first_images(data: Data, images: int) -> Split:
    """So many validation images in a random order that is always the same: fewer are the first ones of more."""
    order = torch.randperm(len(data.validation), generator=generator_of("analysis"))
    return data.validation.subset(order[:images])


def subnet_of(supernet: Network, arch: Arch, design: Design) -> tuple[Network, Arch]:
    """A network before its calibration, and its complete architecture; layers with fewer bits than their supernet was
    trained for have their step sizes widened (bit inheritance, oncequant/methods/oqat.py)."""
    if set(arch) <= set(supernet.space.free):
        complete = supernet.space.complete(arch)
        return extract_subnet(supernet, complete), complete
    assert design.policy_space is not None
    trained = supernet.space.layers(supernet.space.largest())
    bits = sorted({b for name in bit_choices(design.policy_space) for b in design.policy_space.choices[name]})
    config: Any = replace(supernet.config, weight_bits=tuple(bits), act_bits=tuple(bits))  # type: ignore[type-var]
    wider = build_network(config, design.policy_space)
    wider.load_state_dict(supernet.state_dict())
    wider.on(next(supernet.parameters()).device)
    complete = design.policy_space.complete(arch)
    subnet, specs = extract_subnet(wider, complete), design.policy_space.layers(complete)
    for name, layer in elastic_layers(subnet):
        if layer.weight_quantizer is not None and layer.act_quantizer is not None:
            layer.weight_quantizer.drop_bits(int(trained[name].weight_bits - specs[name].weight_bits))
            layer.act_quantizer.drop_bits(int(trained[name].act_bits - specs[name].act_bits))
    return subnet, complete


def right_of(probe: Probe, images: int) -> np.ndarray:
    """Which of the first `images` images a network got right, booleans (images,)."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(probe.right), np.uint8), count=probe.images)[:images].astype(bool)
