"""Runs, for Python and the command line alike: prepared with everything checked, trained, searched, measured, exported.

Nothing here prints results or knows of options' spelling; messages to the user go to the console as progress does.
"""

import time
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from oncequant import distributed
from oncequant.agreed import agreed, check_fits, going_on
from oncequant.cost import Budget
from oncequant.cost_table import known_costs
from oncequant.data import Data, DataError, native_size, open_source
from oncequant.data.splits import place_of
from oncequant.export.formats import DEFAULT_FORMATS
from oncequant.files import FileError, user_path
from oncequant.hours import smaller, tell_time, timed
from oncequant.initial import start_from
from oncequant.methods import METHODS, method_of
from oncequant.models import build_network
from oncequant.models.own_weights import keep_weights
from oncequant.models.trace import OwnNetwork
from oncequant.own_runs import own_base
from oncequant.precision import faster
from oncequant.progress import console
from oncequant.records import Export, Member
from oncequant.run_folder import (
    Run,
    RunSettings,
    called_as,
    create_run,
    loading_settings,
    read_settings,
    writing,
)
from oncequant.run_images import check_images, tell, tell_run
from oncequant.search import BudgetOptions
from oncequant.settings import DataOptions, Device, ModelOptions, device_of, folder_of, presets_of, run_before, suited
from oncequant.subnets import Split, evaluate, export_members, may_be_of, subnet, without_images
from oncequant.tables import check_costs, keep_tables
from oncequant.train import SupernetOptions, TrainingOptions, check_shares
from oncequant.training_memory import check_memory

Paths = Sequence[Path]

# -- making and opening


def prepare(
    cfg: TrainingOptions,
    where: DataOptions | None = None,
    options: ModelOptions | None = None,
    search: BudgetOptions | None = None,
    device: Device = "auto",
    hours: float | None = None,
    costs: Sequence[Path] = (),
    data: Data | tuple[Any, Any, Any] | None = None,
    tells_time: bool = False,
    model: OwnNetwork | None = None,
    may_shrink: bool = False,
) -> tuple[TrainingOptions, Run]:
    """Load the images, choose the network, and make the folder of a run, or go on with the one that is there. `data`
    are images from Python, loaded or as three data sets, instead of `where.data`; `model` is a network of the user's
    own from Python, instead of a preset.

    What options leave open is as a run has it that is there. Whatever can be refused is refused here, before training:
    options that do not fit together, budgets of a later `search` below the cheapest subnet, tables of `costs` that lack
    layers, broken images. With `hours`, schedules are
    as long as fits; those of a smaller preset if need be, where the preset is left open, or `may_shrink`. With
    `tells_time` it is said how long a new run takes (oncequant.hours). Returns the options of the method as the folder
    keeps them, and the run. Raises ValueError (with BudgetError and DataError) and FileError; nothing is written then.
    """
    where, options, name = where or DataOptions(), options or ModelOptions(), method_of(cfg)
    asked_options = options
    opened: Any = data
    folder = folder_of(where, name)
    if not isinstance(data, Data):
        source: Any = where.data if data is None else data
        _tell_start(source)
        opened = open_source(source, where.reading)  # once: to list many pictures takes a while
        if opened.reads(folder):
            raise ValueError(f"{folder}: this run folder would lie among the images of {source}; give another --run")
    before = run_before(options, name, folder)
    there = before.model if before and before.preset else None
    if before and before.preset:
        options = replace(options, preset=before.preset)
    auto = may_shrink or options.preset == "auto"
    known = presets_of(name).get(options.preset)
    pixels = 0
    if isinstance(data, Data):
        pixels = data.size
    elif known is None or len(known.resolutions) == 1:
        pixels = native_size(opened)
    own, weights = own_base(options, name, folder, pixels, cfg.seed, model)
    options = options if own or there else suited(name, options, pixels)
    network = partial(options.config, own=own, before=there)
    config = network(2, own.image_channels if own else 1)  # for its resolution; the images tell the rest
    how = where.loading(cfg.seed, before)
    place = place_of(where.data) if data is None else None
    if isinstance(data, Data):
        images, how, pixels = data, loading_settings(data, cfg.seed), 0
        place = data.loading.source if data.loading else None
    settings = RunSettings(place, None if own else options.preset, config, name, cfg.to_json(), **how)
    if not (folder / "run.json").exists():
        check_memory(cfg, settings.model, device_of(device))
    if not isinstance(data, Data):
        images = settings.load_data(device_of(device), opened, where.asked_splits, where.cache, folder)
        assert images.loading is not None  # `load_data` says how
        parts = {split: getattr(images.loading, split) for split in ("validation_fraction", "test_fraction")}
        settings = replace(settings, **parts)
    settings = replace(settings, model=network(len(images.classes), images.channels))
    settings = _checked(settings, images, folder, search, costs)
    tell_run(images, settings.preset, pixels, folder)
    settings = _decided(settings, images, folder)
    if hours is not None:
        start = time.monotonic()
        settings, duration = timed(settings, images, folder, search, hours, auto)
        if auto and (preset := smaller(options.preset, duration)):
            options = replace(asked_options, preset=preset)
            spent = distributed.from_main(lambda: time.monotonic() - start)  # by the rehearsal, which counts
            left = max(0.001, hours - spent / 3600)
            return prepare(cfg, where, options, search, device, left, costs, data, tells_time, model, True)
    elif tells_time and not distributed.from_main((folder / "run.json").exists):
        tell_time(_config(folder, settings), search, Run(folder, settings.model, images))
    if weights is not None:
        distributed.from_main(partial(keep_weights, folder, weights, settings.model))
    return _config(folder, settings), _begin(settings, images, folder, costs, where.changed_test)


