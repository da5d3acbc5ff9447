"""`handheld.encode`: a real video through a teacher's encoder, to a file of latents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from handheld.distill import DataError
from handheld.distill.data.reading import Unreadable, read_cropped
from handheld.latents_file import write_latents
from handheld.models.teachers import load_teacher
from handheld.runtime.bundle import Bundle, read_bundle

_DEFAULT_CLIP = (9, 256, 256)


@dataclass(frozen=True)
class Encoded:
    """What `encode` wrote.

    Attributes:
        path: the file of latents.
        shape: of the latents, (clips, C, T', H', W').
        frames: of one clip.
        fps: frames per second of the video.
        left_out: frames at the video's end that make no whole clip.
    """

    path: Path
    shape: tuple[int, ...]
    frames: int
    fps: float
    left_out: int


def encode(
    video: str | Path,
    out: str | Path = "latents.safetensors",
    *,
    like: Bundle | str | Path | None = None,
    teacher: str | None = None,
    source: str | None = None,
    frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    clips: int = 8,
    progress: Callable[[int, int, str], None] = lambda done, total, doing: None,
) -> Encoded:
    """Encode a video with a teacher's encoder.

    Frames are scaled and cropped at the centre to the clip size, and cut into clips one after the other. Latents
    are written as the encoder emits them, not normalised for a diffusion model.

    Args:
        like: a bundle that will decode the latents: it gives teacher and sizes.
        teacher: a name in `handheld.TEACHERS`; by default the bundle's, else `embedded`.
        source: folder or hub id of the teacher's weights; by default the bundle's, else the teacher's own.
        frames, height, width: of one clip, in pixels; by default the bundle's, else 9 frames of 256x256.
        clips: at most so many are encoded.
        progress: called with the clips that are done, all of them, and a word.

    Raises DataError for a video that cannot be read or is shorter than a clip, ModelError for a teacher that cannot
    be had, a clip size that its latent space lacks, and a file that cannot be written.
    """
    shape: tuple[int, ...] = _DEFAULT_CLIP
    if like is not None:
        bundle = like if isinstance(like, Bundle) else read_bundle(like)
        spec = bundle.manifest.outputs[0]
        if spec.layout != "NCTHW":
            raise DataError(f"{bundle.path} decodes single images, and videos are encoded: leave it out.")
        shape = spec.shape[2:]
        origin = bundle.manifest.provenance.get("teacher")
        if teacher is None and origin:
            teacher, source = origin["name"], source or origin["source"]
    count, rows, columns = (own if asked is None else asked for asked, own in zip((frames, height, width), shape))
    name = teacher or "embedded"
    loaded = load_teacher(name, source)
    loaded.spec.latent_shape(frames=count, height=rows, width=columns)
    path = Path(video)
    try:
        pictures, fps = read_cropped(path, rows, columns, count * clips)
    except Unreadable as error:
        raise DataError(f"{path} is not a video that can be read: {error}.") from error
    whole = len(pictures) // count
    if not whole:
        raise DataError(f"{path} has {len(pictures)} frames; one clip is {count}. Give fewer frames.")
    latents = []
    for i in range(whole):
        clip = torch.from_numpy(pictures[i * count : (i + 1) * count]).permute(3, 0, 1, 2)[None].float()
        latents.append(loaded.encode(clip / 127.5 - 1).numpy())
        progress(i + 1, whole, f"clip {i + 1}")
    written = np.concatenate(latents)
    facts = {"teacher": name, "source": loaded.source, "fps": f"{fps:g}", "video": path.name}
    write_latents(Path(out), written, facts)
    return Encoded(Path(out), written.shape, count, fps, len(pictures) - whole * count)
