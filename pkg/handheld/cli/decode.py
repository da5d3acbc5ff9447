"""handheld decode"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from .console import say
from .progress import bar

if TYPE_CHECKING:
    import numpy as np

EPILOG = "Example: [dim]handheld decode bundle latents.safetensors -o out.mp4 --artifact android[/dim]"


def run(
    bundle: Annotated[Path, typer.Argument(help="A bundle folder.", show_default=False)],
    latents: Annotated[Path, typer.Argument(help="Latents, as handheld encode writes them.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Video to write (.mp4, .mov, .mkv).")] = Path("out.mp4"),
    artifact: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Which artefact decodes.", show_default="the first that runs here"),
    ] = None,
    fps: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(min=0.1, help="Frames per second.", show_default="the encoded video's, else 25"),
    ] = None,
    threads: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="CPU threads.", show_default="the runtime's choice"),
    ] = None,
) -> None:
    """Decode latents to a video with one of a bundle's artefacts.

    Stopped by Ctrl-C, a full disk or a runtime that fails, it keeps the frames so far as OUT.partial.mp4 and says
    how many they are.
    """
    from handheld.latents_file import read_latents
    from handheld.runtime.bundle import read_bundle
    from handheld.runtime.errors import RuntimeFailure, RuntimeMissing
    from handheld.runtime.session import SESSIONS, open_session
    from handheld.runtime.video import to_pixels, write_video

    opened = read_bundle(bundle)
    if artifact is not None:
        chosen = opened.artifact(artifact)
    else:
        reasons = {a.name: SESSIONS[a.runtime].unavailable() for a in opened.artifacts}
        runnable = [a for a in opened.artifacts if reasons[a.name] is None]
        if not runnable:
            raise RuntimeMissing(f"No artefact of {bundle} runs here: " + "; ".join(map(str, reasons.values())))
        chosen = runnable[0]
    values, origin = read_latents(latents)
    given = opened.manifest.inputs[0]
    if values.shape[1:] != given.shape[1:]:
        raise RuntimeFailure(
            f"{latents}: clips of {'x'.join(map(str, values.shape[1:]))} (channels, time, height, width); this "
            f"bundle decodes {'x'.join(map(str, given.shape[1:]))}. Encode them with --for {bundle}, or export "
            "a bundle of that size."
        )
    rate = fps or float(origin.get("fps", 25))
    with open_session(opened, chosen, threads) as session, bar("decoding") as update:

        def clips() -> Iterator[np.ndarray]:
            for i, clip in enumerate(values):
                frames = session.run({given.name: clip[None]})[opened.manifest.outputs[0].name]
                update(i + 1, len(values), f"clip {i + 1}")
                yield to_pixels(frames)

        written = write_video(clips(), out, rate)
    shape = opened.manifest.outputs[0].shape
    say(f"{out}: {written} frames of {shape[3]}x{shape[4]} at {rate:g} fps, decoded by {chosen.name}")
