"""What a run is made of, as options: its images, its network, its device; and the presets of each method."""

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.table import Table

from oncequant import distributed
from oncequant.arch import FLOAT_BITS
from oncequant.data import Reading
from oncequant.export.formats import DEFAULT_FORMATS
from oncequant.family import NetworkConfig, check_numbers
from oncequant.files import PathText, user_path
from oncequant.limits import Range, check_ranges
from oncequant.methods import DEFAULT_METHOD, METHODS
from oncequant.models import PRESETS, family_of
from oncequant.run_folder import RunSettings, read_settings
from oncequant.targets import TARGETS

Device = Literal["auto", "cpu", "cuda"]
DEVICES: Range = (1, 1024)
CLASSES: Range = (2, 1_000_000)
BITS: Range = (1, FLOAT_BITS)
ENLARGED = 40  # pixels; up to here images are shown larger than they are, too
SLACK = 0.1  # of the size of images, by which they may be enlarged beyond that


@dataclass(frozen=True)
class DataOptions:
    """Which images a run has, and where its folder is."""

    data: PathText = "digits"
    """digits (bundled), a folder of class folders, a folder of pictures with a table, a table or a folder of parquet
    files, or a hub name."""
    layout: Literal["auto", "classes", "splits"] = "auto"
    """Whether the folders in it are classes or splits, where their names and insides leave that open."""
    image_column: str | None = None
    """Column of a table that has the pictures or their file names."""
    label_column: str | None = None
    """Column of a table that has the labels."""
    run: Path | None = None
    """Folder of this run. Default: runs/<data>; of qfa and dnas runs/<data>-<method>."""
    validation_fraction: float | None = None
    """Part of the training images held out for search, where the data has no validation split. Default: 0.15, at most
    5,000 images."""
    test_fraction: float | None = None
    """Part of the images held out for the final test, where the data has no test split. Default: 0.2."""
    flip: bool | None = None
    """Mirror training images at random. Default: yes, but not digits."""
    max_train: int | None = None
    """Train with so many images only, a fixed random subset."""
    resident_gib: float = 2.0
    """Decoded images are kept in memory up to this size in GiB. Larger sets are decoded by worker processes as they
    are needed, and training images are cropped and scaled at random."""
    cache: bool = True
    """Keep decoded images for later commands: in ONCEQUANT_CACHE, else ~/.cache/oncequant; unused ones go after 30
    days."""
    changed_test: bool = False
    """Go on with a run whose test images have changed; its training and validation images must be the same."""

    def __post_init__(self) -> None:
        """Refuse impossible numbers before any work."""
        check_ranges(self, validation_fraction=(1e-4, 0.99), test_fraction=(1e-4, 0.99))
        check_ranges(self, max_train=(2, 1_000_000_000), resident_gib=(0, 1_000_000))

    @property
    def reading(self) -> Reading:
        """How the images are read, where that leaves a choice."""
        return Reading(self.layout, self.image_column, self.label_column)

    def loading(self, seed: int, before: RunSettings | None) -> dict[str, Any]:
        """Fields of RunSettings that say how images are read; splits that are left open are as in the run `before`."""
        how = {"seed": seed, "flip": self.flip, "max_train": self.max_train, "resident_gib": self.resident_gib}
        there = (before.validation_fraction, before.test_fraction) if before else (None, None)
        fractions = {
            "validation_fraction": there[0] if self.validation_fraction is None else self.validation_fraction,
            "test_fraction": there[1] if self.test_fraction is None else self.test_fraction,
        }
        return how | fractions | asdict(self.reading)

    @property
    def asked_splits(self) -> tuple[str, ...]:
        """The splits for which a fraction is asked for: those that exist refuse it."""
        asked = {"validation": self.validation_fraction, "test": self.test_fraction}
        return tuple(split for split, fraction in asked.items() if fraction is not None)