def new_run(
    cfg: TrainingOptions,
    data: Data | tuple[Any, Any, Any] | Path | str,
    folder: Path | str,
    preset: str = "auto",
    search: BudgetOptions | None = None,
    costs: Sequence[Path | str] | Path | str = (),
    model: OwnNetwork | None = None,
    **network: Any,
) -> Run:
    """Make the folder of a run, or go on with the one that is there, as the command line does; nothing is trained yet.

    `data` are loaded images, or what `load_data` takes: then they are loaded as large as the network needs them.
    `network` are the options of the network that differ from the preset's, the fields of ModelOptions: `width=0.5`.
    `model` is a network of your own, what `own_network` returns, instead of a preset; the folder keeps it. `costs` are
    tables of costs, which the folder keeps. Whatever can be refused is refused here, with budgets of a later `search`
    too. Raises ValueError (with BudgetError and DataError) and FileError; nothing is written then.
    """
    known = {field.name for field in fields(ModelOptions)} - {"preset"}
    if unknown := [name for name in network if name not in known]:
        raise ValueError(f"networks have no option {unknown[0]!r}; there are {', '.join(sorted(known))}")
    network = {name: tuple(value) if isinstance(value, list) else value for name, value in network.items()}
    where, given = DataOptions(run=user_path(folder)), None
    if isinstance(data, (str, Path)):
        where = replace(where, data=str(data))
    else:
        given = data
    return prepare(cfg, where, ModelOptions(preset, **network), search, costs=_paths(costs), data=given, model=model)[1]


def _tell_start(source: Any) -> None:
    """Say what is read: to list many pictures takes a while."""
    if isinstance(source, (str, Path)) and str(source) != "digits":
        console.print(f"reading {source}", soft_wrap=True)


def _checked(
    settings: RunSettings, data: Data, folder: Path, search: BudgetOptions | None, costs: Paths
) -> RunSettings:
    """The settings with the network for these images; what can be checked before training is."""
    method = METHODS[settings.method]
    cfg = _config(folder, settings)
    if not all((folder / f"{stage}.safetensors").exists() for stage in method.stages(cfg)):
        for images in cfg.parts(len(data.train)):
            check_shares(cfg.batch(len(data.train)), images)
        check_memory(cfg, settings.model, data.device, len(data.train), data)
    check_fits(settings.model, data)
    if isinstance(cfg, SupernetOptions) and cfg.init and not (folder / "float.safetensors").exists():
        start_from(build_network(settings.model), cfg.init, data.classes)  # refused now if they do not fit
    method.check(cfg, search or method.SearchOptions(), settings.model)
    check_costs(cfg, search, settings.model, folder, costs)
    if distributed.from_main((folder / "run.json").exists):
        read_config(folder)  # its options must still be there
    return settings


