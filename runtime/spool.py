"""Frames that are too many for memory, in a file: written and read by rows."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import numpy as np

from .errors import RuntimeFailure


class Spool:
    """A temporary file of frames (T, C, H, W), removed when it is closed. It is read and written, not mapped:
    mapped pages would count as this process's memory.

    Attributes:
        frames: how many were written so far, counted to the highest index.

    Raises RuntimeFailure for a disk that is full.
    """

    def __init__(self, shape: tuple[int, int, int], dtype: np.dtype) -> None:
        self._shape = shape
        self._dtype = np.dtype(dtype)
        self._file = tempfile.TemporaryFile(prefix="handheld-", buffering=0)  # noqa: SIM115  closed in close()
        self.frames = 0

    def write(self, frames: np.ndarray, first: int, row: int) -> None:
        """Write rows of consecutive frames.

        Args:
            frames: (t, C, rows, W).
            first: index of the first frame.
            row: of the frame, where the rows begin.
        """
        try:
            for part, offset in self._parts(frames, first, row):
                # The rows of one plane are contiguous, so that the caller's array is written without a copy.
                view = np.ascontiguousarray(part, self._dtype).reshape(-1).view(np.uint8).data
                while view:
                    done = os.pwrite(self._file.fileno(), view, offset)
                    view, offset = view[done:], offset + done
        except OSError as error:
            size_bytes = self._offset(first + len(frames), 0, 0)
            raise RuntimeFailure(
                f"{tempfile.gettempdir()} cannot hold the frames between two passes, {size_bytes} bytes so far: "
                f"{error.strerror}. Free some space, or set TMPDIR to a larger disk."
            ) from error
        self.frames = max(self.frames, first + len(frames))

    def read(self, first: int, stop: int, row: int = 0, rows: int | None = None) -> np.ndarray:
        """Rows `row` to `row + rows` (None: to the end) of frames `first` to `stop`: (t, C, rows, W)."""
        channels, height, width = self._shape
        frames = np.empty((stop - first, channels, rows or height - row, width), self._dtype)
        for part, offset in self._parts(frames, first, row):
            view = part.reshape(-1).view(np.uint8).data
            while view:
                done = os.preadv(self._file.fileno(), [view], offset)
                if not done:
                    raise RuntimeFailure(f"The frames between two passes end at byte {offset}: decode again.")
                view, offset = view[done:], offset + done
        return frames

    def windows(self, row: int, rows: int) -> Iterator[np.ndarray]:
        """The same rows of all frames, one frame at a time: a few frames may take more memory than all else."""
        for index in range(self.frames):
            yield self.read(index, index + 1, row, rows)

    def _parts(self, frames: np.ndarray, first: int, row: int) -> Iterator[tuple[np.ndarray, int]]:
        """The parts of the frames that are contiguous in the file, and their offsets."""
        for index, frame in enumerate(frames, start=first):
            if frame.shape == self._shape:
                yield frame, self._offset(index, 0, 0)
            else:
                yield from ((plane, self._offset(index, c, row)) for c, plane in enumerate(frame))

    def _offset(self, frame: int, channel: int, row: int) -> int:
        channels, height, width = self._shape
        return ((frame * channels + channel) * height + row) * width * self._dtype.itemsize

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
