"""The command line: one file per subcommand. Nothing heavy is imported until a command runs."""

from __future__ import annotations

import sys
from typing import Any

import typer
from typer.core import TyperGroup

from . import (
    check,
    compare,
    decode,
    demo,
    distill,
    doctor,
    encode,
    estimate,
    export,
    fit,
    llm,
    profile,
    tune,
    verify,
)
from .console import paragraphs
from .errors import message_of


def _with_notes(message: str, error: BaseException) -> str:
    return "\n".join([message, *getattr(error, "__notes__", ())])


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:  # of which typer would make an exit status without a word
            print(_with_notes("handheld: interrupted", interrupt), file=sys.stderr)
            raise SystemExit(130) from None


app = typer.Typer(
    name="handheld",
    cls=_Commands,
    help=(
        "Take a generative model that does not fit a phone, and make it run there.\n\n"
        "The usual way: [bold]distill[/bold] a teacher's decoder into a small student, [bold]export[/bold] it to "
        "Core ML, Core AI, ExecuTorch and ONNX, [bold]verify[/bold] that each artefact computes the same, and "
        "[bold]profile[/bold] them side by side. [bold]demo[/bold] does all of it on clips that come with the "
        "package; [bold]doctor[/bold] says what is installed."
    ),
    rich_markup_mode="rich",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

COMMANDS = (distill, check, fit, estimate, export, verify, profile, compare, encode, decode, demo, tune, doctor)

for command in COMMANDS:
    name = command.__name__.rpartition(".")[2]
    app.command(name, help=paragraphs(command.run.__doc__), epilog=command.EPILOG)(command.run)

app.add_typer(llm.app)


def _version(show: bool) -> None:
    if show:
        from handheld import __version__

        typer.echo(f"handheld {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    pass


def main() -> None:
    """Entry point: a user's error is one message on stderr and exit status 1; a defect keeps its traceback."""
    try:
        app(prog_name="handheld")
    except Exception as error:
        message = message_of(error)
        if message is None:
            raise
        print(_with_notes(f"handheld: {message}", error), file=sys.stderr)
        raise SystemExit(1) from None
