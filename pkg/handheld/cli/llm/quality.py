"""handheld llm quality"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Optional

import typer

from ..console import say, size, table
from ..progress import bar
from .options import Memory, MissWeight, Pack, Threads, parse_size, read_text

EPILOG = "Example: [dim]handheld llm quality smollm2.flash held-out.txt --memory 96MB[/dim]"


def run(
    pack: Pack,
    text: Annotated[Path, typer.Argument(help="Text that the pack was not calibrated on.", show_default=False)],
    memory: Memory = None,
    tokens: Annotated[int, typer.Option(help="Tokens of the text to use, at most.", min=2)] = 1024,
    piece: Annotated[int, typer.Option(help="Tokens of context: the text is cut into such pieces.", min=2)] = 256,
    out: Annotated[
        Optional[Path],  # noqa: UP045  typer reads this at run time
        typer.Option("--out", "-o", help="JSON file to write.", show_default=False),
    ] = None,
    threads: Threads = 2,
    miss_weight: MissWeight = None,
) -> None:
    """What exact and selected mode lose on a text against dense mode, and what they read.

    The engine itself runs every mode, the selector's own choices included.
    """
    import json

    from handheld.runtime.files import write_atomically
    from handheld.runtime.flash import open_pack
    from handheld.runtime.flash.text import PackTokenizer, quality

    opened = open_pack(pack)
    ids = PackTokenizer(pack).encode(read_text(text))[:tokens]
    budget_bytes = None if memory is None else parse_size(memory)
    with bar("Reading") as progress:
        results = quality(opened, ids, budget_bytes, piece, threads, miss_weight, progress)
    table(
        f"{len(ids) // piece} pieces of {piece} tokens",
        ["mode", "perplexity", "as exact", "read a token", "neurons computed", "hits"],
        [
            [
                row.mode,
                f"{row.perplexity:.2f}",
                f"{row.agreement:.1%}",
                size(round(row.bytes_read_per_token)),
                f"{row.computed_share:.0%}",
                f"{row.hit_rate:.0%}",
            ]
            for row in results
        ],
    )
    if out is not None:
        content = {
            "format": "handheld.flash.quality",
            "format_version": 1,
            "modes": [asdict(row) for row in results],
        }
        write_atomically(out, (json.dumps(content, indent=2) + "\n").encode())
        say(f"Written to {out}.")
