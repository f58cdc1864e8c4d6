"""The words of a command line become values; docstrings of the values are the text of `--help`.

The word after `run` or `train` picks a method, and a parser is built for it: its options are those of a few frozen
dataclasses side by side, among them the method's own Config, without those that nothing of the method would read.
"""

import contextlib
import difflib
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import tyro

from oncequant import predict
from oncequant.compare import CompareOptions
from oncequant.every_bit import AllBits
from oncequant.export.formats import FORMATS
from oncequant.files import FileError, PathText, user_path
from oncequant.help_text import help_page
from oncequant.limits import check_ranges
from oncequant.methods import DEFAULT_METHOD, METHODS
from oncequant.models import FAMILIES, PRESETS
from oncequant.parser import Groups, field_names, merged, one_line, wrong
from oncequant.quantizers import WEIGHT_QUANTIZERS
from oncequant.run_folder import read_settings
from oncequant.search import SEARCHERS, BudgetOptions
from oncequant.settings import (
    DataOptions,
    Device,
    EvaluateOptions,
    Existing,
    ExportOptions,
    Machine,
    Measured,
    ModelOptions,
    ProfiledModel,
    ProfileOptions,
    ReportOptions,
    RunFolder,
    Shared,
    TableOptions,
    presets_of,
)
from oncequant.train import SupernetOptions, TrainingOptions

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
class OutputOptions(ReportOptions):
    """What a run writes at its end."""

    formats: tuple[str, ...] | None = None
    """Files of the chosen networks; c needs a C compiler. Default: onnx and package, with --target c, too."""


@dataclass(frozen=True)
class Run:
    """Everything: train, search, export, report. Without --data on digits.

    Interrupted? The same command goes on where it stopped.
    """

    train: Train
    search: BudgetOptions
    output: OutputOptions = field(default_factory=OutputOptions)


@dataclass(frozen=True)
class Search:
    """Choose networks of a run for other budgets, without retraining.

    `oncequant search RUN --help` has the options of the run's own method.
    """

    source: Existing
    machine: Shared
    search: BudgetOptions
    tables: TableOptions = field(default_factory=TableOptions)


@dataclass(frozen=True)
class Compare:
    """Put networks of a run beside some that are trained one by one.

    The run is one of OQAT. Ways to come to networks. supernet: as OQAT deploys, without training. nas-then-quantize:
    the float supernet's best, fine-tuned at the bit-width, for runs trained with --float-sandwich. search-then-retrain:
    the low-bit supernet's best, trained from scratch. uniform: a hand-scaled network, trained from scratch. hand-made:
    a plain small network as wide as fits, trained for an equal share of our run's training time. hand-made-whole: one
    of them, trained for all of it.

    Interrupted? The same command goes on.
    """

    source: Existing
    machine: Shared
    compare: CompareOptions
    tables: TableOptions = field(default_factory=TableOptions)


@dataclass(frozen=True)
class Evaluate:
    """Measure one network of a trained run: accuracy and costs."""

    source: Measured
    evaluate: EvaluateOptions


@dataclass(frozen=True)
class Export:
    """Write chosen networks as ONNX, safetensors or C, and verify them."""

    source: Existing
    export: ExportOptions


@dataclass(frozen=True)
class Card:
    """Write README.md, a model card, and config.json beside an exported network."""

    run: RunFolder
    """Run folder made by `oncequant train` or `oncequant run`."""
    network: Annotated[str, tyro.conf.Positional]
    """Name of the exported network."""


@dataclass(frozen=True)
class Push:
    """Upload an exported network with its card to the Hugging Face hub.

    `hf auth login` or the variable HF_TOKEN tell who uploads.
    """

    run: RunFolder
    """Run folder made by `oncequant train` or `oncequant run`."""
    network: Annotated[str, tyro.conf.Positional]
    """Name of the exported network."""
    repository: Annotated[str, tyro.conf.Positional]
    """OWNER/NAME on the hub; it is made if there is none."""
    private: bool = False
    """Only its owner may see it, if it is new."""


