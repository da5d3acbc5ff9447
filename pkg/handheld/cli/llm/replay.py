"""handheld llm replay"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from ..console import say, size, table
from .options import parse_size

if TYPE_CHECKING:
    from handheld.runtime.flash.plan import ReplayResult

EPILOG = (
    "Example: [dim]handheld llm replay trace.safetensors --device m1-max --memory 64MB --memory 96MB "
    "--policy window --policy lru[/dim]"
)


_COLUMNS = (
    "memory",
    "policy",
    "reading",
    "table",
    "arithmetic",
    "read",
    "reads",
    "hits",
    "resident",
    "every weight read",
)


def run(
    trace: Annotated[Path, typer.Argument(help="A trace that profile recorded.", show_default=False)],
    device: Annotated[str, typer.Option(help="m1-max, snapdragon-8-gen-3, or a file of `handheld llm calibrate`.")],
    memory: Annotated[
        list[str], typer.Option("--memory", "--budget", help="Memory budget, such as 64MB; repeatable.")
    ],
    policy: Annotated[
        Optional[list[str]],  # noqa: UP045  typer reads this at run time
        typer.Option(help="window, lru, lfu or hot; repeatable.", show_default="window"),
    ] = None,
    window: Annotated[int, typer.Option(help="Tokens of the window.", min=0)] = 5,
    threads: Annotated[int, typer.Option(help="Reader threads.", min=1)] = 32,
    bundling: Annotated[bool, typer.Option(help="Gate, up and down of a neuron in one read.")] = True,
    warmup: Annotated[int, typer.Option(help="Tokens at the start that do not count.", min=0)] = 8,
) -> None:
    """Estimate time and bytes per token of a recorded trace under another device, memory or policy.

    Reading, memory management and arithmetic are added up, as in "LLM in a flash" (arXiv 2312.11514); the engine
    overlaps some of it. What the device file has no figure for is left out. These are estimates, not measurements.
    """
    from handheld.runtime.flash.plan import ReplayOptions, read_device, read_trace, replay

    recorded, target = read_trace(trace), read_device(device)
    rows = []
    for text in memory:
        for name in policy or ["window"]:
            options = ReplayOptions(parse_size(text), name, window, threads, bundling)
            rows.append([text, name, *_cells(replay(recorded, target, options, warmup))])
    table(
        f"Estimated for {target.name}, per token",
        _COLUMNS,
        rows,
    )
    say("Estimates from a storage curve; nothing was measured on that device.")


def _cells(result: ReplayResult) -> list[str]:
    cost = result.cost
    return [
        *(_milliseconds(part) for part in (cost.io_s, cost.memory_s, cost.compute_s)),
        size(round(result.bytes_read)),
        f"{result.reads:.0f}",
        f"{result.hit_rate:.0%}",
        f"{result.resident_share:.0%}",
        _milliseconds(result.dense_io_s),
    ]


def _milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds * 1000:.1f} ms"
