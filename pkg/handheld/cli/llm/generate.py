"""handheld llm generate"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ..console import note, size
from .options import Memory, MissWeight, Mode, Pack, Threads, engine_options

EPILOG = "Example: [dim]handheld llm generate smollm2.flash --memory 96MB --prompt 'Once upon a time'[/dim]"


def run(
    pack: Pack,
    prompt: Annotated[str, typer.Option(help="Text to go on with.", show_default=False)],
    memory: Memory = None,
    mode: Mode = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens to generate, at most.", min=1)] = 128,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt as a user's question.")] = False,
    threads: Threads = 2,
    miss_weight: MissWeight = None,
) -> None:
    """Generate text with a packed model, within a memory limit.

    Always the likeliest token. The text goes to stdout as it comes, a line of figures to stderr.
    """
    import time

    from handheld.runtime.flash import open_pack
    from handheld.runtime.flash.text import PackTokenizer

    opened = open_pack(pack)
    tokenizer = PackTokenizer(pack)
    ids = tokenizer.encode(tokenizer.chat(prompt) if chat else prompt)
    options = engine_options(opened, memory, mode, len(ids) + max_tokens, threads, miss_weight)
    model = opened.model(options)
    started = time.perf_counter()
    for piece in tokenizer.stream(model.generate(ids, max_tokens)):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    seconds = time.perf_counter() - started
    stats = model.stats()
    read = size(round(stats.session.bytes_read / max(1, stats.tokens)))
    note(
        f"{options.mode} mode: {stats.tokens} tokens, {len(ids)} of them the prompt's, "
        f"{stats.tokens / seconds:.1f} a second; {size(stats.session.held_peak_bytes)} held, {read} read a token"
    )
