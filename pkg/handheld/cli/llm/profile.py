"""handheld llm profile"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from ..console import note, say, size, table
from ..progress import bar
from .options import Memory, MissWeight, Mode, Pack, Threads, engine_options, read_text

EPILOG = "Example: [dim]handheld llm profile smollm2.flash --memory 96MB --trace trace.safetensors[/dim]"

_PROMPT = "The quick brown fox jumps over the lazy dog, and then"


def run(
    pack: Pack,
    memory: Memory = None,
    mode: Mode = None,
    tokens: Annotated[int, typer.Option(help="Tokens to time, after the prompt.", min=1)] = 64,
    text: Annotated[
        Optional[Path],  # noqa: UP045  typer reads this at run time
        typer.Option(help="Text file that is the prompt.", show_default="a sentence"),
    ] = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", "-o", help="JSON file to write.", show_default=False),
    ] = None,
    trace: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="Also record which neurons the prompt and the tokens after it need, for `handheld llm replay`.",
            show_default=False,
        ),
    ] = None,
    threads: Threads = 2,
    miss_weight: MissWeight = None,
) -> None:
    """Measure decoding with a packed model on this machine.

    Time to a prompt's first token, tokens per second, bytes read, hits of the resident neurons, and where the time
    goes. These are figures of this host: they say nothing about a phone.
    """
    from statistics import median

    from handheld.runtime.files import write_atomically
    from handheld.runtime.flash import open_pack
    from handheld.runtime.flash.text import PackTokenizer, profile_decoding, record_trace

    opened = open_pack(pack)
    prompt = PackTokenizer(pack).encode(_PROMPT if text is None else read_text(text))
    options = engine_options(opened, memory, mode, len(prompt) + tokens + 1, threads, miss_weight)
    if not opened.info.direct_io:
        note("This file system refuses direct reads: the page cache takes part in the figures.")
    result = profile_decoding(opened, options, prompt, tokens)
    table(
        f"{result.mode} mode, {tokens} tokens after {len(prompt)}",
        ["first token ms", "tokens/s", "median ms", "read a token", "reads a token", "hits", "held"],
        [
            [
                f"{result.prompt_ns / 1e6:.0f}",
                f"{result.tokens_per_s:.1f}",
                f"{median(result.token_ns) / 1e6:.1f}",
                size(round(result.bytes_read_per_token)),
                f"{result.reads_per_token:.0f}",
                f"{result.hit_rate:.0%}",
                size(result.held_peak_bytes),
            ]
        ],
    )
    table("Share of the time", list(result.shares), [[f"{share:.0%}" for share in result.shares.values()]])
    say("Measured on this host; says nothing about a phone.")
    if out is not None:
        write_atomically(out, result.to_json().encode())
        say(f"Written to {out}.")
    if trace is not None:
        with bar("Recording") as progress:
            model = opened.model(options)
            generated = list(model.generate(prompt, tokens))
            record_trace(opened, options, [*prompt, *generated], progress).write(trace)
        say(f"Next: handheld llm replay {trace} --device m1-max --memory SIZE")
