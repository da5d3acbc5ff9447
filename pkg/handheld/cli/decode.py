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
    stream: Annotated[
        bool,
        typer.Option(
            "--stream", help="With a streamed artefact only: clips of any length, a few frames at a time."
        ),
    ] = False,
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
    from handheld.latents_file import read_latents
    from handheld.runtime.bundle import read_bundle
    from handheld.runtime.errors import RuntimeFailure, RuntimeMissing
    from handheld.runtime.session import SESSIONS, open_session
    from handheld.runtime.streaming import StreamSession
    from handheld.runtime.video import to_pixels, write_video

    opened = read_bundle(bundle)
    candidates = opened.artifacts if artifact is None else (opened.artifact(artifact),)
    if stream:
        candidates = tuple(a for a in candidates if a.stream is not None)
        if not candidates:
            which = f"Artefact {artifact}" if artifact else "No artefact"
            raise RuntimeFailure(
                f"{which} of {bundle} is {'not ' if artifact else ''}for streaming: leave --stream out, or export "
                "with --stream."
            )
    if artifact is None:
        reasons = {a.name: SESSIONS[a.runtime].unavailable() for a in candidates}
        candidates = tuple(a for a in candidates if reasons[a.name] is None)
        if not candidates:
            raise RuntimeMissing(f"No artefact of {bundle} runs here: " + "; ".join(map(str, reasons.values())))
    chosen = candidates[0]
    values, origin = read_latents(latents)
    given = opened.manifest.inputs[0]
    c, _, h, w = given.shape[1:]
    methods = {method.inputs[0][1:]: method for method in chosen.methods}
    fits = values.shape[1:] in methods
    if chosen.stream is not None:
        fits = (values.shape[1], *values.shape[3:]) == (c, h, w)
    if not fits:
        able = " or ".join("x".join(map(str, shape)) for shape in methods)
        raise RuntimeFailure(
            f"{latents}: clips of {'x'.join(map(str, values.shape[1:]))} (channels, time, height, width); "
            f"{chosen.name} of this bundle decodes {able if chosen.stream is None else f'{c}xanyx{h}x{w}'}. Encode "
            f"them with --for {bundle}, or export a bundle of that size."
        )
    rate = fps or float(origin.get("fps", 25))
    with open_session(opened, chosen, threads) as session, bar("decoding") as update:

        def clips() -> Iterator[np.ndarray]:
            for i, clip in enumerate(values):
                if isinstance(session, StreamSession):
                    done, total = 0, session.plan.length(clip.shape[1])
                    for piece in session.stream(clip[None]):
                        done += piece.shape[2]
                        update(i * total + done, len(values) * total, f"clip {i + 1}")
                        yield to_pixels(piece)
                else:
                    frames = session.run({given.name: clip[None]})[opened.manifest.outputs[0].name]
                    update(i + 1, len(values), f"clip {i + 1}")
                    yield to_pixels(frames)

        written = write_video(clips(), out, rate)
    shape = methods.get(values.shape[1:], chosen.methods[0]).outputs[0]
    say(f"{out}: {written} frames of {shape[3]}x{shape[4]} at {rate:g} fps, decoded by {chosen.name}")