@dataclass(frozen=True)
class ModelOptions:
    """The network. Options left at None keep the preset's value."""

    preset: str = "auto"
    """Kind and size of the networks; auto takes what suits the method and the images."""
    width: float = 1.0
    """Multiplies all channel counts: 0.5 halves them."""
    resolutions: tuple[int, ...] | None = None
    """Image sides in pixels to choose from, such as 24 28 32."""
    depths: tuple[int, ...] | None = None
    """Blocks per stage to choose from."""
    kernel_sizes: tuple[int, ...] | None = None
    """Kernel sizes to choose from (odd)."""
    expand_ratios: tuple[int, ...] | None = None
    """Expand ratios to choose from."""
    edge_bits: Literal[8, 32] = 8
    """First convolution and classifier of quantized networks; 32 leaves them in float, as the paper."""
    stem_bits: int | None = None
    """Weights of the first convolution where edges have 8 bits; no fewer than all other layers have. Default: 8."""
    se_bits: Literal[8, 32] = 8
    """Squeeze-and-excite of quantized networks; 32 leaves it in float, as the paper."""
    signed_activations: bool = True
    """Signed grid after linear bottlenecks; without, it clips at zero, as the official code."""
    weight_quantizer: str | None = None
    """Quantizer of weights. Default: lsq, learned step sizes."""
    power_of_two_steps: bool = False
    """Step sizes of inputs are powers of two, for FPGA tools."""
    network: PathText | None = None
    """A network of your own, FILE.py:function, instead of a preset. The file is run; its function returns a
    torch.nn.Module, or one and example images. docs/own.md says what it may be made of."""
    weights: PathText | None = None
    """Weights that your own network starts from, a state dict in a .safetensors or .pth file. Default: those that it
    has when the function returns it."""
    trained: bool = False
    """These weights are trained for these classes: the float stage takes them as they are."""

    def __post_init__(self) -> None:
        """Refuse impossible numbers before any work."""
        check_numbers(self)

    def config(
        self,
        num_classes: int,
        channels: int,
        own: NetworkConfig | None = None,
        before: NetworkConfig | None = None,
    ) -> NetworkConfig:
        """Configuration for a data set, of the preset, of the same preset's network `before` or of the user's `own`
        network. Raises ValueError if an option is given that the family lacks."""
        base: Any = own or before or PRESETS[self.preset]
        known, given = {field.name for field in fields(base)}, {}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("network", "weights", "trained"):  # of `own`, which has them already
                continue
            if field.name in known and value is not None:
                given[field.name] = tuple(sorted(value)) if isinstance(value, tuple) else value
            elif field.name not in known and value != field.default and field.name != "preset":
                name = f"{family_of(base)} networks (preset {self.preset})" if own is None else "networks of your own"
                raise ValueError(f"{field.name} is not an option of {name}")
        if "depths" in given and "max_depths" in known:
            given["max_depths"] = ()  # what is asked for holds for every stage
        return replace(base, num_classes=num_classes, image_channels=channels, **given)


@dataclass(frozen=True)
class TableOptions:
    """Costs that were measured."""

    costs: tuple[Path, ...] = ()
    """Table of what layers take on a device, CSV or JSON (docs/export.md). Its name becomes a cost for budgets and
    fronts; the run keeps it. May be repeated."""


@dataclass(frozen=True)
class Machine:
    """What computes."""

    device: Device = "auto"
    """auto takes a GPU if there is one."""
    devices: int = 1
    """Processes that share the work, each with one GPU or a share of the cores. Several machines: README.md."""
    hours: float | None = None
    """Time for the whole command: a rehearsal at the start sets the length of training. Default: as epochs say."""
    tune_allocator: bool = True
    """Keep freed memory for the next tensors, in huge pages (Linux with glibc): faster where tensors are large."""

    def __post_init__(self) -> None:
        """Refuse impossible numbers before any work."""
        check_ranges(self, devices=DEVICES, hours=(0.001, 100_000))


def presets_of(method: str) -> dict[str, NetworkConfig]:
    """The presets that a method can train, by name."""
    families = METHODS[method].families
    return {name: config for name, config in PRESETS.items() if family_of(config) in families}


def folder_of(where: DataOptions, method: str) -> Path:
    """The folder of a run: the one that is asked for, or runs/NAME, of other methods than the first runs/NAME-METHOD,
    where the data set gives the name."""
    if where.run:
        return user_path(where.run)
    source = user_path(where.data)
    name = (source.name if source.name not in ("", "..") else source.resolve().name) or "data"
    return Path("runs") / f"{name}{'' if method == DEFAULT_METHOD else f'-{method}'}"


def suited(method: str, options: ModelOptions, pixels: int) -> ModelOptions:
    """The options with the preset that suits a method and images of `pixels`, where it is left open, without
    resolutions that are larger than the images; small images may be enlarged. A network of one resolution, 32 px, gets
    that of smaller images. Raises ValueError if the method cannot train the preset."""
    presets = presets_of(method)
    if options.preset not in ("auto", *presets):
        raise ValueError(f"preset {options.preset} does not fit {method}, which has {', '.join(presets)}")
    preset = METHODS[method].preset(pixels) if options.preset == "auto" else options.preset
    if presets[preset].resolutions == (32,) and not options.resolutions:
        return replace(options, preset=preset, resolutions=(min(32, max(8, pixels)),))
    if options.preset == "auto" and not options.resolutions and pixels > ENLARGED:
        sizes = sorted(presets[preset].resolutions)
        kept = [size for size in sizes if size <= (1 + SLACK) * pixels]
        return replace(options, preset=preset, resolutions=tuple(kept or sizes[:1]))
    return replace(options, preset=preset)


def run_before(options: ModelOptions, method: str, folder: Path) -> RunSettings | None:
    """The run that the folder has, if it is one of this method and preset, of any or none where that is left open. What
    options of images and of the network leave open is as there, though presets may be others now."""
    if not distributed.from_main((folder / "run.json").exists):
        return None
    before = read_settings(folder)
    return before if before.method == method and options.preset in ("auto", before.preset) else None


