"""Progress bars with time left and the metric that matters; plain lines where the output is not a terminal."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from oncequant.distributed import is_main

console = Console(markup=False, highlight=False)  # texts hold users' paths, which may look like markup
if not console.is_terminal:
    console = Console(markup=False, highlight=False, width=120)  # a log file has no width of its own
Update = Callable[[int, dict[str, float]], None]
SECONDS_TO_LINE, SECONDS_BETWEEN_LINES = 2, 20


@contextmanager
def on_standard_error() -> Iterator[None]:
    """Print there for a while, what the console prints and progress alike."""
    console.stderr = True
    try:
        yield
    finally:
        console.stderr = False


@contextmanager
def track(title: str, total: int, start: int = 0) -> Iterator[Update]:
    """Show the progress of one long job; yields `update(done, metrics by name)`."""
    if console.quiet or not is_main():
        yield lambda done, metrics: None
        return
    if not console.is_terminal:
        yield _lines(title, total, start)
        return
    columns = [
        TextColumn("{task.description:<13}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[metrics]}"),
    ]
    with Progress(*columns, console=console, refresh_per_second=4) as progress:
        task = progress.add_task(title, total=total, completed=start, metrics="")
        yield lambda done, metrics: progress.update(task, completed=done, metrics=_text(metrics))


def _lines(title: str, total: int, start: int) -> Update:
    """One line soon, one every so often, and one at the end."""
    began = time.monotonic()
    last = began + min(SECONDS_TO_LINE, SECONDS_BETWEEN_LINES) - SECONDS_BETWEEN_LINES

    def update(done: int, metrics: dict[str, float]) -> None:
        nonlocal last
        now = time.monotonic()
        if done >= total or now - last >= SECONDS_BETWEEN_LINES:
            last = now
            left = (now - began) / max(1, done - start) * (total - done)
            print(
                f"{title}: {done}/{total}, {now - began:.0f} s, {left:.0f} s left  {_text(metrics)}",
                file=console.file,
                flush=True,
            )

    return update


def _text(metrics: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
