"""The training loop, `fit`.

The step (forward passes, losses, backward passes) belongs to the method; `fit` owns everything else: batches,
schedule, optimiser, logging, checkpoints, resume. Every random number of step t is a function of (seed, t), so that a
killed and resumed run equals an uninterrupted one bit for bit on CPU.
"""

import io
import math
import os
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from oncequant import distributed
from oncequant.cpu import cores
from oncequant.data import Data, calibration_batches, steps_per_epoch, train_batches
from oncequant.files import FileError, PathText, user_path, write_atomically
from oncequant.limits import RATES, SEEDS, check_ranges
from oncequant.loss import Loss, balanced_weights
from oncequant.progress import track
from oncequant.records import Metrics, Time, append_record, read_metrics, read_records, write_records
from oncequant.schedule import OPTIMIZERS, Schedule, make_optimizers

FINE_TUNED = 0.6  # of the learning rates, for weights that are trained already
PRECISIONS = ("auto", "float32", "bfloat16")
WEIGHTS = ("none", "balanced")


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what to do."""


@dataclass(frozen=True)
class TrainingOptions:
    """Options of training that all methods share; the Config of a method adds its own."""

    epochs: int = 12
    """Epochs per quantized stage."""
    float_epochs: int = 16
    """Epochs of the float stage."""
    min_steps: int = 500
    """Least steps per stage: small data sets need more epochs."""
    duration: float = 1.0
    """All stages train so many times as long as epochs and steps say."""
    batch_size: int | None = None
    """Images per step, of all processes together. Default: 64; of OQAT with muon up to 256 for many images."""
    lr: float = 3e-3
    """Peak learning rate of networks that are trained from random weights."""
    optimizer: Literal["adamw", "sgd", "muon"] = "adamw"
    """sgd has Nesterov momentum; muon trains the weights of dense convolutions, with adamw for the rest."""
    muon_lr: float = 0.2
    """Peak learning rate of muon: the part of a weight's norm that a step moves."""
    weight_decay: float = 3e-5
    """Of weights; none on batch norm, biases and quantizers."""
    clip_norm: float = 10.0
    """Largest norm of the whole gradient."""
    step_size_lr: float = 1.0
    """Learning rate of the quantizers' parameters, relative to that of the weights."""
    label_smoothing: float = 0.1
    """Share of the labels' weight that goes to all classes alike."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: images of rare classes count more."""
    calibration_images: int = 2000
    """Training images from which batch-norm statistics of a subnet are estimated."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """What training steps compute in. auto: bfloat16 where a convolution of the network is faster in it, decided once
    when the run folder is made. All else is float32 always (no TF32)."""
    checkpoint_seconds: float = 60.0
    """Time between checkpoints within a stage; 0 writes one every step."""
    seed: int = 0
    """Of the splits, the initial weights and everything that training and search draw."""

    def __post_init__(self):
        """Refuse impossible options before any training."""
        for name, allowed in (("optimizer", OPTIMIZERS), ("precision", PRECISIONS), ("class_weights", WEIGHTS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} {getattr(self, name)!r}: use one of {', '.join(allowed)}")
        check_ranges(self, epochs=(1, 100_000), float_epochs=(1, 100_000), min_steps=(0, 100_000_000))
        check_ranges(self, duration=(1e-6, 10_000), batch_size=(2, 65_536), lr=RATES, muon_lr=RATES)
        check_ranges(self, weight_decay=(0, 10), clip_norm=(1e-6, 1e9), step_size_lr=(1e-6, 1000))
        check_ranges(self, label_smoothing=(0, 0.99), calibration_images=(2, 100_000_000))
        check_ranges(self, checkpoint_seconds=(0, 1e9), seed=SEEDS)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_json` through JSON, where tuples are lists. Options that older versions had may be there with
        the value that changes nothing. Raises ValueError that names any other option that there is not."""
        known = {field.name for field in fields(cls)}
        for name in set(values) - known:
            if name not in FORMER or values[name] != FORMER[name]:
                raise ValueError(
                    f"option {name} = {values[name]!r}: this version of oncequant has no such option; use the version "
                    "that made this, or train again"
                )
        kept: dict[str, Any] = {name: value for name, value in {**UNSAID, **values}.items() if name in known}
        kept = {name: tuple(value) if isinstance(value, list) else value for name, value in kept.items()}
        return cls(**kept)

    def to_json(self) -> dict[str, Any]:
        """All options by name, as run.json keeps them: the weights to start from are found from anywhere."""
        values = asdict(self)
        if (init := values.get("init")) and user_path(init).exists():
            values["init"] = str(user_path(init).resolve())
        return values

    def schedule(self, stage: str, data: Data) -> Schedule:
        """Steps and learning rate of a stage on this data set."""
        batch_size = self.batch(len(data.train))
        steps = (self.float_epochs if stage == "float" else self.epochs) * steps_per_epoch(data, batch_size)
        steps = max(1, round(self.duration * max(steps, self.min_steps)))
        return Schedule(
            steps,
            batch_size,
            self.lr,
            warmup=steps // 20,
            weight_decay=self.weight_decay,
            optimizer=self.optimizer,
            muon_lr=self.muon_lr,
            compute=self.compute,
            clip_norm=self.clip_norm,
            step_size_lr=self.step_size_lr,
        )

    def calibration(self, data: Data) -> list[tuple[Tensor, Tensor]]:
        """Batches of training images for statistics."""
        batch_size = self.calibration_batch(len(data.train))
        return calibration_batches(data, self.calibration_images, batch_size, self.seed)

    def loss(self, data: Data) -> Loss:
        """What training on this data set minimises."""
        return Loss(self.label_smoothing, None if self.class_weights == "none" else balanced_weights(data))

    def batch(self, images: int) -> int:
        """Images per step, of so many training images."""
        return self.batch_size or 64

    @property
    def rehearsed(self) -> Self:
        """Options of a shorter training, whose last stage takes as long for a step as the stages that it leaves out
        (oncequant.hours)."""
        return self

    @property
    def compute(self) -> str:
        """Name of torch's type in which training steps compute."""
        return "bfloat16" if self.precision == "bfloat16" else "float32"

    def calibration_batch(self, images: int) -> int:
        """Images per batch of `calibration`, of so many training images."""
        return 250

    def parts(self, images: int) -> tuple[int, ...]:
        """Into how many images each the training set of `images` is parted: batches come from one of the parts."""
        return (images,)

    def check_files(self) -> None:
        """Raise ValueError if networks that this trains cannot be written to files."""


