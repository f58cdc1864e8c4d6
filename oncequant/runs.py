"""Runs, for Python and the command line alike: prepared with everything checked, trained, searched, measured, exported.

Nothing here prints results or knows of options' spelling; messages to the user go to the console as progress does.
"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from oncequant import distributed
from oncequant.arch import Arch
from oncequant.cost import Budget
from oncequant.cost_table import known_costs
from oncequant.data import Data, check_images, is_read, native_size
from oncequant.export.formats import DEFAULT_FORMATS, check_tools
from oncequant.files import FileError
from oncequant.hours import fitted
from oncequant.measure import Judge
from oncequant.methods import DEFAULT_METHOD, METHODS, method_of
from oncequant.models import PRESETS, family_of
from oncequant.network import Network
from oncequant.precision import faster
from oncequant.progress import console
from oncequant.records import Export, Member, read_records
from oncequant.run_folder import Run, RunSettings, check_fingerprint, create_run, read_settings, writing
from oncequant.search import BudgetOptions
from oncequant.search.family import Pick, hand_out
from oncequant.search.measurements import all_costs
from oncequant.settings import DataOptions, Device, ModelOptions, device_of, presets_of, suited
from oncequant.supernet_file import load_supernet
from oncequant.tables import check_costs, keep_tables
from oncequant.train import TrainingOptions, check_shares

Paths = Sequence[Path]

# -- making and opening


def called_as() -> str:
    """The command that this process was started with."""
    program = Path(sys.argv[0]).name if sys.argv[0] else "python"
    return shlex.join(["oncequant" if program in ("__main__.py", "oncequant") else program, *sys.argv[1:]])


def prepare(
    cfg: TrainingOptions,
    where: DataOptions | None = None,
    options: ModelOptions | None = None,
    search: BudgetOptions | None = None,
    device: Device = "auto",
    hours: float | None = None,
    costs: Sequence[Path] = (),
) -> tuple[TrainingOptions, Run]:
    """Load the images, choose the network, and make the folder of a run, or go on with the one that is there.

    Whatever can be refused is refused here, before training: options that do not fit together, budgets of a later
    `search` below the cheapest subnet, tables of `costs` that lack layers, broken images. With `hours`, schedules are
    as long as fits (oncequant.hours). Returns the options of the method as the folder keeps them, and the run. Raises
    ValueError (with BudgetError and DataError) and FileError; nothing is written then.
    """
    where, options, device_used = where or DataOptions(), options or ModelOptions(), device_of(device)
    name, source = method_of(cfg), Path(where.data)
    is_place = where.data != "digits" and source.exists()
    folder = where.run or Path("runs") / f"{_stem(source)}{'' if name == DEFAULT_METHOD else f'-{name}'}"
    if is_place and is_read(source.resolve(), folder.resolve(), where.reading):
        raise ValueError(f"{folder}: this run folder would lie among the images of {where.data}; give another --run")
    known = presets_of(name).get(options.preset)
    pixels = native_size(where.data, where.reading) if known is None or len(known.resolutions) == 1 else 0
    options = suited(name, options, pixels)
    settings = RunSettings(
        data=str(source.resolve()) if is_place else where.data,  # a folder is found from anywhere
        preset=options.preset,
        model=options.config(2, 1),  # for its resolution; classes and channels are known with the images
        method=name,
        method_config=cfg.to_json(),
        seed=cfg.seed,
        validation_fraction=where.validation_fraction,
        test_fraction=where.test_fraction,
        flip=where.flip,
        max_train=where.max_train,
        resident_gib=where.resident_gib,
        **asdict(where.reading),
    )
    data = settings.load_data(device_used)
    settings = _checked(settings, options, data, folder, search, costs)
    _tell(data, options.preset, pixels, folder)
    settings = _decided(settings, data, folder)
    if hours is not None:
        settings = _timed(settings, data, folder, search, hours)
    run = _begin(settings, data, folder, costs)
    return _config(folder, settings), run


def new_run(
    cfg: TrainingOptions,
    data: Data,
    folder: Path | str,
    preset: str = "auto",
    search: BudgetOptions | None = None,
    costs: Sequence[Path] = (),
    **network: Any,
) -> Run:
    """Make the folder of a run on loaded images, or go on with the one that is there; nothing is trained yet.

    `network` are the options of the network that differ from the preset's, the fields of ModelOptions: `width=0.5`.
    `costs` are tables of costs, which the folder keeps. Whatever can be refused is refused here, with budgets of a
    later `search` too. Raises ValueError (with BudgetError and DataError) and FileError; nothing is written then.
    """
    name = method_of(cfg)
    options = suited(name, ModelOptions(preset, **network), data.size)
    model = options.config(2, 1)
    if max(model.resolutions) > data.size:
        raise ValueError(f"resolutions {model.resolutions}: load the images with size {max(model.resolutions)}")
    settings = RunSettings(
        data.name, options.preset, model, name, cfg.to_json(), cfg.seed, 0.15, 0.2, data.flip, max_train=None
    )
    return _begin(_checked(settings, options, data, Path(folder), search, costs), data, Path(folder), costs)


def _checked(
    settings: RunSettings, options: ModelOptions, data: Data, folder: Path, search: BudgetOptions | None, costs: Paths
) -> RunSettings:
    """The settings with the network for these images; what can be checked before training is."""
    method = METHODS[settings.method]
    cfg = _config(folder, settings)
    if not all((folder / f"{stage}.safetensors").exists() for stage in method.stages(cfg)):
        for images in cfg.parts(len(data.train)):
            check_shares(cfg.batch(len(data.train)), images)
    settings = replace(settings, model=options.config(len(data.classes), data.channels))
    method.check(cfg, search or method.SearchOptions(), settings.model)
    check_costs(cfg, search, settings.model, folder, costs)
    if distributed.from_main((folder / "run.json").exists):
        read_config(folder)  # its options must still be there
    else:
        check_images(data)
    return settings


def _decided(settings: RunSettings, data: Data, folder: Path) -> RunSettings:
    """The settings with the precision and the batch that the folder's run has, where they are left open; without one,
    with the faster precision."""
    cfg = _config(folder, settings)
    chosen: dict[str, Any] = {}
    if distributed.from_main((folder / "run.json").exists):
        before = read_config(folder)[1]
        chosen["batch_size"] = before.batch_size if cfg.batch_size is None else cfg.batch_size
        chosen["precision"] = before.precision if cfg.precision == "auto" else cfg.precision
    elif cfg.precision == "auto":
        chosen["precision"] = distributed.from_main(partial(faster, settings.model, data.device))
    return replace(settings, method_config={**settings.method_config, **chosen})


def _timed(settings: RunSettings, data: Data, folder: Path, search: BudgetOptions | None, hours: float) -> RunSettings:
    """The settings with schedules that fit into so many hours, or with those that the folder's run has."""
    if not hours > 0:
        raise ValueError(f"hours {hours}: use more than 0")
    cfg = _config(folder, settings)
    if distributed.from_main((folder / "run.json").exists):
        duration = read_config(folder)[1].duration
        console.print(f"{folder} goes on with schedules {duration:g} times as long as by default", soft_wrap=True)
        cfg = replace(cfg, duration=duration)
    else:
        cfg = fitted(cfg, search, Run(folder, settings.model, data), hours)
    return replace(settings, method_config=cfg.to_json())


