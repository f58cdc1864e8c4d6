"""What the networks of finished runs teach about the interaction of architecture and quantization.

OQAT (arXiv 2010.04354, "quantization friendliness") and QFA (2105.08952) say which architectures stand few bits, and
which layers want more. Here the same is measured in a run, each finding with its interval, and put beside the paper's
(docs/analysis.md).
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from oncequant.analysis.architectures import accuracy, friendliness, ranking
from oncequant.analysis.finding import LEAST, Finding
from oncequant.analysis.front_bits import front_bits
from oncequant.analysis.fronts import budgets, location
from oncequant.analysis.layers import worth
from oncequant.analysis.page import RunFindings, page_html
from oncequant.analysis.probes import Answered, Design, answered, design_of
from oncequant.files import FileError, write_atomically, write_csv
from oncequant.report.contents import Contents, ReportError, read_contents
from oncequant.report.several import run_names
from oncequant.run_folder import Run
from oncequant.runs import open_run
from oncequant.settings import Device
from oncequant.train import TrainingOptions

CSV_FILES = ("accuracy", "effects", "correlations", "fronts", "budgets", "bits")


def analyse(
    run_dirs: Sequence[Path],
    out: Path | None = None,
    evaluations: int = 60,
    images: int = 2000,
    data: str | None = None,
    device: Device = "auto",
    cache: bool = True,
) -> Path:
    """Measure random networks of some runs, as far as their folders lack them, and write a page and CSV files; returns
    the page.

    `out` is the folder, by default `analysis` in the run, of several runs in the working directory; or the page
    itself, a name that ends in .html. `evaluations` random architectures are measured at each bit-width, and as many
    with bit-widths mixed at random, on so many validation `images`. `data` says where the images are now, if they have
    moved. Raises ReportError for what is no run folder or
    named twice, FileError for a run without quantized stages.
    """
    runs = [read_contents(run_dir) for run_dir in run_dirs]
    names = run_names(runs)
    page = page_of(out, [run.folder for run in runs])
    designs = [design_of(run.folder, evaluations) for run in runs]  # refused before anything is measured
    for run, design in zip(runs, designs):
        if not design.uniforms and not run.measurements:
            raise FileError(f"{run.folder}: no network is chosen yet; `oncequant info {run.folder}` says how to go on")
    parts: list[RunFindings] = []
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in CSV_FILES}
    for name, run, design in zip(names, runs, designs):
        opened: Callable[[], tuple[TrainingOptions, Run]] = partial(
            open_run, run.folder, data, device, cache, changed_test=True
        )  # test images are not looked at
        answers = answered(run.folder, name, design, images, opened) if design.uniforms else None
        findings = findings_of(run, design, answers)
        parts.append(RunFindings(name, _about(run, design, answers), findings))
        for finding in findings:
            for file, rows in finding.rows.items():
                tables[file] += [{"run": name, **row} for row in rows]
    for file, rows in tables.items():
        if rows:
            write_csv(page.parent / f"{file}.csv", rows)
        else:
            (page.parent / f"{file}.csv").unlink(missing_ok=True)  # of an analysis before
    write_atomically(page, page_html(parts).encode())
    return page


def findings_of(run: Contents, design: Design, answers: Answered | None) -> list[Finding]:
    """All that can be said of a run, answers to questions of users first."""
    found: list[Finding | None] = []
    if answers is not None:
        found = [
            budgets(design, answers),
            worth(design, answers),
            front_bits(run),
            accuracy(design, answers),
            friendliness(design, answers),
            location(design, answers, run.measurements),
            ranking(design, answers),
        ]
    else:
        found = [front_bits(run)]
    return [finding for finding in found if finding is not None]


def page_of(out: Path | None, folders: Sequence[Path]) -> Path:
    """Where the page is written. Raises ReportError for a folder that holds a run."""
    if out is None:
        out = folders[0] / "analysis" if len(folders) == 1 else Path("analysis")
    page = out if out.suffix == ".html" else out / "index.html"
    if (page.parent / "run.json").exists():
        raise ReportError(f"{page.parent}: the page needs a folder of its own, not that of a run")
    if out.suffix != ".html" and out.is_file():
        raise ReportError(f"{out} is a file: give a folder, or a name that ends in .html")
    return page


def _about(run: Contents, design: Design, answers: Answered | None) -> list[str]:
    """What was measured."""
    method, data = str(run.info.get("method", "")), run.info.get("data", {})
    if answers is None:
        return [
            f"A run of {method.upper()} on {data.get('name')}. Its {len(run.measurements)} networks were trained one "
            "by one, so that no others can be measured. What follows is of these alone."
        ]
    images = next(iter(answers.largest.values())).size
    widths = ", ".join(one.label for one in design.uniforms)
    texts = [
        f"A run of {method.upper()} on {data.get('name')}. Measured on {images:,} validation images: "
        f"{len(design.archs)} random architectures, the same ones at {widths}, and {len(design.policies)} networks "
        "with bit-widths mixed at random."
    ]
    if design.float_is_trained:
        texts.append("The reference is float, in which the networks were trained, too.")
    else:
        texts.append(
            "The reference is not float: this run trained in float the largest network alone, so that others are "
            f"worth nothing there. It is the highest trained bit-width, {design.reference.label}. A run that was "
            "trained with --float-sandwich has float networks of all sizes."
        )
    if len(design.archs) < LEAST:
        texts.append(
            f"There are {len(design.archs)} architectures that differ in more than bit-widths, fewer than {LEAST}: too "
            "few to say which ones stand few bits."
        )
    return texts
