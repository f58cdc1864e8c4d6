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

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from oncequant import distributed
from oncequant.arch import FLOAT_BITS, Arch
from oncequant.checkpoint import load_supernet, save_supernet
from oncequant.cost import Budget
from oncequant.data import Data, calibration_batches, eval_batches, steps_per_epoch, train_batches
from oncequant.elastic import ElasticBatchNorm
from oncequant.evaluate import measure
from oncequant.files import read_json, write_json
from oncequant.models.mobilenet_v3 import MobileNetV3, MobileNetV3Config, elastic_layers, mobilenet_v3_space, with_bits
from oncequant.progress import track
from oncequant.quantizers.functional import activate
from oncequant.search import SEARCHERS
from oncequant.search.budget import check_reachable
from oncequant.search.measurements import Measurement, MeasurementFile, all_costs, read_measurements
from oncequant.search.pareto import best_under, spread
from oncequant.train import Schedule, fit, sandwich_archs, sandwich_step


@dataclass(frozen=True)
class Config:
    """Options of OQAT training."""

    bit_schedule: tuple[int, ...] = (4, 3, 2)
    """Bit-widths in training order, each inherits from the one before, the first from the float supernet."""
    epochs: int = 12
    """Epochs per quantized bit-width."""
    float_epochs: int = 16
    """Epochs of the float supernet."""
    min_steps: int = 650
    """Least steps per stage: small data sets need more epochs."""
    batch_size: int = 64
    """Images per step, of all processes together."""
    lr: float = 3e-3
    """Peak learning rate of the float supernet."""
    quantized_lr: float = 8e-3
    """Peak learning rate of the quantized supernets, which are fine-tuned."""
    optimizer: str = "adamw"
    """adamw or sgd (Nesterov)."""
    weight_decay: float = 3e-5
    random_subnets: int = 1
    """Random architectures per step beside the largest and the smallest; more of them train larger spaces better."""
    label_smoothing: float = 0.1
    calibration_images: int = 2000
    """Training images from which batch-norm statistics of a subnet are estimated."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What training steps compute in. Weights, calibration and evaluation are float32 always."""
    checkpoint_activations: bool = False
    """Keep only the inputs of blocks for the backward pass: less memory, more time."""
    independent_archs: bool = False
    """With several processes: each draws its own random architectures, so that a step trains more of them."""
    sync_batch_norm: bool = False
    """With several processes: batch-norm statistics of the whole batch instead of each process's part."""
    checkpoint_seconds: float = 60.0
    """Time between checkpoints within a stage; 0 writes one every step."""
    seed: int = 0

    def __post_init__(self):
        """Refuse impossible schedules before any training."""
        widths = self.bit_schedule
        if any(not 2 <= bits <= 8 for bits in widths) or list(widths) != sorted(set(widths), reverse=True):
            raise ValueError(f"bit_schedule {widths}: use falling bit-widths from 8 to 2, for example 4 3 2")
        if self.independent_archs and self.sync_batch_norm:
            raise ValueError(
                "sync_batch_norm needs the same architectures in every process: not with independent_archs"
            )
        if self.random_subnets < 0 or self.epochs < 1 or self.float_epochs < 1 or self.batch_size < 2:
            raise ValueError("epochs and float_epochs are at least 1, batch_size at least 2, random_subnets at least 0")

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages in training order: float, 4bit, 3bit, 2bit."""
        return ("float", *(stage_name(bits) for bits in self.bit_schedule))

    def schedule(self, stage: str, data: Data) -> Schedule:
        """Steps and learning rate of a stage on this data set."""
        is_float = stage == "float"
        steps = (self.float_epochs if is_float else self.epochs) * steps_per_epoch(data, self.batch_size)
        steps = max(steps, self.min_steps)
        lr = self.lr if is_float else self.quantized_lr
        return Schedule(
            steps, self.batch_size, lr, steps // 20, weight_decay=self.weight_decay, optimizer=self.optimizer
        )


def stage_name(bits: int) -> str:
    """Name of the stage of a bit-width: float, 4bit, ..."""
    return "float" if bits == FLOAT_BITS else f"{bits}bit"


def train(
    cfg: Config, model: MobileNetV3Config, data: Data, run_dir: Path, only: Mapping[str, Any] | None = None
) -> None:
    """Train every stage that has no checkpoint yet; each stage leaves `<stage>.safetensors` in `run_dir`.

    `only` restricts the space (names of choices to values): with a whole architecture it is trained alone, the
    fixed-precision baseline.
    """
    previous = FLOAT_BITS
    for bits in (FLOAT_BITS, *cfg.bit_schedule):
        stage = stage_name(bits)
        resume = run_dir / f"{stage}.resume.pt"
        if not distributed.from_main((run_dir / f"{stage}.safetensors").exists):
            torch.manual_seed(cfg.seed)
            config = with_bits(model, bits)
            supernet = MobileNetV3(config, mobilenet_v3_space(config).restrict(only or {}))
            supernet = supernet.to(data.device, memory_format=torch.channels_last)
            if bits < FLOAT_BITS:
                inherit_bits(load_supernet(run_dir, stage_name(previous), data.device), supernet, data, cfg)
            train_supernet(supernet, cfg, data, run_dir, stage)
            distributed.from_main(lambda: save_supernet(run_dir, stage, supernet))  # noqa: B023
        if distributed.is_main():
            resume.unlink(missing_ok=True)
        previous = bits


def inherit_bits(higher: MobileNetV3, lower: MobileNetV3, data: Data, cfg: Config) -> None:
    """Bit inheritance: start a supernet from the one of the next higher bit-width.

    W_{K-1} = W_K and s_{K-1} = 2 s_K, so that |Q_{K-1}(v; 2s) - Q_K(v; s)| <= s for every v. From float, the step
    sizes are initialised from data. Layers that keep their bits (the 8-bit edges) keep their step sizes.
    """
    missing = lower.load_state_dict(higher.state_dict(), strict=False).missing_keys
    assert all(key.endswith("step_size") for key in missing), missing  # from float there are no step sizes
    if higher.config.is_float:
        images, _ = next(train_batches(data, max(cfg.batch_size, 256), seed=cfg.seed, crop="none"))
        initialise_step_sizes(lower, images)
        return
    arch_high, arch_low = higher.space.largest(), lower.space.largest()
    for name, layer in elastic_layers(lower):
        spec_high, spec_low = higher.space.layers(arch_high)[name], lower.space.layers(arch_low)[name]
        if layer.weight_quantizer is not None:
            with torch.no_grad():
                layer.weight_quantizer.step_size.mul_(2 ** (spec_high.weight_bits - spec_low.weight_bits))
                layer.act_quantizer.step_size.mul_(2 ** (spec_high.act_bits - spec_low.act_bits))


@torch.no_grad()
def initialise_step_sizes(supernet: MobileNetV3, images: torch.Tensor) -> None:
    """LSQ's s = 2 mean|v| / sqrt(q_max) in every layer, from the largest subnet on `images` (N, C, S, S)."""

    def initialise(layer, inputs) -> None:
        x, spec, activation, *_ = inputs
        if layer.weight_quantizer is not None:
            layer.act_quantizer.initialise(activate(x, activation), spec.act_bits, spec.signed_input)
            layer.weight_quantizer.initialise(layer.sliced_weight(spec), spec.weight_bits, signed=True)

    hooks = [layer.register_forward_pre_hook(initialise) for _, layer in elastic_layers(supernet)]
    supernet.train()
    supernet(images, supernet.space.largest())
    for hook in hooks:
        hook.remove()


