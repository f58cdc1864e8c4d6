"""Quantized-for-all (QFA) with BatchQuant. Bai et al., 2021. https://arxiv.org/abs/2105.08952

Idea. One weight-sharing supernet holds every architecture with every mixed-precision policy: each convolution has its
own bit-widths of weights and inputs. The ranges of its inputs come from the batch (BatchQuant), so that they fit the
subnet that happens to run. An accuracy predictor learns from some hundred measured subnets what the others would reach;
NSGA-II on it finds the front, or the best subnet under a budget, in seconds and without retraining.

Symbols.  b: bits   s: step_size   (S, Z, gamma, delta): see quantizers/batchquant.py

Differences from the paper and the official code are numbered in docs/qfa.md.

Run. `oncequant run qfa --data digits`, recipes/qfa_*.sh.      Results. results/README.md
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from oncequant import distributed
from oncequant.agreed import agreed
from oncequant.arch import FLOAT_BITS, Arch
from oncequant.cost import find_cost
from oncequant.data import Data, train_batches
from oncequant.elastic import SharedWeights
from oncequant.family import ElasticConfig
from oncequant.initial import start_float
from oncequant.limits import check_ranges
from oncequant.loss import Loss
from oncequant.measure import Judge, calibrated_subnet, initialise_quantizers
from oncequant.models import families_with, space_of
from oncequant.network import Network, elastic_layers
from oncequant.quantizers import INPUT_QUANTIZERS
from oncequant.records import Member
from oncequant.run_folder import Run, preset_for
from oncequant.sandwich import own_rng, pass_of_step, train_float, train_supernet
from oncequant.schedule import Schedule
from oncequant.search import BudgetOptions, FrontOptions, PredictedOptions
from oncequant.search.bits import bit_choices, learning_codes, open_bits, with_uniform_bits
from oncequant.search.budget import check_reachable
from oncequant.search.family import chosen_picks, float_pick, hand_out, measure_codes, search_by_measuring
from oncequant.search.fronts import LEARNING, learned_from, measure_predicted
from oncequant.search.measurements import MeasurementFile
from oncequant.search.predictor import LEAST_PAIRS, metric_of
from oncequant.space import SearchSpace
from oncequant.stages import Stage, run_stages
from oncequant.supernet_file import load_supernet
from oncequant.train import StepFunction, SupernetOptions, TrainingOptions

families = families_with("weight_bits")
preset = preset_for
STAGES = ("float", "mixed-float", "mixed")


@dataclass(frozen=True)
class Config(SupernetOptions, TrainingOptions):
    """Options of QFA training."""

    bits: tuple[int, ...] = (2, 3, 4)
    """Bit-widths that the weights and the inputs of each convolution choose from, independently; 32 is float."""
    space: Literal["full", "precision", "architecture"] = "full"
    """What is searched: all; precision: bit-widths of the largest architecture; architecture: all layers at the
    largest bit-width."""
    mixed_subnets: int = 4
    """Random subnets per step of mixed precision, beside the largest and the smallest."""
    activations: Literal["batchquant", "lsq", "running"] = "batchquant"
    """Activation quantizer: QFA's; learned step sizes; moving averages of the range."""
    depthwise_floor: int = 1
    """Least bit-width of depthwise weights; 1: all of `bits`."""
    range_batch: int | None = None
    """Images per batch from which the activation ranges of a subnet are estimated when it is measured. The range of a
    batch grows with it: as many as it is taken from in training. Default: the batch size, right for one process and
    with synchronised ranges."""
    sync_ranges: bool = True
    """With several processes: ranges from the whole batch instead of each process's part, unless they train
    independent architectures."""
    learned_offsets: float = 0.5
    """Share of the last stage in which BatchQuant's offsets are learned; afterwards they are zero and zero points are
    whole numbers, as integer kernels need. 1, the paper: to the end, and rounded when a subnet is deployed."""

    def __post_init__(self):
        """Refuse impossible options before any training."""
        TrainingOptions.__post_init__(self)
        SupernetOptions.__post_init__(self)
        allowed = {*range(1, 9), FLOAT_BITS}
        if not set(self.bits) <= allowed or min(self.bits, default=FLOAT_BITS) == FLOAT_BITS:
            raise ValueError(f"bits {self.bits}: use bit-widths from 1 to 8, and 32 for float, for example 2 3 4")
        if len(set(self.bits)) < len(self.bits):
            raise ValueError(f"bits {self.bits}: use each once")
        check_ranges(self, depthwise_floor=(1, max(b for b in self.bits if b < FLOAT_BITS)))
        check_ranges(self, mixed_subnets=(0, 1000), range_batch=(2, 65_536), learned_offsets=(0, 1))
        if INPUT_QUANTIZERS[self.activations].counts_batches and self.checkpoint_activations:
            raise ValueError(
                f"activations {self.activations}: not with checkpoint_activations, which moves averages twice"
            )

    def schedule(self, stage: str, data: Data) -> Schedule:
        """Steps and learning rate of a stage; the one with float among the bit-widths is half as long as the last."""
        schedule = super().schedule(stage, data)
        if stage == "float":
            return self.started(schedule)
        schedule = replace(schedule, lr=self.quantized_lr, muon_lr=self.quantized_muon_lr)
        if stage == "mixed":
            return schedule
        return replace(schedule, steps=max(1, schedule.steps // 2), warmup=schedule.warmup // 2)

    def calibration_batch(self, images: int) -> int:
        """Images per batch of `calibration`: as many as in training, whose ranges they have."""
        return self.range_batch or self.batch(images)

    @property
    def shares_ranges(self) -> bool:
        """Whether the processes of a training take BatchQuant's ranges from the whole batch."""
        return self.sync_batch_norm or (self.sync_ranges and not self.independent_archs)

    def check_files(self) -> None:
        """Raise ValueError if networks that this trains cannot be written to files."""
        if min(self.bits) < 2:
            raise ValueError("bits: files hold 2 bits and more; 1 can only be trained and searched")


def stages(cfg: Config) -> tuple[str, ...]:
    """Names of the stages in training order."""
    return STAGES


# -- the space


def mixed_precision(cfg: Config, model: ElasticConfig, with_float: bool = False) -> tuple[ElasticConfig, SearchSpace]:
    """Configuration and space in which every convolution of `model` has its own bit-widths."""
    bits = tuple(sorted({*cfg.bits, FLOAT_BITS} if with_float else cfg.bits))
    config = replace(model, weight_bits=bits, act_bits=bits, steps_per_bits=True, act_quantizer=cfg.activations)
    space = space_of(config)
    kept: dict[str, int | tuple[int, ...]] = {
        f"{name}.weight_bits": tuple(b for b in bits if b >= cfg.depthwise_floor)
        for name, spec in space.layers(space.largest()).items()
        if spec.depthwise and len(space.choices[f"{name}.weight_bits"]) > 1
    }
    if cfg.space == "precision":
        kept |= {name: max(values) for name, values in space.choices.items() if not name.endswith("_bits")}
    if cfg.space == "architecture":
        for name in bit_choices(space):
            kept[name] = tuple(b for b in space.choices[name] if b >= max(cfg.bits))
    return config, space.restrict(kept)


# -- training


def searched_spaces(cfg: Config, model: ElasticConfig) -> list[SearchSpace]:
    """The space of mixed precision."""
    return [mixed_precision(cfg, model)[1]]


def train(cfg: Config, run: Run, only: Mapping[str, Any] | None = None) -> None:
    """Train every stage that has no checkpoint yet; each leaves `<stage>.safetensors` in the run folder.

    The float supernet, whose largest subnet teaches; then mixed precision with float among the bit-widths, which eases
    the start; then without. `only` restricts the space (names of choices to values).
    """
    check_processes(cfg)
    cfg = agreed("qfa", cfg, run)
    mixed = [mixed_stage(cfg, run, name, only or {}) for name in STAGES[1:]]
    run_stages([float_stage(cfg, run, only or {}), *mixed], run, cfg.seed)


def float_stage(cfg: Config, run: Run, only: Mapping[str, Any]) -> Stage:
    """The training of the float network that teaches; with `float_sandwich` of its subnets, too."""
    architecture = {name: value for name, value in only.items() if not name.endswith("_bits")}

    def train(supernet: Network) -> None:
        train_float(supernet, cfg, run.data, run.folder, every_size=True)

    start = partial(start_float, folder=run.folder, init=cfg.init, classes=run.data.classes)
    return Stage("float", run.model, space_of(run.model).restrict(architecture), start, train)


def mixed_stage(cfg: Config, run: Run, name: str, only: Mapping[str, Any]) -> Stage:
    """The training of a supernet of mixed precision, taught by the float supernet: the first, or the last."""
    assert isinstance(run.model, ElasticConfig)  # one of `families`
    config, space = mixed_precision(cfg, run.model, with_float=name == "mixed-float")
    space, data = space.restrict(only), run.data

    def start(supernet: Network) -> None:
        if name == "mixed-float":
            start_quantizers(load_supernet(run.folder, "float", data.device), supernet, data, cfg)
        else:
            supernet.load_state_dict(load_supernet(run.folder, "mixed-float", data.device).state_dict())

    def train(supernet: Network) -> None:
        floats = load_supernet(run.folder, "float", data.device)
        teacher = Teacher(floats, space.choices["resolution"], cfg.calibration(data))
        step = training_step(supernet, teacher, cfg, cfg.loss(data), is_last=name == "mixed")
        ends = [with_uniform_bits(space, space.largest(), max(cfg.bits)), space.smallest()]
        train_supernet(supernet, step, cfg, data, run.folder, name, ends, 2 + cfg.mixed_subnets)

    return Stage(name, config, space, start, train)


def start_quantizers(float_supernet: Network, supernet: Network, data: Data, cfg: Config) -> None:
    """Weights from the float supernet; every step size from the weights and activations it will quantize."""
    missing = supernet.load_state_dict(float_supernet.state_dict(), strict=False).missing_keys
    assert all("_quantizer." in key for key in missing), missing
    images, _ = next(train_batches(data, 256, seed=cfg.seed, crop="none"))
    initialise_quantizers(supernet, images)


class Teacher:
    """The largest float subnet, with batch-norm statistics of its own for every resolution."""

    def __init__(self, supernet: Network, resolutions: Sequence[int], calibration: list[tuple[Tensor, Tensor]]):
        largest = supernet.space.largest()
        self.archs = {r: largest.replace(resolution=r) for r in resolutions}
        self.subnets = {r: calibrated_subnet(supernet, arch, calibration) for r, arch in self.archs.items()}

    @torch.no_grad()
    def __call__(self, images: Tensor, resolution: int) -> Tensor:
        """Soft answers (N, classes) on normalised images (N, C, S, S)."""
        return self.subnets[resolution](images, self.archs[resolution]).softmax(1)


def training_step(supernet: Network, teacher: Teacher, cfg: Config, loss: Loss, is_last: bool) -> StepFunction:
    """Six subnets accumulate gradients: the largest, random ones, the smallest; each learns labels and soft answers.

    Largest and smallest have one random kernel size and one random bit-width for all layers and the highest and lowest
    resolution; everything about the others is random.
    """
    quantizers = [layer.act_quantizer for _, layer in elastic_layers(supernet) if layer.act_quantizer is not None]
    offsets = [offset for quantizer in quantizers for offset in quantizer.free_offsets()]

    def step(images: Tensor, labels: Tensor, rng: np.random.Generator, done: float) -> Tensor:
        archs = step_archs(supernet.space, cfg, own_rng(cfg, rng))
        shared, losses, taught = SharedWeights(), [], {}
        how = pass_of_step(cfg, shared)
        held = offsets if is_last and done >= cfg.learned_offsets else []
        with torch.no_grad():
            for offset in held:
                offset.zero_()
        for arch in archs:
            if (resolution := arch["resolution"]) not in taught:
                taught[resolution] = teacher(images, resolution)
            logits = supernet(images, arch, how)  # (N, classes)
            hard_loss = loss(logits, labels)
            ((hard_loss + loss.taught(logits, taught[resolution], labels)) / len(archs)).backward()
            losses.append(hard_loss.detach())
        shared.backward()
        for offset in held:
            offset.grad = None
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
        widths = sorted(open_bits(space))
        bits = int(rng.choice(widths)) if widths else 0
        return with_uniform_bits(space, {**arch, **one_kernel}, bits)

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
    archs = [end(space.largest()), *random, end(space.smallest())]
    return list(dict.fromkeys(archs))  # a network alone: once


# -- predictor and search

EVALUATIONS = 200  # subnets measured for the predictor where the options leave it open


@dataclass(frozen=True)
class SearchOptions(PredictedOptions, FrontOptions, BudgetOptions):
    """Options of QFA's search, which measures subnets for an accuracy predictor and then what that finds best."""

    searcher: str | None = None
    """Search by measuring alone, without the accuracy predictor and NSGA-II on it: nsga2 is genetic, random the
    baseline, coarse_to_fine OQAT's own."""
    evaluations: int | None = None
    """Subnets measured for the accuracy predictor, 200 if not given; `run --hours` then measures fewer where time is
    short. Given with a budget and a predictor from before, so many are measured in all and it learns again."""

    def __post_init__(self):
        """Refuse impossible options before any work."""
        BudgetOptions.__post_init__(self)
        FrontOptions.__post_init__(self)
        PredictedOptions.__post_init__(self)


def check(cfg: Config, options: SearchOptions, model: ElasticConfig) -> None:
    """Before anything is trained, raise BudgetError if a budget is below the smallest subnet, ValueError if too few
    subnets are to be measured for a predictor, if processes cannot share the work, or if an option of the network has
    no effect."""
    if not getattr(model, "signed_activations", True) and cfg.activations != "lsq":
        raise ValueError(
            f"signed_activations: ranges of {cfg.activations} reach below zero by themselves; with QFA it is an option "
            "of activations lsq alone"
        )
    check_processes(cfg)
    check_reachable(mixed_precision(cfg, model)[1], options.budgets)
    check_evaluations(options)


def measured(cfg: Config, options: SearchOptions) -> tuple[int, int]:
    """Subnets that a search measures, those of the fronts included, and members that it hands out."""
    fronts = 0 if options.searcher else (1 + len(cfg.bits)) * options.front_members
    return (options.evaluations or EVALUATIONS) + fronts, 2 if options.budgets else 4


def check_processes(cfg: Config) -> None:
    """Raise ValueError if several processes cannot train this."""
    if INPUT_QUANTIZERS[cfg.activations].counts_batches and distributed.world_size() > 1:
        raise ValueError(f"activations {cfg.activations}: moving averages are not shared by processes; use one process")


def check_evaluations(options: SearchOptions) -> None:
    """Raise ValueError if too few subnets are to be measured for a predictor."""
    if options.searcher is None and (options.evaluations or EVALUATIONS) < LEAST_PAIRS:
        raise ValueError(
            f"evaluations {options.evaluations}: the accuracy predictor needs at least {LEAST_PAIRS} measured subnets; "
            "or search without it, for example by the searcher nsga2"
        )


def choose(cfg: Config, options: SearchOptions, run: Run) -> list[Member]:
    """Choose subnets of a trained supernet, without retraining.

    Without budgets: measure some subnets on the validation images, fit the accuracy predictor, find its front by
    NSGA-II, measure that and the fronts of uniform bit-widths, and choose three members (S, M, L). With budgets and a
    predictor from before: the most accurate subnet within them, in seconds. A `searcher` leaves the predictor out.
    Everything measured appends to `measurements.jsonl`. The members are added to `family.json` with their test
    accuracies, and returned. Raises BudgetError before any measurement if a budget cannot be met.
    """
    cfg, data = agreed("qfa", cfg, run), run.data
    supernets = {stage: load_supernet(run.folder, stage, data.device) for stage in ("float", "mixed")}
    supernet, space, judge = supernets["mixed"], supernets["mixed"].space, Judge(data, cfg.calibration(data))
    check_reachable(space, options.budgets)
    find_cost(options.front, run.costs)
    memory = MeasurementFile(run.folder / "measurements.jsonl", "mixed", space, run.costs, metric := options.metric)
    evaluations, wanted = options.evaluations or EVALUATIONS, (options.budgets, options.front)
    path, predictor, learned = run.folder / "predictor.safetensors", None, set()
    if options.searcher or space.size() <= evaluations:  # so small a space is measured whole
        searcher = options.searcher or "random"
        search_by_measuring(supernet, memory, searcher, evaluations, *wanted, judge, cfg.seed)
    else:
        has_predictor = bool(options.budgets) and distributed.from_main(lambda: metric_of(path)) == metric
        fit_again = not has_predictor or options.evaluations is not None  # the first search, or more to learn from
        if fit_again:
            check_evaluations(options)
            codes = learning_codes(space, np.random.default_rng(cfg.seed), evaluations)
            measure_codes(supernet, memory, codes, LEARNING, judge)
        learned = distributed.from_main(lambda: learned_from(memory, LEARNING if fit_again else None))
        predictor = measure_predicted(supernet, memory, cfg.bits, *wanted, options, path, judge, cfg.seed, fit_again)

    def about(arch: Arch) -> dict[str, float]:
        """What the predictor of this search said, if it had not learned from it, and what whole zero points cost."""
        codes, unseen = space.encode(arch)[None], space.brief(arch) not in learned
        known = {f"{metric}_predicted": float(predictor.accuracy(codes)[0])} if predictor and unseen else {}
        return {**known, "top1_before_folding": judge.validation(supernet, arch, fold=False).top1}

    picks = [float_pick("float-max", supernets["float"], judge, run.folder, metric)]
    picks += chosen_picks(memory, *wanted, space, more=about)
    replaced = set() if options.budgets else {f"mixed-{letter}" for letter in "SML"}
    return hand_out(picks, supernets.__getitem__, judge, run.folder, replaced)
