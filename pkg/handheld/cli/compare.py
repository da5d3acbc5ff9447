"""handheld compare"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from .console import say, table
from .errors import CommandError

if TYPE_CHECKING:
    from handheld.runtime.comparison import Named

EPILOG = (
    "Example: [dim]handheld compare before.json after.json --fail-if-slower 5%[/dim]. Exits with status 1 if a "
    "model got slower than that, or failed."
)


def run(
    profiles: Annotated[
        list[Path],
        typer.Argument(help="profile.json files; the first is the baseline.", show_default=False),
    ],
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", "-o", help="Write an HTML page with plots to this file.", show_default=False),
    ] = None,
    fail_if_slower: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="A limit such as 5%: fail where a model is surely slower.", show_default=False),
    ] = None,
) -> None:
    """Compare profiles over devices, runtimes, precisions and versions.

    Takes profiles of this machine, of iPhones and of Android phones. Models with the same label are compared with
    the first profile's: ratios of time over rounds, with 95 % bounds. The gate fails where a model takes more than
    the limit longer with 95 % confidence (Welch's t test over rounds, docs/profile.md), or failed where it had not.
    """
    from handheld.runtime.compare_page import HEADER, cells, write_page
    from handheld.runtime.comparison import compare, judge
    from handheld.runtime.profile_file import read_profile

    limit = None if fail_if_slower is None else _limit(fail_if_slower)
    named = _named(profiles, [read_profile(path) for path in profiles])
    rows = compare(named)
    table("Profiles, the first is the baseline", HEADER, [cells(row) for row in rows])
    for one in named:
        say(f"{one.name}: {one.profile.scope}.")
    for row in rows:
        if row.subject.error:
            say(f"{row.name}: {row.subject.label} failed: {row.subject.error}")
        if row.differs:
            say(f"{row.name}: {row.subject.label} differs from the baseline in {', '.join(row.differs)}.")
    gate = None if limit is None else judge(named, limit)
    if out is not None:
        write_page(rows, gate, out)
        say(f"Page: {out}")
    if gate is None:
        return
    for line in gate.unjudged:
        say(f"not judged: {line}")
    for line in gate.slower:
        say(f"SLOWER: {line}")
    if gate.slower:
        raise typer.Exit(1)
    say(f"No model is slower by more than {fail_if_slower} with 95 % confidence ({gate.judged} judged).")


def _limit(text: str) -> float:
    try:
        limit = float(text.removesuffix("%")) / 100 if text.endswith("%") else float("nan")
    except ValueError:
        limit = float("nan")
    if not 0 <= limit < 100:
        raise CommandError(f'--fail-if-slower takes a percentage such as "5%", not "{text}".')
    return limit


def _named(paths: Sequence[Path], profiles: Sequence) -> list[Named]:
    """Profiles under the shortest endings of their paths that tell them apart."""
    from handheld.runtime.comparison import Named

    parts = [path.resolve().parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return [Named(name, profile) for name, profile in zip(names, profiles)]
    raise CommandError("The same file is given twice: compare different profiles.")