def train_supernet(supernet: MobileNetV3, cfg: Config, data: Data, run_dir: Path, stage: str) -> None:
    """Sandwich rule with in-place distillation over the whole space."""

    supernet.checkpoint_blocks = cfg.checkpoint_activations
    for module in supernet.modules():
        if isinstance(module, ElasticBatchNorm):
            module.synchronised = cfg.sync_batch_norm

    def step(images: torch.Tensor, labels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        if cfg.independent_archs:
            rng = rng.spawn(distributed.world_size())[distributed.rank()]
        archs = sandwich_archs(supernet.space, cfg.random_subnets, rng)
        return sandwich_step(supernet, images, labels, archs, cfg.label_smoothing, getattr(torch, cfg.precision))

    fit(
        supernet,
        step,
        data,
        cfg.schedule(stage, data),
        stage=stage,
        run_dir=run_dir,
        seed=cfg.seed,
        evaluate=validation_metrics(supernet, cfg, data),
        checkpoint_seconds=cfg.checkpoint_seconds,
    )


def validation_metrics(supernet: MobileNetV3, cfg: Config, data: Data) -> Callable[[], dict[str, float]]:
    """Validation top-1 of the largest and the smallest subnet, calibrated."""
    calibration = calibration_batches(data, cfg.calibration_images, 250, cfg.seed)

    def evaluate() -> dict[str, float]:
        def top1(arch: Arch) -> float:
            return measure(supernet, arch, calibration, eval_batches(data, data.validation))

        ends = distributed.shared_map(top1, [supernet.space.largest(), supernet.space.smallest()])
        return dict(zip(("top1_largest", "top1_smallest"), ends))

    return evaluate


@dataclass(frozen=True)
class SearchConfig:
    """Options of the search over trained supernets."""

    budgets: tuple[Budget, ...] = ()
    """Bounds every architecture must keep. Without any, a family along the Pareto front is chosen."""
    searcher: str = "coarse_to_fine"
    """coarse_to_fine (the paper's), nsga2, or random (the baseline)."""
    evaluations: int = 60
    """Architectures measured per bit-width."""
    cost: str = "bitops"
    """The cost axis of the front along which a family is spread."""

    def __post_init__(self):
        """Refuse unknown searchers before any work."""
        if self.searcher not in SEARCHERS:
            raise ValueError(f"searcher {self.searcher!r}: use one of {', '.join(SEARCHERS)}")
        if self.evaluations < 1:
            raise ValueError("evaluations is at least 1")


def check_budgets(cfg: Config, options: SearchConfig, model: MobileNetV3Config) -> None:
    """Raise BudgetError if a budget is below the smallest subnet of a bit-width, before anything is trained."""
    for bits in cfg.bit_schedule:
        check_reachable(mobilenet_v3_space(with_bits(model, bits)), options.budgets)


def search(cfg: Config, options: SearchConfig, data: Data, run_dir: Path) -> list[dict[str, Any]]:
    """Choose subnets of every bit-width by measured validation accuracy, without retraining.

    Under budgets the most accurate subnet of each bit-width; without, three along its Pareto front (S, M, L), as the
    paper's OQATNets. Works on the stages trained so far. Measurements append to `measurements.jsonl`; the choice is
    added to `family.json` with its test accuracy, and returned. Raises BudgetError before any measurement if a budget
    cannot be met, FileError if no stage is trained.
    """
    trained = distributed.from_main(lambda: [s for s in cfg.stages if (run_dir / f"{s}.safetensors").exists()])
    supernets = {stage: load_supernet(run_dir, stage, data.device) for stage in trained or cfg.stages[:1]}
    quantized = [stage for stage in trained if stage != "float"]
    for stage in quantized:
        check_reachable(supernets[stage].space, options.budgets)
    calibration = calibration_batches(data, cfg.calibration_images, 250, cfg.seed)

    family_path = run_dir / "family.json"
    family = {entry["name"]: entry for entry in (read_json(family_path) if family_path.exists() else [])}

    largest = supernets["float"].space.largest()
    top1 = measure(supernets["float"], largest, calibration, eval_batches(data, data.validation))
    chosen = [("float-max", "float", largest, top1)]
    for stage in quantized:
        supernet = supernets[stage]
        memory = MeasurementFile(run_dir / "measurements.jsonl", stage)
        found = _search_stage(supernet, memory, options, calibration, data, stage, cfg.seed)
        chosen += [(f"{stage}-{name}", stage, supernet.space.complete(m.arch), m.top1) for name, m in found.items()]

    def entry(choice: tuple[str, str, Arch, float]) -> dict[str, Any]:
        """What family.json says of a chosen subnet; the test split is used once for each."""
        name, stage, arch, top1 = choice
        space = supernets[stage].space
        brief = dict(space.brief(arch))
        known = [e["top1_test"] for e in family.values() if e["stage"] == stage and e["arch"] == brief]
        test = known[0] if known else measure(supernets[stage], arch, calibration, eval_batches(data, data.test))
        bits = FLOAT_BITS if stage == "float" else int(stage.removesuffix("bit"))
        costs = all_costs(space, arch)
        return dict(name=name, stage=stage, bits=bits, arch=brief, top1_validation=top1, top1_test=test, costs=costs)

    entries = distributed.shared_map(entry, chosen)
    if not options.budgets:  # an earlier family of these stages may have had more members
        replaced = {f"{stage}-{letter}" for stage in quantized for letter in "SML"}
        family = {name: entry for name, entry in family.items() if name not in replaced}
    family.update((entry["name"], entry) for entry in entries)
    distributed.from_main(lambda: write_json(family_path, list(family.values())))
    return entries


def _search_stage(supernet, memory, options, calibration, data, stage, seed) -> dict[str, Measurement]:
    """Search one bit-width; the chosen measurements by name."""
    space = supernet.space
    with track(f"search {stage}", options.evaluations) as bar:
        best = 0.0

        def top1(arch: Arch) -> float:
            return measure(supernet, arch, calibration, eval_batches(data, data.validation))

        def all_top1(archs: Sequence[Arch]) -> Iterator[float]:
            nonlocal best
            for value in memory.measured(space, top1, options.searcher)(archs):
                best = max(best, value)
                yield value

        SEARCHERS[options.searcher](
            space,
            all_top1,
            budgets=options.budgets,
            cost=options.cost,
            evaluations=options.evaluations,
            seed=seed,
            progress=lambda done, total: bar(done, {"best top-1": best}),
        )
    everything = distributed.from_main(lambda: [m for m in read_measurements(memory.path) if m.stage == stage])
    if options.budgets:
        return {
            "-".join(str(b).replace("<=", "") for b in options.budgets): best_under(everything, options.budgets, space)
        }
    front = spread(everything, 3, options.cost)
    return dict(zip({1: "L", 2: "SL", 3: "SML"}[len(front)], front))
