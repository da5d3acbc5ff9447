"""A progress bar for work that reports (done, total, what)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from .console import err


@contextlib.contextmanager
def bar(name: str) -> Iterator[Callable[[int, int, str], None]]:
    """Yields the function to report to."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[what]}"),
    )
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task(name, total=None, what="")
        yield lambda done, total, what: progress.update(task, completed=done, total=total, what=what)
