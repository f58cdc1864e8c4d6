"""One parser and one help from several dataclasses: their fields are the options, the docstrings below them the texts.

`tyro` finds which words belong to which option. What the words mean is decided here: numbers, names that must be among
those of the program's dictionaries, and paths, in which `~` and `$NAME` are replaced before anything looks at them.
"""

import difflib
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, make_dataclass
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, NoReturn, get_args, get_origin, get_type_hints

import docstring_parser
import tyro

from oncequant.cost import Budget, find_cost
from oncequant.cost_table import known_costs
from oncequant.files import MAY_BE_PATH, user_path
from oncequant.help_text import Row, help_page
from oncequant.targets import HELP, with_target

SPELLED = {"budgets": "budget", "runs": "run"}  # what is given several times, by the field that holds all
REPEATED = ("budgets", "costs")
YES_OR_NO = {"true": "True", "yes": "True", "on": "True", "false": "False", "no": "False", "off": "False"}
WORDS_FOR: dict[type, str] = {int: "a whole number", float: "a number"}
METAVARS = {
    "data": "DATA", "run": "FOLDER", "out": "FILE", "init": "FILE", "costs": "TABLE", "budgets": "BOUND",
    "target": "BOARD", "front": "COST", "cost": "COST", "stage": "STAGE", "weights": "FILE",
    "network": "FILE.py:FUNCTION",
}  # fmt: skip
KINDS_METAVARS: dict[type, str] = {int: "N", float: "X", str: "NAME", Path: "PATH"}


