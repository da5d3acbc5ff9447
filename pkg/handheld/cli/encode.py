"""handheld encode"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from .console import say
from .progress import bar

EPILOG = (
    "Example: [dim]handheld encode clip.mp4 --for bundle -o latents.safetensors[/dim], then "
    "[dim]handheld decode bundle latents.safetensors -o out.mp4[/dim]"
)


def run(
    video: Annotated[Path, typer.Argument(help="A video file.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Latents to write (.safetensors).")] = Path(
        "latents.safetensors"
    ),
    like: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--for", help="Bundle that will decode them: gives teacher and sizes.", show_default=False),
    ] = None,
    teacher: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Teacher whose encoder is used.", show_default="the bundle's, else embedded"),
    ] = None,
    source: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Folder or hub id of the teacher's weights.", show_default="the teacher's own"),
    ] = None,
    frames: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Frames of one clip.", show_default="the bundle's, else 9"),
    ] = None,
    height: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Height of the clips.", show_default="the bundle's, else 256"),
    ] = None,
    width: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Width of the clips.", show_default="the bundle's, else 256"),
    ] = None,
    clips: Annotated[int, typer.Option(min=1, help="Encode at most so many clips, one after the other.")] = 8,
) -> None:
    """Encode a video with a teacher's encoder.

    Frames are scaled and cropped at the centre to the clip size, and cut into clips one after the other.
    Latents are written as the encoder emits them: (clips, channels, time, height, width), not normalised for a
    diffusion model.
    """
    from handheld.encoding import encode

    with bar("encoding") as update:
        done = encode(
            video,
            out,
            like=like,
            teacher=teacher,
            source=source,
            frames=frames,
            height=height,
            width=width,
            clips=clips,
            progress=update,
        )
    shape = "x".join(map(str, done.shape))
    say(f"{out}: {done.shape[0]} clips of {done.frames} frames, latents {shape}, {done.fps:g} fps")
    if done.left_out:
        say(f"The last {done.left_out} frames make no whole clip and were left out.")
