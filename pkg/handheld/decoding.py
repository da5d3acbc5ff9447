"""`handheld.decode`: latents through one of a bundle's artefacts, to a video or pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from handheld.latents_file import read_latents
from handheld.models import LatentStatistics
from handheld.runtime.bundle import Bundle, read_bundle
from handheld.runtime.errors import RuntimeFailure, RuntimeMissing
from handheld.runtime.manifest import Artifact, TensorSpec
from handheld.runtime.session import SESSIONS, Session, open_session
from handheld.runtime.streaming import StreamSession
from handheld.runtime.video import to_pixels, write_pictures, write_video

_DEFAULT_FPS = 25.0


@dataclass(frozen=True)
class Decoded:
    """What `decode` wrote.

    Attributes:
        paths: the video, or one picture per image.
        artifact: the name of what decoded.
        frames: how many; images count as frames.
        size: height and width of each.
        fps: frames per second; None of images.
    """

    paths: tuple[Path, ...]
    artifact: str
    frames: int
    size: tuple[int, int]
    fps: float | None


def decode(
    bundle: Bundle | str | Path,
    latents: str | Path,
    out: str | Path | None = None,
    *,
    artifact: str | None = None,
    stream: bool = False,
    normalised: bool | None = None,
    fps: float | None = None,
    threads: int | None = None,
    progress: Callable[[int, int, str], None] = lambda done, total, doing: None,
) -> Decoded:
    """Decode a file of latents with one of a bundle's artefacts.

    Args:
        latents: a safetensors file in fp32, fp16 or bf16: as `handheld.encode` writes it, or as a pipeline of
            diffusers gave them.
        out: .mp4, .mov or .mkv, by default out.mp4; of an image decoder .png or .jpg, by default out.png. Several
            images get numbers.
        artifact: the name of the one that decodes; None is the first that runs here.
        stream: take only an artefact that streams.
        normalised: whether the latents are normalised for a diffusion model. None takes what the file says, and
            what the bundle takes where it says nothing. The bundle's latent statistics make one of the other.
        fps: frames per second; by default the encoded video's, else 25.
        threads: CPU threads; None is the runtime's choice.
        progress: called with the frames or clips that are done, all of them, and a word.

    Raises RuntimeFailure for an artefact that is not there or does not run, latents of another size, and what
    cannot be written; RuntimeMissing where none runs here; ModelError for a file that holds no latents, or
    normalised ones where nothing is known of how.
    """
    opened = bundle if isinstance(bundle, Bundle) else read_bundle(bundle)
    chosen = _chosen(opened, artifact, stream)
    given, made = opened.manifest.inputs[0], opened.manifest.outputs[0]
    found = read_latents(Path(latents))
    taken = found.for_decoder(_statistics(given), takes_normalised=given.normalised, normalised=normalised)
    values = taken.numpy()
    _check_size(opened, chosen, given, values, Path(latents))
    image = given.layout == "NCHW"
    rate = fps or float(found.origin.get("fps", _DEFAULT_FPS))
    with open_session(opened, chosen, threads) as session:
        decoded = _pictures(session, given, made, values, progress)
        sizes: list[tuple[int, int]] = []
        pictures = _noted((to_pixels(piece, made.range or (-1.0, 1.0)) for piece in decoded), sizes)
        if image:
            paths = tuple(write_pictures(pictures, Path(out or "out.png"), count=len(values)))
            frames = len(paths)
        else:
            paths = (Path(out or "out.mp4"),)
            frames = write_video(pictures, paths[0], rate)
    height, width = sizes[-1]
    return Decoded(paths, chosen.name, frames, (height, width), None if image else rate)


def _noted(pieces: Iterable[np.ndarray], sizes: list[tuple[int, int]]) -> Iterator[np.ndarray]:
    """The pieces (N, H, W, 3), with the height and width of each added to `sizes`."""
    for piece in pieces:
        sizes.append((piece.shape[1], piece.shape[2]))
        yield piece


def _chosen(bundle: Bundle, name: str | None, stream: bool) -> Artifact:
    candidates = bundle.artifacts if name is None else (bundle.artifact(name),)
    if stream:
        candidates = tuple(a for a in candidates if a.stream is not None)
        if not candidates:
            which = f"Artefact {name}" if name else "No artefact"
            raise RuntimeFailure(
                f"{which} of {bundle.path} is {'not ' if name else ''}for streaming: leave --stream out, or export "
                "with --stream."
            )
    if name is None:
        reasons = {a.name: SESSIONS[a.runtime].unavailable() for a in candidates}
        candidates = tuple(a for a in candidates if reasons[a.name] is None)
        if not candidates:
            raise RuntimeMissing(
                f"No artefact of {bundle.path} runs here: " + "; ".join(map(str, reasons.values()))
            )
    return candidates[0]


def _statistics(spec: TensorSpec) -> LatentStatistics | None:
    found = spec.statistics
    return None if found is None else LatentStatistics(found.mean, found.std, found.scaling)


def _check_size(bundle: Bundle, chosen: Artifact, given: TensorSpec, values: np.ndarray, path: Path) -> None:
    shapes = [method.inputs[0][1:] for method in chosen.methods]
    fits = chosen.takes(given, (1, *values.shape[1:]))
    if chosen.stream is not None and values.ndim == len(given.shape):
        fits = (values.shape[1], *values.shape[3:]) == (given.shape[1], *given.shape[3:])
    if fits:
        return
    able = " or ".join("x".join(map(str, shape)) for shape in shapes)
    if chosen.stream is not None:
        c, _, h, w = given.shape[1:]
        able = f"{c}xanyx{h}x{w}"
    elif chosen.dynamic:
        sizes = zip(given.layout, given.shape)
        able = "x".join("any" if axis in chosen.dynamic else str(size) for axis, size in sizes if axis != "N")
    axes = "channels, height, width" if given.layout == "NCHW" else "channels, time, height, width"
    raise RuntimeFailure(
        f"{path}: latents of {'x'.join(map(str, values.shape[1:]))}; {chosen.name} of this bundle decodes {able} "
        f"({axes}). Encode them with --for {bundle.path}, or export a bundle of that size."
    )


def _pictures(
    session: Session | StreamSession,
    given: TensorSpec,
    made: TensorSpec,
    values: np.ndarray,
    progress: Callable[[int, int, str], None],
) -> Iterator[np.ndarray]:
    """What the session makes of each clip or image, in pieces, in the layout of `made`."""
    for i, clip in enumerate(values):
        if isinstance(session, StreamSession):
            done, total = 0, session.plan.length(clip.shape[1])
            for piece in session.stream(clip[None]):
                done += piece.shape[2]
                progress(i * total + done, len(values) * total, f"clip {i + 1}")
                yield piece
        else:
            result = session.run({given.name: clip[None]})[made.name]
            progress(i + 1, len(values), f"{'image' if given.layout == 'NCHW' else 'clip'} {i + 1}")
            yield result