@dataclass(frozen=True, kw_only=True)
class Report(ReportOptions):
    """Write RUN/report: a page that works offline, pictures and tables.

    Of several runs: one page in --out, with their fronts on common axes.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders made by `oncequant train` or `oncequant run`."""
    out: Path = Path("comparison")
    """Folder of the page about several runs."""
    data: PathText | None = None
    """Where the images of the run are now, if they have moved, for pictures of its mistakes."""

    def __post_init__(self):
        """Refuse what has no meaning before any work."""
        if self.data is not None and (len(self.runs) > 1 or not self.pictures):
            raise ValueError("data: is for the pictures of one run's mistakes; leave it out")


@dataclass(frozen=True, kw_only=True)
class Analyse:
    """What runs teach about architecture and bits: a page and tables.

    Which architectures stand few bits, which bit-width pays at a budget, which layers should keep more. Random networks
    of each run are measured on its validation images; the run keeps them. docs/analysis.md says how.

    Interrupted? The same command goes on.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders made by `oncequant train` or `oncequant run`."""
    evaluations: int = 60
    """Random architectures, measured at each bit-width, and once more as many with bit-widths mixed at random."""
    images: int = 2000
    """Validation images to measure on, all if there are fewer."""
    out: Path | None = None
    """Folder of page and tables, or a page that ends in .html. Default: RUN/analysis; of several runs: analysis."""
    data: PathText | None = None
    """Where the images of the runs are now, if they have moved."""
    device: Device = "auto"
    """auto takes a GPU if there is one."""
    cache: bool = True
    """Keep decoded images for later commands."""

    def __post_init__(self):
        """Refuse too few before any work."""
        check_ranges(self, evaluations=(20, 100_000), images=(100, 10_000_000))


@dataclass(frozen=True, kw_only=True)
class Cost(AllBits):
    """Print the costs of architectures, JSON lines in and out."""

    archs: Annotated[PathText, tyro.conf.Positional]
    """File with one architecture a line, or - for standard input. Choices with one value and the bits of absent
    blocks may be left out; missing bit-widths are --bits."""
    costs: tuple[Path, ...] = ()
    """Table of what layers take on a device, whose cost is printed too."""


@dataclass(frozen=True)
class Profile:
    """Time all layers on this machine: a table for --costs.

    They run in the format c, on one thread. Interrupted? The same command goes on. For another device fill in such a
    table yourself: docs/export.md.
    """

    model: ProfiledModel
    profile: ProfileOptions


@dataclass(frozen=True)
class Info:
    """Show what is in a run; without one, the presets and the costs."""

    run: Annotated[Path | None, tyro.conf.Positional] = None
    """Run folder made by `oncequant train` or `oncequant run`."""
    targets: bool = False
    """The boards that --target knows, and their budgets, instead."""


