"""Once Quantization-Aware Training (OQAT). Shen et al., 2020. https://arxiv.org/abs/2010.04354

Idea. All subnets of a weight-sharing supernet share, layer by layer, the weights W and the step sizes s of an LSQ
quantizer. One supernet is trained per bit-width K with the sandwich rule and in-place distillation; the supernet of
the next lower bit-width starts from it (bit inheritance), so that 2 bits are reached by float -> 4 -> 3 -> 2. Subnets
are deployed from the supernets without retraining, after their batch norm has been calibrated.

Symbols.  K: bits   s: step_size   W: weight   Q_K(v; s): fake_quantize(v, s, K)

Differences from the paper and the official evaluation code, measured in docs/oqat.md: (1) a signed activation grid
after linear bottlenecks; (2) 8-bit first convolution, classifier and squeeze-and-excite; (3) the sandwich rule for
the float supernet, where OFA shrinks progressively.

Run. `oncequant run --data digits`, recipes/oqat_cifar10.sh.      Results. results/README.md
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from oncequant.arch import FLOAT_BITS
from oncequant.checkpoint import load_supernet, save_supernet
from oncequant.data import Data, calibration_batches, eval_batches, steps_per_epoch, train_batches
from oncequant.evaluate import measure
from oncequant.models.mobilenet_v3 import MobileNetV3, MobileNetV3Config, elastic_layers, with_bits
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
    min_steps: int = 150
    """Least steps per stage, for small data sets."""
    batch_size: int = 64
    lr: float = 3e-3
    """Peak learning rate of the float supernet."""
    quantized_lr: float = 1e-3
    """Peak learning rate of the quantized supernets, which are fine-tuned."""
    optimizer: str = "adamw"
    """adamw or sgd (Nesterov)."""
    weight_decay: float = 3e-5
    random_subnets: int = 2
    """Random architectures per step beside the largest and the smallest."""
    label_smoothing: float = 0.1
    calibration_images: int = 2000
    """Training images from which batch-norm statistics of a subnet are estimated."""
    seed: int = 0

    def __post_init__(self):
        """Refuse impossible schedules before any training."""
        widths = self.bit_schedule
        if any(not 2 <= bits <= 8 for bits in widths) or list(widths) != sorted(set(widths), reverse=True):
            raise ValueError(f"bit_schedule {widths}: use falling bit-widths from 8 to 2, for example 4 3 2")
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
    """"float" or "<K>bit"."""
    return "float" if bits == FLOAT_BITS else f"{bits}bit"


def train(cfg: Config, model: MobileNetV3Config, data: Data, run_dir: Path) -> None:
    """Train every stage that has no checkpoint yet; each stage leaves `<stage>.safetensors` in `run_dir`."""
    previous = FLOAT_BITS
    for bits in (FLOAT_BITS, *cfg.bit_schedule):
        stage = stage_name(bits)
        if not (run_dir / f"{stage}.safetensors").exists():
            torch.manual_seed(cfg.seed)
            supernet = MobileNetV3(with_bits(model, bits)).to(data.device, memory_format=torch.channels_last)
            if bits < FLOAT_BITS:
                inherit_bits(load_supernet(run_dir, stage_name(previous), data.device), supernet, data, cfg)
            train_supernet(supernet, cfg, data, run_dir, stage)
            save_supernet(run_dir, stage, supernet)
            (run_dir / f"{stage}.resume.pt").unlink(missing_ok=True)
        previous = bits


def inherit_bits(higher: MobileNetV3, lower: MobileNetV3, data: Data, cfg: Config) -> None:
    """Start a supernet from the one of the next higher bit-width (section 3.3).

    W_{K-1} = W_K and s_{K-1} = 2 s_K, so that |Q_{K-1}(v; 2s) - Q_K(v; s)| <= s for every v. From float, the step
    sizes are initialised from data. Layers that keep their bits (the 8-bit edges) keep their step sizes.
    """
    lower.load_state_dict(higher.state_dict(), strict=False)  # from float, step sizes are missing
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
        x, spec = inputs
        if layer.weight_quantizer is not None:
            layer.act_quantizer.initialise(x, spec.act_bits, spec.signed_input)
            layer.weight_quantizer.initialise(layer.sliced_weight(spec), spec.weight_bits, signed=True)

    hooks = [layer.register_forward_pre_hook(initialise) for _, layer in elastic_layers(supernet)]
    supernet.train()
    supernet(images, supernet.space.largest())
    for hook in hooks:
        hook.remove()


def train_supernet(supernet: MobileNetV3, cfg: Config, data: Data, run_dir: Path, stage: str) -> None:
    """Sandwich rule with in-place distillation over the whole space (section 3.2)."""

    def step(images: torch.Tensor, labels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        archs = sandwich_archs(supernet.space, cfg.random_subnets, rng)
        return sandwich_step(supernet, images, labels, archs, cfg.label_smoothing)

    fit(
        supernet,
        step,
        data,
        cfg.schedule(stage, data),
        stage=stage,
        run_dir=run_dir,
        seed=cfg.seed,
        evaluate=validation_metrics(supernet, cfg, data),
    )


def validation_metrics(supernet: MobileNetV3, cfg: Config, data: Data) -> Callable[[], dict[str, float]]:
    """Validation top-1 of the largest and the smallest subnet, calibrated."""
    calibration = calibration_batches(data, cfg.calibration_images, 250, cfg.seed)

    def evaluate() -> dict[str, float]:
        ends = {"top1_largest": supernet.space.largest(), "top1_smallest": supernet.space.smallest()}
        batches = list(eval_batches(data, data.validation))
        return {name: measure(supernet, arch, calibration, batches) for name, arch in ends.items()}

    return evaluate
