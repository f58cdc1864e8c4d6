"""The page: findings of some runs as HTML that loads nothing and needs no script."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

from oncequant.analysis.finding import Finding, Table
from oncequant.report.page import page_style

OWN_STYLE = """
main { max-width: 1080px; }
header, footer { max-width: 1080px; }
h2 { margin: 28px 0 0; font-size: 22px; }
h3 { font-size: 18px; margin: 0 0 8px; }
h4 { font-size: 15px; margin: 0 0 4px; }
.chart { max-width: 540px; }
@media (min-width: 701px) { .chart text { font-size: 9.5px; } }
.chart path.zero { stroke: var(--soft); fill: none; stroke-dasharray: 4 3; }
.chart path.grid { fill: none; }
.said { border-left: 3px solid var(--line); padding-left: 14px; }
dl { grid-template-columns: minmax(0, 1fr); }
dd { margin-bottom: 10px; }
a { color: var(--accent); }
.scroll + .soft { margin-top: 18px; }
"""
QUESTIONS = {  # key of the finding that answers -> question
    "budgets": "Do few bits pay at my budget?",
    "worth": "Which layers should keep more bits?",
    "front_bits": "Which bits do the best networks have?",
    "friendliness": "Which architectures stand few bits?",
    "fronts": "Are the best networks of few bits other ones?",
    "ranking": "Must I search again for each bit-width?",
    "accuracy": "What do fewer bits cost?",
}
READING = (
    "An interval holds the true value with a probability of 95 %. What is said to be more or less has an interval that "
    "leaves out 0; else it is undecided.",
    "Everything is measured on validation images; the test images are not looked at.",
    "docs/analysis.md of the project defines every number.",
)


@dataclass(frozen=True)
class RunFindings:
    """What was found in one run."""

    name: str
    about: Sequence[str]
    """What was measured, in sentences."""
    findings: Sequence[Finding]


def page_html(runs: Sequence[RunFindings]) -> str:
    """The whole page."""
    body = "\n".join(_run(number, run) for number, run in enumerate(runs, start=1))
    title = f"Architecture and quantization: {', '.join(run.name for run in runs)}"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{html.escape(title)}</title>
<style>
{page_style()}
{OWN_STYLE}</style>
</head>
<body>
<header>
<h1>Architecture and quantization</h1>
<p class="soft">What the networks of {len(runs)} finished run{"s" * (len(runs) > 1)} teach about their interaction.</p>
</header>
<main>
{body}
</main>
<footer>
<h2>How to read this page</h2>
{_paragraphs(READING)}
</footer>
</body>
</html>
"""


def _run(number: int, run: RunFindings) -> str:
    by_key = {finding.key: finding for finding in run.findings}
    answers = "\n".join(
        f'<dt>{question} <a href="#run{number}-{key}">More: {html.escape(by_key[key].title.lower())}</a></dt>'
        f"<dd>{html.escape(by_key[key].sentences[0])}</dd>"
        for key, question in QUESTIONS.items()
        if key in by_key
    )
    sections = "\n".join(_section(number, finding) for finding in run.findings)
    return (
        f'<h2 id="run{number}">{html.escape(run.name)}</h2>\n'
        f"<section><h3>In short</h3>\n{_paragraphs(run.about)}\n<dl>\n{answers}\n</dl></section>\n{sections}"
    )


def _section(number: int, finding: Finding) -> str:
    said = f'<div class="said"><h4>The paper says</h4>{_paragraphs(finding.paper)}</div>' if finding.paper else ""
    words = f"<div>{_paragraphs(finding.sentences)}{said}</div>"
    picture = f"<figure>{finding.picture}</figure>\n" if finding.picture else ""
    tables = "\n".join(map(_table, finding.tables))
    return (
        f'<section id="run{number}-{finding.key}"><h3>{html.escape(finding.title)}</h3>\n'
        f'<div class="split{"" if picture else " wide"}">{picture}{words}</div>\n{tables}</section>'
    )


def _paragraphs(texts: Sequence[str]) -> str:
    return "".join(f"<p>{html.escape(text)}</p>" for text in texts)


def _table(table: Table) -> str:
    """In a box that scrolls by itself, and can be reached by keyboard."""
    caption = html.escape(table.caption)
    head = "".join(f'<th scope="col" class="left">{html.escape(text)}</th>' for text in table.columns)
    rows = "".join(
        "<tr>"
        + "".join(
            f'<th scope="row">{html.escape(text)}</th>' if not i else f'<td class="left">{html.escape(text)}</td>'
            for i, text in enumerate(row)
        )
        + "</tr>\n"
        for row in table.rows
    )
    return (
        f'<p class="soft">{caption}.</p>\n<div class="scroll" tabindex="0" role="region" aria-label="{caption}">'
        f'<table aria-label="{caption}"><thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>'
    )
