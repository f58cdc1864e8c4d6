"""Progress bars with time left and the metric that matters; plain lines when the output is not a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console()


@contextmanager
def track(title: str, total: int, start: int = 0) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """Show the progress of one long job; yields `update(done, metrics by name)`."""
    columns = [
        TextColumn("{task.description:<14}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
        TextColumn("{task.fields[metrics]}"),
    ]
    with Progress(*columns, console=console, refresh_per_second=4) as progress:
        task = progress.add_task(title, total=total, completed=start, metrics="")

        def update(done: int, metrics: dict[str, float] | None = None) -> None:
            text = "  ".join(f"{name} {value:.4g}" for name, value in (metrics or {}).items())
            progress.update(task, completed=done, metrics=text)

        yield update
