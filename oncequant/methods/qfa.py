"""Quantized-for-all (QFA) with BatchQuant. Bai et al., 2021. https://arxiv.org/abs/2105.08952

Idea. One weight-sharing supernet holds every architecture with every mixed-precision policy: each convolution has its
own bit-widths of weights and inputs. The ranges of its inputs come from the batch (BatchQuant), so that they fit the
subnet that happens to run. An accuracy predictor learns from some hundred measured subnets what the others would reach;
NSGA-II on it finds the front, or the best subnet under a budget, in seconds and without retraining.

Symbols.  b: bits   s: step_size   (S, Z, gamma, delta): see quantizers/batchquant.py

Differences from the paper and the official code are numbered in docs/qfa.md.

Run. `oncequant run --method qfa --data digits`, recipes/qfa_*.sh.      Results. results/README.md
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from oncequant import distributed
from oncequant.arch import FLOAT_BITS, Arch
from oncequant.calibrate import initialise_quantizers
from oncequant.checkpoint import load_supernet, save_supernet
from oncequant.data import Data, eval_batches, train_batches
from oncequant.elastic import SharedWeights
from oncequant.evaluate import calibrated_subnet, measure
from oncequant.files import read_json, write_json
from oncequant.models.mobilenet_v3 import MobileNetV3, MobileNetV3Config, elastic_layers, mobilenet_v3_space
from oncequant.progress import track
from oncequant.quantizers.batchquant import BatchQuant
from oncequant.quantizers.functional import integer_range
from oncequant.sandwich import own_rng, sandwich_training, train_supernet
from oncequant.search import SearchConfig, predicted
from oncequant.search.budget import check_reachable
from oncequant.search.measurements import Measurement, MeasurementFile, read_measurements
from oncequant.search.pareto import hypervolume
from oncequant.search.predictor import (
    LEAST_PAIRS,
    AccuracyPredictor,
    fit_predictor,
    load_predictor,
    quality,
    save_predictor,
)
from oncequant.search.supernet import (
    Choice,
    chosen_measurements,
    measure_codes,
    record_family,
    search_by_measuring,
)
from oncequant.space import SearchSpace
from oncequant.train import Schedule, StepFunction, TrainingOptions

STAGES = ("float", "mixed-float", "mixed")


@dataclass(frozen=True)
class OwnOptions:
    """Options of QFA training alone."""

    bits: tuple[int, ...] = (2, 3, 4)
    """Bit-widths that the weights and the inputs of each convolution choose from, independently."""
    space: Literal["full", "precision", "architecture"] = "full"
    """What is searched: all; precision: bit-widths of the largest architecture; architecture: all layers at the
    largest bit-width."""
    mixed_subnets: int = 4
    """Random subnets per step of mixed precision, beside the largest and the smallest."""
    activations: Literal["batchquant", "lsq", "running"] = "batchquant"
    """Activation quantizer: QFA's; learned step sizes; moving averages of the range."""
    distillation: Literal["float", "chain"] = "float"
    """Who teaches subnets beside the labels. float: the float supernet's largest subnet, as in the paper. chain: it
    teaches the largest, the largest the random ones, they the smallest."""
    depthwise_floor: int = 2
    """Least bit-width of depthwise weights."""
    tied_steps: bool = False
    """Start step sizes from that of the largest bit-width, doubled for every bit less, instead of each from data."""
    kurtosis: float = 0.0
    """Weight of (kurtosis(w) - 1.8)^2, mean over layers, in the loss: flat weight distributions quantize better."""
    dampening: float = 0.0
    """Weight, at the end, of the pull of weights towards their quantized values, which rises like a cosine."""
    range_batch: int = 64
    """Images per batch from which the activation ranges of a subnet are estimated when it is measured. The range of a
    batch grows with it: as many as a process sees per step in training."""
    learned_offsets: float = 1.0
    """Share of the last stage in which BatchQuant's offsets are learned; afterwards they are zero and zero points are
    whole numbers. 1: to the end, and rounded when a subnet is deployed."""


