"""Writing decoded frames as a video file.

The frames go to `NAME.partial.SUFFIX` first, as a fragmented video, which needs no index at its end. If the process
stops, even killed, the partial file plays up to its last frame. A finished MP4 or MOV is then copied, packet by
packet, to an ordinary one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from handheld.files import replacing

from .errors import RuntimeFailure

CODECS = {".mp4": "libx264", ".mov": "libx264", ".mkv": "libx264"}

# So that every frame is on disk as soon as it is encoded.
_FRAGMENTED = {"movflags": "frag_every_frame+empty_moov+default_base_moof", "flush_packets": "1"}
_CLUSTERED = {"cluster_time_limit": "0", "flush_packets": "1"}  # MKV


PICTURES = (".png", ".jpg", ".jpeg")


def to_pixels(frames: np.ndarray, value_range: tuple[float, float] = (-1.0, 1.0)) -> np.ndarray:
    """Frames (N, 3, T, H, W) or images (N, 3, H, W) to uint8 RGB (N * T, H, W, 3), clips one after the other.

    What is 8-bit RGBA already, (N, T, H, W, 4) or (N, H, W, 4) in uint8, loses its alpha.

    Args:
        value_range: lowest and highest value, which become 0 and 255; what is beyond is clamped.
    """
    if frames.dtype == np.uint8:
        return frames.reshape(-1, *frames.shape[-3:])[..., :3]
    low, high = value_range
    pixels = np.rint((np.clip(frames, low, high) - low) * (255 / (high - low))).astype(np.uint8)
    pixels = pixels[:, :, None] if pixels.ndim == 4 else pixels
    return pixels.transpose(0, 2, 3, 4, 1).reshape(-1, *pixels.shape[3:], 3)


def write_pictures(images: Iterable[np.ndarray], path: Path, *, count: int) -> Iterator[Path]:
    """Write uint8 RGB images (N, H, W, 3) as files, each whole or not at all; gives each path as it is written.

    Args:
        path: of the only image; of several, NAME-0.png, NAME-1.png and so on are written beside it.
        count: how many images there are in all.

    Raises RuntimeFailure for a file type that is not written, and a path that cannot be written.
    """
    from PIL import Image

    if path.suffix.lower() not in PICTURES:
        raise RuntimeFailure(f"{path}: images are written as {', '.join(PICTURES)}.")
    if not path.parent.is_dir():
        raise RuntimeFailure(f"{path.parent} is no folder: make it, or write elsewhere.")
    index = 0
    for batch in images:
        for pixels in batch:
            target = path if count == 1 else path.with_name(f"{path.stem}-{index}{path.suffix}")
            kind = "PNG" if path.suffix.lower() == ".png" else "JPEG"
            with replacing(target, RuntimeFailure) as partial:
                Image.fromarray(pixels).save(partial, format=kind)
            index += 1
            yield target


def partial_path(path: str | os.PathLike[str]) -> Path:
    """Where the frames of a video are until it is whole."""
    target = Path(path)
    return target.with_name(f"{target.stem}.partial{target.suffix}")


def write_video(clips: Iterable[np.ndarray], path: str | os.PathLike[str], fps: float) -> int:
    """Write clips of uint8 RGB frames (T, H, W, 3), one after the other, as H.264.

    The file appears whole or not at all. If the clips end with an exception, Ctrl-C among them, or the disk is
    full, the frames so far stay in `partial_path`, a valid video; a note of the exception says how many they are.
    Height and width must be even, which every latent space gives.

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
    partial = partial_path(target)
    try:
        partial.unlink(missing_ok=True)  # of an earlier run
        count = _encode(clips, partial, fps)
        if not count:
            raise RuntimeFailure(f"No frames to write to {target}.")
        if _is_fragmented(partial):
            with replacing(target, RuntimeFailure) as finished:
                _copy(partial, finished)
            partial.unlink()
        else:
            os.replace(partial, target)
    except BaseException as error:
        kept = _mended(partial)
        failure = error
        if isinstance(error, av.FFmpegError | OSError):
            failure = RuntimeFailure(f"{target} cannot be written: {error}.")
        if kept:
            failure.add_note(f"{partial} holds the first {kept} frames.")
        else:
            partial.unlink(missing_ok=True)
        raise failure from (error if failure is not error else error.__cause__)
    return count


def _is_fragmented(path: Path) -> bool:
    return path.suffix.lower() != ".mkv"


def _encode(clips: Iterable[np.ndarray], path: Path, fps: float) -> int:
    """Write the frames in fragments; those that the encoder still has when an exception comes are written too."""
    import av

    count = 0
    options = _FRAGMENTED if _is_fragmented(path) else _CLUSTERED
    with av.open(str(path), "w", options=options) as container:
        stream: Any = container.add_stream(CODECS[path.suffix.lower()], Fraction(fps).limit_denominator(1001))
        # Nearly lossless, so that the video shows the decoder's faults and not the codec's.
        stream.options = {"crf": "12"}
        stream.pix_fmt = "yuv420p"
        try:
            for clip in clips:
                if not count:
                    stream.height, stream.width = clip.shape[1:3]
                for picture in clip:
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
                    count += 1
        finally:
            if count:
                container.mux(stream.encode())
    return count


def _copy(source: Path, target: Path) -> None:
    """Copy a video without encoding it anew."""
    import av

    with av.open(str(source)) as given, av.open(str(target), "w") as container:
        stream = container.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.dts is not None:  # the demuxer ends with an empty one
                packet.stream = stream
                container.mux(packet)


def _mended(path: Path) -> int:
    """Cut a fragment off that was not written to its end, and count the frames that are left."""
    import av

    with suppress(OSError, av.FFmpegError):
        if _is_fragmented(path):  # of an MKV, readers take what is there
            with path.open("rb+") as file:
                file.truncate(max(_fragment_ends(file), default=0))
        with av.open(str(path)) as container:
            return sum(packet.size > 0 for packet in container.demux(video=0))
    return 0


def _fragment_ends(file: BinaryIO) -> Iterator[int]:
    """Where each whole fragment of an MP4 ends. A fragment is a moof box and an mdat box."""
    length = file.seek(0, os.SEEK_END)
    place = 0
    while place + 8 <= length:
        file.seek(place)
        header = file.read(8)
        place += int.from_bytes(header[:4])
        if place > length or header[:4] == b"\0\0\0\0":
            return
        if header[4:] == b"mdat":
            yield place
