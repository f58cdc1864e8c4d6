"""Pages of `--help`: plain text, two columns, at most 80 characters wide."""

import shutil
import textwrap
from collections.abc import Mapping, Sequence

Row = tuple[Sequence[str], str]
"""How an option is written, a line for each way, and what it does."""
WIDTH = 80


def help_page(usage: str, text: str, sections: Mapping[str, Sequence[Row]], last: str = "") -> str:
    """Usage, paragraphs, a table for each section, and paragraphs; all tables have the same columns."""
    width = min(WIDTH, shutil.get_terminal_size().columns)
    blocks = [usage, *_paragraphs(text, width)]
    rows = {title: [(_lines(names), text) for names, text in section] for title, section in sections.items()}
    left = max((len(line) for section in rows.values() for names, _ in section for line in names), default=0) + 4
    for title, section in rows.items():
        lines = [f"{title}:"]
        for names, words in section:
            right = textwrap.wrap(words, max(20, width - left), break_on_hyphens=False)
            names, right = _filled(names, right), _filled(right, names)
            lines += [f"  {name:{left - 2}}{part}".rstrip() for name, part in zip(names, right)]
        blocks.append("\n".join(lines))
    return "\n\n".join([*blocks, *_paragraphs(last, width)])


def _lines(names: Sequence[str]) -> list[str]:
    """Ways to write an option in one line, or in one each if they are long."""
    joined = ", ".join(names)
    return [joined] if len(joined) <= 24 else [*(f"{name}," for name in names[:-1]), names[-1]]


def _filled(lines: Sequence[str], other: Sequence[str]) -> list[str]:
    return [*lines, *[""] * (len(other) - len(lines))]


def _paragraphs(text: str, width: int) -> list[str]:
    parts = [" ".join(part.split()) for part in text.split("\n\n")]
    return [textwrap.fill(part, width, break_on_hyphens=False) for part in parts if part]
