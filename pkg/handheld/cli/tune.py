"""handheld tune"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import note, say, table
from .progress import bar

EPILOG = (
    "Example: [dim]handheld tune onnx --out costs.json[/dim]  ·  "
    "[dim]handheld export ltx --target onnx --costs costs.json --explain[/dim]"
)


def run(
    target: Annotated[str, typer.Argument(help="onnx or android.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Cost table to write.")] = Path("costs.json"),
    threads: Annotated[int, typer.Option(help="CPU threads to measure with.", min=1)] = 2,
    repeat: Annotated[int, typer.Option(help="Runs of each sample, of which the fastest counts.", min=1)] = 15,
) -> None:
    """Measure what ops cost on this machine, for export to choose by.

    Times single convolutions, products and copies of the sizes that video decoders have, in the target's runtime,
    and fits a rate to each kind of op. A minute or two; other work on the machine spoils it.
    """
    from handheld.convert import resolve_targets
    from handheld.convert.choice.tune import tune
    from handheld.runtime import host
    from handheld.runtime.files import write_atomically
    from handheld.runtime.session import SESSIONS

    (wanted,) = resolve_targets([target], None)
    load = host.conditions().load_average_1min
    if load and load > 1:
        note(f"The machine is busy (load {load:.1f}): figures will be worse than they need to be.")
    version = SESSIONS[wanted.runtime].library_version()
    source = (
        f"measured by `handheld tune {target}`: {wanted.runtime} {version}, {threads} threads, "
        f"{host.describe_host().name}"
    )
    with bar(f"Measuring {target}") as progress:
        found, fits = tune(
            wanted,
            source=source,
            threads=threads,
            repeat=repeat,
            progress=lambda done, total: progress(done, total, ""),
        )
    write_atomically(out, found.to_json().encode())
    table(
        "Rates, in nanoseconds on this machine",
        ["op", "call", "multiply-add", "element", "weight", "samples", "median error", "largest"],
        [
            [
                fit.kind,
                *(f"{rate:.4g}" for rate in vars(found.rates[fit.kind]).values()),
                str(fit.samples),
                f"{fit.median_error:.0%}",
                f"{fit.largest_error:.0%}",
            ]
            for fit in fits
        ],
    )
    say(f"Written to {out}. Next: handheld export SOURCE --target {target} --costs {out}")
