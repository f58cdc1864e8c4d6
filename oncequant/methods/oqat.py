"""Once Quantization-Aware Training (OQAT). Shen et al., 2020. https://arxiv.org/abs/2010.04354

Idea. All subnets of a weight-sharing supernet share, layer by layer, the weights W and the step sizes s of an LSQ
quantizer. One supernet is trained per bit-width K with the sandwich rule and in-place distillation; the supernet of
the next lower bit-width starts from it (bit inheritance), so that 2 bits are reached by float -> 4 -> 3 -> 2. Subnets
are deployed from the supernets without retraining, after their batch norm has been calibrated.

Symbols.  K: bits   s: step_size   W: weight   Q_K(v; s): fake_quantize(v, s, K)

Differences from the paper and the official evaluation code are numbered in docs/oqat.md: (1) a signed activation grid
after linear bottlenecks; (2) 8-bit first convolution, classifier and squeeze-and-excite; (3) in float the largest
network alone at growing resolution, where OFA shrinks progressively; (4) Muon for the weights of dense convolutions;
(5) more than half of the quantized steps for the first bit-width, smaller learning rates for the others; (6) a step
trains the largest subnet and one other, which learns half from labels and counts three quarters, and images grow over
the first bit-width, too.

Run. `oncequant run --data digits`, recipes/oqat_cifar10.sh.      Results. results/README.md
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from oncequant import distributed
from oncequant.agreed import agreed
from oncequant.arch import FLOAT_BITS
from oncequant.cost import Budget, find_cost
from oncequant.data import Data, train_batches
from oncequant.family import ElasticConfig, with_bits
from oncequant.initial import start_float
from oncequant.measure import Judge, initialise_quantizers
from oncequant.models import families_with, space_of
from oncequant.network import Network, elastic_layers
from oncequant.progress import console
from oncequant.records import Member
from oncequant.run_folder import Run, preset_for
from oncequant.sandwich import sandwich_training, train_float, train_supernet
from oncequant.schedule import Schedule
from oncequant.search import BudgetOptions, FrontOptions
from oncequant.search.budget import BudgetError, check_reachable
from oncequant.search.family import chosen_picks, float_pick, hand_out, search_by_measuring
from oncequant.search.measurements import MeasurementFile
from oncequant.space import SearchSpace
from oncequant.stages import Stage, run_stages
from oncequant.supernet_file import load_supernet
from oncequant.train import SupernetOptions, TrainingOptions

FIRST, BETWEEN, LAST = 10, 3, 5  # parts of the quantized steps: long stages learn more than several short ones
LATER_RATES = 0.25  # of the learning rates, for bit-widths that inherit from a higher one
LARGE_BATCH_STEPS = 500  # of a stage at least, with `duration` 1, before batches are larger than 64

families = families_with("weight_bits")
preset = preset_for


@dataclass(frozen=True)
class Config(SupernetOptions, TrainingOptions):
    """Options of OQAT training."""

    bit_schedule: tuple[int, ...] = (4, 3, 2)
    """Bit-widths in training order, each inherits from the one before, the first from the float supernet."""
    epochs: int = 14
    """Epochs of a quantized stage in the mean: the first trains longer than this, the others less."""
    min_steps: int = 250
    """Least steps per stage, quantized ones in the mean: small data sets need more epochs."""

    def __post_init__(self):
        """Refuse impossible schedules before any training."""
        TrainingOptions.__post_init__(self)
        SupernetOptions.__post_init__(self)
        widths = self.bit_schedule
        if any(not 2 <= bits <= 8 for bits in widths) or list(widths) != sorted(set(widths), reverse=True):
            raise ValueError(f"bit_schedule {widths}: use falling bit-widths from 8 to 2, for example 4 3 2")

    def batch(self, images: int) -> int:
        """Images per step, of so many training images. Muon learns more from larger batches (docs/log.md)."""
        if self.batch_size is not None or self.optimizer != "muon":
            return super().batch(images)
        most = min(self.float_epochs, self.epochs) * images / LARGE_BATCH_STEPS
        return max(size for size in (64, 128, 256) if size <= max(64, most))

    def schedule(self, stage: str, data: Data) -> Schedule:
        """Steps and learning rate of a stage."""
        schedule = super().schedule(stage, data)
        if stage == "float":
            return self.started(schedule)
        steps = max(1, round(self.share(stage) * schedule.steps))
        rate = 1.0 if stage == stage_name(self.bit_schedule[0]) else LATER_RATES
        lr, muon_lr = rate * self.quantized_lr, rate * self.quantized_muon_lr
        return replace(schedule, steps=steps, warmup=steps // 20, lr=lr, muon_lr=muon_lr)

    def share(self, stage: str) -> float:
        """How many times as long as `epochs` say a bit-width trains; 1 in the mean over all of them.

        What the first has learned all others inherit. Two stages of half the length, the second of which starts with
        large steps again, do not reach what one does (docs/log.md).
        """
        count = len(self.bit_schedule)
        parts = [FIRST, *[BETWEEN] * (count - 2), LAST][:count]
        return count * parts[self.bit_schedule.index(int(stage.removesuffix("bit")))] / sum(parts)

    @property
    def rehearsed(self) -> Self:
        """Bit-widths differ in the numbers of the grid alone, so one stands for all."""
        return replace(self, bit_schedule=self.bit_schedule[:1])


def stages(cfg: Config) -> tuple[str, ...]:
    """Names of the stages in training order: float, 4bit, 3bit, 2bit."""
    return ("float", *(stage_name(bits) for bits in cfg.bit_schedule))


def stage_name(bits: int) -> str:
    """Name of the stage of a bit-width: float, 4bit, ..."""
    return "float" if bits == FLOAT_BITS else f"{bits}bit"


def searched_spaces(cfg: Config, model: ElasticConfig) -> list[SearchSpace]:
    """The spaces of all bit-widths, the lowest last; without any, that in float."""
    return [space_of(with_bits(model, bits)) for bits in cfg.bit_schedule or (FLOAT_BITS,)]


def train(cfg: Config, run: Run, only: Mapping[str, Any] | None = None) -> None:
    """Train every stage that has no checkpoint yet; each leaves `<stage>.safetensors` in the run folder.

    `only` restricts the space (names of choices to values): with a whole architecture it is trained alone, the
    fixed-precision baseline.
    """
    cfg = agreed("oqat", cfg, run)
    widths = (FLOAT_BITS, *cfg.bit_schedule)
    run_stages([stage_of(cfg, run, *pair, only) for pair in zip(widths, (None, *widths))], run, cfg.seed)


def stage_of(cfg: Config, run: Run, bits: int, higher: int | None, only: Mapping[str, Any] | None) -> Stage:
    """The training of the supernet of a bit-width, which inherits from that of a `higher` one, if there is one."""
    assert isinstance(run.model, ElasticConfig)  # one of `families`
    name, config, only = stage_name(bits), with_bits(run.model, bits), dict(only or {})
    first = higher == FLOAT_BITS  # of the quantized stages
    is_alone = space_of(config).restrict(only).size() == 1
    if is_alone:
        cfg = replace(cfg, random_subnets=0, always_smallest=False)
    grows = is_alone and first if higher is not None else not cfg.float_sandwich
    if grows and "resolution" in only:
        only["resolution"] = tuple(size for size in sorted(config.resolutions) if size <= only["resolution"])

    def start(supernet: Network) -> None:
        if higher is None:
            start_float(supernet, run.folder, cfg.init, run.data.classes)
        else:
            inherit_bits(load_supernet(run.folder, stage_name(higher), run.data.device), supernet, run.data, cfg)

    def train(supernet: Network) -> None:
        if higher is None:
            train_float(supernet, cfg, run.data, run.folder)
        else:
            train_supernet(supernet, sandwich_training(supernet, cfg, run.data, first), cfg, run.data, run.folder, name)

    return Stage(name, config, space_of(config).restrict(only), start, train)


def inherit_bits(higher: Network, lower: Network, data: Data, cfg: Config) -> None:
    """Bit inheritance: start a supernet from the one of the next higher bit-width.

    W_{K-1} = W_K and s_{K-1} = 2 s_K, so that |Q_{K-1}(v; 2s) - Q_K(v; s)| <= s for every v. From float, the step
    sizes are initialised from data. Layers that keep their bits (the edges) keep their step sizes.
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


