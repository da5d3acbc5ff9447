"""handheld llm: the flash engine. One file per subcommand, as in the folder above."""

from __future__ import annotations

import typer

from ..console import paragraphs
from . import calibrate, generate, pack, profile, quality, replay

app = typer.Typer(
    name="llm",
    help="Run language models larger than the memory they are given.",
    rich_markup_mode="rich",
    no_args_is_help=True,
)

for command in (pack, generate, profile, quality, calibrate, replay):
    name = command.__name__.rpartition(".")[2]
    app.command(name, help=paragraphs(command.run.__doc__), epilog=command.EPILOG)(command.run)
