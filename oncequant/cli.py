"""The command line: `oncequant run | train | search | compare | evaluate | export | predict | report | ...`.

Errors that the user can mend are one line; with ONCEQUANT_TRACEBACK=1 they come with their traceback.
"""

import json
import os
import shlex
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from oncequant import compare as comparing
from oncequant import distributed, predict, runs
from oncequant.allocator import keep_freed_memory
from oncequant.arch import Arch
from oncequant.cost import COSTS
from oncequant.cost_table import known_costs
from oncequant.cpu import cores
from oncequant.data import Data
from oncequant.every_bit import config_of_bits, space_of_all_bits
from oncequant.export.formats import DEFAULT_FORMATS, FORMATS, check_tools, exports_table, needed_packages
from oncequant.files import read_object
from oncequant.hours import fitted_search, minutes
from oncequant.methods import METHODS, method_of
from oncequant.options import (
    Analyse,
    Card,
    Compare,
    Cost,
    Evaluate,
    Existing,
    Export,
    Info,
    Profile,
    Push,
    Report,
    Run,
    Search,
    Train,
    parse,
)
from oncequant.progress import console, on_standard_error
from oncequant.records import Member
from oncequant.run_folder import Run as RunValue
from oncequant.run_folder import called_as, commands_of, date_of, read_settings, writing
from oncequant.search import SEARCHERS, BudgetOptions
from oncequant.search.family import family_table
from oncequant.settings import device_of, presets_table, targets_table
from oncequant.subnets import export_members, outdated_exports
from oncequant.tables import check_costs, keep_tables
from oncequant.train import TrainingError, TrainingOptions


def main() -> None:
    """Entry point of the `oncequant` command."""
    try:
        options = parse(sys.argv[1:])
        devices, device = _machine(options)
        if devices > 1 and not distributed.was_launched():
            sys.exit(distributed.launch(devices, sys.argv[1:], device))
        console.quiet = not distributed.is_main()
        if isinstance(options, (Run, Train, Search, Compare)):
            distributed.join(device)
            HANDLERS[type(options)](options)
            distributed.leave()
        elif distributed.is_main():
            HANDLERS[type(options)](options)
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on from the last checkpoint")
        sys.exit(130)
    except Exception as error:  # of any kind: other processes may be waiting for this one
        _end(error)


def _end(error: Exception) -> None:
    """End this process after an error: one line if it is the user's to mend, else its traceback."""
    # every error that is the user's to mend is one of these (DataError, BudgetError, FileError, ...)
    is_users = isinstance(error, (ValueError, OSError, TrainingError, torch.OutOfMemoryError))
    if not distributed.is_main():
        time.sleep(3)  # if the main process fails too, it ends this one before it repeats the message
    if is_users:
        advice = " (training needs less with a smaller --batch-size)"
        place = "" if distributed.is_main() else f"process {distributed.rank()}: "
        text = f"{error}{advice}" if isinstance(error, torch.OutOfMemoryError) else error
        print(f"error: {place}{text}", file=sys.stderr, flush=True)
    if not is_users or os.environ.get("ONCEQUANT_TRACEBACK"):
        if not distributed.was_launched():
            raise error
        traceback.print_exception(error)
    if distributed.was_launched():
        sys.stderr.flush()
        os._exit(1)  # others may be waiting for this process, and its way out would wait for them
    sys.exit(1)


def run(options: Run) -> None:
    """`oncequant run`."""
    options.train.training.check_files()
    usual = (*DEFAULT_FORMATS, "c") if any(budget.target for budget in options.search.budgets) else DEFAULT_FORMATS
    formats = usual if options.output.formats is None else options.output.formats
    _check_formats(formats)
    _check_packages("matplotlib")
    start = time.monotonic()
    cfg, found = _prepare(options.train, options.search)
    searching = fitted_search(options.search, options.train.machine.hours, found.folder)
    with writing(found.folder, called_as(), found.data.device):
        METHODS[method_of(cfg)].train(cfg, found)
        _tell_chosen(found, METHODS[method_of(cfg)].choose(cfg, searching, found))
        distributed.leave()
        if not distributed.is_main():
            return
        problems = _export(cfg, found, (), None, formats)
        _report(found.folder, options.output.pictures, found.data)
    if hours := options.train.machine.hours:
        taken, whole = minutes(time.monotonic() - start), minutes(3600 * hours)
        console.print(f"this command took {taken}; --hours {hours:g} are {whole}, for a run from its start")
    if problems:
        raise ValueError(problems)


def train(options: Train) -> None:
    """`oncequant train`."""
    cfg, found = _prepare(options, None)
    with writing(found.folder, called_as(), found.data.device):
        METHODS[method_of(cfg)].train(cfg, found)


