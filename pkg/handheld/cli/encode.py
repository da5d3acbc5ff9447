"""handheld encode"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from .console import say
from .errors import CommandError
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
    import numpy as np
    import torch

    from handheld.distill.data.reading import Unreadable, read_cropped
    from handheld.latents_file import write_latents
    from handheld.models.teachers import load_teacher
    from handheld.runtime.bundle import read_bundle

    shape: tuple[int, ...] = (9, 256, 256)
    if like is not None:
        bundle = read_bundle(like)
        shape = bundle.manifest.outputs[0].shape[2:]
        origin = bundle.manifest.provenance.get("teacher")
        if teacher is None and origin:
            teacher, source = origin["name"], source or origin["source"]
    count, rows, columns = (own if asked is None else asked for asked, own in zip((frames, height, width), shape))
    name = teacher or "embedded"
    loaded = load_teacher(name, source)
    loaded.spec.latent_shape(frames=count, height=rows, width=columns)

    try:
        pictures, fps = read_cropped(video, rows, columns, count * clips)
    except Unreadable as error:
        raise CommandError(f"{video} is not a video that can be read: {error}.") from error
    whole = len(pictures) // count
    if not whole:
        raise CommandError(f"{video} has {len(pictures)} frames; one clip is {count}. Give fewer --frames.")
    latents = []
    with bar("encoding") as update:
        for i in range(whole):
            clip = torch.from_numpy(pictures[i * count : (i + 1) * count]).permute(3, 0, 1, 2)[None].float()
            latents.append(loaded.encode(clip / 127.5 - 1).numpy())
            update(i + 1, whole, f"clip {i + 1}")
    written = np.concatenate(latents)
    write_latents(out, written, {"teacher": name, "source": loaded.source, "fps": f"{fps:g}", "video": video.name})
    say(f"{out}: {whole} clips of {count} frames, latents {'x'.join(map(str, written.shape))}, {fps:g} fps")
    if left := len(pictures) - whole * count:
        say(f"The last {left} frames make no whole clip and were left out.")
