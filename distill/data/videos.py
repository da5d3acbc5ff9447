"""Finding videos and decoding each of them once, to bytes on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from handheld.files import replacing

from ..errors import DataError, DistillError
from .reading import Unreadable, check_readable, read_shrunk

# Of the files in a folder only those with these suffixes are tried. A file that the user names is always tried.
SUFFIXES = (".3gp", ".avi", ".flv", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm")

# The version of the reader. Frames that another version stored are decoded again.
_READER = 2


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
            check_readable(path)
            good.append(path)
        except Unreadable as error:
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
        key = json.dumps([_READER, str(path), stat.st_size, stat.st_mtime_ns, short_side, crop, max_frames])
        store = folder / f"{path.stem[:40]}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
        array = _mapped(store)
        if array is None:
            try:
                frames = read_shrunk(path, short_side, crop, max_frames)
            except Unreadable as error:
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


def _mapped(store: Path) -> np.ndarray | None:
    """The stored array, or None where it is missing, truncated or something else."""
    try:
        array = np.load(store, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return array if array.dtype == np.uint8 and array.ndim == 4 else None