def search(options: Search) -> None:
    """`oncequant search`."""
    cfg, found = _open(options.source)
    _tell_chosen(found, runs.choose(cfg, options.search, found, options.tables.costs))


def compare(options: Compare) -> None:
    """`oncequant compare`."""
    cfg, found = _open(options.source)
    of = options.compare
    check_costs(cfg, None, found.model, found.folder, options.tables.costs)
    with writing(found.folder, called_as(), found.data.device):
        keep_tables(options.tables.costs, found.folder)
        found_by = comparing.compare(cfg, found, of.bits, of.deployments, of.ways, of.evaluations, of.front)
    console.print(comparing.totals_table(found_by["totals"], of.bits))
    console.print(comparing.fronts_table(found_by))


def evaluate(options: Evaluate) -> None:
    """`oncequant evaluate`."""
    source, of = options.source, options.evaluate
    where = source.run, source.data, source.device, source.cache, source.changed_test
    with on_standard_error():  # standard output is the figures alone
        figures = runs.evaluate_in(*where, of.arch, of.stage, of.split, of.compiled)
    print(json.dumps(figures))


def export(options: Export) -> None:
    """`oncequant export`."""
    formats = options.export.formats
    _check_formats(formats)
    cfg, found = _open(options.source)
    with writing(found.folder, called_as(), found.data.device):
        problems = _export(cfg, found, options.export.names, options.export.stage, formats)
    if problems:
        raise ValueError(problems)


def predict_pictures(options: predict.Predict) -> None:
    """`oncequant predict`."""
    if code := predict.predict(options):
        sys.exit(code)


def card(options: Card) -> None:
    """`oncequant card`."""
    from oncequant.card import write_card

    console.print(f"card: {write_card(options.run, options.network) / 'README.md'}", soft_wrap=True, highlight=False)


def push(options: Push) -> None:
    """`oncequant push`."""
    from oncequant.card import push as upload

    console.print(upload(options.run, options.network, options.repository, options.private), soft_wrap=True)


def report(options: Report) -> None:
    """`oncequant report`."""
    from oncequant.report import write_comparison

    if len(options.runs) == 1:
        _report(options.runs[0], options.pictures, moved=options.data)
    else:
        page = write_comparison(options.runs, options.out)
        console.print(f"comparison: {page}", soft_wrap=True, highlight=False)


def analyse(options: Analyse) -> None:
    """`oncequant analyse`."""
    from oncequant.analysis import analyse as write_analysis

    of = options
    page = write_analysis(of.runs, of.out, of.evaluations, of.images, of.data, of.device, of.cache)
    console.print(f"analysis: {page}", soft_wrap=True, highlight=False)


def cost(options: Cost) -> None:
    """`oncequant cost`."""
    try:
        lines = sys.stdin if options.archs == "-" else Path(options.archs).read_text().splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{options.archs} is not text: {error}") from error
    space, default = space_of_all_bits(options)
    costs = known_costs(None, options.costs)
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                specs = space.layers(space.complete({**default, **Arch.from_json(line)}))
                print(json.dumps({name: each(specs) for name, each in costs.items()}))
            except ValueError as error:
                raise ValueError(f"{options.archs}, line {number}: {error}") from error


def profile(options: Profile) -> None:
    """`oncequant profile`."""
    from oncequant.export.profile import profile as write_profile

    of = options.profile
    config = config_of_bits(options.model, of.bits, of.num_classes, of.image_channels)
    done = write_profile(config, of.out, of.rounds)
    console.print(
        f"{of.out}: {done.rows} layers in us: kernels times {done.factor:.2f}, {1e3 * done.per_element:.2f} ns for "
        f"each element of a map, {done.per_network:.1f} us for a network; {done.whole} whole networks agree within "
        f"{100 * done.spread:.0f} %",
        soft_wrap=True,
        highlight=False,
    )


def info(options: Info) -> None:
    """`oncequant info`."""
    from oncequant.report.contents import read_contents

    if options.targets:
        console.print(targets_table())
        return
    if options.run is None:
        console.print(presets_table())
        console.print(f"costs: {', '.join(COSTS)}; searchers: {', '.join(SEARCHERS)}; methods: {', '.join(METHODS)}")
        return
    settings = read_settings(options.run)
    values = read_object(options.run / "run.json")
    own = ", a network of your own" if hasattr(settings.model, "network") else ""
    preset = f", preset {settings.preset}" if settings.preset else own
    console.print(f"{options.run}: {settings.method} on {values['data'].get('name')}{preset}")
    console.print(f"made {date_of(options.run)} on {values['device']} by: {values['command']}", soft_wrap=True)
    for later in commands_of(options.run)[1:]:
        console.print(f"then: {later}", soft_wrap=True)
    method, cfg = runs.read_config(options.run)
    stages = METHODS[method].stages(cfg)
    done = [stage for stage in stages if (options.run / f"{stage}.safetensors").exists()]
    console.print(f"stages trained: {', '.join(done) or 'none'} of {', '.join(stages)}")
    contents = read_contents(options.run)  # members have the costs of tables that are younger than they are
    if contents.family:
        console.print(family_table(contents.family, contents.known_costs))
    elif done == list(stages):
        console.print(
            f"no networks chosen yet; this does it: oncequant search {shlex.quote(str(options.run))}", soft_wrap=True
        )
    else:
        left = [stage for stage in stages if stage not in done]
        console.print(f"not trained yet: {', '.join(left)}; this goes on: {values['command']}", soft_wrap=True)


