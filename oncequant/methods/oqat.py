"""Once Quantization-Aware Training (OQAT). Shen et al., 2020. https://arxiv.org/abs/2010.04354

Idea. All subnets of a weight-sharing supernet share, layer by layer, the weights W and the step sizes s of an LSQ
quantizer. One supernet is trained per bit-width K with the sandwich rule and in-place distillation; the supernet of
the next lower bit-width starts from it (bit inheritance), so that 2 bits are reached by float -> 4 -> 3 -> 2. Subnets
are deployed from the supernets without retraining, after their batch norm has been calibrated.

Symbols.  K: bits   s: step_size   W: weight   Q_K(v; s): fake_quantize(v, s, K)

Differences from the paper and the official evaluation code are numbered in docs/oqat.md: (1) a signed activation grid
after linear bottlenecks; (2) 8-bit first convolution, classifier and squeeze-and-excite; (3) the sandwich rule for
the float supernet, where OFA shrinks progressively.

Run. `oncequant run --data digits`, recipes/oqat_cifar10.sh.      Results. results/README.md
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from oncequant import distributed
from oncequant.arch import FLOAT_BITS
from oncequant.cost import Budget
from oncequant.data import Data, train_batches
from oncequant.family import ElasticConfig, with_bits
from oncequant.measure import Judge, initialise_quantizers
from oncequant.models import build_network, families_with, space_of
from oncequant.network import Network, elastic_layers
from oncequant.progress import console
from oncequant.records import Member
from oncequant.run_folder import preset_for
from oncequant.sandwich import sandwich_training, train_supernet
from oncequant.search import BudgetOptions, FrontOptions
from oncequant.search.budget import BudgetError, check_reachable
from oncequant.search.family import Pick, chosen_measurements, record_family, search_by_measuring
from oncequant.search.measurements import MeasurementFile
from oncequant.space import SearchSpace
from oncequant.supernet_file import load_supernet, save_supernet
from oncequant.train import Schedule, SupernetOptions, TrainingOptions

families = families_with("weight_bits")
preset = preset_for


@dataclass(frozen=True)
class Config(SupernetOptions, TrainingOptions):
    """Options of OQAT training."""

    bit_schedule: tuple[int, ...] = (4, 3, 2)
    """Bit-widths in training order, each inherits from the one before, the first from the float supernet."""

    def __post_init__(self):
        """Refuse impossible schedules before any training."""
        TrainingOptions.__post_init__(self)
        SupernetOptions.__post_init__(self)
        widths = self.bit_schedule
        if any(not 2 <= bits <= 8 for bits in widths) or list(widths) != sorted(set(widths), reverse=True):
            raise ValueError(f"bit_schedule {widths}: use falling bit-widths from 8 to 2, for example 4 3 2")

    def schedule(self, stage: str, data: Data) -> Schedule:
        """Steps and learning rate of a stage."""
        schedule = super().schedule(stage, data)
        return schedule if stage == "float" else replace(schedule, lr=self.quantized_lr)


def stages(cfg: Config) -> tuple[str, ...]:
    """Names of the stages in training order: float, 4bit, 3bit, 2bit."""
    return ("float", *(stage_name(bits) for bits in cfg.bit_schedule))


def stage_name(bits: int) -> str:
    """Name of the stage of a bit-width: float, 4bit, ..."""
    return "float" if bits == FLOAT_BITS else f"{bits}bit"


def searched_space(cfg: Config, model: ElasticConfig) -> SearchSpace:
    """The space of the lowest bit-width."""
    return space_of(with_bits(model, min(cfg.bit_schedule, default=FLOAT_BITS)))


def train(cfg: Config, model: ElasticConfig, data: Data, run_dir: Path, only: Mapping[str, Any] | None = None) -> None:
    """Train every stage that has no checkpoint yet; each stage leaves `<stage>.safetensors` in `run_dir`.

    `only` restricts the space (names of choices to values): with a whole architecture it is trained alone, the
    fixed-precision baseline.
    """
    previous = FLOAT_BITS
    for bits in (FLOAT_BITS, *cfg.bit_schedule):
        stage = stage_name(bits)
        if not distributed.from_main((run_dir / f"{stage}.safetensors").exists):
            torch.manual_seed(cfg.seed)
            config = with_bits(model, bits)
            supernet = build_network(config, space_of(config).restrict(only or {}))
            supernet = supernet.to(data.device, memory_format=torch.channels_last)
            if bits < FLOAT_BITS:
                inherit_bits(load_supernet(run_dir, stage_name(previous), data.device), supernet, data, cfg)
            train_supernet(supernet, sandwich_training(supernet, cfg), cfg, data, run_dir, stage)
            distributed.from_main(partial(save_supernet, run_dir, stage, supernet))
        previous = bits


def inherit_bits(higher: Network, lower: Network, data: Data, cfg: Config) -> None:
    """Bit inheritance: start a supernet from the one of the next higher bit-width.

    W_{K-1} = W_K and s_{K-1} = 2 s_K, so that |Q_{K-1}(v; 2s) - Q_K(v; s)| <= s for every v. From float, the step
    sizes are initialised from data. Layers that keep their bits (the 8-bit edges) keep their step sizes.
    """
    missing = lower.load_state_dict(higher.state_dict(), strict=False).missing_keys
    assert all("_quantizer." in key for key in missing), missing  # the float supernet has none
    if higher.config.is_float:
        images, _ = next(train_batches(data, 256, seed=cfg.seed, crop="none"))
        initialise_quantizers(lower, images)
        return
    arch_high, arch_low = higher.space.largest(), lower.space.largest()
    for name, layer in elastic_layers(lower):
        spec_high, spec_low = higher.space.layers(arch_high)[name], lower.space.layers(arch_low)[name]
        if layer.weight_quantizer is not None and layer.act_quantizer is not None:
            layer.weight_quantizer.drop_bits(spec_high.weight_bits - spec_low.weight_bits)
            layer.act_quantizer.drop_bits(spec_high.act_bits - spec_low.act_bits)


@dataclass(frozen=True)
class SearchOptions(FrontOptions, BudgetOptions):
    """Options of OQAT's search, which measures subnets of each bit-width."""

    searcher: str = "coarse_to_fine"
    """Who proposes the subnets that are measured: coarse_to_fine is OQAT's own; nsga2 is genetic; random the
    baseline."""
    evaluations: int = 60
    """Subnets measured per bit-width."""


