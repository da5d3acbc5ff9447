"""Finding videos and decoding each of them once, to bytes on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from handheld.files import replacing

from ..errors import DataError, DistillError

# What a file in a folder must be called to be tried; a file that is named itself is always tried.
SUFFIXES = (".3gp", ".avi", ".flv", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm")


@dataclass(frozen=True)
class Skipped:
    """A file that was not used, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class VideoSet:
    """Files whose first frame decodes, in sorted order, and what was passed over."""

    paths: tuple[Path, ...]
    skipped: tuple[Skipped, ...] = ()

    def without(self, paths: Iterable[Path]) -> VideoSet:
        """The set less the files that are also in `paths`."""
        gone = {path.resolve() for path in paths}
        return VideoSet(tuple(path for path in self.paths if path.resolve() not in gone), self.skipped)

    @property
    def fingerprint(self) -> str:
        """Changes when a file is added, removed or rewritten."""
        stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in self.paths]
        return hashlib.sha256(json.dumps(stats).encode()).hexdigest()


@dataclass(frozen=True)
class Footage:
    """Decoded videos: uint8 RGB arrays (T, H, W, 3), memory-mapped, so that memory holds only what is in use."""

    paths: tuple[Path, ...]
    arrays: tuple[np.ndarray, ...]
    skipped: tuple[Skipped, ...] = ()


def scan(paths: Iterable[str | Path]) -> VideoSet:
    """Look for videos in files and folders (folders with all their subfolders).

    Files that cannot be read are skipped with a reason. Raises DataError where nothing is left.
    """
    found: dict[Path, None] = {}  # an ordered set
    skipped: list[Skipped] = []
    for given in map(Path, paths):
        if given.is_dir():
            for path in sorted(path for path in given.rglob("*") if path.is_file()):
                if path.suffix.lower() in SUFFIXES:
                    found[path.resolve()] = None
                else:
                    skipped.append(Skipped(path, f"not a video by its name ({path.suffix or 'no suffix'})"))
        elif given.exists():
            found[given.resolve()] = None
        else:
            skipped.append(Skipped(given, "no such file or folder"))
    good = []
    for path in found:
        try:
            with _opened(path) as (container, stream):
                if next(container.decode(stream), None) is None:
                    raise _Unreadable("no frame can be decoded")
            good.append(path)
        except _Unreadable as error:
            skipped.append(Skipped(path, str(error)))
    if not good:
        raise DataError("No video to read." + listed(skipped))
    return VideoSet(tuple(good), tuple(skipped))


def decode(
    videos: VideoSet,
    folder: Path,
    *,
    short_side: int,
    crop: int,
    max_frames: int,
    min_frames: int,
    on_video: Callable[[int, int], None] = lambda done, total: None,
) -> Footage:
    """Decode videos to `folder`, one `.npy` each; what is there already and whole is not decoded again.

    Frames are shrunk until the short side has `short_side` pixels. A smaller video keeps its size, or grows until
    `crop` fits. At most `max_frames` frames from the start are kept, and one such video is in memory at a time.
    A video with fewer than `min_frames` frames is skipped. Raises DataError where no video is left.
    """
    paths, arrays, skipped = [], [], []
    for done, path in enumerate(videos.paths):
        on_video(done, len(videos.paths))
        stat = path.stat()
        key = json.dumps([str(path), stat.st_size, stat.st_mtime_ns, short_side, crop, max_frames])
        store = folder / f"{path.stem[:40]}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
        array = _mapped(store)
        if array is None:
            try:
                frames = _frames(path, short_side, crop, max_frames)
            except _Unreadable as error:
                skipped.append(Skipped(path, str(error)))
                continue
            with replacing(store, DistillError, make_folder=True) as partial, partial.open("wb") as file:
                np.save(file, frames)
            array = _mapped(store)
        if array is None or len(array) < min_frames:
            count = 0 if array is None else len(array)
            skipped.append(Skipped(path, f"has {count} frames that decode; a clip needs {min_frames}"))
            continue
        paths.append(path)
        arrays.append(array)
    on_video(len(videos.paths), len(videos.paths))
    if not paths:
        raise DataError("No video can be used." + listed([*videos.skipped, *skipped]))
    return Footage(tuple(paths), tuple(arrays), tuple(skipped))


def listed(skipped: Sequence[Skipped], limit: int = 20) -> str:
    """One line per skipped file, each after a line break."""
    lines = [f"\n  {item.path}: {item.reason}" for item in skipped[:limit]]
    return "".join(lines) + (f"\n  and {len(skipped) - limit} more" if len(skipped) > limit else "")


class _Unreadable(Exception):
    """Why a file is not a video that can be read."""


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """(container, first video stream) of a file. Raises _Unreadable, also for what fails inside the block."""
    import av

    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise _Unreadable("no video stream")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            yield container, stream
    except (av.FFmpegError, OSError) as error:
        raise _Unreadable(error.strerror or str(error)) from None


def _frames(path: Path, short_side: int, crop: int, max_frames: int) -> np.ndarray:
    """Frames (T, H, W, 3) of a video up to the first one that does not decode."""
    from av.video.reformatter import VideoReformatter

    reformat = VideoReformatter().reformat  # one for all frames: setting up the scaler costs more than a frame
    frames: list[np.ndarray] = []
    size: tuple[int, int] | None = None
    try:
        with _opened(path) as (container, stream):
            for frame in container.decode(stream):
                if size is None:
                    side = min(frame.width, frame.height)
                    scale = max(min(side, short_side), crop) / side
                    size = max(round(frame.width * scale), crop), max(round(frame.height * scale), crop)
                shrunk = reformat(frame, *size, format="rgb24", interpolation="AREA")
                frames.append(shrunk.to_ndarray())
                if len(frames) == max_frames:
                    break
    except _Unreadable:
        if not frames:
            raise
    return np.stack(frames) if frames else np.empty((0, crop, crop, 3), np.uint8)


def _mapped(store: Path) -> np.ndarray | None:
    """The stored array, or None where it is missing, truncated or something else."""
    try:
        array = np.load(store, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return array if array.dtype == np.uint8 and array.ndim == 4 else None
