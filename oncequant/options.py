"""The words of a command line become values; docstrings of the values are the text of `--help`.

The word after `run` or `train` picks a method, and a parser is built for it: its options are those of a few frozen
dataclasses side by side, among them the method's own Config, without those that nothing of the method would read.
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_type_hints

import tyro

from oncequant.compare import CompareOptions
from oncequant.export.formats import FORMATS
from oncequant.files import FileError
from oncequant.methods import DEFAULT_METHOD, METHODS
from oncequant.models import FAMILIES, PRESETS
from oncequant.parser import Groups, field_names, merged, one_line
from oncequant.quantizers import WEIGHT_QUANTIZERS
from oncequant.run_folder import read_settings
from oncequant.search import SEARCHERS, BudgetOptions
from oncequant.settings import (
    AllBits,
    DataOptions,
    EvaluateOptions,
    Existing,
    ExportOptions,
    Machine,
    Measured,
    ModelOptions,
    ProfiledModel,
    ProfileOptions,
    RunFolder,
    Shared,
    TableOptions,
    presets_of,
)
from oncequant.train import TrainingOptions

DESCRIPTION = "Train one quantization-aware supernet on your images; deploy compact 4/3/2-bit networks for any budget."


@dataclass(frozen=True)
class Train:
    """Train every stage of a method.

    Interrupted? The same command goes on where it stopped.
    """

    training: TrainingOptions
    data: DataOptions = field(default_factory=DataOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    tables: TableOptions = field(default_factory=TableOptions)
    machine: Machine = field(default_factory=Machine)


@dataclass(frozen=True)
class Run:
    """Everything: train, search, export, report. With no arguments on the bundled digits.

    Interrupted? The same command goes on where it stopped.
    """

    train: Train
    search: BudgetOptions


@dataclass(frozen=True)
class Search:
    """Choose subnets of a trained run, without retraining, under any number of budgets. The options are those of the
    run's method: `oncequant search RUN --help`."""

    source: Existing
    machine: Shared
    search: BudgetOptions
    tables: TableOptions = field(default_factory=TableOptions)


@dataclass(frozen=True)
class Compare:
    """What a run of OQAT is worth: its subnets against networks that are trained for each budget, by accuracy and by
    what training took.

    supernet: as OQAT deploys, without training; nas-then-quantize: the float supernet's best, fine-tuned at the
    bit-width, for runs trained with --float-sandwich; search-then-retrain: the low-bit supernet's best, trained from
    scratch; uniform: a hand-scaled network, trained from scratch; hand-made: a plain small network as wide as fits,
    trained for an equal share of our run's training time; hand-made-whole: one of them, trained for all of it.
    Interrupted? The same command goes on.
    """

    source: Existing
    machine: Shared
    compare: CompareOptions
    tables: TableOptions = field(default_factory=TableOptions)


@dataclass(frozen=True)
class Evaluate:
    """Measure one architecture of a trained run."""

    source: Measured
    evaluate: EvaluateOptions


@dataclass(frozen=True)
class Export:
    """Write chosen subnets as packed ONNX and safetensors files and verify them in ONNX Runtime."""

    source: Existing
    export: ExportOptions


@dataclass(frozen=True)
class Report:
    """Write RUN/report: one HTML page that works offline, pictures and tables."""

    run: RunFolder
    """Run folder made by `oncequant train` or `oncequant run`."""


@dataclass(frozen=True, kw_only=True)
class Cost(AllBits):
    """Costs of architectures: one JSON object in, one JSON object out a line."""

    archs: Annotated[str, tyro.conf.Positional]
    """File with one architecture a line, or - for standard input. Choices with one value and the bits of absent
    blocks may be left out; missing bit-widths are --bits."""
    costs: tuple[Path, ...] = ()
    """Table of what layers take on a device, whose cost is printed too."""


@dataclass(frozen=True)
class Profile:
    """Time every layer of a search space on this machine, in the format c on one thread: a table for --costs.

    Interrupted? The same command goes on. For another device fill in such a table yourself: docs/export.md.
    """

    model: ProfiledModel
    profile: ProfileOptions


@dataclass(frozen=True)
class Info:
    """What is in a run folder; without one, the presets, their space sizes and the costs."""

    run: Annotated[Path | None, tyro.conf.Positional] = None
    """Run folder made by `oncequant train` or `oncequant run`."""
    targets: bool = False
    """The boards that --target knows, and their budgets, instead."""


