"""Options of every command of `oncequant`, as plain values; their docstrings are the text of `--help`."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, get_args

import tyro

from oncequant.arch import FLOAT_BITS
from oncequant.cost import COSTS, Budget
from oncequant.family import NetworkConfig
from oncequant.methods import baselines, dnas, oqat, qfa
from oncequant.models import mobilenet_v3, resnet
from oncequant.search import SearchConfig
from oncequant.train import TrainingOptions

RunFolder = Annotated[Path, tyro.conf.Positional]
Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class ModelOptions:
    """The supernet. Fields left at None keep the preset's value."""

    preset: Literal[
        "auto", "nano", "cifar", "imagenet", "resnet20", "resnet56", "resnet110", "resnet18", "resnet34", "resnet50"
    ] = "auto"
    """auto: nano for images up to 20 px (median shorter side), cifar for all larger ones; with DNAS resnet20."""
    width: float = 1.0
    """Multiplies all channel counts (rounded to multiples of 8)."""
    resolutions: tuple[int, ...] | None = None
    """Input resolutions in pixels, for example 24 28 32."""
    depths: tuple[int, ...] | None = None
    """Blocks per stage to choose from."""
    kernel_sizes: tuple[int, ...] | None = None
    """Depthwise kernel sizes to choose from (odd)."""
    expand_ratios: tuple[int, ...] | None = None
    """Expand ratios to choose from."""
    edge_bits: Literal[8, 32] = 8
    """First convolution and classifier of quantized networks; 32 leaves them in float, as the paper."""
    se_bits: Literal[8, 32] = 8
    """Squeeze-and-excite of quantized networks; 32 leaves it in float, as the paper."""
    signed_activations: bool = True
    """Signed grid after linear bottlenecks; --no-signed-activations clips at zero, as the official code."""

    def config(self, preset: str, num_classes: int, channels: int) -> NetworkConfig:
        """Configuration for a data set. Raises ValueError if an option is not one of the preset's model."""
        if preset in resnet.PRESETS:
            return self._resnet(resnet.PRESETS[preset], num_classes, channels)
        names = ("resolutions", "depths", "kernel_sizes", "expand_ratios")
        given = {name: tuple(sorted(value)) for name in names if (value := getattr(self, name)) is not None}
        return replace(
            mobilenet_v3.PRESETS[preset],
            num_classes=num_classes,
            image_channels=channels,
            width=self.width,
            edge_bits=self.edge_bits,
            se_bits=self.se_bits,
            signed_activations=self.signed_activations,
            **given,
        )

    def _resnet(self, config: resnet.ResNetConfig, num_classes: int, channels: int) -> resnet.ResNetConfig:
        """Residual networks share three of the options."""
        names = ("width", "depths", "kernel_sizes", "expand_ratios", "se_bits", "signed_activations")
        if wrong := [name for name in names if getattr(self, name) != getattr(ModelOptions, name)]:
            raise ValueError(f"--{wrong[0].replace('_', '-')} is not an option of residual networks")
        resolutions = self.resolutions or config.resolutions
        fixed = dict(num_classes=num_classes, image_channels=channels, resolutions=resolutions)
        return replace(config, edge_bits=self.edge_bits, **fixed)