def device_of(name: Device) -> torch.device:
    """The device of a name; auto takes a GPU if there is one. Raises ValueError if there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda: this machine has no usable GPU; use cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


RunFolder = Annotated[Path, tyro.conf.Positional]


@dataclass(frozen=True)
class Existing:
    """A run that is there."""

    run: RunFolder
    """Run folder made by `oncequant train` or `oncequant run`."""
    data: PathText | None = None
    """Where the run's images are now, if they have moved."""
    device: Device = "auto"
    """auto takes a GPU if there is one."""
    cache: bool = True
    """Keep decoded images for later commands: in ONCEQUANT_CACHE, else ~/.cache/oncequant; unused ones go after 30
    days."""
    changed_test: bool = False
    """Go on though the run's test images have changed; its training and validation images must be the same."""


@dataclass(frozen=True)
class Measured(Existing):
    """A run that is there, and images to measure on."""

    data: PathText | None = None
    """Other labelled images to measure on, of the run's classes or some of them: all of them, or those of --split. Or
    where the run's own images are now, if they have moved."""


@dataclass(frozen=True)
class Shared:
    """Work on a run by several processes."""

    devices: int = 1
    """Processes that share the work on this machine."""

    def __post_init__(self) -> None:
        """Refuse impossible numbers before any work."""
        check_ranges(self, devices=DEVICES)


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of `oncequant evaluate`."""

    arch: Annotated[PathText, tyro.conf.Positional]
    """Name of a chosen subnet (`oncequant info RUN` lists them), a JSON file, or largest or smallest."""
    stage: str | None = None
    """float, 4bit, mixed, ... Default: the named subnet's own, or the last supernet (the lowest bit-width)."""
    split: Literal["train", "validation", "test"] | None = None
    """Images to measure on. Default: validation, of other images (--data) all. The test split is for final figures."""
    compiled: bool = False
    """Run the exported C of a chosen subnet instead of the trained network, and say how long an image takes."""


@dataclass(frozen=True)
class ReportOptions:
    """What is in the report."""

    pictures: bool = True
    """Small pictures of the surest mistakes in the report."""


@dataclass(frozen=True)
class ExportOptions:
    """Options of `oncequant export`."""

    names: Annotated[tuple[PathText, ...], tyro.conf.Positional] = ()
    """Names of chosen subnets. Default: all of them. A JSON file with an architecture (as the report shows it), largest
    or smallest is measured, chosen as STAGE-NAME and exported."""
    formats: tuple[str, ...] = DEFAULT_FORMATS
    """Files to write; c needs a C compiler. Those of other formats, from an export before, are removed."""
    stage: str | None = None
    """For files, largest and smallest: float, 4bit, mixed, ... Default: the last supernet (the lowest bit-width)."""


@dataclass(frozen=True)
class ProfiledModel(ModelOptions):
    """The network: what a run is trained with."""

    preset: str = "resnet-cifar"
    """Kind and size of the networks, as a run has it."""


@dataclass(frozen=True)
class ProfileOptions:
    """Options of `oncequant profile`."""

    out: Path = Path("latency_us.csv")
    """Table to write; its name is the name of the cost, `--budget "latency_us<=300"`."""
    bits: tuple[int, ...] = (4, 3, 2)
    """Bit-widths of weights and inputs: every pair of them is measured, with inputs from 2 bits."""
    num_classes: int | None = None
    """Classes. Default: the preset's."""
    image_channels: int | None = None
    """3 for colour, 1 for greyscale. Default: the preset's."""
    rounds: int = 51
    """How often everything is timed; medians are taken."""

    def __post_init__(self) -> None:
        """Refuse impossible numbers before any work."""
        check_ranges(self, rounds=(1, 100_000), num_classes=CLASSES, image_channels=(1, 3), bits=BITS)


def presets_table() -> Table:
    """All presets, and how many networks each method chooses from, for people."""
    table = Table("preset", "family", "images", "resolutions", "networks to choose from", title="presets")
    for name, config in PRESETS.items():
        family, colours = family_of(config), "greyscale" if config.image_channels == 1 else "colour"
        span = " to ".join(map(str, sorted({min(config.resolutions), max(config.resolutions)})))
        methods = [(m, method) for m, method in METHODS.items() if family in method.families]
        sizes = [f"{m} {method.searched_spaces(method.Config(), config)[-1].size():.3g}" for m, method in methods]
        table.add_row(name, family, colours, f"{span} px", ", ".join(sizes))
    return table


def targets_table() -> Table:
    """All targets and their budgets, for people."""
    names = "target", "board", "core", "MHz", "RAM kB", "flash kB", "ram_bytes", "flash_bytes"
    notes = " ".join(f"{target.name}: {target.note}." for target in TARGETS if target.note)
    table = Table(*names, title="targets, kB are 1,024 bytes, and their budgets in bytes", caption=notes)
    for target in TARGETS:
        numbers = target.clock_mhz, target.ram_kib, target.flash_kib, *(budget.limit for budget in target.budgets)
        table.add_row(target.name, target.board, target.core, *(f"{number:,}" for number in numbers))
    return table
