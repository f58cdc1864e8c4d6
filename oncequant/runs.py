"""Runs, for Python and the command line alike: prepared with everything checked, trained, searched, measured, exported.

Nothing here prints results or knows of options' spelling; messages to the user go to the console as progress does.
"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch

from oncequant import distributed
from oncequant.arch import FLOAT_BITS, Arch
from oncequant.checkpoint import load_supernet
from oncequant.data import Data, Split, check_images, eval_batches, native_size
from oncequant.data.sources import is_read
from oncequant.evaluate import measure
from oncequant.export.formats import FORMATS
from oncequant.family import NetworkConfig
from oncequant.files import FileError
from oncequant.methods import METHODS, method_of
from oncequant.models import PRESETS, family_of, space_of
from oncequant.network import Network
from oncequant.progress import console
from oncequant.records import Export, Member, read_records
from oncequant.run_folder import Run, RunSettings, check_fingerprint, create_run, read_settings
from oncequant.search import BudgetOptions
from oncequant.search.family import Pick, record_family
from oncequant.search.measurements import all_costs
from oncequant.space import SearchSpace
from oncequant.train import TrainingOptions, check_shares

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class DataOptions:
    """Which images a run has, and where its folder is."""

    data: str = "digits"
    """digits (bundled), a folder of class folders, a folder of Hugging Face parquet files, or a hub name."""
    run: Path | None = None
    """Folder of this run; default runs/<data>, for other methods than oqat runs/<data>-<method>."""
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


@dataclass(frozen=True)
class ModelOptions:
    """The network. Options left at None keep the preset's value."""

    preset: str = "auto"
    """Kind and size of the networks; auto takes one that suits the method and the size of the images."""
    width: float = 1.0
    """Multiplies all channel counts (rounded to multiples of 8)."""
    resolutions: tuple[int, ...] | None = None
    """Input resolutions in pixels, for example 24 28 32."""
    depths: tuple[int, ...] | None = None
    """Blocks per stage to choose from."""
    kernel_sizes: tuple[int, ...] | None = None
    """Kernel sizes to choose from (odd)."""
    expand_ratios: tuple[int, ...] | None = None
    """Expand ratios to choose from."""
    edge_bits: Literal[8, 32] = 8
    """First convolution and classifier of quantized networks; 32 leaves them in float, as the paper."""
    se_bits: Literal[8, 32] = 8
    """Squeeze-and-excite of quantized networks; 32 leaves it in float, as the paper."""
    signed_activations: bool = True
    """Signed grid after linear bottlenecks; without, it clips at zero, as the official code."""
    weight_quantizer: str | None = None
    """Quantizer of weights; default lsq, learned step sizes."""

    def config(self, preset: str, num_classes: int, channels: int) -> NetworkConfig:
        """Configuration of a preset for a data set. Raises ValueError if an option is given that its family lacks."""
        base = PRESETS[preset]
        known, given = {field.name for field in fields(base)}, {}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in known and value is not None:
                given[field.name] = tuple(sorted(value)) if isinstance(value, tuple) else value
            elif field.name not in known and value != field.default and field.name != "preset":
                raise ValueError(f"{field.name} is not an option of {family_of(base)} networks (preset {preset})")
        return replace(base, num_classes=num_classes, image_channels=channels, **given)


def presets_of(method: str) -> dict[str, NetworkConfig]:
    """The presets that a method can train, by name."""
    families = METHODS[method].families
    return {name: config for name, config in PRESETS.items() if family_of(config) in families}