@dataclass(frozen=True)
class SupernetOptions:
    """Options of training supernets, whose subnets share their weights: for the Config of a method, beside
    TrainingOptions."""

    optimizer: Literal["adamw", "sgd", "muon"] = "muon"
    """sgd has Nesterov momentum; muon trains the weights of dense convolutions, with adamw for the rest."""
    quantized_lr: float = 8e-3
    """Peak learning rate of the quantized supernets, which are fine-tuned."""
    quantized_muon_lr: float = 0.12
    """Of the quantized supernets, with optimizer muon."""
    init: PathText | None = None
    """Weights that the float stage starts from: the folder of another run, or a file (.pth, .safetensors) of OFA's
    MobileNetV3 or of a standard residual network. Layers of other shapes start anew. Rates are then 0.6 of usual."""
    random_subnets: int = 1
    """Subnets per step beside the largest; each is the smallest, or has the least of all widths, or is any."""
    always_smallest: bool = False
    """Every step trains the smallest subnet, too: the sandwich rule."""
    largest_share: float = 0.25
    """What the largest counts in a step's loss; the others share the rest. 0: as much as each of the others."""
    label_share: float = 0.5
    """What the labels count for subnets; the soft answers of the largest count the rest."""
    float_sandwich: bool = False
    """The float stage trains subnets, too, not the largest network alone."""
    checkpoint_activations: bool = False
    """Keep only the inputs of blocks for the backward pass: less memory, more time."""
    independent_archs: bool = False
    """With several processes: each draws its own subnets, so that a step trains more."""
    sync_batch_norm: bool = False
    """With several processes: batch norm takes its statistics from the whole batch."""

    def __post_init__(self):
        """Refuse impossible options before any training."""
        if self.independent_archs and self.sync_batch_norm:
            raise ValueError("sync_batch_norm needs equal architectures in every process: not with independent_archs")
        shares = dict(label_share=(0, 1), largest_share=(0, 1))
        check_ranges(self, quantized_lr=RATES, quantized_muon_lr=RATES, random_subnets=(0, 100), **shares)

    def started(self, schedule: Schedule) -> Schedule:
        """The schedule of the float stage, with lower rates if it starts from weights (docs/log.md)."""
        rate = 1.0 if self.init is None else FINE_TUNED
        return replace(schedule, lr=rate * schedule.lr, muon_lr=rate * schedule.muon_lr)

    @property
    def shares_ranges(self) -> bool:
        """Whether the processes of a training take BatchQuant's ranges from the whole batch."""
        return self.sync_batch_norm


