"""Writing decoded frames as a video file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from .errors import RuntimeFailure

CODECS = {".mp4": "libx264", ".mov": "libx264", ".mkv": "libx264"}


def to_pixels(frames: np.ndarray) -> np.ndarray:
    """Frames (N, 3, T, H, W) in [-1, 1] to uint8 RGB (N * T, H, W, 3), clips one after the other."""
    pixels = np.rint((np.clip(frames, -1, 1) + 1) * 127.5).astype(np.uint8)
    return pixels.transpose(0, 2, 3, 4, 1).reshape(-1, *pixels.shape[3:], 3)


def write_video(clips: Iterable[np.ndarray], path: str | os.PathLike[str], fps: float) -> int:
    """Write clips of uint8 RGB frames (T, H, W, 3), one after the other, as H.264.

    The file appears whole or not at all. Height and width must be even, which every latent space gives.

    Returns:
        The number of frames written.

    Raises RuntimeFailure for a file type that is not written, no frames, and a path that cannot be written.
    """
    import av

    target = Path(path)
    if target.suffix.lower() not in CODECS:
        raise RuntimeFailure(f"{target}: videos are written as {', '.join(CODECS)}.")
    if not target.parent.is_dir():
        raise RuntimeFailure(f"{target.parent} is no folder: make it, or write elsewhere.")
    handle, temporary = tempfile.mkstemp(prefix=f".{target.stem}.", suffix=target.suffix, dir=target.parent)
    os.close(handle)
    count = 0
    try:
        with av.open(temporary, "w") as container:
            stream: Any = container.add_stream(CODECS[target.suffix.lower()], Fraction(fps).limit_denominator(1001))
            # Nearly lossless: what is to be seen is the decoder's work, not the codec's.
            stream.options = {"crf": "12"}
            stream.pix_fmt = "yuv420p"
            for clip in clips:
                if not count:
                    stream.height, stream.width = clip.shape[1:3]
                for picture in clip:
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
                    count += 1
            if not count:
                raise RuntimeFailure(f"No frames to write to {target}.")
            container.mux(stream.encode())
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except (av.FFmpegError, OSError) as error:
        raise RuntimeFailure(f"{target} cannot be written: {error}.") from error
    finally:
        Path(temporary).unlink(missing_ok=True)
    return count