HANDLERS: dict[type, Callable[[Any], None]] = {
    Run: run, Train: train, Search: search, Compare: compare, Evaluate: evaluate, Export: export, Report: report,
    Analyse: analyse, predict.Predict: predict_pictures, Card: card, Push: push, Cost: cost, Profile: profile,
    Info: info
}  # fmt: skip


# -- parts that several commands share


def _check_packages(*names: str) -> None:
    """Raise ValueError if exporting and reporting, maybe hours from now, would lack a package."""
    if missing := [name for name in names if find_spec(name) is None]:
        raise ValueError(f'this command needs more packages ({", ".join(missing)}): pip install "oncequant[all]"')


def _prepare(options: Train, search_options: BudgetOptions | None) -> tuple[TrainingOptions, RunValue]:
    """The run folder of a command, ready for training."""
    if options.machine.tune_allocator:
        keep_freed_memory()
    machine = options.machine
    where = machine.device, machine.hours, options.tables.costs
    return runs.prepare(options.training, options.data, options.model, search_options, *where, tells_time=True)


def _open(source: Existing) -> tuple[TrainingOptions, RunValue]:
    """The run that a command works on."""
    return runs.open_run(source.run, source.data, source.device, source.cache, source.changed_test)


def _tell_chosen(found: RunValue, chosen: Sequence[Member]) -> None:
    """Print what a search has chosen."""
    console.print(family_table(chosen, found.costs))
    stages = Counter(member.stage for member in chosen if member.name[-2:] in ("-S", "-M", "-L"))
    if few := [f"{stage} {count}" for stage, count in stages.items() if count < 3]:
        console.print(
            f"fewer than three networks on a front ({', '.join(few)}; L is the most accurate, whatever its size): the "
            "validation images do not tell more apart",
            soft_wrap=True,
        )
    if old := outdated_exports(found.folder):
        console.print(
            f"{', '.join(old)}: still the networks of an earlier search, until `oncequant export` replaces them",
            soft_wrap=True,
        )


def _check_formats(formats: Sequence[str]) -> None:
    """Raise ValueError if there is none, or if this machine lacks what one needs."""
    if not formats:
        raise ValueError(f"--formats: give at least one of {', '.join(FORMATS)}")
    check_tools(formats)
    _check_packages(*needed_packages(formats))


def _export(
    cfg: TrainingOptions,
    found: RunValue,
    names: Sequence[str],
    stage: str | None,
    formats: Sequence[str] = DEFAULT_FORMATS,
) -> str:
    """Export and verify chosen subnets, all without `names`. Returns what is wrong with the files, or ""."""
    exports = export_members(cfg, found, names, stage, formats)
    shown = exports_table([one.found for one in exports], brief=True)
    table = Table("subnet", *shown.columns, title="Exported files, verified on every test image")
    for one, texts in zip(exports, shown.texts):
        table.add_row(one.name, *texts)
    console.print(table)
    return "; ".join(f"{one.name} cannot be trusted: {'; '.join(one.problems)}" for one in exports if one.problems)


def _report(folder: Path, pictures: bool, images: Data | None = None, moved: str | None = None) -> None:
    """Write the report of a run folder and say where it is."""
    from oncequant.report import write_report

    console.print(f"report: {write_report(folder, pictures, images, moved)}", soft_wrap=True, highlight=False)


def _machine(options: object) -> tuple[int, torch.device]:
    """Processes and device that a command asks for. Raises ValueError if the machine has too few cores or GPUs."""
    asked = options.train if isinstance(options, Run) else options
    places = [getattr(asked, name) for name in ("source", "machine") if hasattr(asked, name)]
    given = {name: value for place in places for name, value in vars(place).items()}
    devices, device = given.get("devices", 1), device_of(given.get("device", "cpu"))
    there = torch.cuda.device_count() if device.type == "cuda" else cores()
    asked_for = {"devices": devices, "jobs": getattr(getattr(asked, "training", None), "jobs", None) or 1}
    for name, count in asked_for.items():
        if count > there:
            kind = "GPUs" if device.type == "cuda" else "CPU cores that this process may use"
            raise ValueError(f"--{name} {count}: use 1 to {there}, the number of {kind}")
    return devices, device