# of folders that are older than the option
UNSAID = dict(float_sandwich=True, precision="float32", always_smallest=True, label_share=0.0, largest_share=0.0)
# options that folders of older versions may name, with the value that has no effect: DNAS trains no supernet of subnets
FORMER = {"kurtosis": 0.0, "dampening": 0.0, "tied_steps": False, "distillation": "float"}  # of QFA, until dc8e247
FORMER |= {field.name: field.default for field in fields(SupernetOptions)}


def check_shares(batch_size: int, images: int) -> None:
    """Raise ValueError if the processes cannot share batches of so many of the images equally."""
    batch_size, processes = min(batch_size, images), distributed.world_size()
    if batch_size % processes:
        raise ValueError(
            f"a batch of {batch_size} images is not a multiple of the {processes} processes that share it: use another "
            "--batch-size or another number of processes"
        )


def step_rng(seed: int, step: int) -> np.random.Generator:
    """The random generator of one step."""
    return np.random.default_rng([seed, step])


StepFunction = Callable[[Tensor, Tensor, np.random.Generator, float], Tensor]
"""(images, labels, random generator of the step, share of the stage that is done) -> loss, after backward."""


def fit(
    net: nn.Module,
    step_function: StepFunction,
    data: Data,
    schedule: Schedule,
    *,
    stage: str,
    run_dir: Path,
    seed: int,
    evaluate: Callable[[], dict[str, float]] | None = None,
    evaluations: int = 4,
    subnets: int = 1,
    checkpoint_seconds: float = 60.0,
    neighbours: int = 1,
) -> None:
    """Train `net` in place for `schedule.steps` steps, resuming from the stage's checkpoint if there is one.

    Writes `metrics.jsonl` and TensorBoard events in `run_dir`, and `<stage>.resume.pt` in it while training. Several
    processes (oncequant.distributed) share every batch and average their gradients, once a step.

    Args:
        step_function: runs forward and backward passes of one batch (gradients are zeroed before it) and returns the
            loss as a 0-dim tensor without synchronising the device.
        evaluate: metrics by name, measured `evaluations` times in the stage and logged; all processes call it.
        subnets: how many of them a step trains, for the count of training images in the log.
        checkpoint_seconds: time between checkpoints; 0 writes one every step.
        neighbours: trainings side by side on this machine, which share the cores that decode streamed images.

    Raises:
        TrainingError: the loss or a gradient is not finite. The last checkpoint is from before that.
        FileError: the run folder cannot be written, or its checkpoint is damaged or from other settings.
        ValueError: the batch cannot be shared equally among the processes.
    """
    rank, processes = distributed.rank(), distributed.world_size()
    check_shares(schedule.batch_size, len(data.train))
    batch_size = min(schedule.batch_size, len(data.train))
    checkpoint = run_dir / f"{stage}.resume.pt"
    if distributed.is_main():
        for leftover in run_dir.glob(f".{checkpoint.name}.*"):  # half files of a kill while writing
            leftover.unlink(missing_ok=True)
    settings = {"schedule": asdict(schedule), "seed": seed, "data": data.fingerprint}
    optimizers = make_optimizers(net, schedule)
    resume = distributed.from_main(checkpoint.exists)
    start = _load_checkpoint(checkpoint, net, optimizers, settings) if resume else 0
    distributed.broadcast_state(net)
    log = _MetricsLog(run_dir, stage, start) if distributed.is_main() else None
    neighbours = max(neighbours, int(os.environ.get("LOCAL_WORLD_SIZE", processes)))  # torchrun sets it
    workers = max(1, min(8, cores() // neighbours))  # they decode streamed images
    shard = rank, processes
    batches = train_batches(data, schedule.batch_size, seed=seed, start_step=start, workers=workers, shard=shard)
    log_every = max(1, min(20, schedule.steps // 20))
    evaluate_at = {round((i + 1) * schedule.steps / evaluations) for i in range(evaluations)} if evaluate else set()
    last_save, finite, good = time.monotonic(), torch.tensor(True), torch.tensor(start)  # good: steps until then
    metrics: dict[str, float] = {}
    net.train()
    with track(f"train {stage}", schedule.steps, start) as bar:
        for step in range(start, schedule.steps):
            images, labels = next(batches)
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                if "scale" in group:
                    group["lr"] = schedule.lr_at(step) * group["scale"]
            torch.manual_seed(int(step_rng(seed, step).integers(2**31)) + rank)  # dropout
            net.zero_grad(set_to_none=True)
            loss = step_function(images, labels, step_rng(seed, step), step / schedule.steps)
            distributed.average_gradients(net)
            norm = torch.nn.utils.clip_grad_norm_(net.parameters(), schedule.clip_norm)
            finite = finite.to(norm.device) & norm.isfinite()
            good = good.to(norm.device) + finite  # both are looked at when logging
            for optimizer in optimizers:
                optimizer.step()
            done = step + 1
            if done % log_every == 0 or done in evaluate_at or done == schedule.steps:  # in all processes alike
                value = distributed.mean(loss)
                if not (math.isfinite(value) and bool(finite)):
                    raise TrainingError(_not_finite(stage, min(int(good) + 1, done), schedule, checkpoint))
                if evaluate and done in evaluate_at:
                    metrics = evaluate()
                    net.train()
                row = metrics if done in evaluate_at else {}
                if log:
                    seen = {"images": done * batch_size * subnets}
                    log.write(done, schedule.steps, {"loss": value, "lr": schedule.lr_at(step), **seen, **row})
                bar(done, {"loss": value, **metrics})
            is_time = time.monotonic() - last_save >= checkpoint_seconds and done < schedule.steps
            if is_time and distributed.is_main() and math.isfinite(float(loss)) and bool(finite):
                _save_checkpoint(checkpoint, net, optimizers, done, settings)
                last_save = time.monotonic()


class _MetricsLog:
    """metrics.jsonl, its times and TensorBoard of one stage; lines beyond the step resumed from are dropped."""

    def __init__(self, run_dir: Path, stage: str, start: int):
        from torch.utils.tensorboard import SummaryWriter

        self.path, self.stage = run_dir / "metrics.jsonl", stage
        kept = [row for row in read_records(self.path, Metrics) if row.stage != stage or row.step <= start]
        mine = [row.time_s for row in read_metrics(run_dir) if row.stage == stage and row.step <= start]
        self.began = time.monotonic() - ((mine[-1] if mine else None) or 0.0)
        write_records(self.path, kept)
        self.board = SummaryWriter(run_dir / "tensorboard" / stage, purge_step=start)

    def write(self, step: int, steps: int, values: dict[str, float]) -> None:
        """One line; numbers by name."""
        elapsed = round(time.monotonic() - self.began, 4)
        append_record(self.path.parent / "times.jsonl", Time(stage=self.stage, step=step, time_s=elapsed))
        append_record(self.path, Metrics(self.stage, step, steps, values=values))
        for name, value in values.items():
            self.board.add_scalar(name, value, step)
        self.board.flush()


def _save_checkpoint(path: Path, net: nn.Module, optimizers: list, step: int, settings: dict) -> None:
    buffer = io.BytesIO()
    optimizers = [optimizer.state_dict() for optimizer in optimizers]
    state = {"step": step, "net": net.state_dict(), "optimizers": optimizers, "settings": settings}
    torch.save(state, buffer)
    write_atomically(path, buffer.getvalue())


def _load_checkpoint(path: Path, net: nn.Module, optimizers: list, settings: dict) -> int:
    """Restore a checkpoint and return its step. Raises FileError if it is damaged, foreign or from other settings."""
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        if damaged := zipfile.ZipFile(path).testzip():  # torch writes checksums and does not look at them
            raise ValueError(f"{damaged} does not match its checksum")
        found, step = dict(state["settings"]), state["step"]
        if found == settings:
            net.load_state_dict(state["net"])
            for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            return step
    except (MemoryError, torch.OutOfMemoryError):
        raise  # the file is good
    except Exception as error:  # torch.load raises many kinds for damaged or hostile files
        raise FileError(
            f"{path} is not a readable checkpoint ({type(error).__name__}): delete it to train the stage again"
        ) from error
    different = [name for name in settings if found.get(name) != settings[name]]
    raise FileError(
        f"{path} was made with other settings ({', '.join(different)}): use another run folder, or the same settings"
    )


def _not_finite(stage: str, step: int, schedule: Schedule, checkpoint: Path) -> str:
    saved = f"the last good state is {checkpoint}" if checkpoint.exists() else "no checkpoint had been written yet"
    if step == 1:
        return (
            f"stage {stage}: the loss or its gradient is not finite at step 1, before anything was learned, so that "
            "no learning rate would help. The weights that it starts from, of the stage before or of a file that was "
            "given, are damaged or far too large: train that stage again, or give another file."
        )
    rates = f"{schedule.lr:g}" + (f", of muon below {schedule.muon_lr:g}," if schedule.optimizer == "muon" else "")
    return (
        f"stage {stage}: the loss or its gradient is not finite at step {step}; {saved}. "
        f"Try a learning rate below {rates} in another run folder, to which the .safetensors files of finished stages "
        "can be copied: they are not trained again."
    )