def device_of(name: Device) -> torch.device:
    """The device of a name; auto takes a GPU if there is one. Raises ValueError if there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda: this machine has no usable GPU; use cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def called_as() -> str:
    """The command that this process was started with."""
    program = Path(sys.argv[0]).name if sys.argv[0] else "python"
    return shlex.join(["oncequant" if program in ("__main__.py", "oncequant") else program, *sys.argv[1:]])


def space_of_all_bits(
    preset: str, width: float, bits: int, edge_bits: int, se_bits: int, num_classes: int | None
) -> tuple[SearchSpace, dict[str, int]]:
    """The space of a preset in which every bit-width can be chosen, also of the edges; and, by choice, the bit-widths
    that an architecture has which does not name them. Raises ValueError if a bit-width is none of 1 to 8 and 32."""
    base, every = PRESETS[preset], tuple(sorted({*range(1, 9), FLOAT_BITS}))
    known = {field.name for field in fields(base)}
    own = {name: value for name, value in dict(width=width, se_bits=se_bits).items() if name in known}
    config = replace(base, num_classes=num_classes or base.num_classes, weight_bits=every, act_bits=every, **own)
    space = space_of(config)
    edges = {f"{layer}.{what}_bits": edge_bits for layer in ("stem", "classifier") for what in ("weight", "act")}
    space = replace(space, choices={**space.choices, **{name: every for name in edges}})
    return space, {name: bits for name in space.choices if name.endswith("_bits")} | edges


# -- making and opening


def prepare(
    cfg: TrainingOptions,
    where: DataOptions | None = None,
    options: ModelOptions | None = None,
    search: BudgetOptions | None = None,
    device: Device = "auto",
) -> tuple[TrainingOptions, Run]:
    """Load the images, choose the network, and make the folder of a run, or go on with the one that is there.

    Whatever can be refused is refused here, before training: options that do not fit together, budgets of a later
    `search` below the cheapest subnet, broken images. Returns the options of the method as the folder keeps them, and
    the run. Raises ValueError (with BudgetError and DataError) and FileError; nothing is written then.
    """
    where, options = where or DataOptions(), options or ModelOptions()
    name, device_used = method_of(cfg), device_of(device)
    method, presets = METHODS[name], presets_of(name)
    cfg = method.Config.from_json(cfg.to_json())
    source, preset = Path(where.data), options.preset
    is_place = where.data != "digits" and source.exists()
    folder = where.run or Path("runs") / f"{_stem(source)}{'' if name == 'oqat' else f'-{name}'}"
    if is_place and is_read(source.resolve(), folder.resolve()):
        raise ValueError(f"{folder}: this run folder would lie among the images of {where.data}; give another --run")
    if preset not in ("auto", *presets):
        raise ValueError(f"preset {preset} does not fit {name}, which has {', '.join(presets)}")
    adapts = preset == "auto" or len(presets[preset].resolutions) == 1
    pixels = native_size(where.data) if adapts else 0
    preset = method.preset(pixels) if preset == "auto" else preset
    if presets[preset].resolutions == (32,) and not options.resolutions:  # smaller images need no more
        options = replace(options, resolutions=(min(32, max(8, pixels)),))
    settings = RunSettings(
        data=str(source.resolve()) if is_place else where.data,  # a folder is found from anywhere
        preset=preset,
        model=options.config(preset, 2, 1),  # for its resolution; classes and channels are known with the images
        method=name,
        method_config=cfg.to_json(),
        seed=cfg.seed,
        validation_fraction=where.validation_fraction,
        test_fraction=where.test_fraction,
        flip=where.flip,
        max_train=where.max_train,
        resident_gib=where.resident_gib,
    )
    data = settings.load_data(device_used)
    if not all((folder / f"{stage}.safetensors").exists() for stage in method.stages(cfg)):
        for images in cfg.parts(len(data.train)):
            check_shares(cfg.batch_size, images)
    settings = replace(settings, model=options.config(preset, len(data.classes), data.channels))
    method.check(cfg, search or method.SearchOptions(), settings.model)
    if distributed.from_main((folder / "run.json").exists):
        _config(folder, read_settings(folder))  # its options must still be there
    else:
        check_images(data)
    distributed.from_main(lambda: create_run(folder, settings, data, called_as()))
    _tell(data, preset, pixels, folder)
    return cfg, Run(folder, settings.model, data)


def _stem(source: Path) -> str:
    """The name of a data set for folders of its runs."""
    return (source.name if source.name not in ("", "..") else source.resolve().name) or "data"


def _tell(data: Data, preset: str, pixels: int, folder: Path) -> None:
    """Print what a run works on, and what may not be meant so."""
    counts = f"{len(data.train)} training, {len(data.validation)} validation, {len(data.test)} test images"
    console.print(
        f"{data.name}: {len(data.classes)} classes, {counts}; preset {preset}; run folder {folder}", soft_wrap=True
    )
    if data.flip:
        console.print(
            "training images are mirrored at random; use --flip False where that changes the label", soft_wrap=True
        )
    if pixels >= 2 * data.size:
        own = family_of(PRESETS[preset])
        larger = [n for n, c in PRESETS.items() if family_of(c) == own and max(c.resolutions) > data.size]
        console.print(
            f"images of {pixels} px are scaled to {data.size} px: "
            f"{f'--preset {larger[0]} or ' if larger else ''}larger --resolutions show more",
            soft_wrap=True,
        )


def open_run(folder: Path, data: str | None = None, device: Device = "auto") -> tuple[TrainingOptions, Run]:
    """The method's options and the run of a folder; `data` says where its images are now, if they have moved.

    Raises FileError if it is no run folder, of a version whose options are no more, or if the images have changed;
    DataError if they cannot be read.
    """
    settings = read_settings(folder)
    cfg = _config(folder, settings)
    images = replace(settings, data=data or settings.data).load_data(device_of(device))
    check_fingerprint(folder, images)
    return cfg, Run(folder, settings.model, images)


def _config(folder: Path, settings: RunSettings) -> TrainingOptions:
    """The method's options of a run folder. Raises FileError."""
    if settings.method not in METHODS:
        raise FileError(f"{folder / 'run.json'}: unknown method {settings.method!r}; there are {', '.join(METHODS)}")
    try:
        return METHODS[settings.method].Config.from_json(settings.method_config)
    except (TypeError, ValueError) as error:
        raise FileError(f"{folder / 'run.json'}: {error}") from error