COMMANDS = {  # in the order of use
    "run": Run, "info": Info, "search": Search, "evaluate": Evaluate, "export": Export, "predict": predict.Predict,
    "card": Card, "push": Push,
    "report": Report, "analyse": Analyse, "train": Train, "compare": Compare, "profile": Profile, "cost": Cost,
}  # fmt: skip
TITLES = {  # of groups, in the help
    "data": "Images", "model": "Network", "training": "Training", "tables": "Search", "search": "Search",
    "machine": "Machine", "source": "Run", "report": "Arguments", "analyse": "Arguments", "output": "Output",
    "card": "Arguments", "push": "Arguments", "cost": "Options", "info": "Options",
    "evaluate": "Measurement", "export": "Files", "compare": "Comparison", "profile": "Table",
}  # fmt: skip
COMMON = {  # what `run --help` and `train --help` explain at once
    "data", "run", "flip", "max_train", "preset", "width", "resolutions", "epochs", "float_epochs", "budgets", "target",
    "device", "devices", "hours", "formats",
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
    if not words or words[0] in ("-h", "--help"):
        print(overview(), file=sys.stdout if words else sys.stderr)
        sys.exit(0 if words else 2)
    name, *rest = words
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"is it {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        wrong(f"there is no command {name!r}; {hint} `oncequant --help` explains them")
    if name == "predict":
        return predict.parse(rest)  # by itself, since it works without what this module needs
    _refuse_old_spellings(name, rest)
    kind, program = COMMANDS[name], f"oncequant {name}"
    if name in ("run", "train"):
        return _parse_training(name, rest)
    if name == "profile":
        parts = get_type_hints(kind)
        choices = {**CHOICES, "preset": tuple(PRESETS)}
        return kind(**Groups(program, kind.__doc__, parts, TITLES, choices=choices).parse(rest))
    if name in ("report", "analyse", "card", "push", "cost", "info"):
        return Groups(program, kind.__doc__, {name: kind}, TITLES, choices=CHOICES).parse(rest)[name]
    parts = get_type_hints(kind)
    if name == "search":
        parts["search"] = _search_of(rest)
    return kind(**Groups(program, kind.__doc__, parts, TITLES, choices=CHOICES).parse(rest))


def overview() -> str:
    """The text of `oncequant --help`."""
    rows = [([name], one_line((kind.__doc__ or "").split("\n\n")[0])) for name, kind in COMMANDS.items()]
    last = "Options of a command: oncequant COMMAND --help\n\nVersion: oncequant --version"
    return help_page("usage: oncequant COMMAND [OPTIONS]", DESCRIPTION, {"Commands": rows}, last)


def _parse_training(command: str, words: Sequence[str]) -> Run | Train:
    """`run` and `train`, with the options of a method: the first of METHODS unless the first word is another."""
    name = DEFAULT_METHOD
    if words and not words[0].startswith("-"):
        name, *words = words
        if name not in METHODS:
            wrong(f"there is no method {name!r}; there are {', '.join(METHODS)}")
    method = METHODS[name]
    parts = dict(data=DataOptions, model=ModelOptions, training=method.Config, tables=TableOptions, machine=Machine)
    if command == "run":
        parts["search"], parts["output"] = method.SearchOptions, OutputOptions
    known = {"preset"}.union(*(field_names(FAMILIES[family].Config) for family in method.families))
    hidden = field_names(ModelOptions) - (known - field_names(method.Config))
    others = ", ".join(f"oncequant {command} {other} --help" for other in METHODS if other != name)
    title = (method.__doc__ or "").partition(". ")[0]
    text = f"{COMMANDS[command].__doc__} Method {name}: {title}."
    choices = {**CHOICES, "preset": ("auto", *presets_of(name))}
    shared = field_names(SupernetOptions) if issubclass(method.Config, SupernetOptions) else set()
    own = field_names(method.Config) - field_names(TrainingOptions) - shared
    program, last = f"oncequant {command} {name}", f"Other methods: {others}"
    apart = dict.fromkeys(shared - field_names(TrainingOptions), "Supernet")
    apart |= dict.fromkeys(own, name.upper())
    groups = Groups(program, text, parts, TITLES, {"model": hidden}, choices, COMMON, apart, last)
    values = groups.parse(words)
    rest = {name: values.pop(name) for name in ("search", "output") if name in values}
    return Run(Train(**values), **rest) if rest else Train(**values)


def _search_of(words: Sequence[str]) -> type:
    """The options of a search: those of the method of the run folder that is named, all without one."""
    for word in words:
        with contextlib.suppress(ValueError, FileError, KeyError):  # the command itself will say it
            if not word.startswith("-") and (user_path(word) / "run.json").is_file():
                return METHODS[read_settings(user_path(word)).method].SearchOptions
    return merged("SearchOptions", [method.SearchOptions for method in METHODS.values()])


def _refuse_old_spellings(command: str, words: Sequence[str]) -> None:
    """Say how options are written that older versions spelled otherwise."""
    for word, following in zip(words, [*words[1:], ""]):
        if word.partition("=")[0] == "--method":
            given = word.partition("=")[2] or following
            method = given if given in METHODS else DEFAULT_METHOD
            wrong(f"the method is a word: write `oncequant {command} {method}`")
        if old := re.fullmatch(rf"--({'|'.join(METHODS)})[.]([^=]+)(=.*)?", word):
            wrong(f"options of a method have no prefix: write `oncequant {command} {old[1]} --{old[2]}`")
