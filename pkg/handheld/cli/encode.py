"""handheld encode"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from .console import say
from .errors import CommandError
from .progress import bar

if TYPE_CHECKING:
    import numpy as np

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

    pictures, fps = read_video(video, rows, columns, count * clips)
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


def read_video(path: Path, height: int, width: int, most: int) -> tuple[np.ndarray, float]:
    """Up to `most` frames, scaled to cover and cropped at the centre: uint8 (T, height, width, 3), and fps.

    Raises DataError for a file that is no readable video.
    """
    import av
    import numpy as np

    from handheld.distill import DataError

    pictures = []
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DataError(f"{path} has no video stream.")
            stream = container.streams.video[0]
            for frame in container.decode(stream):
                scale = max(height / frame.height, width / frame.width)
                sized = frame.reformat(
                    width=max(width, round(frame.width * scale)),
                    height=max(height, round(frame.height * scale)),
                    interpolation="AREA" if scale < 1 else "BICUBIC",
                ).to_ndarray(format="rgb24")
                top, left = (sized.shape[0] - height) // 2, (sized.shape[1] - width) // 2
                pictures.append(sized[top : top + height, left : left + width])
                if len(pictures) == most:
                    break
            fps = float(stream.average_rate or 25)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist.") from None
    except (av.FFmpegError, OSError) as error:
        raise DataError(f"{path} is not a video that can be read: {error}.") from error
    if not pictures:
        raise DataError(f"{path} has no frames that can be decoded.")
    return np.stack(pictures), fps
