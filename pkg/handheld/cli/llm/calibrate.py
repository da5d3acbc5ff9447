"""handheld llm calibrate"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..console import note, say, table
from ..progress import bar
from .options import Size, parse_size

EPILOG = "Example: [dim]handheld llm calibrate --out here.json[/dim]"


def run(
    out: Annotated[Path, typer.Option("--out", "-o", help="Device file to write.")] = Path("device.json"),
    folder: Annotated[Path, typer.Option(help="Folder on the storage to measure.")] = Path("."),
    file_size: Size = "1GB",
    seconds: Annotated[float, typer.Option(help="Seconds of reading for each figure.", min=0.01)] = 0.3,
    threads: Annotated[int, typer.Option(help="Threads that will compute.", min=1)] = 2,
) -> None:
    """Measure this machine's storage and memory, for `handheld llm replay`.

    Random reads past the page cache by chunk size and number of threads, from a file that is written first and
    removed afterwards. Other work on the machine spoils it.
    """
    from handheld.runtime.flash.plan import calibrate
    from handheld.runtime.host import conditions

    load = conditions().load_average_1min
    if load and load > 1:
        note(f"The machine is busy (load {load:.1f}): figures will be worse than they need to be.")
    with bar("Measuring") as progress:
        device = calibrate(
            folder,
            file_bytes=parse_size(file_size),
            seconds_per_point=seconds,
            compute_threads=threads,
            progress=lambda done, total: progress(done, total, ""),
        )
    device.write(out)
    points = {(point.chunk_bytes, point.threads): point.bytes_per_s for point in device.storage.points}
    counts = sorted({count for _, count in points})
    table(
        "Random reads, MB/s by chunk and threads",
        ["chunk", *map(str, counts)],
        [
            [f"{chunk // 1024} KiB", *(f"{points[chunk, count] / 1e6:.0f}" for count in counts)]
            for chunk in sorted({chunk for chunk, _ in points})
        ],
    )
    say(
        f"Memory: copies {_rate(device.copy_bytes_per_s)}, reads {_rate(device.compute_bytes_per_s)}\n"
        f"Written to {out}. Next: handheld llm replay TRACE --device {out}"
    )


def _rate(bytes_per_s: float | None) -> str:
    return "unknown" if bytes_per_s is None else f"{bytes_per_s / 1e9:.1f} GB/s"