@dataclass(frozen=True)
class Train:
    """Train the supernets. OQAT: float, then every bit-width of the schedule by bit inheritance; QFA: float, then
    mixed precision; DNAS: a float network, the stochastic supernet, and the networks drawn from it.

    Interrupted? The same command goes on where it stopped.
    """

    data: str = "digits"
    """digits (bundled), a folder of class folders, a folder of Hugging Face parquet files, or a hub name."""
    run: Path | None = None
    """Folder of this run; default runs/<data>, for other methods than oqat runs/<data>-<method>."""
    method: Literal["oqat", "qfa", "dnas"] = "oqat"
    """oqat: Once Quantization-Aware Training, one supernet per bit-width; qfa: Quantized-for-all, one supernet with its
    own bit-widths for every layer; dnas: precisions of residual networks by differentiable search."""
    model: Annotated[ModelOptions, tyro.conf.arg(name="")] = field(default_factory=ModelOptions)
    training: Annotated[TrainingOptions, tyro.conf.arg(name="")] = field(default_factory=TrainingOptions)
    bit_schedule: tuple[int, ...] = oqat.Config.bit_schedule
    """OQAT: bit-widths in training order, each inherits from the one before, the first from the float supernet."""
    qfa_options: Annotated[qfa.OwnOptions, tyro.conf.arg(name="qfa")] = field(default_factory=qfa.OwnOptions)
    dnas_options: Annotated[dnas.OwnOptions, tyro.conf.arg(name="dnas")] = field(default_factory=dnas.OwnOptions)
    validation_fraction: float = 0.15
    """Part of the training images held out for search, if there is no validation split."""
    test_fraction: float = 0.2
    """Part of the images held out for the final test, if there is no test split."""
    flip: bool | None = None
    """Mirror training images at random; default yes, no for digits."""
    max_train: int | None = None
    """Use only so many training images (a fixed random subset)."""
    resident_gib: float = 2.0
    """Decoded images are kept in memory up to this size; larger sets are decoded by worker processes as they are
    needed, and training images are cropped and scaled at random."""
    device: Device = "auto"
    """auto takes a GPU if there is one."""
    tune_allocator: bool = False
    """Keep freed memory for the next tensors (Linux with glibc): faster where tensors are large."""
    devices: int = 1
    """Processes that share the work on this machine, each on one GPU or on a share of the CPU's cores. Several
    machines: torchrun ... -m oncequant -- train ..."""

    def config(self) -> oqat.Config | qfa.Config | dnas.Config:
        """Options of the method. Raises ValueError if they are impossible, or an option is another method's."""
        untouched = {
            ("oqat", "--bit-schedule"): self.bit_schedule == oqat.Config.bit_schedule,
            ("qfa", "--qfa"): self.qfa_options == qfa.OwnOptions(),
            ("dnas", "--dnas"): self.dnas_options == dnas.OwnOptions(),
        }
        if wrong := [
            flag for (method, flag), is_default in untouched.items() if not is_default and method != self.method
        ]:
            raise ValueError(f"{wrong[0]} is not an option of --method {self.method}")
        if self.method == "oqat":
            return oqat.Config(**vars(self.training), bit_schedule=self.bit_schedule)
        if self.method == "qfa" and not self.model.signed_activations and self.qfa_options.activations != "lsq":
            raise ValueError(
                f"--no-signed-activations: ranges of {self.qfa_options.activations} reach below zero by themselves; it "
                "is an option of oqat, and of qfa with --qfa.activations lsq"
            )
        if self.method == "dnas":
            own = self.dnas_options
            if own.init and Path(own.init).exists():  # found from anywhere
                own = replace(own, init=str(Path(own.init).resolve()))
            return dnas.Config(**vars(self.training), **vars(own))
        return qfa.Config(**vars(self.training), **vars(self.qfa_options))


@dataclass(frozen=True)
class SearchOptions:
    """The search over trained supernets."""

    budget: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Bound like "bitops<=1.2G" or "weight_bytes<=90k"; may be given several times. Without one, a family S, M, L
    along the front is chosen, by OQAT for each bit-width."""
    searcher: Literal["coarse_to_fine", "nsga2", "random"] | None = None
    """Of measured subnets: coarse_to_fine is OQAT's own; nsga2 is genetic; random the baseline. QFA's own is NSGA-II on
    an accuracy predictor."""
    evaluations: int | None = None
    """Subnets measured: 60 per bit-width (OQAT), 200 for the accuracy predictor (QFA) if not given. Given with a budget
    and a predictor from before, so many are measured in all and it learns again."""
    population: int = 200
    """QFA: architectures per generation of the search on predicted accuracy."""
    generations: int = 200
    """QFA: generations of it; the published search has 500 and 1,000, half a minute for the imagenet space."""
    front_members: int = 24
    """QFA: members of the front of predicted accuracy that are measured, evenly along it; 0 measures all."""
    front: Annotated[str, tyro.conf.arg(constructor=tyro.extras.literal_type_from_choices(COSTS))] = "bitops"
    """Cost axis of the front."""

    def config(self) -> SearchConfig:
        """Parsed options. Raises ValueError for a malformed budget."""
        budgets = tuple(Budget.parse(text) for text in self.budget)
        return SearchConfig(
            budgets=budgets,
            searcher=self.searcher,
            evaluations=self.evaluations,
            population=self.population,
            generations=self.generations,
            front_members=self.front_members,
            cost=self.front,
        )


@dataclass(frozen=True)
class Run:
    """Everything: train, search, export, report. With no arguments on the bundled digits."""

    train: Annotated[Train, tyro.conf.arg(name="")] = field(default_factory=Train)
    search: Annotated[SearchOptions, tyro.conf.arg(name="")] = field(default_factory=SearchOptions)


@dataclass(frozen=True)
class Search:
    """Choose subnets of a trained run, without retraining, under any number of budgets."""

    run: RunFolder
    """Run folder made by `oncequant train`."""
    search: Annotated[SearchOptions, tyro.conf.arg(name="")] = field(default_factory=SearchOptions)
    data: str | None = None
    """Where the run's images are now, if they have moved."""
    device: Device = "auto"
    """auto takes a GPU if there is one."""
    devices: int = 1
    """Processes that share the measurements."""