EVALUATIONS = 60  # subnets measured per bit-width where the options leave it open


@dataclass(frozen=True)
class SearchOptions(FrontOptions, BudgetOptions):
    """Options of OQAT's search, which measures subnets of each bit-width."""

    searcher: str = "coarse_to_fine"
    """Who proposes the subnets that are measured: coarse_to_fine is OQAT's own; nsga2 is genetic; random the
    baseline."""
    evaluations: int | None = None
    """Subnets measured per bit-width, 60 if not given; `run --hours` then measures fewer where time is short."""

    def __post_init__(self):
        """Refuse impossible options before any work."""
        BudgetOptions.__post_init__(self)
        FrontOptions.__post_init__(self)


def check(cfg: Config, options: SearchOptions, model: ElasticConfig) -> None:
    """Before anything is trained, raise BudgetError if no bit-width has a subnet within the budgets."""
    reachable({bits: space_of(with_bits(model, bits)) for bits in cfg.bit_schedule}, options.budgets)


def measured(cfg: Config, options: SearchOptions) -> tuple[int, int]:
    """Subnets that a search measures, and members that it hands out."""
    widths = len(cfg.bit_schedule)
    return widths * (options.evaluations or EVALUATIONS), 1 + widths * (1 if options.budgets else 3)


def reachable(spaces: Mapping[int, SearchSpace], budgets: Sequence[Budget]) -> list[int]:
    """The bit-widths whose space has an architecture within all budgets. Raises BudgetError if there is none."""
    found: list[int] = []
    for bits, space in sorted(spaces.items(), reverse=True):
        try:
            check_reachable(space, budgets)
        except BudgetError:
            if not found and bits == min(spaces):  # the cheapest, so its error says what can be reached
                raise
        else:
            found.append(bits)
    return found


