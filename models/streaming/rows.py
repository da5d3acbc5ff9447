"""Rows of frames, as strips take them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rows:
    """Rows from `start` to before `stop` of frames that are `height` rows high."""

    start: int
    stop: int
    height: int

    def __len__(self) -> int:
        return self.stop - self.start

    def widened(self, rows: int) -> Rows:
        """These and as many more at both edges, as far as the frame goes."""
        return Rows(max(self.start - rows, 0), min(self.stop + rows, self.height), self.height)

    def before(self, scale: int) -> Rows:
        """What these are made from where a row becomes `scale` rows."""
        return Rows(self.start // scale, -(-self.stop // scale), self.height // scale)

    def after(self, scale: int) -> Rows:
        """What these become where a row becomes `scale` rows."""
        return Rows(scale * self.start, scale * self.stop, scale * self.height)

    def joined(self, other: Rows) -> Rows:
        """From the first of both to the last of both."""
        return Rows(min(self.start, other.start), max(self.stop, other.stop), self.height)

    def of(self, given: Rows) -> slice:
        """Where these are in a tensor that holds the rows `given`."""
        return slice(self.start - given.start, self.stop - given.start)