@dataclass(frozen=True)
class Compare:
    """What a run of OQAT is worth: its subnets against networks that are trained for each budget, by accuracy and by
    training images.

    supernet: as OQAT deploys, without training; nas-then-quantize: the float supernet's best, fine-tuned at the
    bit-width; search-then-retrain: the low-bit supernet's best, trained from scratch; uniform: a hand-scaled network,
    trained from scratch. Interrupted? The same command goes on.
    """

    run: RunFolder
    bits: int = 2
    """Bit-width of all networks, one that the run has trained."""
    deployments: int = 10
    """Budgets, spread over the BitOPs that the supernet reaches."""
    ways: tuple[baselines.Way, ...] = get_args(baselines.Way)
    """Which of these to compare."""
    evaluations: int | None = None
    """Subnets measured per supernet; default 60."""
    data: str | None = None
    """Where the run's images are now, if they have moved."""
    device: Device = "auto"
    """auto takes a GPU if there is one."""
    devices: int = 1
    """Processes that share the work."""


@dataclass(frozen=True)
class Evaluate:
    """Measure one architecture of a trained run."""

    run: RunFolder
    arch: Annotated[str, tyro.conf.Positional]
    """Name of a chosen subnet (as `oncequant info RUN` lists them), a JSON file, or largest | smallest."""
    stage: str | None = None
    """float, 4bit, mixed, ...; default: the named subnet's own, or the last supernet (the lowest bit-width)."""
    split: Literal["validation", "test"] = "validation"
    """Images to measure on; the test split is for final figures."""
    data: str | None = None
    """Where the run's images are now, if they have moved."""
    device: Device = "auto"
    """auto takes a GPU if there is one."""


@dataclass(frozen=True)
class Export:
    """Write chosen subnets as packed ONNX and safetensors files and verify them in ONNX Runtime."""

    run: RunFolder
    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Names of chosen subnets; default all of them. A JSON file with an architecture (as the report shows it), largest
    or smallest is measured, chosen as STAGE-NAME and exported."""
    stage: str | None = None
    """For those: float, 4bit, mixed, ...; default the last supernet (the lowest bit-width)."""
    data: str | None = None
    """Where the run's images are now, if they have moved."""
    device: Device = "auto"
    """auto takes a GPU if there is one."""


@dataclass(frozen=True)
class Report:
    """Write RUN/report: one HTML page that works offline, pictures and tables."""

    run: RunFolder


@dataclass(frozen=True)
class Cost:
    """Costs of architectures: one JSON object in, one JSON object out a line."""

    archs: Annotated[str, tyro.conf.Positional]
    """File with one architecture a line, or - for standard input. Choices with one value and the bits of absent
    blocks may be left out; missing bit-widths are --bits."""
    model: Literal["mobilenet_v3"] = "mobilenet_v3"
    """Kind of supernet."""
    preset: Literal["nano", "cifar", "imagenet"] = "imagenet"
    """Its preset."""
    width: float = 1.0
    """Multiplies all channel counts, 1.2 in OQA's larger space."""
    bits: int = FLOAT_BITS
    """Bit-width of weights and activations that an architecture does not name."""
    edge_bits: int = FLOAT_BITS
    """The same for the first convolution and the classifier."""
    se_bits: int = FLOAT_BITS
    """Bit-width of squeeze-and-excite."""
    num_classes: int | None = None
    """Default: the preset's."""


@dataclass(frozen=True)
class Info:
    """What is in a run folder; without one, the presets, their space sizes and the costs."""

    run: Annotated[Path | None, tyro.conf.Positional] = None