def choose(cfg: Config, options: SearchOptions, run: Run) -> list[Member]:
    """Choose subnets of every bit-width by measured validation accuracy, without retraining.

    Under budgets the most accurate subnet of each bit-width; without, three along its Pareto front (S, M, L), as the
    paper's OQATNets. Works on the stages trained so far. Measurements append to `measurements.jsonl`. The
    members are added to `family.json` with their test accuracies, and returned. Bit-widths too large for the budgets
    are left out. Raises BudgetError before any measurement if all are, FileError if no stage is trained.
    """
    cfg = agreed("oqat", cfg, run)
    folder, wanted, costs = run.folder, (options.budgets, options.front), run.costs
    find_cost(options.front, costs)
    trained = distributed.from_main(lambda: [s for s in stages(cfg) if (folder / f"{s}.safetensors").exists()])
    supernets = {stage: load_supernet(folder, stage, run.data.device) for stage in trained or stages(cfg)[:1]}
    spaces = {int(stage.removesuffix("bit")): supernets[stage].space for stage in trained if stage != "float"}
    widths = reachable(spaces, options.budgets)
    if too_large := [f"{bits} bits" for bits in spaces if bits not in widths]:
        console.print(f"left out, since no subnet is within the budgets: {', '.join(too_large)}", soft_wrap=True)
    judge = Judge(run.data, cfg.calibration(run.data))
    picks = [float_pick("float-max", supernets["float"], judge, folder, options.metric)]
    for bits, space in spaces.items():
        if bits in widths:
            stage = stage_name(bits)
            memory = MeasurementFile(folder / "measurements.jsonl", stage, space, costs, options.metric)
            how = options.searcher, options.evaluations or EVALUATIONS, *wanted
            search_by_measuring(supernets[stage], memory, *how, judge, cfg.seed)
            picks += chosen_picks(memory, *wanted, space, bits)
    # an earlier family of these stages may have had more members
    replaced = set() if options.budgets else {f"{stage_name(bits)}-{letter}" for bits in widths for letter in "SML"}
    return hand_out(picks, supernets.__getitem__, judge, folder, replaced)
