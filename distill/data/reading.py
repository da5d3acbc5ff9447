"""Reading a video file, frame by frame, as a player shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Size = tuple[int, int]

# Of a file that does not say its frame rate.
_DEFAULT_FPS = 25.0


class Unreadable(Exception):
    """Why a file is not a video that can be read, in a few words."""


@dataclass(frozen=True)
class Video:
    """A file that is open for reading.

    Attributes:
        fps: frames a second, on average.
    """

    fps: float
    _container: Any
    _stream: Any

    def frames(self, size: Callable[[int, int], Size], *, growing: str = "BICUBIC") -> Iterator[np.ndarray]:
        """Decode frame by frame: uint8 RGB (height, width, 3), upright and with square pixels.

        A frame is turned as the file's rotation says, and stretched as its sample aspect ratio says.

        Args:
            size: the height and width that a frame of this height and width, upright and with square pixels, is
                scaled to. Asked again only where frames of another size follow.
            growing: how libswscale interpolates frames that get larger; those that get smaller are averaged (AREA).
        """
        from av.video.reformatter import VideoReformatter

        reformat = VideoReformatter().reformat  # one for all frames: setting up the scaler costs more than a frame
        known: tuple[int, int, int] | None = None
        for frame in self._container.decode(self._stream):
            turns = round(getattr(frame, "rotation", 0) / 90) % 4  # counter-clockwise
            shape = (frame.height, frame.width, turns)
            if shape != known:
                known = shape
                shown = _turned((frame.height, round(frame.width * self._pixel_aspect())), turns)
                target = size(*shown)
                height, width = _turned(target, turns)
                interpolation = "AREA" if target[0] <= shown[0] and target[1] <= shown[1] else growing
            picture = reformat(frame, width, height, format="rgb24", interpolation=interpolation).to_ndarray()
            yield np.rot90(picture, turns) if turns else picture

    def _pixel_aspect(self) -> float:
        """The width of a pixel over its height; 1 where the file does not say it."""
        ratio = self._stream.sample_aspect_ratio
        return float(ratio) if ratio else 1.0


@contextmanager
def open_video(path: Path) -> Iterator[Video]:
    """Open the first video stream of a file. Raises Unreadable, also for what fails inside the block."""
    import av

    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise Unreadable("no video stream")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            yield Video(float(stream.average_rate or _DEFAULT_FPS), container, stream)
    except (av.FFmpegError, OSError) as error:
        raise Unreadable(error.strerror or str(error)) from None


def read_cropped(path: Path, height: int, width: int, most: int) -> tuple[np.ndarray, float]:
    """The first frames of a video, scaled to cover a size and cropped at the centre.

    Returns:
        Up to `most` frames, uint8 RGB (T, height, width, 3), and the frames a second.

    Raises Unreadable for a file that is no readable video and one without frames.
    """

    def cover(given_height: int, given_width: int) -> Size:
        scale = max(height / given_height, width / given_width)
        return max(height, round(given_height * scale)), max(width, round(given_width * scale))

    pictures: list[np.ndarray] = []
    with open_video(path) as video:
        for picture in video.frames(cover):
            top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
            pictures.append(picture[top : top + height, left : left + width])
            if len(pictures) == most:
                break
        fps = video.fps
    if not pictures:
        raise Unreadable("no frame can be decoded")
    return np.stack(pictures), fps


def read_shrunk(path: Path, short_side: int, crop: int, most: int) -> np.ndarray:
    """The first frames of a video, uint8 RGB (T, H, W, 3), up to the first one that does not decode.

    The short side gets `short_side` pixels. A smaller video keeps its size, or grows until `crop` fits.

    Raises Unreadable for a file of which no frame decodes because of a fault.
    """

    pictures: list[np.ndarray] = []

    def shrink(height: int, width: int) -> Size:
        if pictures:  # frames of one array have one size
            return pictures[0].shape[0], pictures[0].shape[1]
        side = min(height, width)
        scale = max(min(side, short_side), crop) / side
        return max(round(height * scale), crop), max(round(width * scale), crop)

    try:
        with open_video(path) as video:
            for picture in video.frames(shrink, growing="AREA"):
                pictures.append(picture)
                if len(pictures) == most:
                    break
    except Unreadable:
        if not pictures:
            raise
    return np.stack(pictures) if pictures else np.empty((0, crop, crop, 3), np.uint8)


def check_readable(path: Path) -> None:
    """Decode one frame. Raises Unreadable where that fails."""
    with open_video(path) as video:
        if next(video.frames(lambda height, width: (height, width)), None) is None:
            raise Unreadable("no frame can be decoded")


def _turned(size: Size, turns: int) -> Size:
    return size if turns % 2 == 0 else (size[1], size[0])