COMMANDS = {
    "run": Run, "train": Train, "search": Search, "compare": Compare, "evaluate": Evaluate, "export": Export,
    "report": Report, "cost": Cost, "profile": Profile, "info": Info,
}  # fmt: skip
CHOICES = {
    "preset": tuple(presets_of(DEFAULT_METHOD)), "searcher": tuple(SEARCHERS),
    "weight_quantizer": tuple(WEIGHT_QUANTIZERS), "formats": tuple(FORMATS),
}  # fmt: skip


def parse(words: Sequence[str]) -> Any:
    """The value of one of COMMANDS for the words of a command line.

    Prints help, or one line that says what is wrong and how it is written, and exits, with status 2 if it is wrong.
    Raises ValueError for options whose values cannot work.
    """
    if not words or words[0] not in COMMANDS:
        about = {name: {"__doc__": _summary(kind)} for name, kind in COMMANDS.items()}
        overview: dict[str, Any] = {name: make_dataclass(name, [], namespace=doc) for name, doc in about.items()}
        tyro.extras.subcommand_cli_from_dict(overview, prog="oncequant", description=DESCRIPTION, args=words)
        raise AssertionError("tyro exits where there is no command")
    name, *rest = words
    _refuse_old_spellings(name, rest)
    kind, program = COMMANDS[name], f"oncequant {name}"
    if name in ("run", "train"):
        return _parse_training(name, rest)
    if name == "profile":
        parts = get_type_hints(kind)
        return kind(**Groups(program, kind.__doc__, parts, choices={**CHOICES, "preset": tuple(PRESETS)}).parse(rest))
    if name in ("report", "cost", "info"):
        return Groups(program, kind.__doc__, {name: kind}, choices=CHOICES).parse(rest)[name]
    parts = get_type_hints(kind)
    if name == "search":
        parts["search"] = _search_of(rest)
    return kind(**Groups(program, kind.__doc__, parts, choices=CHOICES).parse(rest))


def _parse_training(command: str, words: Sequence[str]) -> Run | Train:
    """`run` and `train`, with the options of a method: the first of METHODS unless the first word is another."""
    name = DEFAULT_METHOD
    if words and not words[0].startswith("-"):
        name, *words = words
        if name not in METHODS:
            _exit(f"there is no method {name!r}; there are {', '.join(METHODS)}")
    method = METHODS[name]
    parts = dict(data=DataOptions, model=ModelOptions, training=method.Config, tables=TableOptions, machine=Machine)
    if command == "run":
        parts["search"] = method.SearchOptions
    known = {"preset"}.union(*(field_names(FAMILIES[family].Config) for family in method.families))
    hidden = field_names(ModelOptions) - (known - field_names(method.Config))
    others = ", ".join(f"`oncequant {command} {other} --help`" for other in METHODS if other != name)
    title = (method.__doc__ or "").partition(". ")[0]
    text = f"{COMMANDS[command].__doc__}\n\nMethod {name}: {title}. Others: {others}."
    choices = {**CHOICES, "preset": ("auto", *presets_of(name))}
    groups = Groups(f"oncequant {command} {name}", text, parts, hidden, choices)
    values = groups.parse(words)
    search = values.pop("search", None)
    return Train(**values) if search is None else Run(Train(**values), search)


def _search_of(words: Sequence[str]) -> type:
    """The options of a search: those of the method of the run folder that is named, all without one."""
    for word in words:
        if not word.startswith("-") and (Path(word) / "run.json").is_file():
            try:
                return METHODS[read_settings(Path(word)).method].SearchOptions
            except (FileError, KeyError):
                break  # the command itself will say it
    return merged("SearchOptions", [method.SearchOptions for method in METHODS.values()])


def _refuse_old_spellings(command: str, words: Sequence[str]) -> None:
    """Say how options are written that older versions spelled otherwise."""
    for word, following in zip(words, [*words[1:], ""]):
        if word.partition("=")[0] == "--method":
            given = word.partition("=")[2] or following
            method = given if given in METHODS else DEFAULT_METHOD
            _exit(f"the method is a word: write `oncequant {command} {method}`")
        if old := re.fullmatch(rf"--({'|'.join(METHODS)})[.]([^=]+)(=.*)?", word):
            _exit(f"options of a method have no prefix: write `oncequant {command} {old[1]} --{old[2]}`")


def _summary(kind: type) -> str:
    """The first paragraph of a command's docstring."""
    return one_line((kind.__doc__ or "").split("\n\n")[0])


def _exit(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