def _decided(settings: RunSettings, data: Data, folder: Path) -> RunSettings:
    """The settings with the precision and the batch that the folder's run has, where they are left open; without one,
    with the faster precision."""
    cfg = _config(folder, settings)
    if distributed.from_main((folder / "run.json").exists):
        cfg = going_on(folder, cfg, read_config(folder)[1])
    elif cfg.precision == "auto":
        cfg = replace(cfg, precision=distributed.from_main(partial(faster, settings.model, data.device)))
    return replace(settings, method_config=cfg.to_json())


def _begin(settings: RunSettings, data: Data, folder: Path, costs: Paths, changed_test: bool = False) -> Run:
    """Write run.json if there is none, or check that its run is the same; keep the tables of costs."""
    distributed.from_main(lambda: create_run(folder, settings, data, called_as(), changed_test))
    keep_tables(costs, folder)
    return Run(folder, settings.model, data, changed_test)


def open_run(
    folder: Path | str,
    data: Data | tuple[Any, Any, Any] | Path | str | None = None,
    device: Device = "auto",
    cache: bool = True,
    changed_test: bool = False,
) -> tuple[TrainingOptions, Run]:
    """The method's options and the run of a folder; `data` says where its images are now, if they have moved, or is the
    loaded images themselves, or the three Python data sets that the run was made of.

    Raises FileError if it is no run folder, of a version whose options are no more, or if the images have changed;
    DataError if they cannot be read.
    """
    folder = user_path(folder)
    settings = read_settings(folder)
    cfg = _config(folder, settings)
    if data is None and settings.data is None:
        raise FileError(
            f"{folder} was made of Python objects, which cannot be opened again by themselves: in Python use "
            f"open_run({str(folder)!r}, data=...), or give --data with a folder of the same pictures"
        )
    if not isinstance(data, Data):
        _tell_start(data or settings.data)
        data = settings.load_data(device_of(device), data, (), cache, folder)
    check_images(folder, data, changed_test)
    tell(data)
    return cfg, Run(folder, settings.model, data, changed_test)


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
    cfg = _joined(cfg, run)
    with writing(run.folder, called_as(), run.data.device):
        METHODS[method_of(cfg)].train(cfg, run)


def search_run(
    cfg: TrainingOptions,
    run: Run,
    budgets: Sequence[Budget | str] | Budget | str = (),
    costs: Sequence[Path | str] | Path | str = (),
    **options: Any,
) -> list[Member]:
    """Choose subnets of a trained run, without training: under budgets such as "bitops<=20M" the most accurate, else
    a few along the front of accuracy and cost. `costs` are tables, whose names budgets can have then. `options` are
    other fields of the method's SearchOptions.

    Returns the members, which `family.json` keeps too, with accuracies (0 to 1) on validation and test images. Raises
    BudgetError if no subnet is within the budgets, ValueError for a malformed one, FileError if a stage is missing.
    """
    cfg, tables = _joined(cfg, run), _paths(costs)
    method, known = METHODS[method_of(cfg)], known_costs(run.folder, tables)
    budgets = (budgets,) if isinstance(budgets, (str, Budget)) else budgets
    bounds = tuple(Budget.parse(budget, known) if isinstance(budget, str) else budget for budget in budgets)
    return choose(cfg, method.SearchOptions(budgets=bounds, **options), run, tables)


def choose(cfg: TrainingOptions, options: BudgetOptions, run: Run, costs: Sequence[Path] = ()) -> list[Member]:
    """`search_run` with all options of the search in one value."""
    cfg = _joined(cfg, run)
    check_costs(cfg, options, run.model, run.folder, costs)
    with writing(run.folder, called_as(), run.data.device):
        keep_tables(costs, run.folder)
        return METHODS[method_of(cfg)].choose(cfg, options, run)


