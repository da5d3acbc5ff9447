"""What the commands print with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

# Results go to stdout; progress and remarks to stderr, so that a pipe gets results only.
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """A line of the result. Lines are wrapped by the terminal only, so that a pipe gets them whole."""
    out.print(text, soft_wrap=True, markup=False)


def note(text: str) -> None:
    """A remark on what is going on."""
    err.print(text, soft_wrap=True, markup=False)


def paragraphs(text: str) -> str:
    """A docstring with each paragraph on one line, so that help is wrapped to the terminal and nowhere else."""
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> None:
    """Print a table; columns of figures are aligned to the right."""
    grid = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for index, column in enumerate(columns):
        figures = all(str(row[index])[:1] in "0123456789-–" for row in rows)
        grid.add_column(column, justify="right" if figures else "left", no_wrap=True)
    for row in rows:
        grid.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    # Figures are worth more than a border: on a narrow terminal or in a pipe, lines may be longer than it.
    needed = Measurement.get(out, out.options.update(max_width=1000), grid).maximum
    Console(highlight=False, width=max(needed, out.width)).print(grid)


@contextlib.contextmanager
def status(text: str) -> Iterator[Any]:
    """A spinner on a terminal; one line elsewhere."""
    if err.is_terminal:
        with err.status(text) as spinner:
            yield spinner
    else:
        note(text)
        yield None


def size(size_bytes: int) -> str:
    """A size in megabytes of 10^6 bytes; from ten thousand of them on in gigabytes."""
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes < 1e10 else f"{size_bytes / 1e9:.1f} GB"