def read_config(folder: Path) -> tuple[str, TrainingOptions]:
    """Name and options of the method of a run folder, without its images. Raises FileError as `open_run`."""
    settings = read_settings(folder)
    return settings.method, _config(folder, settings)


# -- subnets of a run


def family_of_run(folder: Path) -> list[Member]:
    """The members that searches of a run have chosen. Raises FileError."""
    return read_records(folder / "family.json", Member)


def outdated_exports(folder: Path) -> list[str]:
    """Folders of exports whose names stand for other members by now, or for none. Raises FileError."""
    members = {member.name: member for member in family_of_run(folder)}
    exports = read_records(folder / "exports.json", Export)
    return [one.folder for one in exports if not one.is_of(members.get(one.name))]


def is_arch(text: str) -> bool:
    """Whether this stands for an architecture by itself, not as the name of a chosen subnet."""
    return text in ("largest", "smallest") or Path(text).is_file()


def subnet(cfg: TrainingOptions, run: Run, text: str, stage: str | None = None) -> tuple[str, Network, Arch]:
    """Stage, supernet and architecture of a chosen subnet, a JSON file, "largest" or "smallest"; by default of the last
    stage. Raises ValueError if there is no such subnet, FileError if the stage is not trained."""
    family = {member.name: member for member in family_of_run(run.folder)}
    if text not in family and not is_arch(text):
        names = ", ".join(["largest", "smallest", *family])
        raise ValueError(f"architecture {text!r} is neither a file nor one of {names}")
    last = METHODS[method_of(cfg)].stages(cfg)[-1]
    stage = stage or (family[text].stage if text in family else last)
    supernet = load_supernet(run.folder, stage, run.data.device)
    if text in family:
        values = family[text].arch
    elif text in ("largest", "smallest"):
        values = getattr(supernet.space, text)()
    else:
        try:
            values = Arch.from_json(Path(text).read_text())
        except ValueError as error:
            raise ValueError(f"{text}: {error}") from error
    return stage, supernet, supernet.space.complete(values)


def evaluate(
    cfg: TrainingOptions,
    run: Run,
    arch: str,
    stage: str | None = None,
    split: Literal["validation", "test"] = "validation",
) -> dict[str, Any]:
    """Accuracy (0 to 1) and costs of one subnet, named as for `subnet`, on one of the splits."""
    stage, supernet, values = subnet(cfg, run, arch, stage)
    images = getattr(run.data, split)
    top1 = measure(supernet, values, cfg.calibration(run.data), eval_batches(run.data, images))
    result = {"stage": stage, "split": split, "images": len(images), "top1": top1}
    return {**result, **all_costs(supernet.space, values)}


def add_member(cfg: TrainingOptions, run: Run, text: str, stage: str | None = None) -> str:
    """Measure an architecture and add it to the chosen subnets. Returns its name there."""
    stage, supernet, arch = subnet(cfg, run, text, stage)
    name, brief = f"{stage}-{Path(text).stem}", supernet.space.brief(arch)
    taken = [member for member in family_of_run(run.folder) if member.name == name and member.arch != brief]
    if taken or Path(text).stem in ("S", "M", "L", "max"):  # a search gives these names
        raise ValueError(f"{text}: {name} is the name of another subnet; rename the file")
    calibration, widths = cfg.calibration(run.data), getattr(supernet.config, "weight_bits", ())

    def top1(split: Split) -> float:
        return measure(supernet, arch, calibration, eval_batches(run.data, split))

    pick = Pick(name, stage, arch, top1(run.data.validation), widths[0] if len(widths) == 1 else None)
    record_family(run.folder, [pick], {stage: supernet.space}, lambda _: top1(run.data.test), set())
    return name


def export_members(
    cfg: TrainingOptions,
    run: Run,
    names: Sequence[str] = (),
    stage: str | None = None,
    formats: Sequence[str] = tuple(FORMATS),
) -> list[Export]:
    """Export chosen subnets and verify their files, by default all in all formats; the entries of `exports.json`.

    A name may also be that of a JSON file with an architecture, "largest" or "smallest": it is measured and chosen
    first, at `stage` or the last one. Raises ValueError for unknown names.
    """
    from oncequant.export.chosen import export_chosen

    known = {member.name for member in family_of_run(run.folder)}
    own = [name for name in names if name not in known and is_arch(name)]
    if stage and not own:
        raise ValueError("--stage: chosen subnets have their stages; it is for files, largest and smallest")
    names = [add_member(cfg, run, name, stage) if name in own else name for name in names]
    family = [member.name for member in family_of_run(run.folder)]
    if unknown := [name for name in names if name not in family]:
        listed = ", ".join(family) or "none yet: run `oncequant search` first"
        raise ValueError(f"no chosen subnet is called {unknown[0]!r}; there are: {listed}")
    return export_chosen(run.folder, names or family, cfg.calibration(run.data), run.data, formats)
