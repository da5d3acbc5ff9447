"""How far a result is from its golden tensor, in pieces: no more than a block of a clip is ever held in float64."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from .errors import RuntimeFailure
from .manifest import TensorSpec
from .profile_record import Parity

# Values of a block: 8 MB in float64.
BLOCK = 1 << 20


class Comparison:
    """One output against its golden tensor, piece by piece.

    Args:
        method: as in the golden file; None is the first shape.
    """

    def __init__(self, spec: TensorSpec, method: str | None) -> None:
        self._spec, self._method = spec, method
        self._finite = True
        self._largest = self._squares = 0.0
        self._count = 0
        self._low, self._high = float("inf"), float("-inf")

    def add(self, result: np.ndarray, golden: np.ndarray) -> None:
        """Take the next piece of both, of one shape."""
        for found, wanted in zip(blocks(result), blocks(golden)):
            self._finite &= bool(np.isfinite(found).all())
            exact = wanted.astype(np.float64)
            difference = np.abs(found - exact)
            self._largest = max(self._largest, float(difference.max()))
            self._squares += float(np.sum(difference**2))
            self._count += difference.size
            self._low, self._high = min(self._low, float(exact.min())), max(self._high, float(exact.max()))

    def parity(self) -> Parity:
        """Of all pieces, at least one."""
        if not self._finite:
            return Parity(self._spec.name, self._method, False, None, None, None)
        low, high = self._spec.range or (self._low, self._high)
        return Parity(
            output=self._spec.name,
            method=self._method,
            finite=True,
            max_abs_error=self._largest,
            mean_squared_error=self._squares / self._count,
            peak=float(high - low),
        )


def compare(spec: TensorSpec, method: str | None, result: np.ndarray, golden: np.ndarray) -> Parity:
    """Compare one output, of the golden tensor's shape.

    Args:
        method: as in the golden file; None is the first shape.
    """
    comparison = Comparison(spec, method)
    comparison.add(result, golden)
    return comparison.parity()


def compare_stream(
    spec: TensorSpec, method: str | None, frames: Iterable[np.ndarray], golden: np.ndarray
) -> Parity:
    """Compare frames as they come, (1, 3, t, H, W) each, with a golden clip (1, 3, T, H, W).

    Raises RuntimeFailure for another number of frames.
    """
    comparison = Comparison(spec, method)
    done, wanted = 0, golden.shape[2]
    for piece in frames:
        if done + piece.shape[2] <= wanted:
            comparison.add(piece, golden[:, :, done : done + piece.shape[2]])
        done += piece.shape[2]
    if done != wanted:
        raise RuntimeFailure(f"The artefact gave {done} frames, and the golden clip has {wanted}. Export it again.")
    return comparison.parity()


def blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """All values of an array in order, in flat pieces of at most `BLOCK`."""
    flat = array.reshape(-1)
    for start in range(0, flat.size, BLOCK):
        yield flat[start : start + BLOCK]
