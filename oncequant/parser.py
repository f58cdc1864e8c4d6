"""One parser and one help from several dataclasses: their fields are the options, the docstrings below them the texts.

`tyro` reads the command line. What it is given here are copies of the dataclasses, since texts of several lines would
be ragged, since names are chosen among those of the program's dictionaries, and since not every field is an option.
"""

import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import docstring_parser
import tyro

from oncequant.cost import Budget, find_cost
from oncequant.cost_table import known_costs
from oncequant.targets import HELP, with_target


@dataclass(frozen=True)
class Groups:
    """The options of one command: fields of dataclasses, by the title of their group."""

    program: str
    """As it is called."""
    text: str | None
    """What it does: paragraphs."""
    kinds: Mapping[str, type]
    hidden: Iterable[str] = ()
    """Fields that are no options here and keep their default."""
    choices: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Values that a field can have, where its type does not say."""

    def parse(self, words: Sequence[str]) -> dict[str, Any]:
        """A value of each class. Prints help or what is wrong with a word, and exits, with status 2 if it is wrong;
        raises ValueError for values that cannot work."""
        rows = [(name, self._copy(kind), field(kw_only=True)) for name, kind in self.kinds.items()]
        config = tyro.conf.OmitArgPrefixes, tyro.conf.DisallowNone, tyro.conf.PositionalMetavarFromFieldName
        flat = make_dataclass("Options", rows)
        found: Any = tyro.cli(flat, prog=self.program, description=wrapped(self.text or ""), args=words, config=config)
        groups = {name: dict(vars(getattr(found, name))) for name in self.kinds}
        given = {name: value for group in groups.values() for name, value in group.items()}
        if "costs" in given:  # of tables, and those that the run knows
            costs = known_costs(given.get("run"), given["costs"])
            for name in {"front", "cost"} & set(given):
                find_cost(given[name], costs)
            if "budgets" in given:
                bounds = with_target([Budget.parse(text, costs) for text in given["budgets"]], given["target"])
                for group in groups.values():
                    if "budgets" in group:
                        group.pop("target")
                        group["budgets"] = bounds
        return {name: kind(**groups[name]) for name, kind in self.kinds.items()}

    def _copy(self, kind: type) -> type:
        """A dataclass as `tyro` should see it."""
        hints, texts, rows = get_type_hints(kind, include_extras=True), help_texts(kind), []
        for f in fields(kind):
            if f.name in self.hidden:
                continue
            hint: Any = hints[f.name]
            types = get_args(hint)
            if f.name in self.choices:
                one: Any = Literal[tuple(self.choices[f.name])]
                if get_origin(hint) is tuple:
                    hint = tuple[one, ...]
                else:
                    hint = one | None if type(None) in types else one
            if f.name in ("budgets", "costs"):
                of, name, metavar = (str, "budget", "BOUND") if f.name == "budgets" else (Path, "costs", "TABLE")
                how = tyro.conf.arg(name=name, metavar=metavar)
                hint = Annotated[tuple[of, ...], tyro.conf.UseAppendAction, how]  # type: ignore[valid-type]
            if bool in types:  # yes, no, or left open
                hint = Annotated[hint, tyro.conf.FlagConversionOff]
            if f.default is None:  # the text says what that means
                many = "INT [INT ...]" if tuple[int, ...] in types else None
                hint = Annotated[hint, tyro.conf.arg(help_behavior_hint="", metavar=many)]
            rows.append((f.name, hint, field(default=f.default, kw_only=True, metadata={"help": texts[f.name]})))
            if f.name == "budgets":
                hint = Annotated[str | None, tyro.conf.arg(help_behavior_hint="", metavar="BOARD")]
                rows.append(("target", hint, field(default=None, kw_only=True, metadata={"help": HELP})))
        return make_dataclass(kind.__name__, rows, frozen=True)


def merged(name: str, kinds: Sequence[type]) -> type:
    """A dataclass with the fields of all `kinds`; texts say which fields not all of them have."""
    rows: dict[str, tuple[str, Any, Any]] = {}
    for kind in kinds:
        hints, texts = get_type_hints(kind), help_texts(kind)
        for f in fields(kind):
            everywhere = all(f.name in field_names(other) for other in kinds)
            text = texts[f.name] + ("" if everywhere else " (Not with every method.)")
            rows.setdefault(f.name, (f.name, hints[f.name], field(default=f.default, metadata={"help": text})))
    return make_dataclass(name, rows.values(), frozen=True)


@cache
def help_texts(kind: type) -> dict[str, str]:
    """What the docstrings below the fields of a dataclass say, by field, each in one line."""
    found = {f.name: f.metadata.get("help", "") for f in fields(kind)}
    for base in reversed(kind.__mro__[:-1]):
        for param in docstring_parser.parse_from_object(base).params:
            found[param.arg_name] = one_line(param.description or "")
    return found


def field_names(kind: type) -> set[str]:
    """Names of the fields of a dataclass."""
    return {f.name for f in fields(kind)}


def one_line(text: str) -> str:
    """The words of a text."""
    return " ".join(text.split())


def wrapped(text: str) -> str:
    """Paragraphs as wide as the terminal; indented, since `tyro` joins lines that begin with a letter."""
    wrapper = textwrap.TextWrapper(shutil.get_terminal_size().columns, initial_indent="  ", subsequent_indent="  ")
    return "\n".join(wrapper.fill(one_line(part)) for part in text.split("\n\n") if part.strip())
