"""handheld decode"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from .console import say
from .progress import bar

if TYPE_CHECKING:
    pass

EPILOG = "Example: [dim]handheld decode bundle latents.safetensors -o out.mp4 --artifact android[/dim]"


def run(
    bundle: Annotated[Path, typer.Argument(help="A bundle folder.", show_default=False)],
    latents: Annotated[Path, typer.Argument(help="Latents, as handheld encode writes them.", show_default=False)],
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--out",
            "-o",
            help="Video to write (.mp4, .mov, .mkv); of an image decoder, picture (.png, .jpg).",
            show_default="out.mp4, of images out.png",
        ),
    ] = None,
    artifact: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Which artefact decodes.", show_default="the first that runs here"),
    ] = None,
    fps: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(min=0.1, help="Frames per second.", show_default="the encoded video's, else 25"),
    ] = None,
    stream: Annotated[
        bool,
        typer.Option(
            "--stream", help="With a streamed artefact only: clips of any length, a few frames at a time."
        ),
    ] = False,
    normalised: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option(
            "--normalised/--plain",
            help="The latents are a diffusion model's, which normalises them, or as the encoder emits them.",
            show_default="what the file says, else what the bundle takes",
        ),
    ] = None,
    threads: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="CPU threads.", show_default="the runtime's choice"),
    ] = None,
) -> None:
    """Decode latents to a video with one of a bundle's artefacts.

    Stopped by Ctrl-C, a full disk or a runtime that fails, it keeps the frames so far as OUT.partial.mp4 and says
    how many they are.

    A streamed artefact (handheld export --stream) takes clips of any number of frames and holds a few of them at a
    time.
    """
    from handheld.decoding import decode

    with bar("decoding") as update:
        done = decode(
            bundle,
            latents,
            out,
            artifact=artifact,
            stream=stream,
            normalised=normalised,
            fps=fps,
            threads=threads,
            progress=update,
        )
    height, width = done.size
    what = "images" if done.fps is None else "frames"
    rate = "" if done.fps is None else f" at {done.fps:g} fps"
    named = str(done.paths[0]) if len(done.paths) == 1 else f"{done.paths[0]} to {done.paths[-1].name}"
    say(f"{named}: {done.frames} {what} of {height}x{width}{rate}, decoded by {done.artifact}")