def _begin(settings: RunSettings, data: Data, folder: Path, costs: Sequence[Path]) -> Run:
    """Write run.json if there is none, or check that its run is the same; keep the tables of costs."""
    distributed.from_main(lambda: create_run(folder, settings, data, called_as()))
    keep_tables(costs, folder)
    return Run(folder, settings.model, data)


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


def open_run(
    folder: Path | str, data: str | Data | None = None, device: Device = "auto"
) -> tuple[TrainingOptions, Run]:
    """The method's options and the run of a folder; `data` says where its images are now, if they have moved, or is the
    loaded images themselves.

    Raises FileError if it is no run folder, of a version whose options are no more, or if the images have changed;
    DataError if they cannot be read.
    """
    folder = Path(folder)
    settings = read_settings(folder)
    cfg = _config(folder, settings)
    if isinstance(data, Data):
        images = data
    else:
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


# -- what is done with a run


def train_run(cfg: TrainingOptions, run: Run) -> None:
    """Train every stage of the method that `cfg` belongs to, as far as it is not trained yet.

    Killed at any time, the same call goes on where it stopped. Raises TrainingError if a loss is not finite, FileError
    if the folder is damaged or another command works in it.
    """
    with writing(run.folder, called_as(), run.data.device):
        METHODS[method_of(cfg)].train(cfg, run)