def export_run(
    cfg: TrainingOptions,
    run: Run,
    names: Sequence[str] | str = (),
    stage: str | None = None,
    formats: Sequence[str] | str = DEFAULT_FORMATS,
) -> list[Export]:
    """Export chosen subnets, by default all, to folders of `run.folder / "exports"`, and verify the files.

    Names and `stage` as for `export_members`, formats those of FORMATS. Returns a record for each subnet with sizes in
    bytes, accuracies (0 to 1) and milliseconds; its `problems` say what is wrong with the files. Raises ValueError for
    unknown names.
    """
    cfg, names, formats = _joined(cfg, run), *((v,) if isinstance(v, str) else v for v in (names, formats))
    with writing(run.folder, called_as(), run.data.device):
        return export_members(cfg, run, names, stage, formats)


def report_run(run: Run | Path | str, pictures: bool = True) -> Path:
    """Write the report of a run, a page that works offline, pictures and tables; returns it.

    With `pictures` it shows the surest mistakes. Of a folder the images are read again for that; where they cannot be,
    the page says so. Raises ReportError."""
    from oncequant.report import write_report

    if isinstance(run, Run):
        return write_report(run.folder, pictures, run.data)
    return write_report(user_path(run), pictures)


def evaluate_run(
    cfg: TrainingOptions,
    run: Run,
    arch: str,
    stage: str | None = None,
    split: Split | None = None,
    compiled: bool = False,
    data: Data | tuple[Any, Any, Any] | Path | str | None = None,
) -> dict[str, Any]:
    """Accuracies (0 to 1), confusion matrix and costs of one subnet, named as for `subnet`, on one of the splits, by
    default validation. Keys: `subnets.details`, and the names of accuracies and costs.

    With `data`, on other labelled images of the run's classes or some of them: all, or those of a `split`. With
    `compiled` accuracy of its exported C, with the milliseconds of an image, see `evaluate_compiled`. Raises DataError
    for classes that the run does not have.
    """
    return evaluate(_joined(cfg, run), run, arch, stage, split, compiled, data)


def evaluate_in(
    folder: Path,
    data: str | None,
    device: Device,
    cache: bool,
    changed_test: bool,
    arch: str,
    stage: str | None,
    split: Split | None,
    compiled: bool,
) -> dict[str, Any]:
    """`evaluate_run` for a folder: `data` are the run's images, which have moved, or others to measure on."""
    how = device, cache, changed_test
    settings = read_settings(folder)
    subnet(_config(folder, settings), folder, arch, stage)  # refused before images are read
    if data is not None and place_of(data) == settings.data:
        data = None
    own = open_run(folder, None, *how) if data is None else _moved(folder, settings, data, how)
    if own is not None:
        return evaluate(own[0], own[1], arch, stage, split, compiled)
    console.print(f"{data}: not the images of {folder}; {split or 'all'} with labels are measured", soft_wrap=True)
    if compiled:  # no calibration, so the run's own images are not needed
        run = Run(folder, settings.model, without_images(folder, device_of(device)))
        return evaluate(_config(folder, settings), run, arch, stage, split, compiled, data)
    try:
        cfg, run = open_run(folder, None, *how)
    except (FileError, DataError) as error:
        raise FileError(
            f"{error}. To measure on other images the run needs its own: statistics of a subnet are estimated on its "
            "training images (not with --compiled)"
        ) from error
    return evaluate(cfg, run, arch, stage, split, compiled, data)


def _moved(
    folder: Path, settings: RunSettings, data: str, how: tuple[Device, bool, bool]
) -> tuple[TrainingOptions, Run] | None:
    """The run with its own images in another place, if it is they."""
    if not may_be_of(folder, settings, data):
        return None
    try:
        return open_run(folder, data, *how)
    except (FileError, DataError):
        return None


def _joined(cfg: TrainingOptions, run: Run) -> TrainingOptions:
    """See `agreed`."""
    return agreed(method_of(cfg), cfg, run)


def _paths(paths: Sequence[Path | str] | Path | str) -> list[Path]:
    """Paths as users write them, one or several."""
    return [user_path(path) for path in ((paths,) if isinstance(paths, (str, Path)) else paths)]
