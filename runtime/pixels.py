"""8-bit RGBA as artefacts give it."""

from __future__ import annotations

import numpy as np

from .errors import RuntimeFailure
from .manifest import TensorSpec


def as_told(spec: TensorSpec, result: np.ndarray) -> np.ndarray:
    """What a runtime gave, as its spec says it: fp32, or 8-bit pixels (..., 4).

    An int32 is a pixel: its four bytes are R, G, B and alpha, little endian.

    Raises RuntimeFailure for pixels that are neither uint8 nor int32.
    """
    if not spec.pixels:
        return np.asarray(result, np.float32)
    if result.dtype == np.uint8:
        return result
    if result.dtype != np.int32:
        raise RuntimeFailure(f"{spec.name} came as {result.dtype}; pixels are uint8 or int32. Export it again.")
    return np.ascontiguousarray(result, "<i4").view(np.uint8).reshape(*result.shape, 4)