@dataclass(frozen=True)
class Config(TrainingOptions, OwnOptions):
    """Options of QFA training."""

    def __post_init__(self):
        """Refuse impossible options before any training."""
        super().__post_init__()
        if not self.bits or any(not 1 <= b <= 8 for b in self.bits) or len(set(self.bits)) < len(self.bits):
            raise ValueError(f"bits {self.bits}: use different bit-widths from 1 to 8, for example 2 3 4")
        if self.depthwise_floor > max(self.bits):
            raise ValueError(
                f"depthwise_floor {self.depthwise_floor}: use at most {max(self.bits)}, the largest of bits"
            )
        if self.mixed_subnets < 0:
            raise ValueError(f"mixed_subnets {self.mixed_subnets}: use at least 0")
        if self.range_batch < 2:
            raise ValueError(f"range_batch {self.range_batch}: use at least 2")
        if self.activations == "running" and self.checkpoint_activations:
            raise ValueError("activations running: not with checkpoint_activations, which moves averages twice")
        if not 0 <= self.learned_offsets <= 1:
            raise ValueError(f"learned_offsets {self.learned_offsets}: use a share from 0 to 1")

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages in training order."""
        return STAGES

    def schedule(self, stage: str, data: Data) -> Schedule:
        """Steps and learning rate of a stage; the one with float among the bit-widths is half as long as the last."""
        schedule = super().schedule(stage, data)
        if stage != "mixed-float":
            return schedule
        return replace(schedule, steps=max(1, schedule.steps // 2), warmup=schedule.warmup // 2)

    @property
    def calibration_batch(self) -> int:
        """Images per batch of `calibration`."""
        return self.range_batch


# -- the space


def mixed_precision(
    cfg: Config, model: MobileNetV3Config, with_float: bool = False
) -> tuple[MobileNetV3Config, SearchSpace]:
    """Configuration and space in which every convolution of `model` has its own bit-widths."""
    bits = tuple(sorted(cfg.bits)) + (FLOAT_BITS,) * with_float
    config = replace(model, weight_bits=bits, act_bits=bits, steps_per_bits=True, act_quantizer=cfg.activations)
    space = mobilenet_v3_space(config)
    kept = {
        name: tuple(b for b in bits if b >= cfg.depthwise_floor)
        for name in space.choices
        if name.endswith(".depthwise.weight_bits")
    }
    if cfg.space == "precision":
        kept |= {name: max(values) for name, values in space.choices.items() if not name.endswith("_bits")}
    if cfg.space == "architecture":
        kept |= {name: values[-1 - with_float :] for name, values in space.choices.items() if name.endswith("_bits")}
    return config, space.restrict(kept)


def bit_choices(space: SearchSpace) -> list[str]:
    """Names of the choices of bit-widths that are open."""
    return [name for name in space.free if name.endswith("_bits")]


def open_bits(space: SearchSpace) -> list[int]:
    """The bit-widths that some layer can choose from."""
    return sorted({bits for name in bit_choices(space) for bits in space.choices[name]})


def with_uniform_bits(space: SearchSpace, arch: Mapping[str, int], bits: int) -> Arch:
    """The architecture with one bit-width everywhere, or the least above it that a layer allows."""
    names = bit_choices(space)
    return Arch({**arch, **{name: min(b for b in space.choices[name] if b >= bits) for name in names}})


# -- training


def train(
    cfg: Config, model: MobileNetV3Config, data: Data, run_dir: Path, only: Mapping[str, Any] | None = None
) -> None:
    """Train every stage that has no checkpoint yet; each stage leaves `<stage>.safetensors` in `run_dir`.

    The float supernet, whose largest subnet teaches; then mixed precision with float among the bit-widths, which eases
    the start; then without. `only` restricts the space (names of choices to values).
    """
    if cfg.activations == "running" and distributed.world_size() > 1:
        raise ValueError("activations running: moving averages are not shared by processes; use one process")
    for stage in STAGES:
        if not distributed.from_main((run_dir / f"{stage}.safetensors").exists):
            torch.manual_seed(cfg.seed)
            if stage == "float":
                architecture = {k: v for k, v in (only or {}).items() if not k.endswith("_bits")}
                supernet = MobileNetV3(model, mobilenet_v3_space(model).restrict(architecture))
            else:
                config, space = mixed_precision(cfg, model, with_float=stage == "mixed-float")
                supernet = MobileNetV3(config, space.restrict(only or {}))
            supernet = supernet.to(data.device, memory_format=torch.channels_last)
            if stage == "mixed-float":
                start_quantizers(load_supernet(run_dir, "float", data.device), supernet, data, cfg)
            elif stage == "mixed":
                supernet.load_state_dict(load_supernet(run_dir, "mixed-float", data.device).state_dict())
            if stage == "float":
                step, ends = sandwich_training(supernet, cfg), None
            else:
                resolutions = supernet.space.choices["resolution"]
                teacher = Teacher(load_supernet(run_dir, "float", data.device), resolutions, cfg.calibration(data))
                step = training_step(supernet, teacher, cfg, is_last=stage == "mixed")
                space = supernet.space
                ends = [with_uniform_bits(space, space.largest(), max(cfg.bits)), space.smallest()]
            train_supernet(supernet, step, cfg, data, run_dir, stage, ends)
            distributed.from_main(lambda: save_supernet(run_dir, stage, supernet))  # noqa: B023
        if distributed.is_main():
            (run_dir / f"{stage}.resume.pt").unlink(missing_ok=True)


def start_quantizers(float_supernet: MobileNetV3, supernet: MobileNetV3, data: Data, cfg: Config) -> None:
    """Weights from the float supernet; every step size from the weights and activations it will quantize."""
    missing = supernet.load_state_dict(float_supernet.state_dict(), strict=False).missing_keys
    assert all("_quantizer." in key for key in missing), missing
    images, _ = next(train_batches(data, 256, seed=cfg.seed, crop="none"))
    initialise_quantizers(supernet, images, cfg.tied_steps)


class Teacher:
    """The largest float subnet, with batch-norm statistics of its own for every resolution."""

    def __init__(self, supernet: MobileNetV3, resolutions: Sequence[int], calibration: list[tuple[Tensor, Tensor]]):
        largest = supernet.space.largest()
        self.archs = {r: largest.replace(resolution=r) for r in resolutions}
        self.subnets = {r: calibrated_subnet(supernet, arch, calibration) for r, arch in self.archs.items()}

    @torch.no_grad()
    def __call__(self, images: Tensor, resolution: int) -> Tensor:
        """Soft answers (N, classes) on normalised images (N, C, S, S)."""
        return self.subnets[resolution](images, self.archs[resolution]).softmax(1)


def training_step(supernet: MobileNetV3, teacher: Teacher, cfg: Config, is_last: bool) -> StepFunction:
    """Six subnets accumulate gradients: the largest, random ones, the smallest; each learns labels and soft answers.

    Largest and smallest have one random kernel size and one random bit-width for all layers and the highest and lowest
    resolution; everything about the others is random.
    """
    layers = [layer for _, layer in elastic_layers(supernet) if layer.weight_quantizer is not None]
    ranges = [layer.act_quantizer for layer in layers if isinstance(layer.act_quantizer, BatchQuant)]

    def step(images: Tensor, labels: Tensor, rng: np.random.Generator, done: float) -> Tensor:
        archs = step_archs(supernet.space, cfg, own_rng(cfg, rng))
        shared, above, losses = SharedWeights(), [], []
        held = is_last and done >= cfg.learned_offsets
        if held:
            with torch.no_grad():
                for quantizer in ranges:
                    quantizer.offset.zero_()
        for arch in archs:
            if cfg.distillation == "chain" and above:
                is_smallest = len(above) == len(archs) - 1
                soft = torch.stack(above[1:] or above).mean(0) if is_smallest else above[0]
            else:
                soft = teacher(images, arch["resolution"])
            logits = supernet(images, arch, shared, getattr(torch, cfg.precision))  # (N, classes)
            hard_loss = F.cross_entropy(logits, labels, label_smoothing=cfg.label_smoothing)
            ((hard_loss + F.cross_entropy(logits, soft)) / len(archs)).backward()
            above.append(logits.detach().softmax(1))
            losses.append(hard_loss.detach())
        shared.backward()
        regularise(layers, cfg, done)
        if held:
            for quantizer in ranges:
                quantizer.offset.grad = None
        return losses[0]

    return step


def step_archs(space: SearchSpace, cfg: Config, rng: np.random.Generator) -> list[Arch]:
    """The subnets of one step: largest, random ones, smallest; each once."""

    def end(arch: Arch) -> Arch:
        kernels = [name for name in space.choices if name.endswith(".kernel_size")]
        common = sorted({k for name in kernels for k in space.choices[name]})
        kernel = int(rng.choice(common)) if common else 0
        one_kernel = {
            name: max((k for k in space.choices[name] if k <= kernel), default=arch[name]) for name in kernels
        }
        widths = open_bits(space)
        return with_uniform_bits(space, {**arch, **one_kernel}, int(rng.choice(widths)) if widths else 0)

    def repaired(arch: Arch) -> Arch:
        """Layers of which only weights or only inputs are in float: both, with probability 0.2, or neither."""
        changes = {}
        for name in bit_choices(space):
            layer, _, what = name.rpartition(".")
            other = f"{layer}.{'act' if what == 'weight_bits' else 'weight'}_bits"
            if arch[name] == FLOAT_BITS and arch[other] < FLOAT_BITS:
                if rng.random() < 0.2 and FLOAT_BITS in space.choices[other]:
                    changes[other] = FLOAT_BITS
                else:
                    changes[name] = int(rng.choice([b for b in space.choices[name] if b < FLOAT_BITS]))
        return arch.replace(**changes)

    random = [repaired(space.sample(rng)) for _ in range(cfg.mixed_subnets)]
    return list(dict.fromkeys([end(space.largest()), *random, end(space.smallest())]))  # a network alone: once


def regularise(layers: list, cfg: Config, done: float) -> None:
    """Add the gradients of the stabilisers that look at weights alone."""
    if not (cfg.kurtosis or cfg.dampening):
        return
    total = torch.zeros((), device=layers[0].weight.device)
    for layer in layers:
        weight = layer.weight
        if cfg.kurtosis and weight.numel() > 1:
            centred = weight - weight.mean()
            kurtosis = centred.pow(4).mean() / centred.square().mean().square().clamp_min(1e-12)
            total = total + cfg.kurtosis / len(layers) * (kurtosis - 1.8).square()
        if cfg.dampening:
            rising = cfg.dampening * (1 - np.cos(np.pi * done)) / 2
            for (bits, kernel), slot in layer.weight_slots.items():
                if kernel == weight.shape[-1]:
                    total = total + rising / len(cfg.bits) * pull(weight, layer.weight_quantizer.step_size[slot], bits)
    total.backward()


def pull(weight: Tensor, step_size: Tensor, bits: int) -> Tensor:
    """Dampening (Nagel et al., 2022, https://arxiv.org/abs/2203.11086): squared distance to the quantized values."""
    q_min, q_max = integer_range(bits, signed=True)
    s = step_size.detach().abs()
    inside = torch.minimum(torch.maximum(weight, q_min * s), q_max * s)
    levels = torch.where(weight >= 0, 1.0, -1.0) if bits == 1 else (inside / s).round()
    return (inside - levels.detach() * s).square().sum()


# -- predictor and search

EVALUATIONS = 200  # subnets measured for the predictor where the options leave it open
MEASURED_OF_FRONT = 24  # members of the predicted front that are measured exactly
MEASURED_OF_UNIFORM = 6  # the same for each uniform bit-width
MEASURED_UNDER_BUDGET = 8


def check_budgets(cfg: Config, options: SearchConfig, model: MobileNetV3Config) -> None:
    """Raise BudgetError if a budget is below the smallest subnet, ValueError if too few subnets are to be measured for
    a predictor, before anything is trained."""
    check_reachable(mixed_precision(cfg, model)[1], options.budgets)
    check_evaluations(options)


def check_evaluations(options: SearchConfig) -> None:
    """Raise ValueError if too few subnets are to be measured for a predictor."""
    if options.searcher is None and (options.evaluations or EVALUATIONS) < LEAST_PAIRS:
        raise ValueError(
            f"evaluations {options.evaluations}: the accuracy predictor needs at least {LEAST_PAIRS} measured subnets; "
            "or search without it, for example by --searcher nsga2"
        )


def sample_codes(space: SearchSpace, rng: np.random.Generator, n: int) -> np.ndarray:
    """`n` different architectures to learn the predictor from, (n, genes): uniform, and half of the official mixture.

    The mixture: with probability 0.4 the highest resolution, with 0.3 all blocks, with 0.3 one bit-width for all
    layers, independently; otherwise uniform. It covers the ends, where uniform draws of many choices never come.
    """
    column = {name: i for i, name in enumerate(space.free)}
    found: dict[bytes, np.ndarray] = {}
    for _ in range(100):  # where there are few architectures, several draws
        codes = space.sample_codes(rng, n)
        for row in codes[1::2]:
            if rng.random() < 0.4 and "resolution" in column:
                row[column["resolution"]] = len(space.choices["resolution"]) - 1
            deepest, one_width = rng.random() < 0.3, rng.random() < 0.3
            for name, i in column.items():
                if deepest and name.endswith(".depth"):
                    row[i] = len(space.choices[name]) - 1
            if one_width and bit_choices(space):
                row[:] = space.encode(with_uniform_bits(space, space.decode(row), int(rng.choice(open_bits(space)))))
        for row in space.canonical(codes):
            found.setdefault(row.tobytes(), row)
        if len(found) >= n:
            break
    return np.array(list(found.values())[:n])


def search(cfg: Config, options: SearchConfig, data: Data, run_dir: Path) -> list[dict[str, Any]]:
    """Choose subnets of a trained supernet, without retraining.

    Without budgets: measure a sample of subnets on the validation images, fit the accuracy predictor, find its front by
    NSGA-II, measure that and the fronts of uniform bit-widths, and choose three members (S, M, L). With budgets and a
    predictor from before: the most accurate subnet within them, in seconds. A `searcher` leaves the predictor out.
    Everything measured appends to `measurements.jsonl`; the choice, with its test accuracy, is added to `family.json`
    and returned. Raises BudgetError before any measurement if a budget cannot be met.
    """
    teacher, supernet = (load_supernet(run_dir, stage, data.device) for stage in ("float", "mixed"))
    space, calibration = supernet.space, cfg.calibration(data)
    check_reachable(space, options.budgets)
    check_evaluations(options)
    memory = MeasurementFile(run_dir / "measurements.jsonl", "mixed")
    path = run_dir / "predictor.safetensors"
    evaluations, predictor = options.evaluations or EVALUATIONS, None
    if options.searcher or space.size() <= evaluations:  # so small a space is measured whole
        searcher = options.searcher or "random"
        search_by_measuring(supernet, memory, searcher, evaluations, options, calibration, data, cfg.seed)
    else:
        if not (options.budgets and distributed.from_main(path.exists)):
            sample = sample_codes(space, np.random.default_rng(cfg.seed), evaluations)
            measure_codes(supernet, memory, sample, "sample", calibration, data)
        predictor = measure_predicted(supernet, memory, cfg, options, path, calibration, data)
    found = distributed.from_main(lambda: chosen_measurements(memory, options, space))

    def about(arch: Arch) -> dict[str, float]:
        """What the predictor of this search said, before the front was measured, and what whole zero points cost."""
        codes = space.encode(arch)[None]
        learned = measure(supernet, arch, calibration, eval_batches(data, data.validation), fold=False)
        known = {"top1_predicted": float(predictor.top1(codes)[0])} if predictor else {}
        return {**known, "top1_before_folding": learned}

    largest = teacher.space.largest()
    family = run_dir / "family.json"
    known = distributed.from_main(lambda: read_json(family) if family.exists() else [])
    known = [entry["top1_validation"] for entry in known if entry["name"] == "float-max"]
    top1 = known[0] if known else measure(teacher, largest, calibration, eval_batches(data, data.validation))
    chosen = [Choice("float-max", "float", largest, top1, FLOAT_BITS)]
    chosen += [
        Choice(f"mixed-{name}", "mixed", space.complete(m.arch), m.top1, more=about) for name, m in found.items()
    ]

    def top1_test(choice: Choice) -> float:
        net = teacher if choice.stage == "float" else supernet
        return measure(net, choice.arch, calibration, eval_batches(data, data.test))

    replaced = set() if options.budgets else {f"mixed-{letter}" for letter in "SML"}
    return record_family(run_dir, chosen, {"float": teacher.space, "mixed": space}, top1_test, replaced)


def measure_predicted(
    supernet: MobileNetV3,
    memory: MeasurementFile,
    cfg: Config,
    options: SearchConfig,
    path: Path,
    calibration: list[tuple[Tensor, Tensor]],
    data: Data,
) -> AccuracyPredictor:
    """Measure what the predictor finds best, save one fitted again to all there is, and return the one that was used.

    Without budgets the predictor is fitted to the sample alone, so that a search that was killed measures the same
    front again.
    """
    space = supernet.space
    for_budget = options.budgets and distributed.from_main(path.exists)
    seen = distributed.from_main(lambda: _pairs(memory, space, None if for_budget else "sample"))
    predictor = distributed.from_main(
        lambda: load_predictor(path, space)[0] if for_budget else fit_predictor(space, *seen, seed=cfg.seed)
    )
    front_of = partial(predicted.search, space, predictor, cost=options.cost, first=seen[0], seed=cfg.seed)
    population, generations = options.population, options.generations

    def measured(front: np.ndarray, most: int, name: str, stop_dominated: str | None = None) -> None:
        measure_codes(supernet, memory, evenly(front, most), name, calibration, data, stop_dominated)

    if options.budgets:
        half = dict(population=max(4, population // 2), generations=max(1, generations // 2))
        front = distributed.from_main(lambda: front_of(budgets=options.budgets, **half))
        best = np.argsort(-predictor.top1(front), kind="stable")[:MEASURED_UNDER_BUDGET]
        measured(front[best], MEASURED_UNDER_BUDGET, "budget")
    else:
        with track("predict", generations) as bar:
            options_of = dict(population=population, generations=generations, progress=lambda done, _: bar(done, {}))
            front = distributed.from_main(lambda: front_of(**options_of))
        measured(front, MEASURED_OF_FRONT, "predicted", stop_dominated=options.cost)
        for bits in sorted(cfg.bits) if bit_choices(space) else ():
            uniform = with_uniform_bits(space, space.largest(), bits)
            fixed = {name: uniform[name] for name in bit_choices(space)}
            half = dict(population=max(4, population // 2), generations=max(1, generations // 2))
            front = distributed.from_main(lambda: front_of(fixed=fixed, **half))  # noqa: B023
            measured(front, MEASURED_OF_UNIFORM, f"uniform {bits} bits")
    distributed.from_main(lambda: _keep_predictor(predictor, memory, path, options, cfg.seed))
    return predictor


def evenly(front: np.ndarray, most: int) -> np.ndarray:
    """At most so many rows of `front`, evenly."""
    return front[np.unique(np.linspace(0, len(front) - 1, min(most, len(front))).round().astype(int))]


def _pairs(memory: MeasurementFile, space: SearchSpace, searcher: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Codes (n, genes) and top-1 (n,) of what is measured, by one searcher or all, each architecture once."""
    found = [m for m in read_measurements(memory.path) if m.stage == memory.stage and searcher in (None, m.searcher)]
    unique = {m.arch: m.top1 for m in found}
    return np.array([space.encode(space.complete(arch)) for arch in unique]), np.array(list(unique.values()))


def _keep_predictor(
    used: AccuracyPredictor, memory: MeasurementFile, path: Path, options: SearchConfig, seed: int
) -> None:
    """Fit to everything measured and save it; after a search of the whole front, beside it for the report, what the
    predictor that was `used` said before the fronts were measured, and how they compare."""
    space, everything = used.space, _pairs(memory, used.space, None)
    found = quality(space, *everything, seed=seed)
    save_predictor(path, fit_predictor(space, *everything, seed=seed), found)
    here = [m for m in read_measurements(memory.path) if m.stage == memory.stage]
    fronts = [m for m in here if m.searcher == "predicted" or m.searcher.startswith("uniform")]
    if options.budgets or not fronts:
        return
    top1 = used.top1(np.array([space.encode(space.complete(m.arch)) for m in fronts]))
    points = [dict(searcher=m.searcher, predicted=float(t), measured=m.top1) for m, t in zip(fronts, top1)]
    volumes = dict(cost=options.cost, hypervolume=compare_fronts(here, options.cost))
    write_json(path.with_suffix(".json"), asdict(found) | volumes | dict(points=points))


def compare_fronts(measurements: Sequence[Measurement], cost: str) -> dict[str, float]:
    """Hypervolume over validation error and a cost of what was measured of the predicted mixed-precision front, and of
    the fronts of uniform bit-widths; as a share of the box from nothing to the worst of everything measured.

    Candidates of the first that others dominate may be missing, which makes it smaller; of the second none is.
    """

    def points(name: str) -> np.ndarray:
        own = [[m.costs[cost], 1 - m.top1] for m in measurements if m.searcher.startswith(name)]
        return np.array(own).reshape(-1, 2)

    worst = np.maximum(points("").max(axis=0), 1e-9)
    return {name: hypervolume(points(name) / worst, (1.0, 1.0)) for name in ("predicted", "uniform")}