def search_run(
    cfg: TrainingOptions, run: Run, budgets: Sequence[Budget | str] = (), costs: Sequence[Path] = (), **options: Any
) -> list[Member]:
    """Choose subnets of a trained run, without training: under budgets such as "bitops<=20M" the most accurate, else
    a few along the front of accuracy and cost. `costs` are tables, whose names budgets can have then. `options` are
    other fields of the method's SearchOptions.

    Returns the members, which `family.json` keeps too, with accuracies (0 to 1) on validation and test images. Raises
    BudgetError if no subnet is within the budgets, ValueError for a malformed one, FileError if a stage is missing.
    """
    method, known = METHODS[method_of(cfg)], known_costs(run.folder, costs)
    bounds = tuple(Budget.parse(budget, known) if isinstance(budget, str) else budget for budget in budgets)
    return choose(cfg, method.SearchOptions(budgets=bounds, **options), run, costs)


def choose(cfg: TrainingOptions, options: BudgetOptions, run: Run, costs: Sequence[Path] = ()) -> list[Member]:
    """`search_run` with all options of the search in one value."""
    check_costs(cfg, options, run.model, run.folder, costs)
    with writing(run.folder, called_as(), run.data.device):
        keep_tables(costs, run.folder)
        return METHODS[method_of(cfg)].choose(cfg, options, run)


def export_run(
    cfg: TrainingOptions,
    run: Run,
    names: Sequence[str] = (),
    stage: str | None = None,
    formats: Sequence[str] = DEFAULT_FORMATS,
) -> list[Export]:
    """Export chosen subnets, by default all, to folders of `run.folder / "exports"`, and verify the files.

    Names and `stage` as for `export_members`, formats those of FORMATS. Returns a record for each subnet with sizes in
    bytes, accuracies (0 to 1) and milliseconds; its `problems` say what is wrong with the files. Raises ValueError for
    unknown names.
    """
    with writing(run.folder, called_as(), run.data.device):
        return export_members(cfg, run, names, stage, formats)


def report_run(run: Run) -> Path:
    """Write the report of a run, a page that works offline, pictures and tables; returns it. Raises ReportError."""
    from oncequant.report import write_report

    return write_report(run.folder)


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


def evaluate_run(
    cfg: TrainingOptions,
    run: Run,
    arch: str,
    stage: str | None = None,
    split: Literal["validation", "test"] = "validation",
    compiled: bool = False,
) -> dict[str, Any]:
    """Accuracy (0 to 1) and costs of one subnet, named as for `subnet`, on one of the splits.

    With `compiled` those of its exported C, with the milliseconds of an image, see `evaluate_compiled`.
    """
    (stage, supernet, values), images = subnet(cfg, run, arch, stage), getattr(run.data, split)
    if compiled:
        from oncequant.export.compiled import evaluate_compiled

        found = evaluate_compiled(run.folder / "exports" / arch, run.data, images)
    else:
        judge = Judge(run.data, cfg.calibration(run.data))
        found = {"top1": judge.test(supernet, values) if split == "test" else judge.validation(supernet, values)}
    result = {"stage": stage, "split": split, "images": len(images), **found}
    return {**result, **all_costs(supernet.space, values, run.costs)}


def add_member(cfg: TrainingOptions, run: Run, text: str, stage: str | None = None) -> str:
    """Measure an architecture and add it to the chosen subnets. Returns its name there."""
    stage, supernet, arch = subnet(cfg, run, text, stage)
    name, brief = f"{stage}-{Path(text).stem}", supernet.space.brief(arch)
    taken = [member for member in family_of_run(run.folder) if member.name == name and member.arch != brief]
    if taken or Path(text).stem in ("S", "M", "L", "max"):  # a search gives these names
        raise ValueError(f"{text}: {name} is the name of another subnet; rename the file")
    judge = Judge(run.data, cfg.calibration(run.data))
    widths: tuple[int, ...] = getattr(supernet.config, "weight_bits", ())
    bits = widths[0] if len(widths) == 1 else None
    pick = Pick(name, stage, supernet.space, arch, judge.validation(supernet, arch), bits)
    hand_out([pick], lambda _: supernet, judge, run.folder, set())
    return name


def export_members(
    cfg: TrainingOptions, run: Run, names: Sequence[str] = (), stage: str | None = None, formats: Sequence[str] = ()
) -> list[Export]:
    """Export chosen subnets and verify their files, by default all in DEFAULT_FORMATS; the entries of `exports.json`.

    A name may also be that of a JSON file with an architecture, "largest" or "smallest": it is measured and chosen
    first, at `stage` or the last one. Raises ValueError for unknown names.
    """
    from oncequant.export.chosen import export_chosen

    check_tools(formats := formats or DEFAULT_FORMATS)
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