@dataclass(frozen=True)
class Option:
    """One option, or one argument without a name."""

    field: str
    group: str
    section: str
    """Title under which the help has it."""
    kind: type
    """Of one value: int, float, bool, str or Path."""
    count: int | None
    """Values that it takes; None is any number of them."""
    default: Any
    text: str
    choices: tuple[Any, ...] = ()
    positional: bool = False
    may_be_path: bool = False
    """Whether its text can be a path or something else."""

    @property
    def name(self) -> str:
        """As it is written on the command line."""
        plain = SPELLED.get(self.field, self.field).replace("_", "-")
        return plain.upper() if self.positional else f"--{plain}"

    @property
    def repeated(self) -> bool:
        """Whether it is given once for each value."""
        return self.field in REPEATED

    @property
    def takes_many(self) -> bool:
        """Whether any number of values follow it."""
        return self.count is None and not self.repeated

    def value(self, given: Any) -> Any:
        """What words mean. Raises ValueError that names the option."""
        return tuple(map(self._one, given)) if isinstance(given, tuple | list) else self._one(given)

    def _one(self, word: str) -> Any:
        try:
            if self.kind is Path or self.may_be_path:
                found = user_path(word)
                return word if found == Path(word) and self.kind is str else self.kind(found)  # ./a stays ./a
            value: Any = word == "True" if self.kind is bool else self.kind(word)
        except ValueError as error:
            wanted = WORDS_FOR.get(self.kind)
            raise ValueError(f"{self.name} {word}: use {wanted}" if wanted else f"{self.name} {error}") from None
        if self.choices and value not in self.choices:
            raise ValueError(f"{self.name} {word}: use {', '.join(map(str, self.choices))}")
        return value

    def row(self) -> Row:
        """How the help shows it."""
        names, text = [self.name], self.text
        if self.kind is bool:
            names = names if self.default is False else [self.name, f"--no-{self.name[2:]}"]
        elif self.positional:
            inner = f"{self.name} ..." if self.takes_many else self.name
            names = [inner if self.default is MISSING else f"[{inner}]"]
        else:
            choices = "|".join(map(str, self.choices))
            metavar = METAVARS.get(self.field, KINDS_METAVARS[self.kind])
            metavar = choices if choices and len(choices) < 15 and not self.takes_many else metavar
            names = [f"{self.name} {' '.join([metavar] * (self.count or 1))}{' ...' if self.takes_many else ''}"]
            if metavar != choices and not all(str(choice) in text for choice in self.choices):
                text += f" One of {', '.join(map(str, self.choices))}."
        if not (self.default is MISSING or self.default is None or self.default is False or self.default == ()):
            text += f" (default {_shown(self.default)})"
        return names, text


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_shown, value))
    return "yes" if value is True else f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Groups:
    """The options of one command: fields of dataclasses, by the name of their group."""

    program: str
    """As it is called."""
    text: str | None
    """What it does: paragraphs."""
    kinds: Mapping[str, type]
    titles: Mapping[str, str]
    """Titles of groups in the help."""
    hidden: Mapping[str, Collection[str]] = field(default_factory=dict)
    """By group, fields that are no options here and keep their default."""
    choices: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Values that a field can have, where its type does not say."""
    common: Collection[str] | None = None
    """Fields that `--help` explains; others have the help of their section. None: `--help` explains all."""
    apart: Mapping[str, str] = field(default_factory=dict)
    """Titles of fields that the help does not show with their group."""
    others: str = ""
    """Last line of the help."""

    def options(self) -> list[Option]:
        """All of them, in order."""
        found = []
        for group, kind in self.kinds.items():
            hints, texts = get_type_hints(kind, include_extras=True), help_texts(kind)
            for f in fields(kind):
                if f.name not in self.hidden.get(group, ()):
                    title = self.apart.get(f.name, self.titles[group])
                    choices = tuple(self.choices.get(f.name, ()))
                    found.append(_option(hints[f.name], choices, f.name, group, title, f.default, texts[f.name]))
                    if f.name == "budgets":
                        found.append(Option("target", group, title, str, 1, None, HELP))
        return found

    def parse(self, words: Sequence[str]) -> dict[str, Any]:
        """A value of each class. Prints help or what is wrong with a word, and exits, with status 2 if it is wrong;
        raises ValueError for values that cannot work."""
        options = self.options()
        for word in words:
            if word == "-h" or word.startswith("--help"):
                print(self.help(word.removeprefix("--help").removeprefix("-") if word != "-h" else ""))
                sys.exit(0)
        refuse_empty(words)
        words_of = self._split(options, words)
        groups: dict[str, dict[str, Any]] = {name: {} for name in self.kinds}
        for option in options:
            given = words_of[option.field]
            if given is not None and not (option.repeated and not given):
                try:
                    groups[option.group][option.field] = option.value(given)
                except ValueError as error:
                    wrong(str(error))
            elif option.default is MISSING:
                wrong(f"{option.name} is missing: {option.text} `{self.program} --help` says more")
        return self._made(groups)

    def help(self, topic: str = "") -> str:
        """The text of `--help`, or of `--help-TOPIC`: the section of this title, without what `--help` has."""
        options, last = self.options(), self.others
        common = {option.field for option in options} if self.common is None else self.common
        more = dict.fromkeys(o.section.lower() for o in options if o.field not in common)
        if topic and topic not in more:
            wrong(f"--help-{topic}: use --help{''.join(f', --help-{name}' for name in more)}")
        if topic:
            shown = [o for o in options if o.section.lower() == topic and o.field not in common]
            text, last = f"More options of `{self.program}`.", f"The others: {self.program} --help"
        else:
            shown, text = [o for o in options if o.field in common], self.text or ""
            if more:
                last = f"More options: {', '.join(f'--help-{name}' for name in more)}.\n\n{last}"
        arguments = [o.row()[0][0] for o in shown if o.positional]
        usage = " ".join(["usage:", self.program, *arguments, "[OPTIONS]"])
        sections: dict[str, list[Row]] = {}
        for option in sorted(shown, key=lambda option: not option.positional):
            sections.setdefault(option.section, []).append(option.row())
        return help_page(usage, text, sections, last)

    def _split(self, options: Sequence[Option], words: Sequence[str]) -> dict[str, Any]:
        """By field the words of each option, None or () if it is not given."""
        rows: list[Any] = []
        for option in options:
            hint: Any = str if option.count == 1 else tuple[str, ...]
            if option.count not in (1, None):
                hint = tuple.__class_getitem__((str,) * option.count)
            how: list[Any] = [tyro.conf.arg(name=option.name.strip("-"))]
            how += [tyro.conf.Positional] * option.positional + [tyro.conf.UseAppendAction] * option.repeated
            default = () if option.repeated else None
            rows.append(
                (option.field, Annotated[hint if option.repeated else hint | None, *how], field(default=default))
            )
        words = with_values(words, [option.name for option in options if option.kind is bool])
        if lacks := lacking_value(options, words):
            wrong(f"{lacks}: its value is missing; `{self.program} --help` explains the options")
        flat: Any = make_dataclass("Options", rows, kw_only=True)
        how_all = (tyro.conf.DisallowNone,)
        found, unknown = tyro.cli(flat, args=words, config=how_all, return_unknown_args=True, add_help=False)
        if unknown:
            word = next((word for word in unknown if word.startswith("-")), unknown[0]).partition("=")[0]
            names = [option.name for option in options if not option.positional]
            near = difflib.get_close_matches(word, names, n=2)
            hint_of = f"is it {' or '.join(near)}?" if near else f"`{self.program} --help` explains the options"
            wrong(f"{self.program} knows no {word}; {hint_of}")
        return vars(found)

    def _made(self, groups: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        """The values of the classes, with budgets and costs that are known. Raises ValueError."""
        given = {name: value for group in groups.values() for name, value in group.items()}
        names = {f.name: f.default for kind in self.kinds.values() for f in fields(kind)}
        if "costs" in names:  # of tables, and those that the run knows
            costs = known_costs(given.get("run"), given.get("costs", ()))
            for name in {"front", "cost"} & set(names):
                find_cost(given.get(name, names[name]), costs)
            if "budgets" in names:
                bounds = [Budget.parse(text, costs) for text in given.get("budgets", ())]
                bounds = list(with_target(bounds, given.get("target")))
                group = next(groups[name] for name, kind in self.kinds.items() if "budgets" in field_names(kind))
                group.pop("target", None)
                group["budgets"] = tuple(bounds)
        try:
            return {name: kind(**groups[name]) for name, kind in self.kinds.items()}
        except ValueError as error:
            word, _, rest = str(error).partition(" ")
            raise ValueError(f"--{word.replace('_', '-')} {rest}" if word.rstrip(":") in names else error) from error


def _option(hint: Any, choices: tuple[Any, ...], name: str, group: str, title: str, default: Any, text: str) -> Option:
    """The option of a field with this type."""
    extras: list[Any] = []

    def bare(hint: Any) -> Any:  # without annotations and None
        while get_origin(hint) is Annotated or NoneType in get_args(hint):
            extras.extend(getattr(hint, "__metadata__", ()))
            hint = next(part for part in get_args(hint) if part is not NoneType)
        return hint

    count: int | None = 1
    hint = bare(hint)
    if get_origin(hint) is tuple:
        parts = get_args(hint)
        hint, count = bare(parts[0]), None if parts[-1] is Ellipsis else len(parts)
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        hint = type(choices[0])
    kind = hint if hint in (int, float, bool, Path) else str
    where = tyro.conf.Positional in extras, MAY_BE_PATH in extras
    return Option(name, group, title, kind, count, default, text, choices, *where)


def with_values(words: Sequence[str], flags: Collection[str]) -> list[str]:
    """Words in which each of the `flags` is followed by True or False: `--flip`, `--no-flip`, `--flip no`, `--flip=no`
    are all ways to write it. Prints what is wrong with another value and exits."""
    found, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        name, is_given, value = word.partition("=")
        name = name.replace("_", "-")
        negated = f"--{name[5:]}" if name.startswith("--no-") else None
        if name in flags or negated in flags:
            if not is_given and rest and rest[0].lower() in YES_OR_NO:
                value = rest.pop(0)
            elif not is_given:
                value = "yes"
            if value.lower() not in YES_OR_NO or (negated in flags and value != "yes"):
                wrong(f"{word}: write {negated or name} or --no-{(negated or name)[2:]}")
            found += [str(negated or name), YES_OR_NO["no" if negated in flags else value.lower()]]
        else:
            found.append(word)
    return found


def lacking_value(options: Sequence[Option], words: Sequence[str]) -> str | None:
    """The name of the first option that has fewer values than it takes."""
    counts = {
        option.name: option.count or 1
        for option in options
        if (option.count or option.repeated) and not option.positional
    }
    for place, word in enumerate(words):
        count = counts.get(word.replace("_", "-"), 0)
        following = words[place + 1 : place + 1 + count]
        if len(following) < count or any(re.match("--?[a-zA-Z]", value) and value != "-inf" for value in following):
            return word
    return None


def refuse_empty(words: Sequence[str]) -> None:
    """Print which option or argument is empty, and exit, if one is: an unset variable of a script, mostly."""
    for place, word in enumerate(words):
        name, is_given, value = word.partition("=")
        if not word.strip():
            before = [other for other in words[:place] if other.startswith("--") and "=" not in other]
            name = f"{before[-1]}: its value" if before else f"argument {place + 1}"
            wrong(f"{name} is empty text")
        if name.startswith("--") and is_given and not value.strip():
            wrong(f"{name}: its value is empty text")


def wrong(message: str) -> NoReturn:
    """Say what is wrong with the words of a command, and exit."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


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