def check(cfg: Config, options: SearchOptions, model: ElasticConfig) -> None:
    """Before anything is trained, raise BudgetError if no bit-width has a subnet within the budgets."""
    reachable({bits: space_of(with_bits(model, bits)) for bits in cfg.bit_schedule}, options.budgets)


def reachable(spaces: Mapping[int, SearchSpace], budgets: Sequence[Budget]) -> list[int]:
    """The bit-widths whose space has an architecture within all budgets. Raises BudgetError if there is none."""
    found = []
    for bits, space in sorted(spaces.items(), reverse=True):
        try:
            check_reachable(space, budgets)
        except BudgetError:
            if not found and bits == min(spaces):  # the cheapest, so its error says what can be reached
                raise
        else:
            found.append(bits)
    return found


def choose(cfg: Config, options: SearchOptions, data: Data, run_dir: Path) -> list[Member]:
    """Choose subnets of every bit-width by measured validation accuracy, without retraining.

    Under budgets the most accurate subnet of each bit-width; without, three along its Pareto front (S, M, L), as the
    paper's OQATNets. Works on the stages trained so far. Measurements append to `measurements.jsonl`. The
    members are added to `family.json` with their test accuracies, and returned. Bit-widths too large for the budgets
    are left out. Raises BudgetError before any measurement if all are, FileError if no stage is trained.
    """
    trained = distributed.from_main(lambda: [s for s in stages(cfg) if (run_dir / f"{s}.safetensors").exists()])
    supernets = {stage: load_supernet(run_dir, stage, data.device) for stage in trained or stages(cfg)[:1]}
    spaces = {int(stage.removesuffix("bit")): supernets[stage].space for stage in trained if stage != "float"}
    widths = reachable(spaces, options.budgets)
    if too_large := [f"{bits} bits" for bits in spaces if bits not in widths]:
        console.print(f"left out, since no subnet is within the budgets: {', '.join(too_large)}", soft_wrap=True)
    quantized = [stage_name(bits) for bits in spaces if bits in widths]
    judge = Judge(data, cfg.calibration(data))

    largest = supernets["float"].space.largest()
    top1 = judge.validation(supernets["float"], largest)
    chosen = [Pick("float-max", "float", largest, top1, FLOAT_BITS)]
    for stage in quantized:
        supernet = supernets[stage]
        memory = MeasurementFile(run_dir / "measurements.jsonl", stage)
        wanted = options.budgets, options.front
        search_by_measuring(supernet, memory, options.searcher, options.evaluations, *wanted, judge, cfg.seed)
        found = distributed.from_main(partial(chosen_measurements, memory, *wanted, supernet.space))
        chosen += [
            Pick(f"{stage}-{name}", stage, supernet.space.complete(m.arch), m.top1, int(stage.removesuffix("bit")))
            for name, m in found.items()
        ]

    def top1_test(pick: Pick) -> float:
        return judge.test(supernets[pick.stage], pick.arch)

    # an earlier family of these stages may have had more members
    replaced = set() if options.budgets else {f"{stage}-{letter}" for stage in quantized for letter in "SML"}
    spaces = {stage: supernet.space for stage, supernet in supernets.items()}
    return record_family(run_dir, chosen, spaces, top1_test, replaced)
